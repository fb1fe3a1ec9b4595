"""``powermetrics``, Apple's tool that needs sudo: its samples, as plist on Apple silicon, as text on Intel Macs and in old logs.

The text is meant for people, and its wording has changed: macOS 11 on an M1 says ``GPU active residency`` and ``Package
Power``, macOS 13 and later ``GPU HW active residency`` and ``Combined Power (CPU + GPU + ANE)``, an Intel Mac ``GPU 0 GPU
Busy`` and ``Intel energy model derived package power``; the patterns below know all three. In a plist, macOS 13 and later
give powers in mW, earlier systems energies in mJ. Apple calls every power figure of the tool estimated (``man
powermetrics``), and so does this room.
"""

from __future__ import annotations

import os
import platform
import plistlib
import re
import shutil
import subprocess
import threading
import time
from typing import IO, Any

from vitfp8.monitor.probes import THERMAL_LEVELS, Energy, Probe, Row, UnavailableError

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


_PLIST_POWERS: dict[str, tuple[str, str]] = {
    "cpu_power_watts": ("cpu_power", "cpu_energy"),
    "gpu_power_watts": ("gpu_power", "gpu_energy"),
    "ane_power_watts": ("ane_power", "ane_energy"),
    "package_power_watts": ("combined_power", "package_energy"),
}


def parse_powermetrics(text: str) -> list[dict[str, Any]]:
    """Samples in the output of ``powermetrics --samplers cpu_power,gpu_power,thermal``, as text or as plist.

    Args:
        text: any number of samples. What stands before the first one, and the summary that ``--show-usage-summary`` adds
            at the end, are not samples. Plists are separated by NUL. Text may hold the sampler ``smc`` of Intel Macs.

    Returns:
        one dictionary per sample with the same keys, None where the output does not tell: ``elapsed_seconds`` (time
        that the sample covers), ``cpu_power_watts``, ``gpu_power_watts``, ``ane_power_watts``,
        ``package_power_watts`` (the sum that the tool prints; with DRAM in macOS 11 and 12, without it since),
        ``gpu_utilization_percent`` (time that the GPU was active, 0–100), ``temperature_celsius`` and
        ``gpu_temperature_celsius`` (of the dies, on Intel only), ``thermal_pressure`` (one of `THERMAL_LEVELS`).
    """
    if "<plist" in text:
        return [_of_plist(plistlib.loads(part.strip().encode())) for part in text.split("\0") if "</plist>" in part]
    headers = list(_SAMPLE.finditer(text))
    ends = [*(header.start() for header in headers), len(text)][1:]
    return [
        _of_text(text[header.end() : end].split(_SUMMARY, 1)[0], float(header[1]) / 1000)
        for header, end in zip(headers, ends, strict=False)
    ]


def _of_plist(values: dict[str, Any]) -> dict[str, Any]:
    """A sample from its plist."""
    processor, seconds = values.get("processor", {}), values["elapsed_ns"] / 1e9
    sample: dict[str, Any] = {"elapsed_seconds": seconds}
    for name, (power, energy) in _PLIST_POWERS.items():
        if power in processor:
            sample[name] = processor[power] / 1000
        else:
            sample[name] = processor[energy] / 1000 / seconds if energy in processor and seconds else None
    idle = values.get("gpu", {}).get("idle_ratio")
    sample["gpu_utilization_percent"] = None if idle is None else 100 * (1 - idle)
    sample |= {"temperature_celsius": None, "gpu_temperature_celsius": None}
    return sample | {"thermal_pressure": _level(values.get("thermal_pressure"))}


def _of_text(block: str, elapsed_seconds: float) -> dict[str, Any]:
    """A sample in text, without its header. ``GPU Power`` stands there twice; the sum is made of the first."""
    sample: dict[str, Any] = {"elapsed_seconds": elapsed_seconds}
    for name, pattern in _POWERS.items():
        power = re.search(pattern, block, re.MULTILINE)
        sample[name] = float(power[1]) / (1000 if power[2] == "mW" else 1) if power else None
    for name, pattern in _NUMBERS.items():
        number = re.search(pattern, block, re.MULTILINE)
        sample[name] = float(number[1]) if number else None
    pressure = _PRESSURE.search(block)
    return sample | {"thermal_pressure": _level(pressure[1] if pressure else None)}


def _level(name: str | None) -> str | None:
    """A thermal pressure by its name; None for anything else."""
    return name.lower() if name is not None and name.lower() in THERMAL_LEVELS else None


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
        """Start the tool; `UnavailableError`, with what the tool said and what to do, where it is not permitted."""
        if platform.system() != "Darwin":
            raise UnavailableError(f"powermetrics is a tool of macOS, and this is {platform.system()}")
        if shutil.which("powermetrics") is None:
            raise UnavailableError("powermetrics is not on the PATH (it is in /usr/bin)")
        command = ["powermetrics", "--samplers", "cpu_power,gpu_power,thermal"]
        command += ["-i", str(max(1, round(self._interval * 1000)))]
        if platform.machine() == "arm64":  # no plist of an Intel Mac has been recorded, so its text is read
            command += ["-f", "plist"]
        if os.geteuid() != 0:
            command = ["sudo", "-n", *command]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
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
        """The reader's thread: gather the lines of a sample, and take it when it is complete.

        A plist ends with its own last line, a sample in text where the next one begins.
        """
        block: list[str] = []
        try:
            for line in output:
                if self._ending.is_set():
                    break
                if _SAMPLE.match(line) or line.lstrip("\0").startswith("<?xml"):
                    self._take("".join(block))
                    block = []
                elif not block:
                    self._before.append(line)
                    continue
                block.append(line)
                if line.rstrip() == "</plist>":
                    self._take("".join(block))
                    block = []
        except Exception as error:  # raised where it is looked for, by the next reading
            self._broken = error
        finally:
            output.close()
            process.wait()

    def _take(self, text: str) -> None:
        """Make a finished sample the latest and add its energy; the text is empty before the first sample."""
        for sample in parse_powermetrics(text):
            self._latest = {name: sample[name] for name in self.columns}
            self._latest_time = time.monotonic()
            if sample["package_power_watts"] is not None:
                self._joules = (self._joules or 0.0) + sample["package_power_watts"] * sample["elapsed_seconds"]
