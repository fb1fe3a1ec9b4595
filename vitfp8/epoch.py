"""What an epoch measures: sums over its training steps, and the evaluation of a split. All are means over images in the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

#: The lists of `EpochSums` that hold one tensor per step.
_LISTS = ("losses", "correct", "norms", "scales")


@dataclass
class EpochSums:
    """Sums over the part of an epoch that has been trained; kept on the device until the epoch ends.

    Attributes:
        losses: sum of the loss over the images of each step.
        correct: correctly classified images of each step.
        norms: gradient norm of each step, before clipping.
        scales: loss scale after each step, where there is loss scaling.
        images: images seen.
        seconds: time spent in training steps.
        skipped: skipped steps of the whole training when the epoch began.
    """

    losses: list[Tensor] = field(default_factory=list)
    correct: list[Tensor] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)
    scales: list[Tensor] = field(default_factory=list)
    images: int = 0
    seconds: float = 0.0
    skipped: int = 0

    def close(self) -> tuple[dict[str, Any], dict[str, list[float]]]:
        """Means over the epoch, by the names of `vitfp8.record.EpochRow`, and traces with one value per step.

        ``grad_norm`` is the mean of the finite norms; in its trace norms have six significant digits.
        """
        norms = torch.stack(self.norms).cpu().double()  # in this order: Apple's GPU has no float64
        traces = {"grad_norm": [float(f"{norm:.6g}") for norm in norms.tolist()]}
        if self.scales:
            traces["loss_scale"] = torch.stack(self.scales).cpu().tolist()
        norms = norms[norms.isfinite()]
        figures = {
            "train_loss": float(torch.stack(self.losses).cpu().double().sum()) / self.images,
            "train_acc": int(torch.stack(self.correct).cpu().sum()) / self.images,
            "train_seconds": self.seconds,
            "images_per_second": self.images / self.seconds,
            "grad_norm": float(norms.mean()) if len(norms) else None,
        }
        return figures, traces

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs, as plain numbers and CPU tensors."""
        # stacked: one by one, the processor would wait for the device as often as there were steps
        lists = {key: list(torch.stack(found).cpu()) if (found := getattr(self, key)) else [] for key in _LISTS}
        return {**lists, "images": self.images, "seconds": self.seconds, "skipped": self.skipped}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], device: torch.device) -> EpochSums:
        """The sums that `state_dict` saved, back on the device."""
        return cls(**{**state, **{key: [tensor.to(device) for tensor in state[key]] for key in _LISTS}})


@dataclass(frozen=True)
class Evaluation:
    """A split, evaluated.

    Attributes:
        loss: mean cross-entropy over the images, without label smoothing.
        accuracy: correct images ÷ images.
        predictions: predicted class of each image, in the split's order.
        labels: true class of each image.
    """

    loss: float
    accuracy: float
    predictions: list[int]
    labels: list[int]
