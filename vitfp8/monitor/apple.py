"""What Apple's own tools tell: `powermetrics` (needs sudo, only on request), `pmset` and `notifyutil` (free to ask).

``powermetrics`` prints text meant for people, and its wording has changed: macOS 11 on an M1 says ``GPU active
residency`` and ``Package Power``, macOS 13 and later ``GPU HW active residency`` and ``Combined Power (CPU + GPU +
ANE)``, an Intel Mac ``GPU 0 GPU Busy`` and ``Intel energy model derived package power``. The patterns below know all
three. Apple calls every power figure of the tool estimated (``man powermetrics``), and so does this package.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Sequence
from typing import IO, Any

from vitfp8.monitor.probes import THERMAL_LEVELS, Energy, Probe, Row, UnavailableError, Value

_SAMPLE = re.compile(r"^\*\*\* Sampled system activity .*?\(([\d.]+) ?ms elapsed\) \*\*\*", re.MULTILINE)
_SUMMARY = "*** Summary system activity"

_POWERS: dict[str, str] = {
    "cpu_power_watts": r"^(?:CPU Power|Clusters Total Power):\s*([\d.]+) ?(m?W)",
    "gpu_power_watts": r"^GPU Power:\s*([\d.]+) ?(m?W)",
    "ane_power_watts": r"^ANE Power:\s*([\d.]+) ?(m?W)",
    "package_power_watts": (
        r"^(?:Combined Power \(.*?\)|Package Power|Intel energy model derived package power \(.*?\)):"
        r"\s*([\d.]+) ?(m?W)"
    ),
}
_NUMBERS: dict[str, str] = {
    "gpu_utilization_percent": r"^GPU (?:(?:HW )?active residency:|0 GPU Busy\s*:)\s*([\d.]+)%",
    "temperature_celsius": r"^CPU die temperature:\s*([\d.]+) C",
    "gpu_temperature_celsius": r"^GPU die temperature:\s*([\d.]+) C",
}
_PRESSURE = re.compile(r"^Current pressure level:\s*(\w+)", re.MULTILINE)


def parse_powermetrics(text: str) -> list[dict[str, Any]]:
    """Samples in the text output of ``powermetrics --samplers cpu_power,gpu_power,thermal`` (or ``smc`` on Intel).

    Args:
        text: any number of samples; what stands before the first, and the summary that ``--show-usage-summary`` adds
            at the end, are no samples.

    Returns:
        one dictionary a sample with the same keys, None where the output does not tell: ``elapsed_seconds`` (time
        that the sample covers), ``cpu_power_watts``, ``gpu_power_watts``, ``ane_power_watts``,
        ``package_power_watts`` (the sum that the tool prints; with DRAM in macOS 11 and 12, without it since),
        ``gpu_utilization_percent`` (time that the GPU was active, 0–100), ``temperature_celsius`` and
        ``gpu_temperature_celsius`` (of the dies, on Intel only), ``thermal_pressure`` (one of `THERMAL_LEVELS`).
    """
    headers = list(_SAMPLE.finditer(text))
    ends = [*(header.start() for header in headers), len(text)][1:]
    return [
        _parse_sample(text[header.end() : end].split(_SUMMARY, 1)[0], float(header[1]) / 1000)
        for header, end in zip(headers, ends, strict=False)
    ]


def _parse_sample(block: str, elapsed_seconds: float) -> dict[str, Any]:
    """One sample of ``powermetrics``, without its header.

    Args:
        block: the lines of the sample. ``GPU Power`` stands twice, with the rails and with the GPU; the first is the
            one that the sum is made of.
        elapsed_seconds: from the header.
    """
    sample: dict[str, Any] = {"elapsed_seconds": elapsed_seconds}
    for name, pattern in _POWERS.items():
        power = re.search(pattern, block, re.MULTILINE)
        sample[name] = float(power[1]) / (1000 if power[2] == "mW" else 1) if power else None
    for name, pattern in _NUMBERS.items():
        number = re.search(pattern, block, re.MULTILINE)
        sample[name] = float(number[1]) if number else None
    pressure = _PRESSURE.search(block)
    level = pressure[1].lower() if pressure else None
    sample["thermal_pressure"] = level if level in THERMAL_LEVELS else None
    return sample


def parse_pmset(text: str) -> dict[str, int | None]:
    """Limits in the output of ``pmset -g therm``.

    Args:
        text: Intel Macs print limits under a dated ``CPU Power notify``. Apple silicon prints only that nothing has
            been recorded, hot or not, which is no measurement.

    Returns:
        ``cpu_speed_limit_percent`` (below 100 while the processor is slowed down), ``cpu_scheduler_limit_percent``
        and ``cpu_available_cpus``, the last ones printed; None where there are none.
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
    """The thermal pressure in the output of ``notifyutil -g com.apple.system.thermalpressurelevel``.

    Args:
        text: the key and a number from 0 to 4, as ``OSThermalNotification.h`` numbers the levels of macOS.

    Returns:
        one of `THERMAL_LEVELS`, None for anything else.
    """
    found = re.match(r"com\.apple\.system\.thermalpressurelevel\s+(\d+)\s*$", text)
    number = int(found[1]) if found else -1
    return THERMAL_LEVELS[number] if 0 <= number < len(THERMAL_LEVELS) else None


def _ask(command: Sequence[str]) -> str:
    """Standard output of a command that answers at once.

    Raises:
        OSError, subprocess.SubprocessError: when it is missing, fails or takes more than 5 s.
    """
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=5, check=True).stdout


class MacThermalProbe(Probe):
    """Thermal pressure of a Mac without sudo: the level of macOS, and the speed limit of an Intel processor."""

    name = "thermal pressure"
    columns = ("thermal_pressure",)

    def open(self) -> None:
        """Look which of the two tools answers."""
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

    The counters are Apple's model of the chip (utilisation, frequency, voltage), hence ``estimated``. They count the
    whole machine, not one process.
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


class PowermetricsProbe(Probe):
    """GPU and power of a Mac by ``powermetrics``, started once and read as it prints.

    Only for a user who asked for it: the tool runs as root. It is started with ``sudo -n``, which never prompts and
    works when the rights were granted beforehand (``sudo -v``, or a rule in sudoers).

    Args:
        interval: seconds between its samples.
    """

    name = "powermetrics"
    columns = ("gpu_utilization_percent", "gpu_power_watts", "gpu_temperature_celsius", "thermal_pressure")

    def __init__(self, interval: float) -> None:
        super().__init__()
        self._interval = interval
        self._process: subprocess.Popen[str] | None = None
        self._latest: Row = {}
        self._latest_time = 0.0
        self._joules: float | None = None
        self._ending = threading.Event()
        self._broken: Exception | None = None

    def open(self) -> None:
        """Start the tool and see that it is permitted.

        Raises:
            UnavailableError: with what the tool said and what to do.
        """
        if platform.system() != "Darwin":
            raise UnavailableError(f"powermetrics is a tool of macOS, and this is {platform.system()}")
        if shutil.which("powermetrics") is None:
            raise UnavailableError("powermetrics is not on the PATH (it is in /usr/bin)")
        command = ["powermetrics", "--samplers", "cpu_power,gpu_power,thermal"]
        command += ["-i", str(max(1, round(self._interval * 1000)))]
        if os.geteuid() != 0:
            command = ["sudo", "-n", *command]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert self._process.stdout is not None
        self._before: list[str] = []
        reader = threading.Thread(
            target=self._follow, args=(self._process, self._process.stdout), name="vitfp8-powermetrics", daemon=True
        )
        reader.start()
        try:  # a refusal comes at once, a permitted tool keeps running
            self._process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            return
        reader.join(timeout=1.0)
        said = " ".join(" ".join(self._before).split()) or f"exit status {self._process.returncode}"
        raise UnavailableError(
            f"powermetrics was not permitted ({said}); run 'sudo -v' first or allow it in sudoers, "
            "vitfp8 never asks for a password"
        )

    def read(self) -> Row:
        """The latest complete sample, unless the tool has fallen silent; its energy lags by an interval or two."""
        assert self._process is not None
        if self._broken is not None:
            raise self._broken
        if self._process.poll() is not None:
            raise RuntimeError(f"powermetrics ended with status {self._process.returncode}")
        if self._joules is not None:
            self.energy = Energy(joules=self._joules, source="estimated", covers="processor package")
        silent = time.monotonic() - self._latest_time > 3 * self._interval
        return {} if silent else self._latest

    def close(self) -> None:
        """End the tool: by a signal where it may be sent, else the closed pipe ends it at its next sample."""
        self._ending.set()
        if self._process is not None and self._process.poll() is None:
            try:
                self._process.terminate()
                self._process.wait(timeout=1.0)
            except (PermissionError, ProcessLookupError, subprocess.TimeoutExpired):
                pass  # sudo made it a process of root

    def _follow(self, process: subprocess.Popen[str], output: IO[str]) -> None:
        """The reader's thread: gather lines until the next sample begins, then take the finished one.

        Args:
            process: the tool.
            output: its standard output.
        """
        block: list[str] = []
        try:
            for line in output:
                if self._ending.is_set():
                    break
                if _SAMPLE.match(line):
                    self._take("".join(block))
                    block = []
                elif not block:
                    self._before.append(line)
                    continue
                block.append(line)
        except Exception as error:  # raised where it is looked for, by the next reading
            self._broken = error
        finally:
            output.close()
            process.wait()

    def _take(self, text: str) -> None:
        """Make a finished sample the latest and add its energy.

        Args:
            text: one sample with its header; empty before the first.
        """
        for sample in parse_powermetrics(text):
            self._latest = {name: sample[name] for name in self.columns}
            self._latest_time = time.monotonic()
            if sample["package_power_watts"] is not None:
                self._joules = (self._joules or 0.0) + sample["package_power_watts"] * sample["elapsed_seconds"]
