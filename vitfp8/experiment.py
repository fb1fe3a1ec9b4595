"""From `RunParams` to a ready trainer: the one call that the notebook, a test and a benchmark share.

`prepare_experiment` sets seeds, threads and switches, loads the data, builds the model, gives it its precision and hands back an
`PreparedRun`, whose `run` trains, evaluates on the test set once, and writes every step into a journal.
"""

from __future__ import annotations

import math
import statistics
import sys
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer

from vitfp8.compilation import decide_compilation
from vitfp8.data import ImageData, check_dataset, count_classes, load_data
from vitfp8.determinism import device_facts, set_determinism
from vitfp8.epoch import Evaluation
from vitfp8.errors import InputError
from vitfp8.home import at_home
from vitfp8.memory import explain_out_of_memory, keep_freed_memory
from vitfp8.model import check_model, create_model, model_facts
from vitfp8.monitor import SystemMonitor
from vitfp8.params import Parameters, RunParams
from vitfp8.precision import PreparedPrecision, check_layers, choose_backend, prepare, resolve_device
from vitfp8.precision.capability import devices_passed_over
from vitfp8.record import (
    EpochRow,
    Hardware,
    Metrics,
    RunJournal,
    RunRecord,
    collect_provenance,
    digest_of,
    now,
    quartiles,
    record_from_journal,
    refuse_finished,
)
from vitfp8.trainer import Outcome, ViTTrainer


def who_multiplies(params: RunParams) -> tuple[str, str, str]:
    """Where a run would train, who would multiply there (``native`` or ``emulated``), and why.

    Raises:
        InputError: the machine has no such device, or the parameters demand a backend that it has not.
    """
    device = resolve_device(params.device)
    recipe, base = params.fp8_recipe, params.base_precision
    return device.type, *choose_backend(params.precision, device, params.backend, recipe=recipe, base=base)


def why_eager(runs: Sequence[RunParams]) -> str | None:
    """Why the runs of a study are not compiled although some of them could be; None where nothing hinders.

    Times are comparable only between runs that are all compiled or all eager, so one precision that is emulated decides for all.

    Args:
        runs: of the study; those that state `torch_compile` themselves are not asked.

    Raises:
        InputError: see `who_multiplies`.
    """
    for params in runs:
        if params.torch_compile == "auto":
            device, backend, _ = who_multiplies(params)
            if device == "cuda" and backend == "emulated":
                return f"{params.precision} of the same study is emulated here"
    return None


def check_experiment(params: RunParams) -> None:
    """Refuse what cannot run, before anything starts: model, device, precision, data. Allocates and writes nothing.

    Raises:
        InputError: one line with a way out.
    """
    device, backend, reason = who_multiplies(params)
    if params.powermetrics and not (sys.platform == "darwin" and device == "mps"):
        where = "on the processor" if sys.platform == "darwin" else "on no Mac"
        raise InputError(
            f"powermetrics: true: the run would train {where}, and powermetrics is asked for the power of a Mac's GPU only; "
            "set powermetrics: false"
        )
    decide_compilation(params, torch.device(device), backend, reason)
    model = check_model(params, count_classes(params.dataset, params.data_dir))
    check_layers(
        model,
        params.precision,
        device=torch.device(device),
        backend=params.backend,
        base_precision=params.base_precision,
    )
    check_dataset(
        dataset=params.dataset,
        data_dir=params.data_dir,
        download=params.download,
        validation_fraction=params.validation_fraction,
        batch_size=params.batch_size,
    )


@dataclass
class PreparedRun:
    """A run, ready to train.

    Attributes:
        params: every parameter.
        device: where it runs.
        data: the data set on the device.
        model: the model, its precision prepared.
        facts: of the model: parameters, FLOPs per image, sizes.
        precision: effective precision and loss scaling.
        determinism: what the record says of repeats.
        trainer: trains it.
        folder: run folder.
        provenance: code, versions, machine.
        passed_over: damaged checkpoints that were passed over when the run continued, one line each.
        went_on: ``epoch`` and ``step`` that were done when the run continued from a checkpoint; empty: it begins.
    """

    params: RunParams
    device: torch.device
    data: ImageData
    model: VisionTransformer
    facts: Mapping[str, Any]
    precision: PreparedPrecision
    determinism: dict[str, Any]
    trainer: ViTTrainer
    folder: Path
    provenance: dict[str, Any]
    passed_over: list[str] = field(default_factory=list)
    went_on: dict[str, int] = field(default_factory=dict)

    def machine(self) -> dict[str, Any]:
        """What a reader wants to know of the machine, in words and numbers."""
        keys = ("processor", "device", "threads", "instruction_set", "system", "python", "commit", "dirty")
        versions = {name: self.provenance["versions"].get(name) for name in ("torch", "timm", "papermill")}
        return {key: self.provenance.get(key) for key in keys} | versions

    def record(self, defaults_taken: Sequence[str] = ()) -> RunRecord:
        """The record as it is known before training."""
        params = self.params
        before = record_from_journal(self.folder) if self.went_on else None  # what it said of earlier interruptions stays said
        record = RunRecord.of(
            params,
            defaults_taken=list(defaults_taken),
            precision=self.precision.report,
            model=dict(self.facts),
            data=self.data.facts(),
            provenance=self.provenance,
            progress={"epoch": self.trainer.epoch, "epochs": params.epochs, "steps_per_epoch": len(self.trainer.batches)},
            history=self.trainer.history,
            deterministic=dict(self.determinism),
            continued=before.continued if before else [],
            notes=[*(before.notes if before else []), *({"time": now(), "text": problem} for problem in self.passed_over)],
        )
        if self.went_on:
            record.continued = [*record.continued, {"time": now(), **self.went_on}]
        return record

    def run(self, journal: RunJournal, on_epoch: Callable[[list[dict[str, Any]]], None] | None = None) -> RunRecord:
        """Train, evaluate, and write everything into the journal.

        Args:
            journal: entered; holds the record.
            on_epoch: called after each epoch with the history so far, one row per epoch.

        Returns:
            The record as it stands at the end.
        """
        monitor = SystemMonitor(
            interval=self.params.monitor_interval,
            gpu=self.device.type != "cpu",  # an idle GPU's energy is not the training's
            powermetrics=self.params.powermetrics,
        )

        def epoch_done(row: dict[str, Any]) -> None:
            progress = {
                "epoch": row["epoch"],
                "epochs": self.params.epochs,
                "step": row["epoch"] * len(self.trainer.batches),
                "steps_per_epoch": len(self.trainer.batches),
            }
            journal.record.checkpoints = self.trainer.checkpoints
            journal.epoch(EpochRow.model_validate(row), progress)
            if on_epoch is not None:
                on_epoch(self.trainer.history)

        monitor.start(self.trainer.companion_loaded.get("monitor"))
        self.trainer.companion_state = lambda: {"monitor": monitor.state()}
        try:
            outcome = self.trainer.train(epoch_done)
            with explain_out_of_memory(self.params, self.device):
                tests = self._test() if outcome.status == "completed" else {}
        finally:
            summary, samples = monitor.stop()
            journal.record.hardware = Hardware(summary=summary, samples=samples)
        self._finish(journal, outcome, tests)
        return journal.record

    def _test(self) -> dict[str, Evaluation]:
        """Read the test set, once: with the last weights, then with those of the best validation epoch."""
        tests = {"last": self.trainer.validate("test")}
        last = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.trainer.load_weights("best")
        tests["best"] = self.trainer.validate("test")
        self.model.load_state_dict(last)
        return tests

    def _finish(self, journal: RunJournal, outcome: Outcome, tests: Mapping[str, Evaluation]) -> None:
        """Write the final figures, the status and the digest of the deterministic part."""
        record = journal.record.model_copy()  # the journal's own changes when the end is on disk
        metrics = summarize(self.trainer.history, best_epoch=self.trainer.best_epoch, best_val_acc=self.trainer.best_val_acc)
        if tests:
            metrics.test_acc, metrics.test_loss = tests["last"].accuracy, tests["last"].loss
            metrics.best_test_acc, metrics.best_test_loss = tests["best"].accuracy, tests["best"].loss
            record.predictions = {name: test.predictions for name, test in tests.items()} | {"labels": tests["last"].labels}
        metrics.skipped_steps = self.precision.skipped_steps()
        metrics.compile_seconds = self.trainer.compile_seconds
        record.metrics, record.status, record.reason = metrics, outcome.status, outcome.reason  # type: ignore[assignment]
        deterministic = {**self.determinism, "digest": digest_of(record.deterministic_part())}
        journal.update(
            status=outcome.status,
            reason=outcome.reason,
            metrics=metrics,
            predictions=record.predictions,
            hardware=record.hardware,
            health=self.trainer.health_report(),
            checkpoints=self.trainer.checkpoints,
            deterministic=deterministic,
            finished=now(),
        )


def summarize(history: Sequence[Mapping[str, Any]], *, best_epoch: int, best_val_acc: float) -> Metrics:
    """Final figures of a history; throughput and epoch times leave the first, slower epoch out where there are more."""
    if not history:
        return Metrics(epochs=0)
    last = history[-1]
    steady = list(history[1:]) or list(history)
    epoch_seconds = [row["epoch_seconds"] for row in steady]
    low, middle, high = quartiles(epoch_seconds)
    clean, val = last["clean_train_acc"], last["val_acc"]
    return Metrics(
        epochs=last["epoch"],
        best_epoch=best_epoch,
        best_val_acc=best_val_acc,
        final_train_acc=clean,
        final_val_acc=val,
        generalization_gap=clean - val,
        final_train_loss=last["clean_train_loss"],
        final_val_loss=last["val_loss"],
        train_seconds=math.fsum(row["epoch_seconds"] for row in history),
        epoch_seconds_mean=statistics.fmean(epoch_seconds),
        epoch_seconds_sd=statistics.stdev(epoch_seconds) if len(epoch_seconds) > 1 else None,
        epoch_seconds_median=middle,
        epoch_seconds_q1=low,
        epoch_seconds_q3=high,
        images_per_second=statistics.median(row["images_per_second"] for row in steady),
    )


def run_folder_of(params: Parameters) -> Path:
    """The run folder that the parameters name; a fresh one below ``runs/`` where they name none, as without a runner.

    Raises:
        InputError: the run in it has ended.
    """
    given = getattr(params, "run_folder", None)
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = at_home(given or Path("runs") / f"{params.run_name}-{stamp}-{uuid.uuid4().hex[:6]}")
    refuse_finished(folder)
    return folder


def data_of(params: RunParams, device: torch.device) -> ImageData:
    """The data set that the parameters name, on a device.

    Raises:
        InputError: see `vitfp8.data.load_data`.
    """
    return load_data(
        dataset=params.dataset,
        data_dir=params.data_dir,
        image_size=params.image_size,
        validation_fraction=params.validation_fraction,
        download=params.download,
        channels=params.in_channels,
        workers=params.workers,
        device=device,
    )


def prepare_experiment(params: RunParams) -> PreparedRun:
    """Everything from parameters to a ready trainer; continues from the run folder's checkpoint when there is one.

    Raises:
        InputError: one line with a way out: device, precision, data, model, checkpoint.
    """
    check_experiment(params)
    folder = run_folder_of(params)
    device = resolve_device(params.device)
    for reason in devices_passed_over(params.device):
        warnings.warn(reason, stacklevel=2)  # the notebook shows it
    with explain_out_of_memory(params, device):
        return _prepare(params, device, folder)


def _prepare(params: RunParams, device: torch.device, folder: Path) -> PreparedRun:
    """`prepare_experiment`, of parameters that can be run."""
    keep_freed_memory()
    determinism = set_determinism(params, device)
    data = data_of(params, device)
    torch.manual_seed(params.seed)  # whatever drew numbers while loading: the weights follow the seed alone
    model = create_model(params, data.classes).to(device)
    facts = model_facts(model, params.model)
    precision = prepare(
        model,
        params.precision,
        device=device,
        backend=params.backend,
        loss_scale=params.loss_scale,
        loss_scale_interval=params.loss_scale_interval,
        fp8_recipe=params.fp8_recipe,
        base_precision=params.base_precision,
        health_every=params.health_every,
        rows=(params.micro_batch_size or params.batch_size) * facts["tokens"],
    )
    compilation = decide_compilation(params, device, precision.report["backend"], precision.report["reason"])
    precision.report |= compilation.report()
    trainer = ViTTrainer(params, data, model, precision, device=device, folder=folder, compilation=compilation)
    passed_over = trainer.resume()
    for problem in passed_over:
        warnings.warn(problem, stacklevel=2)  # the notebook shows it, the record keeps it
    provenance = collect_provenance() | device_facts(device) | {"run_id": uuid.uuid4().hex}
    return PreparedRun(
        params=params,
        device=device,
        data=data,
        model=model,
        facts=facts,
        precision=precision,
        determinism=determinism,
        trainer=trainer,
        folder=folder,
        provenance=provenance,
        passed_over=passed_over,
        went_on={"epoch": trainer.epoch, "step": trainer.step_in_epoch} if trainer.epoch or trainer.step_in_epoch else {},
    )
