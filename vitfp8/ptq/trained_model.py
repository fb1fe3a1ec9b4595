"""A trained model, loaded back from a run: its weights verified against the record before anything reads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from timm.models.vision_transformer import VisionTransformer

from vitfp8.catalog import DATASETS, DEVICES
from vitfp8.checkpoint import CheckpointError, file_digest, load_checkpoint
from vitfp8.errors import InputError
from vitfp8.model import create_model
from vitfp8.params import Layer, RunParams, field_notes, idle_values, validate
from vitfp8.precision import resolve_device
from vitfp8.record import RunRecord, find_run, read_record, run_folders

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
    with torch.random.fork_rng(devices=[]):  # the weights that are drawn first and replaced shift nobody's random numbers
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

    Args:
        notebook: the run's executed notebook.
        record: its record.
        over: what is laid over them.

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
        notebook: the run's executed notebook.
        record: its record.
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
        notebook: the run's executed notebook.
        record: its record.
        params: of the run.
        path: from `verified_weights`.
        classes: outputs of the head.
        device: where the model goes.

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
