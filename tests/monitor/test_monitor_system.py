"""The machine this runs on is measured, and what it does not tell is None."""

import ast
import csv
import json
import os
import signal
import subprocess
import sys
import threading
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

import vitfp8.monitor
from vitfp8.errors import InputError
from vitfp8.monitor import SystemMonitor, monitor_stream
from vitfp8.monitor.machine import LinuxThermalProbe, RAPLProbe, TemperatureProbe
from vitfp8.monitor.probes import UnavailableError

COLUMNS = [
    "seconds",
    "cpu_percent",
    "memory_percent",
    "memory_used_bytes",
    "process_cpu_percent",
    "process_rss_bytes",
    "temperature_celsius",
    "thermal_pressure",
]


def busy(seconds=0.3):
    """Work for this many seconds of processor time."""
    end = psutil.Process().cpu_times().user + seconds
    while psutil.Process().cpu_times().user < end:
        sum(range(10_000))


def test_load_and_memory_of_machine_and_process_are_measured():
    monitor = SystemMonitor(60, gpu=False).start()
    busy()
    summary, samples = monitor.stop()
    assert list(samples) == COLUMNS
    assert 0 < samples["cpu_percent"][0] <= 100
    assert samples["process_cpu_percent"][0] > 0
    assert 0 < samples["memory_percent"][0] <= 100
    assert samples["memory_used_bytes"][0] > samples["process_rss_bytes"][0] > 1 << 20
    assert summary["process_rss_bytes_max"] == samples["process_rss_bytes"][0]


def test_what_is_returned_is_json_of_columns_of_one_length():
    summary, samples = SystemMonitor(0.05).start().stop()
    assert {len(column) for column in samples.values()} == {summary["samples"]}
    assert json.loads(json.dumps([summary, samples], allow_nan=False)) == [summary, samples]


def test_a_load_over_no_time_is_none_not_zero():
    _, samples = SystemMonitor(60, gpu=False).start().stop()
    assert samples["cpu_percent"] == [None]
    assert samples["process_cpu_percent"] == [None]


def test_every_empty_column_has_its_reason():
    monitor = SystemMonitor(60).start()
    busy(0.2)
    summary, samples = monitor.stop()
    empty = {name for name, column in samples.items() if set(column) == {None}}
    assert empty <= set(summary["unavailable"])


def test_another_process_can_be_measured():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        summary, _ = SystemMonitor(60, pid=other.pid, gpu=False).start().stop()
        other.communicate(b"\n")
    assert summary["process_rss_bytes_max"] > 0


def test_a_process_that_ends_takes_only_its_columns_with_it():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        monitor = SystemMonitor(60, pid=other.pid, gpu=False).start()
        other.communicate(b"\n")
    summary, samples = monitor.stop()
    assert samples["process_rss_bytes"] == [None]
    assert samples["memory_percent"][0] > 0
    assert "process_rss_bytes" in summary["unavailable"]


def temperatures(monkeypatch, **chips):
    readings = {
        chip.replace("_", "-") if chip == "cpu_thermal" else chip: [SimpleNamespace(current=value) for value in values]
        for chip, values in chips.items()
    }
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: readings, raising=False)


def test_the_temperature_is_the_hottest_of_the_processor_not_of_a_disk(monkeypatch):
    temperatures(monkeypatch, coretemp=[61.0, 74.0], nvme=[83.0], acpitz=[27.8])
    assert TemperatureProbe().read() == {"temperature_celsius": 74.0}


@pytest.mark.parametrize("chips", [{}, {"nvme": [40.0]}, {"coretemp": [0.0]}])
def test_without_a_sensor_of_the_processor_there_is_no_temperature(monkeypatch, chips):
    temperatures(monkeypatch, **chips)
    with pytest.raises(UnavailableError, match="no temperature sensor"):
        TemperatureProbe().open()


def test_systems_without_sensors_say_so(monkeypatch):
    monkeypatch.delattr(psutil, "sensors_temperatures", raising=False)
    summary, samples = SystemMonitor(60, gpu=False).start().stop()
    assert samples["temperature_celsius"] == [None]
    assert "no temperature" in summary["unavailable"]["temperature_celsius"]


def test_a_core_that_was_slowed_down_since_the_last_sample_is_heavy_pressure(tmp_path):
    for core in range(2):
        folder = tmp_path / f"cpu{core}" / "thermal_throttle"
        folder.mkdir(parents=True)
        (folder / "core_throttle_count").write_text("12\n")
        (folder / "core_throttle_total_time_ms").write_text("99\n")
    probe = LinuxThermalProbe(tmp_path)
    probe.open()
    before = probe.read()
    (tmp_path / "cpu1" / "thermal_throttle" / "core_throttle_count").write_text("13\n")
    assert [before, probe.read(), probe.read()] == [
        {"thermal_pressure": "nominal"},
        {"thermal_pressure": "heavy"},
        {"thermal_pressure": "nominal"},
    ]


def test_a_kernel_without_counters_tells_no_pressure(tmp_path):
    with pytest.raises(UnavailableError):
        LinuxThermalProbe(tmp_path).open()


@pytest.fixture
def rapl(tmp_path):
    """Two packages and a zone within the first, as under /sys/class/powercap."""
    for zone, name in [("intel-rapl:0", "package-0"), ("intel-rapl:1", "package-1"), ("intel-rapl:0:0", "core")]:
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "name").write_text(f"{name}\n")
        (tmp_path / zone / "energy_uj").write_text("262143000000\n")
        (tmp_path / zone / "max_energy_range_uj").write_text("262143328850\n")
    return tmp_path


def test_energy_of_the_packages_is_added_over_the_end_of_their_counters(rapl):
    probe = RAPLProbe(rapl)
    probe.open()
    (rapl / "intel-rapl:0" / "energy_uj").write_text("671150\n")
    (rapl / "intel-rapl:1" / "energy_uj").write_text("262143250000\n")
    (rapl / "intel-rapl:0:0" / "energy_uj").write_text("262143250000\n")
    probe.read()
    assert probe.energy is not None
    assert probe.energy.joules == pytest.approx((671150 + 328850 + 250000) / 1e6)
    assert probe.energy.source == "measured"


def test_counters_that_only_root_may_read_are_unavailable(rapl, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(RAPLProbe, "_count", staticmethod(denied))
    with pytest.raises(UnavailableError, match="root only"):
        RAPLProbe(rapl).open()


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_stream_writes_header_and_a_line_a_sample(tmp_path):
    path = tmp_path / "hardware.csv"
    assert monitor_stream(path, 0.02, duration=0.1, gpu=False) == len(rows(path)) > 0
    assert path.read_text().splitlines()[0] == ",".join(["timestamp", *COLUMNS])
    for row in rows(path):
        assert datetime.fromisoformat(row["timestamp"]).tzinfo is not None
        assert float(row["memory_percent"]) > 0


def test_in_a_stream_what_was_not_measured_is_empty(tmp_path):
    path = tmp_path / "hardware.csv"
    monitor_stream(path, 0.02, duration=0.03, gpu=False)
    assert rows(path)[0]["process_rss_bytes"] == ""
    monitor_stream(tmp_path / "process.csv", 0.02, duration=0.03, gpu=False, pid=os.getpid())
    assert float(rows(tmp_path / "process.csv")[0]["process_rss_bytes"]) > 0


def test_a_stream_with_a_name_has_it_in_every_line(tmp_path):
    path = tmp_path / "hardware.csv"
    for name in ("before", "after, really"):
        monitor_stream(path, 0.02, name=name, duration=0.02, gpu=False)
    assert [row["name"] for row in rows(path)] == ["before", "after, really"]


def test_a_stream_ends_at_its_event(tmp_path):
    stop = threading.Event()
    stop.set()
    assert monitor_stream(tmp_path / "hardware.csv", 60, stop=stop) == 0
    assert (tmp_path / "hardware.csv").read_text().startswith("timestamp,seconds,")


def test_a_stream_is_on_disk_line_by_line_and_ctrl_c_ends_it_cleanly(tmp_path):
    path = tmp_path / "hardware.csv"
    program = f"from vitfp8.monitor import monitor_stream; print(monitor_stream({str(path)!r}, 0.05, gpu=False))"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
    ) as stream:
        while stream.poll() is None and (not path.exists() or path.read_text().count("\n") < 3):
            pass
        stream.send_signal(signal.SIGINT)
        out, err = stream.communicate(timeout=60)
    assert (stream.returncode, err) == (0, "")
    assert int(out) == len(rows(path)) >= 2


def test_a_stream_continues_a_file_of_its_own_even_when_its_last_line_was_cut(tmp_path):
    path = tmp_path / "hardware.csv"
    monitor_stream(path, 0.02, duration=0.02, gpu=False)
    path.write_text(path.read_text() + "2026-01-01T00:00:00")
    monitor_stream(path, 0.02, duration=0.02, gpu=False)
    assert [row["seconds"] is not None for row in rows(path)] == [True, False, True]


def test_a_stream_leaves_a_file_with_other_columns_as_it_was(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("epoch,accuracy\n1,0.9\n")
    with pytest.raises(InputError, match=r"results\.csv holds other columns.*name another file"):
        monitor_stream(path, 0.02, duration=0.1, gpu=False)
    assert path.read_text() == "epoch,accuracy\n1,0.9\n"


def test_a_stream_into_a_missing_folder_is_refused_in_one_line(tmp_path):
    with pytest.raises(InputError, match="there is no folder .*missing; create it first") as refusal:
        monitor_stream(tmp_path / "missing" / "hardware.csv", 0.02, gpu=False)
    assert "\n" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_a_stream_into_a_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="it is a folder"):
        monitor_stream(tmp_path, 0.02, gpu=False)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_said_in_one_line():
    with pytest.raises(InputError, match="cannot write /dev/full: No space left"):
        monitor_stream("/dev/full", 0.02, duration=0.1, gpu=False)


@pytest.mark.parametrize("bad", [{"interval": 0}, {"interval": -1}, {"duration": -1}, {"duration": float("nan")}])
def test_a_stream_refuses_times_that_are_none(tmp_path, bad):
    with pytest.raises(InputError, match="number of seconds"):
        monitor_stream(tmp_path / "hardware.csv", **bad)
    assert list(tmp_path.iterdir()) == []


def test_importing_the_monitors_loads_no_torch():
    program = "import sys, vitfp8.monitor; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_every_function_of_the_monitors_has_a_docstring():
    missing = [
        f"{path.name}:{node.lineno} {node.name}"
        for path in sorted(Path(vitfp8.monitor.__file__).parent.glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name != "__init__" and not ast.get_docstring(node)
    ]
    assert missing == []
