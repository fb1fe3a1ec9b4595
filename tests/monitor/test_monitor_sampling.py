"""Samples stay small and true whatever the probes do, and nothing that goes wrong comes out."""

import json
import logging
import threading
import time

import pytest

from vitfp8.errors import InputError
from vitfp8.monitor import probes
from vitfp8.monitor.probes import Energy, Probe, UnavailableError
from vitfp8.monitor.sampling import Monitor


class Counting(Probe):
    """Counts its readings, and says when it has given enough of them."""

    name = "counting"
    columns = ("count",)

    def __init__(self, enough=1):
        super().__init__()
        self.enough, self.reached, self.count, self.closed = enough, threading.Event(), -1, 0

    def read(self):
        self.count += 1
        if self.count + 1 >= self.enough:
            self.reached.set()
        return {"count": self.count}

    def close(self):
        self.closed += 1


class Failing(Probe):
    """Fails where it is told to."""

    name = "failing"
    columns = ("broken",)

    def __init__(self, where, error=None, good=0):
        super().__init__()
        self.where, self.error, self.good = where, error or ValueError("no such luck"), good

    def fail(self, where):
        if where == self.where:
            if self.good == 0:
                raise self.error
            self.good -= 1

    def open(self):
        self.fail("open")

    def read(self):
        self.fail("read")
        self.energy = Energy(joules=1.0, source="measured", covers="test")
        return {"broken": 1.0}

    def close(self):
        self.fail("close")


class Probed(Monitor):
    """A monitor of given probes."""

    _patience = 0.2

    def __init__(self, *probes, interval=0.001, **options):
        super().__init__(interval, **options)
        self.probes = probes

    def _probes(self):
        return list(self.probes)


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch):
    monkeypatch.setattr(probes, "_SAID", set())


def run(*probes, until, **options):
    monitor = Probed(*probes, **options).start()
    assert until.reached.wait(60)
    return monitor.stop()


def test_a_long_measurement_is_thinned_evenly_and_never_exceeds_the_limit():
    probe = Counting(enough=100)
    summary, samples = run(probe, until=probe, max_samples=8)
    kept = samples["count"]
    stride = kept[1]
    assert stride & (stride - 1) == 0 and 3 * stride <= summary["samples"] <= 8 * stride
    assert kept[:-1] == [index * stride for index in range(len(kept) - 1)]
    assert len(kept) <= 8
    assert len(samples["seconds"]) == len(kept)


def test_the_summary_counts_the_samples_that_were_not_kept():
    probe = Counting(enough=50)
    summary, _ = run(probe, until=probe, max_samples=2)
    taken = summary["samples"]
    assert taken >= 50
    assert summary["count_max"] == taken - 1
    assert summary["count_mean"] == pytest.approx((taken - 1) / 2)


def test_seconds_rise_from_the_start():
    probe = Counting(enough=20)
    _, samples = run(probe, until=probe)
    seconds = samples["seconds"]
    assert seconds == sorted(seconds)
    assert seconds[0] >= 0


@pytest.mark.parametrize("where", ["open", "read", "close"])
def test_a_probe_that_fails_never_comes_out_and_leaves_the_others_alone(where):
    probe = Counting(enough=3)
    summary, samples = run(Failing(where), probe, until=probe)
    assert samples["count"][:2] == [0, 1]
    if where != "close":
        assert set(samples["broken"]) == {None}
        assert summary["broken_mean"] is None
        assert summary["unavailable"] == {"broken": "ValueError: no such luck"}


def test_a_probe_that_fails_midway_keeps_its_samples_but_no_part_of_an_energy():
    probe = Counting(enough=6)
    summary, samples = run(Failing("read", good=3), probe, until=probe)
    assert samples["broken"][:4] == [1.0, 1.0, 1.0, None]
    assert summary["broken_max"] == 1.0
    assert summary["energy_joules"] is None


def test_a_failure_is_said_once_however_often_it_is_measured(caplog):
    for _ in range(2):
        probe = Counting()
        run(Failing("open"), probe, until=probe)
    assert [record.getMessage() for record in caplog.records] == ["failing is not measured: ValueError: no such luck"]


def test_what_a_machine_merely_lacks_is_no_warning(caplog):
    caplog.set_level(logging.INFO)
    probe = Counting()
    summary, _ = run(Failing("open", UnavailableError("no such sensor")), probe, until=probe)
    assert summary["unavailable"] == {"broken": "no such sensor"}
    assert [record.levelno for record in caplog.records] == [logging.INFO]


def test_probes_that_cannot_even_be_made_stop_nothing():
    class Broken(Monitor):
        def _probes(self):
            raise RuntimeError("no probes")

    summary, samples = Broken(0.01).start().stop()
    assert summary["samples"] == 0
    assert samples == {"seconds": []}


def test_a_driver_that_hangs_does_not_hang_the_training():
    release = threading.Event()

    class Hanging(Counting):
        def read(self):
            super().read()
            release.wait(60)
            return {"count": 1}

    probe = Hanging()
    monitor = Probed(probe).start()
    assert probe.reached.wait(60)
    summary, samples = monitor.stop()
    release.set()
    assert samples["count"] == []
    assert summary["count_mean"] is None


def test_parts_of_the_energy_are_added_and_one_estimate_makes_the_sum_estimated():
    class Eating(Counting):
        def __init__(self, source):
            super().__init__()
            self.source = source

        def read(self):
            self.energy = Energy(joules=2.0, source=self.source, covers=f"a {self.source} part")
            return super().read()

    probe = Eating("estimated")
    summary, _ = run(Eating("measured"), probe, until=probe)
    assert summary["energy_joules"] == 4.0
    assert summary["energy_source"] == "estimated"
    assert summary["energy_covers"] == "a measured part, a estimated part"


def test_values_that_json_does_not_know_were_not_measured():
    class Strange(Counting):
        def read(self):
            super().read()
            return {"count": float("nan"), "unknown": 1}

    probe = Strange()
    summary, samples = run(probe, until=probe)
    assert set(samples["count"]) == {None}
    json.dumps((summary, samples), allow_nan=False)


def test_stop_twice_is_harmless_and_tells_the_same():
    probe = Counting(enough=3)
    monitor = Probed(probe).start()
    assert probe.reached.wait(60)
    assert monitor.stop() == monitor.stop()
    assert probe.closed == 1


def test_stop_without_start_tells_that_nothing_was_measured():
    summary, samples = Probed(Counting()).stop()
    assert (summary["samples"], summary["seconds"], samples) == (0, 0.0, {"seconds": []})


def test_start_twice_is_one_measurement():
    probe = Counting()
    monitor = Probed(probe).start().start()
    monitor.stop()
    assert probe.closed == 1


def test_start_after_stop_is_a_fresh_measurement():
    class Fresh(Monitor):
        def _probes(self):
            return [Counting()]

    monitor = Fresh(10.0)
    first = monitor.start().stop()
    second = monitor.start().stop()
    assert first[1]["count"] == second[1]["count"] == [0]


def test_the_shortest_measurement_has_a_sample():
    summary, samples = Probed(Counting(), interval=60).start().stop()
    assert summary["samples"] == len(samples["count"]) == 1


def test_the_summary_can_be_read_while_it_runs():
    probe = Counting(enough=3)
    with Probed(probe) as monitor:
        assert probe.reached.wait(60)
        while monitor.summary()["samples"] < 3:
            time.sleep(0.001)
        assert monitor.summary()["seconds"] > 0
    assert monitor.stop()[0]["samples"] >= 3


@pytest.mark.parametrize("interval", [0, -1, float("nan"), float("inf"), "1", None, True])
def test_an_interval_that_is_none_is_refused(interval):
    with pytest.raises(InputError, match="interval is .* seconds above 0"):
        Monitor(interval)


def test_a_limit_that_keeps_nothing_is_refused():
    with pytest.raises(InputError, match="max_samples is 1"):
        Monitor(1.0, max_samples=1)
