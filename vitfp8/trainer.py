"""ViTTrainer: train an epoch, validate, train to the end, save and continue.

The trainer knows neither notebook nor plot nor dtype: the model's precision is prepared beforehand, and the caller is called back
once per epoch. Losses and accuracies are means over images.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from vitfp8.checkpoint import CheckpointError, first_sound, flush, load_checkpoint, save_checkpoint
from vitfp8.compilation import Compilation, compile_model, timed
from vitfp8.data import ImageData, TrainBatches, eval_batches
from vitfp8.epoch import EpochSums, Evaluation
from vitfp8.errors import InputError
from vitfp8.files import file_digest
from vitfp8.interrupt import Interrupt
from vitfp8.memory import explain_out_of_memory, peaks, start_peaks
from vitfp8.model import decay_groups, started_from
from vitfp8.params import RunParams
from vitfp8.precision import PreparedPrecision
from vitfp8.random_state import random_state, set_random_state, without_trace

#: Steps between checks of the loss on a device where each check makes the processor wait. On a CPU every step is checked.
_STEPS_BETWEEN_LOOKS = 50

#: Checkpoints from which a training continues, in the order of trust: the newest, and an earlier one.
RESUMABLE = ("last", "previous")

#: Checkpoints written within so many seconds of a flushed one are left to the system's page cache. A killed process loses
#: nothing by that; a power cut may cost the epochs of this time.
FLUSH_SECONDS = 5.0

#: Values that a record keeps at most of a trace with one value per step.
LONGEST_TRACE = 20_000


def learning_rate_at(step: int, *, steps: int, peak: float, warmup_fraction: float) -> float:
    """Learning rate of a step, counted from 0: linear warm-up to `peak`, then a cosine to zero at the last of `steps`.

    Loshchilov & Hutter 2017, arXiv 1608.03983.
    """
    warmup = round(warmup_fraction * steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


@dataclass(frozen=True)
class Outcome:
    """How a training ended: ``completed``, ``diverged`` or ``interrupted``, and why, when it did not complete."""

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
        compile_seconds: time of compiling beyond one run of the compiled code; None: nothing was compiled yet.
        companion_state: returns what else a checkpoint holds, such as what a monitor has measured so far.
        companion_loaded: what `companion_state` returned for the checkpoint from which this training continues.
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
        self._interrupt = Interrupt()
        self._saved_at = time.monotonic()
        self._flushed_at = -math.inf
        self._unflushed: set[str] = set(RESUMABLE[:1])  # whether an earlier process flushed it is not known

    # ---------------------------------------------------------------------------------------------------- training

    def train(self, on_epoch: Callable[[dict[str, Any]], None] | None = None) -> Outcome:
        """Train from the present state to the planned end.

        Ctrl-C and SIGTERM let the running step end, save a checkpoint and return; a second Ctrl-C stops at once.

        Args:
            on_epoch: called after each epoch with its row (the columns of `vitfp8.record.EpochRow`).

        Raises:
            InputError: out of memory (it names the size to try), or a checkpoint could not be written.
        """
        outcome = Outcome("completed")
        with self._interrupt.listening(), explain_out_of_memory(self.params, self.device):
            try:
                if self.compilation.on and self.epoch < self.params.epochs:
                    self._compile_ahead()
                while self.epoch < self.params.epochs:
                    self.train_epoch()
                    if self._interrupt.requested:
                        self.save_checkpoint("last")
                        outcome = Outcome("interrupted", f"{self._interrupt.reason} in epoch {self.epoch + 1}, checkpoint saved")
                        break
                    row = self._close_epoch()
                    if on_epoch is not None:
                        on_epoch(row)
            except DivergenceError as divergence:
                outcome = Outcome("diverged", str(divergence))
            self._flush_pending()
        return outcome

    def train_epoch(self) -> None:
        """Train the rest of the current epoch; its sums are in `sums`. Returns early when a stop was requested.

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
            if self._interrupt.requested:
                break
            if self._checkpoint_is_due() and self.step_in_epoch < len(self.batches):
                self._synchronize()
                self.sums.seconds += time.perf_counter() - started
                self.save_checkpoint("last")
                started = time.perf_counter()
        self._synchronize()
        self.sums.seconds += time.perf_counter() - started

    def train_step(self, images: Tensor, labels: Tensor) -> None:
        """One optimizer step. images ``[B, C, S, S]``, labels ``[B]``; micro-batches accumulate the gradient of the mean loss."""
        params = self.params
        step = self.epoch * len(self.batches) + self.step_in_epoch
        rate = learning_rate_at(step, steps=self.steps, peak=params.learning_rate, warmup_fraction=params.warmup_fraction)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.compilation.on and self.precision.health.is_due(step):
            # a compiled model shows no operands: they are watched in a pass of their own, which decides no number
            with without_trace(self.model, self.device), self.precision.health.watching(step):
                self._forward_and_backward(self.model, images, labels)
            loss_sum, correct = self._forward_and_backward(self.network, images, labels)
        else:
            with self.precision.health.watching(step):
                loss_sum, correct = self._forward_and_backward(self.network, images, labels)
        norm = self.precision.step(self.optimizer, self.model.parameters(), params.gradient_clip)
        self.optimizer.zero_grad(set_to_none=True)
        self.sums.losses.append(loss_sum)
        self.sums.correct.append(correct)
        self.sums.norms.append(norm)
        if (scale := self.precision.loss_scale_tensor()) is not None:
            self.sums.scales.append(scale)
        self.sums.images += len(images)

    def _forward_and_backward(self, network: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Accumulate gradients of the mean loss over micro-batches; returns the sum of the losses and the correct images."""
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
        before = self.epoch * len(self.batches)
        finite = torch.stack(self.sums.losses[first:]).isfinite()
        if not bool(finite.all()):
            step = first + int((~finite).int().argmax())
            where = f"step {before + step + 1} (epoch {self.epoch + 1}, step {step + 1} of it)"
            raise DivergenceError(f"the loss is not finite at {where}")
        if self.precision.collapsed():
            where = f"step {before + self.step_in_epoch} (epoch {self.epoch + 1})"
            raise DivergenceError(f"the loss scale fell to {self.precision.loss_scale():g} at {where}: every gradient overflows")

    def _close_epoch(self) -> dict[str, Any]:
        """Validate, keep the best weights, write the checkpoints; returns the epoch's row."""
        sums, started = self.sums, time.perf_counter()
        validation = self.validate("validation")
        clean = self.validate("train_clean")
        figures, traces = sums.close()
        for name, values in traces.items():
            self.steps_trace[name] += values
        skipped = self.precision.skipped_steps()
        row: dict[str, Any] = {
            "epoch": self.epoch + 1,
            **figures,
            "clean_train_loss": clean.loss,
            "clean_train_acc": clean.accuracy,
            "val_loss": validation.loss,
            "val_acc": validation.accuracy,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
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

    def _compile_ahead(self) -> None:
        """Compile what the epochs call before the first one; its time is recorded separately and enters no throughput.

        The compiled code runs once on training images and leaves no trace in gradients, buffers or random generators.
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
        with without_trace(self.model, self.device):
            for mode, action in ((True, training_pass), (False, evaluation_pass)):
                self.model.train(mode)
                first, second = (timed(action, self._synchronize) for _ in range(2))
                self.compile_seconds += max(first - second, 0.0)

    def _synchronize(self) -> None:
        """Wait for the device, so that measured times include its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    # ------------------------------------------------------------------------------------------------- evaluation

    @torch.no_grad()
    def validate(self, split: str = "validation") -> Evaluation:
        """Evaluate a split (``validation``, ``train_clean`` or ``test``) in the precision of training."""
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

    def health_report(self) -> dict[str, Any]:
        """Numeric health for the record: sampled operands, and gradient norm and loss scale of each step.

        Very long traces are thinned: values are ``stride`` steps apart.
        """
        length = len(self.steps_trace["grad_norm"])
        stride = -(-length // LONGEST_TRACE) or 1
        trace = {name: values[stride - 1 :: stride] for name, values in self.steps_trace.items() if values}
        return {**self.precision.health.report(), "steps": {"stride": stride, **trace}}

    # ------------------------------------------------------------------------------------------------ checkpoints

    def _checkpoint_is_due(self) -> bool:
        """Whether `checkpoint_minutes` have passed since the last checkpoint, by a clock that never jumps."""
        minutes = self.params.checkpoint_minutes
        return self.folder is not None and minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes

    def save_checkpoint(self, name: str = "last") -> Path | None:
        """Save all that an exact resume needs as ``checkpoints/<name>.pt``; returns the file, None without a run folder."""
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
            "random": random_state(self.device),
            "companion": self.companion_state(),
        }
        self._saved_at = time.monotonic()
        # `previous` is always flushed: an unflushed `last` is overwritten and does not take its place
        path = self._save(name, state, before="previous" if name == "last" and name not in self._unflushed else None)
        if name == "last" and self._flush_is_due():
            self._flush_pending()
        return path

    def _save_weights(self, name: str) -> None:
        """Save the weights alone, for evaluation and for other programs."""
        # a quantisation names this file's digest: the first rule's, so that the same weights give the same file for ever
        state = {"parameters": self.params.digest_under(1), "epoch": self.epoch, "model": self.model.state_dict()}
        self._save(name, state)

    def _file(self, name: str) -> Path:
        """The file of a checkpoint; only with a run folder."""
        assert self.folder is not None
        return self.folder / "checkpoints" / f"{name}.pt"

    def _save(self, name: str, state: Mapping[str, Any], *, before: str | None = None) -> Path | None:
        """Save a state under a name and remember its digest; the file that had the name may be kept under another."""
        if self.folder is None:
            return None
        path = self._file(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        due = self._flush_is_due()
        self.checkpoints[name] = save_checkpoint(state, path, before=self._file(before) if before else None, flushed=due)
        (self._unflushed.discard if due else self._unflushed.add)(name)
        return path

    def _flush_is_due(self) -> bool:
        """Whether the last flush of all checkpoints is `FLUSH_SECONDS` ago: always so where epochs take longer."""
        return time.monotonic() - self._flushed_at >= FLUSH_SECONDS

    def _flush_pending(self) -> None:
        """Flush every checkpoint that is still in the page cache alone, weights first."""
        for name in sorted(self._unflushed, key=lambda name: name == "last"):
            if self.folder is not None and self._file(name).is_file():
                flush(self._file(name))
        self._unflushed.clear()
        self._flushed_at = time.monotonic()

    def resume(self) -> list[str]:
        """Continue from the run folder's newest sound checkpoint; without one the training begins at the beginning.

        Returns:
            What is wrong with a newer checkpoint that had to be passed over; one line each.

        Raises:
            CheckpointError: there are checkpoints and none is sound, or they belong to a run with other parameters.
        """
        if self.folder is None:
            return []
        found = first_sound([self._file(name) for name in RESUMABLE], device=self.device)
        if found is None:
            return []
        state, path, problems = found
        self._refuse_other_run(state, path)
        try:
            self._load_state(state)
        except (KeyError, RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise CheckpointError(
                f"{path}: does not fit this run ({error}); move {path.parent} aside, or give another run_folder"
            ) from None
        if path.stem == "last":  # a file cannot hold its own digest, and a training that had come to its end saves none again
            self.checkpoints["last"] = file_digest(path)
        return [f"{problem}; continued from {path.name}, the one before" for problem in problems]

    def _refuse_other_run(self, state: Mapping[str, Any], path: Path) -> None:
        """Refuse a checkpoint of other parameters, another data set or other pretrained weights."""
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

    def _load_state(self, state: Mapping[str, Any]) -> None:
        """Take over what `save_checkpoint` wrote."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.precision.load_state_dict(state["precision"])
        self.epoch, self.step_in_epoch = state["epoch"], state["step_in_epoch"]
        self.sums = EpochSums.from_state(state["sums"], self.device)
        self.history = state["history"]
        self.best_val_acc, self.best_epoch = state["best_val_acc"], state["best_epoch"]
        self.checkpoints = state["checkpoints"]
        self.steps_trace = state["steps_trace"]
        self.companion_loaded = state["companion"]
        set_random_state(state["random"], self.device)

    def load_weights(self, name: str = "best") -> None:
        """Load the weights saved as ``best`` or ``epoch_<n>``; nothing without a run folder.

        Raises:
            CheckpointError: the file is missing, damaged, or not the one that this training saved.
        """
        if self.folder is None:
            return
        path = self._file(name)
        state = load_checkpoint(path, device=self.device)
        if name in self.checkpoints and file_digest(path) != self.checkpoints[name]:
            raise CheckpointError(f"{path}: is sound, but of another moment of this run; bring the right one back, or begin anew")
        self.model.load_state_dict(state["model"])
