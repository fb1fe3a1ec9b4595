"""Records as runs leave them, and notebooks that hold them: real payloads, plausible numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from vitfp8.catalog import EXPERIMENTS
from vitfp8.record import RECORD_MIME, EpochRow, Hardware, Metrics, Precision, RunRecord

HOSTILE = r"<script>alert(1)</script> \input{/etc/passwd} _&%$#~^{} |*`"


def write_notebook(record: RunRecord, path: Path) -> Path:
    """An executed notebook that holds the record."""
    output = {"output_type": "display_data", "data": {RECORD_MIME: record.to_payload(), "text/plain": "record"}, "metadata": {}}
    cell = {
        "cell_type": "code", "execution_count": 1, "id": "record", "metadata": {}, "outputs": [output], "source": "",
    }  # fmt: skip
    notebook = {"cells": [cell], "metadata": {"vitfp8": {"kind": "run"}}, "nbformat": 4, "nbformat_minor": 5}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(notebook), encoding="utf-8")
    return path


def make_record(
    experiment: str = "BaseFP32", seed: int | None = 0, *, epochs: int = 12, gpu: bool = False, **changes: Any
) -> RunRecord:
    """A record of a completed run with plausible numbers; `changes` replace fields."""
    row = EXPERIMENTS.get(experiment)
    precision, augmentation = (row.precision, row.augmentation) if row else ("fp16", "basic")
    top = 0.98 if augmentation == "basic" else 0.97
    shift = 0.002 * ((seed or 0) % 7) + (0.001 if precision == "fp16" else 0.0)
    history = []
    for epoch in range(1, epochs + 1):
        val = top - shift - 0.85 * math.exp(-epoch / (2 if augmentation == "basic" else 3))
        train = min(1.0, val + 0.02 * epoch / epochs)
        history.append(
            EpochRow(
                epoch=epoch, train_loss=2.4 * math.exp(-epoch / 4) + 0.3, train_acc=train - 0.05,
                clean_train_loss=2.3 * math.exp(-epoch / 3) + 0.01, clean_train_acc=train,
                val_loss=2.3 * math.exp(-epoch / 3) + 0.08, val_acc=val, learning_rate=1e-3 * (1 - epoch / epochs),
                epoch_seconds=2.0 + 0.01 * epoch, train_seconds=1.8,
                images_per_second=640.0, grad_norm=1.0, loss_scale=65536.0 if precision == "fp16" else None,
                skipped_steps=0 if precision == "fp16" else None,
            )
        )  # fmt: skip
    last = history[-1]
    samples: dict[str, list[Any]] = {"seconds": [float(i) for i in range(20)], "cpu_percent": [90.0] * 20}
    summary: dict[str, Any] = {
        "cpu_percent_mean": 91.0, "cpu_percent_max": 100.0, "memory_percent_mean": 31.0, "memory_percent_max": 33.0,
        "process_rss_bytes_max": 7.1e8, "throttled": None, "energy_joules": None, "unavailable": {"gpu": "no NVIDIA driver"},
    }  # fmt: skip
    if gpu:
        samples |= {
            "gpu_power_watts": [None] + [200 + 20 * math.sin(i) for i in range(19)],
            "gpu_utilization_percent": [80 + i % 7 for i in range(20)],
        }
        summary |= {
            "gpu_utilization_percent_mean": 84.0, "gpu_utilization_percent_max": 99.0, "gpu_power_watts_mean": 205.0,
            "gpu_power_watts_max": 220.0, "energy_joules": 4200.0, "energy_source": "measured", "throttled": False,
        }  # fmt: skip
    parameters = {
        "experiment": experiment, "variant": "", "seed": seed, "dataset": "digits", "model": "vit_tiny_patch16_224",
        "image_size": 16,
        "epochs": epochs, "batch_size": 64, "learning_rate": 0.002, "precision": precision, "backend": "auto",
        "augmentation": augmentation, "weight_decay": 0.05 if augmentation == "basic" else 0.1, "device": "auto",
    }  # fmt: skip
    values: dict[str, Any] = {
        "experiment": experiment,
        "seed": seed,
        "status": "completed",
        "question": f"What does {experiment} show?",
        "expectation": "No difference beyond the spread between seeds.",
        "parameters": parameters,
        "precision": Precision(
            requested=precision, effective=precision, backend="emulated" if precision == "fp16" else "native",
            reason="this processor has no FP16 products" if precision == "fp16" else "the processor multiplies in FP32",
            product_dtype="float32", evaluation=precision,
        ),
        "model": {"name": "vit_tiny_patch16_224", "parameters": 104010},
        "data": {"name": "digits", "digest": "d1" * 32, "sizes": {"train": 1200, "validation": 133, "test": 360}},
        "provenance": {
            "commit": "0123456789abcdef" * 2 + "01234567", "dirty": False, "code_digest": "c0de" * 16, "device": "CPU",
            "processor": "Test processor", "run_id": f"{experiment}{seed}",
        },
        "started": "2026-01-01T00:00:00+00:00",
        "finished": "2026-01-01T00:01:00+00:00",
        "progress": {"epoch": epochs, "epochs": epochs},
        "metrics": Metrics(
            epochs=epochs, best_epoch=epochs, best_val_acc=last.val_acc, final_train_acc=last.clean_train_acc,
            final_val_acc=last.val_acc, generalization_gap=last.clean_train_acc - last.val_acc,
            final_train_loss=last.clean_train_loss, final_val_loss=last.val_loss, test_acc=last.val_acc - 0.01, test_loss=0.1,
            best_test_acc=last.val_acc - 0.008, best_test_loss=0.1, train_seconds=2.1 * epochs, epoch_seconds_mean=2.06,
            epoch_seconds_sd=0.03, images_per_second=640.0, skipped_steps=0,
        ),
        "hardware": Hardware(summary=summary, samples=samples),
        "history": history,
    }  # fmt: skip
    return RunRecord.model_validate(values | changes)


FOUR = ("BaseFP32", "AugmFP32", "BaseFP16", "AugmFP16")


def write_study(folder: Path, records: list[RunRecord]) -> Path:
    """A study's folder with a notebook a record."""
    folder.mkdir(parents=True, exist_ok=True)
    for record in records:
        write_notebook(record, folder / f"{record.run_name}.ipynb")
    return folder


def diverged(experiment: str = "BaseFP16", seed: int = 1) -> RunRecord:
    """A run whose loss became NaN in epoch 3."""
    return make_record(
        experiment, seed, status="diverged", reason="the loss is not finite at step 57", metrics=Metrics(epochs=2),
        progress={"epoch": 2, "epochs": 12}, history=[EpochRow(epoch=1, val_acc=0.3), EpochRow(epoch=2, val_acc=float("nan"))],
    )  # fmt: skip


def imported() -> RunRecord:
    """A record of an earlier project: no seed, no test accuracy, no clean training accuracy, little provenance."""
    history = [
        EpochRow(epoch=e, train_loss=2 / e, train_acc=1 - 0.5 / e, val_loss=2.1 / e, val_acc=0.8 - 0.5 / e) for e in range(1, 13)
    ]
    return make_record(
        "BaseFP16_OLD_ARCHIVE", None, origin="imported", precision=None, history=history, provenance={},
        parameters={"epochs": 12}, data={}, hardware=Hardware(), question="", expectation="",
        metrics=Metrics(epochs=12, best_val_acc=0.76, final_train_acc=0.95, final_val_acc=0.75, generalization_gap=0.2),
    )  # fmt: skip
