"""One NVIDIA GPU is asked by NVML, the right one, and a question it cannot answer stays None."""

# ruff: noqa: N801, N802, N815, N818  (the fake bears the names of NVML)

import platform
import sys
import types

import pytest

from vitfp8.monitor import GPUMonitor, SystemMonitor
from vitfp8.monitor.nvidia import NVMLProbe, visible_devices
from vitfp8.monitor.probes import GPU_COLUMNS


class FakeNVML(types.ModuleType):
    """The part of `pynvml` that is used, over devices that count how often they are asked for energy (no GPU here)."""

    class NVMLError(Exception):
        pass

    class NVMLError_NotSupported(NVMLError):
        def __str__(self):
            return "Not Supported"

    class NVMLError_NotFound(NVMLError):
        def __str__(self):
            return "Not Found"

    class NVMLError_FunctionNotFound(NVMLError):
        def __str__(self):
            return "Function Not Found"

    class NVMLError_LibraryNotFound(NVMLError):
        def __str__(self):
            return "NVML Shared Library Not Found"

    NVML_TEMPERATURE_GPU = 0
    NVML_CLOCK_SM = 1
    nvmlClocksThrottleReasonSwPowerCap = 0x04
    nvmlClocksThrottleReasonHwSlowdown = 0x08
    nvmlClocksThrottleReasonSwThermalSlowdown = 0x20
    nvmlClocksThrottleReasonHwThermalSlowdown = 0x40
    nvmlClocksThrottleReasonHwPowerBrakeSlowdown = 0x80

    def __init__(self, devices=2):
        super().__init__("pynvml")
        self.uuids = [f"GPU-{index}a5c0b52-0000-0000-0000-00000000000{index}" for index in range(devices)]
        self.missing = set()
        self.reasons = self.nvmlClocksThrottleReasonSwPowerCap
        self.library = True
        self.users = 0
        self.millijoules = 1_000_000

    def answer(self, question, value):
        if question in self.missing:
            raise self.NVMLError_NotSupported
        return value

    def nvmlInit(self):
        if not self.library:
            raise self.NVMLError_LibraryNotFound
        self.users += 1

    def nvmlShutdown(self):
        self.users -= 1

    def nvmlDeviceGetCount(self):
        return len(self.uuids)

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid):
        if uuid not in self.uuids:
            raise self.NVMLError_NotFound
        return self.uuids.index(uuid)

    def nvmlDeviceGetUUID(self, handle):
        return self.uuids[handle]

    def nvmlDeviceGetName(self, handle):
        return f"Fake GPU {handle}"

    def nvmlDeviceGetUtilizationRates(self, handle):
        return self.answer("utilization", types.SimpleNamespace(gpu=97, memory=40))

    def nvmlDeviceGetMemoryInfo(self, handle):
        return self.answer("memory", types.SimpleNamespace(total=80 << 30, free=79 << 30, used=1 << 30))

    def nvmlDeviceGetPowerUsage(self, handle):
        return self.answer("power", 312_500)

    def nvmlDeviceGetTemperature(self, handle, sensor):
        assert sensor == self.NVML_TEMPERATURE_GPU
        return self.answer("temperature", 61)

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle):
        if "events" in self.missing:
            raise self.NVMLError_FunctionNotFound
        return self.answer("reasons", self.reasons)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):
        return self.answer("reasons", self.reasons)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        self.millijoules += 1500
        return self.answer("energy", self.millijoules)

    def nvmlSystemGetDriverVersion(self):
        return self.answer("driver", "570.86.10")

    def nvmlDeviceGetEnforcedPowerLimit(self, handle):
        return self.answer("limit", 700_000)

    def nvmlDeviceGetClockInfo(self, handle, clock):
        assert clock == self.NVML_CLOCK_SM
        return 1755

    def nvmlDeviceGetMaxClockInfo(self, handle, clock):
        assert clock == self.NVML_CLOCK_SM
        return 1980


@pytest.fixture
def nvml(monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    fake = FakeNVML()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


def measure(**options):
    """One sample: start and stop."""
    return GPUMonitor(10.0, **options).start().stop()


def test_every_column_of_the_device_is_read(nvml):
    summary, samples = measure()
    assert {name: samples[name] for name in GPU_COLUMNS} == {
        "gpu_utilization_percent": [97],
        "gpu_memory_used_bytes": [1 << 30],
        "gpu_power_watts": [312.5],
        "gpu_temperature_celsius": [61],
        "gpu_throttled": [False],
    }
    assert summary["gpu_name"] == "Fake GPU 0"
    assert summary["unavailable"] == {}


def test_a_probe_tells_driver_power_limit_and_clocks_as_far_as_the_driver_does(nvml):
    probe = NVMLProbe(0)
    probe.open()
    told = {"driver": "570.86.10", "power_limit_watts": 700.0, "sm_clock_mhz": 1755, "max_sm_clock_mhz": 1980}
    assert probe.limits() == told
    nvml.missing = {"limit"}
    assert probe.limits() == {name: value for name, value in told.items() if name != "power_limit_watts"}
    probe.close()


def test_energy_is_the_difference_of_the_drivers_counter(nvml):
    summary, _ = measure()
    assert summary["energy_joules"] == 1.5
    assert (summary["energy_source"], summary["energy_covers"]) == ("measured", "GPU")


def test_the_columns_stand_beside_those_of_the_machine(nvml):
    _, samples = SystemMonitor(10.0).start().stop()
    assert samples["gpu_power_watts"] == [312.5]
    assert len(samples["memory_percent"]) == 1
    _, samples = SystemMonitor(10.0, gpu=False).start().stop()
    assert not set(GPU_COLUMNS) & set(samples)


@pytest.mark.parametrize(
    ("missing", "column"),
    [
        ("utilization", "gpu_utilization_percent"),
        ("memory", "gpu_memory_used_bytes"),
        ("power", "gpu_power_watts"),
        ("temperature", "gpu_temperature_celsius"),
        ("reasons", "gpu_throttled"),
    ],
)
def test_a_question_that_the_device_does_not_answer_empties_only_its_column(nvml, missing, column):
    nvml.missing = {missing}
    summary, samples = measure()
    assert {name for name in GPU_COLUMNS if samples[name] == [None]} == {column}
    assert summary[f"{column}_max"] is None
    assert summary["unavailable"] == {column: "NVML: Not Supported"}


def test_without_a_counter_energy_is_estimated_from_power(nvml):
    nvml.missing = {"energy"}
    monitor = GPUMonitor(0.01).start()
    while monitor.summary()["samples"] < 3:
        pass
    summary, _ = monitor.stop()
    assert summary["energy_source"] == "estimated"
    assert 0 < summary["energy_joules"] < 312.5 * summary["seconds"] + 1e-3


def test_without_counter_and_power_energy_is_none(nvml):
    nvml.missing = {"energy", "power"}
    summary, _ = measure()
    assert summary["energy_joules"] is None
    assert summary["energy_source"] is None


@pytest.mark.parametrize("events", ["new driver", "old driver"])
def test_heat_is_throttling_and_the_power_limit_is_not(nvml, events):
    nvml.missing = {"events"} if events == "old driver" else set()
    assert measure()[0]["throttled"] is False
    nvml.reasons |= nvml.nvmlClocksThrottleReasonHwThermalSlowdown
    summary, _ = measure()
    assert summary["throttled"] is True
    assert summary["gpu_throttled_mean"] == 1.0


@pytest.mark.parametrize(
    ("environment", "index", "device"),
    [
        (None, 1, 1),
        ("1", 0, 1),
        ("1,0", 1, 0),
        ("GPU-1a5c0b52-0000-0000-0000-000000000001", 0, 1),
        ("GPU-1a5c", 0, 1),
    ],
)
def test_the_device_is_the_one_that_cuda_shows(nvml, monkeypatch, environment, index, device):
    if environment is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", environment)
    assert measure(device_index=index)[0]["gpu_name"] == f"Fake GPU {device}"


@pytest.mark.parametrize("environment", ["", "-1", "7"])
def test_a_hidden_gpu_is_not_measured(nvml, monkeypatch, environment):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", environment)
    summary, samples = measure()
    assert list(samples) == ["seconds"]
    assert summary["energy_joules"] is None
    assert f"CUDA_VISIBLE_DEVICES={environment!r}" in summary["unavailable"]["gpu"]


def test_the_device_that_torch_already_uses_is_found_by_its_uuid(nvml, monkeypatch):
    cuda = types.SimpleNamespace(
        is_initialized=lambda: True,
        device_count=lambda: 1,
        get_device_properties=lambda index: types.SimpleNamespace(uuid=nvml.uuids[1].removeprefix("GPU-")),
    )
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))
    assert measure()[0]["gpu_name"] == "Fake GPU 1"


def test_visible_devices_end_at_the_first_that_does_not_exist():
    assert visible_devices("0, GPU-abc ,9,1", count=2) == [0, "GPU-abc"]


def test_without_a_driver_there_are_no_gpu_columns_and_the_reason_is_said(nvml):
    nvml.library = False
    summary, samples = measure()
    assert samples == {"seconds": samples["seconds"]}
    assert "NVML Shared Library Not Found" in summary["unavailable"]["gpu"]


def test_a_driver_that_breaks_down_stops_nothing(nvml):
    nvml.nvmlDeviceGetName = None
    summary, _ = measure()
    assert "TypeError" in summary["unavailable"]["gpu"]


@pytest.mark.parametrize("library", [True, False])
def test_nvml_is_left_as_often_as_it_is_entered(nvml, library):
    nvml.library = library
    measure()
    measure(device_index=5)
    assert nvml.users == 0


def _has_nvidia_gpu():
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    pynvml.nvmlShutdown()
    return True


@pytest.mark.gpu
@pytest.mark.skipif(not _has_nvidia_gpu(), reason="needs an NVIDIA GPU")
def test_a_real_nvidia_gpu_tells_memory_and_power():
    summary, samples = measure()
    assert samples["gpu_memory_used_bytes"][0] > 0
    assert samples["gpu_power_watts"][0] > 0
    assert summary["gpu_name"]
