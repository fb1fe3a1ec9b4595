"""What the GPU did: NVIDIA by NVML, Apple by its energy counters or, on request, ``powermetrics``, nothing elsewhere.

Readings are of the whole device, whichever process uses it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from vitfp8.monitor.apple import AppleEnergyProbe, PowermetricsProbe
from vitfp8.monitor.sampling import Energy, Monitor, Probe, Row, UnavailableError, Value, say_once

GPU_COLUMNS = (
    "gpu_utilization_percent",
    "gpu_memory_used_bytes",
    "gpu_power_watts",
    "gpu_temperature_celsius",
    "gpu_throttled",
)
"""Of the device being trained on: time in which a kernel ran (0–100 %), memory in use by all processes (bytes), power of
the board (W; on Apple silicon of the GPU in the chip), temperature of the die (°C), whether it was slowed down for
heat or by a power brake (the power limit, which a busy GPU always meets, does not count)."""


def _slowed_down(nvml: Any, handle: Any) -> bool:
    """Whether the driver names heat or a power brake as a reason for the present clocks.

    Args:
        nvml: the module `pynvml`.
        handle: NVML's handle of the device.
    """
    reasons = (
        nvml.nvmlClocksThrottleReasonHwSlowdown
        | nvml.nvmlClocksThrottleReasonHwThermalSlowdown
        | nvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown
        | nvml.nvmlClocksThrottleReasonSwThermalSlowdown
    )
    try:
        present = nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
    except nvml.NVMLError_FunctionNotFound:  # its name before driver 535
        present = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
    return bool(present & reasons)


_QUERIES: dict[str, Callable[[Any, Any], Value]] = {
    "gpu_utilization_percent": lambda nvml, handle: nvml.nvmlDeviceGetUtilizationRates(handle).gpu,
    "gpu_memory_used_bytes": lambda nvml, handle: nvml.nvmlDeviceGetMemoryInfo(handle).used,
    "gpu_power_watts": lambda nvml, handle: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
    "gpu_temperature_celsius": lambda nvml, handle: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
    "gpu_throttled": _slowed_down,
}


def visible_devices(environment: str | None, count: int) -> list[int | str]:
    """NVIDIA devices that CUDA shows to this process, in its order.

    Args:
        environment: value of ``CUDA_VISIBLE_DEVICES``; None when it is not set. As in CUDA, it lists indices and
            UUIDs (``GPU-…``, ``MIG-…``), and the first entry that names no device ends the list.
        count: number of devices that the driver knows.

    Returns:
        indices and UUIDs.
    """
    if environment is None:
        return list(range(count))
    devices: list[int | str] = []
    for entry in (part.strip() for part in environment.split(",")):
        if entry.startswith(("GPU-", "MIG-")):
            devices.append(entry)
        elif entry.isdigit() and int(entry) < count:
            devices.append(int(entry))
        else:
            break
    return devices


class NVMLProbe(Probe):
    """One NVIDIA GPU by NVML (the library behind ``nvidia-smi``).

    A query that the device does not support empties its own column only. Energy is the driver's counter (Volta and
    later), else the integral of the sampled power.

    Args:
        device_index: as CUDA counts, among the devices of ``CUDA_VISIBLE_DEVICES``.
    """

    name = "gpu"
    columns = GPU_COLUMNS

    def __init__(self, device_index: int) -> None:
        super().__init__()
        self._index = device_index
        self._queries = dict(_QUERIES)
        self._joules = 0.0
        self._power: tuple[float, float] | None = None
        self._first: int | None = None
        self._counting = True

    def open(self) -> None:
        """Find the device.

        Raises:
            UnavailableError: when there is no driver or no such device.
        """
        try:
            import pynvml
        except ImportError as error:
            raise UnavailableError("nvidia-ml-py is not installed") from error
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise UnavailableError(f"no NVIDIA GPU can be asked ({error})") from error
        self._nvml: Any = pynvml
        try:
            self._handle = self._find()
            name = pynvml.nvmlDeviceGetName(self._handle)
            self.facts = {"gpu_name": name.decode() if isinstance(name, bytes) else name}
        except Exception:
            pynvml.nvmlShutdown()
            raise
        try:
            self._first = pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        except pynvml.NVMLError:
            self._first = None

    def read(self) -> Row:
        """The columns; a query that fails is not asked again, and its reason is kept."""
        row: Row = {}
        for column, query in tuple(self._queries.items()):
            try:
                row[column] = query(self._nvml, self._handle)
            except Exception as error:
                del self._queries[column]
                self.unavailable[column] = f"NVML: {error}"
        if self._counting:
            try:
                self._count_energy(row.get("gpu_power_watts"))
            except Exception as error:
                self._counting, self.energy = False, None  # a part of a run's energy would be read as the whole
                self.unavailable["energy_joules"] = f"NVML: {error}"
        return row

    def close(self) -> None:
        """Leave NVML, which counts its users."""
        self._nvml.nvmlShutdown()

    def _find(self) -> Any:
        """NVML's handle of the device.

        Raises:
            UnavailableError: when CUDA would not show it.
        """
        if uuid := _torch_uuid(self._index):
            with contextlib.suppress(self._nvml.NVMLError):  # a slice of a device has another kind of UUID
                return self._nvml.nvmlDeviceGetHandleByUUID(uuid)
        environment = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = visible_devices(environment, self._nvml.nvmlDeviceGetCount())
        if not 0 <= self._index < len(devices):
            seen = "" if environment is None else f" with CUDA_VISIBLE_DEVICES={environment!r}"
            raise UnavailableError(f"there is no device {self._index}: {len(devices)} visible{seen}")
        device = devices[self._index]
        if isinstance(device, int):
            return self._nvml.nvmlDeviceGetHandleByIndex(device)
        return self._nvml.nvmlDeviceGetHandleByUUID(_whole_uuid(self._nvml, device))

    def _count_energy(self, watts: Value) -> None:
        """Bring `energy` up to now.

        Args:
            watts: power at this sample, None when not measured.
        """
        if self._first is not None:
            joules = (self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) - self._first) / 1000
            self.energy = Energy(joules=joules, source="measured", covers="GPU")
            return
        if not isinstance(watts, int | float):
            self._power = None
            return
        now = time.monotonic()
        if self._power is not None:
            then, before = self._power
            self._joules += (before + watts) / 2 * (now - then)
            self.energy = Energy(joules=self._joules, source="estimated", covers="GPU")
        self._power = (now, float(watts))


def _whole_uuid(nvml: Any, prefix: str) -> str:
    """The UUID that an abbreviation names, as CUDA lets one abbreviate.

    Args:
        nvml: the module `pynvml`.
        prefix: ``GPU-…`` or ``MIG-…``.
    """
    for index in range(nvml.nvmlDeviceGetCount()):
        uuid = nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByIndex(index))
        uuid = uuid.decode() if isinstance(uuid, bytes) else uuid
        if uuid.startswith(prefix):
            return str(uuid)
    return prefix


def _torch_uuid(index: int) -> str | None:
    """UUID of torch's device, if torch already runs CUDA: CUDA and NVML may number unlike devices differently.

    Args:
        index: as torch counts.
    """
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized() or index >= torch.cuda.device_count():
        return None
    uuid = getattr(torch.cuda.get_device_properties(index), "uuid", None)
    return None if uuid is None else f"GPU-{str(uuid).removeprefix('GPU-')}"


class GPUProbe(Probe):
    """The first way of asking a GPU that works on this machine.

    Args:
        interval: seconds between samples (``powermetrics`` samples by itself).
        device_index: NVIDIA device, as CUDA counts.
        powermetrics: ask Apple's tool, which needs sudo.
    """

    name = "gpu"
    columns = GPU_COLUMNS
    optional = True

    def __init__(self, *, interval: float, device_index: int, powermetrics: bool) -> None:
        super().__init__()
        ways: list[Probe] = [PowermetricsProbe(interval)] if powermetrics else []
        ways.append(AppleEnergyProbe() if platform.system() == "Darwin" else NVMLProbe(device_index))
        self._ways: Sequence[Probe] = ways
        self._way: Probe | None = None

    def open(self) -> None:
        """Open the first way that works.

        Raises:
            UnavailableError: with every way's reason.
        """
        reasons: dict[str, str] = {}
        for way in self._ways:
            try:
                way.open()
            except UnavailableError as error:
                reasons[way.name] = str(error)
                if way is not self._ways[-1]:  # asked for by the user, and not to be had
                    say_once(str(error), logging.WARNING)
                continue
            self._way, self.facts = way, way.facts
            self.unavailable = reasons | {
                column: f"{way.name} does not tell" for column in self.columns if column not in way.columns
            }
            return
        raise UnavailableError("; ".join(reasons.values()))

    def read(self) -> Row:
        """What the way tells."""
        assert self._way is not None
        row = self._way.read()
        self.energy = self._way.energy
        self.unavailable |= self._way.unavailable
        return row

    def close(self) -> None:
        """Close the way."""
        if self._way is not None:
            self._way.close()


class GPUMonitor(Monitor):
    """Samples the GPU alone, from a thread; `SystemMonitor` has the same columns beside those of the machine.

    Where there is no GPU that can be asked, the samples have no column but ``seconds``, and
    ``summary()["unavailable"]["gpu"]`` says why.

    Args:
        interval: seconds between samples, above 0.
        device_index: which NVIDIA device, as CUDA counts within ``CUDA_VISIBLE_DEVICES``: the one trained on. Other
            devices are not added.
        powermetrics: on a Mac, run ``sudo -n powermetrics``, which tells utilisation, power and thermal pressure;
            without it only the power of Apple silicon is known. Nothing ever asks for a password.
        max_samples: the most samples kept (see `Monitor`).

    Raises:
        InputError: when interval or max_samples is out of range.
    """

    def __init__(
        self,
        interval: float = 1.0,
        *,
        device_index: int = 0,
        powermetrics: bool = False,
        max_samples: int = 2000,
    ) -> None:
        super().__init__(interval, max_samples=max_samples)
        self.device_index = device_index
        self.powermetrics = powermetrics

    def _probes(self) -> list[Probe]:
        """The GPU."""
        return [GPUProbe(interval=self.interval, device_index=self.device_index, powermetrics=self.powermetrics)]
