"""Trained models: found by run, their weights verified against the record, loaded alone or with their data for quantisation."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from vitfp8.catalog import DATASETS, DEVICES
from vitfp8.checkpoint import CheckpointError, load_checkpoint
from vitfp8.data import ImageData, eval_batches
from vitfp8.data.batches import augmentation_of
from vitfp8.data.draws import fixed_order
from vitfp8.determinism import set_determinism
from vitfp8.errors import InputError
from vitfp8.experiment import data_of
from vitfp8.files import file_digest
from vitfp8.home import at_home, run_command
from vitfp8.memory import keep_freed_memory
from vitfp8.model import create_model, model_facts
from vitfp8.params import Layer, RunParams, field_notes, idle_values, validate
from vitfp8.params.quantization import QuantizeParams
from vitfp8.precision import PreparedPrecision, prepare, resolve_device
from vitfp8.precision.capability import devices_passed_over
from vitfp8.precision.preparation import PRECISIONS
from vitfp8.record import (
    RunRecord,
    best_weights,
    find_run,
    notebook_of,
    read_record,
    read_source_run,
    run_folders,
    source_run_command,
)

#: Status of a run that has no final weights → what to do about it.
_WAY_OUT = {
    "running": "wait for it",
    "interrupted": "the command that started it continues it",
    "failed": "the command that started it tries it again",
    "diverged": "its weights are not finite; take another run",
}


def load_model(
    run: str | Path, *, weights: Literal["last", "best"] = "last", device: str | torch.device = "cpu"
) -> VisionTransformer:
    """The trained model of a completed run: timm's Vision Transformer in FP32, in evaluation mode.

    Its weights are the run's, which every precision keeps in FP32. Its products are PyTorch's own FP32: the predictions in a
    record of a lower precision come from that precision's arithmetic and may differ in single images.

    Args:
        run: ``executed/<study>/<run>.ipynb``, its run folder, or ``<study>/<run>``.
        weights: ``last``, those of the last epoch, which the primary endpoint ``test_acc`` has; ``best``, those of the best
            validation epoch.
        device: ``cpu``, ``cuda``, ``mps``, ``auto``, or torch's.

    Returns:
        The model. Input ``[B, C, S, S]``, normalised with the data set's mean and deviation (``read_record(run).data``);
        output ``[B, classes]``.

    Raises:
        InputError: there is no such run, it is not a completed training of this project, or its weights are not here or are
            not those that the record names; one line.
    """
    notebook = find_run(run)
    record = read_record(notebook)
    if weights not in ("last", "best"):
        raise InputError(f"weights: {weights!r}: is neither 'last' nor 'best'; 'last' are those of the primary endpoint")
    if record.origin == "imported":
        raise InputError(f"{notebook}: is imported from an earlier project, whose weights are not loaded; take a run of this one")
    if record.kind != "run":
        raise InputError(
            f"{notebook}: is a quantisation, which trains no model; load its source {record.source.get('run')}, or its exported "
            "models with vitfp8.ptq.load_quantized"
        )
    if record.status != "completed":
        raise InputError(f"{notebook}: is {record.status}, not completed; {_WAY_OUT[record.status]}")
    place = _device(device)
    params = recorded_parameters(notebook, record)
    path, _ = verified_weights(notebook, record, weights)
    classes = int(record.data.get("classes") or DATASETS[params.dataset].classes or 10)
    with torch.random.fork_rng(devices=[]):  # drawing the initial weights must not advance the caller's generators
        return trained_model(notebook, record, params, path, classes=classes, device=place).eval()


def _device(device: str | torch.device) -> torch.device:
    """The device that the caller means, refused where the machine has none."""
    try:
        found = resolve_device("auto") if device == "auto" else torch.device(device)
    except RuntimeError:
        found = None
    if found is None or found.type not in DEVICES:
        raise InputError(f"device: {str(device)!r}: is unknown; take auto, cpu, cuda or mps")
    resolve_device(found.type)
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device: {str(device)!r}: this machine has {torch.cuda.device_count()} such devices, counted from 0")
    return found


def recorded_parameters(notebook: Path, record: RunRecord, over: Mapping[str, Any] | None = None) -> RunParams:
    """The parameters of a training run as this version states them.

    Raises:
        InputError: they are not parameters of this version.
    """
    neutral = {key: note.neutral for key, note in field_notes(RunParams).items() if note.neutral is not ...}
    idle = {key: value for key, (value, _) in idle_values(record.parameters).items()}
    layers = [Layer("later parameters", neutral), Layer(str(notebook), record.parameters | idle)]
    return validate([*layers, Layer("the quantisation", over)] if over else layers)


def verified_weights(notebook: Path, record: RunRecord, weights: str = "best") -> tuple[Path, str]:
    """The file with the weights of a run, and its digest, which is the one that the record names.

    Args:
        weights: ``last`` or ``best``.

    Raises:
        CheckpointError: the record names none, or the file is missing, truncated, altered, or of another run.
    """
    if weights not in record.checkpoints:
        raise CheckpointError(f"{notebook}: its record names no {weights} weights; run it again")
    files = [folder / "checkpoints" / f"{weights}.pt" for folder in run_folders(notebook, record)]
    path = next((file for file in files if file.is_file()), None)
    if path is None:
        raise CheckpointError(
            f"{notebook}: {files[0]} is not there; copy the run's folder beside its notebook, or run it again with --force"
        )
    try:
        digest = file_digest(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    if digest != record.checkpoints[weights]:
        raise CheckpointError(
            f"{path}: is not the file that the record of {notebook.name} names (SHA-256 {digest[:12]}…, not "
            f"{record.checkpoints[weights][:12]}…): truncated, altered or of another run; run it again with --force"
        )
    return path, digest


def trained_model(
    notebook: Path, record: RunRecord, params: RunParams, path: Path, *, classes: int, device: torch.device
) -> VisionTransformer:
    """The model of a run with its trained weights, in FP32 and in training mode, as `create_model` gives it.

    Args:
        path: from `verified_weights`.

    Raises:
        CheckpointError: the weights belong to other parameters, or to another model.
    """
    model = create_model(params.model_copy(update={"pretrained": False, "pretrained_file": None}), classes).to(device)
    state = load_checkpoint(path, device=device)
    if state.get("parameters") not in (record.parameters_digest, record.first_rule_digest):
        raise CheckpointError(f"{path}: belongs to a run with other parameters than {notebook.name}; run that again")
    try:
        own = {name: state["model"][name] for name in model.state_dict()}  # FP8 recipes keep their scales beside the weights
        model.load_state_dict(own)
    except (KeyError, RuntimeError, TypeError):
        raise CheckpointError(
            f"{path}: its weights are those of another model than {params.model} as {notebook.name} states it; run it again"
        ) from None
    return model


# ----------------------------------------------- for quantisation


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
class TrainedModel:
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

    Raises:
        InputError: the file is missing, truncated, altered, or of another run.
    """
    best_weights(notebook, record)  # its refusal names the parameter that points to the run
    return verified_weights(notebook, record, "best")


def source_parameters(notebook: Path, record: RunRecord, params: QuantizeParams) -> RunParams:
    """The parameters of the source run, with device, threads and places of the quantisation.

    Raises:
        InputError: the record's parameters are none of this version, or those of a training in FP8.
    """
    own = {"device": params.device, "threads": params.threads, "download": params.download, "health_every": 0}
    if params.data_dir is not None:
        own["data_dir"] = params.data_dir
    run = recorded_parameters(notebook, record, own)
    if PRECISIONS[run.precision].scaled:
        raise InputError(
            f"source_run: {str(notebook)!r}: was trained in FP8: its layers are quantised already; take one in another precision"
        )
    return run


def load_trained(params: QuantizeParams) -> TrainedModel:
    """Find, verify and load the trained model with its data, in the precision that it was trained in.

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
    return TrainedModel(
        params=run, record=record, notebook=notebook, device=device, data=data, model=model, facts=facts, precision=precision,
        determinism=determinism, checkpoint=checkpoint, checkpoint_sha256=digest,
    )  # fmt: skip
