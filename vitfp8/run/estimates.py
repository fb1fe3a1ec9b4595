"""What a batch will cost, said beforehand: disk from the sizes of models, memory from their shapes, time from earlier records.

Where no earlier record tells how fast this machine is at a run, a few training steps are measured. An estimate is for planning:
it says what it rests on, and nothing is refused for time or memory that was only estimated.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from vitfp8.catalog import PRECISION_FACTS
from vitfp8.errors import InputError
from vitfp8.params import RunParams, field_notes
from vitfp8.record import RunRecord, compare_code, load_records, processor_and_cores, record_from_journal
from vitfp8.run.locate import executed_folder
from vitfp8.run.plan import PlannedRun

#: Bytes of a lab record with its figures, of its journal and of the attempts before it, generously.
RECORD_BYTES = 3_000_000

#: Seconds that a run takes beside training: kernel start, imports, data, test set, saving. Measured on two cores.
FIXED_SECONDS = 12.0

#: Bytes that a run's process takes before it trains: Python, torch, Jupyter's kernel and the libraries. Measured as the largest
#: resident set of smoke runs, FP32 and FP16, with torch 2.14 on Linux; 380 MB of it are files that other processes may share.
PROCESS_BYTES = 940_000_000

#: Floating-point operations that a measured step has at most, so that a slow machine answers in seconds too.
_MEASURED_FLOPS = 60e9

#: A parameter that changes how long a run takes. Runs that agree in these are as fast as each other on the same machine.
_SPEED = (
    "dataset", "augmentation", "model", "image_size", "patch_size", "embed_dim", "depth", "num_heads", "in_channels",
    "batch_size", "micro_batch_size", "precision", "backend", "fp8_recipe", "base_precision", "device", "threads",
    "validation_fraction", "torch_compile", "cuda_graphs",
)  # fmt: skip

#: Fields that older records lack → what they stand for.
_BEFORE = {key: note.neutral for key, note in field_notes(RunParams).items() if note.neutral is not ...}


@dataclass(frozen=True)
class TimeEstimate:
    """How long a run will take.

    Attributes:
        seconds: of the whole run, or of what is left of it; None: not known.
        basis: what it rests on, in words.
    """

    seconds: float | None
    basis: str


@cache
def _facts(params: RunParams) -> Mapping[str, Any]:
    """Facts of the model that the parameters describe."""
    from vitfp8.data import count_classes
    from vitfp8.model import describe_model

    return describe_model(params, count_classes(params.dataset, params.data_dir))


def model_facts_of(params: RunParams) -> Mapping[str, Any]:
    """Number of parameters, FLOPs and shapes of a run's model, without allocating it; runs of the same model share the answer.

    Args:
        params: of a training.

    Raises:
        InputError: the model cannot be built.
    """
    # what does not shape the model is made equal, so that the cache meets it again
    alike = {"seed": 0, "experiment": "BaseFP32", "variant": "", "question": "", "expectation": "", "run_folder": None}
    return _facts(params.model_copy(update=alike))


def disk_bytes(params: RunParams) -> int:
    """Disk that a run needs at its peak: checkpoints and record.

    A full checkpoint holds weights and AdamW's two moments, in FP32: twelve bytes a parameter. There are two, and a third while
    one is written; the best weights and those of every n-th epoch are four bytes a parameter.

    Args:
        params: of a training.
    """
    parameters = int(model_facts_of(params)["parameters"])
    kept = 0 if params.checkpoint_every is None else params.epochs // params.checkpoint_every
    return parameters * (3 * 12 + 2 * 4 + kept * 4) + RECORD_BYTES


def memory_bytes(params: RunParams) -> int:
    """Memory that a run takes at its peak, roughly: its process, weights, gradients and moments, and what backward needs.

    Not counted: the data set's images, and workers that read them. On a GPU all but the process lies in the GPU's memory.
    Activations follow Korthikanti et al. 2022 (arXiv 2205.05198, equation 2): ``s·b·h·(34 + 5·a·s/h)`` bytes a layer in 16 bits
    for s tokens, b images, width h and a heads; twice that in FP32, and in emulated formats, whose values are kept in FP32.

    Args:
        params: of a training.
    """
    facts = model_facts_of(params)
    tokens, width, heads, depth = (int(facts[key]) for key in ("tokens", "embed_dim", "num_heads", "depth"))
    images = params.micro_batch_size or params.batch_size
    activations = depth * tokens * images * width * (34 + 5 * heads * tokens / width)
    bytes_kept = PRECISION_FACTS[params.precision].activation_bytes
    return PROCESS_BYTES + int(16 * int(facts["parameters"]) + activations * (bytes_kept // 2))


class TimeEstimates:
    """Times of planned runs, from the records of all studies at hand, else measured.

    Args:
        folder: holds the studies; None: ``executed/`` at the study's home.
        measure: whether a few steps may be run where no record tells.
    """

    def __init__(self, folder: Path | None = None, *, measure: bool = True) -> None:
        self._measure = measure
        self._measured: dict[tuple[object, ...], tuple[float | None, str]] = {}
        here = processor_and_cores()
        self._records = [
            record
            for record in _completed(folder or executed_folder())
            if (record.provenance.get("processor"), record.provenance.get("cores")) == here
        ]

    def of(self, run: PlannedRun) -> TimeEstimate:
        """The time that a planned run will take from where it stands.

        Args:
            run: planned to be executed.
        """
        params = run.params
        if not isinstance(params, RunParams):
            times = [
                seconds for record in self._records if record.kind != "run" and (seconds := _wall_seconds(record)) is not None
            ]
            if not times:
                return TimeEstimate(None, "no earlier run tells")
            return TimeEstimate(statistics.median(times), f"{len(times)} earlier {'run' if len(times) == 1 else 'runs'}")
        epoch_seconds, basis = self._epoch_seconds(params)
        if epoch_seconds is None:
            return TimeEstimate(None, basis)
        return TimeEstimate(FIXED_SECONDS + epoch_seconds * (params.epochs - _epochs_done(run)), basis)

    def _epoch_seconds(self, params: RunParams) -> tuple[float | None, str]:
        """Seconds of an epoch, and what that rests on."""
        from vitfp8.experiment import who_multiplies

        device = who_multiplies(params)[0]  # of ``auto``, which may have meant another one
        alike = [
            record
            for record in self._records
            if record.kind == "run"
            and record.provenance.get("device_type", device) == device
            and record.metrics.epoch_seconds_mean is not None
            and _speed(record.parameters, device) == _speed(params.model_dump(), device)
        ]
        if alike:
            code = [compare_code(record.provenance, record.kind) for record in alike]
            same_code = [record for record, its in zip(alike, code, strict=True) if its == "same"]
            chosen = same_code or alike
            seconds = statistics.median(record.metrics.epoch_seconds_mean or 0.0 for record in chosen)
            older = "" if same_code else ", of other code" if "unknown" not in code else ", of another version"
            return seconds, f"{len(chosen)} earlier {'run' if len(chosen) == 1 else 'runs'} on this machine{older}"
        if not self._measure:
            return None, "no earlier run on this machine tells"
        key = tuple(getattr(params, name) for name in _SPEED)
        if key not in self._measured:
            try:
                self._measured[key] = measured_epoch_seconds(params), "a few steps measured just now"
            except InputError as error:
                self._measured[key] = None, f"cannot be measured ({error})"
        return self._measured[key]


def _speed(values: Mapping[str, Any], device: str) -> tuple[object, ...]:
    """The values of `_SPEED`, as they count on a device: auto compiles on CUDA only."""
    found = {key: values.get(key, _BEFORE.get(key)) for key in _SPEED}
    if device != "cuda" and found["torch_compile"] == "auto":
        found["torch_compile"] = False
    return tuple(found.values())


def _completed(folder: Path) -> list[RunRecord]:
    """Completed runs of every study."""
    records: list[RunRecord] = []
    for study in sorted(folder.glob("*")):
        if study.is_dir():
            records += [record for _, record in load_records(study)[0] if record.status == "completed" and record.origin == "run"]
    return records


def _wall_seconds(record: RunRecord) -> float | None:
    """From begin to end of a run, in seconds: as the monitor's clock has it, which does not jump, else as the calendar has it."""
    if isinstance(seconds := record.hardware.summary.get("seconds"), (int, float)) and seconds > 0:
        return float(seconds)
    try:
        return (datetime.fromisoformat(record.finished or "") - datetime.fromisoformat(record.started or "")).total_seconds()
    except (ValueError, TypeError):  # a time without zone has no difference to one with a zone
        return None


def _epochs_done(run: PlannedRun) -> int:
    """Epochs that a continued run has behind it."""
    record = record_from_journal(run.folder) if run.action == "continue" else None
    return int(record.progress.get("epoch") or 0) if record else 0


def measured_epoch_seconds(params: RunParams) -> float:
    """Seconds of an epoch, from a few real training steps: data, augmentation, forward, backward, optimizer. Writes nothing.

    Steps have so few images that each takes at most seconds; validation is counted as a third of training an image, since it has
    no backward pass.

    Args:
        params: of a training.

    Raises:
        InputError: it cannot be prepared, or its data set is not at hand.
    """
    from vitfp8.experiment import prepare_experiment, who_multiplies

    flops = 3 * int(model_facts_of(params)["flops_per_image"])
    few = max(min(params.batch_size, int(_MEASURED_FLOPS / flops)), 1)
    # few images leave a GPU idle
    images = few if who_multiplies(params)[0] == "cpu" else params.micro_batch_size or params.batch_size
    small = params.model_copy(
        update={"batch_size": images, "micro_batch_size": None, "run_folder": None, "download": False, "workers": 0}
    )
    experiment = prepare_experiment(small)
    trainer = experiment.trainer
    marks = [time.perf_counter()]
    for batch, labels, _ in trainer.batches.epoch(0):
        trainer.train_step(batch, labels)
        if experiment.device.type != "cpu":
            float(trainer.sums.losses[-1])  # the processor waits until the step is done
        marks.append(time.perf_counter())
        if len(marks) > 3 and (marks[-1] - marks[0] > 3.0 or len(marks) > 20):
            break
    steps = [after - before for before, after in pairwise(marks)]
    seconds = statistics.median(steps[1:] or steps)  # the first one allocates and compiles
    sizes = experiment.data.sizes
    evaluated = sizes["validation"] + len(experiment.data.split("train_clean"))
    return seconds / images * (sizes["train"] + evaluated / 3)


def total(estimates: Sequence[TimeEstimate]) -> float | None:
    """The sum; None when one is not known."""
    known = [estimate.seconds for estimate in estimates]
    return None if None in known else float(sum(seconds for seconds in known if seconds is not None))
