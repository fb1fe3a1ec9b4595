"""What a Mac tells without sudo: thermal pressure by ``pmset`` and ``notifyutil``, energy by ``zeus-apple-silicon``."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Sequence

from vitfp8.monitor.probes import THERMAL_LEVELS, Energy, Probe, Row, UnavailableError, Value


def parse_pmset(text: str) -> dict[str, int | None]:
    """Limits in the output of ``pmset -g therm``, the last ones printed; None where there are none.

    Intel Macs print limits under a dated ``CPU Power notify``. Apple silicon prints only that nothing has been recorded,
    hot or not, which is not a measurement.

    Returns:
        ``cpu_speed_limit_percent`` (below 100 while the processor is slowed down), ``cpu_scheduler_limit_percent`` and
        ``cpu_available_cpus``.
    """
    keys = {
        "cpu_speed_limit_percent": "CPU_Speed_Limit",
        "cpu_scheduler_limit_percent": "CPU_Scheduler_Limit",
        "cpu_available_cpus": "CPU_Available_CPUs",
    }
    limits: dict[str, int | None] = {}
    for name, key in keys.items():
        found = re.findall(rf"^\s*{key}\s*=\s*(\d+)\s*$", text, re.MULTILINE)
        limits[name] = int(found[-1]) if found else None
    return limits


def parse_notifyutil(text: str) -> str | None:
    """The thermal pressure, one of `THERMAL_LEVELS`, in ``notifyutil -g com.apple.system.thermalpressurelevel``; else None.

    The tool prints the key and a number from 0 to 4, as ``OSThermalNotification.h`` numbers the levels of macOS.
    """
    found = re.match(r"com\.apple\.system\.thermalpressurelevel\s+(\d+)\s*$", text)
    number = int(found[1]) if found else -1
    return THERMAL_LEVELS[number] if 0 <= number < len(THERMAL_LEVELS) else None


def _ask(command: Sequence[str]) -> str:
    """Standard output of a command that answers at once; raises when it is missing, fails or takes more than 5 s."""
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=5, check=True).stdout


class MacThermalProbe(Probe):
    """Thermal pressure of a Mac without sudo: the level of macOS, and the speed limit of an Intel processor."""

    name = "thermal pressure"
    columns = ("thermal_pressure",)

    def open(self) -> None:
        """Find out which of the two tools answers."""
        self._limits = parse_pmset(_ask(["pmset", "-g", "therm"]))["cpu_speed_limit_percent"] is not None
        if self._level() is None and not self._limits:
            raise UnavailableError("neither notifyutil nor pmset tells a thermal pressure")

    def read(self) -> Row:
        """``thermal_pressure``: one of `THERMAL_LEVELS`."""
        levels = [self._level()]
        if self._limits:
            limit = parse_pmset(_ask(["pmset", "-g", "therm"]))["cpu_speed_limit_percent"]
            levels.append("heavy" if limit is not None and limit < 100 else "nominal")
        told = [level for level in levels if level is not None]
        return {"thermal_pressure": max(told, key=THERMAL_LEVELS.index) if told else None}

    @staticmethod
    def _level() -> str | None:
        """What macOS tells every user; the same number that ``powermetrics`` prints by name."""
        return parse_notifyutil(_ask(["notifyutil", "-g", "com.apple.system.thermalpressurelevel"]))


class AppleEnergyProbe(Probe):
    """Energy of Apple silicon by ``zeus-apple-silicon``, which needs no sudo; GPU power is its change over time.

    The counters come from Apple's model of the chip (utilisation, frequency, voltage), hence ``estimated``. They count
    the whole machine, not one process.
    """

    name = "gpu"
    columns = ("gpu_power_watts",)
    _PARTS = {"cpu_total_mj": "CPU", "gpu_mj": "GPU", "gpu_sram_mj": "GPU SRAM", "dram_mj": "DRAM", "ane_mj": "ANE"}

    def open(self) -> None:
        """Read the counters for the first time."""
        try:
            from zeus_apple_silicon import AppleEnergyMonitor
        except ImportError as error:
            raise UnavailableError(
                "zeus-apple-silicon is not installed; pip install 'vitfp8[apple]' measures energy without sudo"
            ) from error
        self._monitor = AppleEnergyMonitor()
        self._first = self._previous = self._counters()
        if not self._first:
            raise UnavailableError("zeus-apple-silicon knows no energy counter of this chip")
        self._time = time.monotonic()

    def read(self) -> Row:
        """``gpu_power_watts``: mean power since the last reading."""
        now, counters = time.monotonic(), self._counters()
        parts = [part for part in self._first if part in counters]
        joules = sum(counters[part] - self._first[part] for part in parts) / 1000
        covers = ", ".join(self._PARTS[part] for part in parts)
        self.energy = Energy(joules=joules, source="estimated", covers=covers)
        power: Value = None
        if "gpu_mj" in counters and "gpu_mj" in self._previous and now > self._time:
            power = (counters["gpu_mj"] - self._previous["gpu_mj"]) / 1000 / (now - self._time)
        self._previous, self._time = counters, now
        return {"gpu_power_watts": power}

    def _counters(self) -> dict[str, int]:
        """Millijoules by part, without the parts that this chip does not count."""
        metrics = self._monitor.get_cumulative_energy()
        counters = {part: getattr(metrics, part, None) for part in self._PARTS}
        return {part: count for part, count in counters.items() if count is not None}
