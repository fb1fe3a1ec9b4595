"""Checkpoints: the newest and the one before, what is damaged, and the exact continuation from either."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vitfp8.checkpoint
import vitfp8.trainer
from vitfp8.checkpoint import CheckpointError, first_sound, load_checkpoint, save_checkpoint
from vitfp8.experiment import PreparedRun, prepare_experiment
from vitfp8.files import file_digest
from vitfp8.params import RunParams
from vitfp8.record import RunJournal, RunRecord

Make = Callable[..., RunParams]


@pytest.fixture
def prepared(smoke_params: Make, tmp_path: Path) -> Callable[..., PreparedRun]:
    """An experiment of seconds, with overrides."""

    def make(experiment: str = "BaseFP32", folder: str = "run", **overrides: object) -> PreparedRun:
        return prepare_experiment(smoke_params(experiment, run_folder=str(tmp_path / folder), **overrides))

    return make


def run(experiment: PreparedRun) -> RunRecord:
    """Train to the end and return the record."""
    with RunJournal(experiment.folder, experiment.record(), show=False) as journal:
        return experiment.run(journal)


class DeathError(BaseException):
    """Stands for kill -9 where a test needs the exact moment: nothing catches it."""


def die_after(experiment: PreparedRun, steps: int) -> None:
    """Train, and die in mid-epoch after so many steps: no checkpoint is written then."""
    step, count = experiment.trainer.train_step, 0

    def counted(*batch: torch.Tensor) -> None:
        nonlocal count
        step(*batch)
        count += 1
        if count == steps:
            raise DeathError

    experiment.trainer.train_step = counted  # type: ignore[method-assign]
    with pytest.raises(DeathError):
        run(experiment)


def truncate(path: Path) -> None:
    """Cut the last bytes off."""
    path.write_bytes(path.read_bytes()[:-100])


def alter(path: Path) -> None:
    """Turn one byte in the middle over."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def poison(path: Path) -> None:
    """Put a pickle that would run a command in its place, with a right digest."""

    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.system, (f"touch {path.parent / 'pwned'}",)

    torch.save({"version": 1, "evil": Evil()}, path)
    note = path.with_name(path.name + ".sha256")
    note.write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")


def forget_the_digest(path: Path) -> None:
    """Remove the digest."""
    path.with_name(path.name + ".sha256").unlink()


DAMAGES = [truncate, alter, poison, forget_the_digest]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(
    prepared: Callable[..., PreparedRun], damage: Callable[[Path], None]
) -> None:
    straight = run(prepared(folder="straight", epochs=3))
    died = prepared(epochs=3)
    die_after(died, 2 * len(died.trainer.batches) + 3)
    damage(died.folder / "checkpoints" / "last.pt")
    with pytest.warns(UserWarning, match=r"last\.pt.*continued from previous\.pt, the one before"):
        continued = prepared(epochs=3)
    assert continued.trainer.epoch == 1
    record = run(continued)
    assert record.deterministic["digest"] == straight.deterministic["digest"]
    assert "last.pt" in record.notes[0]["text"], "the record says so as well"
    assert not (died.folder / "checkpoints" / "pwned").exists()


def test_with_both_damaged_nothing_is_trained_and_one_line_says_why(prepared: Callable[..., PreparedRun]) -> None:
    died = prepared(epochs=3)
    die_after(died, 2 * len(died.trainer.batches) + 3)
    for name in ("last", "previous"):
        truncate(died.folder / "checkpoints" / f"{name}.pt")
    with pytest.raises(CheckpointError, match=r"last\.pt.*previous\.pt.*move .* aside") as refusal:
        prepared(epochs=3)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("experiment", "overrides"),
    [
        ("BaseFP32", {}),
        ("BaseBF16", {}),
        ("AugmFP16", {}),
        ("BaseFP8", {}),
        ("AugmFP8", {"fp8_recipe": "delayed"}),
        ("BaseFP8", {"fp8_recipe": "mxfp8"}),
    ],
    ids=["fp32", "bf16", "fp16", "fp8", "fp8 delayed", "fp8 mx"],
)
def test_death_in_mid_epoch_continues_to_the_same_bits(
    prepared: Callable[..., PreparedRun], experiment: str, overrides: dict[str, object]
) -> None:
    straight = prepared(experiment, folder="straight", health_every=3, **overrides)
    expected = run(straight)
    # a checkpoint after every step: the state within an epoch, too, must be whole
    died = prepared(experiment, health_every=3, checkpoint_minutes=1e-9, **overrides)
    die_after(died, len(died.trainer.batches) + 5)
    continued = prepared(experiment, health_every=3, checkpoint_minutes=1e-9, **overrides)
    assert (continued.trainer.epoch, continued.trainer.step_in_epoch) == (1, 4)
    record = run(continued)
    assert record.deterministic["digest"] == expected.deterministic["digest"]
    assert record.predictions == expected.predictions and record.health == expected.health
    for name, tensor in straight.model.state_dict().items():
        assert torch.equal(tensor, continued.model.state_dict()[name]), name


def test_every_random_generator_continues(prepared: Callable[..., PreparedRun]) -> None:
    experiment = prepared()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    experiment.trainer.save_checkpoint()
    expected = (random.random(), np.random.random(), torch.rand(1).item())
    random.seed(6), np.random.seed(6), torch.manual_seed(6)
    assert prepared().trainer.resume() == []
    assert (random.random(), np.random.random(), torch.rand(1).item()) == expected


def test_measured_time_of_all_attempts_is_in_the_record(prepared: Callable[..., PreparedRun]) -> None:
    died = prepared(epochs=2, checkpoint_minutes=1e-9)
    die_after(died, len(died.trainer.batches) + 5)
    before = load_checkpoint(died.folder / "checkpoints" / "last.pt")
    continued = prepared(epochs=2)
    record = run(continued)
    assert record.hardware.summary["seconds"] > before["companion"]["monitor"]["seconds"] > 0
    assert record.history[1].train_seconds > before["sums"]["seconds"] > 0
    assert record.history[1].epoch_seconds >= record.history[1].train_seconds


@pytest.mark.parametrize("moment", range(1, 14))
def test_whenever_a_save_is_cut_short_one_of_the_two_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    last, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    for number in (1, 2):
        save_checkpoint({"number": number}, last, before=previous)
    calls = 0

    def cut(original: Any) -> Any:
        def changed(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == moment:
                raise DeathError
            return original(*arguments, **options)

        return changed

    for kind in ("open", "replace"):
        monkeypatch.setattr(Path, kind, cut(getattr(Path, kind)))
    monkeypatch.setattr(os, "fsync", cut(os.fsync))
    with pytest.raises(DeathError):
        save_checkpoint({"number": 3}, last, before=previous)
    monkeypatch.undo()
    found = first_sound([last, previous])
    assert found is not None and found[0]["number"] in (2, 3)


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], bool]:
    """Whether a file was flushed to disk as it is; a power cut loses the content of others."""
    flushed: set[tuple[int, int]] = set()
    original = os.fsync

    def identity(status: os.stat_result) -> tuple[int, int]:
        return status.st_ino, status.st_mtime_ns  # an inode alone may be that of a file that is gone

    def recorded(handle: int) -> None:
        original(handle)
        flushed.add(identity(os.fstat(handle)))

    monkeypatch.setattr(os, "fsync", recorded)
    return lambda path: identity(path.stat()) in flushed


def test_after_a_power_cut_a_training_of_short_epochs_continues_from_a_flushed_checkpoint_to_the_same_bits(
    prepared: Callable[..., PreparedRun], on_disk: Callable[[Path], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vitfp8.trainer, "FLUSH_SECONDS", 3600.0)
    straight = run(prepared(folder="straight", epochs=4))
    died = prepared(epochs=4)
    die_after(died, 3 * len(died.trainer.batches) + 3)
    lost = [path for path in (died.folder / "checkpoints").iterdir() if not on_disk(path)]
    assert {path.name for path in lost} >= {"last.pt", "last.pt.sha256"}, "the epochs are short: not each one is flushed"
    for path in lost:
        path.write_bytes(b"")
    with pytest.warns(UserWarning, match=r"continued from previous\.pt"):
        continued = prepared(epochs=4)
    assert continued.trainer.epoch == 1, "the epochs since the last flush are lost"
    assert run(continued).deterministic["digest"] == straight.deterministic["digest"]
    for path in (died.folder / "checkpoints").iterdir():
        assert on_disk(path), f"{path.name}: flushed at the end"


def test_epochs_that_take_long_are_flushed_one_by_one(
    prepared: Callable[..., PreparedRun], on_disk: Callable[[Path], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vitfp8.trainer, "FLUSH_SECONDS", 0.0)
    died = prepared(epochs=3)
    die_after(died, 2 * len(died.trainer.batches) + 3)
    for path in (died.folder / "checkpoints").iterdir():
        assert on_disk(path), path.name


def test_a_file_system_without_links_keeps_the_one_before_by_copying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_arguments: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(vitfp8.checkpoint.os, "link", no_links)
    last, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    for number in (1, 2, 3):
        save_checkpoint({"number": number}, last, before=previous)
    assert (load_checkpoint(last)["number"], load_checkpoint(previous)["number"]) == (3, 2)
    assert [path.with_name(path.name + ".sha256").read_text().split()[1] for path in (last, previous)] == [
        "last.pt",
        "previous.pt",
    ]


def test_a_run_that_died_in_its_test_names_the_checkpoint_that_is_there(prepared: Callable[..., PreparedRun]) -> None:
    prepared(epochs=2).trainer.train()
    experiment = prepared(epochs=2)
    record, folder = run(experiment), experiment.folder / "checkpoints"
    assert record.status == "completed"
    assert record.checkpoints == {name: file_digest(folder / f"{name}.pt") for name in ("best", "last")}


def test_by_default_best_last_and_the_one_before_are_kept(prepared: Callable[..., PreparedRun]) -> None:
    experiment = prepared(epochs=3, checkpoint_every=None)
    run(experiment)
    names = {path.name for path in (experiment.folder / "checkpoints").glob("*.pt")}
    assert names == {"best.pt", "last.pt", "previous.pt"}


def test_retention_keeps_every_nth_epoch_where_it_is_asked_for(prepared: Callable[..., PreparedRun]) -> None:
    experiment = prepared(epochs=4, checkpoint_every=2)
    run(experiment)
    names = {path.stem for path in (experiment.folder / "checkpoints").glob("epoch_*.pt")}
    assert names == {"epoch_2", "epoch_4"}


def test_best_weights_of_another_moment_never_decide_a_test_accuracy(prepared: Callable[..., PreparedRun]) -> None:
    experiment = prepared(epochs=3)
    experiment.trainer.train_epoch()
    experiment.trainer._close_epoch()
    best = experiment.folder / "checkpoints" / "best.pt"
    save_checkpoint({"epoch": 9, "model": experiment.model.state_dict()}, best)
    with pytest.raises(CheckpointError, match="of another moment of this run"):
        experiment.trainer.load_weights("best")


def test_a_run_never_continues_on_another_data_set(prepared: Callable[..., PreparedRun]) -> None:
    experiment, again = prepared(epochs=2), prepared(epochs=2)
    run(experiment)
    object.__setattr__(again.data, "digest", "another")
    with pytest.raises(CheckpointError, match="was trained on another"):
        again.trainer.resume()
