"""Whether others took the processor while a run trained: then its times say more about them than about the arithmetic.

The monitor samples the load of the machine and that of the training process. What the machine did beyond the process is what
others took. Times, memory and energy of a disturbed run are shown with a mark and compared with nothing; its accuracies are as
good as any.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from vitfp8.record import RunRecord

#: What marks times, memory and energy of a disturbed run.
MARK = "‡"

#: A run is disturbed when others took at least this share of all processors, in the mean over the samples within its training …
OTHERS = 0.10

#: … of a machine that was at least this busy: beside idle processors nobody takes one away. With two hardware threads a core,
#: a machine that is half busy may have no core left.
BUSY = 0.50

#: Fewer samples than these say nothing of a training.
LEAST_SAMPLES = 3


def _number(value: Any) -> float | None:
    """A sample as a finite number from 0; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        return None
    return float(value)


def _loads(record: RunRecord) -> list[tuple[float, float]]:
    """Load of the machine (fraction of all processors) and of the process (in processors), one pair per sample."""
    samples = record.hardware.samples
    columns = [samples.get(key, []) for key in ("seconds", "cpu_percent", "process_cpu_percent")]
    if not all(isinstance(column, list) for column in columns):
        return []
    end = record.metrics.train_seconds
    pairs = []
    for row in zip(*columns, strict=False):
        second, machine, process = map(_number, row)
        if second is None or machine is None or process is None or (end is not None and second > end):
            continue
        pairs.append((min(machine / 100, 1.0), process / 100))
    return pairs


def _processors(record: RunRecord) -> Sequence[int]:
    """How many processors the machine's load is a share of: both that it may be where a record knows the cores alone."""
    counts = [record.provenance.get(key) for key in ("logical_cores", "cores")]
    logical, cores = (count if isinstance(count, int) and not isinstance(count, bool) and count > 0 else None for count in counts)
    return (logical,) if logical else (cores, 2 * cores) if cores else ()


def _shares(record: RunRecord) -> tuple[float, list[float]] | None:
    """Mean load of the machine, and the mean share that others took, for each number of processors; None where not measured."""
    pairs, processors = _loads(record), _processors(record)
    if len(pairs) < LEAST_SAMPLES or not processors:
        return None
    busy = math.fsum(machine for machine, _ in pairs) / len(pairs)
    own = math.fsum(process for _, process in pairs) / len(pairs)
    workers = _number(record.parameters.get("workers")) or 0.0  # processes that read images are the run's own, and not measured
    return busy, [max(0.0, busy - (own + workers) / count) for count in processors]


def others_share(record: RunRecord) -> float | None:
    """The share of all processors that others took while a run trained, as far as it is certain; None where not measured.

    Args:
        record: of a training.
    """
    shares = _shares(record)
    return None if shares is None else min(shares[1])


def disturbed(record: RunRecord) -> bool | None:
    """Whether others took the processor while a run trained, see `OTHERS` and `BUSY`; None where that was not measured.

    Args:
        record: of a training.
    """
    shares = _shares(record)
    if shares is None:
        return None
    busy, others = shares
    answers = {busy >= BUSY and share >= OTHERS for share in others}
    return answers.pop() if len(answers) == 1 else None
