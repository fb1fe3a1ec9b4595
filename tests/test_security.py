"""What a parameter file, a record or a file of weights says is data: no code runs from it, and no path leaves its folder.

Each attempt tries to leave a trace: a folder `owned`, or a page whose title is `owned`. The tests in `damage` and the hostile
notebooks of `reporting/test_report.py` try the same on readers and exports alone; here it goes the whole way.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
import torch
import yaml

from tests.analysis.records import make_record, write_notebook
from tests.pages import ENGINES, in_browser, needs_browser, needs_poppler, words_of
from tests.test_workflow import vitfp8
from vitfp8 import read_record
from vitfp8.errors import InputError
from vitfp8.experiment import prepare_experiment
from vitfp8.params import RunParams
from vitfp8.record import best_weights

#: Tries to end what it stands in, and to act, in Python, HTML, Markdown, LaTeX, Typst, Jinja and the shell.
ATTACK = (
    "\"'''\"\"\"; __import__('os').mkdir('owned') # \\\" \\n "
    "<script>document.title='owned'</script> <img src=x onerror=\"document.title='owned'\"> "
    "</title></style><svg/onload=alert(1)> "
    "[link](javascript:document.title='owned') ![picture](http://127.0.0.1:9/owned.png) "
    "\\end{document} \\input{/etc/hostname} \\immediate\\write18{mkdir owned} $\\def\\x{}\\x$ "
    '#eval("1+1") #read("/etc/hostname") {{ 7*191 }} {% raw %} `mkdir owned` $(mkdir owned) =cmd|x \u2028 \u202e end'
)


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose parameter file attacks, after its run."""
    top = Path(__file__).resolve().parent.parent
    project = tmp_path_factory.mktemp("attacked")
    for name in ("notebooks", "params"):
        shutil.copytree(top / name, project / name)
    shutil.copy(top / "CITATION.cff", project / "CITATION.cff")
    file = project / "params" / "BaseFP32.yaml"
    values = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(values | {"question": ATTACK, "expectation": ATTACK}, allow_unicode=True))
    command = [sys.executable, "-m", "vitfp8", "run", "BaseFP32", "--preset", "smoke"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return project


def traces(folder: Path) -> list[Path]:
    """What an attack that succeeded would have left."""
    return list(folder.rglob("owned*"))


def test_a_hostile_text_arrives_in_the_record_as_it_was_written_and_does_nothing_on_its_way(attacked: Path) -> None:
    path = attacked / "executed" / "smoke" / "BaseFP32-s0.ipynb"
    record = read_record(path)
    assert record.status == "completed" and record.question == ATTACK and record.parameters["expectation"] == ATTACK
    injected = [c for c in nbformat.read(path, as_version=4).cells if "injected-parameters" in c.metadata.get("tags", [])]
    assert len(injected) == 1 and traces(attacked) == []


@needs_browser
@pytest.mark.parametrize(("exporter", "parameters_shown"), [("html", True), ("vitfp8-html", False)])
def test_the_lab_record_as_nbconvert_exports_it_does_nothing_in_a_browser(
    attacked: Path, exporter: str, parameters_shown: bool, tmp_path: Path
) -> None:
    notebook = attacked / "executed" / "smoke" / "BaseFP32-s0.ipynb"
    command = [sys.executable, "-m", "jupyter", "nbconvert", "--to", exporter, "--output-dir", str(tmp_path), str(notebook)]
    subprocess.run(command, check=True, capture_output=True, cwd=attacked, timeout=120)
    shown = in_browser(tmp_path / "BaseFP32-s0.html", tmp_path)
    assert "<title>owned" not in shown and "onerror=&quot;document" not in shown.replace("&amp;quot;", "")
    assert 'href="javascript:' not in shown and "127.0.0.1:9/owned.png&quot;" not in shown
    assert "mkdir owned" in shown and ("# Parameters" in shown) == parameters_shown


@needs_browser
@needs_poppler
@pytest.mark.parametrize("engine", ENGINES)
def test_the_report_on_a_hostile_run_does_nothing_in_any_format(attacked: Path, engine: str, tmp_path: Path) -> None:
    environment = {**os.environ, "VITFP8_PDF_ENGINE": engine}
    command = [sys.executable, "-m", "vitfp8", "report", "smoke"]
    done = subprocess.run(command, cwd=attacked, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    report = attacked / "report" / "smoke"
    assert "<title>owned" not in in_browser(report / "report.html", tmp_path)
    assert Path("/etc/hostname").read_text().strip() not in words_of(report / "report.pdf")
    assert "1337" not in words_of(report / "report.pdf") and traces(attacked) == []


@needs_browser
def test_a_hostile_record_does_nothing_in_commands_and_report(project: Path, tmp_path: Path) -> None:
    folder = project / "executed" / "mine"
    for experiment in ("BaseFP32", "AugmFP32"):
        write_notebook(make_record(experiment, question=ATTACK, reason=ATTACK), folder / f"{experiment}-s0.ipynb")
    failed = make_record("BaseFP16", status="failed", reason=ATTACK, notes=[{"time": ATTACK, "text": ATTACK}])
    write_notebook(failed, folder / "BaseFP16-s0.ipynb")
    listed = vitfp8("runs", "mine")
    assert "\u202e" not in listed.stdout and "\x1b" not in listed.stdout
    vitfp8("report", "mine", "--to", "html,latex,pdf")
    assert "<title>owned" not in in_browser(project / "report" / "mine" / "report.html", tmp_path)
    assert traces(project) == []


def test_values_typed_after_p_cannot_leave_their_quotes(project: Path) -> None:
    for value in ("'; import os; os.mkdir('owned') #", '"""\\\nowned', "{{ owned }}", "!!python/object/apply:os.mkdir [owned]"):
        vitfp8("run", "BaseFP32", "--preset", "smoke", "-p", "variant", value, check=2)
    assert traces(project) == [] and not (project / "executed").exists()


class Bomb:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.place),)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
def test_pretrained_weights_that_are_a_program_are_refused_and_not_run(
    suffix: str, tmp_path: Path, smoke_params: Callable[..., RunParams]
) -> None:
    file, place = tmp_path / f"weights{suffix}", tmp_path / "owned"
    torch.save({"state_dict": Bomb(place)}, file)
    with pytest.raises(InputError) as refused:
        prepare_experiment(smoke_params(pretrained=True, pretrained_file=str(file), run_folder=str(tmp_path / "run")))
    assert not place.exists() and "\n" not in str(refused.value)
    file.write_bytes(pickle.dumps(Bomb(place)))
    with pytest.raises(InputError):
        prepare_experiment(smoke_params(pretrained=True, pretrained_file=str(file), run_folder=str(tmp_path / "run")))
    assert not place.exists()


@pytest.mark.parametrize(
    "name", ["..", "../x", "/tmp/x", "a/b", "a\\b", "", " ", ".hidden", "-x", "x\u0000y", "x" * 300, "ä", "x\n"]
)
def test_no_study_name_leads_out_of_the_folder_of_studies(project: Path, name: str) -> None:
    from vitfp8.reporting.build import make_report
    from vitfp8.run.progress import latest_study
    from vitfp8.run.study_file import load_study, resolve_study

    (project / "executed").mkdir()
    before = sorted(project.rglob("*"))
    for use in (
        lambda: resolve_study(name, "smoke"),
        lambda: load_study(name),
        lambda: make_report(name),
        lambda: latest_study(name),
    ):
        with pytest.raises(InputError) as refused:
            use()
        assert "\n" not in str(refused.value)
    assert sorted(project.rglob("*")) == before


@pytest.mark.parametrize("variant", ["../x", "a/b", "a b", "x\n", "~", "$(x)", "ä"])
def test_no_variant_leads_out_of_the_study(project: Path, variant: str) -> None:
    done = vitfp8("run", "BaseFP32", "--preset", "smoke", "-p", "variant", json.dumps(variant), check=2)
    assert "variant" in done.stderr and len(done.stderr.splitlines()) == 1 and not (project / "executed").exists()


def test_a_record_from_elsewhere_points_nowhere_outside(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "checkpoints").mkdir(parents=True)
    (outside / "checkpoints" / "best.pt").touch()
    notebook = tmp_path / "study" / "AugmFP16-s0.ipynb"
    for place in (str(outside), "../outside", str(notebook.parent / ".." / "outside")):
        record = make_record("AugmFP16", run_folder=place, checkpoints={"best": "0"})
        write_notebook(record, notebook)
        with pytest.raises(InputError, match="is not there"):
            best_weights(notebook, read_record(notebook))
    assert not list(outside.glob("*.lock"))
