"""Import of an earlier project's results: what each file becomes, what is refused, and that the source stays as it was."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from click.testing import CliRunner, Result

from tests.analysis.records import HOSTILE, make_record, write_study
from tests.legacy import old_results as old
from vitfp8 import load_history, load_quantization, load_runs, read_record
from vitfp8.analysis import load_results
from vitfp8.analysis.contrasts import find_contrasts
from vitfp8.analysis.figures.of_study import draw_figure
from vitfp8.analysis.study_tables import comparison
from vitfp8.catalog import ARCHIVED, EXPERIMENTS
from vitfp8.cli import main
from vitfp8.errors import InputError
from vitfp8.legacy import import_results
from vitfp8.legacy.names import CAVEATS, OLD_NAMES
from vitfp8.legacy.notebook import originals
from vitfp8.record import RunRecord, read_source_run
from vitfp8.reporting.build import make_report
from vitfp8.run.plan import plan_batch
from vitfp8.run.study_file import Study

RUNS = ["BaseFP32-imported", "AugmFP32-imported", "AugmFP16-imported", "FP8Test-imported", "BaseFP16_OLD_ARCHIVE-imported"]


def state_of(folder: Path) -> dict[str, Any]:
    """Everything that can be seen of a tree: kind, bytes, times."""
    seen = {}
    for path in sorted(folder.rglob("*")):
        state = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() and not path.is_symlink() else None
        seen[str(path.relative_to(folder))] = (state.st_mode, state.st_size, state.st_mtime_ns, content)
    return seen


def vitfp8(*arguments: str, exit_code: int = 0) -> Result:
    """Call the command line in this process; a traceback fails the test."""
    done = CliRunner().invoke(main, list(arguments))
    assert done.exit_code == exit_code, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    return done


def imported(source: Path, name: str = "BaseFP32-imported", **options: Any) -> RunRecord:
    """Import a tree and read one of its records back."""
    import_results(source, **options)
    return read_record(Path("executed") / options.get("study", "imported") / f"{name}.ipynb")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a whole tree of each layout, both imported once."""
    place = tmp_path_factory.mktemp("whole")
    before = Path.cwd()
    os.chdir(place)
    try:
        for layout in (1, 2):
            source = old.tree(place / f"old{layout}", layout)
            seen = state_of(source)
            import_results(source, study=f"study{layout}")
            assert state_of(source) == seen
    finally:
        os.chdir(before)
    return place


# --------------------------------------------------------------------------------------------------- what becomes of it


@pytest.mark.parametrize("layout", [1, 2])
def test_both_layouts_become_records_under_the_new_names(whole: Path, layout: int) -> None:
    runs = load_runs(whole / f"executed/study{layout}")
    assert runs.attrs["problems"] == []
    assert [*runs["run"], *load_quantization(whole / f"executed/study{layout}")["run"]] == [r for r in RUNS if r[:3] != "FP8"] + [
        RUNS[3]
    ]
    assert set(runs["origin"]) == {"imported"} and set(runs["status"]) == {"completed"} and runs["seed"].isna().all()


def test_the_lists_become_the_history_and_the_final_figures(whole: Path) -> None:
    values = old.metrics(*old.TRAININGS["exp1_baseline"])
    history = load_history(whole / "executed/study1").query("experiment == 'BaseFP32'")
    for key, column in (("val_acc", "val_acc"), ("epoch_time", "epoch_seconds"), ("learning_rates", "learning_rate")):
        assert list(history[column]) == values[key]
    metrics = read_record(whole / "executed/study1/BaseFP32-imported.ipynb").metrics
    assert (metrics.epochs, metrics.best_epoch, metrics.best_val_acc) == (12, 11, max(values["val_acc"]))
    assert metrics.final_val_acc == values["val_acc"][-1] and metrics.train_seconds == pytest.approx(sum(values["epoch_time"]))
    assert metrics.generalization_gap == pytest.approx(0.18)
    assert metrics.test_acc is metrics.best_test_acc is metrics.images_per_second is None


def test_hardware_is_in_watts_and_joules_on_one_time_axis(whole: Path) -> None:
    hardware = read_record(whole / "executed/study2/AugmFP16-imported.ipynb").hardware
    assert hardware.samples["seconds"] == [10.0 * i for i in range(11)]
    assert set(hardware.samples["gpu_power_watts"]) == {14.0} and set(hardware.samples["cpu_percent"]) == {40.0}
    assert hardware.summary["energy_joules"] == pytest.approx((14 + 3) * 100)
    assert hardware.summary["energy_source"] == "estimated" and hardware.summary["energy_covers"] == "GPU, CPU"
    assert hardware.summary["thermal_pressure_max"] == "heavy" and hardware.summary["throttled"] is True


@pytest.mark.parametrize(
    ("layout", "name", "test_acc", "difference"), [(1, "int_4", 0.315, -0.5179), (2, "int_240", 0.8321, -0.0008)]
)
def test_what_was_called_fp8_is_the_integer_rounding(
    whole: Path, layout: int, name: str, test_acc: float, difference: float
) -> None:
    (row,) = load_quantization(whole / f"executed/study{layout}").to_dict("records")
    assert (row["format"], row["granularity"], row["operands"], row["origin"]) == (name, "tensor", "weights", "imported")
    assert row["test_acc"] == pytest.approx(test_acc) and row["source_test_acc"] == pytest.approx(0.8329)
    assert row["accuracy_difference"] == pytest.approx(difference)
    assert "not E4M3" in old.said_of(read_record(whole / f"executed/study{layout}/FP8Test-imported.ipynb"))


def test_the_superseded_fp16_run_is_an_archive_that_nothing_runs(whole: Path) -> None:
    record = read_record(whole / "executed/study1/BaseFP16_OLD_ARCHIVE-imported.ipynb")
    parameters = record.parameters
    assert (parameters["precision"], parameters["augmentation"]) == ("fp16", "basic")
    assert (parameters["weight_decay"], parameters["label_smoothing"], parameters["gradient_clip"]) == (0.1, 0.1, 1.0)
    assert parameters["warmup_fraction"] == pytest.approx(5 / 12)
    assert "warm-up of 5 epochs" in old.said_of(record) and "basic augmentation" in old.said_of(record)
    assert set(ARCHIVED) == {record.experiment} and not set(ARCHIVED) & set(EXPERIMENTS)
    with pytest.raises(InputError, match="unknown"):
        plan_batch("x", Study(), experiments=[record.experiment])


def test_every_record_says_how_the_earlier_project_worked_and_what_is_not_known(whole: Path) -> None:
    for run in RUNS[:3]:
        record = read_record(whole / f"executed/study1/{run}.ipynb")
        assert set(CAVEATS) <= set(record.provenance["imported"]["caveats"])
        (note,) = record.notes
        assert len(note["text"]) < 600  # a report shows it whole
        assert record.seed is record.precision is record.parameters_digest is record.started is None
        assert record.provenance.keys() == {"imported"} and record.checkpoints == {}
    assert "evaluated in FP32" in old.said_of(record) and "assumed" in old.said_of(record)


def test_originals_are_copied_with_their_digests_and_small_texts_are_in_the_record(whole: Path) -> None:
    folder = whole / "executed/study1/BaseFP32-imported/original"
    source = whole / "old1/checkpoints/exp1_baseline"
    record = read_record(folder.parent.with_suffix(".ipynb"))
    files = {file["path"]: file for file in record.provenance["imported"]["files"]}
    assert files.keys() == {path.name for path in source.iterdir()} == {path.name for path in folder.iterdir()}
    for path in source.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()
        assert files[path.name]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert (folder / path.name).stat().st_mtime_ns == path.stat().st_mtime_ns
    assert originals(record)["final_metrics.json"] == (source / "final_metrics.json").read_text()
    assert files["best_model.pt"]["epoch"] == 10 and files["best_model.pt"]["val_acc"] == 0.78 - 0.4 * np.exp(-10)
    (script,) = (whole / "executed/study1/imported").glob("*/verify_fp16.py")
    assert script.read_bytes() == (whole / "old1/verify_fp16.py").read_bytes() and not list(whole.rglob("EXECUTED"))


def test_the_notebook_is_valid_small_and_reads_like_a_lab_record(whole: Path) -> None:
    for run in RUNS:
        path = whole / f"executed/study2/{run}.ipynb"
        notebook = nbformat.read(str(path), as_version=4)
        nbformat.validate(notebook)
        assert path.stat().st_size < 1_000_000 and notebook.metadata.vitfp8.kind == "run"
        text = path.read_text()
        for words in ("not executed here", "What to bear in mind", "test set", "No seed was set", "SHA-256"):
            assert words in text, (run, words)
    assert any("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))


def test_running_its_cells_shows_the_same_record_again(whole: Path, tmp_path: Path) -> None:
    import papermill

    source = whole / "executed/study2/AugmFP32-imported.ipynb"
    shutil.copy(source, tmp_path)
    papermill.execute_notebook(
        str(tmp_path / source.name), str(tmp_path / "again.ipynb"), cwd=str(tmp_path), kernel_name="python3", progress_bar=False
    )
    assert read_record(tmp_path / "again.ipynb").metrics == read_record(source).metrics


# ---------------------------------------------------------------------------------------------------------------- names


def test_every_old_name_means_an_experiment_and_the_present_names_themselves() -> None:
    assert set(OLD_NAMES.values()) <= set(EXPERIMENTS) | set(ARCHIVED)
    assert all(OLD_NAMES[name] == name for name in ("BaseFP32", "AugmFP32", "BaseFP16", "AugmFP16", "FP8Test"))
    assert OLD_NAMES["experiment3_fp16"] == OLD_NAMES["exp3_fp16"] == "BaseFP16_OLD_ARCHIVE"


def test_the_user_may_say_what_the_fixed_fp16_run_was(here: Path) -> None:
    old.run(here / "old", "exp3_fp16_fixed")
    record = imported(here / "old", "BaseFP16-imported", renaming=["exp3_fp16_fixed=BaseFP16"])
    assert record.parameters["augmentation"] == "basic" and "assumed" not in old.said_of(record)


def test_learning_rates_without_warm_up_contradict_the_assumption_and_the_folder_waits(here: Path) -> None:
    rates = old.metrics()["learning_rates"]
    old.run(here / "old", "exp3_fp16_fixed", learning_rates=rates)
    done = vitfp8("import", "old", exit_code=2)
    assert "no warm-up" in done.output and "--as exp3_fp16_fixed=BaseFP16" in done.output and not Path("executed").exists()


def test_unknown_folders_are_named_and_left_with_the_way_out(here: Path) -> None:
    old.run(here / "old", "exp1_baseline")
    old.run(here / "old", "my_run")
    done = vitfp8("import", "old")
    assert "left: checkpoints/my_run: is not a known experiment" in done.output
    assert "--as my_run=NAME, where NAME is one of BaseFP32, AugmFP32, BaseFP16, AugmFP16, FP8Test" in done.output
    done = vitfp8("import", "old", "--as", "my_run=BaseFP32~mine")
    record = read_record("executed/imported/BaseFP32~mine-imported.ipynb")
    assert record.variant == "mine" and "dataset" not in record.parameters and record.parameters["weight_decay"] == 0.05


def test_several_folders_of_one_experiment_are_variants(here: Path) -> None:
    for name in ("baseline_fp32", "exp1_baseline"):
        old.run(here / "old", name)
    import_results(here / "old")
    assert set(load_runs("executed/imported")["run"]) == {"BaseFP32-imported", "BaseFP32~exp1_baseline-imported"}
    assert [group.n for group in load_results("executed/imported").groups] == [1, 1]


# --------------------------------------------------------------------------------------------------------------- damage

DAMAGE: list[tuple[str, dict[str, Any], str]] = [
    ("unequal", {"val_acc": [0.5, 0.6]}, "unequal lengths"),
    ("missing", {"train_acc": None}, "train_acc"),
    ("text", {"val_acc": "many"}, "val_acc"),
    ("texts", {"val_loss": ["1.0"] * 12}, "val_loss, value 1"),
    ("percent", {"val_acc": [0.5] * 11 + [78.0]}, "val_acc, value 12"),
    ("negative", {"epoch_time": [-1.0] * 12}, "epoch_time, value 1"),
    ("flags", {"val_acc": [True] * 12}, "val_acc, value 1"),
    ("objects", {"learning_rates": [{}] * 12}, "learning_rates, value 1"),
    ("huge", {"train_loss": [1] * 11 + [10**400]}, "train_loss, value 12"),
]

#: Whole files that are not metrics.
USELESS = [
    '{"train_loss": [2.0, 1.0, 0.5], "val_acc": [0.1, 0.2, 0.', '{"train_loss": [2.0, 1.0], "val_acc": [0.1], "x": "cut of', "",
    "not json", "[1, 2]", "null", "{" * 100_000, '{"a": 1}', "\x00\xff",
]  # fmt: skip


@pytest.mark.parametrize(("changes", "said"), [(c, s) for _, c, s in DAMAGE], ids=[name for name, _, _ in DAMAGE])
def test_a_damaged_metrics_file_is_named_and_its_folder_left(here: Path, changes: dict[str, Any], said: str) -> None:
    old.run(here / "old", "exp1_baseline", **changes)
    old.run(here / "old", "exp2_regularized")
    done = vitfp8("import", "old")
    (line,) = [line for line in done.output.splitlines() if line.startswith("left:")]
    assert line.startswith("left: checkpoints/exp1_baseline: final_metrics.json is not taken over: ") and said in line
    assert load_runs("executed/imported")["run"].tolist() == ["AugmFP32-imported"]
    (copy,) = Path("executed/imported/imported").glob("*/checkpoints/exp1_baseline/final_metrics.json")
    assert copy.read_bytes() == (here / "old/checkpoints/exp1_baseline/final_metrics.json").read_bytes()


@pytest.mark.parametrize("text", USELESS, ids=range(len(USELESS)))
def test_a_metrics_file_that_was_cut_off_is_named_and_not_repaired(here: Path, text: str) -> None:
    old.write(old.run(here / "old", "exp1_baseline") / "final_metrics.json", text)
    done = vitfp8("import", "old", exit_code=2)
    assert "final_metrics.json is not taken over" in done.output and len(done.output.strip().splitlines()) == 1
    assert not Path("executed").exists()


def test_a_loss_that_was_not_finite_for_some_epochs_is_no_damage(here: Path) -> None:
    old.run(here / "old", "exp1_baseline", val_loss=[float("nan")] * 3 + [0.5] * 9)
    record = imported(here / "old")
    assert [row.val_loss for row in record.history] == [None] * 3 + [0.5] * 9 and record.status == "completed"


def test_the_first_runs_were_not_timed(here: Path) -> None:
    old.run(here / "old", "baseline_fp32")
    path = here / "old/checkpoints/baseline_fp32/final_metrics.json"
    values = json.loads(path.read_text())
    del values["epoch_time"]
    old.write(path, values)
    record = imported(here / "old")
    assert record.metrics.train_seconds is None and record.history[0].epoch_seconds is None and record.metrics.epochs == 12


def test_a_folder_without_metrics_is_left(here: Path) -> None:
    (old.run(here / "old", "exp1_baseline") / "final_metrics.json").unlink()
    assert "holds neither final_metrics.json nor interrupted_metrics.json" in vitfp8("import", "old", exit_code=2).output


def test_an_interrupted_run_is_listed_and_in_no_mean(here: Path) -> None:
    folder = old.run(here / "old", "exp2_regularized")
    (folder / "final_metrics.json").rename(folder / "interrupted_metrics.json")
    record = imported(here / "old", "AugmFP32-imported")
    assert record.status == "interrupted" and record.reason == "interrupted in the earlier project"
    (row,) = load_results("executed/imported").excluded
    assert (row.status, row.epochs) == ("interrupted", "12 of ?")


def test_a_loss_that_ends_as_nan_is_a_diverged_run(here: Path) -> None:
    old.run(here / "old", "exp1_baseline", train_loss=[2.0] * 6 + [float("nan")] * 6)
    assert imported(here / "old").status == "diverged"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("gpu_stats.csv", "", "holds no samples"),
        ("gpu_stats.csv", "timestamp,gpu_power_mW\n", "holds no samples"),
        ("gpu_stats.csv", "timestamp,gpu_power_mW\n10,14000\n1,2,3\n", "line 3: has 3 fields"),
        ("gpu_stats.csv", "timestamp,gpu_power_mW\n10,x\n20,14000\n", "gpu_power_mW, value 1"),
        ("gpu_stats.csv", "a,b\n1,2\n", "timestamp"),
        ("hardware_stats.json", '{"timestamps": [1, "soon", 3], "cpu_percent": [1, 2, 9]}', "timestamps, value 2"),
        ("hardware_stats.json", '{"timestamps": [1, 2], "cpu_percent": [1, 900]}', "cpu_percent, value 2"),
        ("hardware_stats.json", '{"timestamps": [1, 2], "cpu_percent": [1]}', "unequal lengths"),
        ("hardware_stats.json", '{"cpu_percent": [1]}', "timestamps"),
        ("hardware_stats.json", "[", "is not JSON"),
        ("timing_report.json", '{"num_epochs": "many"}', "num_epochs"),
    ],
)
def test_other_damaged_files_are_named_and_cost_nothing_else(here: Path, name: str, text: str, said: str) -> None:
    old.write(old.run(here / "old", "exp1_baseline") / name, text)
    done = vitfp8("import", "old")
    record = read_record("executed/imported/BaseFP32-imported.ipynb")
    (line,) = [line for line in old.said_of(record).splitlines() if line.startswith("Not taken over")]
    assert f"checkpoints/exp1_baseline/{name}: " in line and said in line and f"BaseFP32-imported: {line}" in done.output
    summary = record.hardware.summary
    known = {"cpu_percent_max": 40.0, "gpu_power_watts_max": 14.0}
    known.pop({"gpu_stats.csv": "gpu_power_watts_max", "hardware_stats.json": "cpu_percent_max"}.get(name, ""), None)
    assert record.status == "completed" and {key: summary[key] for key in known} == known
    assert {"cpu_percent_max", "gpu_power_watts_max"} & set(summary) == set(known)
    assert Path(f"executed/imported/BaseFP32-imported/original/{name}").read_text() == text


@pytest.mark.parametrize("results", [{}, {"original_fp16": "good"}, {"original_fp16": {"accuracy": 83.2}}, []])
def test_an_fp8_test_without_an_accuracy_is_left(here: Path, results: object) -> None:
    old.write(here / "old/checkpoints/exp4_fp8_test/fp8_test_results.json", results)
    assert "fp8_test_results.json is not taken over" in vitfp8("import", "old", exit_code=2).output


def test_an_fp8_test_that_holds_percent_where_its_script_wrote_fractions_is_left(here: Path) -> None:
    results = old.second_fp8_test() | {"quantized_fp8": {"accuracy": 83.2, "loss": 0.6}}
    old.write(here / "old/FP8Test/metrics/fp8_quantization_results.json", results)
    assert "fp8_quantization_results.json is not taken over: accuracy: is above 1" in vitfp8("import", "old", exit_code=2).output


def test_a_folder_without_a_result_of_an_fp8_test_is_left(here: Path) -> None:
    (here / "old/FP8Test/metrics").mkdir(parents=True)
    assert "holds no result of an FP8 test" in vitfp8("import", "old", exit_code=2).output


@pytest.mark.parametrize("what", ["empty", "file", "nowhere", "plots", "above", "unknown"])
def test_a_source_with_nothing_to_import_is_one_line_exit_2(here: Path, what: str) -> None:
    source = here / "old"
    if what == "file":
        source.write_text("x")
    elif what != "nowhere":
        source.mkdir()
    if what == "plots":
        old.write(source / "plots/a.txt", "x")
    if what == "above":
        old.run(source / "results", "exp1_baseline")
    if what == "unknown":
        old.run(source, "mine")
    done = vitfp8("import", "old", exit_code=2)
    assert len(done.output.strip().splitlines()) == 1 and "old" in done.output and not Path("executed").exists()
    if what == "above":
        assert "give 'old/results'" in done.output


BAD: list[tuple[tuple[str, ...], str]] = [
    (("--as", "exp1_baseline"), "is not of the form OLD=NEW"),
    (("--as", "exp1_baseline=BaseFP23"), "did you mean BaseFP32?"),
    (("--as", "exp9=BaseFP32"), "holds no such experiment's folder"),
    (("--as", "exp1_baseline=BaseFP32~../../x"), "is not a variant"),
    (("--as", "exp1_baseline=BaseFP32", "--as", "exp2_regularized=BaseFP32"), "tell them apart"),
    (("--study", "../outside"), "not a folder name"),
]


@pytest.mark.parametrize(("arguments", "part"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_options_are_one_line_exit_2_and_nothing_written(here: Path, arguments: tuple[str, ...], part: str) -> None:
    for name in ("exp1_baseline", "exp2_regularized"):
        old.run(here / "old", name)
    done = vitfp8("import", "old", *arguments, exit_code=2)
    assert part in done.output and len(done.output.strip().splitlines()) == 1 and not Path("executed").exists()


# --------------------------------------------------------------------------------------------------------------- safety


class _Evil:
    """Unpickling it would leave a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, ("EXECUTED", "w")


def test_a_pickle_that_would_execute_code_is_refused_by_name_and_the_import_goes_on(here: Path) -> None:
    import torch

    folder = old.run(here / "old", "exp1_baseline")
    torch.save({"epoch": 1, "val_acc": _Evil()}, folder / "best_model.pt")
    (folder / "raw.pth").write_bytes(pickle.dumps(_Evil(), protocol=4))
    (folder / "cut.pt").write_bytes((folder / "checkpoint_epoch_10.pt").read_bytes()[:300])
    done = vitfp8("import", "old")
    assert not Path("EXECUTED").exists()
    assert "best_model.pt: is refused" in done.output and "raw.pth: is refused" in done.output and "cut.pt: is not" in done.output
    copied = {path.name for path in Path("executed/imported/BaseFP32-imported/original").iterdir()}
    assert (
        "cut.pt" in copied and not copied & {"best_model.pt", "raw.pth"} and not list(Path("executed/imported").glob("imported"))
    )
    assert read_record("executed/imported/BaseFP32-imported.ipynb").status == "completed"


def test_links_are_never_followed_out_of_the_source(here: Path) -> None:
    secret = here / "secret"
    secret.mkdir()
    (secret / "final_metrics.json").write_text(json.dumps(old.metrics()))
    folder = old.run(here / "old", "exp1_baseline")
    (folder / "linked.json").symlink_to(secret / "final_metrics.json")
    (folder.parent / "exp2_regularized").symlink_to(secret)
    os.mkfifo(folder / "pipe")
    done = vitfp8("import", "old")
    assert done.output.count("is a link, which is not followed") == 2 and "pipe: is not a regular file" in done.output
    names = {path.name for path in Path("executed").rglob("*")}
    assert "linked.json" not in names and not any("AugmFP32" in name for name in names)


def test_a_source_that_holds_the_study_is_refused(here: Path) -> None:
    old.run(here, "exp1_baseline")
    assert "never changes its source" in vitfp8("import", ".", exit_code=2).output and not Path("executed").exists()


#: A folder's name that tries to act in a terminal, in HTML and in LaTeX.
NASTY = HOSTILE.replace("/", ":") + "\x1b[31m\n"


def nasty_tree(top: Path) -> Path:
    """A tree whose names and texts try to act."""
    folder = old.run(top, NASTY)
    old.write(folder / "final_metrics.json", old.metrics() | {NASTY: [1]})
    old.write(folder / "timing_report.json", old.timing(experiment_name=NASTY, config_file=NASTY, augmentation="basic"))
    old.write(folder / "hardware_stats.json", {"timestamps": [NASTY]})
    old.write(folder / f"{NASTY}.txt", NASTY)
    (folder / os.fsdecode(b"\xff.txt")).write_text("x")
    shutil.copytree(folder, folder.parent / f"{NASTY}2")
    second = folder.parent / f"{NASTY}2"
    (second / "final_metrics.json").rename(second / "interrupted_metrics.json")
    shutil.copytree(second, folder.parent / f"{NASTY}3")
    (folder.parent / f"{NASTY}3" / "interrupted_metrics.json").write_text('{"val_acc": [0.1, 0.2')
    return top


def test_what_the_source_says_is_data_in_terminal_and_notebook(here: Path) -> None:
    nasty_tree(here / "old")
    done = vitfp8("import", "old", "--as", f"{NASTY}=BaseFP32~nasty")
    assert "\x1b" not in done.output
    notebook = nbformat.read("executed/imported/BaseFP32~nasty-imported.ipynb", as_version=4)
    for cell in notebook.cells:
        assert "alert" not in cell.source
        for output in cell.get("outputs", []):
            assert "<script" not in output["data"].get("text/html", "")
            assert "\\input{" not in output["data"].get("text/latex", "")
            assert "\x1b" not in output["data"].get("text/plain", "")


# --------------------------------------------------------------------------------------------------- again, and beside


def test_the_same_import_again_keeps_everything(here: Path) -> None:
    old.tree(here / "old")
    vitfp8("import", "old")
    seen = state_of(Path("executed"))
    done = vitfp8("import", "old")
    assert done.output.count("already imported") == 5 and state_of(Path("executed")) == seen
    lost = Path("executed/imported/BaseFP32-imported/original/best_model.pt")
    lost.unlink()
    vitfp8("import", "old")
    assert lost.read_bytes() == (here / "old/checkpoints/exp1_baseline/best_model.pt").read_bytes()


def test_what_differs_is_refused_and_with_force_the_old_one_is_moved_aside(here: Path) -> None:
    old.run(here / "old", "exp1_baseline")
    import_results(here / "old")
    before = Path("executed/imported/BaseFP32-imported.ipynb").read_bytes()
    old.run(here / "old", "exp1_baseline", val_acc=[0.5] * 12)
    done = vitfp8("import", "old", exit_code=2)
    assert "differs" in done.output and "--force" in done.output
    assert Path("executed/imported/BaseFP32-imported.ipynb").read_bytes() == before
    vitfp8("import", "old", "--force")
    (aside,) = Path("executed/imported/superseded").glob("BaseFP32-imported@*.ipynb")
    assert aside.read_bytes() == before and (aside.with_suffix("") / "original" / "final_metrics.json").is_file()
    assert read_record("executed/imported/BaseFP32-imported.ipynb").metrics.best_val_acc == 0.5


def test_an_import_that_was_broken_off_goes_on(here: Path) -> None:
    old.run(here / "old", "exp1_baseline")
    import_results(here / "old")
    Path("executed/imported/BaseFP32-imported.ipynb").unlink()
    part = Path("executed/imported/BaseFP32-imported/original/best_model.pt")
    part.write_bytes(b"torn")
    import_results(here / "old")
    assert part.read_bytes() == (here / "old/checkpoints/exp1_baseline/best_model.pt").read_bytes()
    assert not Path("executed/imported/superseded").exists()


def test_a_dry_run_writes_nothing(here: Path) -> None:
    old.tree(here / "old")
    done = vitfp8("import", "old", "--dry-run")
    assert done.output.count("would be imported") == 5 and not Path("executed").exists()


def test_imported_and_fresh_runs_stand_beside_each_other_and_are_never_pooled(here: Path) -> None:
    study = write_study(here / "executed/both", [make_record("BaseFP32", 0), make_record("AugmFP32", 0)])
    old.tree(here / "old")
    import_results(here / "old", study="both")
    results = load_results(study)
    assert all(group.n == 1 and len(set(group.runs["origin"])) == 1 for group in results.groups)
    contrasts, _ = find_contrasts(results)
    assert {(c.first.origin, c.second.origin) for c in contrasts} == {("run", "run"), ("imported", "imported")}
    assert not any("OLD_ARCHIVE" in c.first.experiment + c.second.experiment for c in contrasts)
    looks = {(str(group.style.linestyle), group.style.marker) for group in results.groups}
    assert len(looks) == len(results.groups) == 6
    assert any("test set, which also chose" in note for note in comparison(results).notes)
    for number in (1, 2, 3, 4, 7):
        figure = draw_figure(number, results)
        said = [text.get_text() for legend in figure.legends for text in legend.get_texts()]  # type: ignore[union-attr]
        parts = [t.get_text() for sub in getattr(figure, "subfigs", []) for legend in sub.legends for t in legend.get_texts()]
        assert any("“validation” is the test set" in text for text in [*said, *parts]), number


def test_run_neither_takes_nor_continues_an_imported_record(project: Path) -> None:
    folder = old.run(project / "old", "exp1_baseline")
    (folder / "final_metrics.json").rename(folder / "interrupted_metrics.json")
    old.run(project / "old", "exp3_fp16_fixed")
    import_results(project / "old", study="smoke")
    kept = [Path("executed/smoke") / name for name in ("BaseFP32-imported", "AugmFP16-imported")]
    seen = [(path.with_suffix(".ipynb").read_bytes(), state_of(path)) for path in kept]
    planned = plan_batch("smoke", Study(preset="smoke"))
    assert {run.action for run in planned} == {"run"} and not {run.output for run in planned if run.output.exists()}
    shutil.copy("executed/smoke/BaseFP32-imported.ipynb", "executed/smoke/BaseFP32-s0.ipynb")
    with pytest.raises(InputError, match="BaseFP32-s0.ipynb: is unfinished with other parameters"):
        plan_batch("smoke", Study(preset="smoke"))
    Path("executed/smoke/BaseFP32-s0.ipynb").unlink()
    with pytest.raises(InputError, match="imported from an earlier project"):
        read_source_run("executed/smoke/AugmFP16-imported", experiment="AugmFP16", seed=0, command="`vitfp8 run`")
    assert [(path.with_suffix(".ipynb").read_bytes(), state_of(path)) for path in kept] == seen


def test_the_commands_list_and_report_a_study_of_imported_runs_alone(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(whole)
    shutil.copy(Path(__file__).resolve().parents[2] / "CITATION.cff", whole)
    shutil.copytree("executed/study1", "executed/alone")
    renaming = [f"{NASTY}=BaseFP32~nasty", f"{NASTY}2=BaseFP32~off", f"{NASTY}3=BaseFP32~cut"]
    left = import_results(nasty_tree(whole / "nasty"), study="alone", renaming=renaming).imports.left
    listed = vitfp8("runs", "alone").output
    assert (
        all(run[:20] in listed for run in RUNS) and "the validation column shows the test set" in listed and "\x1b" not in listed
    )
    files = make_report("alone")
    page = files["html"].read_text().replace("<wbr/>", "")
    assert "<script>alert" not in page and "\\input{:etc" not in files["latex"].read_text()
    assert any("interrupted_metrics.json is not taken over" in sentence for sentence in left)
    assert "interrupted in the earlier project" in page and "BaseFP32~off-imported" in page and "~cut" not in page
    assert "best accuracy on the test set, which also chose the epoch" in page and "A validation split, the same" not in page
    assert files["pdf"].stat().st_size > 20_000 and (whole / "report/alone/figures/01_val_accuracy.png").is_file()
