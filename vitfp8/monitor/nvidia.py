"""One NVIDIA GPU by NVML (the library behind ``nvidia-smi``). Readings are of the whole device, whichever process uses it."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from vitfp8.monitor.probes import GPU_COLUMNS, Energy, Probe, Row, UnavailableError, Value


def _slowed_down(nvml: Any, handle: Any) -> bool:
    """Whether the driver names heat or a power brake as a reason for the present clocks."""
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


_Query = Callable[[Any, Any], Value]  # of the module `pynvml` and NVML's handle of the device

_QUERIES: Mapping[str, _Query] = MappingProxyType(
    {
        "gpu_utilization_percent": lambda nvml, handle: nvml.nvmlDeviceGetUtilizationRates(handle).gpu,
        "gpu_memory_used_bytes": lambda nvml, handle: nvml.nvmlDeviceGetMemoryInfo(handle).used,
        "gpu_power_watts": lambda nvml, handle: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        "gpu_temperature_celsius": lambda nvml, handle: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        "gpu_throttled": _slowed_down,
    }
)

#: What `NVMLProbe.limits` tells.
_LIMITS: Mapping[str, _Query] = MappingProxyType(
    {
        "driver": lambda nvml, handle: _text(nvml.nvmlSystemGetDriverVersion()),
        "power_limit_watts": lambda nvml, handle: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,
        "sm_clock_mhz": lambda nvml, handle: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
        "max_sm_clock_mhz": lambda nvml, handle: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
    }
)


class NVMLProbe(Probe):
    """One NVIDIA GPU.

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
        """Find the device; `UnavailableError` when there is no driver or no such device."""
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
            self.facts = {"gpu_name": _text(pynvml.nvmlDeviceGetName(self._handle))}
        except Exception:
            pynvml.nvmlShutdown()
            raise
        with contextlib.suppress(pynvml.NVMLError):
            self._first = pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)

    def limits(self) -> Row:
        """Driver version, enforced power limit (W), present and highest SM clock (MHz), as far as the driver tells."""
        found: Row = {}
        for name, query in _LIMITS.items():
            with contextlib.suppress(self._nvml.NVMLError):
                found[name] = query(self._nvml, self._handle)
        return found

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
        """NVML's handle of the device; `UnavailableError` when CUDA would not show it."""
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
        """Bring `energy` up to now; ``watts`` is the power at this sample."""
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


def visible_devices(environment: str | None, count: int) -> list[int | str]:
    """NVIDIA devices (indices and UUIDs) that CUDA shows to this process, in its order.

    Args:
        environment: value of ``CUDA_VISIBLE_DEVICES``; None when it is not set. As in CUDA, it lists indices and
            UUIDs (``GPU-…``, ``MIG-…``), and the first entry that names no device ends the list.
        count: number of devices that the driver knows.
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


def _text(value: str | bytes) -> str:
    """A text of NVML, which older versions of its bindings give as bytes."""
    return value.decode() if isinstance(value, bytes) else value


def _whole_uuid(nvml: Any, prefix: str) -> str:
    """The UUID that a prefix names: CUDA accepts abbreviated UUIDs, NVML does not."""
    for index in range(nvml.nvmlDeviceGetCount()):
        uuid = _text(nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByIndex(index)))
        if uuid.startswith(prefix):
            return uuid
    return prefix


def _torch_uuid(index: int) -> str | None:
    """UUID of torch's device, if torch already runs CUDA: CUDA and NVML may number unlike devices differently."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized() or index >= torch.cuda.device_count():
        return None
    uuid = getattr(torch.cuda.get_device_properties(index), "uuid", None)
    return None if uuid is None else f"GPU-{str(uuid).removeprefix('GPU-')}"
