"""Times whole training steps on a GPU, ours against plain timm's and torchao's, eager, compiled and with CUDA graphs.

A step here is forward, backward, clipping and AdamW of images that are on the device. Protocol: all sides of a size stand in one
process and take turns, a block of steps each; each does 20 untimed steps first, of which the first one's excess is what
compiling took; then at least 50 are timed by CUDA events. A block during which the driver names heat or a power brake as a
reason for the clocks is rejected and done again. The table holds images a second, the ratio to plain FP32 over blocks, the peak
of tensors that a side adds, joules per image (the driver's counter), and the model FLOPs utilisation against products of the
model's own shapes in the side's format. Clocks, power limit and driver stand above it.

Unverified: nobody has run it on a GPU yet. On a processor (``--device cpu``) it runs only so that it can be tested.

    python benchmarks/training_step.py --device cuda [--size tiny|small|base]… [--steps 50] [--json FILE]
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitfp8.compilation import Compilation, compile_model
from vitfp8.determinism import set_determinism
from vitfp8.errors import InputError
from vitfp8.model import create_model, decay_groups, forward_flops
from vitfp8.params import Layer, RunParams, read_layer, validate
from vitfp8.precision import prepare

#: Size → what is trained: ViT-Ti, -S and -B at 224 pixels.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"model": "vit_tiny_patch16_224"},
    "small": {"model": "vit_small_patch16_224"},
    "base": {"model": "vit_base_patch16_224"},
}

#: Untimed steps of each side before the first timed one, and steps of a block.
WARM_UP, BLOCK = 20, 10

#: A rejected block is done again so often; then the card is too hot to be timed.
TRIES = 5


@dataclass
class Side:
    """One way to do a step.

    Attributes:
        name: as the table calls it.
        format: of its products, for the peak.
        step: does one.
        compile_seconds: what the first step took beyond the others.
        peak_bytes: largest size of the tensors that it adds.
        blocks: milliseconds per step, one value per block.
        joules: of all blocks; None where the driver has no counter.
        rejected: blocks that were thrown away.
        deterministic: whether only algorithms that repeat are allowed.
    """

    name: str
    format: str
    step: Callable[[], None]
    deterministic: bool = False
    compile_seconds: float = 0.0
    peak_bytes: int = 0
    blocks: list[float] = field(default_factory=list)
    joules: float | None = 0.0
    rejected: int = 0


class Card:
    """The device's clock, counters and limits; a processor has only a clock.

    Args:
        device: CUDA's or the processor.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._probe: Any = None
        if device.type == "cuda":
            from vitfp8.monitor.nvidia import NVMLProbe
            from vitfp8.monitor.probes import UnavailableError

            probe = NVMLProbe(torch.cuda.current_device())
            with suppress(UnavailableError):
                probe.open()
                self._probe = probe

    def facts(self) -> dict[str, Any]:
        """Name, driver, clocks (MHz) and power limit (W), as far as the driver says."""
        if self.device.type != "cuda":
            return {"device": "processor"}
        facts: dict[str, Any] = {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda or torch.version.hip}
        if self._probe is not None:
            facts |= self._probe.limits()
        return facts

    def read(self) -> tuple[bool, float | None]:
        """Whether the card is slowed down now, and the joules that its counter shows."""
        if self._probe is None:
            return False, None
        row = self._probe.read()
        energy = self._probe.energy
        measured = energy is not None and energy.source == "measured"
        return bool(row.get("gpu_throttled")), energy.joules if measured else None

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, action: Callable[[], None], times: int) -> float:
        """Seconds of an action, done a number of times, by CUDA events where there are any."""
        if self.device.type != "cuda":
            started = time.perf_counter()
            for _ in range(times):
                action()
            return time.perf_counter() - started
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for _ in range(times):
            action()
        last.record()
        torch.cuda.synchronize()
        return first.elapsed_time(last) / 1000

    @contextmanager
    def peak_of(self, side: Side) -> Iterator[None]:
        """Measure the largest size of the tensors that a side adds to those that are there already."""
        if self.device.type != "cuda":
            yield
            return
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        yield
        side.peak_bytes = torch.cuda.max_memory_allocated() - before


def params_of(size: dict[str, Any], batch: int) -> RunParams:
    """BaseFP32's parameters with a size's model."""
    folder = Path(__file__).parents[1] / "params"
    return validate([read_layer(folder / "BaseFP32.yaml"), Layer("benchmark", {"batch_size": batch, **size})])


def sides_of(params: RunParams, device: torch.device, card: Card) -> Iterator[Side]:
    """Every side of a size, one after the other, warmed up; what the device does not have natively is left out and said."""
    images = torch.randn(params.batch_size, 3, params.image_size, params.image_size, device=device)
    labels = torch.randint(0, 10, (params.batch_size,), device=device)
    eager, compiled, graphs = Compilation(), Compilation(True), Compilation(True, cuda_graphs=True)
    ways = [("eager", eager), ("compiled", compiled)] + [("CUDA graphs", graphs)] * (device.type == "cuda")
    build = functools.partial
    plans: list[tuple[str, str, bool, Callable[[], Callable[[], None]]]] = []
    for name, dtype in (("fp32", None), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        for way, compilation in ways[:2]:
            plans.append((f"plain {name}, {way}", name, False, build(plain, params, images, labels, dtype, compilation)))
    for precision, recipe in [("fp32", ""), ("bf16", ""), ("fp16", ""), ("fp8", "tensorwise"), ("fp8", "rowwise")]:
        label = f"ours {precision} {recipe}".strip()
        for way, compilation in ways:
            plans.append(
                (f"{label}, {way}", precision, True, build(ours, params, images, labels, precision, recipe, compilation))
            )
    anyhow = build(ours, params, images, labels, "bf16", "", compiled)
    plans.append(("ours bf16, compiled, not deterministic", "bf16", False, anyhow))
    for recipe in ("tensorwise", "rowwise") if importlib.util.find_spec("torchao") else ():
        peer = build(torchao, params, images, labels, recipe, compiled)
        plans.append((f"torchao {recipe}, compiled", "fp8", False, peer))
    for name, format, deterministic, make in plans:
        side = Side(name, format, lambda: None, deterministic)
        try:
            with card.peak_of(side):
                side.step = make()
                torch.use_deterministic_algorithms(deterministic)
                first = card.seconds(side.step, 1)
                rest = card.seconds(side.step, WARM_UP - 1) / (WARM_UP - 1)
        except (InputError, RuntimeError, AssertionError, NotImplementedError) as error:
            print(f"{name}: left out: {' '.join(str(error).split())[:150]}", flush=True)
            continue
        side.compile_seconds = max(first - rest, 0.0)
        yield side


def plain(
    params: RunParams, images: Tensor, labels: Tensor, dtype: torch.dtype | None, compilation: Compilation
) -> Callable[[], None]:
    """The model of timm as everybody trains it: autocast, clipping, fused AdamW, a loss scaler for FP16."""
    model = _model(params, images.device)
    network = torch.compile(model) if compilation.on else model
    optimizer = torch.optim.AdamW(decay_groups(model, 0.05), lr=1e-4, fused=True)
    scaler = torch.amp.GradScaler(images.device.type, enabled=dtype == torch.float16)

    def step() -> None:
        with torch.autocast(images.device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            loss = F.cross_entropy(network(images).float(), labels)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    return step


def torchao(params: RunParams, images: Tensor, labels: Tensor, recipe: str, compilation: Compilation) -> Callable[[], None]:
    """The same with torchao's FP8 layers in the blocks, accumulating as ours do."""
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    from torchao.float8.config import Float8GemmConfig

    exact = Float8GemmConfig(use_fast_accum=False)
    config = dataclasses.replace(
        Float8LinearConfig.from_recipe_name(recipe),
        gemm_config_output=exact, gemm_config_grad_input=exact, gemm_config_grad_weight=exact,
    )  # fmt: skip
    model = _model(params, images.device)
    convert_to_float8_training(model, module_filter_fn=lambda _module, name: name.startswith("blocks."), config=config)
    network = torch.compile(model) if compilation.on else model
    optimizer = torch.optim.AdamW(decay_groups(model, 0.05), lr=1e-4, fused=True)

    def step() -> None:
        with torch.autocast(images.device.type, torch.bfloat16):
            loss = F.cross_entropy(network(images).float(), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def ours(
    params: RunParams, images: Tensor, labels: Tensor, precision: str, recipe: str, compilation: Compilation
) -> Callable[[], None]:
    """A step as a run does it; only what is native on the device."""
    set_determinism(params.model_copy(update={"threads": None}), images.device)
    model = _model(params, images.device)
    prepared = prepare(
        model,
        precision,
        device=images.device,
        backend="auto" if precision == "fp32" else "native",
        fp8_recipe=recipe or "tensorwise",
    )
    network = compile_model(model, compilation)
    optimizer = torch.optim.AdamW(decay_groups(model, 0.05), lr=1e-4, fused=True)

    def step() -> None:
        prepared.backward(F.cross_entropy(network(images).float(), labels, reduction="sum") / len(images))
        prepared.step(optimizer, model.parameters(), 1.0)
        optimizer.zero_grad(set_to_none=True)

    return step


def _model(params: RunParams, device: torch.device) -> Any:
    """The same first weights for every side."""
    torch.manual_seed(0)
    return create_model(params, 10).to(device).train()


def product_peaks(params: RunParams, device: torch.device, card: Card) -> dict[str, float]:
    """FLOP/s of a block's forward products, of the run's own shapes, by format; without formats that the device lacks."""
    with torch.device("meta"):
        model = create_model(params, 10)
    rows = max(params.batch_size * (params.image_size // 16) ** 2 // 16 * 16, 16)
    shapes = [
        (m.in_features, m.out_features)
        for name, m in model.named_modules()
        if name.startswith("blocks.0.") and isinstance(m, nn.Linear)
    ]
    peaks = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp8", torch.float8_e4m3fn)):
        one = torch.ones((), device=device)
        pairs = [(torch.randn(rows, i, device=device).to(dtype), torch.randn(o, i, device=device).to(dtype)) for i, o in shapes]

        def products(pairs: Any = pairs, low: bool = name == "fp8", one: Tensor = one) -> None:
            for a, b in pairs:
                torch._scaled_mm(a, b.t(), one, one, out_dtype=torch.bfloat16) if low else a @ b.t()

        try:
            products()
            card.synchronize()
            seconds = min(card.seconds(products, 3) / 3 for _ in range(5))
        except RuntimeError:
            continue
        peaks[name] = sum(2 * rows * i * o for i, o in shapes) / seconds
    return peaks


def time_sides(sides: list[Side], card: Card, steps: int) -> None:
    """Blocks of steps in turn until each side has done `steps`."""
    for turn in range(-(-steps // BLOCK)):
        for side in sides if turn % 2 == 0 else sides[::-1]:
            torch.use_deterministic_algorithms(side.deterministic)
            for _ in range(TRIES):
                _, before = card.read()
                seconds = card.seconds(side.step, BLOCK)
                throttled, after = card.read()
                if not throttled:
                    break
                side.rejected += 1
                time.sleep(10)
            else:
                raise SystemExit(
                    f"{side.name}: the card is slowed down by heat or power {TRIES} times in a row; cool it, and try again"
                )
            side.blocks.append(1000 * seconds / BLOCK)
            if side.joules is not None:
                side.joules = None if before is None or after is None else side.joules + after - before


def measure(size: str, device: torch.device, batch: int, steps: int, given: dict[str, Any] | None = None) -> dict[str, Any]:
    """Time every side of a size, print the table, and return its figures."""
    params = params_of(given if given is not None else SIZES[size], batch)
    card = Card(device)
    with torch.device("meta"):
        flops = 3.0 * batch * forward_flops(create_model(params, 10))
    peaks = product_peaks(params, device, card)
    sides = list(sides_of(params, device, card))
    time_sides(sides, card, steps)
    print(f"\n{size}, batch {batch}, {flops / 1e9:.3g} GFLOP per step; {card.facts()}")
    print("products of a block: " + ", ".join(f"{name} {peak / 1e12:.3g} TFLOP/s" for name, peak in peaks.items()))
    print(f"{'side':42}{'images/s':>10}{'to plain':>10}{'MFU':>7}{'MiB':>8}{'J/image':>9}{'compile s':>11}{'rejected':>10}")
    base = next((side for side in sides if side.name == "plain fp32, eager"), sides[0])
    rows = []
    for side in sides:
        milliseconds = statistics.median(side.blocks)
        ratio = statistics.median(b / a for a, b in zip(side.blocks, base.blocks, strict=True))
        mfu = flops / (milliseconds / 1000) / peaks[side.format] if side.format in peaks else None
        images = batch * BLOCK * len(side.blocks)
        row = {
            "side": side.name, "images_per_second": 1000 * batch / milliseconds, "to_plain_fp32": ratio, "mfu": mfu,
            "peak_bytes": side.peak_bytes or None, "joules_per_image": None if side.joules is None else side.joules / images,
            "compile_seconds": side.compile_seconds, "rejected": side.rejected, "milliseconds": side.blocks,
        }  # fmt: skip
        rows.append(row)
        shown = [f"{mfu:.0%}" if mfu else "–", f"{side.peak_bytes / 2**20:.0f}" if side.peak_bytes else "–"]
        joules = "–" if row["joules_per_image"] is None else f"{row['joules_per_image']:.3g}"
        print(
            f"{side.name:42}{row['images_per_second']:>10.1f}{ratio:>10.2f}{shown[0]:>7}{shown[1]:>8}{joules:>9}"
            f"{side.compile_seconds:>11.1f}{side.rejected:>10}",
            flush=True,
        )
    return {"size": size, "batch": batch, "card": card.facts(), "peaks": peaks, "sides": rows}


def main() -> None:
    """Run the benchmark and print a table for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", action="append", choices=SIZES, help="repeatable; default: all")
    parser.add_argument("--batch", type=int, default=128, help="images per step")
    parser.add_argument("--steps", type=int, default=50, help="timed steps of each side, at least")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU on this machine")
    results = [measure(size, device, options.batch, options.steps) for size in options.size or SIZES]
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
