"""Reading what was exported as a reader would: a page in a real browser, the words of a PDF."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from vitfp8.reporting import pdf

needs_tex = pytest.mark.skipif(pdf.find_tex() is None, reason="no TeX on this machine")
needs_poppler = pytest.mark.skipif(shutil.which("pdftotext") is None, reason="no pdftotext on this machine")
BROWSER = next((path for name in ("chromium", "google-chrome", "chromium-browser") if (path := shutil.which(name))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no headless browser on this machine")
ENGINES = [pytest.param("latex", marks=needs_tex), "typst"]


def words_of(path: Path) -> str:
    """The text of a PDF, spaces as they come."""
    return subprocess.run(["pdftotext", "-layout", path, "-"], capture_output=True, text=True, check=True).stdout


def in_browser(page: Path, tmp_path: Path) -> str:
    """The page's elements after a browser has run everything that it would run."""
    options = "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update"
    command = [
        BROWSER,
        *options.split(),
        "--disable-sync",
        "--no-first-run",
        f"--user-data-dir={tmp_path / 'browser'}",
        "--dump-dom",
    ]
    return subprocess.run([*command, page.as_uri()], capture_output=True, text=True, check=True, timeout=120).stdout
