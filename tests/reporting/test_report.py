"""The report: what HTML, LaTeX and PDF promise, with the real programs."""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import report_notebooks as notebooks

from tests.pages import ENGINES, in_browser, needs_browser, needs_poppler, needs_tex, words_of
from vitfp8.errors import InputError
from vitfp8.reporting import pdf
from vitfp8.reporting.build import execute_analysis, export_report, make_report
from vitfp8.reporting.writing import external_resources, write

TOP = Path(__file__).resolve().parents[2]
CITATION = TOP / "CITATION.cff"


def export(notebook: Path, folder: Path, *formats: str, **options: object) -> dict[str, Path]:
    """Export with the project's citation file."""
    return export_report(notebook, folder, formats, **{"citation": CITATION, **options})


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A notebook with everything that a report can hold."""
    return notebooks.full_notebook(tmp_path_factory.mktemp("full") / "analysis.ipynb")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A notebook with a line of text and a figure."""
    figure = notebooks.cell(notebooks.shown(notebooks.picture()), about={"caption": "Drawn.", "label": "fig-drawn"})
    return notebooks.write(tmp_path_factory.mktemp("small") / "analysis.ipynb", notebooks.text("See @fig-drawn."), figure)


@pytest.fixture(scope="module")
def page(full: Path) -> str:
    """Its HTML."""
    return export(full, full.parent / "html", "html")["html"].read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tex(full: Path) -> Path:
    """Its LaTeX."""
    return export(full, full.parent / "latex", "latex")["latex"]


@pytest.fixture(scope="module", params=ENGINES)
def pdf_file(full: Path, request: pytest.FixtureRequest) -> Path:
    """Its PDF, by each way."""
    return export(full, full.parent / request.param, "pdf", engine=request.param)["pdf"]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A notebook whose every field tries to act."""
    return notebooks.hostile_notebook(tmp_path_factory.mktemp("hostile") / "analysis.ipynb")


# ---------------------------------------------------------------------------------------------------------- HTML


def test_html_loads_nothing_from_anywhere(page: str) -> None:
    assert external_resources(page) == []
    assert len(re.findall(r'<img [^>]*src="data:image/png;base64,', page)) == 3


def test_external_resources_are_found() -> None:
    loads = '<script src="https://cdn/x.js"></script><link href=//a/b.css><a href="https://ok"><img src="data:x">'
    loads += '<style>@import "c"</style>'
    assert external_resources(loads) == ["https://cdn/x.js", "//a/b.css", "c"]


def test_html_names_language_title_and_author(page: str) -> None:
    assert '<html lang="en">' in page
    assert "<title>Analysis of the study paper – What low precision costs" in page
    assert '<meta name="author" content="The vitfp8 authors">' in page
    assert '<time datetime="2026-03-04">' in page


def test_pictures_have_their_captions_as_alternative_text(page: str) -> None:
    assert 'alt="Validation accuracy by epoch (n=3) in fp32 → fp16."' in page


def test_references_and_citations_lead_somewhere(page: str) -> None:
    targets = set(re.findall(r'href="#([^"]+)"', page))
    assert {"fig-accuracy", "tab-comparison", "ref-micikevicius2018", "sec-results"} <= targets
    assert all(page.count(f'id="{target}"') == 1 for target in targets)


def test_formulas_need_no_script(page: str) -> None:
    assert '<math display="block"' in page
    assert "<script" not in page


@needs_browser
def test_html_opens_in_a_browser(page: str, full: Path, tmp_path: Path) -> None:
    shown = in_browser(full.parent / "html" / "report.html", tmp_path)
    assert '<span class="number">Figure 1.</span>' in shown
    assert '<span class="number">Table 5.</span>' in shown


# -------------------------------------------------------------------------------------------- captions and references


def test_figures_and_tables_are_numbered_separately(page: str) -> None:
    assert re.findall(r'<span class="number">(.+?)\.</span>', page) == [
        "Figure 1", "Table 1", "Table 2", "Figure 2", "Table 3", "Table 4", "Table 5"
    ]  # fmt: skip


@needs_poppler
def test_pdf_has_numbers_and_references(pdf_file: Path) -> None:
    text = " ".join(words_of(pdf_file).split())
    assert "as Figure 1 and Table 1 show" in text
    assert "Table 5. A long table." in text
    assert "cost (Micikevicius et al. 2018; Dosovitskiy et al. 2021)?" in text
    assert "??" not in text


def test_latex_references_are_latex_s_own(tex: Path) -> None:
    text = tex.read_text(encoding="utf-8")
    assert r"\hyperref[fig-accuracy]{Figure~\ref*{fig-accuracy}}" in text
    assert r"\label{fig-accuracy}" in text
    assert r"\citeproc{ref-micikevicius2018}{Micikevicius et al. 2018}" in text


def test_a_caption_without_figure_gives_way_to_the_sentence(page: str) -> None:
    assert "No power was measured on this machine." in page
    assert "GPU power." not in page
    assert "see also a figure without data" in page


def test_an_output_may_bring_its_own_caption(tmp_path: Path) -> None:
    outputs = [
        notebooks.shown(notebooks.COMPARISON, {"vitfp8": {"caption": f"Number {n}.", "label": f"tab-{n}"}}) for n in (1, 2)
    ]
    notebook = notebooks.write(tmp_path / "a.ipynb", notebooks.text("See @tab-2."), notebooks.cell(*outputs))
    page = export(notebook, tmp_path / "out", "html")["html"].read_text(encoding="utf-8")
    assert '<a href="#tab-2">Table\u00a02</a>' in page
    assert "Table 1.</span> Number 1." in page


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([notebooks.text("See @fig-acuracy.")], "the text refers to @fig-acuracy, .* did you mean fig-accuracy"),
        ([notebooks.cell(notebooks.shown({"text/markdown": "See @tab-none."}))], "refers to @tab-none"),
        (
            [notebooks.cell(notebooks.shown(notebooks.COMPARISON), about={"caption": "x", "label": "fig-accuracy"})],
            "is used twice",
        ),
        ([notebooks.cell(notebooks.shown(notebooks.COMPARISON), about={"caption": "x", "label": "table 1"})], "label 'table 1'"),
        ([notebooks.cell(notebooks.shown(notebooks.COMPARISON), about={"label": "tab-x"})], "'tab-x' has no caption"),
    ],
)
def test_a_wrong_label_is_refused_by_name(cells: list, message: str, tmp_path: Path) -> None:
    first = notebooks.cell(notebooks.shown(notebooks.picture()), about={"caption": "x", "label": "fig-accuracy"})
    notebook = notebooks.write(tmp_path / "a.ipynb", first, *cells)
    with pytest.raises(InputError, match=message) as refusal:
        export(notebook, tmp_path / "out", "html")
    assert "\n" not in str(refusal.value)


# ----------------------------------------------------------------------------------------------------- what is left out


def test_code_is_hidden_and_tags_are_honoured(tmp_path: Path) -> None:
    said = notebooks.new_output("stream", name="stdout", text="SPOKEN")
    notebook = notebooks.write(
        tmp_path / "a.ipynb",
        notebooks.cell(said, source="PARAMETERS = 1", tags=("parameters",)),
        notebooks.cell(said, source="INJECTED = 1", tags=("injected-parameters",)),
        notebooks.cell(said, source="REMOVED = 1", tags=("remove-cell",)),
        notebooks.cell(said, source="SILENT = 1", tags=("remove-output",)),
        notebooks.cell(said, source="HIDDEN = 1", tags=("remove-input",)),
        notebooks.cell(said, source="CODE = 1"),
    )
    page = export(notebook, tmp_path / "out", "html")["html"].read_text(encoding="utf-8")
    assert page.count("SPOKEN") == 2
    assert not re.search("PARAMETERS|INJECTED|REMOVED|SILENT|HIDDEN|CODE", page)


def test_a_data_frame_is_a_table_without_its_styles(tmp_path: Path) -> None:
    frame = "<div><style scoped>.dataframe tbody tr th { vertical-align: top; }</style>"
    frame += (
        "<table><thead><tr><th></th><th>value</th></tr></thead><tbody><tr><th>seed</th><td>0.5</td></tr></tbody></table></div>"
    )
    notebook = notebooks.write(tmp_path / "a.ipynb", notebooks.cell(notebooks.shown({"text/html": frame, "text/plain": "x"})))
    body = export(notebook, tmp_path / "out", "html")["html"].read_text(encoding="utf-8").split("<body>")[1]
    assert "<table>" in body and "seed" in body and "vertical-align" not in body


def test_a_table_s_data_is_typeset_and_not_its_html(tmp_path: Path) -> None:
    from vitfp8.analysis.table import TABLE_MIME, ReportTable

    table = ReportTable(
        stem="x", columns=["Run", "n"], rows=[["<b>a_1</b>", "0.50"], ["$x$ \\input{y}", "–"]], notes=["50 % & more"]
    )
    data = {**table._repr_mimebundle_(), "text/html": "<p>PARSED</p>"}
    assert TABLE_MIME in data
    cell = notebooks.cell(notebooks.shown(data), about={"caption": "Shown.", "label": "tab-x"})
    made = export(notebooks.write(tmp_path / "a.ipynb", cell), tmp_path / "out", "html", "latex")
    html, latex = (made[name].read_text(encoding="utf-8") for name in ("html", "latex"))
    assert "&lt;b&gt;a_1&lt;/b&gt;" in html and "PARSED" not in html + latex and "50 % &amp; more" in html
    assert r"\textbackslash input\{y\}" in latex and r"50 \% \& more" in latex and r"\label{tab-x}" in latex


@pytest.mark.parametrize(("exporter", "file"), [("HtmlReport", "a.html"), ("LatexReport", "a.tex")])
def test_nbconvert_with_our_exporters_does_the_same(exporter: str, file: str, tmp_path: Path) -> None:
    notebook = notebooks.write(
        tmp_path / "a.ipynb",
        notebooks.cell(source="INJECTED = 1", tags=("injected-parameters",)),
        notebooks.cell(source="HIDDEN = 1", tags=("remove-input",)),
        notebooks.cell(source="SEEN = 1"),
        notebooks.text("See @tab-comparison."),
        notebooks.cell(notebooks.shown(notebooks.COMPARISON), about={"caption": "Compared.", "label": "tab-comparison"}),
        notebooks.cell(notebooks.shown(notebooks.picture()), about={"caption": "Drawn.", "label": "fig-drawn"}),
    )
    dotted = f"vitfp8.reporting.exporters.{exporter}"
    command = [sys.executable, "-m", "jupyter", "nbconvert", "--to", dotted, str(notebook)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    text = (tmp_path / file).read_text(encoding="utf-8")
    assert "SEEN" in text
    assert not re.search("INJECTED =|HIDDEN =", text)
    if exporter == "HtmlReport":
        assert external_resources(text) == []
        assert "Table\u00a01</a>" in text
    else:
        assert (tmp_path / re.search(r"\{([^{}]*fig-drawn\.pdf)\}", text).group(1)).is_file()


# --------------------------------------------------------------------------------------------------------------- PDF


@needs_poppler
def test_pdf_prints_every_glyph(pdf_file: Path) -> None:
    printed = words_of(pdf_file)
    assert [glyph for glyph in notebooks.GLYPHS.split() if glyph not in printed] == []


@needs_poppler
def test_nothing_in_the_pdf_leaves_its_page(pdf_file: Path) -> None:
    boxes = subprocess.run(["pdftotext", "-bbox", pdf_file, "-"], capture_output=True, text=True, check=True).stdout
    width, words = 0.0, 0
    for line in boxes.splitlines():
        if found := re.search(r'<page width="([\d.]+)"', line):
            width = float(found.group(1))
        elif found := re.search(r'<word xMin="([-\d.]+)" yMin="[-\d.]+" xMax="([-\d.]+)"[^>]*>(.*)</word>', line):
            # margins of 25 mm are 71 pt; a frame or a hanging bracket may stand out by a hair
            assert float(found.group(1)) > 66 and float(found.group(2)) < width - 66, line
            words += 1
    assert words > 100


@needs_poppler
def test_no_page_ends_early_while_text_follows(pdf_file: Path) -> None:
    boxes = subprocess.run(["pdftotext", "-bbox", pdf_file, "-"], capture_output=True, text=True, check=True).stdout
    *pages, _last = boxes.split("<page ")[1:]
    assert len(pages) > 3
    for page in pages:
        height = float(re.search(r'height="([\d.]+)"', page).group(1))
        lowest = max(y for y in map(float, re.findall(r'yMax="([\d.]+)"', page)) if y < height - 66)
        assert height - 71 - lowest < 0.34 * (height - 142)


@needs_poppler
def test_a_path_is_whole_when_it_is_copied_from_the_pdf(pdf_file: Path) -> None:
    assert notebooks.PATH in re.sub(r"\s+", "", words_of(pdf_file))


@needs_poppler
def test_pictures_stay_vectors_in_the_pdf(full: Path, pdf_file: Path) -> None:
    # one of the three pictures exists as PNG only
    listed = subprocess.run(["pdfimages", "-list", pdf_file], capture_output=True, text=True, check=True).stdout
    assert len({line.split()[0] for line in listed.splitlines()[2:] if " image " in line}) <= 1


@needs_tex
def test_latex_compiles_from_its_own_folder_without_a_complaint(tex: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tex.parent, tmp_path / "moved")
    pdf.compile_latex(folder)
    log = (folder / "report.log").read_text(encoding="utf-8", errors="replace")
    assert "Missing character" not in log
    assert [line for line in log.splitlines() if line.startswith("Overfull \\hbox")] == []
    assert "undefined" not in log
    assert "Rerun" not in log.split("rerunfilecheck")[-1]


@needs_tex
@needs_poppler
def test_a_character_that_no_font_has_is_printed_as_its_code(tmp_path: Path) -> None:
    notebook = notebooks.write(
        tmp_path / "a.ipynb", notebooks.text("# On 中 \u2192 `中`\n\n## Part 中 ≤ 1\n\nText 中 and $中 ≤ α$.")
    )
    made = export(notebook, tmp_path / "out", "pdf", engine="latex")["pdf"]
    assert "U+4e2d" in words_of(made)


def test_without_tex_the_pdf_comes_from_pip_packages(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    made = export(small, tmp_path / "out", "html", "latex", "pdf")
    assert made["pdf"].read_bytes().startswith(b"%PDF-")
    assert made["latex"].is_file()


def test_the_engine_can_be_forced(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITFP8_PDF_ENGINE", "typst")
    assert b"Typst" in export(small, tmp_path, "pdf")["pdf"].read_bytes()


def test_what_is_missing_is_named_with_its_command(full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="no TeX on this machine .*conda install -c conda-forge tectonic"):
        export(full, tmp_path / "out", "pdf", engine="latex")
    monkeypatch.setattr(pdf, "has_typst", lambda: False)
    with pytest.raises(InputError, match="pip install typst"):
        export(full, tmp_path / "out", "pdf")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def broken_latex(monkeypatch: pytest.MonkeyPatch) -> None:
    """A LaTeX whose template asks for a package that nobody has."""
    from vitfp8.reporting import exporters

    def spoilt(document: object, target: str, folder: str) -> tuple[str, dict[str, bytes]]:
        text, files = write(document, target, folder)  # type: ignore[arg-type]
        return text.replace(r"\begin{document}", r"\usepackage{nobody-has-this}\begin{document}"), files

    monkeypatch.setattr(exporters, "write", spoilt)


@needs_tex
def test_latex_s_error_becomes_one_line_and_its_log_is_kept(small: Path, tmp_path: Path, broken_latex: None) -> None:
    with pytest.raises(InputError, match=r"LaTeX refused report\.tex: .*report\.log\)$") as refusal:
        export(small, tmp_path, "pdf", engine="latex")
    assert "\n" not in str(refusal.value)
    assert "! LaTeX Error" in (tmp_path / "report.log").read_text(encoding="utf-8")


@needs_tex
def test_when_latex_fails_typst_takes_over_and_says_so(
    small: Path, tmp_path: Path, broken_latex: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        made = export(small, tmp_path, "pdf")
    assert b"Typst" in made["pdf"].read_bytes()
    assert "the PDF is made with Typst instead" in caplog.text


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("! LaTeX Error: File `adjustbox.sty' not found.\nl.3", "package adjustbox.sty is missing; .*tlmgr install adjustbox"),
        ('! Package fontspec Error: The font "latinmodern-math.otf" cannot be found', "tlmgr install lm lm-math"),
        ("! Undefined control sequence.\nl.68 \\x", r"Undefined control sequence\. \(line 68\)"),
        ("", "no reason given"),
    ],
)
def test_a_latex_log_is_reduced_to_its_reason(log: str, reason: str) -> None:
    assert re.search(reason, pdf._reason(log))


# ---------------------------------------------------------------------------------------------------------- citation


def test_authors_and_bibliography_reach_every_format(full: Path, tmp_path: Path) -> None:
    (tmp_path / "CITATION.cff").write_text(
        "title: 50 % of a_title & more\nversion: 2.1\nabstract: Short.\n"
        "authors:\n- {family-names: Müller, given-names: Änne, affiliation: 'R&D', orcid: 'https://orcid.org/0000-0002-1825-0097'}\n"
        "- name: A body\n"
        "references:\n- {type: article, title: Another work, year: 2018, authors: [{family-names: Micikevicius}]}\n"
        "- {type: article, title: First work, year: 2021, authors: [{family-names: Dosovitskiy}], doi: 10.1000/1_2}\n",
        encoding="utf-8",
    )
    made = export_report(full, tmp_path / "out", ("html", "latex"), citation=tmp_path / "CITATION.cff")
    html, latex = (made[name].read_text(encoding="utf-8") for name in ("html", "latex"))
    assert "<h1>50 % of a_title &amp; more</h1>" in html
    assert 'Änne Müller, <span class="affiliation">R&amp;D</span> (<a href="https://orcid.org/0000-0002-1825-0097">' in html
    assert 'href="https://doi.org/10.1000/1_2"' in html
    assert r"50 \% of a\_title \& more" in latex
    assert r"{ref-dosovitskiy2021}" in latex


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "not found"),
        ("title: [", "is not YAML"),
        ("- a list", "has no keys"),
        ("authors: [{name: x}]", "has no title"),
        ("title: x", "names no authors"),
        ("title: {a: b}\nauthors: [{name: x}]", "'title' is dict, a text is expected"),
        ("title: x\nauthors: somebody", "'authors' is not a list"),
        ("title: x\nauthors: [somebody]", r"'authors\[1\]' is not an author"),
        ("title: x\nauthors: [{affiliation: y}]", r"'authors\[1\]' has no name"),
        ("title: x\nauthors: [{name: y, orcid: 12}]", r"'authors\[1\].orcid' is '12'"),
        ("title: x\nauthors: [{name: y}]\nreferences: [{type: book}]", r"'references\[1\]' has no title"),
        ("title: !!python/object/apply:os.system ['true']\nauthors: [{name: y}]", "is not YAML"),
    ],
)
def test_a_bad_citation_file_is_one_line(content: str | None, message: str, full: Path, tmp_path: Path) -> None:
    path = tmp_path / "CITATION.cff"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message) as refusal:
        export_report(full, tmp_path / "out", ("html",), citation=path)
    assert "\n" not in str(refusal.value)
    assert str(path) in str(refusal.value)
    assert not (tmp_path / "out").exists()


# ----------------------------------------------------------------------------------------------------------- security


@pytest.fixture(scope="module")
def hostile_page(hostile: Path) -> Path:
    """The HTML of the notebook that tries to act."""
    return export(hostile, hostile.parent / "html", "html")["html"]


def test_hostile_text_is_shown_and_not_obeyed_in_html(hostile_page: Path) -> None:
    page = hostile_page.read_text(encoding="utf-8")
    assert external_resources(page) == []
    assert not re.search(r"<script|<iframe|<style[^>]*>body\{back|javascript:|file:///", page)
    assert not re.search(r"<[a-z][^>]*\son[a-z]+\s*=", page)
    assert "&lt;script&gt;document.title=" in page


@needs_browser
def test_hostile_text_does_nothing_in_a_browser(hostile_page: Path, tmp_path: Path) -> None:
    assert "<title>owned" not in in_browser(hostile_page, tmp_path)


@needs_poppler
@pytest.mark.parametrize("engine", ENGINES)
def test_hostile_text_is_shown_and_not_obeyed_in_pdf(hostile: Path, engine: str, tmp_path: Path) -> None:
    made = export(hostile, tmp_path, "pdf", engine=engine)["pdf"]
    text = "".join(words_of(made).split())
    assert r"\input{/etc/hostname}" in text
    assert r"\immediate\write18{touchowned}" in text
    assert '#eval("1+1")' in text
    assert Path("/etc/hostname").read_text().strip() not in text
    # what follows the attempt to end the document is there
    assert "References" in text


# ------------------------------------------------------------------------------------------------------ whole or not


def test_earlier_files_stay_when_an_export_fails(full: Path, tmp_path: Path) -> None:
    made = export(full, tmp_path, "html", "latex")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    broken = notebooks.write(tmp_path / "elsewhere" / "a.ipynb", notebooks.text("See @fig-none."))
    with pytest.raises(InputError):
        export(broken, tmp_path, "html", "latex")
    assert {path: path.read_bytes() for path in before} == before
    assert made["html"] in before
    assert not list(tmp_path.glob(".report-*"))


@pytest.mark.parametrize("target", ["html", "pdf"])
def test_earlier_files_stay_when_the_disk_is_full(target: str, small: Path, tmp_path: Path) -> None:
    for name in ("report.html", "report.tex", "report.pdf"):
        (tmp_path / name).write_text("an earlier report")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    program = (
        "import resource, sys; from pathlib import Path; from vitfp8.errors import InputError;"
        "from vitfp8.reporting.build import export_report;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
        "try: export_report(Path(sys.argv[1]), Path(sys.argv[2]), [sys.argv[3]], citation=Path(sys.argv[4]), engine='typst')\n"
        "except InputError as error: print(error); sys.exit(2)"
    )
    command = [sys.executable, "-c", program, str(small), str(tmp_path), target, str(CITATION)]
    result = subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=False)
    assert result.returncode == 2, result.stderr
    assert len(result.stdout.splitlines()) == 1
    assert "File too large; what was there before is unchanged" in result.stdout
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_folder_that_is_a_file_is_one_line(full: Path, tmp_path: Path) -> None:
    (tmp_path / "report").write_text("occupied")
    with pytest.raises(InputError, match="report: .*what was there before is unchanged"):
        export(full, tmp_path / "report", "html")
    assert (tmp_path / "report").read_text() == "occupied"


def test_pictures_of_an_earlier_report_go(full: Path, tmp_path: Path) -> None:
    export(full, tmp_path, "latex")
    assert (tmp_path / "report_files" / "fig-accuracy.pdf").is_file()
    export(notebooks.write(tmp_path / "a" / "a.ipynb", notebooks.text("Nothing.")), tmp_path, "latex")
    assert not (tmp_path / "report_files").exists()


@pytest.mark.parametrize("content", ["", "{}", "[1]", "not json", '{"nbformat": 4, "nbformat_minor": 5, "cells": 3}'])
def test_a_damaged_notebook_is_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.ipynb").write_text(content)
    with pytest.raises(InputError, match=r"a\.ipynb: is not a notebook") as refusal:
        export(tmp_path / "a.ipynb", tmp_path / "out", "html")
    assert "\n" not in str(refusal.value)


def test_an_unknown_format_is_refused_by_name(full: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'htm' is unknown; did you mean html"):
        export(full, tmp_path, "htm")


def test_lone_surrogates_do_not_stop_a_report(tmp_path: Path) -> None:
    notebook = notebooks.write(tmp_path / "a.ipynb", notebooks.cell(notebooks.shown({"text/plain": "PLACE"})))
    notebook.write_text(notebook.read_text().replace("PLACE", "\\ud800 end"))
    assert "end" in export(notebook, tmp_path / "out", "html", "latex", "pdf", engine="typst")["html"].read_text()


# ---------------------------------------------------------------------------------------------------- execute and report


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a study of one (empty) run and an analysis template; the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(TOP))
    notebooks.write(tmp_path / "executed" / "small" / "BaseFP32-s0.ipynb", notebooks.text("a run"))
    shutil.copy(CITATION, tmp_path / "CITATION.cff")
    return tmp_path


def analysis(*lines: str) -> Path:
    """An analysis template in the working directory."""
    path = Path("template.ipynb")
    parameters = notebooks.cell(source="study_folder = ''\nreport_folder = ''", tags=("parameters",))
    parameters["execution_count"] = None
    code = notebooks.cell(source="\n".join(lines))
    code["execution_count"] = None
    return notebooks.write(path, notebooks.text("# Analysis"), parameters, code)


def test_the_analysis_runs_in_this_interpreter_and_is_exported(study: Path) -> None:
    template = analysis("import sys", "print(sys.executable, study_folder, report_folder)")
    made = make_report("small", template=template, formats=("html",))
    assert made["notebook"] == Path("executed/small/analysis.ipynb")
    page = made["html"].read_text(encoding="utf-8")
    assert f"{sys.executable} executed/small report/small" in page
    assert nbformat.read(made["notebook"], as_version=4).metadata.vitfp8.kind == "analysis"
    assert sorted(path.name for path in (study / "executed" / "small").iterdir()) == ["BaseFP32-s0.ipynb", "analysis.ipynb"]


def test_a_failing_analysis_leaves_the_earlier_one(study: Path) -> None:
    folder, report = Path("executed/small"), Path("report/small")
    execute_analysis(analysis("print('good')"), folder, report)
    before = (folder / "analysis.ipynb").read_bytes()
    with pytest.raises(InputError, match=r"analysis of executed/small failed: ZeroDivisionError.*analysis-failed\.ipynb"):
        execute_analysis(analysis("1 / 0"), folder, report)
    assert (folder / "analysis.ipynb").read_bytes() == before
    assert "ZeroDivisionError" in (report / "analysis-failed.ipynb").read_text()
    execute_analysis(analysis("print('better')"), folder, report)
    assert not (report / "analysis-failed.ipynb").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smal", "no such study; did you mean small"),
        ("../small", "is not a folder name"),
        ("empty", "holds no executed notebook"),
    ],
)
def test_a_study_that_is_not_there_is_refused_by_name(name: str, message: str, study: Path) -> None:
    (study / "executed" / "empty").mkdir()
    with pytest.raises(InputError, match=message):
        make_report(name, template=analysis("pass"), formats=())


def test_a_missing_citation_file_is_found_before_the_analysis_runs(study: Path) -> None:
    with pytest.raises(InputError, match="nowhere.cff: not found"):
        make_report("small", template=analysis("pass"), citation=Path("nowhere.cff"))
    assert not Path("executed/small/analysis.ipynb").exists()
