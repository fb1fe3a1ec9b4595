"""What surrounds a command: streams that nobody reads, folders that are gone, locks, shared memory, processes that die."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from filelock import FileLock
from PIL import Image

from benchmarks import training_step
from tests.conftest import TOP
from vitfp8.data.datasets import FolderReader
from vitfp8.record import RUNNER_LOCK, RunJournal, RunRecord, load_records, read_record
from vitfp8.run import preflight
from vitfp8.run.estimates import PROCESS_BYTES, memory_bytes
from vitfp8.run.execute import _connection_folder
from vitfp8.run.progress import study_progress

# --------------------------------------------------------------------------------------------------------------- locks


def test_a_run_whose_kernel_starts_is_running_for_every_reader(tmp_path: Path) -> None:
    folder = tmp_path / "BaseFP32-s0"
    with RunJournal(folder, RunRecord(experiment="BaseFP32", seed=0), show=False):
        pass
    notebook = tmp_path / "BaseFP32-s0.ipynb"
    with FileLock(folder / RUNNER_LOCK):
        record = read_record(notebook)
        assert (record.status, record.reason) == ("running", None)
        assert [record.status for _, record in load_records(tmp_path)[0]] == ["running"]
        assert [run.status for run in study_progress(tmp_path).runs] == ["running"]
        assert read_record(notebook, lock_is_ours=True).status == "interrupted", "who asks holds it"
    assert read_record(notebook).status == "interrupted"


# ------------------------------------------------------------------------------------------------------------- streams


def shell(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A line of bash with `vitfp8` in it."""
    line = line.replace("vitfp8", f"{sys.executable} -m vitfp8")
    known = {**os.environ, "PYTHONPATH": str(TOP), **environment}
    return subprocess.run(["bash", "-c", line], cwd=folder, env=known, capture_output=True, text=True, timeout=300)


needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")


@pytest.mark.parametrize(
    ("line", "status", "words"),
    [
        ("vitfp8 runs >&-", 0, ""),
        ("vitfp8 runs <&- >&- 2>&-", 0, ""),
        ("vitfp8 runs none 2>&-", 2, ""),
        pytest.param(
            "vitfp8 runs > /dev/full", 1, "vitfp8: not all output could be written (No space left on device)\n", marks=needs_full
        ),
        ("(sleep 0.1; vitfp8 --help; echo $? >&2) | true", 0, "0\n"),
    ],
)
def test_listings_say_one_line_or_nothing_whatever_is_closed(tmp_path: Path, line: str, status: int, words: str) -> None:
    done = shell(line, tmp_path)
    assert (done.returncode, done.stderr) == (status, words)


@needs_full
def test_a_batch_goes_on_when_its_log_is_full_and_no_temporary_folder_is_short(project: Path) -> None:
    long = project / ("scratch_of_the_job_" * 6)
    long.mkdir()
    done = shell("vitfp8 run BaseFP32 --preset smoke -p epochs 1 > /dev/full", project, TMPDIR=str(long), HOME="/proc/none")
    assert done.returncode == 0
    assert done.stderr == "vitfp8: not all output could be written (No space left on device)\n", "and no kernel's warning"
    assert read_record("executed/smoke/BaseFP32-s0.ipynb").status == "completed"
    assert list(long.glob("vitfp8-*")) == []


@pytest.mark.parametrize("command", ["runs", "watch", "check", "run --preset smoke", "verify"])
def test_a_removed_working_folder_is_one_line(tmp_path: Path, command: str) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    done = shell(f"rmdir {gone}; vitfp8 {command}", gone)
    assert done.returncode == 2 and done.stderr.startswith("vitfp8: the working folder has been removed")
    assert done.stderr.count("\n") == 1


# -------------------------------------------------------------------------------------------------------------- sockets


def test_sockets_lie_in_a_short_folder_else_the_kernel_is_reached_by_tcp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    folder, transport = _connection_folder(tmp_path)
    folder.rmdir()
    assert transport == "ipc" and folder.parent != long
    monkeypatch.setattr("vitfp8.run.execute._takes_sockets", lambda folder: False)
    folder, transport = _connection_folder(tmp_path)
    assert (transport, folder.parent) == ("tcp", long)


# -------------------------------------------------------------------------------------------------------- shared memory


def pictures(folder: Path) -> list[Path]:
    """64 pictures of 32 pixels."""
    for number in range(64):
        pixels = np.random.default_rng(number).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return sorted(folder.glob("*.png"))


def total(files: Sequence[Path], workers: int) -> int:
    """The sum of all pixels, read in two batches of 32 × 3 × 64²."""
    reader = FolderReader(files, 64, workers=workers, pin=False)
    return sum(int(images.sum()) for images in reader.read(torch.arange(64).split(32)))


@pytest.mark.skipif(
    shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0,
    reason="needs a file system of its own for /dev/shm",
)
def test_workers_with_little_shared_memory_give_the_same_images(tmp_path: Path) -> None:
    expected = total(pictures(tmp_path), 0)
    code = "import sys; from pathlib import Path; from tests.run.test_surroundings import total; "
    code += "print(total(sorted(Path(sys.argv[1]).glob('*.png')), 2))"
    mount = 'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec timeout 100 "$@"'
    command = ["unshare", "-m", "sh", "-c", mount, "sh", sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=TOP, capture_output=True, text=True)
    assert done.stdout == f"{expected}\n", done.stderr


def test_a_killed_worker_ends_the_reading_with_its_reason(tmp_path: Path) -> None:
    reader = FolderReader(pictures(tmp_path), 64, workers=2, pin=False)
    with pytest.raises(RuntimeError, match="killed by signal|ended or is stuck"):
        for number, _ in enumerate(reader.read(torch.arange(64).repeat(50).split(8))):
            if number == 2:
                for child in psutil.Process().children():
                    if "resource_tracker" not in " ".join(child.cmdline()):
                        child.send_signal(signal.SIGKILL)


def test_check_notes_small_shared_memory_and_counts_the_process(smoke_params, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    params = smoke_params(dataset="imagefolder", data_dir="pics", workers=4, image_size=224, patch_size=16, batch_size=128)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda place: argparse.Namespace(free=64 * 2**20))
    [note] = preflight._shared_memory([params])
    assert note.level == "note" and "--shm-size" in note.text
    assert preflight._shared_memory([smoke_params()]) == [], "digits have no workers"
    assert memory_bytes(smoke_params()) > PROCESS_BYTES > 500e6
    assert "of it the model's" in preflight._memory([smoke_params()]).text


# ---------------------------------------------------------------------------------------------------- make, benchmarks


@pytest.mark.parametrize("tracked", [True, False])
def test_make_clean_removes_only_what_can_be_made_again(tmp_path: Path, tracked: bool) -> None:
    shutil.copy(TOP / "Makefile", tmp_path)
    kept = ["runs/r/journal.jsonl", "executed/s/r.ipynb", "executed/s/r/last.pt", ".venv/lib/z.egg-info/a", "tests/t.py"]
    for name in [*kept, "report/a/figure.png", "report/a/tracked.html", "build/x", "v.egg-info/a", "vitfp8/__pycache__/a.pyc"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    (tmp_path / "benchmarks").mkdir()
    if tracked:
        subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
        subprocess.run(["git", "add", "report/a/tracked.html"], cwd=tmp_path, check=True)
        kept.append("report/a/tracked.html")
    subprocess.run(["make", "-s", "clean"], cwd=tmp_path, check=True)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file() and ".git" not in path.parts}
    assert left == {*kept, "Makefile"}


def test_a_benchmark_ends_when_a_process_of_it_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(training_step.ROWS, "bad", ("nonsense", "fp32", 1.0))
    options = argparse.Namespace(repeats=1, steps=1, threads=1, batch=4, clock="cpu")
    with pytest.raises(SystemExit, match="nonsense: its process failed"):
        training_step.compare("bad", "tiny", options)


def test_a_row_whose_package_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(training_step.importlib.util, "find_spec", lambda name: None)
    options = argparse.Namespace(rows=["fp8-torchao"], repeats=1, steps=1, threads=1, batch=4, clock="cpu")
    assert training_step.table("tiny", {"fp32": 1.0}, options) == {}
    assert "torchao is not installed" in capsys.readouterr().out
