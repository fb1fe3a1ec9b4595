"""ViTTrainer: train an epoch, validate, train to the end, save and continue.

It reads from top to bottom and knows neither notebook nor plot nor dtype: the precision comes prepared, and whoever trains is
called back once an epoch. Losses and accuracies are means over images.
"""

from __future__ import annotations

import math
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from vitfp8.checkpoint import CheckpointError, file_digest, first_sound, load_checkpoint, save_checkpoint
from vitfp8.compilation import Compilation, compile_model, timed
from vitfp8.data import ImageData, TrainBatches, eval_batches
from vitfp8.errors import InputError
from vitfp8.memory import explain_out_of_memory, peaks, start_peaks
from vitfp8.model import decay_groups, started_from
from vitfp8.params import RunParams
from vitfp8.precision import PreparedPrecision

#: Steps between looks at the loss on a device where each look makes the processor wait. On a CPU every step is looked at.
_STEPS_BETWEEN_LOOKS = 50


def learning_rate_at(step: int, *, steps: int, peak: float, warmup_fraction: float) -> float:
    """Linear warm-up, then a cosine to zero at the end of the planned steps (Loshchilov & Hutter 2017, arXiv 1608.03983).

    Args:
        step: from 0.
        steps: planned steps of the whole training.
        peak: the learning rate after warm-up.
        warmup_fraction: part of the steps with warm-up, in [0, 1].

    Returns:
        The learning rate of this step.
    """
    warmup = round(warmup_fraction * steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


#: Checkpoints from which a training continues, in the order of trust: the newest, and the one before.
RESUMABLE = ("last", "previous")

#: Values of a per-step trace that a record keeps at most.
LONGEST_TRACE = 20_000

#: The lists of `EpochSums` that hold a tensor a step.
_SUMS = ("losses", "correct", "norms", "scales")


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

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs, as plain numbers and CPU tensors."""
        # stacked: one by one, the processor would wait for the device as often as there were steps
        lists = {key: list(torch.stack(found).cpu()) if (found := getattr(self, key)) else [] for key in _SUMS}
        return {**lists, "images": self.images, "seconds": self.seconds, "skipped": self.skipped}


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


@dataclass(frozen=True)
class Outcome:
    """How a training ended.

    Attributes:
        status: ``completed``, ``diverged`` or ``interrupted``.
        reason: why, when it did not complete.
    """

    status: str
    reason: str | None = None


class DivergenceError(Exception):
    """Training cannot go on: a non-finite loss, or a loss scale that collapsed. The message says at which step."""


class ViTTrainer:
    """Trains a Vision Transformer as the parameters say.

    Args:
        params: every parameter.
        data: the data set on the training device.
        model: the model on the training device, its precision prepared.
        precision: what `vitfp8.precision.prepare` returned.
        device: where it trains.
        folder: run folder for checkpoints; None: nothing is saved.
        compilation: whether the model is compiled; None: it is not.

    Attributes:
        compile_seconds: what compiling took beyond one run of what was compiled; None: nothing was compiled yet.
        companion_state: gives what else a checkpoint shall hold: what a monitor has measured so far.
        companion_loaded: what the checkpoint held of it from which this training continues.
    """

    def __init__(
        self,
        params: RunParams,
        data: ImageData,
        model: VisionTransformer,
        precision: PreparedPrecision,
        *,
        device: torch.device,
        folder: Path | None = None,
        compilation: Compilation | None = None,
    ) -> None:
        self.params = params
        self.data = data
        self.model = model
        self.compilation = compilation or Compilation()
        # beside the model, not instead of it: names in checkpoints stay the model's own
        self.network = compile_model(model, self.compilation)
        self.compile_seconds: float | None = None
        self.precision = precision
        self.device = device
        self.folder = folder
        self.batches = TrainBatches(data, batch_size=params.batch_size, augmentation=params.augmentation, seed=params.seed)
        if len(self.batches) == 0:
            raise InputError(
                f"batch_size: {params.batch_size}: the training split has only {data.sizes['train']} images; take a smaller batch"
            )
        self.optimizer = torch.optim.AdamW(decay_groups(model, params.weight_decay), lr=params.learning_rate, fused=True)
        self.steps = len(self.batches) * params.epochs
        self.epoch = 0
        self.step_in_epoch = 0
        self.sums = EpochSums()
        self.history: list[dict[str, Any]] = []
        self.best_val_acc = -1.0
        self.best_epoch = 0
        self.checkpoints: dict[str, str] = {}
        self.steps_trace: dict[str, list[float]] = {"grad_norm": [], "loss_scale": []}
        self.companion_state: Callable[[], dict[str, Any]] = dict
        self.companion_loaded: dict[str, Any] = {}
        self._saved_at = time.monotonic()
        self._stop = threading.Event()
        self._stop_reason = ""

    # ---------------------------------------------------------------------------------------------------- training

    def train(self, on_epoch: Callable[[dict[str, Any]], None] | None = None) -> Outcome:
        """Train to the planned end, from wherever the state stands.

        Ctrl-C and SIGTERM let the running step end, save a checkpoint and return; a second Ctrl-C stops at once.

        Args:
            on_epoch: called after each epoch with its row (the columns of `vitfp8.record.EpochRow`).

        Returns:
            How it ended.

        Raises:
            InputError: out of memory (it names the size to try), or a checkpoint could not be written.
        """
        with self._stoppable(), explain_out_of_memory(self.params, self.device):
            try:
                if self.compilation.on and self.epoch < self.params.epochs:
                    self._compile_ahead()
                while self.epoch < self.params.epochs:
                    self.train_epoch()
                    if self._stop.is_set():
                        self.save_checkpoint("last")
                        return Outcome("interrupted", f"{self._stop_reason} in epoch {self.epoch + 1}, checkpoint saved")
                    row = self._close_epoch()
                    if on_epoch is not None:
                        on_epoch(row)
            except DivergenceError as divergence:
                return Outcome("diverged", str(divergence))
        return Outcome("completed")

    def train_epoch(self) -> None:
        """Train the rest of the current epoch; its sums are in `sums`. Returns early when a stop was asked for.

        Raises:
            DivergenceError: the loss is not finite, or the loss scale collapsed.
        """
        self.model.train()
        start_peaks(self.device)
        if self.step_in_epoch == 0:
            self.sums = EpochSums(skipped=self.precision.skipped_steps() or 0)
        look_every = 1 if self.device.type == "cpu" else _STEPS_BETWEEN_LOOKS
        started = time.perf_counter()
        unseen = self.step_in_epoch
        for images, labels, _ in self.batches.epoch(self.epoch, self.step_in_epoch):
            self.train_step(images, labels)
            self.step_in_epoch += 1
            if self.step_in_epoch - unseen >= look_every or self.step_in_epoch == len(self.batches):
                self._look_at_losses(unseen)
                unseen = self.step_in_epoch
            if self._stop.is_set():
                break
            if self._checkpoint_is_due() and self.step_in_epoch < len(self.batches):
                self._synchronize()
                self.sums.seconds += time.perf_counter() - started
                self.save_checkpoint("last")
                started = time.perf_counter()
        self._synchronize()
        self.sums.seconds += time.perf_counter() - started

    def _compile_ahead(self) -> None:
        """Compile everything that the epochs call, before the first one; its time is recorded apart and enters no throughput.

        What is compiled runs once on images of the training and leaves no trace: gradients are discarded, and buffers and random
        generators are put back.
        """
        size = self.params.micro_batch_size or self.params.batch_size
        images = next(iter(eval_batches(self.data, "train_clean", size)))[0]
        images = torch.cat([images] * -(-size // len(images)))[:size]

        def training_pass() -> None:
            self.precision.backward(self.network(images).float().mean())

        def evaluation_pass() -> None:
            with torch.no_grad():
                self.network(images)

        self.compile_seconds = 0.0
        with self._without_trace():
            for mode, action in ((True, training_pass), (False, evaluation_pass)):
                self.model.train(mode)
                first, second = (timed(action, self._synchronize) for _ in range(2))
                self.compile_seconds += max(first - second, 0.0)

    @contextmanager
    def _without_trace(self) -> Iterator[None]:
        """What happens inside leaves parameters' gradients, buffers (delayed scaling's) and random generators as they were."""
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        random_state = _random_state(self.device)
        try:
            yield
        finally:
            for name, buffer in self.model.named_buffers():
                buffer.copy_(buffers[name])
            _set_random_state(random_state, self.device)
            self.optimizer.zero_grad(set_to_none=True)

    def _checkpoint_is_due(self) -> bool:
        """Whether `checkpoint_minutes` have passed since the last checkpoint, by a clock that never jumps."""
        minutes = self.params.checkpoint_minutes
        return self.folder is not None and minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes

    def train_step(self, images: Tensor, labels: Tensor) -> None:
        """One optimizer step. images ``[B, C, S, S]``, labels ``[B]``; micro-batches accumulate the gradient of the mean loss."""
        step = self.epoch * len(self.batches) + self.step_in_epoch
        rate = learning_rate_at(
            step, steps=self.steps, peak=self.params.learning_rate, warmup_fraction=self.params.warmup_fraction
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.compilation.on and self.precision.health.is_due(step):
            # compiled, the model shows no operands: they are watched in a pass of their own, which decides no number
            with self._without_trace(), self.precision.health.watching(step):
                self._forward_and_backward(self.model, images, labels)
            loss_sum, correct = self._forward_and_backward(self.network, images, labels)
        else:
            with self.precision.health.watching(step):
                loss_sum, correct = self._forward_and_backward(self.network, images, labels)
        norm = self.precision.step(self.optimizer, self.model.parameters(), self.params.gradient_clip)
        self.optimizer.zero_grad(set_to_none=True)
        self.sums.losses.append(loss_sum)
        self.sums.correct.append(correct)
        self.sums.norms.append(norm)
        if (scale := self.precision.loss_scale_tensor()) is not None:
            self.sums.scales.append(scale)
        self.sums.images += len(images)

    def _forward_and_backward(self, network: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the mean loss, accumulated over micro-batches; returns the sum of the losses and the correct images."""
        size = self.params.micro_batch_size or len(images)
        loss_sum = torch.zeros((), device=self.device)
        correct = torch.zeros((), device=self.device, dtype=torch.int64)
        for part, truth in zip(images.split(size), labels.split(size), strict=True):
            logits = network(part).float()
            loss = F.cross_entropy(logits, truth, label_smoothing=self.params.label_smoothing, reduction="sum")
            self.precision.backward(loss / len(images))
            loss_sum += loss.detach()
            correct += (logits.detach().argmax(dim=1) == truth).sum()
        return loss_sum, correct

    def _look_at_losses(self, first: int) -> None:
        """Raise `DivergenceError` for the first step from `first` on whose loss is not finite, or for a collapsed loss scale."""
        finite = torch.stack(self.sums.losses[first:]).isfinite()
        if not bool(finite.all()):
            step = first + int((~finite).int().argmax())
            where = f"step {self.epoch * len(self.batches) + step + 1} (epoch {self.epoch + 1}, step {step + 1} of it)"
            raise DivergenceError(f"the loss is not finite at {where}")
        if self.precision.collapsed():
            where = f"step {self.epoch * len(self.batches) + self.step_in_epoch} (epoch {self.epoch + 1})"
            raise DivergenceError(f"the loss scale fell to {self.precision.loss_scale():g} at {where}: every gradient overflows")

    def _close_epoch(self) -> dict[str, Any]:
        """Validate, keep the best weights, write the epoch's row and the checkpoints."""
        sums, started = self.sums, time.perf_counter()
        validation = self.validate("validation")
        clean = self.validate("train_clean")
        norms = torch.stack(sums.norms).cpu().double()  # in this order: Apple's GPU has no float64
        self.steps_trace["grad_norm"] += [float(f"{norm:.6g}") for norm in norms.tolist()]
        if sums.scales:
            self.steps_trace["loss_scale"] += torch.stack(sums.scales).cpu().tolist()
        norms = norms[norms.isfinite()]
        skipped = self.precision.skipped_steps()
        row: dict[str, Any] = {
            "epoch": self.epoch + 1,
            "train_loss": float(torch.stack(sums.losses).cpu().double().sum()) / sums.images,
            "train_acc": int(torch.stack(sums.correct).cpu().sum()) / sums.images,
            "clean_train_loss": clean.loss,
            "clean_train_acc": clean.accuracy,
            "val_loss": validation.loss,
            "val_acc": validation.accuracy,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "train_seconds": sums.seconds,
            "images_per_second": sums.images / sums.seconds,
            "grad_norm": float(norms.mean()) if len(norms) else None,
            "loss_scale": self.precision.loss_scale(),
            "skipped_steps": None if skipped is None else skipped - sums.skipped,
            **peaks(self.device),
        }
        row["epoch_seconds"] = sums.seconds + time.perf_counter() - started  # of all attempts at this epoch
        self.history.append(row)
        self.epoch += 1
        self.step_in_epoch = 0
        if validation.accuracy > self.best_val_acc:
            self.best_val_acc, self.best_epoch = validation.accuracy, self.epoch
            self._save_weights("best")
        if self.params.checkpoint_every is not None and self.epoch % self.params.checkpoint_every == 0:
            self._save_weights(f"epoch_{self.epoch}")
        self.save_checkpoint("last")
        return row

    # ------------------------------------------------------------------------------------------------- evaluation

    @torch.no_grad()
    def validate(self, split: str = "validation") -> Evaluation:
        """Evaluate a split, in the precision of training.

        Args:
            split: ``validation``, ``train_clean`` or ``test``.

        Returns:
            Mean loss and accuracy over its images, and the predictions.
        """
        self.model.eval()
        size = self.params.micro_batch_size or self.params.batch_size
        losses, predicted, truths = [], [], []
        for images, labels in eval_batches(self.data, split, size):
            logits = self._evaluate(images, size).float()
            losses.append(F.cross_entropy(logits, labels, reduction="none"))
            predicted.append(logits.argmax(dim=1))
            truths.append(labels)
        loss, prediction, truth = (torch.cat(parts).cpu() for parts in (losses, predicted, truths))
        return Evaluation(
            loss=float(loss.double().mean()),
            accuracy=int((prediction == truth).sum()) / len(truth),
            predictions=prediction.tolist(),
            labels=truth.tolist(),
        )

    def _evaluate(self, images: Tensor, size: int) -> Tensor:
        """Logits of up to `size` images. A compiled model knows one batch size: a smaller last batch is padded and cut."""
        if not self.compilation.on or len(images) == size:
            return self.network(images)
        padding = images.new_zeros(size - len(images), *images.shape[1:])
        return self.network(torch.cat([images, padding]))[: len(images)]

    # ------------------------------------------------------------------------------------------------ checkpoints

    def save_checkpoint(self, name: str = "last") -> Path | None:
        """Save everything that an exact resume needs; see `vitfp8.checkpoint`.

        Args:
            name: file name without suffix, in ``checkpoints/`` of the run folder.

        Returns:
            The file; None without a run folder.
        """
        state = {
            "parameters": self.params.digest,
            "data": self.data.digest,
            "pretrained": started_from(self.model),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "precision": self.precision.state_dict(),
            "epoch": self.epoch,
            "step_in_epoch": self.step_in_epoch,
            "sums": self.sums.state_dict(),
            "history": self.history,
            "best_val_acc": self.best_val_acc,
            "best_epoch": self.best_epoch,
            "checkpoints": self.checkpoints,
            "steps_trace": self.steps_trace,
            "random": _random_state(self.device),
            "companion": self.companion_state(),
        }
        self._saved_at = time.monotonic()
        return self._save(name, state, before="previous" if name == "last" else None)

    def _save_weights(self, name: str) -> None:
        """Save the weights alone, for evaluation and for other programs."""
        # a quantisation names this file's digest: the first rule's, so that the same weights give the same file for ever
        state = {"parameters": self.params.digest_under(1), "epoch": self.epoch, "model": self.model.state_dict()}
        self._save(name, state)

    def _save(self, name: str, state: Mapping[str, Any], *, before: str | None = None) -> Path | None:
        """Save a state under a name and remember its digest; what had the name may be kept under another."""
        if self.folder is None:
            return None
        path = self.folder / "checkpoints" / f"{name}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = path.with_name(f"{before}.pt") if before else None
        self.checkpoints[name] = save_checkpoint(state, path, before=kept)
        return path

    def resume(self) -> list[str]:
        """Continue from the run folder's newest sound checkpoint; without one the training begins at the beginning.

        Returns:
            What is wrong with a newer checkpoint that had to be passed over; one line each.

        Raises:
            CheckpointError: there are checkpoints and none is sound, or they belong to a run with other parameters.
        """
        if self.folder is None:
            return []
        found = first_sound([self.folder / "checkpoints" / f"{name}.pt" for name in RESUMABLE], device=self.device)
        if found is None:
            return []
        state, path, problems = found
        if state.get("parameters") not in (self.params.digest, self.params.digest_under(1)):
            raise CheckpointError(
                f"{path}: belongs to a run with other parameters; move {path.parent} aside, or give another run_folder"
            )
        if state.get("data", self.data.digest) != self.data.digest:
            raise CheckpointError(
                f"{path}: was trained on another {self.data.label} than is there now (their digests differ); "
                "restore those files, or give another run_folder"
            )
        if state.get("pretrained", started_from(self.model)) != started_from(self.model):
            raise CheckpointError(
                f"{path}: its training started from other pretrained weights than are there now (their digests differ); "
                "restore that file, or give another run_folder"
            )
        try:
            self._load_state(state)
        except (KeyError, RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise CheckpointError(
                f"{path}: does not fit this run ({error}); move {path.parent} aside, or give another run_folder"
            ) from None
        if path.stem == "last":  # a file cannot hold its own digest, and a training that had come to its end saves none again
            self.checkpoints["last"] = file_digest(path)
        return [f"{problem}; continued from {path.name}, the one before" for problem in problems]

    def _load_state(self, state: Mapping[str, Any]) -> None:
        """Take over what `save_checkpoint` wrote."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.precision.load_state_dict(state["precision"])
        self.epoch, self.step_in_epoch = state["epoch"], state["step_in_epoch"]
        self.sums = EpochSums(**state["sums"])
        for name in _SUMS:
            setattr(self.sums, name, [tensor.to(self.device) for tensor in getattr(self.sums, name)])
        self.history = state["history"]
        self.best_val_acc, self.best_epoch = state["best_val_acc"], state["best_epoch"]
        self.checkpoints = state["checkpoints"]
        self.steps_trace = state["steps_trace"]
        self.companion_loaded = state["companion"]
        _set_random_state(state["random"], self.device)

    def load_weights(self, name: str = "best") -> None:
        """Load the weights that were saved under a name; nothing without a run folder.

        Args:
            name: ``best`` or ``epoch_<n>``.

        Raises:
            CheckpointError: the file is missing, damaged, or not the one that this training saved.
        """
        if self.folder is not None:
            path = self.folder / "checkpoints" / f"{name}.pt"
            state = load_checkpoint(path, device=self.device)
            if name in self.checkpoints and file_digest(path) != self.checkpoints[name]:
                raise CheckpointError(
                    f"{path}: is sound, but of another moment of this run; bring the right one back, or begin anew"
                )
            self.model.load_state_dict(state["model"])

    def health_report(self) -> dict[str, Any]:
        """Numeric health as the record keeps it: sampled operands, and gradient norm and loss scale of each step.

        Very long traces are thinned: ``stride`` steps stand between two values.
        """
        length = len(self.steps_trace["grad_norm"])
        stride = -(-length // LONGEST_TRACE) or 1
        trace = {name: values[stride - 1 :: stride] for name, values in self.steps_trace.items() if values}
        return {**self.precision.health.report(), "steps": {"stride": stride, **trace}}

    # ---------------------------------------------------------------------------------------------------- details

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        """Turn Ctrl-C and SIGTERM into a request to stop after the running step; restore the handlers afterwards."""
        self._stop.clear()
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, _frame: object) -> None:
            if self._stop.is_set() and number == signal.SIGINT:
                raise KeyboardInterrupt
            self._stop_reason = f"stopped by {signal.Signals(number).name}"
            self._stop.set()

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _synchronize(self) -> None:
        """Wait for the device, so that a time is a time."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()


def _random_state(device: torch.device) -> dict[str, Any]:
    """The state of every random generator. No draw of data comes from them, but a model's own (dropout) may."""
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), int(position), int(has_gauss), float(cached)),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def _set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Continue every random generator from `_random_state`."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
    elif device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"].cpu())
