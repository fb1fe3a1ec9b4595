"""What Apple's tools print is understood, and they are run only as far as a user allowed."""

import os
import platform
import plistlib
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from vitfp8.monitor import GPUMonitor, SystemMonitor, parse_pmset, parse_powermetrics
from vitfp8.monitor.apple import parse_notifyutil

RECORDED = Path(__file__).parent / "recorded"


def recorded(name):
    return (RECORDED / name).read_text()


def test_powermetrics_of_an_m1_gives_power_and_gpu_load_of_every_sample():
    idle, busy = parse_powermetrics(recorded("powermetrics_m1_macos11.txt"))
    assert idle["elapsed_seconds"] == pytest.approx(1.00503)
    assert busy == {
        "elapsed_seconds": pytest.approx(1.0128),
        "cpu_power_watts": 0.731,
        "gpu_power_watts": 6.683,
        "ane_power_watts": 0.0,
        "package_power_watts": 8.366,
        "gpu_utilization_percent": 68.39,
        "temperature_celsius": None,
        "gpu_temperature_celsius": None,
        "thermal_pressure": None,
    }


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "powermetrics_m2_macos12.txt",
            {"cpu_power_watts": 0.01, "gpu_power_watts": 0.0, "ane_power_watts": 0.0, "package_power_watts": 0.025},
        ),
        (
            "powermetrics_m4max_macos15.txt",
            {
                "cpu_power_watts": 0.954,
                "gpu_power_watts": 0.028,
                "ane_power_watts": 0.0,
                "package_power_watts": 0.983,
                "gpu_utilization_percent": 1.63,
            },
        ),
        ("powermetrics_mac17_macos26_moderate.txt", {"thermal_pressure": "moderate"}),
        ("powermetrics_intel_cpu_macos14.txt", {"package_power_watts": 8.53}),
        ("powermetrics_intel_gpu_macos11.txt", {"gpu_utilization_percent": 0.72}),
        ("powermetrics_intel_smc_macos15.txt", {"temperature_celsius": 76.93, "gpu_temperature_celsius": 71.0}),
    ],
)
def test_powermetrics_tells_what_its_samplers_printed_and_none_for_the_rest(name, told):
    (sample,) = parse_powermetrics(recorded(name))
    del sample["elapsed_seconds"]
    assert {key: value for key, value in sample.items() if value is not None} == told


def test_powermetrics_tells_thermal_pressure_by_the_name_of_its_level():
    samples = parse_powermetrics(recorded("powermetrics_m2_macos26_thermal.txt"))
    assert [sample["thermal_pressure"] for sample in samples] == ["nominal", "nominal"]
    assert [sample["package_power_watts"] for sample in samples] == [1.172, 0.445]


PLIST = "powermetrics_apple_silicon.plist"


def test_powermetrics_as_plist_gives_the_same_columns_as_its_text():
    first, second = parse_powermetrics("\0".join([recorded(PLIST), recorded(PLIST)]))
    assert (
        first
        == second
        == {
            "elapsed_seconds": pytest.approx(3.01730475),
            "cpu_power_watts": pytest.approx(9.92435),
            "gpu_power_watts": pytest.approx(0.169958),
            "ane_power_watts": 0.0,
            "package_power_watts": pytest.approx(10.0943),
            "gpu_utilization_percent": pytest.approx(9.8643),
            "temperature_celsius": None,
            "gpu_temperature_celsius": None,
            "thermal_pressure": None,
        }
    )
    assert list(first) == list(parse_powermetrics(recorded("powermetrics_m1_macos11.txt"))[0])


def test_a_plist_of_an_earlier_system_gives_power_as_energy_over_time():
    """Its names as public readers of macOS 12 know them; nobody has published a recording."""
    values = {"elapsed_ns": 500_000_000, "thermal_pressure": "Heavy", "processor": {"gpu_energy": 305, "package_energy": 1046}}
    (sample,) = parse_powermetrics(plistlib.dumps(values).decode())
    assert (sample["gpu_power_watts"], sample["package_power_watts"]) == (pytest.approx(0.61), pytest.approx(2.092))
    assert (sample["cpu_power_watts"], sample["thermal_pressure"]) == (None, "heavy")


def test_a_plist_that_was_cut_off_is_no_sample():
    assert len(parse_powermetrics(recorded(PLIST) + "\0" + recorded(PLIST)[:300])) == 1


def test_a_usage_summary_at_the_end_is_no_sample():
    text = recorded("powermetrics_mac17_macos26_moderate.txt")
    text += "\n*** Summary system activity (Wed Oct  8 09:59:30 2025 +0200) (10458.15ms elapsed) ***\n\nGPU Power: 9 mW\n"
    (sample,) = parse_powermetrics(text)
    assert sample["gpu_power_watts"] is None


@pytest.mark.parametrize("text", ["", "powermetrics must be invoked as the superuser\n", "sudo: a password is required\n"])
def test_a_refusal_holds_no_sample(text):
    assert parse_powermetrics(text) == []


@pytest.mark.parametrize(
    ("name", "limits"),
    [("pmset_intel_limited.txt", (35, 100, 8)), ("pmset_intel_nominal.txt", (100, 100, 12))],
)
def test_pmset_of_an_intel_mac_tells_its_limits(name, limits):
    assert tuple(parse_pmset(recorded(name)).values()) == limits


def test_pmset_of_apple_silicon_is_no_measurement():
    assert set(parse_pmset(recorded("pmset_apple_silicon.txt")).values()) == {None}


def test_pmset_tells_the_last_of_several_records():
    assert parse_pmset("\tCPU_Speed_Limit \t= 90\n\tCPU_Speed_Limit \t= 100\n")["cpu_speed_limit_percent"] == 100


def test_notifyutil_tells_thermal_pressure_by_number():
    assert parse_notifyutil(recorded("notifyutil_moderate.txt")) == "moderate"


@pytest.mark.parametrize("text", ["", "com.apple.system.thermalpressurelevel 9\n", "com.apple.other 1\n"])
def test_notifyutil_is_believed_only_for_a_known_level(text):
    assert parse_notifyutil(text) is None


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """A folder that is the whole PATH: scripts that print the recordings, on a machine that says it is a Mac."""
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(os, "geteuid", lambda: 501)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "zeus_apple_silicon", None)

    def tool(name, script):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)

    tool.folder = tmp_path
    tool("pmset", f"/bin/cat {RECORDED / 'pmset_apple_silicon.txt'}")
    tool("notifyutil", f"/bin/cat {RECORDED / 'notifyutil_moderate.txt'}")
    tool("sudo", f'printf "%s\\n" "$*" >> {tmp_path / "sudo.log"}; shift; exec "$@"')
    return tool


def wait_until(condition, seconds=20.0):
    """Until it holds; the limit is for a machine that is stuck."""
    limit = time.monotonic() + seconds
    while not condition() and time.monotonic() < limit:
        time.sleep(0.02)
    assert condition()


def test_a_mac_tells_its_thermal_pressure_without_sudo(tools):
    summary, samples = SystemMonitor(0.05).start().stop()
    assert set(samples["thermal_pressure"]) == {"moderate"}
    assert summary["thermal_pressure_max"] == "moderate"
    assert summary["throttled"] is False
    assert not (tools.folder / "sudo.log").exists()


def test_a_speed_limit_of_an_intel_mac_is_throttling(tools):
    tools("pmset", f"/bin/cat {RECORDED / 'pmset_intel_limited.txt'}")
    summary, _ = SystemMonitor(0.05).start().stop()
    assert summary["thermal_pressure_max"] == "heavy"
    assert summary["throttled"] is True


def test_a_mac_without_those_tools_tells_nothing_and_says_why(tools):
    (tools.folder / "pmset").unlink()
    summary, samples = SystemMonitor(0.05).start().stop()
    assert set(samples["thermal_pressure"]) == {None}
    assert summary["throttled"] is None
    assert "pmset" in summary["unavailable"]["thermal_pressure"]


def test_without_zeus_a_mac_says_how_to_measure_its_gpu(tools):
    summary, samples = GPUMonitor(0.05).start().stop()
    assert list(samples) == ["seconds"]
    assert "pip install 'vitfp8[apple]'" in summary["unavailable"]["gpu"]


def test_powermetrics_is_run_with_sudo_that_never_asks_and_read_as_it_prints(tools):
    print_samples = f"while :; do /bin/cat {RECORDED / 'powermetrics_m4max_macos15.txt'}; /bin/sleep 0.05; done"
    tools("powermetrics", print_samples)
    with GPUMonitor(0.2, powermetrics=True) as monitor:
        wait_until(lambda: monitor.summary()["gpu_power_watts_max"] == 0.028)
    summary = monitor.summary()
    assert summary["gpu_utilization_percent_max"] == 1.63
    periods = summary["energy_joules"] / (0.983 * 5.02196)  # watts and seconds of the recorded sample
    assert round(periods) >= 1
    assert periods == pytest.approx(round(periods), abs=1e-3)
    assert summary["energy_source"] == "estimated"
    assert summary["unavailable"]["gpu_memory_used_bytes"] == "powermetrics does not tell"
    asked = (tools.folder / "sudo.log").read_text().splitlines()
    assert asked == ["-n powermetrics --samplers cpu_power,gpu_power,thermal -i 200"]


def test_powermetrics_of_apple_silicon_is_read_as_plist(tools, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    tools("powermetrics", f"while :; do /bin/cat {RECORDED / PLIST}; printf '\\0'; /bin/sleep 0.05; done")
    with GPUMonitor(0.2, powermetrics=True) as monitor:
        wait_until(lambda: monitor.summary()["gpu_power_watts_max"] == pytest.approx(0.169958))
    summary = monitor.summary()
    periods = summary["energy_joules"] / (10.0943 * 3.01730475)  # watts and seconds of the recorded sample
    assert round(periods) >= 1 and periods == pytest.approx(round(periods), abs=1e-3)
    asked = (tools.folder / "sudo.log").read_text().splitlines()
    assert asked == ["-n powermetrics --samplers cpu_power,gpu_power,thermal -i 200 -f plist"]


def test_powermetrics_that_is_not_permitted_is_said_plainly_and_nothing_fails(tools):
    tools("powermetrics", "exit 0")
    tools("sudo", "echo 'sudo: a password is required' >&2; exit 1")
    summary, samples = GPUMonitor(0.05, powermetrics=True).start().stop()
    assert list(samples) == ["seconds"]
    assert "not permitted (sudo: a password is required)" in summary["unavailable"]["gpu"]
    assert "sudo -v" in summary["unavailable"]["gpu"]


def test_powermetrics_that_ends_early_leaves_its_columns_empty_from_then_on(tools):
    tools("powermetrics", f"/bin/cat {RECORDED / 'powermetrics_m1_macos11.txt'}; /bin/sleep 1; exit 3")
    with GPUMonitor(0.05, powermetrics=True) as monitor:
        wait_until(lambda: "gpu" in monitor.summary()["unavailable"])
    assert "ended with status 3" in monitor.summary()["unavailable"]["gpu"]
    assert monitor.samples()["gpu_power_watts"][-1] is None
    assert monitor.summary()["energy_joules"] is None


def test_powermetrics_is_not_looked_for_elsewhere_than_on_a_mac(monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    summary, _ = GPUMonitor(0.05, powermetrics=True).start().stop()
    assert "tool of macOS" in str(summary["unavailable"])


class Counters:
    """`zeus_apple_silicon.AppleEnergyMonitor` of a chip that counts CPU and GPU (mJ), 500 mJ more at every look."""

    def __init__(self):
        self.looks = 0

    def get_cumulative_energy(self):
        self.looks += 1
        return SimpleNamespace(cpu_total_mj=2000 * self.looks, gpu_mj=500 * self.looks, dram_mj=None, ane_mj=0)


def test_apple_silicon_energy_comes_from_its_counters_and_is_called_estimated(tools, monkeypatch):
    monkeypatch.setitem(sys.modules, "zeus_apple_silicon", SimpleNamespace(AppleEnergyMonitor=Counters))
    summary, samples = GPUMonitor(10.0).start().stop()
    assert summary["energy_joules"] == 2.5
    assert summary["energy_source"] == "estimated"
    assert summary["energy_covers"] == "CPU, GPU, ANE"
    assert samples["gpu_power_watts"][0] > 0
    assert samples["gpu_utilization_percent"] == [None]


@pytest.mark.mac
@pytest.mark.skipif(platform.system() != "Darwin", reason="needs macOS")
def test_a_real_mac_tells_its_thermal_pressure():
    summary, _ = SystemMonitor(0.1).start().stop()
    assert summary["thermal_pressure_max"] in ("nominal", "moderate", "heavy", "trapping", "sleeping")
