"""Batches on real processes: locks, retries, time limits, signals between runs, what is kept, and how it is watched."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.test_workflow import kernels_of, start, vitfp8, wait_for_epoch
from vitfp8 import read_record
from vitfp8.errors import InputError
from vitfp8.monitor import Heat
from vitfp8.params import RunParams
from vitfp8.record import deciding_code
from vitfp8.run import plan, runner
from vitfp8.run.awake import keep_awake
from vitfp8.run.estimates import disk_bytes, memory_bytes
from vitfp8.run.execute import listening
from vitfp8.run.preflight import check_files, examine_machine
from vitfp8.run.runner import Batch

SMOKE = ("--preset", "smoke")


def in_template(project: Path, name: str, old: str, new: str) -> None:
    """Change a template notebook of the project."""
    template = project / "notebooks" / name
    text = template.read_text()
    assert old in text
    template.write_text(text.replace(old, json.dumps(new)[1:-1]))


def test_two_commands_on_one_study_share_its_runs_and_execute_each_once(project: Path) -> None:
    command = ("run", "BaseFP32", "AugmFP32", *SMOKE, "-p", "epochs", "15")
    both = [start(*command), start(*command)]
    outputs = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    folder = project / "executed" / "smoke"
    for name in ("BaseFP32-s0", "AugmFP32-s0"):
        assert read_record(folder / f"{name}.ipynb").status == "completed"
        assert not list((folder / name).glob("attempt-*")), "executed twice"
    assert not (folder / "superseded").exists()
    assert sum(output.count(": completed") for output in outputs) >= 2
    assert not list(folder.glob(".batch-*")), "a batch that is over leaves nothing behind"


def test_a_killed_runners_own_command_continues_at_once_although_its_kernel_is_still_ending(project: Path) -> None:
    command = ("run", "BaseFP32", *SMOKE, "-p", "epochs", "60")
    path = project / "executed" / "smoke" / "BaseFP32-s0.ipynb"
    process = start(*command)
    wait_for_epoch(path.with_suffix(""), 2)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = vitfp8("watch", "smoke")
    assert "no batch runs here now" in done.stdout, "what a killed batch left says nothing"
    vitfp8(*command)
    record = read_record(path)
    assert record.status == "completed" and len(record.history) == 60


def test_retries_try_a_failed_run_again_and_refused_input_is_not_tried_again(project: Path) -> None:
    marker = project / "tried"
    deadly = (
        f"import os, pathlib; tried = pathlib.Path({str(marker)!r}); first = not tried.exists(); "
        "tried.open('a').write('x'); first and os.kill(os.getpid(), 9); experiment = prepare_experiment(params)"
    )
    in_template(project, "train.ipynb", "experiment = prepare_experiment(params)", deadly)
    done = vitfp8("run", "BaseFP32", *SMOKE, "--retries", "2")
    assert marker.read_text() == "xx" and "try again" in done.stdout
    assert read_record(project / "executed/smoke/BaseFP32-s0.ipynb").status == "completed"

    refusing = f"pathlib.Path({str(marker)!r}).open('a').write('y'); from vitfp8.errors import InputError; raise InputError('no')"
    in_template(project, "train.ipynb", json.dumps(deadly)[1:-1], "import pathlib; " + refusing)
    assert "InputError: no" in vitfp8("run", "AugmFP32", *SMOKE, "--retries", "2", check=1).stdout
    assert marker.read_text() == "xxy"


def test_a_run_whose_time_is_up_saves_a_checkpoint_and_continues_later(project: Path) -> None:
    command = ("run", "BaseFP32", *SMOKE, "-p", "epochs", "100000")
    done = vitfp8(*command, "--timeout", "25", check=1)
    path = project / "executed" / "smoke" / "BaseFP32-s0.ipynb"
    record = read_record(path)
    assert record.status == "interrupted" and "25 s (--timeout)" in str(record.reason), record.reason
    assert (path.with_suffix("") / "checkpoints" / "last.pt").exists()
    assert "(--timeout)" in " ".join(done.stdout.split())
    assert "continue" in vitfp8(*command, "--dry-run").stdout


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_during_the_cooldown_ends_the_batch_with_its_summary(project: Path, number: int, status: int) -> None:
    process = start("run", "BaseFP32", "AugmFP32", *SMOKE, "--cooldown", "600")
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "cooling down" in line:
            break
    process.send_signal(number)
    rest, _ = process.communicate(timeout=30)
    assert process.returncode == status and "the same command continues" in rest, lines
    assert not (project / "executed/smoke/AugmFP32-s0.ipynb").exists()


def test_a_cooldown_is_cut_short_only_when_the_machine_reports_that_it_is_cool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "SHORTEST_COOLDOWN", 0.0)

    def seconds(heat: Heat) -> float:
        monkeypatch.setattr(runner, "read_heat", lambda: heat)
        begin = time.monotonic()
        with listening() as signals:
            runner._cool_down(1.2, Heat(temperature_celsius=50.0), Batch([]), signals, lambda batch: None)
        return time.monotonic() - begin

    assert seconds(Heat(temperature_celsius=54.0)) < 1.0
    assert seconds(Heat(temperature_celsius=70.0)) >= 1.2
    assert seconds(Heat()) >= 1.2, "a machine that tells nothing is not taken for cool"


def test_cool_is_what_the_sensors_say() -> None:
    idle = Heat(temperature_celsius=60.0)
    assert Heat(temperature_celsius=64.0).is_cool(idle) and not Heat(temperature_celsius=66.0).is_cool(idle)
    assert Heat(temperature_celsius=44.0).is_cool(Heat()) and not Heat(
        temperature_celsius=44.0, gpu_temperature_celsius=80.0
    ).is_cool(idle)
    assert Heat(thermal_pressure="nominal").is_cool(Heat()) and not Heat(thermal_pressure="moderate").is_cool(Heat())
    assert Heat(gpu_temperature_celsius=90.0).is_hot() and Heat(thermal_pressure="heavy").is_hot() and not Heat().is_hot()


def test_a_run_made_by_other_code_is_refused_finished_or_begun_and_force_moves_it_aside(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vitfp8("run", "BaseFP32", *SMOKE)
    path = project / "executed" / "smoke" / "BaseFP32-s0.ipynb"
    params = RunParams(**read_record(path).parameters)
    assert plan.decide(path, params)[0] == "keep"
    monkeypatch.setattr(deciding_code, "code_digest", lambda kind: "another")
    with pytest.raises(InputError, match="is finished, but the code that decides numbers has changed.*--force"):
        plan.decide(path, params)
    assert plan.decide(path, params, force=True)[0] == "replace"
    path.unlink()  # the journal alone: a run whose runner was killed at the end of an epoch
    journal = path.with_suffix("") / "journal.jsonl"
    kept = [line for line in journal.read_text().splitlines() if '"status":"completed"' not in line]
    journal.write_text("\n".join(kept) + "\n")
    with pytest.raises(InputError, match="is unfinished, but the code"):
        plan.decide(path, params)
    monkeypatch.undo()
    assert plan.decide(path, params)[0] == "continue"
    with pytest.raises(InputError, match=r"is unfinished with other parameters \(epochs\)"):
        plan.decide(path, params.model_copy(update={"epochs": 3}))


def test_a_changed_data_set_is_refused_for_finished_and_for_begun_runs(project: Path) -> None:
    for part in ("train", "test"):
        for label in ("a", "b"):
            folder = project / "pictures" / part / label
            folder.mkdir(parents=True)
            for number in range(24):
                Image.new("RGB", (16, 16), (10 * number, 40 if label == "a" else 200, 90)).save(folder / f"{number}.png")
    command = ("run", "BaseFP32", *SMOKE, "-p", "dataset", "imagefolder", "-p", "data_dir", "pictures", "-p", "batch_size", "8")
    vitfp8(*command)
    assert "completed, same parameters and code" in " ".join(vitfp8(*command, "--dry-run").stdout.split())
    Image.new("RGB", (16, 16), (1, 2, 3)).save(project / "pictures" / "train" / "a" / "3.png")
    refused = vitfp8(*command, check=2)
    assert "another data set" in refused.stderr and "--force" in refused.stderr and len(refused.stderr.splitlines()) == 1
    path = project / "executed" / "smoke" / "BaseFP32-s0"
    path.with_suffix(".ipynb").unlink()
    journal = path / "journal.jsonl"
    journal.write_text("\n".join(line for line in journal.read_text().splitlines() if '"status":"completed"' not in line) + "\n")
    assert "another data set" in vitfp8(*command, check=2).stderr


def test_watch_shows_epoch_accuracy_and_time_left_from_another_terminal(project: Path) -> None:
    assert "there is nothing in executed yet" in vitfp8("watch", check=2).stderr
    process = start("run", "BaseFP32", "AugmFP32", *SMOKE, "-p", "epochs", "5000")
    wait_for_epoch(project / "executed" / "smoke" / "BaseFP32-s0", 6)
    shown = vitfp8("watch").stdout
    assert "study smoke" in shown and "running" in shown and "/5000" in shown and "%" in shown and "waiting" in shown
    running = next(line for line in shown.splitlines() if "BaseFP32-s0" in line)
    assert running.count(":") >= 2, "time so far and time left"
    assert "did you mean smoke?" in vitfp8("watch", "smok", check=2).stderr
    kernels = kernels_of(process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert kernels and not any(kernel.is_running() for kernel in kernels)
    assert "no batch runs here now" in vitfp8("watch", "smoke", "--once").stdout


def test_a_dry_run_tells_time_from_earlier_runs_of_any_study(project: Path) -> None:
    vitfp8("run", "BaseFP32", *SMOKE)
    done = vitfp8("run", "BaseFP32", "AugmFP32", *SMOKE, "--study", "other", "--dry-run")
    text = " ".join(done.stdout.split())
    assert "1 earlier run on" in text and "a few steps measured" in text and "2 runs to execute, about 0:" in text
    assert not (project / "executed" / "other").exists()


def test_the_estimates_of_disk_and_memory_fit_what_a_run_takes(project: Path, smoke_params: Callable[..., RunParams]) -> None:
    vitfp8("run", "BaseFP32", *SMOKE)
    taken = sum(path.stat().st_size for path in (project / "executed").rglob("*") if path.is_file())
    assert taken <= disk_bytes(smoke_params()) < 5 * taken + 3_000_000
    small, large = smoke_params(), smoke_params(embed_dim=64, batch_size=256)
    assert memory_bytes(small) < memory_bytes(large)


def test_check_tells_refusals_from_warnings(project: Path, smoke_params: Callable[..., RunParams]) -> None:
    done = vitfp8("check", *SMOKE)
    assert (
        done.stdout.count("can run here") == 4
        and "disk:" in done.stdout
        and re.search("FP16 is (native|emulated) on cpu", done.stdout)
    )
    whole = {"image_size": 224, "patch_size": None, "embed_dim": None, "depth": None, "num_heads": None}
    huge = smoke_params(model="vit_giant_patch14_224", epochs=100_000, checkpoint_every=1, **whole)
    levels = {finding.subject: finding for finding in examine_machine([huge])}
    assert levels["disk"].level == "refusal" and "checkpoint_every: null" in levels["disk"].text
    hungry = smoke_params(batch_size=1000, image_size=512, embed_dim=4096, num_heads=64, depth=48)
    assert {finding.subject: finding.level for finding in examine_machine([hungry])}["memory"] == "warning"
    study = project / "params" / "studies" / "mine.yaml"
    study.write_text("preset: smoke\nexperiments: [BaseFP32, AugmFP16]\nseeds: 3\n")
    findings, runs = check_files([study, project / "params" / "nothing.yaml"])
    assert [finding.level for finding in findings] == ["ok", "refusal"] and len(runs) == 6
    (project / "params" / "BaseFP32.yaml").write_text("experiment: BaseFP32\n")
    done = vitfp8("check", "params/BaseFP32.yaml", "params/AugmFP32.yaml", *SMOKE, check=2)
    assert "refusal: parameters: params/BaseFP32.yaml" in done.stderr and "AugmFP32-s0 can run here" in done.stdout


def test_run_refuses_what_check_refuses_and_writes_nothing(project: Path) -> None:
    done = vitfp8(
        "run", "BaseFP32", *SMOKE, "-p", "model", "vit_giant_patch14_224", "-p", "image_size", "224", "-p", "patch_size", "null",
        "-p", "embed_dim", "null", "-p", "depth", "null", "-p", "num_heads", "null", "-p", "epochs", "100000",
        "-p", "checkpoint_every", "1", check=2,
    )  # fmt: skip
    assert "disk:" in done.stderr and "make room" in done.stderr and not (project / "executed").exists()


def test_the_machine_is_kept_awake_while_a_batch_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAKEPY_FAKE_SUCCESS", "1")
    with keep_awake() as complaint:
        assert complaint == ""
