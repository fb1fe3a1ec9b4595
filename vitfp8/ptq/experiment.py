"""From `QuantizeParams` to a record: every way to quantise on test images, then one layer at a time on validation images."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scipy.stats import binomtest
from torch import Tensor

from vitfp8.data import check_dataset
from vitfp8.determinism import device_facts
from vitfp8.experiment import run_folder_of
from vitfp8.files import file_digest
from vitfp8.home import from_home
from vitfp8.model import create_model
from vitfp8.monitor import SystemMonitor
from vitfp8.params.quantization import QuantizeParams
from vitfp8.precision import choose_backend, prepare, resolve_device
from vitfp8.precision.formats import sqnr
from vitfp8.precision.preparation import PRECISIONS
from vitfp8.ptq.safetensors import load_quantized, save_quantized
from vitfp8.ptq.schemes import QuantizedWeight, Scheme, block_layers, calibrate, quantized, schemes
from vitfp8.ptq.trained_model import Logits, TrainedModel, find_source, load_trained, source_parameters, verified_checkpoint
from vitfp8.record import (
    Hardware,
    QuantizationRow,
    RunJournal,
    RunRecord,
    SensitivityRow,
    collect_provenance,
    digest_of,
    now,
)

#: Called after each measurement with its row.
OnRow = Callable[[QuantizationRow | SensitivityRow], None]


def check_quantization(params: QuantizeParams, *, source_planned: bool = False) -> None:
    """Refuse what cannot run, before anything starts: device, source run, its weights, data. Writes nothing.

    Args:
        params: the parameters, `run_folder` set.

    Raises:
        InputError: one line with a way out.
    """
    device = resolve_device(params.device)
    if source_planned:
        return
    notebook, record = find_source(params)
    run = source_parameters(notebook, record, params)
    choose_backend(run.precision, device, run.backend)
    verified_checkpoint(notebook, record)
    fraction = run.validation_fraction
    check_dataset(dataset=run.dataset, data_dir=run.data_dir, download=run.download, validation_fraction=fraction)


def mcnemar(source: Tensor, other: Tensor) -> tuple[int, int, float]:
    """McNemar's exact test of two models on the same images (McNemar 1947; binomial, two-sided).

    Args:
        source: whether the one has each image right, bool [images].

    Returns:
        Images that only the one has right, images that only the other has right, and p: 1 where they never differ.
    """
    first, second = int((source & ~other).sum()), int((other & ~source).sum())
    p = 1.0 if first + second == 0 else float(binomtest(first, first + second, 0.5, alternative="two-sided").pvalue)
    return first, second, p


def _logit_figures(source: Logits, other: Logits) -> dict[str, Any]:
    """How far logits and predictions are from the source's."""
    a, b = source.values.double(), other.values.double()
    return {
        "changed_predictions": int((source.predictions != other.predictions).sum()) / len(source.labels),
        "logit_sqnr_db": float(sqnr(source.values, other.values)),
        "logit_cosine": float(torch.nn.functional.cosine_similarity(a, b, dim=1).mean()),
        "nonfinite_logits": int((~torch.isfinite(b)).sum()),
    }


@dataclass
class Quantization:
    """A quantisation, ready to run.

    Attributes:
        params: every parameter.
        source: the trained model.
        folder: run folder.
        provenance: code, versions, machine.
    """

    params: QuantizeParams
    source: TrainedModel
    folder: Path
    provenance: dict[str, Any]

    @property
    def layers(self) -> list[str]:
        """The layers that are quantised."""
        return list(block_layers(self.source.model))

    @property
    def schemes(self) -> list[Scheme]:
        """Every way to quantise, in order."""
        return schemes(self.params.formats, self.params.granularities, self.params.operands)

    @property
    def _sensitivity_schemes(self) -> list[Scheme]:
        """The ways in which one layer at a time is quantised."""
        p = self.params
        return schemes(p.formats, [p.sensitivity_granularity], [p.sensitivity_operands]) if p.sensitivity else []

    @property
    def measurements(self) -> int:
        """How many rows there will be."""
        return len(self.schemes) + len(self._sensitivity_schemes) * len(self.layers)

    def machine(self) -> dict[str, Any]:
        """What a reader wants to know of the machine, in words and numbers."""
        keys = ("processor", "device", "threads", "instruction_set", "system", "python", "commit", "dirty")
        versions = {name: self.provenance["versions"].get(name) for name in ("torch", "timm", "papermill")}
        return {key: self.provenance.get(key) for key in keys} | versions

    def source_facts(self) -> dict[str, Any]:
        """What the record says of the source run."""
        record, metrics = self.source.record, self.source.record.metrics
        return {
            "run": self.source.notebook.stem,
            "path": from_home(self.source.notebook).as_posix(),
            "experiment": record.experiment,
            "variant": record.variant,
            "seed": record.seed,
            "precision": record.precision.effective if record.precision else None,
            "backend": self.source.precision.report["backend"],
            "best_epoch": metrics.best_epoch,
            "recorded_test_acc": metrics.best_test_acc,
            "parameters_digest": record.first_rule_digest,
            "checkpoint_sha256": self.source.checkpoint_sha256,
            "checkpoint_bytes": self.source.checkpoint.stat().st_size,
        }

    def record(self, defaults_taken: Sequence[str] = ()) -> RunRecord:
        """The record as it is known before anything is measured."""
        return RunRecord.of(
            self.params,
            defaults_taken=list(defaults_taken),
            precision=self.source.precision.report,
            model=dict(self.source.facts) | {"quantized_layers": self.layers},
            data=self.source.data.facts(),
            provenance=self.provenance,
            progress={"epoch": 0, "epochs": self.measurements, "unit": "measurement"},
            deterministic=dict(self.source.determinism),
            source=self.source_facts(),
        )

    def run(self, journal: RunJournal, on_row: OnRow | None = None) -> RunRecord:
        """Measure the source, every way to quantise and every layer, and write everything into the journal.

        Args:
            journal: entered; holds the record.

        Returns:
            The record as it stands at the end.
        """
        monitor = SystemMonitor(interval=self.params.monitor_interval, gpu=self.source.device.type != "cpu")
        monitor.start()
        try:
            self._measure(journal, on_row or (lambda row: None))
        finally:
            summary, samples = monitor.stop()
            journal.record.hardware = Hardware(summary=summary, samples=samples)
        completed = journal.record.model_copy(update={"status": "completed"})  # the journal's own changes when it is on disk
        deterministic = {**self.source.determinism, "digest": digest_of(completed.deterministic_part())}
        journal.update(status="completed", hardware=completed.hardware, deterministic=deterministic, finished=now())
        return journal.record

    def _measure(self, journal: RunJournal, on_row: OnRow) -> None:
        """Source first, then the ways to quantise, then the layers; each row is written as it is known."""
        record = journal.record
        test, validation = self.source.logits("test"), self.source.logits("validation")
        journal.update(source=record.source | self._source_figures(test, validation), predictions={
            "labels": test.labels.tolist(), "source": test.predictions.tolist(),
        })  # fmt: skip
        amax: dict[str, Tensor] = calibrate(self.source.model, self.source.calibration_batches(self.params.calibration_images))
        exports: dict[tuple[str, str], dict[str, Any]] = {}

        def done(row: QuantizationRow | SensitivityRow) -> None:
            record.progress = {**record.progress, "epoch": record.progress["epoch"] + 1}
            if isinstance(row, QuantizationRow):
                journal.update(quantization=[*record.quantization, row], progress=record.progress)
            else:  # rows of layers are many and quick: written once for each format
                record.sensitivity = [*record.sensitivity, row]
            on_row(row)

        for scheme in self.schemes:
            done(self._row(scheme, amax, test, exports))
        for scheme in self._sensitivity_schemes:
            for layer in self.layers:
                done(self._sensitivity_row(scheme, layer, amax, validation))
            journal.update(sensitivity=record.sensitivity, progress=record.progress)

    def _source_figures(self, test: Logits, validation: Logits) -> dict[str, Any]:
        """What the source does here, beside what its record says."""
        recorded = self.source.record.predictions.get("best") or []
        same = [a == b for a, b in zip(recorded, test.predictions.tolist(), strict=False)]
        return {
            "test_acc": test.accuracy,
            "test_loss": test.loss,
            "val_acc": validation.accuracy,
            "val_loss": validation.loss,
            "recorded_predictions_repeated": sum(same) / len(same) if same else None,
        }

    def _row(
        self, scheme: Scheme, amax: dict[str, Tensor], source: Logits, exports: dict[tuple[str, str], dict[str, Any]]
    ) -> QuantizationRow:
        """One way to quantise, measured on the test images; exported once for each format and granularity."""
        with quantized(self.source.model, scheme, amax) as weights:
            logits = self.source.logits("test")
        only_source, only_quantized, p = mcnemar(source.correct, logits.correct)
        key = (scheme.format, scheme.granularity)
        if self.params.export and scheme.row.dtype is not None:
            if key not in exports:
                exports[key] = self._export(scheme, weights, amax)
            exports[key] = exports[key] | {"same_predictions": self._same_again(exports[key], scheme, logits)}
        source_bits = 8 * PRECISIONS[self.source.params.precision].dtype.itemsize
        return QuantizationRow(
            format=scheme.format,
            granularity=scheme.granularity,
            operands=scheme.operands,
            activation_scales=scheme.activation_scales,
            test_acc=logits.accuracy,
            test_loss=logits.loss,
            accuracy_difference=logits.accuracy - source.accuracy,
            loss_difference=logits.loss - source.loss,
            mcnemar_p=p,
            only_source_correct=only_source,
            only_quantized_correct=only_quantized,
            weight_bits=scheme.row.bits,
            weight_bytes=sum(weight.bytes(scheme.row.bits) for weight in weights.values()),
            source_weight_bytes=sum(weight.codes.numel() for weight in weights.values()) * source_bits // 8,
            export=exports.get(key),
            predictions=logits.predictions.tolist(),
            **_logit_figures(source, logits),
        )

    def _export(self, scheme: Scheme, weights: dict[str, QuantizedWeight], amax: dict[str, Tensor]) -> dict[str, Any]:
        """Write the exported model; what its row says of the file."""
        path = self.folder / "export" / f"{scheme.format}-{scheme.granularity}.safetensors"
        about = {"model": self.source.facts, "source": self.source_facts()}
        save_quantized(path, self.source.model, weights, scheme, amax, about)
        return {"file": path.relative_to(self.folder).as_posix(), "bytes": path.stat().st_size, "sha256": file_digest(path)}

    def _same_again(self, export: dict[str, Any], scheme: Scheme, logits: Logits) -> bool:
        """Whether the exported model, loaded into a fresh one, gives the same predictions."""
        source = self.source
        run = source.params.model_copy(update={"pretrained": False, "pretrained_file": None})
        fresh = create_model(run, source.data.classes).to(source.device)
        _, weights, amax = load_quantized(self.folder / export["file"], fresh)
        prepare(fresh, run.precision, device=source.device, backend=run.backend)
        fresh.eval()
        with quantized(fresh, scheme, amax, weights=weights):
            return bool(torch.equal(source.logits("test", fresh).predictions, logits.predictions))

    def _sensitivity_row(self, scheme: Scheme, layer: str, amax: dict[str, Tensor], source: Logits) -> SensitivityRow:
        """One layer quantised, measured on the validation images."""
        with quantized(self.source.model, scheme, amax, only=[layer]):
            logits = self.source.logits("validation")
        figures = _logit_figures(source, logits)
        return SensitivityRow(
            layer=layer,
            format=scheme.format,
            granularity=scheme.granularity,
            operands=scheme.operands,
            val_acc=logits.accuracy,
            val_loss=logits.loss,
            accuracy_difference=logits.accuracy - source.accuracy,
            loss_difference=logits.loss - source.loss,
            changed_predictions=figures["changed_predictions"],
            logit_sqnr_db=figures["logit_sqnr_db"],
        )


def prepare_quantization(params: QuantizeParams) -> Quantization:
    """Everything from parameters to a quantisation that is ready to run.

    Raises:
        InputError: one line with a way out: source run, weights, data, device.
    """
    folder = run_folder_of(params)
    source = load_trained(params)
    provenance = collect_provenance("quantization") | device_facts(source.device) | {"run_id": uuid.uuid4().hex}
    return Quantization(params=params, source=source, folder=folder, provenance=provenance)
