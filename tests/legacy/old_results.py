"""Results trees as an earlier project left them, in both layouts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from vitfp8.record import RunRecord

#: Old name → best accuracy, gap, epochs of warm-up.
TRAININGS = {
    "exp1_baseline": (0.78, 0.18, 0),
    "exp2_regularized": (0.836, 0.02, 5),
    "exp3_fp16_fixed": (0.833, 0.028, 5),
    "experiment3_fp16": (0.8225, 0.154, 5),
}


def said_of(record: RunRecord) -> str:
    """What an imported record says in sentences: its note, and the caveats of the earlier project."""
    return "\n".join([*(note["text"] for note in record.notes), *record.provenance["imported"]["caveats"]])


def metrics(top: float = 0.78, gap: float = 0.18, warmup: int = 0, epochs: int = 12) -> dict[str, list[Any]]:
    """The lists of a metrics file."""
    steps = range(1, epochs + 1)
    accuracy = [top - 0.4 * math.exp(1 - e) if e < epochs else top - 0.001 for e in steps]
    return {
        "train_loss": [2.3 * math.exp(-e / 6) for e in steps],
        "train_acc": [value + gap for value in accuracy],
        "val_loss": [2.2 * math.exp(-e / 8) + 0.4 for e in steps],
        "val_acc": accuracy,
        "epoch_time": [460.0 + e for e in steps],
        "learning_rates": [1e-3 * e / warmup if e <= warmup else 1e-3 * (1 - (e - warmup) / (epochs + 1)) for e in steps],
    }


def hardware(samples: int = 11, start: float = 1.7e9) -> dict[str, list[Any]]:
    """The lists of a hardware file, a sample every ten seconds."""
    return {
        "cpu_percent": [40.0] * samples,
        "memory_percent": [61.0] * samples,
        "thermal_pressure": ["nominal"] * (samples - 1) + ["heavy"],
        "timestamps": [start + 10 * i for i in range(samples)],
    }


def gpu(samples: int = 11, start: float = 1.7e9) -> str:
    """A GPU file: 14 W and 3 W."""
    rows = [f"{start + 10 * i},90,14000,3000" for i in range(samples)]
    return "\n".join(["timestamp,gpu_utilization_percent,gpu_power_mW,cpu_power_mW", *rows]) + "\n"


def levels(numbers: list[int], interval: float = 2.0) -> dict[str, list[Any]]:
    """A hardware file as the earlier monitor wrote it: seconds since its start, thermal levels as whole numbers."""
    count = len(numbers)
    return {
        "cpu_percent": [40.0] * count,
        "memory_percent": [61.0] * count,
        "thermal_pressure": numbers,
        "timestamps": [interval * i for i in range(count)],
    }


def clock(*times: str) -> str:
    """A GPU file as the earlier monitor wrote it: times of day, 14 W and 3 W."""
    rows = [f"{time},95.0,14000.0,3000.0" for time in times]
    return "\n".join(["timestamp,gpu_utilization_percent,gpu_power_mW,cpu_power_mW", *rows]) + "\n"


def timing(epochs: int = 12, best: float = 0.7799933, **changes: Any) -> dict[str, Any]:
    """A timing report as the earlier training script wrote it, whenever training returned; `epochs` were planned."""
    total = 5600.0
    return {
        "experiment_name": "BaseFP32", "start_time": "2026-02-08 21:00:00", "end_time": "2026-02-08 22:33:20",
        "total_duration_seconds": total, "total_duration_minutes": total / 60, "total_duration_hours": total / 3600,
        "num_epochs": epochs, "avg_epoch_time_seconds": total / epochs, "best_val_accuracy": best, "precision": "fp32",
        "augmentation": "basic", "config_file": "configs/BaseFP32.yaml",
    } | changes  # fmt: skip


def first_fp8_test(before: float = 83.29, after: float = 31.5) -> dict[str, Any]:
    """The results of the first FP8 test: percent, nine levels."""
    return {
        "original_fp16": {"accuracy": before, "loss": 0.61, "weight_stats": {}},
        "fp8_simulated": {"accuracy": after, "loss": 2.1, "weight_stats": {}},
        "restored_fp16": {"accuracy": after, "loss": 2.1, "weight_stats": {}},
        "degradation": {"accuracy_loss_pp": before - after, "accuracy_loss_relative_pct": 62.2, "loss_increase": 1.49},
    }


def second_fp8_test(source: str = "results/AugmFP16/checkpoints/best_model.pt") -> dict[str, Any]:
    """The results of the later FP8 test: fractions, whole numbers up to ±240, and which model was quantised."""
    return {
        "experiment": "FP8Test", "source_model": source, "timestamp": "2026-02-09 08:00:00",
        "original_fp16": {"accuracy": 0.8329, "loss": 0.61}, "quantized_fp8": {"accuracy": 0.8321, "loss": 0.612},
        "degradation": {"accuracy_loss": 0.0008, "accuracy_loss_percent": 0.08, "loss_increase": 0.002},
    }  # fmt: skip


def write(path: Path, value: object) -> Path:
    """Write a text as it is, anything else as JSON (NaN as Python writes it)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def checkpoint(path: Path, epoch: int, accuracy: float) -> Path:
    """A checkpoint."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"model_state_dict": {"weight": torch.ones(3)}, "optimizer_state_dict": {}, "scheduler_state_dict": {}, "metrics": {}}
    torch.save({"epoch": epoch, "val_acc": accuracy, **state}, path)
    return path


def run(top: Path, name: str, *, layout: int = 1, **changes: Any) -> Path:
    """One training; `changes` replace lists of its metrics. Gives the folder of its metrics."""
    accuracy, gap, warmup = TRAININGS.get(name, (0.78, 0.18, 0))
    folder = top / "checkpoints" / name if layout == 1 else top / name
    texts, weights = (folder, folder) if layout == 1 else (folder / "metrics", folder / "checkpoints")
    values = metrics(accuracy, gap, warmup) | changes
    write(texts / "final_metrics.json", values)
    write(texts / "hardware_stats.json", hardware())
    write(texts / "gpu_stats.csv", gpu())
    write(texts / "timing_report.json", {"total_seconds": 5598.0})
    checkpoint(weights / "best_model.pt", 10, max(v for v in metrics(accuracy, gap, warmup)["val_acc"]))
    checkpoint(weights / "checkpoint_epoch_10.pt", 10, 0.5)
    return texts


def tree(top: Path, layout: int = 1) -> Path:
    """A whole tree: four trainings, an FP8 test, a verification script."""
    for name in TRAININGS:
        run(top, name, layout=layout)
    if layout == 1:
        write(top / "checkpoints/exp4_fp8_test/fp8_test_results.json", first_fp8_test())
    else:
        write(top / "exp4_fp8_test/metrics/fp8_quantization_results.json", second_fp8_test())
    write(top / "verify_fp16.py", "open('EXECUTED', 'w')\n")
    return top
