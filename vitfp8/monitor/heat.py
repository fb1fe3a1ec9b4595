"""How hot the machine is now: a single reading, from which a batch decides whether to wait."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from vitfp8.monitor.apple import MacThermalProbe
from vitfp8.monitor.gpu import GPUProbe
from vitfp8.monitor.machine import TemperatureProbe
from vitfp8.monitor.probes import THROTTLED_LEVELS, Probe, ProbeSet, Value

#: A temperature counts as cool up to this many °C above its idle value.
NEAR_IDLE_CELSIUS = 5.0

#: Up to this many °C a temperature counts as cool, whatever its idle value.
COOL_CELSIUS = 45.0

#: From this many °C on a processor or GPU is about to be slowed down.
HOT_CELSIUS = 85.0


@dataclass(frozen=True)
class Heat:
    """One reading of the sensors; None where the machine does not tell.

    Attributes:
        temperature_celsius: of the processor's hottest sensor.
        gpu_temperature_celsius: of the GPU's die.
        thermal_pressure: one of `vitfp8.monitor.probes.THERMAL_LEVELS`, on a Mac.
    """

    temperature_celsius: float | None = None
    gpu_temperature_celsius: float | None = None
    thermal_pressure: str | None = None

    def _pairs(self, other: Heat) -> list[tuple[float, float | None]]:
        """Each known temperature, with the other reading's."""
        here = (self.temperature_celsius, self.gpu_temperature_celsius)
        there = (other.temperature_celsius, other.gpu_temperature_celsius)
        return [(now, before) for now, before in zip(here, there, strict=True) if now is not None]

    def is_cool(self, idle: Heat) -> bool:
        """Whether the machine reports that it is cool; False where it reports nothing. ``idle``: from before the work."""
        if self.thermal_pressure not in (None, "nominal"):
            return False
        pairs = self._pairs(idle)
        limits = [max(COOL_CELSIUS, (COOL_CELSIUS if before is None else before) + NEAR_IDLE_CELSIUS) for _, before in pairs]
        if any(now > limit for (now, _), limit in zip(pairs, limits, strict=True)):
            return False
        return bool(pairs) or self.thermal_pressure == "nominal"

    def is_hot(self) -> bool:
        """Whether it is, or is about to be, slowed down for heat."""
        return self.thermal_pressure in THROTTLED_LEVELS or any(now >= HOT_CELSIUS for now, _ in self._pairs(self))

    def words(self) -> str:
        """What is known, for a reader; empty where nothing is."""
        parts = []
        if self.temperature_celsius is not None:
            parts.append(f"processor {self.temperature_celsius:.0f} °C")
        if self.gpu_temperature_celsius is not None:
            parts.append(f"GPU {self.gpu_temperature_celsius:.0f} °C")
        if self.thermal_pressure is not None:
            parts.append(f"thermal pressure {self.thermal_pressure}")
        return ", ".join(parts)


def read_heat() -> Heat:
    """Read the sensors once; what cannot be read is None, and nothing is raised.

    On Linux throttling is a counter, which says nothing about one moment: only temperatures are read there.
    """
    probes: list[Probe] = [TemperatureProbe(), GPUProbe(interval=1.0, device_index=0, powermetrics=False)]
    if platform.system() == "Darwin":
        probes.append(MacThermalProbe())
    sensors = ProbeSet(probes)
    sensors.open()
    try:
        row = sensors.read()
    finally:
        sensors.close()
    pressure = row.get("thermal_pressure")
    return Heat(
        temperature_celsius=_number(row.get("temperature_celsius")),
        gpu_temperature_celsius=_number(row.get("gpu_temperature_celsius")),
        thermal_pressure=pressure if isinstance(pressure, str) else None,
    )


def _number(value: Value) -> float | None:
    """A reading as a number."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
