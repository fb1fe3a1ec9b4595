"""Which code decides numbers, and what git may say of it."""

from __future__ import annotations

import ast
import base64
import json
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from tests.analysis.records import make_record, write_notebook, write_study
from tests.conftest import TOP
from vitfp8 import read_record
from vitfp8.analysis import study_tables as tables
from vitfp8.analysis.results import load_results
from vitfp8.errors import InputError
from vitfp8.params import RunParams
from vitfp8.record import code_digest, collect_provenance, compare_code, deciding_code, git_state, provenance
from vitfp8.record.deciding_code import CODE_DIGEST_RULE, DECIDING, DECIDING_NOTHING, PACKAGE, tree_digest
from vitfp8.run import estimates, plan, preflight
from vitfp8.verify import checks as verify
from vitfp8.verify import rerun

# ---------------------------------------------------------------------------------------------- the code digest

#: Everything whose syntax tree, or whose f-strings, some version of Python takes in another way.
SAMPLE = r'''
"""A module."""
from __future__ import annotations
from . import nothing
from math import pi as π, tau  # a comment
SWITCH = "X"
"""What a name means."""
class Empty:
    """Only a docstring."""
@decorated(1_000, key=-0.1e-7, **{"a": 1, **more})
class Row(Base, metaclass=Meta):
    x: int = 0
    def method(self, a, /, b=None, *rest: int, c, d=1j, **further) -> "Row":
        """A docstring."""
        return None
    async def waits(self): ...
def texts(x, w):
    u"also one"
    a = f"{x}" "" f"{x!r:>{w}}{{}}" 'end' f'\N{BULLET}{x=}'
    b = f"{x:}" + f"{x:%H:{w}\n}" + rf"\d{x}\{{" + f"{'nested'}{f'{x}deep'}"
    c = b"\x00" + b"b", "é€\u200b🙂\ud800", ..., True, 1.0, 10**400, 0x7F800000
    return lambda y, *z: (a, *b, c[1:2, ::3], {**x}, {*w}, (yield), not -x)
def flow(x):
    global SWITCH
    with open(x) as one, (open(x)) as two: pass
    try:
        for i, (j, k) in enumerate(x): del i, x[0]
        else: raise ValueError(f"no {x}") from None
    except (OSError, ValueError) as error: assert x, "why"
    finally: pass
    while (y := x) and x < 1 <= 2 or x is not None: break
    match x:
        case None | {"a": [1, *_], **rest}: return
        case Row(x=0) if x: x @= [a async for a in x if a if b]
'''
SAMPLE_DIGEST = "00e6de21e18a261fda6025deaaa835e51d901d3e096476c3b9484e9a31e8cfee"


def test_the_digest_of_a_source_is_the_same_under_every_supported_python() -> None:
    """The value was computed under CPython 3.11, 3.12, 3.13 and 3.14; whichever runs this must find it again."""
    assert tree_digest(SAMPLE.encode()) == SAMPLE_DIGEST


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('def f(x):\n    """What it does."""\n    # why\n    return x + 1\n', "def f(x):\n    return x + 1\n"),
        ("def f(x):\n    pass\n", 'def f(x):\n    """Nothing."""\n'),
        ('class A:\n    """Said."""\n\n    x = 1\n    """Said, too."""\n', "class A:\n    x = 1\n"),
        ("x = f(1,\n      [2, 3],\n      )\n", "x = f(1, [2, 3])\n"),
        ("x = 'one' \"two\"  # noqa\n", "x = (\n    'onetwo'\n)\n"),
        ("x = f'{a}b' 'c'\n", 'x = f"{a}" f"bc"\n'),
        ("x = 1_000\r\ny = '''a\r\nb'''\r\n", "x = 1000\ny = 'a\\nb'\n"),
        (
            'x = """\n#include <cmath>  // why\n  float a; /* and\n  why */ float b;\n"""\n',
            'x = "\\n#include <cmath>\\nfloat a; float b;"\n',
        ),
    ],
)  # fmt: skip
def test_comments_docstrings_and_layout_are_no_code(one: str, other: str) -> None:
    assert tree_digest(one.encode()) == tree_digest(other.encode())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x = 1\n", "x = 1.0\n"),
        ("x = 1\n", "x = True\n"),
        ("x = 0.1\n", "x = 0.10000000000000002\n"),
        ("return_ = f(a, b=None)\n", "return_ = f(a)\n"),
        ("def f():\n    return None\n", "def f():\n    return\n"),
        ("if x:\n    f()\n    g()\n", "if x:\n    f()\ng()\n"),
        ("if x:\n    f()\nelse:\n    pass\n    g()\n", "if x:\n    f()\n    g()\n"),
        ("x = {**a, 'b': 1}\n", "x = {'b': 1, **a}\n"),
        ("x = f'{a}'\n", "x = f'{a!r}'\n"),
        ("x = f'{a:.1f}'\n", "x = f'{a:.2f}'\n"),
        ("x = b'a'\n", "x = 'a'\n"),
        ("x = 'a # b'\n", "x = 'a # c'\n"),
        ("x = a[1:2]\n", "x = a[1:2:1]\n"),
        ('x = "#include <a>\\nfloat a = 1.0f;"\n', 'x = "#include <a>\\nfloat a = 2.0f;"\n'),
        (
            'x = "#include <a>\\nchar a = \'/\'; char* b = \\"// 1\\";"\n',
            'x = "#include <a>\\nchar a = \'/\'; char* b = \\"// 2\\";"\n',
        ),
    ],
)
def test_whatever_may_decide_a_number_is_code(one: str, other: str) -> None:
    assert tree_digest(one.encode()) != tree_digest(other.encode())


@pytest.fixture
def another_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of this package, to be changed, whose digest `code_digest` takes."""
    copy = tmp_path / PACKAGE.name
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(deciding_code, "PACKAGE", copy)
    return copy


def test_a_reformat_of_every_file_without_its_comments_keeps_the_digest_and_any_deciding_file_changes_it(
    another_package: Path,
) -> None:
    before = {kind: code_digest(kind) for kind in DECIDING}
    for path in another_package.rglob("*.py"):
        path.write_text(ast.unparse(ast.parse(path.read_text())) + "\n# a last word\n")
    quantizer = another_package / "precision" / "rounding.cpp"
    text = quantizer.read_text()
    assert "// Clamp, then round to the grid" in text
    quantizer.write_text(text.replace("// Clamp, then round to the grid", "// Clamp; then round"))
    assert {kind: code_digest(kind) for kind in DECIDING} == before
    for name in DECIDING["quantization"]:
        path = another_package / name
        text = path.read_text()
        path.write_text(text + "\nANOTHER = 1\n")
        assert code_digest("quantization") != before["quantization"], name
        assert (code_digest("run") != before["run"]) == (name in DECIDING["run"]), name
        path.write_text(text)
    for name in ("analysis/figures/of_study.py", "monitor/sampling.py", "explore.py", "record/journal.py"):
        (another_package / name).write_text("ANOTHER = 1\n")
    assert {kind: code_digest(kind) for kind in DECIDING} == before


def test_a_deciding_file_that_is_gone_or_no_python_is_named(another_package: Path) -> None:
    (another_package / "trainer.py").write_text("def (:\n")
    with pytest.raises(InputError, match=r"trainer\.py: is not valid Python .*; correct it or install"):
        code_digest()
    (another_package / "trainer.py").unlink()
    with pytest.raises(InputError, match=r"trainer\.py: cannot be read \(No such file.*; install"):
        code_digest()


@pytest.mark.parametrize(
    ("change", "decides"),
    [
        ({"mean": (0.3054,)}, True),
        ({"std": (0.3761,)}, True),
        ({"flip_keeps_class": True}, True),
        ({"side": 9}, True),
        ({"channels": 3}, True),
        ({"classes": 11}, True),
        ({"label": "Handwritten digits"}, False),
        ({"source": "scikit-learn"}, False),
        ({"needs_files": True}, False),
    ],
)
def test_a_fact_of_a_data_set_is_code_unless_it_is_for_the_reader(
    change: Mapping[str, Any], decides: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = dict(deciding_code.DATASETS)
    before = code_digest()
    monkeypatch.setattr(deciding_code, "DATASETS", MappingProxyType(rows | {"digits": replace(rows["digits"], **change)}))
    assert (code_digest() != before) == decides


# ------------------------------------------------------------------------------------ which files are on the list


def on_no_list(paths: set[str], kind: str) -> list[str]:
    """Files of the package on neither list, of files that a run of that kind imports."""
    listed = {*DECIDING[kind], *DECIDING_NOTHING}
    return sorted(path for path in paths if path not in listed and f"{path.partition('/')[0]}/" not in listed)


def what_to_do(paths: list[str], kind: str) -> str:
    """The message for a developer who adds a module."""
    return (
        f"a {kind} imports {', '.join(paths)}, which vitfp8/record/deciding_code.py does not know: add each to DECIDING (it can "
        "change a number of the deterministic part) or, with the reason, to DECIDING_NOTHING"
    )


@pytest.fixture(scope="module")
def loaded() -> dict[str, set[str]]:
    """Kind of a run → files of the package that the imports of its template load, in a process of its own."""
    show = "print(*(m.__file__ for n, m in sys.modules.items() if n.partition('.')[0] == 'vitfp8'), sep='\\n', end='\\n\\n')"
    script = ["import sys"]
    for name in ("train.ipynb", "quantize.ipynb"):  # what the second one imports beside its own, the first does as well
        cells = json.loads((TOP / "notebooks" / name).read_text())["cells"]
        tree = ast.parse("\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"))
        script += [ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        script.append(show)
    shown = subprocess.run([sys.executable, "-c", "\n".join(script)], capture_output=True, text=True, check=True).stdout
    files = [{Path(line).relative_to(PACKAGE).as_posix() for line in part.splitlines()} for part in shown.split("\n\n")]
    return {"run": files[0], "quantization": files[1]}


def with_later_imports(files: set[str]) -> set[str]:
    """These files, and what the deciding ones among them import, wherever in the file, and so on."""
    waiting, found = {*files}, set()
    while waiting:
        path = waiting.pop()
        found.add(path)
        if path not in DECIDING["quantization"]:
            continue  # what shows or stores may import anything when it is asked to
        for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for first, *rest in (name.split(".") for name in names):
                for file in (f"{'/'.join(rest)}.py", "/".join([*rest, "__init__.py"])):
                    if first == PACKAGE.name and file not in found and (PACKAGE / file).is_file():
                        waiting.add(file)
    return found


@pytest.mark.parametrize("kind", ["run", "quantization"])
def test_every_module_that_a_run_imports_is_on_one_of_two_lists(kind: str, loaded: dict[str, set[str]]) -> None:
    imported = with_later_imports(loaded[kind])
    assert {"trainer.py", "precision/quantizer.py", "data/draws.py"} <= imported, "it is seen what is imported"
    unknown = on_no_list(imported, kind)
    assert not unknown, what_to_do(unknown, kind)
    assert on_no_list({*imported, "precision/fp4.py", "scheduler.py"}, kind) == ["precision/fp4.py", "scheduler.py"]


def test_the_two_lists_are_of_files_that_are_there_and_cover_the_rooms_that_decide() -> None:
    both = {*DECIDING["run"], *DECIDING["quantization"]} & {*DECIDING_NOTHING}
    assert not both
    for name in (*DECIDING["quantization"], *DECIDING_NOTHING):
        assert (PACKAGE / name).is_dir() if name.endswith("/") else (PACKAGE / name).is_file(), name
    assert all(DECIDING_NOTHING.values()), "each has its reason"
    assert all(len(set(names)) == len(names) for names in DECIDING.values())
    rooms = {path.relative_to(PACKAGE).as_posix() for room in ("data", "precision", "ptq") for path in (PACKAGE / room).iterdir()}
    unknown = on_no_list({path for path in rooms if not path.endswith("__pycache__")}, "quantization")
    assert not unknown, what_to_do(unknown, "run")


def test_deciding_files_take_no_constant_from_files_that_are_not_in_the_digest() -> None:
    taken = set()
    for name in DECIDING["quantization"]:
        for node in ast.walk(ast.parse((PACKAGE / name).read_text())) if name.endswith(".py") else ():
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vitfp8"):
                place = (node.module or "").replace(".", "/").removeprefix("vitfp8").lstrip("/")
                if not {f"{place}.py", f"{place}/__init__.py"} & {*DECIDING["quantization"]}:
                    taken |= {f"{node.module}.{alias.name}" for alias in node.names if alias.name.isupper()}
    # DATASETS enters by its values; of the next three only the names are compared; the last says how a digest was formed
    names = {f"vitfp8.catalog.{name}" for name in ("PRECISIONS", "QUANTIZED_FORMATS", "DEVICES")}
    assert taken - names - {"vitfp8.params.IDENTITY_RULE"} == {"vitfp8.catalog.DATASETS"}, (
        "a deciding file takes a constant from a file that the code digest leaves out: move it, or add that file to DECIDING"
    )


# ------------------------------------------------------------------------ records of other code, and of another rule


@pytest.fixture
def finished(tmp_path: Path, smoke_params: Callable[..., RunParams]) -> Callable[..., tuple[Path, RunParams]]:
    """Writes the lab record of a finished run of the smoke preset, of today's code but for what is said."""

    def write(**said: object) -> tuple[Path, RunParams]:
        params = smoke_params()
        today = {"code_digest": code_digest(), "code_digest_rule": CODE_DIGEST_RULE, "commit": "c" * 40}
        about = {key: value for key, value in {**today, **said}.items() if value is not None}
        record = make_record(parameters=params.model_dump(), parameters_digest=params.digest, provenance=about)
        return write_notebook(record, tmp_path / "executed" / "smoke" / f"{params.run_name}.ipynb"), params

    return write


def test_a_finished_run_of_this_code_is_kept_whatever_its_comments_are_now(
    finished: Callable[..., tuple[Path, RunParams]], another_package: Path
) -> None:
    path, params = finished()
    trainer = another_package / "trainer.py"
    trainer.write_text("# a comment\n" + trainer.read_text())
    assert plan.decide(path, params)[0] == "keep"
    trainer.write_text("import another\n" + trainer.read_text())
    with pytest.raises(
        InputError, match=r"is finished, but the code that decides numbers has changed since \(it was that of commit"
    ):
        plan.decide(path, params)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"code_digest": "0" * 64, "code_digest_rule": None}, "took the code digest in another way"),
        ({"code_digest_rule": CODE_DIGEST_RULE + 1}, "took the code digest in another way"),
        ({"code_digest_rule": ["?"]}, "took the code digest in another way"),
        ({"code_digest": None, "code_digest_rule": None}, "left no code digest"),
    ],
)
def test_a_record_whose_code_cannot_be_compared_is_said_to_be_that_and_neither_kept_nor_called_changed(
    said: dict[str, Any], words: str, finished: Callable[..., tuple[Path, RunParams]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, params = finished(**said)
    sentence = f"was made by a version of vitfp8 that {words}, so that its code cannot be compared with today's"
    with pytest.raises(InputError) as refused:
        plan.decide(path, params)
    assert str(refused.value) == (
        f"{path}: is finished, but {sentence} (it was that of commit {'c' * 10}); "
        "--force moves it aside and runs it anew, or give another --study"
    )
    assert plan.decide(path, params, force=True)[0] == "replace"

    notes = [check for check in verify.verify([path]) if check.subject == "code"]
    assert [check.level for check in notes if sentence.removeprefix("was ") in check.text] == ["note"]
    assert not any("another today" in check.text for check in notes)

    record = read_record(path)
    assert compare_code(record.provenance, "run") == "unknown"
    repeat = record.model_copy(deep=True)
    repeat.provenance |= {"code_digest": code_digest(), "code_digest_rule": CODE_DIGEST_RULE}
    reasons = "; ".join(rerun.why_not_promised(record, repeat))
    assert words in reasons and "another code" not in reasons

    monkeypatch.setattr(estimates, "processor_and_cores", lambda: (None, None))
    times = estimates.TimeEstimates(path.parent.parent, measure=False)
    assert (
        times.of(plan.PlannedRun(params, {}, path, path, "run", "new")).basis
        == "1 earlier run on this machine, of another version"
    )


def test_the_report_tells_other_code_from_code_that_cannot_be_compared(tmp_path: Path) -> None:
    old = make_record().provenance
    new = {**old, "code_digest": "beef" * 16, "code_digest_rule": 2}
    names = ("BaseFP32", "AugmFP32", "BaseFP16")

    def warnings(*about: Mapping[str, Any]) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        made = zip(names, about, strict=True)
        results = load_results(write_study(folder, [make_record(name, provenance=dict(said)) for name, said in made]))
        table = tables.provenance_table(results)
        column = table.columns.index("Code digest")
        return " ".join(results.warnings() + [row[column] for row in table.rows] + table.notes)

    assert "versions of the code" not in warnings(old, old, old) and "rule" not in warnings(new, new, new)
    assert "made by 2 versions of the code that decides numbers" in warnings(old, {**old, "code_digest": "beef" * 16}, old)
    mixed = warnings(old, new, new)
    assert "versions of the code" not in mixed and "whether the same code decided their numbers is not known" in mixed
    assert "c0dec0dec0 (rule 1)" in mixed and "beefbeefbe (rule 2)" in mixed and "cannot be compared" in mixed
    both = warnings(old, new, {**new, "code_digest": "f00d" * 16})
    assert "made by 2 versions of the code that decides numbers" in both and "is not known" in both


# ------------------------------------------------------------------------------------------ what git answers for


def git(*arguments: str, cwd: Path) -> str:
    """Run git as nobody in particular."""
    who = ("-c", "user.name=Someone", "-c", "user.email=someone@example.org", "-c", "commit.gpgsign=false")
    command = ["git", *who, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small checkout of this project, committed; what runs is its package."""
    top = tmp_path / "checkout"
    for name in ("vitfp8", "notebooks", "params"):
        (top / name).mkdir(parents=True)
    (top / "vitfp8" / "__init__.py").write_text("")
    (top / "vitfp8" / "trainer.py").write_text("RATE = 1\n")
    shutil.copy(TOP / "notebooks" / "train.ipynb", top / "notebooks")
    (top / "params" / "BaseFP32.yaml").write_text("seed: 0\n")
    (top / "private.txt").write_text("chapter 1\n")
    git("init", "-q", cwd=top)
    git("add", ".", cwd=top)
    git("commit", "-qm", "all", cwd=top)
    monkeypatch.setattr(provenance, "PACKAGE", top / "vitfp8")
    return top


def patch_of(state: Mapping[str, Any]) -> str:
    """The patch that a record would hold."""
    return zlib.decompress(base64.b64decode(state["patch_zlib_base64"])).decode()


def test_a_clean_checkout_is_named_by_its_commit(checkout: Path) -> None:
    (checkout / "private.txt").write_text("token = not-for-others\n")
    (checkout / "executed").mkdir()
    (checkout / "executed" / "new.ipynb").write_text("{}")
    assert git_state() == {"commit": git("rev-parse", "HEAD", cwd=checkout).strip(), "dirty": False}
    assert preflight._code().text.endswith(", clean")


def test_uncommitted_changes_of_what_runs_and_of_nothing_else_enter_the_record(checkout: Path) -> None:
    for key, value in (("diff.noprefix", "true"), ("color.ui", "always"), ("diff.external", "false"), ("status.renames", "true")):
        git("config", key, value, cwd=checkout)
    (checkout / "private.txt").write_text("token = not-for-others\n")
    (checkout / "vitfp8" / "trainer.py").write_text("RATE = 2\n")
    (checkout / "params" / "BaseFP32.yaml").rename(checkout / "params" / "Renamed.yaml")
    git("add", "params/Renamed.yaml", cwd=checkout)
    state = git_state()
    patch = patch_of(state)
    assert state["dirty"] and "+RATE = 2" in patch and "not-for-others" not in patch and "\x1b" not in patch
    assert "whose patch goes into each record" in preflight._code().text
    again = checkout.parent / "again"
    git("clone", "-q", str(checkout), str(again), cwd=checkout.parent)
    (again / "a.patch").write_text(patch)
    git("apply", "a.patch", cwd=again)
    assert (again / "vitfp8" / "trainer.py").read_text() == "RATE = 2\n" and (again / "params" / "Renamed.yaml").is_file()


def test_a_large_patch_is_recorded_by_its_digest_and_check_says_so(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_LARGEST_PATCH", 100)
    (checkout / "vitfp8" / "trainer.py").write_text("RATE = 2\n")
    state = git_state()
    assert state["dirty"] and len(state["patch_sha256"]) == 64 and "patch_zlib_base64" not in state
    assert "too large for a record" in preflight._code().text


def test_a_repository_around_the_installation_is_not_read(tmp_path: Path) -> None:
    """The usual layout with uv and PyCharm: a virtual environment within somebody's own project, here not even ignored."""
    thesis = tmp_path / "thesis"
    site = thesis / ".venv" / "lib" / "site-packages"
    shutil.copytree(PACKAGE, site / "vitfp8", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("vitfp8", "params"):
        (thesis / name).mkdir()
        (thesis / name / "__init__.py").write_text("mine = 1\n")
    git("init", "-q", cwd=thesis)
    git("add", "vitfp8", "params", cwd=thesis)
    git("commit", "-qm", "chapter 1", cwd=thesis)
    (thesis / "params" / "__init__.py").write_text("token = 'not-for-others'\n")
    # a hook's variables, as a commit hook that starts a run leaves them
    environment = os.environ | {"PYTHONPATH": str(site), "GIT_DIR": str(thesis / ".git"), "GIT_WORK_TREE": str(thesis)}
    code = (
        "import json, vitfp8.record; from vitfp8.run.preflight import _code\n"
        "print(json.dumps([vitfp8.record.__file__, vitfp8.record.collect_provenance(), _code().text]))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    ran, record, said = json.loads(shown.stdout)
    assert ran == str(site / "vitfp8" / "record" / "__init__.py")
    assert record["commit"] is None and record["dirty"] is None
    assert not {"patch_sha256", "patch_zlib_base64", "untracked"} & record.keys()
    assert record["code_digest"] == code_digest() and record["code_digest_rule"] == CODE_DIGEST_RULE
    assert "not vitfp8's own" in record["git_note"] and said == (
        f"{record['git_note']}: records name versions and the code's digest, no commit"
    )


def test_a_package_that_lies_in_a_repository_but_is_not_tracked_is_not_answered_for(checkout: Path) -> None:
    git("rm", "-rq", "--cached", "vitfp8", cwd=checkout)
    git("commit", "-qm", "without", cwd=checkout)
    state = git_state()
    assert state["commit"] is None and state["dirty"] is None and "not vitfp8's own" in state["git_note"]


def test_variables_of_a_hook_lead_git_nowhere_else(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other"
    other.mkdir()
    git("init", "-q", cwd=other)
    before = git_state()
    for name, value in {"GIT_DIR": other / ".git", "GIT_WORK_TREE": other, "GIT_INDEX_FILE": other / "index"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", "false")
    assert git_state() == before and before["commit"]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (None, "git is not installed"),
        ("sleep 60", "git did not answer within 0.3 s"),
        ("echo 'fatal: bad config line 1' >&2; exit 128", "git fails: fatal: bad config line 1"),
        (
            "echo 'fatal: not a git repository (or any of the parent directories): .git' >&2; exit 128",
            "not run from a git checkout",
        ),
        (
            "printf \"fatal: detected dubious ownership in repository at '/a'\\nTo add an exception, call:\\n\\n"
            '\\tgit config --global --add safe.directory /a\\n" >&2; exit 128',
            "belongs to another user; allow it with `git config --global --add safe.directory /a`",
        ),
    ],
)
def test_a_git_that_does_not_answer_costs_the_commit_and_nothing_else(
    script: str | None, words: str, checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    if script is not None:
        (folder / "git").write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
        (folder / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(provenance, "_GIT_SECONDS", 0.3 if script == "sleep 60" else 10.0)
    state = git_state()
    assert state["commit"] is None and state["dirty"] is None and words in state["git_note"]
    finding = preflight._code()
    assert finding.level == "note" and words in finding.text


def test_a_state_that_git_does_not_tell_is_never_called_clean(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git("config", "filter.stuck.clean", "sleep 60", cwd=checkout)
    (checkout / ".gitattributes").write_text("*.py filter=stuck\n")
    (checkout / "vitfp8" / "trainer.py").write_text("RATE = 2\n")
    monkeypatch.setattr(provenance, "_GIT_SECONDS", 1.0)
    state = git_state()
    assert state["commit"] and state["dirty"] is None and "did not answer" in state["git_note"]
    assert "whether it was changed is not known" in preflight._code().text


def test_a_checkout_without_a_commit_is_none(checkout: Path) -> None:
    shutil.rmtree(checkout / ".git")
    git("init", "-q", cwd=checkout)
    git("add", ".", cwd=checkout)
    assert git_state() == {"commit": None, "dirty": None, "git_note": "the git checkout has no commit yet"}


def test_files_that_git_does_not_know_enter_with_their_digest(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git("config", "status.showUntrackedFiles", "no", cwd=checkout)
    (checkout / "vitfp8" / "fp4 – new.py").write_text("RATE = 4\n")
    (checkout / "elsewhere.py").write_text("token = 'not-for-others'\n")
    state = git_state()
    digest = "f53b5e071b965d383b0155bce73754c60b383165e4143c172478ee20d249bf73"
    assert state["dirty"] and "patch_sha256" not in state
    assert state["untracked"] == [{"path": "vitfp8/fp4 – new.py", "bytes": 9, "sha256": digest}]
    assert "files that are not in git, whose digests go into each record" in preflight._code().text
    (checkout / "vitfp8" / "fp4 – new.py").write_text("RATE = 5\n")
    assert git_state()["untracked"][0]["sha256"] != digest
    monkeypatch.setattr(provenance, "_MOST_UNTRACKED", 1)
    monkeypatch.setattr(provenance, "_MOST_UNTRACKED_BYTES", 5)
    (checkout / "params" / "a.yaml").write_text("seed: 1\n")
    state = git_state()
    assert state["untracked"] == [{"path": "params/a.yaml", "bytes": 8, "sha256": None}] and state["untracked_further"] == 1


@pytest.mark.parametrize("untracked", [["params/a.yaml"], [{"path": "params/a.yaml", "bytes": 8, "sha256": "0" * 64}]])
def test_both_forms_of_what_is_unknown_to_git_are_read(untracked: list[Any], tmp_path: Path) -> None:
    about = {"commit": "c" * 40, "dirty": True, "untracked": untracked, "code_digest": "0" * 64}
    folder = write_study(tmp_path / "trial", [make_record(provenance=about)])
    assert read_record(folder / "BaseFP32-s0.ipynb").provenance["untracked"] == untracked
    assert tables.provenance_table(load_results(folder)).rows[0][3] == "cccccccccc + changes"


# ------------------------------------------------------------------------------------------ outputs in a template


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a notebook and save it in another layout, as another program would."""
    notebook = json.loads(path.read_text())
    change(notebook)
    path.write_text(json.dumps(notebook, indent=2, sort_keys=True))


def as_executed(notebook: dict[str, Any]) -> None:
    """What running all cells in JupyterLab and saving leaves."""
    notebook["metadata"] |= {
        "kernelspec": {"name": "another"},
        "language_info": {"name": "python", "version": "3.12.1"},
        "widgets": {},
    }
    notebook["nbformat_minor"] = 4
    for number, cell in enumerate(notebook["cells"]):
        cell["source"] = "".join(cell["source"])
        cell["metadata"] |= {"collapsed": True, "execution": {"iopub.execute_input": "2026-01-01T00:00:00Z"}, "scrolled": False}
        if cell["cell_type"] == "code":
            cell["execution_count"] = number
            cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["token = not-for-others\n"]}]


def test_a_template_that_was_run_and_saved_is_no_change(checkout: Path) -> None:
    edit(checkout / "notebooks" / "train.ipynb", as_executed)
    assert git("status", "--porcelain", cwd=checkout).strip(), "git takes it for one"
    state = git_state()
    assert not state["dirty"] and state.keys() == {"commit", "dirty"}


def test_a_changed_source_is_a_change_and_its_patch_holds_the_source_alone(checkout: Path) -> None:
    def change(notebook: dict[str, Any]) -> None:
        as_executed(notebook)
        notebook["cells"][-1]["source"] += "\nprint('another')"

    (checkout / "vitfp8" / "trainer.py").write_text("RATE = 2\n")
    edit(checkout / "notebooks" / "train.ipynb", change)
    patch = patch_of(git_state())
    assert "+RATE = 2" in patch and "print('another')" in patch and "+++ b/notebooks/train.ipynb" in patch
    assert "not-for-others" not in patch and "iopub" not in patch and len(patch.splitlines()) < 40


def test_a_tag_is_part_of_a_notebooks_source(checkout: Path) -> None:
    edit(checkout / "notebooks" / "train.ipynb", lambda notebook: notebook["cells"][1]["metadata"].update(tags=["another"]))
    assert "another" in patch_of(git_state())


def test_a_notebook_that_is_new_gone_damaged_or_large_is_a_change_without_outputs(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkout / "notebooks" / "train.ipynb"
    shutil.copy(path, checkout / "notebooks" / "new.ipynb")
    edit(checkout / "notebooks" / "new.ipynb", as_executed)
    git("add", "notebooks/new.ipynb", cwd=checkout)
    new = patch_of(git_state())
    assert "+++ b/notebooks/new.ipynb" in new and "not-for-others" not in new
    git("rm", "-q", "--cached", "notebooks/new.ipynb", cwd=checkout)
    (checkout / "notebooks" / "new.ipynb").unlink()
    path.write_text('{"cells": [{"outputs": "not-for-others')
    damaged = patch_of(git_state())
    assert "+not a notebook, SHA-256 " in damaged and "not-for-others" not in damaged
    path.unlink()
    assert '-   "source"' in patch_of(git_state())
    git("checkout", "-q", "notebooks", cwd=checkout)
    monkeypatch.setattr(provenance, "_LARGEST_NOTEBOOK", 100)
    edit(path, as_executed)
    assert git_state()["dirty"] is False
    edit(path, lambda notebook: notebook["cells"].pop())
    assert "+a large notebook, SHA-256 without outputs " in patch_of(git_state())


def test_a_record_says_by_which_rule_its_code_digest_was_taken() -> None:
    about = collect_provenance("quantization")
    assert about["code_digest_rule"] == CODE_DIGEST_RULE and about["code_digest"] == code_digest("quantization")
