"""Notebooks in JupyterLab: cells by hand, saving by JavaScript, the kernel in notebooks/, Run All on a finished run, a stop."""

from __future__ import annotations

import hashlib
import json
import os
import queue
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from jupyter_client.manager import KernelManager

from tests.analysis.records import make_record
from tests.conftest import TOP
from tests.javascript import javascript_number, saved_by_javascript
from vitfp8 import load_runs, read_record
from vitfp8.errors import InputError
from vitfp8.home import at_home, from_home, run_command, study_home
from vitfp8.params import IDENTITY_RULE, RunParams, assignments, from_notebook, read_layer, validate
from vitfp8.params.quantization import QuantizeParams
from vitfp8.ptq.start import find_source
from vitfp8.record import RECORD_MIME, RunJournal, RunRecord, digest_of, payload_digest, record_from_journal, source_run_command
from vitfp8.record.codec import agrees_with_digest
from vitfp8.run.execute import _ThisInterpreter
from vitfp8.run.plan import plan_batch
from vitfp8.run.study_file import Study
from vitfp8.verify.figures import wrong_digests


def cells_of(name: str) -> dict[str, str]:
    """The code cells of a template, by id."""
    notebook = json.loads((TOP / "notebooks" / name).read_text())
    return {cell["id"]: "".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"}


TRAIN = cells_of("train.ipynb")

# ------------------------------------------------------------------------------------------------- saving by JavaScript


# the right-hand sides are what node 20 prints
@pytest.mark.parametrize(
    ("number", "written"),
    [(1.0, "1"), (-0.0, "0"), (1e22, "1e+22"), (1e21, "1e+21"), (1e20, "100000000000000000000"), (1e-7, "1e-7"),
     (1e-6, "0.000001"), (123456789012345680000.0, "123456789012345680000"), (0.1, "0.1"), (1.5e-9, "1.5e-9"), (-2.5, "-2.5"),
     (65536.0, "65536"), (1.7976931348623157e308, "1.7976931348623157e+308"), (5e-324, "5e-324"), (12.0625, "12.0625")],
)  # fmt: skip
def test_the_converter_writes_numbers_as_javascript_does(number: float, written: str) -> None:
    assert javascript_number(number) == written


@pytest.mark.parametrize(
    ("one", "other"),
    [(1.0, 1), (1e22, 10**22), (-0.0, 0), (1e-7, float("1e-07")), (2.0**53, 2**53), (1e300, int(1e300)), (2**53 + 1, 2.0**53)],
)
def test_equal_numbers_have_one_payload_digest_however_they_are_written(one: float, other: float) -> None:
    assert payload_digest({"a": [one, {"b": one}]}) == payload_digest({"a": [other, {"b": other}]})


@pytest.mark.parametrize(("one", "other"), [(1, True), (0, False), (0, None), (1, "1"), (1.0, 1.0000000000000002), (0.1, 0.2)])
def test_different_values_have_different_payload_digests(one: object, other: object) -> None:
    assert payload_digest({"a": one}) != payload_digest({"a": other})


NUMBERS = st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**53), 2**53), st.booleans(), st.none())


@given(st.dictionaries(st.text(max_size=3), st.one_of(NUMBERS, st.lists(NUMBERS, max_size=3)), max_size=4))
@settings(max_examples=200, deadline=None)
def test_a_payload_that_javascript_saved_keeps_its_digest(payload: dict[str, Any]) -> None:
    assert payload_digest(saved_by_javascript(payload)) == payload_digest(payload)


def sealed(**changes: Any) -> RunRecord:
    """A completed record with whole figures and its deterministic digest."""
    params = validate([read_layer(TOP / "params" / "AugmFP32.yaml")])
    record = make_record(
        "AugmFP32", parameters=params.model_dump(), parameters_digest=params.digest, identity_rule=IDENTITY_RULE, **changes
    )
    record.question, record.expectation = params.question, params.expectation
    record.metrics.test_acc, record.metrics.generalization_gap = 1.0, 0.0
    record.deterministic = {"digest": digest_of(record.deterministic_part()), "promised": True}
    return record


def test_a_record_that_javascript_saved_has_the_digests_that_it_had() -> None:
    record = sealed()
    payload = record.to_payload()
    saved = saved_by_javascript(payload)
    assert '"gradient_clip": 1,' in json.dumps(saved) and '"test_acc": 1,' in json.dumps(saved)
    again = RunRecord.from_payload(saved)
    assert agrees_with_digest(saved, [])
    assert digest_of(again.deterministic_part()) == record.deterministic["digest"]
    assert [line for line in wrong_digests(again) if "digest" in line] == []
    saved["metrics"]["test_acc"] = 0.5
    assert not agrees_with_digest(saved, [again.to_payload()])


def test_the_source_of_a_quantisation_that_javascript_saved_has_the_digest_that_it_had() -> None:
    record = RunRecord(kind="quantization", experiment="FP8Test", source={"test_acc": 1.0, "test_loss": 2.0, "val_acc": 0.5})
    again = RunRecord.from_payload(saved_by_javascript(record.to_payload()))
    assert digest_of(again.deterministic_part()) == digest_of(record.deterministic_part())


def test_the_digest_of_an_earlier_version_is_verified_as_it_was_made_and_after_javascript() -> None:
    record = sealed()
    record.hardware.summary["process_rss_bytes_max"] = 710_000_000  # a count, as monitors give it
    payload = record.to_payload()
    payload["payload_digest"] = digest_of({key: value for key, value in payload.items() if key != "payload_digest"})
    assert agrees_with_digest(payload, [])
    saved = saved_by_javascript(payload)
    assert not agrees_with_digest(saved, []) and agrees_with_digest(saved, [RunRecord.from_payload(saved).to_payload()])
    saved["hardware"]["summary"]["cpu_percent_max"] = 99
    assert not agrees_with_digest(saved, [RunRecord.from_payload(saved).to_payload(), record.to_payload()])


def test_the_deterministic_digest_of_given_values_is_what_it_always_was() -> None:
    known = {"a": [1.0, 1, 0.1, -0.0, 1e22, 1e-7, True, None, float("nan")]}
    text = '{"a":[1.0,1,0.1,-0.0,1e+22,1e-07,true,null,{"__float__":"nan"}]}'
    assert digest_of(known) == hashlib.sha256(text.encode()).hexdigest()


# ------------------------------------------------------------------------------------------------------- cells by hand

PARAMETERS, VALIDATE = TRAIN["parameters"], TRAIN["validate"]


@pytest.mark.parametrize(
    "between",
    [
        [VALIDATE],
        ["get_ipython().run_line_magic('matplotlib', 'inline')"],
        ["epochs"],
        ["print(epochs)", "# a remark", ""],
        ["import numpy as np", "scratch = np.zeros(3)"],
        ["this is no Python"],
        [VALIDATE, TRAIN["show-params"], TRAIN["prepare"]],
        [VALIDATE, "scratch = 3"],
    ],
)
def test_cells_that_assign_no_parameter_are_passed_over(between: list[str]) -> None:
    found = from_notebook([PARAMETERS, *between, VALIDATE])
    assert (found.params.epochs, found.injected) == (2, ())


def test_the_last_parameters_cell_that_was_executed_counts() -> None:
    changed = PARAMETERS.replace("epochs = 2 ", "epochs = 7 ")
    assert from_notebook([PARAMETERS, VALIDATE, changed, VALIDATE]).params.epochs == 7
    assert from_notebook([changed, VALIDATE, PARAMETERS, VALIDATE]).params.epochs == 2


def test_a_value_that_is_laid_over_later_counts() -> None:
    found = from_notebook([PARAMETERS, VALIDATE, "epochs = 7", VALIDATE])
    assert found.params.epochs == 7 and found.injected == ("epochs",)


@pytest.mark.parametrize(
    ("cells", "line"),
    [
        ([PARAMETERS.replace("epochs = 2 ", "epochs = 2 * 5 ")],
         "the notebook's parameters cell: epochs: '2 * 5': is computed; write the value itself, parameters are not executed"),
        ([PARAMETERS + "\nfor depth in range(3):\n    pass"], "the notebook's parameters cell: depth: 'for depth in range(3):"),
        ([PARAMETERS + "\nimport os"], "the notebook's parameters cell: 'import os': it may only assign values"),
        ([PARAMETERS.replace('"BaseFP32"', '"AugmFP8"')], "the notebook's parameters cell: experiment: 'AugmFP8': "),
        ([PARAMETERS, "epochs = 2 * 5"], "a cell of parameters: epochs: '2 * 5': is computed"),
        ([PARAMETERS, "epochs += 1"], "a cell of parameters: epochs: 'epochs += 1': is computed"),
        ([PARAMETERS, "epoch = 3"], "injected parameters: unknown parameter 'epoch'; did you mean epochs?"),
        (["print(1)"], "the notebook: no parameters cell was executed before this one; run the notebook from its start"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named_on_one_line(cells: list[str], line: str) -> None:
    with pytest.raises(InputError) as refusal:
        from_notebook([*cells, VALIDATE])
    assert str(refusal.value).startswith(line) and "\n" not in str(refusal.value)


def test_annotated_and_chained_assignments_are_read() -> None:
    annotated = PARAMETERS.replace("epochs = 2 ", "epochs: int = 9 ").replace("depth = 1 ", "depth: int = 3 ")
    found = from_notebook([annotated, "num_heads = patch_size = 4", VALIDATE])
    assert (found.params.epochs, found.params.depth) == (9, 3)
    assert (found.params.num_heads, found.params.patch_size) == (4, 4)
    assert assignments("a: int = 1\nb: str\n'a text'\na\n") == {"a": 1}
    assert assignments("a = 1\nprint(a)") is None and assignments("a, b = 1, 2") is None


# ---------------------------------------------------------------------------------------------------- the study's home


def test_the_home_is_found_from_wherever_one_is(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    below = project / "notebooks" / "further"
    below.mkdir()
    for place in (project, project / "notebooks", below, project / "params" / "presets"):
        monkeypatch.chdir(place)
        assert study_home() == project
        assert at_home("runs/a").absolute() == project / "runs" / "a" and str(from_home(at_home("runs/a"))) == "runs/a"
        assert at_home("/elsewhere/a") == Path("/elsewhere/a") == from_home("/elsewhere/a")
    (below / "executed").mkdir()
    monkeypatch.chdir(below)
    assert study_home() == below and at_home("executed") == Path("executed")


def test_without_a_study_the_home_is_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert study_home() == tmp_path and at_home("executed/a") == Path("executed/a")


def test_a_batch_planned_from_the_notebooks_folder_is_that_of_the_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project / "notebooks")
    (run,) = plan_batch("smoke", Study(), experiments=["BaseFP32"], preset="smoke")
    assert run.output == project / "executed" / "smoke" / "BaseFP32-s0.ipynb"
    assert run.params.run_folder == "executed/smoke/BaseFP32-s0", "what the record says depends on no working directory"


@pytest.mark.parametrize(
    ("study", "command"),
    [
        ("smoke", "vitfp8 run --preset smoke"),
        ("digits", "vitfp8 run --study digits"),
        ("paper", "vitfp8 run"),
        ("mine", "vitfp8 run --study mine --preset PRESET"),
    ],
)
def test_advice_makes_what_is_missing_and_never_another_study(study: str, command: str, project: Path) -> None:
    assert run_command(study) == command
    assert source_run_command("AugmFP16", study=study) == f"`{command.replace('run', 'run AugmFP16', 1)}`"
    from vitfp8.analysis import load_results

    with pytest.raises(InputError, match=re.escape(f"`{command}` executes them")):
        load_results(f"executed/{study}")


def test_a_quantisation_without_a_source_names_a_small_one(project: Path) -> None:
    params = validate([read_layer(TOP / "params" / "FP8Test.yaml")], QuantizeParams)
    with pytest.raises(InputError, match="`vitfp8 run AugmFP16 --study digits` makes$"):
        find_source(params)
    missing = params.model_copy(update={"source_run": "executed/smoke/AugmFP16-s0.ipynb"})
    with pytest.raises(InputError, match="run it first: `vitfp8 run AugmFP16 --preset smoke`$"):
        find_source(missing)


# --------------------------------------------------------------------------------------------- a finished run's folder


@pytest.mark.parametrize("status", ["completed", "diverged"])
def test_a_finished_run_is_not_run_into(status: str, tmp_path: Path) -> None:
    with RunJournal(tmp_path, make_record(status="running"), show=False) as journal:
        journal.update(status=status)
    before = (tmp_path / "journal.jsonl").read_bytes()
    with pytest.raises(InputError, match=rf"holds a finished run \({status}\), .*run_folder = None or another folder"):
        RunJournal(tmp_path, make_record(status="running"), show=False)
    assert (tmp_path / "journal.jsonl").read_bytes() == before
    with FileLock(tmp_path / "runner.lock"), RunJournal(tmp_path, make_record(status="running"), show=False):
        pass  # the command that executes runs has decided that it goes on


@pytest.mark.parametrize("status", ["interrupted", "failed"])
def test_an_unfinished_run_goes_on(status: str, tmp_path: Path) -> None:
    with RunJournal(tmp_path, make_record(status="running"), show=False) as journal:
        journal.update(status=status)
    with RunJournal(tmp_path, make_record(status="running"), show=False):
        pass


def test_a_stop_says_where_the_checkpoint_is_and_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("runs") / "mine"
    with pytest.raises(KeyboardInterrupt), RunJournal(folder, make_record(status="running")):
        raise KeyboardInterrupt
    go_on = 'to continue, run all cells with run_folder = "runs/mine"'
    assert capsys.readouterr().out == f"stopped: no checkpoint was saved yet; {go_on}\n"
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.pt").touch()
    with RunJournal(folder, make_record(status="running")) as journal:
        journal.update(status="interrupted")
    assert capsys.readouterr().out == f"stopped: the checkpoint is runs/mine/checkpoints/last.pt; {go_on}\n"
    with FileLock(folder / "runner.lock"), RunJournal(folder, make_record(status="running")) as journal:
        journal.update(status="interrupted")
    assert "; the same command continues" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------- a real kernel


class Kernel:
    """A kernel whose cells are executed one by one, as JupyterLab does."""

    def __init__(self, folder: Path) -> None:
        self.manager = KernelManager(kernel_name="python3", kernel_spec_manager=_ThisInterpreter())
        self.manager.start_kernel(cwd=str(folder), env={**os.environ, "JPY_SESSION_NAME": "by hand"})
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=120)

    def run(self, source: str, until: Callable[[], bool] | None = None) -> tuple[str, list[str], list[dict[str, Any]]]:
        """Execute a cell; what it printed, its traceback, and the records that it showed."""
        sent, printed, error, records = self.client.execute(source), "", [], []
        while True:
            if until is not None and until():
                self.manager.interrupt_kernel()
                until = None
            try:
                message = self.client.get_iopub_msg(timeout=0.2 if until else 120)
            except queue.Empty:
                if until:
                    continue
                raise
            if message["parent_header"].get("msg_id") != sent:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "stream" and content["name"] == "stdout":
                printed += content["text"]
            elif kind == "error":
                error = content["traceback"]
            elif kind in ("display_data", "update_display_data") and RECORD_MIME in content["data"]:
                records.append(content["data"][RECORD_MIME])
            elif kind == "status" and content["execution_state"] == "idle":
                return printed, error, records


@pytest.fixture
def kernel(project: Path) -> Iterator[Kernel]:
    """A kernel in ``notebooks/`` of a project, where JupyterLab starts it."""
    kernel = Kernel(project / "notebooks")
    yield kernel
    kernel.client.stop_channels()
    kernel.manager.shutdown_kernel(now=True)


def test_train_by_hand_in_jupyterlab(kernel: Kernel, project: Path) -> None:
    # a value that is refused, a value that code has changed, and what may stand between are one line each, or nothing
    kernel.run(PARAMETERS.replace('precision = "fp32"', 'precision = "fp23"'))
    assert [line.partition("fp23")[0] for line in kernel.run(VALIDATE)[1]] == [
        "InputError: the notebook's parameters cell: precision: '"
    ]
    kernel.run(PARAMETERS)
    for source in ("%matplotlib inline", "epochs", VALIDATE, VALIDATE):
        assert kernel.run(source)[1] == []
    kernel.run("%%capture\nepochs = 9")
    (line,) = kernel.run(VALIDATE)[1]
    assert line.startswith("InputError: the notebook: epochs: 9: was changed by code, and its parameter cells say 2")

    # Run All: the run folder is the project's, and so it is said
    kernel.run(PARAMETERS)
    assert kernel.run(VALIDATE)[1] == kernel.run(TRAIN["show-params"])[1] == []
    printed, error, _ = kernel.run(TRAIN["prepare"])
    assert error == [] and re.fullmatch(rf"run folder runs/BaseFP32-s0-\S+ \(in {re.escape(str(project))}\)\n", printed)
    _, error, records = kernel.run(TRAIN["train"])
    assert error == [] and records[-1]["status"] == "completed"
    (folder,) = (project / "runs").iterdir()
    assert records[-1]["run_folder"] == f"runs/{folder.name}" and not (project / "notebooks" / "runs").exists()

    # Run All on what is finished, the cell alone or from the start: one line, the record is shown again, nothing is written
    before = (folder / "journal.jsonl").read_bytes()
    for cell in ("train", "prepare"):
        if cell == "prepare":
            kernel.run(PARAMETERS.replace("run_folder = None", f'run_folder = "runs/{folder.name}"'))
            assert kernel.run(VALIDATE)[1] == []
        _, error, again = kernel.run(TRAIN[cell])
        assert len(error) == 1 and "holds a finished run (completed)" in error[0] and "Traceback" not in error[0]
        assert again == [records[-1]]
    assert (folder / "journal.jsonl").read_bytes() == before

    # a stop: where the checkpoint is and how to go on; and so it goes on
    kernel.run(PARAMETERS.replace("epochs = 2 ", "epochs = 500 ").replace("run_folder = None", 'run_folder = "runs/stopped"'))
    kernel.run(VALIDATE)
    kernel.run(TRAIN["prepare"])
    journal = project / "runs" / "stopped" / "journal.jsonl"
    printed, error, records = kernel.run(TRAIN["train"], until=lambda: journal.exists() and '"epoch":2,' in journal.read_text())
    assert error == [] and records[-1]["status"] == "interrupted"
    assert "stopped: the checkpoint is runs/stopped/checkpoints/last.pt; to continue, run all cells with run_folder" in printed
    stopped = record_from_journal(journal.parent)
    assert stopped is not None and stopped.status == "interrupted"
    kernel.run("from vitfp8.experiment import prepare_experiment; experiment = prepare_experiment(params)")
    assert kernel.run("print(experiment.trainer.epoch >= 2)")[0] == "True\n"

    # the other notebooks as they are: one line, and advice that starts no other study
    for name, cell in (("quantize.ipynb", "prepare"), ("analysis.ipynb", "opening")):
        cells = cells_of(name)
        for source in (cells["parameters"], cells.get("validate", "")):
            assert kernel.run(source)[1] == []
        (line,) = kernel.run(cells[cell])[1]
        assert re.search(r"`vitfp8 run (AugmFP16 --study digits|--preset smoke)`", line) and "Traceback" not in line


def test_a_study_is_read_by_its_name_from_the_notebooks_folder(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.analysis.records import write_study

    write_study(project / "executed" / "mine", [make_record()])
    monkeypatch.chdir(project / "notebooks")
    assert list(load_runs("executed/mine")["run"]) == ["BaseFP32-s0"]
    assert read_record("executed/mine/BaseFP32-s0.ipynb").status == "completed"


def test_every_real_parameter_is_known_as_one() -> None:
    from vitfp8.record.schema import REAL_PARAMETERS

    params = validate([read_layer(TOP / "params" / "AugmFP32.yaml")])
    assert {name for name, value in params.model_dump().items() if isinstance(value, float)} <= REAL_PARAMETERS
    assert {"seed", "epochs", "gradient_clip"} & REAL_PARAMETERS == {"gradient_clip"}
    assert set(RunParams.model_fields) >= REAL_PARAMETERS
