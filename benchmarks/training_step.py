"""Times whole training steps, ours against peers and against each other, as ratios.

Protocol: a step is a batch from memory through the basic augmentation, forward, backward, clipping and AdamW. The two sides of a
row run in a process each, so that no setting of one reaches the other; both are warmed up untimed (compilation falls in here),
then they take turns, one timed step each; a row's figure is the ratio of the medians. A peak is the process's largest resident
set minus what it held before its first step. The matrix-product peak of the machine (2048³, in the format of the products)
gives the model FLOPs utilisation: 3 × the forward pass's products ÷ time ÷ peak. A row that ends in ``-avx2`` limits both sides
to AVX2 in oneDNN, as on a processor without BF16 products; its product dtypes are printed below the table. On a machine that is
not yours alone, ``--clock cpu --threads 1`` counts processor time; the utilisation is left out then.

A row whose package is not installed is named and left out; a process that dies ends the benchmark with its exit status.

With ``--device cuda`` it is another benchmark, with a GPU's protocol: see ``cuda_step.py``.

    python benchmarks/training_step.py [ROW …] [--size tiny]… [--repeats 9] [--threads 2] [--clock cpu] [--json FILE]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

#: Row → (what is timed, against what, the ratio of speeds that is aimed at).
ROWS: dict[str, tuple[str, str, float]] = {
    "fp32": ("fp32", "plain", 1.10),
    "bf16": ("bf16", "plain bf16 autocast", 1.70),
    "fp16": ("fp16", "fp32", 0.90),
    "fp8-torchao": ("fp8 tensorwise", "torchao tensorwise, emulated", 2.4),
    "fp8-torchao-compiled": ("fp8 tensorwise", "torchao tensorwise, emulated, compiled", 2.4),
    "fp8": ("fp8 tensorwise", "fp32", 2.0),
    "fp8-delayed": ("fp8 delayed", "fp8 tensorwise", 1.0),
    "fp8-rowwise": ("fp8 rowwise", "fp32", 0.9),
    "fp8-blockwise": ("fp8 blockwise", "fp32", 0.9),
    "fp8-mxfp8": ("fp8 mxfp8", "fp32", 0.9),
    "fp8-avx2": ("fp8 tensorwise", "fp32", 0.85),
    "deterministic": ("fp8 tensorwise, deterministic", "fp8 tensorwise", 0.99),
    "health": ("fp8 tensorwise, health", "fp8 tensorwise", 1 / 1.03),
    "health-fp16": ("fp16, health", "fp16", 1 / 1.03),
}

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"dataset": "cifar10", "image_size": 32, "patch_size": 4},
    "small": {"dataset": "cifar10", "image_size": 32, "patch_size": 4, "model": "vit_small_patch16_224"},
}

#: Presets whose model, images and batch are a size as well.
PRESETS = ("digits", "fashion_mnist")

#: Steps between samples of numeric health: the parameter files' value. Rows of health time sampled steps and count a hundredth.
HEALTH_EVERY = 100


def params_of(size: str, batch: int | None) -> Any:
    """Parameters of BaseFP32 with a size's model and images; its batch, unless another is asked for."""
    from vitfp8.params import Layer, read_layer, validate

    folder = Path(__file__).parents[1] / "params"
    layer = Layer("benchmark", SIZES[size]) if size in SIZES else read_layer(folder / "presets" / f"{size}.yaml")
    asked = Layer("--batch", {} if batch is None else {"batch_size": batch})
    return validate([read_layer(folder / "BaseFP32.yaml"), layer, asked])


def batches(params: Any, count: int = 4096) -> Iterator[tuple[Any, Any]]:
    """Random bytes of the data set's shape, augmented batch by batch, for ever."""
    import torch

    from vitfp8.catalog import DATASETS
    from vitfp8.data.augment import Augmentation
    from vitfp8.data.operations import Setting

    row = DATASETS[params.dataset]
    generator = torch.Generator().manual_seed(0)
    side = params.image_size
    pixels = torch.randint(0, 256, (count, row.channels, side, side), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (count,), generator=generator)
    mean, std = ([0.5] * row.channels, [0.25] * row.channels) if row.mean is None else (row.mean, row.std)
    setting = Setting(
        side=side, channels=row.channels, mean=tuple(mean), std=tuple(std), flip_keeps_class=True, device=torch.device("cpu")
    )
    augmentation = Augmentation(level="basic", setting=setting)
    epoch = 0
    while True:
        for indices in torch.randperm(count, generator=generator).split(params.batch_size):
            if len(indices) == params.batch_size:
                yield augmentation(pixels[indices], augmentation.draw(0, epoch, indices.numpy())), labels[indices]
        epoch += 1


def step_of(variant: str, params: Any) -> tuple[Callable[[], None], str]:
    """One training step of a variant, as a function to time, and the dtype that multiplies in it where we know."""
    import torch
    from torch.nn import functional as F

    from vitfp8.determinism import set_determinism
    from vitfp8.memory import keep_freed_memory
    from vitfp8.model import create_model, decay_groups
    from vitfp8.precision import prepare

    torch.manual_seed(0)
    model: Any = create_model(params, 10)
    model.train()
    data = batches(params)
    optimizer_of: dict[str, Any] = {}
    if variant.startswith(("plain", "torchao")):
        if variant.startswith("torchao"):
            _torchao(model)
        if variant.endswith("compiled"):
            model = torch.compile(model)
        optimizer_of["it"] = torch.optim.AdamW(decay_groups(model, 0.1), lr=1e-3)
        low = variant != "plain"

        def plain() -> None:
            images, labels = next(data)
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                loss = F.cross_entropy(model(images).float(), labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer_of["it"].step()
            optimizer_of["it"].zero_grad()

        return plain, ""
    keep_freed_memory()
    name, _, rest = variant.partition(",")
    precision, _, recipe = name.partition(" ")
    if rest.strip() == "deterministic":
        set_determinism(params, torch.device("cpu"))
    prepared = prepare(
        model,
        precision,
        device=torch.device("cpu"),
        fp8_recipe=recipe or "tensorwise",
        health_every=1 if rest.strip() == "health" else 0,
        backend="auto",
    )
    optimizer = torch.optim.AdamW(decay_groups(model, 0.1), lr=1e-3, fused=True)
    step = 0

    def ours() -> None:
        nonlocal step
        images, labels = next(data)
        with prepared.health.watching(step):
            loss = F.cross_entropy(model(images).float(), labels, reduction="sum")
            prepared.backward(loss / len(images))
        prepared.step(optimizer, model.parameters(), 1.0)
        optimizer.zero_grad(set_to_none=True)
        step += 1

    names = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
    product_dtype = str(prepared.report["product_dtype"])
    return ours, names.get(product_dtype, product_dtype)


def _torchao(model: Any) -> None:
    """The emulate mode of torchao in the same layers that we convert."""
    import dataclasses

    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    config = dataclasses.replace(Float8LinearConfig.from_recipe_name("tensorwise"), emulate=True)
    convert_to_float8_training(model, module_filter_fn=lambda _module, name: name.startswith("blocks."), config=config)


def worker(pipe: Connection, variant: str, size: str, options: argparse.Namespace) -> None:
    """A process of one variant: steps when it is told to, and answers with the seconds; None ends it."""
    import torch

    torch.set_num_threads(options.threads)
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    params = params_of(size, options.batch)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step, product_dtype = step_of(variant, params)
    pipe.send(product_dtype)
    while (count := pipe.recv()) is not None:
        start = clock()
        for _ in range(count):
            step()
        pipe.send((clock() - start) / count)
    pipe.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / (1024**2 if sys.platform == "darwin" else 1024))


def answer(pipe: Connection, process: BaseProcess, variant: str) -> Any:
    """What a worker answers; one that has died ends the benchmark instead of being waited for."""
    try:
        return pipe.recv()
    except (EOFError, ConnectionResetError):
        process.join()
        status = process.exitcode or 0
        died = f"was killed by signal {-status}" if status < 0 else "failed (see above)"
        sys.exit(f"{variant}: its process {died}; the benchmark ends here")


@contextmanager
def limited_to_avx2(limited: bool) -> Iterator[None]:
    """Let processes that start meanwhile find a processor without BF16 products: oneDNN reads the variable when it is loaded."""
    before = os.environ.get("ONEDNN_MAX_CPU_ISA")
    if limited:
        os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"
    try:
        yield
    finally:
        if limited:
            os.environ.pop("ONEDNN_MAX_CPU_ISA")
            if before is not None:
                os.environ["ONEDNN_MAX_CPU_ISA"] = before


def compare(row: str, size: str, options: argparse.Namespace) -> dict[str, Any]:
    """Median seconds a step and peak MiB of both sides of a row, taking turns."""
    context = multiprocessing.get_context("spawn")
    pair = ROWS[row][:2]
    pipes: list[Connection] = []
    processes: list[BaseProcess] = []
    dtypes = []
    peaks = []
    try:
        with limited_to_avx2(row.endswith("-avx2")):
            for variant in pair:
                here, there = context.Pipe()
                process = context.Process(target=worker, args=(there, variant, size, options))
                process.start()
                there.close()  # so that the pipe ends with its process
                pipes.append(here)
                processes.append(process)
                dtypes.append(answer(here, process, variant))
        for side in (0, 1):
            pipes[side].send(3)
            answer(pipes[side], processes[side], pair[side])
        seconds: list[list[float]] = [[], []]
        for turn in range(options.repeats):
            for side in (0, 1) if turn % 2 == 0 else (1, 0):
                pipes[side].send(options.steps)
                seconds[side].append(answer(pipes[side], processes[side], pair[side]))
        for side in (0, 1):
            pipes[side].send(None)
            peaks.append(answer(pipes[side], processes[side], pair[side]))
            processes[side].join()
    finally:
        for each in processes:
            each.kill()  # one that has not ended waits for us
    if "health" in pair[0]:  # every step was sampled; in a training one of a hundred is
        seconds[0] = [b + (a - b) / HEALTH_EVERY for a, b in zip(*seconds, strict=True)]
    ours, theirs = (statistics.median(times) for times in seconds)
    ratios = sorted(b / a for a, b in zip(*seconds, strict=True))
    return {
        "seconds": ours,
        "against_seconds": theirs,
        "ratio": theirs / ours,
        "ratios": ratios,
        "product_dtypes": dtypes,
        "peak": peaks[0],
        "against_peak": peaks[1],
    }


def product_peaks(threads: int) -> dict[str, float]:
    """GFLOP/s of a product of two 2048×2048 matrices, the best of twelve, by format that the processor multiplies in."""
    import torch

    from vitfp8.precision import has_native_products

    torch.set_num_threads(threads)
    peaks = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        if not has_native_products(name, torch.device("cpu"))[0]:
            continue  # torch multiplies all the same, for minutes
        a, b = torch.randn(2048, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
        times = []
        for _ in range(12):
            start = time.perf_counter()
            a @ b
            times.append(time.perf_counter() - start)
        peaks[name] = 2 * 2048**3 / min(times) / 1e9
    return peaks


def flops_of_step(params: Any) -> float:
    """FLOPs of the products of one step: forward, and twice that backward."""
    import torch

    from vitfp8.model import create_model, forward_flops

    with torch.device("meta"):
        model = create_model(params, 10)
    return 3.0 * params.batch_size * forward_flops(model)


def table(size: str, peaks: dict[str, float], options: argparse.Namespace) -> dict[str, Any]:
    """Time the rows at one size, print them as they come, and return their figures."""
    params = params_of(size, options.batch)
    flops, batch = flops_of_step(params), params.batch_size
    print(f"\nsize {size}, batch {batch}, {flops / 1e9:.3g} GFLOP a step, {options.repeats} turns, {options.clock} clock\n")
    head = ("row", "images/s", "against", "images/s", "ratio", "least–most", "aim", "MFU", "MiB", "against")
    print("{:22}{:>9}  {:40}{:>9}{:>7}{:>13}{:>6}{:>6}{:>7}{:>8}".format(*head))
    results: dict[str, Any] = {}
    for name in options.rows or ROWS:
        ours, theirs, aim = ROWS[name]
        if theirs.startswith("torchao") and importlib.util.find_spec("torchao") is None:
            print(f"{name:22}left out: torchao is not installed; pip install torchao", flush=True)
            continue
        if "bf16" in theirs and "bf16" not in peaks:
            print(f"{name:22}left out: this processor has no BF16 products, and autocast would take minutes per step", flush=True)
            continue
        found = results[name] = compare(name, size, options)
        mfu = flops / found["seconds"] / 1e9 / peaks[found["product_dtypes"][0]] if options.clock == "wall" else float("nan")
        found |= {"aim": aim, "mfu": None if math.isnan(mfu) else mfu, "ours": ours, "against": theirs, "batch": batch}
        rate, against = batch / found["seconds"], batch / found["against_seconds"]
        spread = f"{found['ratios'][0]:.2f}–{found['ratios'][-1]:.2f}"
        print(
            f"{name:22}{rate:>9.1f}  {theirs:40}{against:>9.1f}{found['ratio']:>7.2f}{spread:>13}{aim:>6.2f}{mfu:>6.0%}"
            f"{found['peak']:>7.0f}{found['against_peak']:>8.0f}",
            flush=True,
        )
    for name in (name for name in results if name.endswith("-avx2")):
        print(f"{name}: products in {' against '.join(results[name]['product_dtypes'])}")
    return results


def main() -> None:
    """Run the benchmark and print its table."""
    if "--device" in sys.argv[1:]:
        script = Path(__file__).with_name("cuda_step.py")
        sys.exit(subprocess.run([sys.executable, str(script), *sys.argv[1:]], check=False).returncode)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"which; default: all of {', '.join(ROWS)}")
    sizes = [*SIZES, *PRESETS]
    parser.add_argument("--size", action="append", choices=sizes, help="model and images; repeatable; default: tiny")
    parser.add_argument("--repeats", type=int, default=9, help="turns of each side")
    parser.add_argument("--steps", type=int, default=1, help="steps a turn")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of each process; one works at a time")
    parser.add_argument("--batch", type=int, help="images a step; default: 128, a preset's own")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: processor time, for a shared machine")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    options = parser.parse_args()
    if unknown := [row for row in options.rows if row not in ROWS]:
        parser.error(f"no such row: {', '.join(unknown)}; there are {', '.join(ROWS)}")

    import timm
    import torch

    peaks = product_peaks(options.threads)
    print(f"torch {torch.__version__}, timm {timm.__version__}, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}")
    print(f"{options.threads} threads; products {', '.join(f'{name} {peak:.0f} GFLOP/s' for name, peak in peaks.items())}")
    results = {size: table(size, peaks, options) for size in options.size or ["tiny"]}
    if options.json:
        options.json.write_text(json.dumps({"peaks": peaks, "clock": options.clock, "sizes": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
