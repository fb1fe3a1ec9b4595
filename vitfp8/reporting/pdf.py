"""The PDF, through LaTeX where TeX is on the machine, else through Typst, which comes from pip."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitfp8.errors import InputError
from vitfp8.reporting.fonts import fonts_folder

#: In order of preference.
TEX_PROGRAMS = ("xelatex", "tectonic")
#: The first run builds font caches and is slow, but not this slow (seconds).
TEX_TIMEOUT = 600
_MOST_RUNS = 5
_PIPES: Any = {"stdin": subprocess.DEVNULL, "capture_output": True}
_DEBIAN = "apt install texlive-xetex texlive-latex-extra texlive-fonts-recommended"


class LatexError(InputError):
    """LaTeX refused a document: one line says why, and ``log`` is the complete log."""

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log


def find_tex() -> str | None:
    """Return the path of xelatex or tectonic, or None."""
    return next((path for name in TEX_PROGRAMS if (path := shutil.which(name))), None)


def has_typst() -> bool:
    """Whether the typst wheel is installed."""
    import importlib.util

    return importlib.util.find_spec("typst") is not None


def choose_engine(engine: str) -> str:
    """Return the engine that makes the PDF, ``latex`` or ``typst``; ``auto`` is LaTeX where TeX is on the machine.

    Raises:
        InputError: the engine is unknown, or missing on this machine; the line names the command that installs it.
    """
    if engine not in ("auto", "latex", "typst"):
        raise InputError(f"PDF engine {engine!r} is unknown; there are: auto, latex, typst")
    if engine in ("auto", "latex") and find_tex() is not None:
        return "latex"
    if engine == "latex":
        raise InputError(f"no TeX on this machine for the PDF: conda install -c conda-forge tectonic, or {_DEBIAN}")
    if has_typst():
        return "typst"
    raise InputError(f"nothing on this machine makes a PDF: pip install typst, or for LaTeX: {_DEBIAN}")


def compile_latex(folder: Path, name: str = "report") -> Path:
    """Compile ``<name>.tex`` in its folder until its references are stable, and return the PDF's path.

    TeX may run no program, and outside the folder it may read nothing but its own distribution.

    Raises:
        LatexError: with LaTeX's own reason on one line.
    """
    program = find_tex()
    if program is None:
        choose_engine("latex")
    assert program is not None
    environment = {**os.environ, "openin_any": "p", "openout_any": "p", "shell_escape": "f", "max_print_line": "1000"}
    for key in ("TEXINPUTS", "TEXMFOUTPUT"):
        environment.pop(key, None)
    tectonic = Path(program).stem == "tectonic"
    if tectonic:
        command = [program, "--untrusted", "--keep-logs", "--print", f"{name}.tex"]
    else:
        command = [program, "-no-shell-escape", "-interaction=nonstopmode", "-halt-on-error", f"{name}.tex"]
    before, output = "", ""
    for _ in range(1 if tectonic else _MOST_RUNS):
        try:
            result = subprocess.run(command, cwd=folder, env=environment, check=False, timeout=TEX_TIMEOUT, **_PIPES)
        except subprocess.TimeoutExpired:
            raise LatexError(f"LaTeX did not finish {name}.tex within {TEX_TIMEOUT} s", output) from None
        log = folder / f"{name}.log"
        output = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
        output = output or (result.stdout + result.stderr).decode("utf-8", "replace")
        if result.returncode:
            raise LatexError(f"LaTeX refused {name}.tex: {_reason(output)}", output)
        after = _references(folder, name)
        if after == before and "Rerun to get" not in output and "Rerun LaTeX" not in output:
            break
        before = after
    return folder / f"{name}.pdf"


def _references(folder: Path, name: str) -> str:
    """Return a digest of what LaTeX wrote for its next run."""
    digest = hashlib.sha256()
    for ending in (".aux", ".out", ".toc"):
        path = folder / f"{name}{ending}"
        digest.update(path.read_bytes() if path.is_file() else b"-")
    return digest.hexdigest()


def _reason(log: str) -> str:
    """Return the first error of a LaTeX log, with its line in the text and, for a missing package, the way out."""
    missing = re.search(r"File [`']([^'\n]+\.(?:sty|cls|def))' not found", log)
    if missing:
        return f"its package {missing.group(1)} is missing; {_DEBIAN}, or tlmgr install {Path(missing.group(1)).stem}"
    font = re.search(r'The font "([^"\n]+)" cannot be found', log)
    if font:
        return f"the font {font.group(1)} is missing; {_DEBIAN}, or tlmgr install lm lm-math"
    lines = log.splitlines()
    for number, line in enumerate(lines):
        if line.startswith(("! ", "error:")):
            place = next((found.group(1) for later in lines[number:] if (found := re.match(r"l\.(\d+)", later))), None)
            return line.removeprefix("! ").removeprefix("error:").strip()[:200] + (f" (line {place})" if place else "")
    return "no reason given"


def compile_typst(text: str, files: Mapping[str, bytes], folder: Path) -> bytes:
    """Compile a Typst text to a PDF, with the fonts of Typst and matplotlib.

    Args:
        text: the document.
        files: what it includes, by relative path.
        folder: an empty folder to work in; the document cannot read outside it.

    Raises:
        InputError: with Typst's reason on one line.
    """
    try:
        import typst
    except ImportError:
        raise InputError("typst is missing, and without TeX the PDF is made with it: pip install typst") from None
    for path, content in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    source = folder / "report.typ"
    source.write_text(text, encoding="utf-8", errors="replace")
    fonts = fonts_folder()
    try:
        return bytes(typst.compile(str(source), root=str(folder), font_paths=[str(fonts)] if fonts else []))
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"Typst refused the report: {reason[:300]}") from None
