"""The report of a study: the analysis notebook, executed and exported to HTML, LaTeX and PDF.

The analysis reads records only. papermill executes it in the running interpreter, and it is kept beside the runs. All exports are
written to a temporary folder and renamed into place once all of them are complete.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vitfp8.errors import InputError, printable, suggest
from vitfp8.files import check_writable, write_atomically
from vitfp8.home import from_home, run_command
from vitfp8.run.locate import executed_folder, find_file, report_folder
from vitfp8.run.locate import template as find_template
from vitfp8.run.study_file import check_study_name, load_study

#: What a report can be exported to, and the file that each gives.
FORMATS = {"html": "report.html", "latex": "report.tex", "pdf": "report.pdf"}
#: Forces the way to the PDF: ``auto`` (LaTeX where TeX is on the machine), ``latex`` or ``typst``.
ENGINE_VARIABLE = "VITFP8_PDF_ENGINE"
ANALYSIS = "analysis.ipynb"
_log = logging.getLogger(__name__)


def export_report(
    notebook: Path,
    out_folder: Path,
    formats: Sequence[str] = tuple(FORMATS),
    *,
    citation: Path | None = None,
    engine: str | None = None,
) -> dict[str, Path]:
    """Export an executed notebook to ``report.html``, ``report.tex`` with ``report_files/``, and ``report.pdf``.

    Args:
        notebook: an executed notebook.
        out_folder: created if it is missing; earlier exports in it stay until all the new ones are complete.
        formats: of ``html``, ``latex``, ``pdf``.
        citation: the citation file; by default the ``CITATION.cff`` above the notebook, else that of the working directory.
        engine: what makes the PDF: ``auto``, ``latex`` or ``typst``; by default the environment variable
            ``VITFP8_PDF_ENGINE``, else ``auto``.

    Returns:
        The file of each format.

    Raises:
        InputError: unknown format, unreadable notebook or citation file, unknown label, missing program (with the command that
            installs it), no space or no permission; one line.
    """
    formats = _checked_formats(formats)
    engine = engine or os.environ.get(ENGINE_VARIABLE) or "auto"
    if "pdf" in formats:
        from vitfp8.reporting.pdf import choose_engine

        choose_engine(engine)
    from vitfp8.reporting.citation import read_citation

    content = _read_notebook(notebook)
    cited = read_citation(citation or _citation_file(notebook))
    with _clear_errors(out_folder):
        out_folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out_folder, prefix=".report-") as aside:
            staged = _make(content, notebook, Path(aside), formats, cited, engine, out_folder)
            _put_in_place(staged, Path(aside), out_folder)
    return {name: out_folder / FORMATS[name] for name in formats}


def make_report(
    study: str,
    *,
    template: Path | None = None,
    formats: Sequence[str] = tuple(FORMATS),
    executed: Path | None = None,
    report: Path | None = None,
    citation: Path | None = None,
    engine: str | None = None,
) -> dict[str, Path]:
    """Execute the analysis of a study and export it; without formats, only execute it.

    Args:
        study: its name.
        template: the analysis notebook; by default the project's.
        formats: of ``html``, ``latex``, ``pdf``.
        executed: the folder of all studies' executed notebooks; None: ``executed/`` at the study's home.
        report: the folder of all reports; None: ``report/`` there.
        citation: as for `export_report`.
        engine: as for `export_report`.

    Returns:
        The file of each format, and under ``notebook`` the executed analysis.

    Raises:
        InputError: as for `export_report`; or there is no such study, or the analysis failed.
    """
    formats = _checked_formats(formats)
    folder = _study_folder(study, executed or executed_folder())
    template = template or find_template(ANALYSIS)
    # Whatever would stop the export is found before the analysis, which takes longer.
    if formats:
        from vitfp8.reporting.citation import read_citation

        citation = citation or _citation_file(folder / ANALYSIS)
        read_citation(citation)
    if "pdf" in formats:
        from vitfp8.reporting.pdf import choose_engine

        choose_engine(engine or os.environ.get(ENGINE_VARIABLE) or "auto")
    out_folder = (report or report_folder()) / study
    for place in (folder, out_folder):
        check_writable(place)
    notebook = execute_analysis(template, folder, out_folder)
    files = export_report(notebook, out_folder, formats, citation=citation, engine=engine) if formats else {}
    return {"notebook": notebook, **files}


def execute_analysis(template: Path, study_folder: Path, report_folder: Path) -> Path:
    """Execute the analysis notebook of a study in the running interpreter and return the executed notebook.

    ``analysis.ipynb`` in the study's folder is replaced only when the analysis has succeeded. When it fails, the notebook with
    the traceback becomes ``analysis-failed.ipynb`` in the report's folder.

    Raises:
        InputError: the template cannot be read or a cell failed; one line that names the error.
    """
    from vitfp8.run.execute import execute

    _read_notebook(template)
    kept, failed = study_folder / ANALYSIS, report_folder / "analysis-failed.ipynb"
    with _clear_errors(study_folder), tempfile.TemporaryDirectory(prefix="vitfp8-analysis-") as aside:
        report_folder.mkdir(parents=True, exist_ok=True)
        result = Path(aside) / ANALYSIS
        study = load_study(study_folder.name)
        parameters = {"study_folder": str(from_home(study_folder)), "report_folder": str(from_home(report_folder))}
        parameters |= {"question": study.question} if study and study.question else {}
        execution = execute(template, result, parameters)
        if execution.signal is not None:
            raise KeyboardInterrupt
        if execution.error is not None:
            seen = ""
            if result.is_file():
                write_atomically(failed, result.read_bytes())
                seen = f" (see {failed})"
            raise InputError(
                f"the analysis of {study_folder} failed: {printable(execution.error, 300)}{seen}; what was there is unchanged"
            )
        write_atomically(kept, result.read_bytes())
        failed.unlink(missing_ok=True)
    return kept


def _checked_formats(formats: Sequence[str]) -> list[str]:
    """Return the formats, each once; refuse an unknown one by name."""
    for name in formats:
        if name not in FORMATS:
            raise InputError(f"report format {name!r} is unknown; {suggest(name, FORMATS)}")
    return list(dict.fromkeys(formats))


def _study_folder(study: str, executed: Path) -> Path:
    """Return the folder of a study that has executed notebooks."""
    folder = executed / check_study_name(study)
    if not folder.is_dir():
        known = sorted(path.name for path in executed.iterdir() if path.is_dir()) if executed.is_dir() else []
        hint = suggest(study, known) if known else "there are none yet"
        raise InputError(f"{folder}: no such study; {hint} (`{run_command(study)}` makes it)")
    if not any(path.name != ANALYSIS for path in folder.glob("*.ipynb")):
        raise InputError(f"{folder}: holds no executed notebook; `{run_command(study)}` makes them")
    return folder


def _citation_file(notebook: Path) -> Path:
    """Return the citation file nearest above a notebook, else the project's."""
    from vitfp8.reporting.citation import find_citation

    where = find_citation(notebook.resolve().parent)
    return where or find_file("CITATION.cff", what="title, authors and bibliography of the report")


def _read_notebook(path: Path) -> Any:
    """Return a notebook; raise an error of one line if it is not one."""
    import nbformat

    try:
        return nbformat.read(str(path), as_version=4)
    except FileNotFoundError:
        raise InputError(f"{path}: not found") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, AttributeError, KeyError, TypeError, nbformat.ValidationError) as error:
        raise InputError(f"{path}: is not a notebook: {printable(str(error), 300)}") from None


def _make(
    content: Any, notebook: Path, aside: Path, formats: Sequence[str], cited: Any, engine: str, out_folder: Path
) -> list[Path]:
    """Write the exports to a temporary folder and return the files to put in place, relative to it."""
    from vitfp8.reporting import pdf
    from vitfp8.reporting.exporters import convert

    folder = notebook.resolve().parent
    staged: list[Path] = []
    way = pdf.choose_engine(engine) if "pdf" in formats else ""
    if "html" in formats:
        text, _ = convert(content, "html", cited, folder)
        _write(aside / FORMATS["html"], text)
        staged.append(Path(FORMATS["html"]))
    if "latex" in formats or way == "latex":
        text, files = convert(content, "latex", cited, folder)
        work = aside if "latex" in formats else aside / "latex"
        work.mkdir(exist_ok=True)
        for name, data in files.items():
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            (work / name).write_bytes(data)
        _write(work / "report.tex", text)
        if "latex" in formats:
            staged += [*map(Path, files), Path(FORMATS["latex"])]
        if way == "latex":
            way = _latex_pdf(work, aside, engine, out_folder)
    if way == "typst":
        text, files = convert(content, "typst", cited, folder)
        (aside / "typst").mkdir()
        (aside / FORMATS["pdf"]).write_bytes(pdf.compile_typst(text, files, aside / "typst"))
    if "pdf" in formats:
        staged.append(Path(FORMATS["pdf"]))
    return staged


def _latex_pdf(work: Path, aside: Path, engine: str, out_folder: Path) -> str:
    """Compile the LaTeX. Return the engine still to try: ``typst`` if LaTeX failed and any engine will do, else none."""
    from vitfp8.reporting import pdf

    log = out_folder / "report.log"
    with tempfile.TemporaryDirectory(dir=aside, prefix="tex-") as place:
        shutil.copytree(work, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("tex-*"))
        try:
            made = pdf.compile_latex(Path(place))
        except pdf.LatexError as error:
            _write(log, error.log)
            if engine == "auto" and pdf.has_typst():
                _log.warning("%s (all of it in %s); the PDF is made with Typst instead", error, log)
                return "typst"
            raise InputError(f"{error} (all of it in {log})") from None
        if made != aside / FORMATS["pdf"]:
            shutil.copyfile(made, aside / FORMATS["pdf"])
    log.unlink(missing_ok=True)
    return ""


def _write(path: Path, text: str) -> None:
    """Write a text as UTF-8; lone surrogates of a damaged notebook become question marks."""
    path.write_bytes(text.encode("utf-8", "replace"))


def _put_in_place(staged: Sequence[Path], aside: Path, out_folder: Path) -> None:
    """Rename complete files into place, and delete pictures that the new text does not include."""
    for name in staged:
        with (aside / name).open("rb") as file:
            os.fsync(file.fileno())
    for name in staged:
        (out_folder / name).parent.mkdir(parents=True, exist_ok=True)
        (aside / name).replace(out_folder / name)
    pictures = out_folder / "report_files"
    if Path(FORMATS["latex"]) in staged and pictures.is_dir():
        current = {out_folder / name for name in staged}
        for path in pictures.iterdir():
            if path.is_file() and path not in current:
                path.unlink()
        with contextlib.suppress(OSError):
            pictures.rmdir()


@contextlib.contextmanager
def _clear_errors(folder: Path) -> Iterator[None]:
    """Turn an error of the file system into one line; earlier files are unchanged."""
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{error.filename or folder}: {reason}; what was there before is unchanged") from None
