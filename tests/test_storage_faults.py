"""Full disks, read-only folders and jumping clocks on real processes: a clear line, earlier files whole, then the same bits."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import nbformat
import psutil
import pytest
import torch

from tests.conftest import SMOKE, TOP
from tests.faults import Faults
from vitfp8.checkpoint import load_checkpoint
from vitfp8.experiment import prepare_experiment
from vitfp8.params import Layer, read_layer, validate
from vitfp8.record import RunJournal, RunRecord, read_record, says_its_end
from vitfp8.verify.checks import find_notebooks, verify

EPOCHS = 24
RUN = Path("executed") / "smoke" / "BaseFP32-s0"
COMMAND = ("run", "BaseFP32", "--preset", "smoke", "-p", "epochs", str(EPOCHS), "-p", "checkpoint_minutes", "0.01")


@dataclass
class Outcome:
    """How a command ended, and what a reader saw right after it."""

    status: int
    output: str
    record: RunRecord
    epochs: int


class Project:
    """A project folder, and its one run."""

    def __init__(self, folder: Path, faults: Faults) -> None:
        self.folder = folder
        self.faults = faults
        for name in ("notebooks", "params"):
            shutil.copytree(TOP / name, folder / name)
        shutil.copy(TOP / "CITATION.cff", folder / "CITATION.cff")

    @property
    def run_folder(self) -> Path:
        """Journal and checkpoints."""
        return self.folder / RUN

    @property
    def notebook(self) -> Path:
        """The lab record."""
        return self.folder / f"{RUN}.ipynb"

    @property
    def epochs(self) -> int:
        """Epochs that the journal holds, of all attempts."""
        with suppress(OSError):
            return (self.run_folder / "journal.jsonl").read_bytes().count(b'"epoch":{')
        return 0

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command that obeys the faults."""
        return subprocess.Popen(
            [sys.executable, "-m", "vitfp8", *(arguments or COMMAND)],
            cwd=self.folder,
            env=dict(self.faults.environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def wait_for_epochs(self, process: subprocess.Popen[str], more: int) -> None:
        """Wait until it has trained so many more epochs."""
        wanted, deadline = self.epochs + more, time.monotonic() + 300
        while self.epochs < wanted:
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
            time.sleep(0.005)

    def outcome(self, process: subprocess.Popen[str]) -> Outcome:
        """Let it end; every file that is there must be whole."""
        output, _ = process.communicate(timeout=300)
        for path in self.notebook.parent.rglob("*.ipynb"):
            nbformat.validate(nbformat.reads(path.read_text(encoding="utf-8"), as_version=4))
        for name in ("last", "previous", "best"):
            if (path := self.run_folder / "checkpoints" / f"{name}.pt").exists():
                load_checkpoint(path)
        assert list((self.run_folder / "checkpoints").glob(".*.tmp")) == []
        record = read_record(self.notebook)
        return Outcome(process.returncode, output, record, len(record.history))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunRecord, dict[str, torch.Tensor]]:
    """Record and last weights of the same run, which nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    own = {"epochs": EPOCHS, "seed": 0, "run_folder": str(folder)}
    experiment = prepare_experiment(
        validate([read_layer(TOP / "params" / "BaseFP32.yaml"), read_layer(SMOKE), Layer("test", own)])
    )
    with RunJournal(experiment.folder, experiment.record(), show=False) as journal:
        record = experiment.run(journal)
    return record, load_checkpoint(folder / "checkpoints" / "last.pt")["model"]


def assert_identical(project: Project, undisturbed: tuple[RunRecord, dict[str, torch.Tensor]]) -> None:
    """Digest, predictions and weights are those of the undisturbed run, and everything agrees with everything."""
    record, (expected, weights) = read_record(project.notebook), undisturbed
    assert record.status == "completed"
    assert record.deterministic["digest"] == expected.deterministic["digest"] and record.predictions == expected.predictions
    here = load_checkpoint(project.run_folder / "checkpoints" / "last.pt")["model"]
    assert here.keys() == weights.keys() and all(torch.equal(here[name], weights[name]) for name in weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project.folder)
        assert [check for check in verify(find_notebooks("smoke")) if check.level == "FAILED"] == []


@contextmanager
def small_disk(place: Path, megabytes: int) -> Iterator[bool]:
    """A file system of its own in a folder, where this process may mount one; whether it is there."""
    place.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(place)]
    mounted = shutil.which("mount") is not None and subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(place)], check=True)


def fill_up(place: Path) -> Path:
    """Another program takes what room there is."""
    ballast = place / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)
    return ballast


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Project, dict[str, Outcome]]]:
    """One run, given the same command until it is done: the disk fills up, the journal is refused, the notebook is refused."""
    folder = tmp_path_factory.mktemp("life")
    project = Project(folder / "project", Faults(folder / "shim"))
    outcomes: dict[str, Outcome] = {}
    with small_disk(project.folder / "executed", 24) as mounted:
        process = project.start()
        project.wait_for_epochs(process, 3)
        if mounted:
            ballast = fill_up(project.folder / "executed")
        else:
            project.faults.fill(kernel=70_000, runner=1_000)
        outcomes["disk"] = project.outcome(process)
        ballast.unlink() if mounted else project.faults.fill()

        # a torn line makes the journal larger than any checkpoint: then it is the first that does not fit
        with (project.run_folder / "journal.jsonl").open("a") as journal:
            journal.write('{"set": {"' + "x" * 400_000)
        process = project.start()
        project.wait_for_epochs(process, 3)
        project.faults.fill(kernel=(project.run_folder / "journal.jsonl").stat().st_size + 20)
        outcomes["journal"] = project.outcome(process)
        project.faults.fill()

        process = project.start()
        project.wait_for_epochs(process, 3)
        project.faults.fill(runner=20_000)
        outcomes["notebook"] = project.outcome(process)
        project.faults.fill()

        outcomes["room"] = project.outcome(project.start())
        yield project, outcomes


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("disk", r"\.pt: cannot be written \((No space left on device|File too large)\)"),
        ("journal", r"journal\.jsonl: cannot be written \(File too large\)"),
        ("notebook", r"the notebook could not be written: File too large"),
    ],
)
def test_a_disk_that_fills_up_is_a_failed_run_with_its_reason(
    life: tuple[Project, dict[str, Outcome]], fault: str, words: str
) -> None:
    outcome = life[1][fault]
    assert outcome.status == 1, outcome.output
    said = " ".join("".join(character for character in outcome.output if character not in "│┃").split())
    assert re.search(words, said), outcome.output
    assert "Traceback" not in outcome.output and "the same command continues" in outcome.output


def test_what_was_trained_before_the_disk_was_full_is_kept(life: tuple[Project, dict[str, Outcome]]) -> None:
    outcomes = life[1]
    assert outcomes["disk"].epochs >= 3 and outcomes["disk"].record.status in ("failed", "interrupted")
    assert outcomes["journal"].epochs >= outcomes["disk"].epochs + 3 and outcomes["journal"].record.status == "failed"
    assert "JournalError" in str(outcomes["journal"].record.reason), "in the notebook, since the journal could not say it"


def test_a_notebook_that_was_not_written_to_the_end_is_written_by_the_same_command(
    life: tuple[Project, dict[str, Outcome]],
) -> None:
    project, outcomes = life
    assert outcomes["notebook"].record.status == "completed", "the journal says so"
    assert outcomes["room"].status == 0 and "completed" in outcomes["room"].output
    assert says_its_end(project.notebook) and f"completed · epoch {EPOCHS} of {EPOCHS}" in project.notebook.read_text()


def test_with_room_again_the_same_command_ends_with_the_same_bits(
    life: tuple[Project, dict[str, Outcome]], undisturbed: tuple[RunRecord, dict[str, torch.Tensor]]
) -> None:
    assert_identical(life[0], undisturbed)


def test_a_report_for_which_there_is_no_room_leaves_the_earlier_one(life: tuple[Project, dict[str, Outcome]]) -> None:
    project, _ = life
    analysis, page = project.notebook.with_name("analysis.ipynb"), project.folder / "report" / "smoke" / "report.html"
    page.parent.mkdir(parents=True)
    page.write_text("the earlier one")
    project.faults.fill(runner=20_000)
    output, _ = (process := project.start("report", "smoke", "--to", "html")).communicate(timeout=300)
    assert process.returncode == 2 and "File too large" in output and "unchanged" in output, output
    assert page.read_text() == "the earlier one" and not analysis.exists()
    project.faults.fill()
    output, _ = (process := project.start("report", "smoke", "--to", "html")).communicate(timeout=300)
    assert process.returncode == 0 and "BaseFP32" in page.read_text() and analysis.exists(), output


def without_override() -> None:
    """In a child that is root: permissions bind it like anybody else (Linux: PR_CAPBSET_DROP of CAP_DAC_OVERRIDE)."""
    if os.geteuid() == 0:
        ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        (COMMAND, "."),
        (COMMAND, "executed/smoke/BaseFP32-s0"),
        (COMMAND, "executed/smoke/BaseFP32-s0/checkpoints"),
        (("report", "smoke", "--to", "html"), "report"),
        (("report", "smoke", "--to", "html"), "report/smoke"),
        (("report", "smoke", "--to", "html"), "executed/smoke"),
    ],
)
def test_a_read_only_folder_is_refused_before_anything_starts(project: Path, arguments: tuple[str, ...], place: str) -> None:
    for folder in ("executed/smoke/BaseFP32-s0/checkpoints", place):
        if place != ".":
            (project / folder).mkdir(parents=True, exist_ok=True)
    if arguments[0] == "report":
        (project / "executed/smoke/BaseFP32-s0.ipynb").write_text("{}")
    before = sorted(project.rglob("*"))
    (project / place).chmod(0o555)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "vitfp8", *arguments], capture_output=True, text=True, timeout=300, preexec_fn=without_override
        )
    finally:
        (project / place).chmod(0o755)
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and "check its permissions" in done.stderr
    assert str((project / place).resolve()) in done.stderr
    assert sorted(project.rglob("*")) == before


def kernels(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The kernels of a command."""
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "ipykernel_launcher" in " ".join(child.cmdline())]


@pytest.fixture(scope="module")
def jumped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, dict[str, Outcome], float]:
    """One run whose clock is set back by twelve hours before its kernel is killed, and forwards by nine when it continues."""
    folder = tmp_path_factory.mktemp("clock")
    project = Project(folder / "project", Faults(folder / "shim", clock=True))
    outcomes, begin = {}, time.monotonic()
    project.faults.set_clock(6)
    process = project.start()
    project.wait_for_epochs(process, 3)
    project.faults.set_clock(-6)
    project.wait_for_epochs(process, 2)
    assert read_record(project.notebook).status == "running", "the lock says so, whatever the clock says"
    kernels(process)[0].kill()
    outcomes["killed"] = project.outcome(process)
    process = project.start()
    project.wait_for_epochs(process, 2)
    project.faults.set_clock(3)
    outcomes["continued"] = project.outcome(process)
    return project, outcomes, time.monotonic() - begin


def test_what_failed_after_the_clock_was_set_back_has_failed(jumped: tuple[Project, dict[str, Outcome], float]) -> None:
    project, outcomes, _ = jumped
    record, log = outcomes["killed"].record, project.notebook.with_name(f"{RUN.name}.log.jsonl")
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert events[0]["event"] == "failed" and events[0]["time"] < str(record.started), "the clock was really set back"
    assert outcomes["killed"].status == 1 and record.status == "failed" and "kernel died" in str(record.reason)


def test_durations_are_those_of_clocks_that_do_not_jump(jumped: tuple[Project, dict[str, Outcome], float]) -> None:
    _, outcomes, elapsed = jumped
    record = outcomes["continued"].record
    assert outcomes["continued"].status == 0 and record.status == "completed"
    assert record.finished is not None and record.started is not None
    times = [row.epoch_seconds or 0.0 for row in record.history]
    assert all(0 < seconds < elapsed for seconds in times) and 0 < (record.metrics.train_seconds or 0) < elapsed
    assert 0 < record.hardware.summary["seconds"] < elapsed
    assert all(0 <= at < elapsed for at in record.hardware.samples["seconds"])


def test_a_clock_that_jumps_changes_no_bit(
    jumped: tuple[Project, dict[str, Outcome], float], undisturbed: tuple[RunRecord, dict[str, torch.Tensor]]
) -> None:
    assert_identical(jumped[0], undisturbed)


def test_the_record_before_is_kept_when_the_clock_gives_a_name_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datetime import datetime

    from vitfp8.run import superseded

    class Standing(datetime):
        @classmethod
        def now(cls, tz: object = None) -> Standing:
            return cls(2026, 1, 1)

    monkeypatch.setattr(superseded, "datetime", Standing)
    output = tmp_path / "BaseFP32-s0.ipynb"
    for text in ("first", "second", "third"):
        output.write_text(text)
        output.with_suffix("").mkdir(exist_ok=True)
        (output.with_suffix("") / "journal.jsonl").write_text(text)
        superseded.move_aside(output)
    aside = tmp_path / "superseded"
    assert sorted(path.read_text() for path in aside.glob("*.ipynb")) == ["first", "second", "third"]
    assert sorted(path.read_text() for path in aside.glob("*/journal.jsonl")) == ["first", "second", "third"]
