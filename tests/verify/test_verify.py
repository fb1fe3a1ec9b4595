"""Hand edits of real lab records, each found and named; and runs executed again, one that agrees and one that does not."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TOP
from tests.javascript import saved_by_javascript
from vitfp8.errors import InputError
from vitfp8.record import RECORD_MIME, RunRecord, digest_of, read_record
from vitfp8.verify.checks import Check, find_notebooks, verify, verify_data
from vitfp8.verify.figures import differences
from vitfp8.verify.rerun import name_of, why_not_promised

STUDY = Path("executed") / "smoke"


def vitfp8(*arguments: str, check: int | None = 0) -> subprocess.CompletedProcess[str]:
    """Call the command line in the current folder."""
    done = subprocess.run([sys.executable, "-m", "vitfp8", *arguments], capture_output=True, text=True, timeout=600)
    if check is not None:
        assert done.returncode == check, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with three real lab records: two trainings, and a quantisation of one of them."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("notebooks", "params"):
        shutil.copytree(TOP / name, folder / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        vitfp8("run", "BaseFP32", "AugmFP16", "FP8Test", "--preset", "smoke", "-p", "formats", "[e4m3]")
    return folder


@pytest.fixture
def study(executed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to spoil; the working directory."""
    shutil.copytree(executed, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Lab:
    """One lab record, to be edited as a hand with an editor could."""

    def __init__(self, name: str = "BaseFP32-s0") -> None:
        self.path = STUDY / f"{name}.ipynb"
        self.folder = self.path.with_suffix("")
        self.notebook: dict[str, Any] = json.loads(self.path.read_text())

    def save(self) -> None:
        """Write it back as nbformat writes."""
        self.path.write_text(json.dumps(self.notebook, indent=1, sort_keys=True))

    def cells(self, tag: str | None = None) -> list[dict[str, Any]]:
        """Code cells, with a tag where one is given."""
        code = [cell for cell in self.notebook["cells"] if cell["cell_type"] == "code"]
        return [cell for cell in code if tag is None or tag in cell["metadata"].get("tags", [])]

    def outputs(self) -> Iterator[dict[str, Any]]:
        """Every output of every cell."""
        for cell in self.cells():
            yield from cell["outputs"]

    @property
    def shown(self) -> dict[str, Any]:
        """The output's data that hold the record."""
        return next(output["data"] for output in self.outputs() if RECORD_MIME in output.get("data", {}))

    def header(self, *place: str, value: object) -> None:
        """Edit a value of the header and nothing else."""
        part = self.shown[RECORD_MIME]
        for key in place[:-1]:
            part = part[key]
        assert part[place[-1]] != value
        part[place[-1]] = value
        self.save()

    def sealed(self, change: Callable[[RunRecord], object], *, deterministic: bool = False) -> None:
        """Edit the record so that the digest of the whole fits again; if asked for, the deterministic one too."""
        record = RunRecord.from_payload(self.shown[RECORD_MIME])
        change(record)
        if deterministic:
            record.deterministic["digest"] = digest_of(record.deterministic_part())
        self.shown[RECORD_MIME] = record.to_payload()
        self.save()


def checks(*, level: str | None = None) -> list[Check]:
    """What verifying the study finds."""
    return [check for check in verify(find_notebooks("smoke")) if level in (None, check.level)]


def attribute(*path: str, value: object) -> Callable[[RunRecord], None]:
    """A change of a record: one attribute or key, however deep."""

    def change(record: RunRecord) -> None:
        part: Any = record
        for key in path[:-1]:
            part = part[int(key)] if key.isdigit() else part[key] if isinstance(part, dict) else getattr(part, key)
        if isinstance(part, dict):
            part[path[-1]] = value
        else:
            setattr(part, path[-1], value)

    return change


def flip_predictions(record: RunRecord) -> None:
    """Make every prediction right, and the accuracy with them."""
    record.predictions["last"] = list(record.predictions["labels"])
    record.metrics.test_acc = 1.0


def drop_an_epoch(record: RunRecord) -> None:
    """Remove the last epoch."""
    record.history = record.history[:-1]


def spoil(path: Path, *, note: bool = False) -> None:
    """Change one byte of a file, and write the digest beside it that fits."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    if note:
        import hashlib

        path.with_name(path.name + ".sha256").write_text(f"{hashlib.sha256(data).hexdigest()}  {path.name}\n")


def swap_cells(lab: Lab) -> None:
    """Two cells executed in the other order."""
    first, second = lab.cells()[3:5]
    first["execution_count"], second["execution_count"] = second["execution_count"], first["execution_count"]
    lab.save()


def add_error(lab: Lab) -> None:
    """An error before the training, in a run that completed."""
    lab.cells()[4]["outputs"].append({"output_type": "error", "ename": "ValueError", "evalue": "no", "traceback": []})
    lab.save()


def add_second_record(lab: Lab) -> None:
    """A better record after the real one."""
    cell = lab.cells()[-1]
    cell["outputs"].append({"output_type": "display_data", "metadata": {}, "data": json.loads(json.dumps(lab.shown))})
    lab.save()


def edit_injected(lab: Lab) -> None:
    """The injected cell states another learning rate."""
    cell = lab.cells("injected-parameters")[0]
    source = "".join(cell["source"])
    cell["source"] = source.replace("learning_rate = 0.002", "learning_rate = 0.001")
    assert cell["source"] != source
    lab.save()


def edit_metadata(lab: Lab) -> None:
    """Papermill's metadata states another learning rate."""
    lab.notebook["metadata"]["papermill"]["parameters"]["learning_rate"] = 0.1
    lab.save()


def edit_journal(lab: Lab, old: str, new: str) -> None:
    """Edit the journal's text."""
    journal = lab.folder / "journal.jsonl"
    text = journal.read_text()
    assert old in text
    journal.write_text(text.replace(old, new))


def copy_as_another_seed(lab: Lab) -> None:
    """The same lab record again, as if it were another run."""
    shutil.copy(lab.path, lab.path.with_name("BaseFP32-s1.ipynb"))


def truncate(lab: Lab) -> None:
    """Half a notebook."""
    lab.path.write_text(lab.path.read_text()[:5000])


BASE, QUANT = "BaseFP32-s0", "FP8Test-s0"

#: What is edited → the lab record, how, and the subject and words with which it is found.
EDITS: dict[str, tuple[str, Callable[[Lab], object], str, str]] = {
    "a figure": (BASE, lambda lab: lab.header("metrics", "test_acc", value=0.9), "record", "payload_digest: .* it was edited"),
    "the processor": (BASE, lambda lab: lab.header("provenance", "processor", value="faster"), "record", "payload_digest"),
    "the packed part": (BASE, lambda lab: lab.sealed(drop_an_epoch), "figures", r"progress\.epoch: 2 .* 1 follows"),
    "test accuracy": (BASE, lambda lab: lab.sealed(attribute("metrics", "test_acc", value=0.9)), "figures", r"test_acc: 0\.9 "),
    "test accuracy and its predictions": (
        BASE,
        lambda lab: lab.sealed(flip_predictions, deterministic=True),
        "journal",
        r"metrics\.test_acc: 1\.0 in the notebook",
    ),
    "best epoch": (BASE, lambda lab: lab.sealed(attribute("metrics", "best_epoch", value=7)), "figures", "best_epoch: 7 stands"),
    "gap": (BASE, lambda lab: lab.sealed(attribute("metrics", "generalization_gap", value=0.5)), "figures", "generalization_gap"),
    "training time": (
        BASE,
        lambda lab: lab.sealed(attribute("metrics", "train_seconds", value=1e-3)),
        "figures",
        "train_seconds",
    ),
    "an epoch's loss": (
        BASE,
        lambda lab: lab.sealed(attribute("history", "0", "val_loss", value=0.1)),
        "digests",
        r"deterministic\.digest: ",
    ),
    "an epoch's time": (
        BASE,
        lambda lab: lab.sealed(attribute("history", "1", "epoch_seconds", value=9.0)),
        "journal",
        r"history\[1\]\.epoch_sec",
    ),
    "the status": (BASE, lambda lab: lab.sealed(attribute("status", value="diverged")), "digests", "deterministic"),
    "the seed": (BASE, lambda lab: lab.sealed(attribute("seed", value=5)), "digests", r"seed: 5 .* 0 follows"),
    "a parameter": (
        BASE,
        lambda lab: lab.sealed(attribute("parameters", "learning_rate", value=0.1)),
        "digests",
        "parameters_digest",
    ),
    "a parameter that decides no number": (
        BASE,
        lambda lab: lab.sealed(attribute("parameters", "workers", value=8)),
        "parameters",
        "workers: 0 .* 8 in the record",
    ),
    "the expectation, afterwards": (
        BASE,
        lambda lab: lab.sealed(attribute("expectation", value="exactly this")),
        "digests",
        "expectation: 'exactly|expectation: ex",
    ),
    "the effective precision": (
        BASE,
        lambda lab: lab.sealed(attribute("precision", "backend", value="emulated")),
        "journal",
        r"precision\.backend: emul",
    ),
    "the hardware": (
        BASE,
        lambda lab: lab.sealed(attribute("hardware", "summary", "energy_joules", value=1.0)),
        "journal",
        "energy_joules",
    ),
    "the data's digest": (BASE, lambda lab: lab.sealed(attribute("data", "digest", value="0" * 64)), "digests", "deterministic"),
    "the same, beside other runs": (
        QUANT,
        lambda lab: lab.sealed(attribute("data", "digest", value="0" * 64)),
        "data",
        "data.digest: 0000.*other data",
    ),
    "the digest taken away": (BASE, lambda lab: lab.sealed(lambda r: r.deterministic.pop("digest")), "digests", "is missing"),
    "the end taken away": (BASE, lambda lab: lab.sealed(attribute("finished", value=None)), "times", "finished: is missing"),
    "a checkpoint's digest": (
        BASE,
        lambda lab: lab.sealed(attribute("checkpoints", "best", value="0" * 64)),
        "checkpoints",
        r"best\.pt: .* 0000",
    ),
    "papermill's metadata": (
        BASE,
        edit_metadata,
        "parameters",
        "learning_rate: 0.002 in the injected-parameters cell, 0.1 in papermill's",
    ),
    "the injected cell": (BASE, edit_injected, "parameters", "learning_rate: 0.001 in the parameter cells, 0.002 in the record"),
    "the order of cells": (BASE, swap_cells, "outputs", "code cell 5 was executed out of order"),
    "an error": (BASE, add_error, "outputs", "code cell 5 raised ValueError, though the run is completed"),
    "a second record": (BASE, add_second_record, "outputs", "2 records stand in it"),
    "half a notebook": (BASE, truncate, "record", "no valid JSON.* its journal says completed"),
    "the journal": (
        BASE,
        lambda lab: edit_journal(lab, '"status":"completed"', '"status":"failed"'),
        "journal",
        "status: completed in the note",
    ),
    "a checkpoint": (BASE, lambda lab: spoil(lab.folder / "checkpoints" / "last.pt"), "checkpoints", r"last\.pt\.sha256"),
    "a checkpoint and the digest beside it": (
        BASE,
        lambda lab: spoil(lab.folder / "checkpoints" / "best.pt", note=True),
        "checkpoints",
        r"best\.pt: its SHA-256 is",
    ),
    "a copy as another seed": (BASE, copy_as_another_seed, "copies", "is the same execution as"),
    "a quantised accuracy": (
        QUANT,
        lambda lab: lab.sealed(attribute("quantization", "0", "test_acc", value=0.9)),
        "figures",
        r"quantization\[0\]\.test_acc",
    ),
    "a p-value": (
        QUANT,
        lambda lab: lab.sealed(attribute("quantization", "1", "mcnemar_p", value=0.001)),
        "figures",
        r"\[1\]\.mcnemar_p: 0\.001",
    ),
    "a layer's sensitivity": (
        QUANT,
        lambda lab: lab.sealed(attribute("sensitivity", "0", "accuracy_difference", value=0.2)),
        "figures",
        r"sensitivity\[0\]",
    ),
    "the source's accuracy": (
        QUANT,
        lambda lab: lab.sealed(attribute("source", "recorded_test_acc", value=0.9)),
        "source",
        "recorded_test_acc: 0.9, but",
    ),
    "the source's weights": (
        QUANT,
        lambda lab: lab.sealed(attribute("source", "checkpoint_sha256", value="0" * 64)),
        "source",
        "checkpoint_sha256: 0000",
    ),
    "an exported model": (
        QUANT,
        lambda lab: spoil(next(lab.folder.glob("export/*.safetensors"))),
        "source",
        r"safetensors: its SHA-256 is",
    ),
}


def test_what_nobody_edited_agrees(study: Path) -> None:
    before = {path: path.read_bytes() for path in study.rglob("*") if path.is_file()}
    done = vitfp8("verify", "smoke")
    assert "3 verified, 0 FAILED" in done.stdout and "FAILED  " not in done.stdout
    found = checks()
    assert {check.level for check in found if check.path.stem != QUANT} == {"ok"}
    notes = [check.text for check in found if check.level == "note"]
    assert len(notes) == 1 and "FP8Test.yaml" in notes[0] and "formats" in notes[0], "its -p is named"
    assert {path: path.read_bytes() for path in study.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("what", EDITS)
def test_a_hand_edit_is_found_and_named(study: Path, what: str) -> None:
    run, edit, subject, words = EDITS[what]
    edit(Lab(run))
    failed = checks(level="FAILED")
    assert any(check.subject == subject and re.search(words, check.text) for check in failed), failed
    assert all("\n" not in check.text and len(check.text) < 500 for check in failed)
    assert {check.path.stem for check in failed} <= {run, "BaseFP32-s1"}, "and nothing else is blamed"


def test_a_failure_is_exit_1_and_stands_in_the_json(study: Path) -> None:
    Lab().header("metrics", "test_acc", value=0.9)
    rows = json.loads(vitfp8("verify", "smoke", "BaseFP32-s0", "--json", check=1).stdout)
    assert {row["path"] for row in rows} == {str(STUDY / "BaseFP32-s0.ipynb")}
    assert {"record", "figures", "journal"} <= {row["subject"] for row in rows if row["level"] == "FAILED"}


def test_what_may_be_missing_or_may_have_changed_is_a_note(study: Path) -> None:
    lab, augmented = Lab(), Lab("AugmFP16-s0")
    shutil.rmtree(augmented.folder)
    (lab.folder / "checkpoints" / "best.pt").unlink()
    with (lab.folder / "journal.jsonl").open("a") as file:
        file.write('{"set": {"sta')
    lab.path.with_name("BaseFP32-s0.log.jsonl").write_text('{"time": "2026-01-01T00:00:00+00:00", "event": "note"}\n{"tor')
    lab.sealed(attribute("provenance", "code_digest", value="0" * 64))
    for name in ("BaseFP32", "AugmFP16"):
        file = study / "params" / f"{name}.yaml"
        file.write_text(file.read_text().replace("validation_fraction: 0.1", "validation_fraction: 0.2"))
    found = checks()
    notes = {(check.path.stem, check.subject): check.text for check in found if check.level == "note"}
    assert "not here" in notes[("AugmFP16-s0", "journal")] and "not here" in notes[("AugmFP16-s0", "checkpoints")]
    assert "best.pt is not here" in notes[("BaseFP32-s0", "checkpoints")]
    assert "log.jsonl:2: a torn line" in notes[("BaseFP32-s0", "run log")]
    assert "validation_fraction 0.2 (the record: 0.1)" in notes[("BaseFP32-s0", "parameter file")]
    assert "another today" in notes[("BaseFP32-s0", "code")]
    failed = [check for check in found if check.level == "FAILED"]
    assert [(check.subject, check.text.partition(":")[0]) for check in failed] == [("journal", "provenance.code_digest")]


@pytest.mark.parametrize("earlier", [False, True], ids=["as they are", "with the digest of an earlier version"])
def test_lab_records_that_jupyterlab_saved_are_what_they_were(earlier: bool, study: Path) -> None:
    for name in (BASE, "AugmFP16-s0", "FP8Test-s0"):
        lab = Lab(name)
        payload = lab.shown[RECORD_MIME]
        if earlier:
            payload["payload_digest"] = digest_of({key: value for key, value in payload.items() if key != "payload_digest"})
        lab.notebook = saved_by_javascript(lab.notebook)
        lab.save()
        if name == BASE:
            shutil.rmtree(lab.folder)  # where the journal is not here, the types of numbers are known without it
    assert checks(level="FAILED") == []


def test_records_of_earlier_versions_and_of_unfinished_runs_are_judged_by_what_they_have(study: Path) -> None:
    lab = Lab()
    lab.shown[RECORD_MIME].pop("payload_digest")
    lab.save()
    other = Lab("AugmFP16-s0")
    journal = other.folder / "journal.jsonl"
    journal.write_text("".join(line + "\n" for line in journal.read_text().splitlines()[:-1]))  # it died in its test
    record = RunRecord.from_payload(other.shown[RECORD_MIME])
    record.status, record.finished, record.predictions, record.deterministic = "running", None, {}, {"promised": True}
    record.metrics = type(record.metrics)()
    other.shown[RECORD_MIME] = record.to_payload()
    other.shown["text/plain"] = "vitfp8 record: AugmFP16-s0 · running · epoch 2 of 2"
    other.cells()[-2]["outputs"] = []
    other.save()
    spoil(other.folder / "checkpoints" / "last.pt", note=True)  # newer than what the notebook tells
    (STUDY / f"{QUANT}.ipynb").unlink()
    (STUDY / QUANT / "journal.jsonl").unlink()
    found = checks()
    assert [check for check in found if check.level == "FAILED"] == []
    texts = " ".join(check.text for check in found if check.level == "note")
    assert "an earlier version made it" in texts and "newer than the record" in texts


def test_an_imported_record_is_judged_by_its_digest_alone(study: Path) -> None:
    lab = Lab()
    lab.sealed(lambda record: setattr(record, "origin", "imported") or setattr(record, "seed", None))
    lab.notebook["metadata"].pop("papermill")
    lab.save()
    found = [check for check in checks() if check.path == lab.path]
    assert {check.subject for check in found} == {"record", "run log"} and {check.level for check in found} == {"ok"}
    lab.header("metrics", "test_acc", value=0.99)
    assert [check.subject for check in checks(level="FAILED")] == ["record"]


def test_a_finished_run_whose_notebook_is_gone_is_missed(study: Path) -> None:
    (STUDY / "BaseFP32-s0.ipynb").unlink()
    failed = checks(level="FAILED")
    assert [(check.path.stem, check.subject) for check in failed] == [("BaseFP32-s0", "record")]
    assert "there is no such notebook" in failed[0].text and "its journal says completed" in failed[0].text


def test_data_sets_of_today_are_compared_on_request(study: Path) -> None:
    paths = find_notebooks("smoke")
    assert {check.level for check in verify_data(paths)} == {"ok"}
    lab = Lab()
    lab.sealed(attribute("data", "digest", value="0" * 64))
    assert [(check.path, check.level) for check in verify_data([lab.path])] == [(lab.path, "FAILED")]


def test_bad_input_is_refused_in_one_line(study: Path) -> None:
    for arguments, words in (
        (("smok",), "did you mean smoke?"),
        (("smoke", "BaseFP32-s9"), "did you mean BaseFP32-s0?"),
        (("none.ipynb",), "no such notebook"),
        (("--rerun",), "name the study"),
    ):
        done = vitfp8("verify", *arguments, check=2)
        assert words in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
    Lab().sealed(attribute("origin", value="imported"))
    assert "was imported" in vitfp8("verify", "smoke", "BaseFP32-s0", "--rerun", check=2).stderr
    with pytest.raises(InputError, match="there is no"):
        find_notebooks("smok")


def test_a_run_executed_again_agrees_and_one_that_was_edited_does_not(study: Path) -> None:
    Lab(QUANT).sealed(attribute("quantization", "1", "test_loss", value=0.125), deterministic=True)
    before = {path: path.read_bytes() for path in study.rglob("*") if path.is_file()}
    done = vitfp8("verify", "smoke", BASE, QUANT, "--rerun", check=1)
    agrees, differs = (line for line in done.stdout.splitlines() if ": repeat: " in line)
    assert agrees.startswith("ok") and BASE in agrees and "digest, predictions and last weights are the same" in agrees
    assert differs.startswith("FAILED") and QUANT in differs and "quantization[1].test_loss: 0.125, this time 2." in differs
    assert {path: path.read_bytes() for path in study.rglob("*") if path.is_file()} == before, "the study is only read"


def test_a_place_in_a_history_is_named_by_its_epoch(study: Path) -> None:
    record = read_record(STUDY / f"{BASE}.ipynb")
    assert name_of("history[1].val_loss", record) == "val_loss of epoch 2"
    assert name_of("metrics.test_acc", record) == "metrics.test_acc"


def test_what_a_repeat_cannot_promise_is_said_in_words(study: Path) -> None:
    record = read_record(STUDY / f"{BASE}.ipynb")
    assert why_not_promised(record, record) == []
    elsewhere = record.model_copy(deep=True)
    elsewhere.provenance |= {"instruction_set": "another one", "threads": 4, "code_digest": "0" * 64}
    elsewhere.provenance["versions"] = {**record.provenance["versions"], "torch": "1.0"}
    elsewhere.data = {**record.data, "digest": "1" * 64}
    words = "; ".join(why_not_promised(record, elsewhere))
    for part in ("another instruction set", "another threads (1, now 4)", "another code", "another torch (", "another data set"):
        assert part in words
    record.deterministic["promised"] = False
    assert "the record promises nothing" in why_not_promised(record, record)[0]


def test_ctrl_c_ends_a_repeat_with_130_and_its_folder_is_gone(study: Path) -> None:
    place = study / "temporary"
    place.mkdir()
    command = [sys.executable, "-m", "vitfp8", "verify", "smoke", BASE, "--rerun"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
                               env={**os.environ, "TMPDIR": str(place)})  # fmt: skip
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(place.glob("vitfp8-rerun-*/repeat/*.ipynb")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130 and "interrupted" in output, output
    assert list(place.glob("vitfp8-rerun-*")) == []


def test_differences_name_the_place() -> None:
    one = {"a": [1, {"b": 2.0}], "c": float("nan"), "d": [1, 2]}
    other = {"a": [1, {"b": 2.5}], "c": float("nan"), "d": [1]}
    assert list(differences(one, other)) == [("a[1].b", 2.0, 2.5), ("d: number of entries", 2, 1)]
