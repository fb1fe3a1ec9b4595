"""Probes: one source of readings each, and several read as one row. A probe that fails is switched off and its reason kept."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

Value = float | int | bool | str | None
Row = dict[str, Value]

#: Thermal pressure in rising order, by the names of macOS (``OSThermalNotification.h``). From ``heavy`` on the system slows the
#: processor down; Linux and Intel Macs tell only that, so a slowed processor is ``heavy`` there.
THERMAL_LEVELS = ("nominal", "moderate", "heavy", "trapping", "sleeping")
THROTTLED_LEVELS = THERMAL_LEVELS[2:]

#: Of the device trained on: time in which a kernel ran (0–100 %), memory in use by all processes (bytes), power of the board (W;
#: on Apple silicon of the GPU in the chip), temperature of the die (°C), and whether it was slowed down for heat or by a power
#: brake (the power limit, which a busy GPU always meets, does not count).
GPU_COLUMNS = (
    "gpu_utilization_percent", "gpu_memory_used_bytes", "gpu_power_watts", "gpu_temperature_celsius", "gpu_throttled",
)  # fmt: skip

_LOG = logging.getLogger("vitfp8.monitor")
_SAID: set[str] = set()


def say_once(message: str, level: int) -> None:
    """Log a line at a level of `logging`, once in the life of the process, however many runs it holds."""
    if message not in _SAID:
        _SAID.add(message)
        _LOG.log(level, message)


class UnavailableError(Exception):
    """This machine, or this user, cannot measure that; the message is the reason, in one line."""


@dataclass(frozen=True, kw_only=True)
class Energy:
    """Energy that a probe saw since it was opened.

    Attributes:
        source: ``measured`` (a hardware counter) or ``estimated`` (a model of the chip, or an integral of power).
        covers: which part of the machine, for instance ``GPU``.
    """

    joules: float
    source: str
    covers: str


class Probe:
    """One source of readings: opened once, read once per sample, closed once.

    Attributes:
        name: what it measures; the key of its reason where it has no columns.
        columns: the columns that it fills.
        optional: its columns exist only where it could be opened.
        unavailable: column → reason, for the columns that could not be measured although the probe works.
        energy: what was consumed since `open`, None where that is not measured.
        facts: further entries for the summary, for instance the name of the device.
    """

    name = ""
    columns: tuple[str, ...] = ()
    optional = False

    def __init__(self) -> None:
        self.unavailable: dict[str, str] = {}
        self.energy: Energy | None = None
        self.facts: Row = {}

    def open(self) -> None:
        """Acquire what reading needs.

        Raises:
            UnavailableError: when the machine does not tell (any other exception counts as a failure).
        """

    def read(self) -> Row:
        """Current values by column; a column that is left out or None was not measured."""
        return {}

    def close(self) -> None:
        """Release what `open` acquired."""


class ProbeSet:
    """Several probes read as one row; a probe that fails is switched off and its reason kept, nothing is raised.

    Args:
        probes: where two fill the same column, the later one wins.

    Attributes:
        columns: of a row, in order; fixed by `open`.
        unavailable: column or probe → why it is not measured.
    """

    def __init__(self, probes: Sequence[Probe]) -> None:
        self.columns: tuple[str, ...] = ()
        self.unavailable: dict[str, str] = {}
        self._probes = list(probes)
        self._working: list[Probe] = []

    def open(self) -> None:
        """Open every probe and settle which columns there are."""
        columns: dict[str, None] = {}
        for probe in self._probes:
            try:
                probe.open()
            except Exception as error:
                self._give_up(probe, error)
                if probe.optional:
                    continue
            else:
                self._working.append(probe)
            columns |= dict.fromkeys(probe.columns)
        self.columns = tuple(columns)

    def read(self) -> Row:
        """One value per column, None where it was not measured."""
        row: Row = dict.fromkeys(self.columns)
        for probe in tuple(self._working):
            try:
                reading = probe.read()
            except Exception as error:
                self._working.remove(probe)
                probe.energy = None  # a part of a run's energy would be read as the whole
                self._give_up(probe, error)
                self._close(probe)
                continue
            row |= {name: value for name, value in reading.items() if name in row and _told(value)}
        return row

    def close(self) -> None:
        """Close every probe that is still open."""
        while self._working:
            self._close(self._working.pop())

    def energies(self) -> list[Energy]:
        """What the probes consumed since `open`, one entry per part of the machine."""
        return [probe.energy for probe in self._probes if probe.energy is not None]

    def reasons(self) -> dict[str, str]:
        """Column or probe → why it is not measured, those of single columns included."""
        reasons = dict(self.unavailable)
        for probe in self._probes:
            reasons |= probe.unavailable
        return reasons

    def facts(self) -> Row:
        """What the probes know beside their columns."""
        return {name: value for probe in self._probes for name, value in probe.facts.items()}

    def _give_up(self, probe: Probe, error: Exception) -> None:
        """Note why a probe is switched off: expected where a machine lacks the sensor, a warning otherwise."""
        reason = str(error) or type(error).__name__
        expected = isinstance(error, UnavailableError)
        if not expected:
            reason = f"{type(error).__name__}: {reason}"
        names = (probe.name,) if probe.optional or not probe.columns else probe.columns
        self.unavailable |= dict.fromkeys(names, reason)
        say_once(f"{probe.name} is not measured: {reason}", logging.INFO if expected else logging.WARNING)

    @staticmethod
    def _close(probe: Probe) -> None:
        """Close one probe; it was being given up anyway, so that a failure only goes to the log."""
        try:
            probe.close()
        except Exception as error:
            _LOG.debug("closing %s: %s", probe.name, error)


def _told(value: Value) -> bool:
    """Whether a reading is one: JSON knows no NaN, and None was not measured."""
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))
