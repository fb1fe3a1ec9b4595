"""A monitor samples probes at a steady interval from a thread, keeps the samples small and sums them up."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, Self

from vitfp8.errors import InputError
from vitfp8.monitor.probes import THERMAL_LEVELS, THROTTLED_LEVELS, Energy, Probe, ProbeSet, Row, Value, say_once


class _Statistics:
    """Number, sum and maximum of a column, over every sample taken (more than are kept)."""

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        self.maximum: Value = None

    def add(self, value: Value) -> None:
        """Count a value in its column's unit; None is not counted."""
        if value is None:
            return
        self.count += 1
        if isinstance(value, str):
            self.maximum = max((value, self.maximum), key=_thermal_rank)
            return
        self.total += value
        if self.maximum is None or value > self.maximum:  # type: ignore[operator]
            self.maximum = value

    def mean(self) -> float | None:
        """Arithmetic mean in the column's unit (of a flag: the fraction of samples); None without a number."""
        if not self.count or isinstance(self.maximum, str):
            return None
        return round(self.total / self.count, 4)


def _thermal_rank(level: Any) -> int:
    """Position of a level in `THERMAL_LEVELS`, -1 for anything else."""
    return THERMAL_LEVELS.index(level) if level in THERMAL_LEVELS else -1


class Monitor:
    """Samples from a daemon thread between `start` and `stop`; also a context manager.

    Subclasses say in `_probes` what is measured. No method raises because of what is measured.

    Args:
        interval: seconds between samples, above 0.
        max_samples: the most samples kept, at least 2. When they are reached every second one is dropped and from
            then on only every second is kept, so that a long run costs no more than a short one; the summary counts
            all of them.

    Raises:
        InputError: when interval or max_samples is out of range.
    """

    _patience = 5.0  # seconds that stop() waits for a sample under way

    def __init__(self, interval: float = 1.0, *, max_samples: int = 2000) -> None:
        self.interval = check_interval(interval)
        if max_samples < 2:
            raise InputError(f"max_samples is {max_samples!r}, and at least 2 samples must be kept")
        self.max_samples = max_samples
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._begin: float | None = None
        self._end: float | None = None
        self._seconds_before = 0.0
        self._energies_before: list[Energy] = []
        self._statistics: dict[str, _Statistics] = {}
        self._reset(ProbeSet([]))

    def start(self, earlier: Mapping[str, Any] | None = None) -> Self:
        """Begin a measurement and return the monitor; without effect while one is running.

        Args:
            earlier: what `state` gave in a process that died; the measurement continues from there. Its time and energy
                count, and its samples where this machine measures the same columns.
        """
        if self._thread is not None:
            return self
        probes = ProbeSet([])
        try:
            probes = ProbeSet(self._probes())
            probes.open()
            self._reset(probes)
            self._continue(earlier or {})
            self._begin = time.monotonic()
            self._wake = threading.Event()
            thread = threading.Thread(target=self._run, args=(probes, self._wake), name="vitfp8-monitor", daemon=True)
            thread.start()
            self._thread = thread
        except Exception as error:  # no thread to be had, for instance
            probes.close()
            say_once(f"nothing is monitored: {type(error).__name__}: {error}", logging.WARNING)
        return self

    def stop(self) -> tuple[dict[str, Any], dict[str, list[Value]]]:
        """End the measurement with a last sample and return `summary()` and `samples()`; a second call returns them again."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._wake.set()
            # A driver that hangs must not hang the training: the thread is a daemon and may be left behind.
            thread.join(timeout=self._patience)
            with self._lock:
                if self._end is None:
                    self._end = time.monotonic()
        return self.summary(), self.samples()

    def __enter__(self) -> Self:
        """Start."""
        return self.start()

    def __exit__(self, *exc: object) -> None:
        """Stop; `summary` and `samples` still tell what was measured."""
        self.stop()

    def samples(self) -> dict[str, list[Value]]:
        """Columns of equal length, one entry per kept sample, None where it was not measured.

        ``seconds`` is the time since `start` by a clock that never jumps; the other names end in their units.
        """
        with self._lock:
            return {name: list(column) for name, column in self._samples.items()}

    def summary(self) -> dict[str, Any]:
        """What was measured so far, ready for JSON; None where nothing was.

        ``<column>_mean`` and ``<column>_max`` of every column in its unit (of ``thermal_pressure`` only the highest
        level; the mean of a flag is the fraction of samples), ``samples`` (taken), ``seconds`` (measured),
        ``interval_seconds``, ``energy_joules`` with ``energy_source`` (``measured``, ``estimated`` if any part is, or
        None) and ``energy_covers`` (the parts that are in the sum), ``throttled`` (slowed down for heat or by a power
        brake in any sample), and ``unavailable`` (column or device → why it was not measured).
        """
        with self._lock:
            result: dict[str, Any] = {
                "samples": self._taken,
                "seconds": round(self._elapsed(), 3),
                "interval_seconds": self.interval,
            }
            for name, statistics in self._statistics.items():
                if name != "thermal_pressure":
                    result[f"{name}_mean"] = statistics.mean()
                result[f"{name}_max"] = statistics.maximum
            energies = self._energies()
            sources = {energy.source for energy in energies}
            result["energy_joules"] = round(sum(energy.joules for energy in energies), 3) if energies else None
            result["energy_source"] = ("estimated" if "estimated" in sources else "measured") if energies else None
            result["energy_covers"] = ", ".join(energy.covers for energy in energies) if energies else None
            result["throttled"] = self._throttled()
            result |= self._set.facts()
            result["unavailable"] = self._set.reasons()
            return result

    def state(self) -> dict[str, Any]:
        """What was measured so far, as plain values from which `start` can go on."""
        with self._lock:
            return {
                "seconds": self._elapsed(),
                "taken": self._taken,
                "stride": self._stride,
                "samples": {name: list(column) for name, column in self._samples.items()},
                "statistics": {name: [s.count, s.total, s.maximum] for name, s in self._statistics.items()},
                "energies": [[energy.joules, energy.source, energy.covers] for energy in self._energies()],
            }

    def _continue(self, earlier: Mapping[str, Any]) -> None:
        """Add what an earlier process measured."""
        if not earlier:
            return
        with self._lock:
            self._seconds_before = float(earlier["seconds"])
            self._energies_before = [Energy(joules=j, source=source, covers=covers) for j, source, covers in earlier["energies"]]
            if list(earlier["samples"]) != list(self._samples):
                return  # another machine, or other rights: its columns are not these
            self._samples.update({name: list(column) for name, column in earlier["samples"].items()})
            self._taken, self._stride = int(earlier["taken"]), int(earlier["stride"])
            for name, (count, total, maximum) in earlier["statistics"].items():
                statistics = self._statistics[name]
                statistics.count, statistics.total, statistics.maximum = count, total, maximum

    def _energies(self) -> list[Energy]:
        """Energy of all attempts, one entry per part of the machine; a part that an attempt could not measure is left out."""
        here = self._set.energies()
        if self._seconds_before == 0.0:
            return here
        before = {energy.covers: energy for energy in self._energies_before}
        return [
            Energy(
                joules=energy.joules + before[energy.covers].joules,
                source="measured" if {energy.source, before[energy.covers].source} == {"measured"} else "estimated",
                covers=energy.covers,
            )
            for energy in here
            if energy.covers in before
        ]

    def _probes(self) -> list[Probe]:
        """What is measured, made anew for every measurement."""
        return []

    def _reset(self, probes: ProbeSet) -> None:
        """Forget earlier samples and take the columns of these probes."""
        with self._lock:
            self._set = probes
            self._samples: dict[str, list[Value]] = {"seconds": [], **{name: [] for name in probes.columns}}
            self._statistics = {name: _Statistics() for name in probes.columns}
            self._taken = 0
            self._stride = 1
            self._begin = self._end = None
            self._last = 0.0
            self._seconds_before = 0.0
            self._energies_before = []

    def _elapsed(self) -> float:
        """Seconds measured so far, in all attempts."""
        if self._begin is None:
            return self._seconds_before
        return self._seconds_before + (time.monotonic() if self._end is None else self._end) - self._begin

    def _throttled(self) -> bool | None:
        """Whether any sample was slowed down; None when nothing tells."""
        answers: list[bool] = []
        if (cpu := self._statistics.get("thermal_pressure")) and cpu.count:
            answers.append(cpu.maximum in THROTTLED_LEVELS)
        if (gpu := self._statistics.get("gpu_throttled")) and gpu.count:
            answers.append(bool(gpu.maximum))
        return any(answers) if answers else None

    def _run(self, probes: ProbeSet, wake: threading.Event) -> None:
        """The thread: sample at every tick until ``wake`` is set, then once more, then release the devices."""
        try:
            for due in ticks(time.monotonic(), self.interval):
                if wake.wait(max(0.0, due - time.monotonic())):
                    break
                self._record(probes, probes.read(), final=False)
            self._record(probes, probes.read(), final=True)
        except Exception as error:
            say_once(f"monitoring ended: {type(error).__name__}: {error}", logging.WARNING)
        finally:
            probes.close()

    def _record(self, probes: ProbeSet, row: Row, *, final: bool) -> None:
        """Count a row and, where the stride says so, keep it; a row of an earlier measurement's probes is dropped.

        The final row is kept whatever the stride, unless it follows another so closely that it says nothing new.
        """
        with self._lock:
            if probes is not self._set:
                return
            seconds = self._elapsed()
            if final and self._taken and seconds - self._last < min(0.1, self.interval / 2):
                return
            self._last = seconds
            for name, statistics in self._statistics.items():
                statistics.add(row[name])
            if self._taken % self._stride == 0 or final:
                if len(self._samples["seconds"]) == self.max_samples:
                    for column in self._samples.values():
                        del column[1::2]
                    self._stride *= 2
                if self._taken % self._stride == 0 or final:
                    self._samples["seconds"].append(round(seconds, 3))
                    for name in self._statistics:
                        self._samples[name].append(row[name])
            self._taken += 1


def ticks(begin: float, interval: float) -> Iterator[float]:
    """Times (s, of `time.monotonic`) at which samples are due: begin + n · interval, without those that have passed."""
    number = 1
    while True:
        yield begin + number * interval
        number = max(number + 1, math.ceil((time.monotonic() - begin) / interval))


def check_interval(interval: float) -> float:
    """The interval in seconds; `InputError` when it is not a finite number above 0."""
    if isinstance(interval, bool) or not isinstance(interval, int | float) or not 0 < interval < math.inf:
        raise InputError(f"interval is {interval!r}, but must be a number of seconds above 0, such as 1.0")
    return float(interval)
