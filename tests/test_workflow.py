"""End to end through real papermill and real kernels, on the smoke preset; and the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from vitfp8 import load_history, load_runs, read_record
from vitfp8.errors import InputError
from vitfp8.run.plan import plan_batch
from vitfp8.run.study_file import Study, load_study, resolve_study

CORE = ("BaseFP32", "AugmFP32", "BaseFP16", "AugmFP16")


def vitfp8(*arguments: str, check: int | None = 0, **options: object) -> subprocess.CompletedProcess[str]:
    """Call the command line in the current folder."""
    done = subprocess.run(
        [sys.executable, "-m", "vitfp8", *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        **options,  # type: ignore[call-overload]
    )
    if check is not None:
        assert done.returncode == check, done.stdout + done.stderr
    return done


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start the command line in the current folder, as a shell would: in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "vitfp8", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_epoch(folder: Path, epoch: int, seconds: float = 120) -> None:
    """Wait until a run's journal has an epoch."""
    deadline = time.monotonic() + seconds
    journal = folder / "journal.jsonl"
    while time.monotonic() < deadline:
        if journal.exists() and f'"epoch":{epoch},' in journal.read_text():
            return
        time.sleep(0.1)
    raise AssertionError(f"{folder} did not reach epoch {epoch}")


def kernels_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The kernels that a runner has started."""
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "ipykernel_launcher" in " ".join(child.cmdline())]


def test_the_four_experiments_become_four_lab_records_and_are_kept_the_next_time(project: Path) -> None:
    first = vitfp8("run", "--preset", "smoke")
    folder = project / "executed" / "smoke"
    runs = load_runs(folder)
    assert list(runs["experiment"]) == list(CORE) and set(runs["status"]) == {"completed"}
    assert len(load_history(folder)) == 8
    for name in CORE:
        path = folder / f"{name}-s0.ipynb"
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        assert path.stat().st_size < 1_000_000
        assert notebook.metadata.papermill.exception is None
        streams = [
            o.text for c in notebook.cells for o in c.get("outputs", []) if o.output_type == "stream" and o.name == "stdout"
        ]
        assert sum(line.startswith("epoch") for text in streams for line in text.splitlines()) == 2, "a line an epoch"
        assert "summary" in first.stdout and f"{name}-s0" in first.stdout
    before = {path: path.read_bytes() for path in folder.glob("*.ipynb")}
    again = vitfp8("run", "--preset", "smoke")
    assert again.stdout.count("same parameters and code") == 4
    assert {path: path.read_bytes() for path in folder.glob("*.ipynb")} == before
    listed = json.loads(vitfp8("runs", "smoke", "--json").stdout)
    assert [row["status"] for row in listed["runs"]] == ["completed"] * 4 and listed["problems"] == []
    assert "BaseFP16-s0" in vitfp8("runs").stdout
    refused = vitfp8("run", "--preset", "smoke", "-p", "epochs", "3", check=2)
    assert "other parameters (epochs)" in refused.stderr and "--force" in refused.stderr
    vitfp8("run", "BaseFP32", "--preset", "smoke", "-p", "epochs", "3", "--force")
    assert read_record(folder / "BaseFP32-s0.ipynb").progress["epoch"] == 3
    assert len(list((folder / "superseded").glob("BaseFP32-s0@*.ipynb"))) == 1, "the old record is kept aside"


def test_plain_papermill_makes_the_same_record(project: Path) -> None:
    vitfp8("run", "BaseFP32", "--preset", "smoke")
    command = [sys.executable, "-m", "papermill", "notebooks/train.ipynb", "out.ipynb", "-f", "params/BaseFP32.yaml"]
    command += ["-f", "params/presets/smoke.yaml", "--no-progress-bar", "-k", "python3"]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    ours, plain = read_record(project / "executed/smoke/BaseFP32-s0.ipynb"), read_record(project / "out.ipynb")
    assert plain.status == "completed" and plain.deterministic["digest"] == ours.deterministic["digest"]
    assert Path(str(plain.run_folder)).parts[0] == "runs", "without a runner: a fresh run folder"


def test_plain_papermill_is_refused_by_the_first_cell_in_one_line(project: Path) -> None:
    command = [sys.executable, "-m", "papermill", "notebooks/train.ipynb", "out.ipynb", "-p", "learning_ratee", "0.1"]
    done = subprocess.run([*command, "--no-progress-bar", "-k", "python3"], capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    notebook = nbformat.read(project / "out.ipynb", as_version=4)
    errors = [o for c in notebook.cells for o in c.get("outputs", []) if o.output_type == "error"]
    assert errors[0].traceback == ["InputError: " + errors[0].evalue]
    assert "learning_ratee" in errors[0].evalue and "did you mean learning_rate?" in errors[0].evalue
    assert not (project / "runs").exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_batch_leaves_a_valid_interrupted_record_and_the_same_command_continues(
    project: Path, number: signal.Signals, status: int
) -> None:
    arguments = ("run", "BaseFP32", "AugmFP32", "--preset", "smoke", "-p", "epochs", "40")
    path = project / "executed" / "smoke" / "BaseFP32-s0.ipynb"
    process = start(*arguments)
    wait_for_epoch(path.with_suffix(""), 3)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == status, output
    assert "the same command continues" in output
    nbformat.validate(nbformat.read(path, as_version=4))
    record = read_record(path)
    assert record.status == "interrupted" and 3 <= record.progress["epoch"] < 40
    assert not (project / "executed" / "smoke" / "AugmFP32-s0.ipynb").exists()
    vitfp8(*arguments, "--skip", "AugmFP32")
    assert read_record(path).status == "completed" and len(read_record(path).history) == 40
    assert (path.with_suffix("") / "attempt-1.ipynb").exists()


def test_a_killed_kernel_is_a_failed_run_with_its_reason_and_the_batch_goes_on(project: Path) -> None:
    path = project / "executed" / "smoke" / "BaseFP32-s0.ipynb"
    process = start("run", "BaseFP32", "AugmFP32", "--preset", "smoke", "-p", "epochs", "30")
    wait_for_epoch(path.with_suffix(""), 2)
    kernels_of(process)[0].kill()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1, output
    record = read_record(path)
    assert record.status == "failed" and "kernel died" in str(record.reason) and record.progress["epoch"] >= 2
    assert read_record(path.with_name("AugmFP32-s0.ipynb")).status == "completed"


def test_a_killed_runner_leaves_a_valid_notebook_that_says_how_far_it_came(project: Path) -> None:
    path = project / "executed" / "smoke" / "BaseFP32-s0.ipynb"
    process = start("run", "BaseFP32", "--preset", "smoke", "-p", "epochs", "2000")
    wait_for_epoch(path.with_suffix(""), 2)
    kernels = kernels_of(process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    psutil.wait_procs(kernels, timeout=30)
    assert not any(kernel.is_running() and kernel.status() != psutil.STATUS_ZOMBIE for kernel in kernels)
    json.loads(path.read_text())
    record = read_record(path)
    assert record.status == "interrupted" and record.progress["epoch"] >= 2


def test_a_failure_before_training_is_a_failed_run_with_its_line(project: Path) -> None:
    template = project / "notebooks" / "train.ipynb"
    template.write_text(template.read_text().replace("experiment = prepare_experiment(params)", "raise RuntimeError('broken')"))
    done = vitfp8("run", "BaseFP32", "--preset", "smoke", check=1)
    assert "broken" in done.stdout
    found = load_runs(project / "executed" / "smoke")
    assert list(found["status"]) == ["failed"] and "broken" in found["reason"][0]


def test_a_diverged_run_is_a_result(project: Path) -> None:
    extreme = ("-p", "variant", "extreme", "-p", "learning_rate", "100", "-p", "weight_decay", "100", "-p", "epochs", "40")
    vitfp8("run", "BaseFP32", "--preset", "smoke", *extreme, check=0)
    assert read_record(project / "executed/smoke/BaseFP32~extreme-s0.ipynb").status == "diverged"
    assert "diverged, same parameters" in vitfp8("run", "BaseFP32", "--preset", "smoke", *extreme, "--dry-run").stdout


BAD_INPUT: list[tuple[tuple[str, ...], str]] = [
    (("-p", "learning_ratee", "0.1"), "did you mean learning_rate?"),
    (("-p", "epochs", "many"), "'many'"),
    (("-p", "learning_rate", "-0.1"), "greater than 0"),
    (("-p", "warmup_fraction", "1.5"), "warmup_fraction"),
    (("-p", "dataset", "cifar11"), "did you mean cifar10?"),
    (("-p", "model", "vit_tinny_patch16_224"), "did you mean vit_tiny_patch16_224?"),
    (("-p", "image_size", "18"), "not divisible by patch_size 4"),
    (("-p", "dataset", "imagefolder", "-p", "data_dir", "nowhere"), "nowhere"),
    (("BaseFP23",), "did you mean BaseFP32?"),
    (("--skip", "AugmFP23"), "did you mean AugmFP32?"),
    (("--study", "../outside"), "not a folder name"),
    (("--seeds", "2", "-p", "seed", "3"), "contradicts"),
    (("-p", "run_folder", "/tmp/x"), "set by the runner"),
]


@pytest.mark.parametrize(("arguments", "part"), BAD_INPUT, ids=[" ".join(a) for a, _ in BAD_INPUT])
def test_bad_input_is_one_line_exit_2_and_nothing_written(project: Path, arguments: tuple[str, ...], part: str) -> None:
    before = sorted(project.rglob("*"))
    done = vitfp8("run", "--preset", "smoke", *arguments, check=2)
    assert part in done.stderr and len(done.stderr.strip().splitlines()) == 1 and "Traceback" not in done.stderr
    assert sorted(project.rglob("*")) == before


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "is empty"),
        ("epochs: [1\n", "is not YAML"),
        ("epochs: 3\nepochs: 4\n", "twice"),
        ("epoch: 3\n", "did you mean epochs?"),
    ],
)
def test_a_bad_preset_file_is_named(project: Path, text: str, part: str) -> None:
    (project / "mine.yaml").write_text(text)
    done = vitfp8("run", "--preset", "mine.yaml", check=2)
    assert part in done.stderr and "mine.yaml" in done.stderr and not (project / "executed").exists()
    assert "no params/presets/digit.yaml; did you mean digits?" in vitfp8("run", "--preset", "digit", check=2).stderr


def test_a_place_that_cannot_be_written_is_refused(project: Path) -> None:
    (project / "executed").write_text("a file where the folder should be")
    done = vitfp8("run", "--preset", "smoke", check=2)
    assert "executed" in done.stderr and "permissions" in done.stderr


def test_check_validates_files_and_machine(project: Path) -> None:
    done = vitfp8("check", "params/BaseFP32.yaml", "params/presets/smoke.yaml", "params/studies/paper.yaml", "--preset", "smoke")
    assert done.stdout.count("parameters: params/") == 3 and done.stdout.count("valid") == 3
    (project / "params" / "BaseFP32.yaml").write_text("experiment: BaseFP32\n")
    assert "does not state" in vitfp8("check", "params/BaseFP32.yaml", check=2).stderr
    assert "no such file" in vitfp8("check", "params/none.yaml", check=2).stderr


def test_dry_run_says_what_would_run_and_writes_nothing(project: Path) -> None:
    done = vitfp8("run", "--preset", "smoke", "--seeds", "2", "--skip", "AugmFP16", "--dry-run")
    assert [done.stdout.count(f"{name}-s{seed}.ipynb") for seed in (0, 1) for name in CORE] == [1, 1, 1, 0] * 2
    assert not (project / "executed").exists()


def test_runs_are_interleaved_by_seed_and_options_override_the_study_file(project: Path) -> None:
    study = Study(preset="smoke", experiments=("BaseFP32", "AugmFP32"), seeds=2)  # type: ignore[arg-type]
    names = [run.params.run_name for run in plan_batch("x", study)]
    assert names == ["BaseFP32-s0", "AugmFP32-s0", "BaseFP32-s1", "AugmFP32-s1"]
    planned = plan_batch("x", study, seeds=[5], assignments=[("epochs", "1e0"), ("variant", "short")])
    assert [run.output.name for run in planned] == ["BaseFP32~short-s5.ipynb", "AugmFP32~short-s5.ipynb"]
    assert planned[0].params.epochs == 1


def test_study_files_are_read_and_a_study_without_one_is_ad_hoc(project: Path) -> None:
    name, study = resolve_study(None, None)
    assert name == "paper" and study.preset == "cifar10" and study.cooldown == 120 and study.seeds == (0, 1, 2)
    assert resolve_study(None, "smoke") == ("smoke", Study())
    assert resolve_study("mine", "smoke")[0] == "mine"
    bad = project / "params" / "studies" / "bad.yaml"
    for text, part in (
        ("seedz: 3\n", "did you mean seeds?"),
        ("seeds: 0\n", "1 to 1000"),
        ("experiments: [BaseFP23]\n", "BaseFP32"),
    ):
        bad.write_text(text)
        with pytest.raises(InputError, match=part) as caught:
            load_study("bad")
        assert "bad.yaml" in str(caught.value)


def test_the_kernel_is_the_running_interpreters_whatever_kernel_specs_say(project: Path, tmp_path_factory) -> None:  # type: ignore[no-untyped-def]
    jupyter = tmp_path_factory.mktemp("jupyter")
    spec = jupyter / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(json.dumps({"argv": ["/bin/false"], "display_name": "wrong", "language": "python"}))
    vitfp8("run", "BaseFP32", "--preset", "smoke", env={**os.environ, "JUPYTER_PATH": str(jupyter)})
    assert read_record("executed/smoke/BaseFP32-s0.ipynb").status == "completed"


def test_monitor_writes_samples_until_ctrl_c(project: Path) -> None:
    process = start("monitor", "--output", "hw.csv", "--interval", "100")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not Path("hw.csv").exists() or len(Path("hw.csv").read_text().splitlines()) < 4):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0 and "samples in hw.csv" in output, output
    assert Path("hw.csv").read_text().startswith("timestamp,")
