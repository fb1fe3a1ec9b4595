"""Samples of the earlier monitors on one time axis, with their summary and the energy that follows from sampled power."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from vitfp8.monitor.probes import THERMAL_LEVELS, THROTTLED_LEVELS
from vitfp8.record import Hardware

#: Samples that a record keeps of a run: no figure shows more.
_MOST_SAMPLES = 1500


@dataclass
class Series:
    """Samples of one file: seconds since its first one, columns in a record's units, and what a note says of them."""

    seconds: list[float] = field(default_factory=list)
    columns: dict[str, list[Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def hardware_of(series: Sequence[Series]) -> Hardware:
    """What the earlier monitors saw, on one time axis; each file begins at 0.

    Energy is the integral of the sampled power. A gap that is long beside the usual interval adds nothing.
    """
    series = [one for one in series if one.seconds]
    if not series:
        return Hardware()
    names = list(dict.fromkeys(name for one in series for name in one.columns))
    rows: dict[float, dict[str, Any]] = {}
    for one in series:
        for at, second in enumerate(one.seconds):
            rows.setdefault(round(second, 3), {}).update({name: column[at] for name, column in one.columns.items()})
    axis = sorted(rows)
    summary: dict[str, Any] = {"samples": len(axis), "seconds": round(axis[-1], 3)}
    for name in names:
        values = [value for one in series for value in one.columns.get(name, []) if value is not None]
        summary |= _of_levels(values) if name == "thermal_pressure" else {
            f"{name}_mean": statistics.fmean(values) if values else None, f"{name}_max": max(values, default=None),
        }  # fmt: skip
    parts = {
        label: joules
        for one in series
        for label, name in (("GPU", "gpu_power_watts"), ("CPU", "cpu_power_watts"))
        if (joules := _energy(one.seconds, one.columns.get(name, []))) is not None
    }
    summary["energy_joules"] = round(math.fsum(parts.values()), 3) if parts else None
    summary["energy_source"] = "estimated" if parts else None
    summary["energy_covers"] = ", ".join(parts) or None
    kept = axis[:: math.ceil(len(axis) / _MOST_SAMPLES)]
    samples: dict[str, list[Any]] = {"seconds": list(kept)}
    return Hardware(summary=summary, samples=samples | {name: [rows[at].get(name) for at in kept] for name in names})


def _of_levels(levels: Sequence[int | str]) -> dict[str, Any]:
    """Highest thermal pressure, and whether the processor was slowed down: any number above 0, or a name from ``heavy`` on."""
    named = [level for level in levels if isinstance(level, str)]
    numbers = [level for level in levels if not isinstance(level, str)]
    highest = max(numbers) if numbers else max(named, key=THERMAL_LEVELS.index, default=None)
    throttled = any(number > 0 for number in numbers) or any(level in THROTTLED_LEVELS for level in named)
    return {"thermal_pressure_max": highest, "throttled": throttled if levels else None}


def _energy(seconds: Sequence[float], watts: Sequence[float | None]) -> float | None:
    """Joules by the trapezoidal rule; None below two samples. A gap of more than ten usual intervals adds nothing."""
    points = [(time, power) for time, power in zip(seconds, watts, strict=False) if power is not None]
    steps = [(later[0] - earlier[0], (earlier[1] + later[1]) / 2) for earlier, later in pairwise(points)]
    if not steps:
        return None
    longest = 10 * statistics.median(step for step, _ in steps)
    return math.fsum(step * power for step, power in steps if step <= longest)
