"""Parameters of a running notebook: those of its parameters cell, and what papermill laid over them.

The notebook validates with the same class as the command line, since papermill may be called alone.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, overload

from vitfp8.errors import InputError, shown
from vitfp8.params.fields import AnyParams
from vitfp8.params.merge import Layer, merge, validate
from vitfp8.params.training import RunParams


def refuse_windows() -> None:
    """Refuse Windows, before anything else is done: locks, folders that are flushed to disk and signals are those of POSIX.

    Raises:
        InputError: this Python runs on Windows.
    """
    if sys.platform == "win32":
        raise InputError("Windows is not supported: install WSL (`wsl --install`), which is Linux, and run vitfp8 in it")


@dataclass(frozen=True)
class _Cell:
    """What a cell does to parameters.

    Attributes:
        values: name → literal that it assigns.
        computed: name → what it assigns that is not a literal, as it is written.
        further: its first statement that is neither an assignment nor a bare value, as it is written; empty: there is none.
    """

    values: Mapping[str, Any]
    computed: Mapping[str, str]
    further: str = ""


def _read_cell(source: str) -> _Cell:
    """Read a cell without executing it; one that is not Python assigns nothing, as it did when it was executed."""
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return _Cell({}, {}, "a syntax error")
    values: dict[str, Any] = {}
    computed: dict[str, str] = {}
    further = ""
    for statement in body:
        if isinstance(statement, ast.AnnAssign) and statement.value is None:
            continue  # a type alone
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant | ast.Name):
            continue  # a text or a look at a value
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None and len(names) == len(targets):
            try:
                literal = _literal(statement.value)
            except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
                literal, new = None, {name: ast.unparse(statement.value) for name in names}
                computed |= new
                values = {name: value for name, value in values.items() if name not in new}
            else:
                values |= dict.fromkeys(names, literal)
                computed = {name: text for name, text in computed.items() if name not in names}
            continue
        further = further or ast.unparse(statement)
        computed |= dict.fromkeys(_assigned(statement), further)
    return _Cell(values, computed, further)


def _literal(node: ast.expr) -> Any:
    """The value of a literal, or of ``float("inf")``, which papermill writes for it; anything else raises."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "float" and len(node.args) == 1 and not node.keywords:
        return float(ast.literal_eval(node.args[0]))
    return ast.literal_eval(node)


def _assigned(statement: ast.stmt) -> Iterator[str]:
    """Names that a statement of any kind assigns in the notebook, not inside a function or a class of its own."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield statement.name
        return
    inner = (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
    nodes: list[ast.AST] = [statement]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif not isinstance(node, inner):
            nodes += ast.iter_child_nodes(node)


def assignments(source: str) -> dict[str, Any] | None:
    """Names and literals of a cell that does nothing but assign literals to names; None for any other cell.

    Annotated assignments (``epochs: int = 2``) and bare values are understood.
    """
    cell = _read_cell(source)
    return None if cell.computed or cell.further else dict(cell.values)


@dataclass(frozen=True)
class NotebookParameters(Generic[AnyParams]):
    """What a notebook found in its parameter cells.

    Attributes:
        params: the validated parameters.
        injected: names that were laid over the notebook's own, by papermill or by hand.
        defaults_taken: names that kept the notebook's default although something was injected.
    """

    params: AnyParams
    injected: tuple[str, ...]
    defaults_taken: tuple[str, ...]


@overload
def from_notebook(cells: Sequence[str] | None = None) -> NotebookParameters[RunParams]: ...


@overload
def from_notebook(cells: Sequence[str] | None = None, *, kind: type[AnyParams]) -> NotebookParameters[AnyParams]: ...


def from_notebook(cells: Sequence[str] | None = None, *, kind: type[Any] = RunParams) -> NotebookParameters[Any]:
    """Validate the parameters of the running notebook: those of its parameters cell and those that papermill injected.

    The last executed cell that states the parameters holds the defaults. Cells after it that only assign literals are laid over
    it; directly after it every name counts, so that a misspelt name is found although papermill injects it without a word. Cells
    that assign no parameter are passed over, so that a cell may be repeated and values may be looked at.

    Args:
        cells: the sources of the executed cells, the calling one last; None asks IPython.
        kind: the class of parameters.

    Raises:
        InputError: a name is unknown, a value is refused or computed, there is no parameters cell, or this is Windows.
    """
    refuse_windows()
    namespace: Mapping[str, Any] = {}
    if cells is None:
        from IPython.core.getipython import get_ipython

        shell = get_ipython()
        if shell is None:
            raise InputError("from_notebook: is called outside a notebook; use vitfp8.params.validate")
        cells, namespace = shell.user_ns["In"], shell.user_ns
    defaults, laid_over = _parameter_cells([_read_cell(source) for source in cells[:-1]], set(kind.model_fields))
    layers = [Layer("the notebook's parameters cell", defaults)]
    layers += [Layer("injected parameters", values) for values in laid_over]
    injected = tuple(dict.fromkeys(name for values in laid_over for name in values))
    params = validate(layers, kind)
    _refuse_later_changes(merge(layers), namespace)
    taken = tuple(name for name in defaults if name not in injected) if injected else ()
    return NotebookParameters(params, injected, taken)


def _parameter_cells(cells: Sequence[_Cell], known: set[str]) -> tuple[Mapping[str, Any], list[Mapping[str, Any]]]:
    """The parameters cell and what is laid over it, from the cells that were executed before."""

    def stated(cell: _Cell) -> int:
        return len(known & (cell.values.keys() | cell.computed.keys()))

    complete = [number for number, cell in enumerate(cells) if stated(cell) == len(known)]
    candidates = complete or [number for number, cell in enumerate(cells) if 2 * stated(cell) > len(known)]
    # a cell that misses a parameter has injected ones after it, which miss it as well: then the first of them is meant
    start = candidates[-1] if complete else candidates[0] if candidates else None
    if start is None:
        start = next((number for number, cell in enumerate(cells) if cell.values.keys() & known), None)
    if start is None:
        raise InputError("the notebook: no parameters cell was executed before this one; run the notebook from its start")
    first = cells[start]
    _refuse_computed(first.computed, "the notebook's parameters cell")
    if first.further:
        raise InputError(
            f"the notebook's parameters cell: {shown(first.further)}: it may only assign values; move that elsewhere"
        )
    laid_over: list[Mapping[str, Any]] = []
    directly_after = True
    for cell in cells[start + 1 :]:
        if directly_after:
            _refuse_computed({name: cell.computed[name] for name in cell.computed if name in known}, "a cell of parameters")
        if directly_after and cell.values and not (cell.computed or cell.further):
            laid_over.append(cell.values)
        elif own := {name: value for name, value in cell.values.items() if name in known}:
            laid_over.append(own)
        directly_after = directly_after and not cell.computed
    return first.values, laid_over


def _refuse_computed(computed: Mapping[str, str], where: str) -> None:
    """Refuse what a cell of parameters computes: the record and `vitfp8 verify` read the cell, they do not execute it."""
    for name, text in computed.items():
        raise InputError(f"{where}: {name}: {shown(text)}: is computed; write the value itself, parameters are not executed")


def _refuse_later_changes(stated: Mapping[str, Any], namespace: Mapping[str, Any]) -> None:
    """Refuse what no cell of parameters says: a name that has another plain value in the notebook by now."""
    for name, value in stated.items():
        there = namespace.get(name, value)
        if isinstance(there, bool | int | float | str | list | None) and there != value and not (there != there):
            raise InputError(
                f"the notebook: {name}: {shown(there)}: was changed by code, and its parameter cells say {shown(value)}; write "
                "the value into the parameters cell and run that again"
            )
