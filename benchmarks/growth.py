"""How time and memory grow with batch size, model size, number of epochs and number of records; draws a figure.

Protocol: each point runs in a process of its own, whose peak is the largest resident set minus what it held before. Steps are
timed as the median of several after an untimed warm-up; a training and a reading of records are timed once. Beside each series
stands the slope of a line through the logarithms: 1 is linear, less is better. Models are ordered by their FLOPs.

    python benchmarks/growth.py [SERIES …] [--threads 2] [--figure growth.png] [--json FILE]
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parents[1]

#: Series → what grows, and its points.
SERIES: dict[str, tuple[str, tuple[Any, ...]]] = {
    "batch": ("images a step (ViT-Ti, FP32)", (16, 32, 64, 128, 256)),
    "model": ("GFLOP an image (ViT-Ti with 3, 6, 12 blocks; ViT-S)", (3, 6, 12, "small")),
    "epochs": ("epochs (digits preset, record and journal included)", (2, 8, 32, 128)),
    "records": ("records (read, analysed, tables written)", (8, 32, 128, 512)),
}


def _params(changes: dict[str, Any], preset: str | None = None) -> Any:
    """Parameters of BaseFP32 with changes."""
    from vitfp8.params import Layer, read_layer, validate

    layers = [read_layer(TOP / "params" / "BaseFP32.yaml")]
    layers += [read_layer(TOP / "params" / "presets" / f"{preset}.yaml")] if preset else []
    return validate([*layers, Layer("benchmark", changes)])


def _step_seconds(changes: dict[str, Any], batch: int) -> tuple[float, float]:
    """GFLOP an image, and the median seconds of a training step on random images."""
    import torch
    from torch.nn import functional as F

    from vitfp8.experiment import keep_freed_memory
    from vitfp8.model import create_model, decay_groups, forward_flops
    from vitfp8.precision import prepare

    keep_freed_memory()
    params = _params({"dataset": "cifar10", "image_size": 32, "patch_size": 4, **changes})
    model = create_model(params, 10).train()
    precision = prepare(model, "fp32", device=torch.device("cpu"))
    optimizer = torch.optim.AdamW(decay_groups(model, params.weight_decay), lr=1e-3, fused=True)
    images, labels = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))
    times = []
    for _ in range(6):
        start = time.perf_counter()
        precision.backward(F.cross_entropy(model(images), labels))
        precision.step(optimizer, model.parameters(), 1.0)
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
    return 3 * forward_flops(model) / 1e9, statistics.median(times[2:])


def batch(size: int) -> tuple[float, float]:
    """A training step with a batch of this size."""
    return size, _step_seconds({}, size)[1]


def model(what: int | str) -> tuple[float, float]:
    """A training step of 64 images with a model of this size."""
    return _step_seconds({"model": "vit_small_patch16_224"} if what == "small" else {"depth": what}, 64)


def epochs(count: int) -> tuple[float, float]:
    """A whole training with journal and checkpoints."""
    from vitfp8.experiment import prepare_experiment
    from vitfp8.record import RunJournal

    with tempfile.TemporaryDirectory() as place:
        experiment = prepare_experiment(_params({"epochs": count, "run_folder": f"{place}/run"}, "digits"))
        start = time.perf_counter()
        with RunJournal(experiment.folder, experiment.record(), show=False) as journal:
            experiment.run(journal)
        return count, time.perf_counter() - start


def records(count: int) -> tuple[float, float]:
    """Reading, analysing and writing the tables of this many records."""
    from vitfp8.analysis.results import load_results
    from vitfp8.analysis.summary import write_report_files

    sys.path.insert(0, str(TOP))
    made = importlib.import_module("tests.analysis.records")  # what the tests take for records of real runs

    names = ("BaseFP32", "AugmFP32", "BaseFP16", "AugmFP16")
    with tempfile.TemporaryDirectory() as place:
        study = Path(place) / "study"
        for number in range(count):
            record = made.make_record(names[number % 4], number // 4, epochs=50)
            made.write_notebook(record, study / f"{record.run_name}.ipynb")
        (Path(place) / "report").mkdir()
        start = time.perf_counter()
        write_report_files(load_results(study), Path(place) / "report")
        return count, time.perf_counter() - start


_TIMED: dict[str, Callable[[Any], tuple[float, float]]] = {"batch": batch, "model": model, "epochs": epochs, "records": records}


def worker(pipe: Connection, series: str, point: Any, threads: int) -> None:
    """A process of one point."""
    import torch

    torch.set_num_threads(threads)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    x, seconds = _TIMED[series](point)
    unit = 1024**2 if sys.platform == "darwin" else 1024
    pipe.send((x, seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / unit))


def slope(xs: list[float], ys: list[float]) -> float:
    """Slope of the least-squares line through the logarithms: y grows as x to this power."""
    logs = [(math.log(x), math.log(max(y, 1e-9))) for x, y in zip(xs, ys, strict=True)]
    mean_x, mean_y = (statistics.fmean(values) for values in zip(*logs, strict=True))
    return sum((x - mean_x) * (y - mean_y) for x, y in logs) / sum((x - mean_x) ** 2 for x, _ in logs)


def draw(found: dict[str, list[tuple[float, float, float]]], path: Path) -> None:
    """Time and memory of each series, on logarithmic axes, with a dotted line of linear growth from the last point."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    figure = Figure(figsize=(7.2, 2.3 * ((len(found) + 1) // 2)), layout="constrained")
    panels = figure.subplots((len(found) + 1) // 2, 2, squeeze=False).flat
    for ax, (name, rows) in zip(panels, found.items(), strict=False):
        xs, seconds, memory = (list(column) for column in zip(*rows, strict=True))
        ax.plot(xs, seconds, color="#0b5fa5", marker="o", label=f"seconds, slope {slope(xs, seconds):.2f}")
        ax.plot(xs, memory, color="#c2571a", marker="s", linestyle="--", label=f"peak MiB, slope {slope(xs, memory):.2f}")
        for values in (seconds, memory):
            ax.plot(xs, [values[-1] * x / xs[-1] for x in xs], color="#888888", linestyle=":", linewidth=0.8)
        ax.set(xscale="log", yscale="log")
        ax.set_xlabel(SERIES[name][0], fontsize=7)
        ax.tick_params(labelsize=7)
        ax.set_xticks(xs, [f"{x:g}" if x >= 10 else f"{x:.2g}" for x in xs])
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _position: f"{y:g}"))
        ax.legend(fontsize=7, frameon=False)
    for ax in list(panels):
        ax.set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure the series, print them, draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("series", nargs="*", metavar="SERIES", help=f"which; default: all of {', '.join(SERIES)}")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--figure", type=Path, help="draw them into this file")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    options = parser.parse_args()
    if unknown := [name for name in options.series if name not in SERIES]:
        parser.error(f"unknown series: {', '.join(unknown)}; there are {', '.join(SERIES)}")
    context = multiprocessing.get_context("spawn")
    found: dict[str, list[tuple[float, float, float]]] = {}
    print(f"{platform.machine()}, {options.threads} threads, Python {platform.python_version()}")
    for name in options.series or SERIES:
        what, points = SERIES[name]
        print(f"\n{name}: {what}\n{'':>10}{'seconds':>10}{'peak MiB':>10}")
        found[name] = []
        for point in points:
            here, there = context.Pipe()
            process = context.Process(target=worker, args=(there, name, point, options.threads))
            process.start()
            there.close()  # so that the pipe ends with its process
            try:
                found[name].append(here.recv())
            except (EOFError, ConnectionResetError):
                process.join()
                status = process.exitcode or 0
                died = f"was killed by signal {-status}" if status < 0 else "failed (see above)"
                sys.exit(f"{name}, {point}: its process {died}; the benchmark ends here")
            process.join()
            x, seconds, memory = found[name][-1]
            print(f"{x:>10.4g}{seconds:>10.3f}{memory:>10.0f}", flush=True)
        xs = [row[0] for row in found[name]]
        print(f"{'slope':>10}{slope(xs, [r[1] for r in found[name]]):>10.2f}{slope(xs, [r[2] for r in found[name]]):>10.2f}")
    if options.figure:
        draw(found, options.figure)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
