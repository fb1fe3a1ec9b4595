"""The trainer and the experiment: schedule, means, accumulation, divergence, interruption, repeatability."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vitfp8 import trainer as trainer_module
from vitfp8.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from vitfp8.errors import InputError
from vitfp8.experiment import PreparedRun, check_experiment, prepare_experiment, summarize
from vitfp8.files import file_digest
from vitfp8.params import RunParams
from vitfp8.precision.capability import compiler_for
from vitfp8.record import RunJournal, RunRecord
from vitfp8.trainer import learning_rate_at

Make = Callable[..., RunParams]


def run(experiment: PreparedRun) -> RunRecord:
    """Train to the end and return the record."""
    with RunJournal(experiment.folder, experiment.record(), show=False) as journal:
        return experiment.run(journal)


def test_learning_rate_warms_up_linearly_and_reaches_zero_at_the_planned_end() -> None:
    rates = [learning_rate_at(step, steps=100, peak=1.0, warmup_fraction=0.1) for step in range(101)]
    assert rates[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert rates[10] == 1.0 and rates[55] == pytest.approx(0.5) and rates[100] == pytest.approx(0.0, abs=1e-12)
    assert all(a >= b for a, b in zip(rates[9:], rates[10:], strict=False))
    assert learning_rate_at(0, steps=10, peak=2.0, warmup_fraction=0.0) == 2.0
    assert learning_rate_at(9, steps=10, peak=2.0, warmup_fraction=1.0) == 2.0


def test_losses_and_accuracies_are_means_over_images_not_over_batches(prepared: Callable[..., PreparedRun]) -> None:
    experiment = prepared(batch_size=50)
    one = experiment.trainer.validate("validation")
    experiment.trainer.params = experiment.params.model_copy(update={"batch_size": 7})
    other = experiment.trainer.validate("validation")
    assert one.predictions == other.predictions and one.loss == pytest.approx(other.loss, rel=1e-6)
    assert one.accuracy == sum(p == t for p, t in zip(one.predictions, one.labels, strict=True)) / len(one.labels)
    assert len(one.labels) == experiment.data.sizes["validation"]


def test_a_repeat_with_the_same_seed_gives_the_same_bits_and_another_seed_does_not(
    prepared: Callable[..., PreparedRun],
) -> None:
    records = [run(prepared(folder=str(n), seed=seed)) for n, seed in enumerate((0, 0, 1))]
    assert records[0].deterministic["promised"] is True
    assert records[0].deterministic["digest"] == records[1].deterministic["digest"]
    assert records[0].deterministic["digest"] != records[2].deterministic["digest"]
    weights = [load_checkpoint(Path(str(r.run_folder)) / "checkpoints" / "last.pt")["model"] for r in records]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_record_of_a_completed_run_has_everything_that_is_promised(prepared: Callable[..., PreparedRun]) -> None:
    record = run(prepared("AugmFP16", checkpoint_every=1))
    assert record.status == "completed" and record.reason is None
    metrics = record.metrics
    assert metrics.epochs == 2 and metrics.test_acc is not None and metrics.best_test_acc is not None
    assert metrics.generalization_gap == pytest.approx(metrics.final_train_acc - metrics.final_val_acc)  # type: ignore[operator]
    labels, last = record.predictions["labels"], record.predictions["last"]
    assert metrics.test_acc == sum(a == b for a, b in zip(labels, last, strict=True)) / len(labels)
    assert record.precision is not None and record.precision.requested == "fp16"
    assert record.precision.loss_scaling == "dynamic" and record.history[-1].loss_scale == 65536.0
    assert record.data["digest"] and record.provenance["code_digest"] and record.provenance["threads"] == 1
    assert set(record.checkpoints) >= {"last", "best", "epoch_1", "epoch_2"}
    assert record.hardware.summary and record.deterministic["digest"] and record.finished


def test_micro_batches_accumulate_the_gradient_of_the_whole_batch(prepared: Callable[..., PreparedRun]) -> None:
    whole, parts = prepared(folder="a"), prepared(folder="b", micro_batch_size=16)
    gradients = []
    for experiment in (whole, parts):
        trainer = experiment.trainer
        images, labels, _ = next(iter(trainer.batches.epoch(0)))
        seen: dict[str, torch.Tensor] = {}
        step = trainer.precision.step

        def look(*arguments: Any, step: Any = step, seen: Any = seen, model: Any = trainer.model, **options: Any) -> Any:
            seen.update({name: p.grad.clone() for name, p in model.named_parameters()})
            return step(*arguments, **options)

        trainer.precision.step = look  # type: ignore[method-assign]
        trainer.train_step(images, labels)
        gradients.append(seen)
        assert float(trainer.sums.losses[0]) / len(images) == pytest.approx(2.3, abs=0.6)
    assert gradients[0].keys() == gradients[1].keys() == dict(whole.trainer.model.named_parameters()).keys()
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-6), name


def test_a_loss_that_is_not_finite_is_divergence_with_its_step(prepared: Callable[..., PreparedRun]) -> None:
    record = run(prepared(learning_rate=100.0, weight_decay=100.0, gradient_clip=None, epochs=40))
    assert record.status == "diverged" and "step" in str(record.reason) and "not finite" in str(record.reason)
    assert record.metrics.test_acc is None, "the test set is not read for a run that diverged"


def test_a_loss_scale_that_collapses_is_divergence(prepared: Callable[..., PreparedRun]) -> None:
    experiment = prepared("BaseFP16", loss_scale=4.0)
    weight = experiment.model.head.weight
    weight.register_hook(lambda gradient: gradient * float("inf"))
    record = run(experiment)
    assert record.status == "diverged" and "loss scale" in str(record.reason)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_a_checkpoint_and_the_run_continues_to_the_same_bits(
    prepared: Callable[..., PreparedRun], number: signal.Signals
) -> None:
    straight = run(prepared("BaseFP16", folder="straight"))
    experiment = prepared("BaseFP16", folder="stopped")
    step, count = experiment.trainer.train_step, 0

    def stop_in_the_second_epoch(*batch: torch.Tensor) -> None:
        nonlocal count
        step(*batch)
        count += 1
        if count == len(experiment.trainer.batches) + 5:
            os.kill(os.getpid(), number)

    experiment.trainer.train_step = stop_in_the_second_epoch  # type: ignore[method-assign]
    handler = signal.getsignal(number)
    stopped = run(experiment)
    assert signal.getsignal(number) == handler, "the handlers are restored"
    assert stopped.status == "interrupted" and number.name in str(stopped.reason) and len(stopped.history) == 1
    continued = prepared("BaseFP16", folder="stopped")
    assert (continued.trainer.epoch, continued.trainer.step_in_epoch) == (1, 5)
    assert run(continued).deterministic["digest"] == straight.deterministic["digest"]


def test_a_checkpoint_of_other_parameters_is_refused(prepared: Callable[..., PreparedRun]) -> None:
    (Path(str(run(prepared()).run_folder)) / "journal.jsonl").unlink()  # a run that has ended is refused as such
    with pytest.raises(CheckpointError, match="other parameters"):
        prepared(epochs=3)


def test_checkpoints_are_atomic_checked_and_execute_nothing(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    digest = save_checkpoint({"model": {"w": torch.ones(3)}}, path)
    assert load_checkpoint(path)["model"]["w"].tolist() == [1, 1, 1] and len(digest) == 64
    assert {p.name for p in tmp_path.iterdir()} == {"last.pt", "last.pt.sha256"}, "nothing is left aside"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(CheckpointError, match="digest differs"):
        load_checkpoint(path)

    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'pwned'}",)

    torch.save({"version": 1, "evil": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="digest, is missing"):
        load_checkpoint(tmp_path / "evil.pt")
    (tmp_path / "evil.pt.sha256").write_text(file_digest(tmp_path / "evil.pt"))
    with pytest.raises(CheckpointError, match="cannot be read safely"):
        load_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "pwned").exists()
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "none.pt")


def test_out_of_memory_is_one_line_that_names_the_size_to_try(prepared: Callable[..., PreparedRun]) -> None:
    experiment = prepared()

    def explode(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    experiment.trainer.train_step = explode  # type: ignore[method-assign]
    with pytest.raises(InputError, match="out of memory; try micro_batch_size: 32"):
        experiment.trainer.train()


def test_what_the_machine_lacks_is_refused_before_anything_is_loaded(smoke_params: Make) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="device: 'cuda'.*take device: auto"):
            check_experiment(smoke_params(device="cuda"))
    with pytest.raises(InputError, match="backend: 'native'"):
        check_experiment(smoke_params(precision="tf32", backend="native"))
    with pytest.raises(InputError, match="batch_size"):
        prepare_experiment(smoke_params(batch_size=100_000))


def test_figures_of_a_history_leave_the_first_epoch_out_of_times() -> None:
    row = {"clean_train_acc": 0.9, "val_acc": 0.8, "clean_train_loss": 1.0, "val_loss": 1.5}
    history = [{**row, "epoch": n, "epoch_seconds": s, "images_per_second": 100 / s} for n, s in ((1, 50.0), (2, 2.0), (3, 4.0))]
    metrics = summarize(history, best_epoch=2, best_val_acc=0.8)
    assert (metrics.train_seconds, metrics.epoch_seconds_mean) == (56.0, 3.0)
    assert metrics.epoch_seconds_sd == pytest.approx(math.sqrt(2))
    assert metrics.generalization_gap == pytest.approx(0.1)


def test_the_loop_looks_at_losses_rarely_where_looking_makes_the_processor_wait(
    prepared: Callable[..., PreparedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module, "_STEPS_BETWEEN_LOOKS", 10)
    experiment = prepared()
    looks: list[int] = []
    experiment.trainer._look_at_losses = looks.append  # type: ignore[method-assign]
    experiment.trainer.device = torch.device("meta")  # any device that is not the processor
    experiment.trainer.train_epoch()
    steps = len(experiment.trainer.batches)
    assert looks == list(range(0, steps, 10))


@pytest.mark.skipif(not compiler_for("cpu")[0], reason="torch.compile does not find what it needs here")
def test_a_compiled_model_trains_resumes_and_keeps_its_names(prepared: Callable[..., PreparedRun]) -> None:
    eager, compiled = run(prepared(epochs=2)), prepared(folder="compiled", epochs=2, torch_compile=True)
    record = run(compiled)
    assert (
        record.metrics.compile_seconds is not None
        and record.metrics.compile_seconds > 0
        and eager.metrics.compile_seconds is None
    )
    assert record.parameters_digest != eager.parameters_digest
    assert record.history[-1].train_loss == pytest.approx(eager.history[-1].train_loss, rel=1e-4)
    state = load_checkpoint(compiled.folder / "checkpoints" / "last.pt")["model"]
    assert state.keys() == prepared(folder="fresh").model.state_dict().keys()
    (compiled.folder / "journal.jsonl").unlink()  # a run that has ended is not run into again
    again = prepared(folder="compiled", epochs=2, torch_compile=True)
    assert again.trainer.epoch == 2 and again.trainer.validate("test").accuracy == record.metrics.test_acc


def test_identities_from_before_torch_compile_stay_as_they_were(smoke_params: Make) -> None:
    assert (
        "torch_compile" not in smoke_params().identity() and smoke_params(torch_compile=True).identity()["torch_compile"] is True
    )


@pytest.mark.parametrize(
    ("experiment", "overrides", "part"),
    [
        ("BaseFP16", {"backend": "emulated", "health_every": 0}, "the compiler removes the rounding"),
        ("BaseFP8", {"backend": "emulated", "health_every": 0}, "the compiler removes the rounding"),
    ],
)
def test_emulated_formats_are_never_compiled(smoke_params: Make, experiment: str, overrides: dict[str, Any], part: str) -> None:
    with pytest.raises(InputError, match=part):
        check_experiment(smoke_params(experiment, torch_compile=True, **overrides))


def test_compiling_without_a_compiler_is_refused(smoke_params: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(InputError, match="needs a C.. compiler"):
        check_experiment(smoke_params(torch_compile=True))
