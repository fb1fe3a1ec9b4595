"""The house: imports point one way, torch-free modules load no torch, names and notebooks are as promised."""

from __future__ import annotations

import ast
import graphlib
import json
import re
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parent.parent
PACKAGE = TOP / "vitfp8"

#: Rooms that whatever prepares a model on data and records it needs.
TRAINS = {"errors", "files", "catalog", "params", "home", "record", "data", "model", "precision", "monitor", "memory"}

#: Room → rooms that it may import. Anything else is a wall.
MAY_IMPORT = {
    "errors": set(),
    "catalog": {"errors"},
    "files": {"errors"},
    "params": {"errors", "catalog"},
    "home": {"errors", "params"},
    "record": {"errors", "catalog", "params", "home"},
    "data": {"errors", "catalog", "params", "home"},
    "model": {"errors", "catalog", "params", "pretrained"},
    "pretrained": {"errors", "files", "params", "checkpoint"},
    "precision": {"errors", "catalog", "params"},
    "explore": {"errors", "precision", "params"},
    "monitor": {"errors", "params"},
    "checkpoint": {"errors", "files"},
    "memory": {"errors", "params"},
    "determinism": {"params"},
    "interrupt": set(),
    "random_state": set(),
    "epoch": set(),
    "compilation": {"errors", "params", "precision"},
    "trainer": {"errors", "files", "params", "data", "model", "precision", "checkpoint", "compilation", "memory"}
    | {"epoch", "interrupt", "random_state"},
    "experiment": TRAINS | {"checkpoint", "trainer", "compilation", "determinism", "epoch"},
    "ptq": TRAINS | {"checkpoint", "determinism", "experiment", "files"},
    "analysis": {"errors", "catalog", "params", "home", "record"},
    # preflight asks the machine: what needs torch inside a function, battery and heat through the torch-free monitor
    "run": TRAINS | {"files", "analysis", "pretrained", "compilation", "experiment", "ptq"},
    "reporting": {"errors", "params", "home", "files", "record", "analysis", "run"},
    # a repeat compares last weights, which only a checkpoint knows how to load
    "verify": {"errors", "catalog", "params", "home", "files", "data", "pretrained", "record", "analysis", "run", "checkpoint"},
    "archive": {"errors", "params", "home", "files", "record", "run"},
    "legacy": {"errors", "catalog", "params", "home", "files", "record", "monitor", "analysis", "run", "archive"},
    "doctor": {"errors", "catalog", "params", "home", "files", "monitor", "data", "model", "precision", "run", "reporting"},
    # what a person types reaches everything that loads no torch by itself
    "cli": {"errors", "catalog", "params", "home", "files", "record", "monitor", "analysis", "run", "reporting"}
    | {"doctor", "verify", "archive", "legacy"},
    "__main__": {"cli"},
    "__init__": {"errors", "params", "record", "ptq", "trainer"},
}

TORCH_FREE = ("vitfp8", "vitfp8.catalog", "vitfp8.params", "vitfp8.params.quantization", "vitfp8.record", "vitfp8.analysis",
              "vitfp8.run.plan", "vitfp8.run.runner", "vitfp8.run.preflight", "vitfp8.reporting.build",
              "vitfp8.archive.backup", "vitfp8.archive.restore", "vitfp8.legacy",
              "vitfp8.verify.checks", "vitfp8.verify.rerun", "vitfp8.monitor", "vitfp8.cli")  # fmt: skip

TEMPLATES = sorted((TOP / "notebooks").glob("*.ipynb"))


def room_of(module: str) -> str:
    """The room that a dotted module name belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imported_rooms(path: Path) -> set[str]:
    """Rooms that a module imports, wherever in the file."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"vitfp8.{alias.name}" for alias in node.names] if node.module == "vitfp8" else [node.module]
        rooms |= {room_of(name) for name in names if name == "vitfp8" or name.startswith("vitfp8.")}
    return rooms


def all_modules() -> list[Path]:
    """Every module of the package."""
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", all_modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_one_way(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert imported_rooms(path) - {room} <= MAY_IMPORT[room]


def module_name(path: Path) -> str:
    """Dotted name of a module of the package; a package's own name for its ``__init__``."""
    parts = ("vitfp8", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, modules: Collection[str]) -> Iterator[tuple[str, str]]:
    """Module of the package and name that a file imports, inside functions too; what is only for type checkers is left out."""
    for node in at_run_time(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module in modules:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield (whole, "") if whole in modules else (node.module, alias.name)


def at_run_time(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below one, without the bodies of ``if TYPE_CHECKING``."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            yield child
            yield from at_run_time(child)


def test_no_module_imports_itself_by_way_of_others() -> None:
    paths = {module_name(path): path for path in all_modules()}
    sorter = graphlib.TopologicalSorter({name: {m for m, _ in imports_of(path, paths)} - {name} for name, path in paths.items()})
    sorter.prepare()  # raises CycleError with the circle


def test_no_private_name_leaves_its_module() -> None:
    modules = [module_name(path) for path in all_modules()]
    private = [
        f"{path.relative_to(TOP)}: {module}.{name}"
        for path in all_modules()
        for module, name in imports_of(path, modules)
        if name.startswith("_") and not name.startswith("__")
    ]
    assert private == []


@pytest.mark.parametrize("module", TORCH_FREE)
def test_torch_free_modules_load_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_help_loads_neither_torch_nor_the_notebook_machinery() -> None:
    code = (
        "import sys\nfrom vitfp8.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "sys.exit(bool({'torch', 'papermill', 'nbconvert', 'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_the_trainer_names_no_dtype() -> None:
    source = (PACKAGE / "trainer.py").read_text()
    assert not re.search(r"float16|bfloat16|float8|autocast|\.half\(", source)


OLD_NAMES = re.compile(
    r"baseline_fp32|exp1_baseline|experiment2_regularized|exp2_regularized|experiment3_fp16|exp3_fp16_fixed|exp4_fp8_test"
)


def test_no_old_experiment_name_stands_in_active_code() -> None:
    """The importer is the one place that knows them."""
    places = [*all_modules(), *TEMPLATES, *(TOP / "params").rglob("*.yaml"), *(TOP / "benchmarks").rglob("*.py")]
    assert [path for path in places if OLD_NAMES.search(path.read_text()) and "legacy" not in path.parts] == []


def definitions(node: ast.AST) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """Functions and classes of a module and of its classes; functions inside functions are part of their function.

    The signatures of an overloaded function are part of it as well.
    """
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
            if any(isinstance(name, ast.Name) and name.id == "overload" for name in child.decorator_list):
                continue
            yield child
        if isinstance(child, ast.ClassDef):
            yield from definitions(child)


def test_every_public_definition_has_a_docstring_and_so_have_the_trainers_and_the_monitors_private_ones() -> None:
    missing = []
    for path in all_modules():
        strict = path.name == "trainer.py" or path.parent.name == "monitor"
        for node in definitions(ast.parse(path.read_text())):
            dunder = node.name.startswith("__") and node.name.endswith("__")
            wanted = not dunder if strict else not node.name.startswith("_")
            if wanted and not ast.get_docstring(node):
                missing.append(f"{path.relative_to(TOP)}: {node.name}")
    # what autograd calls is explained by its class
    assert [name for name in missing if name.split(": ")[1] not in ("forward", "backward")] == []


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_templates_have_no_outputs_and_short_cells_without_classes_functions_or_loops(path: Path) -> None:
    notebook = json.loads(path.read_text())
    tagged = 0
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        assert cell["outputs"] == [] and cell["execution_count"] is None
        source = "".join(cell["source"])
        if "parameters" in cell["metadata"].get("tags", []):
            tagged += 1
            continue
        assert len(source.splitlines()) <= 15, source
        assert list(logic_in(source)) == []
    assert tagged == 1


def logic_in(source: str) -> Iterator[str]:
    """Classes, functions and loops of a cell; comprehensions are none of them."""
    logic = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.While, ast.For, ast.AsyncFor)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, logic):
            yield f"{type(node).__name__} in line {node.lineno}"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("for x in y:\n    print(x)", ["For in line 1"]),
        ("while True:\n    pass", ["While in line 1"]),
        ("def f():\n    pass", ["FunctionDef in line 1"]),
        ("class A:\n    pass", ["ClassDef in line 1"]),
        ("rows = [x for x in y]", []),
    ],
)
def test_logic_in_a_cell_is_found(source: str, found: list[str]) -> None:
    assert list(logic_in(source)) == found


def test_the_linter_sees_every_module() -> None:
    """Its exclusions are anchored to the top, so that a room named like a folder of results does not escape it."""
    listed = subprocess.run([sys.executable, "-m", "ruff", "check", "--show-files", TOP], capture_output=True, text=True).stdout
    assert {str(path) for path in all_modules()} <= set(listed.splitlines())
