"""The trained model that is quantised: its run found and verified, its weights and data loaded as they were in training."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from vitfp8.data import ImageData, eval_batches
from vitfp8.data.batches import augmentation_of
from vitfp8.data.draws import fixed_order
from vitfp8.errors import InputError
from vitfp8.experiment import data_of, set_determinism
from vitfp8.home import at_home, run_command
from vitfp8.memory import keep_freed_memory
from vitfp8.model import model_facts
from vitfp8.params import RunParams
from vitfp8.params.quantization import QuantizeParams
from vitfp8.precision import PreparedPrecision, prepare, resolve_device
from vitfp8.precision.capability import devices_passed_over
from vitfp8.ptq.trained_model import recorded_parameters, trained_model, verified_weights
from vitfp8.record import RunRecord, best_weights, notebook_of, read_source_run, source_run_command


@dataclass(frozen=True)
class Logits:
    """The outputs of a model on a split.

    Attributes:
        values: float32 [images, classes] on the CPU.
        labels: true classes, int64 [images] on the CPU.
    """

    values: Tensor
    labels: Tensor

    @property
    def predictions(self) -> Tensor:
        """Predicted classes, int64 [images]."""
        return self.values.argmax(dim=1)

    @property
    def correct(self) -> Tensor:
        """Whether each image is right, bool [images]."""
        return self.predictions == self.labels

    @property
    def accuracy(self) -> float:
        """Correct images ÷ images."""
        return int(self.correct.sum()) / len(self.labels)

    @property
    def loss(self) -> float:
        """Mean cross-entropy over the images."""
        return float(F.cross_entropy(self.values, self.labels, reduction="none").double().mean())


@dataclass
class Source:
    """A trained model, ready to be evaluated and quantised.

    Attributes:
        params: of its run; device and threads are those of the quantisation.
        record: of its run.
        notebook: its executed notebook.
        device: where the model is.
        data: the data set on the device.
        model: with the weights of the best validation epoch, in its own precision, in evaluation mode.
        facts: of the model.
        precision: effective precision.
        determinism: what the record says of repeats.
        checkpoint: the file with the weights.
        checkpoint_sha256: its digest.
    """

    params: RunParams
    record: RunRecord
    notebook: Path
    device: torch.device
    data: ImageData
    model: VisionTransformer
    facts: dict[str, Any]
    precision: PreparedPrecision
    determinism: dict[str, Any]
    checkpoint: Path
    checkpoint_sha256: str

    @property
    def _batch(self) -> int:
        """Images at once: as in its own evaluation, since the shape of a batch may decide last bits."""
        return self.params.micro_batch_size or self.params.batch_size

    @torch.no_grad()
    def logits(self, split: str, model: VisionTransformer | None = None) -> Logits:
        """Evaluate the model as it stands.

        Args:
            split: ``validation`` or ``test``.
            model: another one instead, on the same device.
        """
        model = model or self.model
        values, labels = [], []
        for images, truth in eval_batches(self.data, split, self._batch):
            values.append(model(images).float())
            labels.append(truth)
        return Logits(torch.cat(values).cpu(), torch.cat(labels).cpu())

    def calibration_batches(self, count: int) -> Iterator[Tensor]:
        """Training images, not augmented, in an order that no seed changes.

        Args:
            count: how many; all where there are fewer.

        Yields:
            images, float32 [B, C, S, S] on the device.
        """
        clean = augmentation_of(self.data, "none")
        indices = torch.from_numpy(fixed_order(self.data.split("train").indices.numpy())[:count])
        steps = list(indices.split(self._batch))
        for step, (images, _) in zip(steps, self.data.read(steps, self.data.reader()), strict=True):
            yield clean(images, clean.draw(0, 0, step.numpy()))


def find_source(params: QuantizeParams) -> tuple[Path, RunRecord]:
    """The run that is quantised: the named one, or that of the same study and seed.

    Args:
        params: source_run, source_experiment, source_variant, seed, run_folder.

    Returns:
        Its executed notebook and its record.

    Raises:
        InputError: there is none to start from; the line names the command that makes one.
    """
    study = at_home(params.run_folder).parent if params.run_folder else None
    place = at_home(params.source_run) if params.source_run is not None else None
    beside = place.parent if place is not None and place.parent.parent.name == "executed" else study
    command = source_run_command(
        params.source_experiment, variant=params.source_variant, seed=params.seed, study=beside.name if beside else None
    )
    if place is None and study is not None:
        place = study / f"{params.source_name}.ipynb"
    if place is None:
        raise InputError(
            f"source_run: null: without a runner no study is known; give the notebook of a completed {params.source_experiment}, "
            f"e.g. executed/digits/{params.source_name}.ipynb, which `{run_command('digits', params.source_experiment)}` makes"
        )
    record = read_source_run(place, experiment=params.source_experiment, seed=params.seed, command=command)
    if record.variant != params.source_variant:
        raise InputError(f"source_run: {str(place)!r}: is the variant {record.variant!r}; set source_variant to it")
    return notebook_of(place), record


def verified_checkpoint(notebook: Path, record: RunRecord) -> tuple[Path, str]:
    """The best weights of a run and their digest, which is the one that the record names.

    Args:
        notebook: the run's executed notebook.
        record: its record.

    Raises:
        InputError: the file is missing, truncated, altered, or of another run.
    """
    best_weights(notebook, record)  # its refusal names the parameter that points to the run
    return verified_weights(notebook, record, "best")


def source_parameters(notebook: Path, record: RunRecord, params: QuantizeParams) -> RunParams:
    """The parameters of the source run, with device, threads and places of the quantisation.

    Args:
        notebook: the run's executed notebook.
        record: its record.
        params: of the quantisation.

    Raises:
        InputError: the record's parameters are none of this version, or those of a training in FP8.
    """
    own = {"device": params.device, "threads": params.threads, "download": params.download, "health_every": 0}
    if params.data_dir is not None:
        own["data_dir"] = params.data_dir
    run = recorded_parameters(notebook, record, own)
    if run.precision == "fp8":
        raise InputError(
            f"source_run: {str(notebook)!r}: was trained in FP8: its layers are quantised already; take one in another precision"
        )
    return run


def load_source(params: QuantizeParams) -> Source:
    """Find, verify and load the trained model with its data, in the precision that it was trained in.

    Args:
        params: of the quantisation.

    Raises:
        InputError: the run, its data, its weights or this device are not what they must be; one line with a way out.
    """
    notebook, record = find_source(params)
    checkpoint, digest = verified_checkpoint(notebook, record)
    run = source_parameters(notebook, record, params)
    device = resolve_device(run.device)
    for reason in devices_passed_over(run.device):
        warnings.warn(reason, stacklevel=2)  # the notebook shows it
    keep_freed_memory()
    determinism = set_determinism(run, device)
    data = data_of(run, device)
    if record.data.get("digest") and data.digest != record.data["digest"]:
        raise InputError(
            f"data_dir: the data set {run.dataset} is not the one that {notebook.name} was trained on "
            f"(digest {data.digest[:12]}…, not {str(record.data['digest'])[:12]}…); give the folder with those files"
        )
    model = trained_model(notebook, record, run, checkpoint, classes=data.classes, device=device)
    facts = model_facts(model, run.model)
    precision = prepare(model, run.precision, device=device, backend=run.backend)
    model.eval()
    return Source(
        params=run, record=record, notebook=notebook, device=device, data=data, model=model, facts=facts, precision=precision,
        determinism=determinism, checkpoint=checkpoint, checkpoint_sha256=digest,
    )  # fmt: skip
