"""The analysis of a study: records in; figures, tables and sentences with numbers out. Imports no torch.

`metrics` reads a study and groups its runs, `statistics` says what may be concluded from them, `tables`, `plots` and `prose` show
them, `summary` writes them as files. Nothing heavier than the standard library is loaded until one of these is imported.
"""

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    "StudyResults": "results",
    "load_results": "results",
    "FIGURES": "figures.of_study",
    "show_figure": "figures.of_study",
    "show_table": "table",
    "write_report_files": "summary",
}

__all__ = ["FIGURES", "StudyResults", "load_results", "show_figure", "show_table", "write_report_files"]  # noqa: F822


def __getattr__(name: str) -> Any:
    """Load a public name from its module when it is first asked for."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
