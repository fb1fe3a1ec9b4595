"""What the machine did: processor, memory, temperature, thermal pressure, energy, and the GPU beside them."""

from __future__ import annotations

import csv
import io
import os
import platform
import threading
import time
from datetime import datetime
from pathlib import Path

import psutil

from vitfp8.monitor.apple import MacThermalProbe
from vitfp8.monitor.nvidia import GPUProbe
from vitfp8.monitor.sampling import (
    Energy,
    Monitor,
    Probe,
    ProbeSet,
    Row,
    UnavailableError,
    Value,
    check_interval,
    input_error,
    ticks,
)

_SHORTEST = 0.1
"""Seconds: the clock ticks of the system are too coarse to tell a load over less (psutil's advice too)."""

_CPU_SENSORS = frozenset(
    ("coretemp", "k10temp", "k8temp", "zenpower", "cpu_thermal", "cpu-thermal", "soc_thermal", "x86_pkg_temp")
)
"""Drivers of Linux whose sensors sit in the processor; those of disks, boards and radios do not."""


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

        `psutil.cpu_percent` does the same but keeps a state for each thread, and here one thread opens and another
        reads.
        """
        times = psutil.cpu_times()._asdict()
        # Linux counts a guest's time a second time as its host's.
        total = sum(times.values()) - times.get("guest", 0.0) - times.get("guest_nice", 0.0)
        return total - times["idle"] - times.get("iowait", 0.0), total


class ProcessProbe(Probe):
    """Load and memory of one process, without its children (the machine's load includes those).

    Args:
        pid: which process; None for this one.
    """

    name = "load and memory of the process"
    columns = ("process_cpu_percent", "process_rss_bytes")

    def __init__(self, pid: int | None) -> None:
        super().__init__()
        self._pid = pid

    def open(self) -> None:
        """Find the process.

        Raises:
            UnavailableError: when there is none, or it is somebody else's.
        """
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
        """See that there is a sensor.

        Raises:
            UnavailableError: when there is none.
        """
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
    """Whether the processor was slowed down for heat, by the kernel's counters of such events (Intel processors).

    Args:
        folder: where the kernel shows the processors.
    """

    name = "thermal pressure"
    columns = ("thermal_pressure",)

    def __init__(self, folder: Path = Path("/sys/devices/system/cpu")) -> None:
        super().__init__()
        self._folder = folder

    def open(self) -> None:
        """Find the counters.

        Raises:
            UnavailableError: when the kernel keeps none.
        """
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
    """Energy of the processor packages by the counters of Intel and AMD processors (RAPL), where they may be read.

    Most Linux systems let only root read them, since they can leak secrets (CVE-2020-8694).

    Args:
        folder: where the kernel shows power zones.
    """

    name = "cpu_energy"

    def __init__(self, folder: Path = Path("/sys/class/powercap")) -> None:
        super().__init__()
        self._folder = folder
        self._microjoules = 0

    def open(self) -> None:
        """Find the packages and read their counters for the first time.

        Raises:
            UnavailableError: when there are none or they may not be read.
        """
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


def _machine_probes(
    *, interval: float, pid: int | None, process: bool, gpu: bool, device_index: int, powermetrics: bool
) -> list[Probe]:
    """Every probe of a machine; see `SystemMonitor`.

    Args:
        interval: seconds between samples.
        pid: the process, None for this one.
        process: whether a process is measured at all.
        gpu: whether the GPU is.
        device_index: which NVIDIA device.
        powermetrics: whether sudo may be used on a Mac.
    """
    probes: list[Probe] = [MachineProbe()]
    probes.append(ProcessProbe(pid) if process else _NoProcessProbe())
    probes.append(TemperatureProbe())
    if platform.system() == "Darwin":
        probes.append(MacThermalProbe())
    else:
        probes += [LinuxThermalProbe(), RAPLProbe()]
    if gpu:
        probes.append(GPUProbe(interval=interval, device_index=device_index, powermetrics=powermetrics))
    return probes


class _NoProcessProbe(Probe):
    """The columns of a process, empty: to be measured from outside, a process must be named."""

    name = "load and memory of the process"
    columns = ProcessProbe.columns

    def open(self) -> None:
        """Say why they are empty.

        Raises:
            UnavailableError: always.
        """
        raise UnavailableError("no process was named")


class SystemMonitor(Monitor):
    """Samples the machine from a thread while something else runs in this process.

    ``with SystemMonitor() as monitor: train()``, or `start` and `stop`. The columns are ``seconds``, ``cpu_percent``,
    ``memory_percent``, ``memory_used_bytes``, ``process_cpu_percent``, ``process_rss_bytes``,
    ``temperature_celsius``, ``thermal_pressure`` (one of `sampling.THERMAL_LEVELS`), and those of `gpu.GPU_COLUMNS`
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
        return _machine_probes(
            interval=self.interval,
            pid=self.pid,
            process=True,
            gpu=self.gpu,
            device_index=self.device_index,
            powermetrics=self.powermetrics,
        )


def monitor_stream(
    output_file: str | os.PathLike[str],
    interval: float = 1.0,
    *,
    name: str | None = None,
    stop: threading.Event | None = None,
    duration: float | None = None,
    pid: int | None = None,
    gpu: bool = True,
    device_index: int = 0,
    powermetrics: bool = False,
) -> int:
    """Write a sample a line into a CSV file until Ctrl-C, each line as soon as it is measured.

    The first column is ``timestamp`` (local time, ISO 8601 with milliseconds and zone), then ``name`` if one is given,
    then the columns of `SystemMonitor`. An empty field was not measured. Lines are appended to a file that has the
    same columns already.

    Args:
        output_file: the CSV file; its folder must exist.
        interval: seconds between samples, above 0.
        name: written into every line, to tell several measurements in one file apart.
        stop: ends the measurement when set, as Ctrl-C does.
        duration: seconds after which to end; None for no end.
        pid: a process to measure beside the machine; without one its columns stay empty.
        gpu: whether to ask the GPU.
        device_index: which NVIDIA device.
        powermetrics: on a Mac, run ``sudo -n powermetrics``.

    Returns:
        number of samples written.

    Raises:
        InputError: when the file cannot be written, or holds other columns; nothing is changed then.
    """
    interval = check_interval(interval)
    if duration is not None and not duration >= 0:
        raise input_error(f"duration is {duration!r}, but must be a number of seconds, at least 0")
    path = Path(output_file)
    stop = stop or threading.Event()
    probes = ProbeSet(
        _machine_probes(
            interval=interval,
            pid=pid,
            process=pid is not None,
            gpu=gpu,
            device_index=device_index,
            powermetrics=powermetrics,
        )
    )
    written = 0
    try:
        begin = time.monotonic()
        probes.open()
        labels: Row = {} if name is None else {"name": name}
        header = _line(["timestamp", *labels, "seconds", *probes.columns])
        with _appending(path, header) as file:
            for due in ticks(begin, interval):
                if duration is not None and due - begin > duration + 1e-9:
                    break
                if stop.wait(max(0.0, due - time.monotonic())):
                    break
                row = probes.read()
                now = datetime.now().astimezone().isoformat(timespec="milliseconds")
                file.write(_line([now, *labels.values(), round(time.monotonic() - begin, 3), *row.values()]))
                file.flush()
                written += 1
    except KeyboardInterrupt:
        pass
    except OSError as error:
        raise input_error(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        probes.close()
    return written


def _line(values: list[Value]) -> str:
    """One line of CSV.

    Args:
        values: one a column; None becomes an empty field.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(["" if value is None else value for value in values])
    return text.getvalue()


def _appending(path: Path, header: str) -> io.TextIOWrapper:
    """Open a CSV file at its end, with its header in place.

    Args:
        path: the file, new or with this header.
        header: the line of column names.

    Raises:
        InputError: when the folder is missing or the file holds something else.
        OSError: when it cannot be opened.
    """
    if path.is_dir():
        raise input_error(f"cannot write {path}: it is a folder; name a CSV file in it")
    if not path.parent.is_dir():
        raise input_error(f"cannot write {path}: there is no folder {path.parent}; create it first")
    cut_short = False
    if path.exists() and path.stat().st_size:
        with path.open("rb") as existing:
            first = existing.readline()
            existing.seek(-1, os.SEEK_END)
            cut_short = existing.read(1) != b"\n"
        if first != header.encode():
            raise input_error(f"{path} holds other columns than this measurement; name another file")
        header = ""
    file = path.open("a", encoding="utf-8", newline="")
    # The last line of a measurement that was killed may lack its end.
    file.write("\n" if cut_short else header)
    file.flush()
    return file
