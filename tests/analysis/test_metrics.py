"""Which runs are averaged, which are not, and what is said about it."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.analysis.records import FOUR, diverged, imported, make_record, write_notebook
from vitfp8.analysis.contrasts import find_contrasts
from vitfp8.analysis.results import load_results
from vitfp8.analysis.values import finite
from vitfp8.catalog import EXPERIMENTS
from vitfp8.errors import InputError
from vitfp8.record import EpochRow, Metrics

Study = Callable[..., Path]


def test_importing_the_analysis_loads_nothing_heavy() -> None:
    code = "import sys, vitfp8.analysis; sys.exit(bool({'torch', 'pandas', 'matplotlib', 'scipy', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_importing_the_plots_loads_no_torch_and_no_pyplot() -> None:
    code = "import sys, vitfp8.analysis.figures.of_study, vitfp8.analysis.summary, vitfp8.analysis.text;"
    code += "sys.exit(bool({'torch', 'matplotlib.pyplot'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_missing_folder_is_refused_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^study_folder: .*nothing.*`vitfp8 run --study nothing --preset PRESET`[^\n]*$"):
        load_results(tmp_path / "nothing")


def test_an_empty_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        InputError, match=r"^study_folder: .*holds no record of a run; `vitfp8 run --study empty --preset PRESET`[^\n]*$"
    ):
        load_results(tmp_path / "empty")


def test_a_folder_of_damaged_notebooks_names_the_first(tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.ipynb").write_text("{")
    with pytest.raises(InputError, match=r"^[^\n]*1 unreadable[^\n]*x\.ipynb[^\n]*$"):
        load_results(tmp_path / "bad")


def test_one_damaged_notebook_does_not_hide_the_others(four: Path) -> None:
    (four / "broken.ipynb").write_text("{")
    results = load_results(four)
    assert len(results.groups) == 4 and len(results.problems) == 1 and "broken.ipynb" in results.problems[0]


def test_groups_stand_in_the_catalogues_order_with_its_labels_and_styles(four: Path) -> None:
    groups = load_results(four).groups
    assert [group.label for group in groups] == [EXPERIMENTS[name].label for name in FOUR]
    assert [group.style.color for group in groups] == [EXPERIMENTS[name].color for name in FOUR]


def test_seeds_of_an_experiment_are_one_group(rich: Path) -> None:
    counts = {group.label: group.n for group in load_results(rich).groups}
    assert counts == {
        "Baseline FP32": 3, "Augmented FP32": 3, "Baseline FP16": 2, "Augmented FP16": 3, "Old FP16 archive (imported)": 1,
    }  # fmt: skip


def test_only_completed_runs_are_averaged_and_the_others_listed(rich: Path) -> None:
    results = load_results(rich)
    excluded = {row.run: (row.status, row.reason) for row in results.excluded}
    assert excluded == {
        "BaseFP16-s1": ("diverged", "the loss is not finite at step 57"),
        "AugmFP16-s7": ("interrupted", "Ctrl-C"),
        "AugmFP32-s8": ("failed", "out of memory"),
    }
    assert sum(group.n for group in results.groups) + len(excluded) == len(results.runs)


def test_runs_of_another_length_are_no_seed_of_the_same_group(study: Study) -> None:
    folder = study(make_record(seed=0, epochs=12), make_record(seed=1, epochs=4))
    results = load_results(folder)
    assert [group.label for group in results.groups] == ["Baseline FP32 (epochs 12)", "Baseline FP32 (epochs 4)"]
    assert "not comparable" in results.warnings()[0] and "epochs" in results.warnings()[0]


def test_runs_of_another_data_set_are_named_and_not_compared(study: Study) -> None:
    other = make_record("BaseFP16")
    other.parameters["dataset"] = other.data["name"] = "cifar10"
    results = load_results(study(make_record("BaseFP32"), other))
    assert any("dataset differs: digits in Baseline FP32; cifar10 in Baseline FP16" in line for line in results.warnings())
    contrasts, left_out = find_contrasts(results)
    assert contrasts == [] and "they also differ in dataset" in left_out[0]


def test_another_machine_is_warned_about_and_makes_its_own_group(study: Study) -> None:
    other = make_record(seed=1)
    other.provenance["processor"] = "Another processor"
    results = load_results(study(make_record(seed=0), other))
    assert len(results.groups) == 2
    assert any("times are not compared" in line for line in results.warnings())


def test_a_repeat_of_a_seed_counts_once(study: Study) -> None:
    folder = study(make_record(seed=0))
    write_notebook(make_record(seed=0, started="2026-02-01T00:00:00+00:00"), folder / "again.ipynb")
    results = load_results(folder)
    assert [list(group.runs["run"]) for group in results.groups] == [["again"]]
    assert "again, which is later and counts" in results.excluded[0].reason


def test_imported_runs_never_share_a_group_or_contrast_with_fresh_ones(study: Study) -> None:
    old = make_record("BaseFP16", None, origin="imported")
    results = load_results(study(make_record("BaseFP32"), make_record("BaseFP16"), old))
    assert [group.label for group in results.groups] == ["Baseline FP32", "Baseline FP16", "Baseline FP16 (imported)"]
    contrasts, _ = find_contrasts(results)
    assert [(c.first.origin, c.second.origin) for c in contrasts] == [("run", "run")]
    assert any("Imported runs" in line for line in results.warnings())


def test_no_two_groups_look_alike(study: Study) -> None:
    records = [make_record(name, epochs=epochs) for name in FOUR for epochs in (4,)] + [imported()]
    records += [make_record("BaseFP32", variant=f"v{i}") for i in range(4)]
    groups = load_results(study(*records)).groups
    looks = {(str(group.style.linestyle), group.style.marker) for group in groups}
    assert len(looks) == len(groups) == 9


def test_a_curve_is_the_mean_with_the_range_of_the_seeds(study: Study) -> None:
    group = load_results(study(make_record(seed=0), make_record(seed=1))).groups[0]
    curve = group.curve("val_acc")
    assert curve is not None and curve.n == 2 and list(curve.epochs) == list(range(1, 13))
    assert ((curve.low < curve.mean) & (curve.mean < curve.high)).all()


def test_nan_and_missing_values_are_no_numbers(study: Study) -> None:
    assert [finite(value) for value in (None, math.nan, math.inf, "7", True, 1, 0.5)] == [None, None, None, None, None, 1.0, 0.5]
    history = [EpochRow(epoch=1, val_acc=math.nan), EpochRow(epoch=2, val_acc=0.5), EpochRow(epoch=3)]
    group = load_results(study(make_record(history=history, metrics=Metrics(test_acc=math.nan)))).groups[0]
    curve = group.curve("val_acc")
    assert curve is not None and list(curve.epochs) == [2.0]
    assert group.values("test_acc") == [] and group.curve("train_acc") is None


def test_the_designs_contrasts_are_found_precision_first(four: Path) -> None:
    contrasts, left_out = find_contrasts(load_results(four))
    assert [contrast.label for contrast in contrasts] == [
        "Baseline FP16 − Baseline FP32", "Augmented FP16 − Augmented FP32", "Augmented FP32 − Baseline FP32",
        "Augmented FP16 − Baseline FP16",
    ]  # fmt: skip
    assert left_out == []


def test_a_contrast_of_precision_lets_no_other_parameter_differ(study: Study) -> None:
    other = make_record("BaseFP16")
    other.parameters["weight_decay"] = 0.3
    contrasts, left_out = find_contrasts(load_results(study(make_record("BaseFP32"), other)))
    assert contrasts == [] and "weight decay" in left_out[0]


def test_a_diverged_seed_is_left_out_of_its_pair(rich: Path) -> None:
    contrasts, _ = find_contrasts(load_results(rich))
    assert contrasts[0].paired.seeds == (0, 2)


def test_p_values_of_enough_seeds_are_adjusted_for_the_number_of_contrasts(study: Study) -> None:
    contrasts, _ = find_contrasts(load_results(study(*(make_record(name, seed) for name in FOUR for seed in range(6)))))
    assert len(contrasts) == 4
    for contrast in contrasts:
        assert contrast.adjusted_p is not None and contrast.paired.p is not None and contrast.adjusted_p >= contrast.paired.p


def test_a_study_whose_runs_all_diverged_has_no_group_but_reasons(study: Study) -> None:
    results = load_results(study(diverged("BaseFP32", 0), diverged("BaseFP16", 0)))
    assert results.groups == [] and len(results.excluded) == 2 and results.missing_experiments == list(FOUR)
