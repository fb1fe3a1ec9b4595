"""Times the augmentation of a batch against torchvision's transforms of each image, and as a share of a training step.

Protocol: a batch of 32×32 colour images in memory is brought to the wanted size at a level, on one thread. Three ways take turns,
one timed batch each, after untimed warm-ups: ours (bytes to augmented batch, drawing included), torchvision's transforms on
Pillow images and its v2 transforms on tensors (from decoded images to a stacked batch, the work of a loader's worker without its
transport). The medians are printed with the ratio to ours, then with versions and machine. The share is of the median training
step (forward, backward, clipping, AdamW) of timm's ViT-Ti with patch 4 at 32×32 on the threads asked for, in FP32; ours at 32×32
stays on one thread.

    python benchmarks/input_pipeline.py [--repeats 15] [--batch 128] [--step-threads 2] [--no-step]
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import PIL
import timm
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import v2

from vitfp8.catalog import DATASETS
from vitfp8.data.augment import Augmentation
from vitfp8.data.operations import Setting

ROW = DATASETS["cifar10"]


def pillow_transforms(level: str, side: int) -> Callable[[Image.Image], Tensor]:
    """The level with torchvision's transforms on Pillow images."""
    chain: list[Callable] = [transforms.Resize((side, side)), transforms.RandomCrop(side, padding=side // 8)]
    chain += [transforms.RandomHorizontalFlip()]
    if level == "extended":
        chain += [transforms.ColorJitter(0.2, 0.2, 0.2, 0.1), transforms.RandomRotation(15)]
    chain += [transforms.ToTensor(), transforms.Normalize(ROW.mean, ROW.std)]
    if level == "extended":
        chain += [transforms.RandomErasing(p=0.5, scale=(0.02, 0.33), ratio=(0.3, 3.3), value="random")]
    return transforms.Compose(chain)


def tensor_transforms(level: str, side: int) -> Callable[[Tensor], Tensor]:
    """The level with torchvision's v2 transforms on byte tensors."""
    chain: list[Callable] = [v2.Resize((side, side), antialias=True), v2.RandomCrop(side, padding=side // 8)]
    chain += [v2.RandomHorizontalFlip()]
    if level == "extended":
        chain += [v2.ColorJitter(0.2, 0.2, 0.2, 0.1), v2.RandomRotation(15)]
    chain += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(ROW.mean, ROW.std)]
    if level == "extended":
        chain += [v2.RandomErasing(p=0.5, scale=(0.02, 0.33), ratio=(0.3, 3.3), value="random")]
    return v2.Compose(chain)


def variants(level: str, side: int, images: Tensor) -> dict[str, Callable[[], Tensor]]:
    """The three ways to make a batch, by name; ours is first."""
    setting = Setting(side=side, channels=3, mean=ROW.mean, std=ROW.std, flip_keeps_class=True, device=torch.device("cpu"))
    ours = Augmentation(level=level, setting=setting)
    numbers = np.arange(len(images))
    pillows = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    on_pillow, on_tensor = pillow_transforms(level, side), tensor_transforms(level, side)
    return {
        "vitfp8": lambda: ours(images, ours.draw(0, 0, numbers)),
        "torchvision, Pillow": lambda: torch.stack([on_pillow(image) for image in pillows]),
        "torchvision v2, tensors": lambda: torch.stack([on_tensor(image) for image in images]),
    }


def medians(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each way; they take turns, after two untimed rounds."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 2):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if repeat >= 2:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def training_step(batch: int) -> Callable[[], None]:
    """One step of timm's ViT-Ti, patch 4, 32×32, 10 classes, in FP32."""
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=4, num_classes=10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    images, labels = torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(model(images), labels, label_smoothing=0.1).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="timed batches of each way")
    parser.add_argument("--batch", type=int, default=128, help="images a batch")
    parser.add_argument("--step-threads", type=int, help="threads of the training step; default: all cores")
    parser.add_argument("--no-step", action="store_true", help="leave the training step out")
    arguments = parser.parse_args()
    if arguments.no_step and arguments.step_threads is not None:
        parser.error("--step-threads: --no-step leaves that step out; drop one of them")

    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = torch.randint(0, 256, (arguments.batch, 3, 32, 32), dtype=torch.uint8)
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, Pillow {PIL.__version__}, timm {timm.__version__}")
    print(f"{platform.platform()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}; one thread")
    print(f"batch {arguments.batch}, medians of {arguments.repeats} alternating repeats\n")
    print(f"{'level':<10}{'size':>5}  {'way':<26}{'ms a batch':>11}{'ratio to vitfp8':>17}")
    seconds_at_32 = 0.0
    for level, side in (("basic", 32), ("extended", 32), ("basic", 224), ("extended", 224)):
        times = medians(dict(variants(level, side, images)), arguments.repeats)
        for name, seconds in times.items():
            print(f"{level:<10}{side:>5}  {name:<26}{seconds * 1e3:>11.2f}{seconds / times['vitfp8']:>17.2f}")
        if (level, side) == ("extended", 32):
            seconds_at_32 = times["vitfp8"]
    if not arguments.no_step:
        step_threads = arguments.step_threads or os.cpu_count() or 1
        torch.set_num_threads(step_threads)
        step = medians({"step": training_step(arguments.batch)}, max(3, arguments.repeats // 3))["step"]
        print(f"\ntraining step of ViT-Ti, patch 4, 32×32, FP32, {step_threads} threads: {step * 1e3:.0f} ms")
        print(f"extended augmentation at 32×32 is {seconds_at_32 / step:.2%} of it")


if __name__ == "__main__":
    main()
