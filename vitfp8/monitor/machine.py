"""What the machine does: processor, memory, temperature, thermal pressure, energy, and the GPU beside them."""

from __future__ import annotations

import platform
import time
from pathlib import Path

import psutil

from vitfp8.monitor.apple import MacThermalProbe
from vitfp8.monitor.gpu import GPUProbe
from vitfp8.monitor.probes import Energy, Probe, Row, UnavailableError
from vitfp8.monitor.sampling import Monitor

#: Seconds: over less, the system's clock ticks are too coarse to tell a load (psutil's advice too).
_SHORTEST = 0.1

#: Linux drivers whose sensors sit in the processor; those of disks, boards and radios do not.
_CPU_SENSORS = frozenset(
    ("coretemp", "k10temp", "k8temp", "zenpower", "cpu_thermal", "cpu-thermal", "soc_thermal", "x86_pkg_temp")
)


class MachineProbe(Probe):
    """Load and memory of the whole machine."""

    name = "load and memory of the machine"
    columns = ("cpu_percent", "memory_percent", "memory_used_bytes")

    def open(self) -> None:
        """Take the first reading that a load is the difference from."""
        self._time = time.monotonic()
        self._busy, self._total = self._cpu_seconds()

    def read(self) -> Row:
        """``cpu_percent`` of all cores together (0–100), memory not available to new programs (%), and used (bytes)."""
        memory = psutil.virtual_memory()
        return {
            "cpu_percent": self._load(),
            "memory_percent": memory.percent,
            "memory_used_bytes": memory.used,
        }

    def _load(self) -> float | None:
        """Percent busy since the last answer, None when too little time has passed to tell."""
        now = time.monotonic()
        if now - self._time < _SHORTEST:
            return None
        busy, total = self._cpu_seconds()
        load = 100 * (busy - self._busy) / (total - self._total) if total > self._total else None
        self._time, self._busy, self._total = now, busy, total
        return None if load is None else round(min(max(load, 0.0), 100.0), 1)

    @staticmethod
    def _cpu_seconds() -> tuple[float, float]:
        """Seconds that all cores were busy, and that have passed, since boot.

        `psutil.cpu_percent` does the same but keeps its state per thread, and here one thread opens and another reads.
        """
        times = psutil.cpu_times()._asdict()
        # Linux counts a guest's time a second time as its host's.
        total = sum(times.values()) - times.get("guest", 0.0) - times.get("guest_nice", 0.0)
        return total - times["idle"] - times.get("iowait", 0.0), total


class ProcessProbe(Probe):
    """Load and memory of one process (None: this one), without its children; the machine's load includes those."""

    name = "load and memory of the process"
    columns = ("process_cpu_percent", "process_rss_bytes")

    def __init__(self, pid: int | None) -> None:
        super().__init__()
        self._pid = pid

    def open(self) -> None:
        """Find the process; `UnavailableError` when there is none, or it is another user's."""
        try:
            self._process = psutil.Process(self._pid)
            self._process.cpu_percent()
        except psutil.Error as error:
            raise UnavailableError(str(error)) from error
        self._time = time.monotonic()

    def read(self) -> Row:
        """``process_cpu_percent`` (100 is one core fully busy) and resident memory (bytes)."""
        now, load = time.monotonic(), None
        if now - self._time >= _SHORTEST:
            load, self._time = self._process.cpu_percent(), now
        return {"process_cpu_percent": load, "process_rss_bytes": self._process.memory_info().rss}


class TemperatureProbe(Probe):
    """Temperature of the processor, where the system tells it without special rights (Linux on real hardware)."""

    name = "temperature"
    columns = ("temperature_celsius",)

    def open(self) -> None:
        """`UnavailableError` when there is no sensor."""
        if not hasattr(psutil, "sensors_temperatures"):
            raise UnavailableError(f"{platform.system()} tells no temperature without special rights")
        if self._hottest() is None:
            raise UnavailableError("no temperature sensor of the processor is visible")

    def read(self) -> Row:
        """``temperature_celsius`` of the hottest sensor of the processor."""
        return {"temperature_celsius": self._hottest()}

    @staticmethod
    def _hottest() -> float | None:
        """The highest reading in °C, None without one; 0 and less are what absent sensors report."""
        readings = [
            sensor.current
            for chip, sensors in psutil.sensors_temperatures().items()
            for sensor in sensors
            if chip.lower() in _CPU_SENSORS and sensor.current is not None and sensor.current > 0
        ]
        return max(readings, default=None)


class LinuxThermalProbe(Probe):
    """Whether the processor was slowed down for heat, by the kernel's counters of such events (Intel processors)."""

    name = "thermal pressure"
    columns = ("thermal_pressure",)

    def __init__(self, folder: Path = Path("/sys/devices/system/cpu")) -> None:
        super().__init__()
        self._folder = folder

    def open(self) -> None:
        """Find the counters; `UnavailableError` when the kernel keeps none."""
        self._counters = sorted(self._folder.glob("cpu[0-9]*/thermal_throttle/*_throttle_count"))
        if not self._counters:
            raise UnavailableError("the kernel counts no thermal throttling on this machine")
        self._events = self._count()

    def read(self) -> Row:
        """``thermal_pressure``: ``heavy`` when a core was slowed down since the last sample, else ``nominal``."""
        before, self._events = self._events, self._count()
        return {"thermal_pressure": "heavy" if self._events > before else "nominal"}

    def _count(self) -> int:
        """Events since boot, over all cores and packages."""
        return sum(int(counter.read_text()) for counter in self._counters)


class RAPLProbe(Probe):
    """Energy of the processor packages by the counters of Intel and AMD processors (RAPL).

    Most Linux systems let only root read them, since they can leak secrets (CVE-2020-8694).
    """

    name = "cpu_energy"

    def __init__(self, folder: Path = Path("/sys/class/powercap")) -> None:
        super().__init__()
        self._folder = folder
        self._microjoules = 0

    def open(self) -> None:
        """Find the packages and read their counters for the first time; `UnavailableError` when they cannot be read."""
        zones = [
            zone
            for zone in sorted(self._folder.glob("intel-rapl:[0-9]*"))
            if zone.name.count(":") == 1 and (zone / "name").read_text().startswith("package")
        ]
        if not zones:
            raise UnavailableError("the kernel shows no energy counter of the processor")
        try:
            self._previous = {zone / "energy_uj": self._count(zone / "energy_uj") for zone in zones}
        except PermissionError as error:
            raise UnavailableError(f"{error.filename} may be read by root only") from error
        self._ranges = {counter: int((counter.parent / "max_energy_range_uj").read_text()) for counter in self._previous}

    def read(self) -> Row:
        """No column; `energy` is brought up to now. A counter starts again at its range, after minutes at the least."""
        for counter, previous in self._previous.items():
            current = self._count(counter)
            self._microjoules += current - previous + (self._ranges[counter] if current < previous else 0)
            self._previous[counter] = current
        self.energy = Energy(joules=self._microjoules / 1e6, source="measured", covers="CPU packages")
        return {}

    @staticmethod
    def _count(counter: Path) -> int:
        """Microjoules that a counter shows."""
        return int(counter.read_text())


class _NoProcessProbe(Probe):
    """The columns of a process, empty: to be measured from outside, a process must be named."""

    name = ProcessProbe.name
    columns = ProcessProbe.columns

    def open(self) -> None:
        """Say why they are empty."""
        raise UnavailableError("no process was named")


def machine_probes(
    *, interval: float, pid: int | None, process: bool, gpu: bool, device_index: int, powermetrics: bool
) -> list[Probe]:
    """Every probe of a machine; ``process`` says whether a process is measured at all, see `SystemMonitor` for the rest."""
    probes: list[Probe] = [MachineProbe(), ProcessProbe(pid) if process else _NoProcessProbe(), TemperatureProbe()]
    probes += [MacThermalProbe()] if platform.system() == "Darwin" else [LinuxThermalProbe(), RAPLProbe()]
    if gpu:
        probes.append(GPUProbe(interval=interval, device_index=device_index, powermetrics=powermetrics))
    return probes


class SystemMonitor(Monitor):
    """Samples the machine from a thread while something else runs in this process.

    ``with SystemMonitor() as monitor: train()``, or `start` and `stop`. The columns are ``seconds``, ``cpu_percent``,
    ``memory_percent``, ``memory_used_bytes``, ``process_cpu_percent``, ``process_rss_bytes``,
    ``temperature_celsius``, ``thermal_pressure`` (one of `probes.THERMAL_LEVELS`), and those of `probes.GPU_COLUMNS`
    where a GPU can be asked. What this machine does not tell is None, with its reason in
    ``summary()["unavailable"]``; nothing raises and nothing asks for a password.

    Args:
        interval: seconds between samples, above 0. A load is the mean over the interval.
        pid: the process measured beside the machine; None for this one.
        gpu: whether to ask the GPU (not for a training on the processor, whose energy it would be added to).
        device_index: which NVIDIA device, as CUDA counts within ``CUDA_VISIBLE_DEVICES``: the one trained on.
        powermetrics: on a Mac, run ``sudo -n powermetrics`` for utilisation and power (see `GPUMonitor`).
        max_samples: the most samples kept (see `Monitor`).

    Raises:
        InputError: when interval or max_samples is out of range.
    """

    def __init__(
        self,
        interval: float = 1.0,
        pid: int | None = None,
        *,
        gpu: bool = True,
        device_index: int = 0,
        powermetrics: bool = False,
        max_samples: int = 2000,
    ) -> None:
        super().__init__(interval, max_samples=max_samples)
        self.pid = pid
        self.gpu = gpu
        self.device_index = device_index
        self.powermetrics = powermetrics

    def _probes(self) -> list[Probe]:
        """Every probe of this machine."""
        return machine_probes(
            interval=self.interval,
            pid=self.pid,
            process=True,
            gpu=self.gpu,
            device_index=self.device_index,
            powermetrics=self.powermetrics,
        )
