"""No option is accepted and ignored: every field and every option is in a table, and what would do nothing is refused."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from tests.analysis.records import imported, make_record, write_notebook
from vitfp8 import experiment
from vitfp8.catalog import EXPERIMENTS
from vitfp8.cli import main
from vitfp8.errors import InputError
from vitfp8.experiment import check_experiment, set_determinism
from vitfp8.params import Layer, RunParams, read_layer, validate
from vitfp8.params.quantization import QuantizeParams, parameters_of
from vitfp8.verify.checks import verify_data

TOP = Path(__file__).resolve().parent.parent


def table(page: str, heading: str) -> dict[str, str]:
    """First cell, without quotation marks, of each row below a heading of the docs → when it acts, and elsewhere."""
    text = (TOP / "docs" / page).read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    return {
        name: acts + elsewhere for name, acts, elsewhere in re.findall(r"^\| `([^`]+)` \| (.*?) \|(.*)\|$", text, re.MULTILINE)
    }


def test_every_parameter_says_when_it_acts() -> None:
    for page, kind in (("parameters.md", RunParams), ("quantization.md", QuantizeParams)):
        found = table(page, "When a parameter acts")
        assert list(found) == list(kind.model_fields) and all(text.strip() for text in found.values())


def test_every_option_of_every_command_says_when_it_acts() -> None:
    options = {
        f"{name} {option.opts[0]}"
        for name, command in main.commands.items()
        for option in command.params
        if isinstance(option, click.Option)
    }
    assert set(table("commands.md", "When an option acts")) == options


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_shipped_file_is_accepted_under_every_preset(name: str) -> None:
    kind = parameters_of(name)
    layer = read_layer(TOP / "params" / f"{name}.yaml")
    validate([layer], kind)
    if kind is RunParams:
        for preset in (TOP / "params" / "presets").glob("*.yaml"):
            validate([layer, read_layer(preset)], kind)


# ------------------------------------------------------------------------------------------------------------ parameters


@pytest.mark.parametrize(
    ("over", "key", "words"),
    [
        ({"dataset": "digits", "data_dir": "pictures"}, "data_dir", "is read from no folder; set data_dir: null"),
        ({"dataset": "digits", "workers": 2}, "workers", "set workers: 0"),
        ({"dataset": "cifar10", "workers": 2}, "workers", "set workers: 0"),
        ({"pretrained_file": "weights.pt"}, "pretrained_file", "pretrained is false"),
    ],
)
def test_a_value_that_nothing_would_read_is_refused_with_file_key_and_way_out(
    over: dict[str, object], key: str, words: str
) -> None:
    layer = read_layer(TOP / "params" / "BaseFP32.yaml")
    with pytest.raises(InputError) as error:
        validate([layer, Layer("mine.yaml", over, dict.fromkeys(over, 7))])
    assert str(error.value).startswith(f"mine.yaml:7: {key}: {over[key]!r}") and words in str(error.value)


def test_workers_and_a_folder_are_accepted_where_images_are_read_from_it() -> None:
    over = {"dataset": "imagefolder", "data_dir": "pictures", "workers": 2}
    assert validate([read_layer(TOP / "params" / "BaseFP32.yaml"), Layer("x", over)]).workers == 2


@pytest.mark.parametrize(
    ("platform", "device", "accepted"),
    [("linux", "cpu", False), ("linux", "cuda", False), ("darwin", "cpu", False), ("darwin", "mps", True)],
)
def test_powermetrics_is_refused_but_on_a_macs_gpu(
    smoke_params: Callable[..., RunParams], monkeypatch: pytest.MonkeyPatch, platform: str, device: str, accepted: bool
) -> None:
    monkeypatch.setattr(experiment, "sys", SimpleNamespace(platform=platform))
    monkeypatch.setattr(experiment, "who_multiplies", lambda params: (device, "native", "as the test says"))
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device=None: (9, 0))
    check_experiment(smoke_params())
    if accepted:
        check_experiment(smoke_params(powermetrics=True))
        return
    with pytest.raises(InputError, match="powermetrics: true: .* set powermetrics: false"):
        check_experiment(smoke_params(powermetrics=True))


def test_a_run_that_asks_for_no_determinism_is_promised_no_bits(smoke_params: Callable[..., RunParams]) -> None:
    try:
        for device in ("cpu", "cuda", "mps"):
            said = set_determinism(smoke_params(deterministic=False), torch.device(device))
            assert said == {"promised": False, "level": "not asked for: deterministic is false"}
    finally:
        said = set_determinism(smoke_params(), torch.device("cpu"))
    assert said["promised"] is True


def pictures(top: Path, *, own_split: bool) -> Path:
    """A folder of images, with or without a validation split of its own."""
    for split in ("train", "val", "test") if own_split else ("train", "test"):
        for name in ("cat", "dog"):
            (top / split / name).mkdir(parents=True)
            for number in range(10):
                pixels = np.full((8, 8, 3), 10 * number, np.uint8)
                Image.fromarray(pixels).save(top / split / name / f"{number}.png")
    return top


@pytest.mark.parametrize("own_split", [True, False])
def test_validation_fraction_is_refused_over_a_folders_own_validation_split(
    tmp_path: Path, smoke_params: Callable[..., RunParams], own_split: bool
) -> None:
    folder = pictures(tmp_path, own_split=own_split)
    over = {"dataset": "imagefolder", "data_dir": str(folder), "batch_size": 4}
    check_experiment(smoke_params(**over))
    if not own_split:
        check_experiment(smoke_params(**over, validation_fraction=0.2))
        return
    with pytest.raises(InputError, match=r"validation_fraction: 0.2: .* leave validation_fraction: 0.1"):
        check_experiment(smoke_params(**over, validation_fraction=0.2))


WEIGHTS = {"operands": ["weights"], "sensitivity": False}


@pytest.mark.parametrize(
    ("over", "key"),
    [
        ({"sensitivity": False, "sensitivity_granularity": "mx"}, "sensitivity_granularity"),
        ({"sensitivity": False, "sensitivity_operands": "weights"}, "sensitivity_operands"),
        ({**WEIGHTS, "export": False, "calibration_images": 64}, "calibration_images"),
        ({"formats": ["e4m3"], "granularities": ["mx"], "sensitivity": False, "export": False, "calibration_images": 64},
         "calibration_images"),
        ({"formats": ["int_240"], "calibration_images": 64}, "calibration_images"),
        ({"operands": ["weights_activations"]}, "operands"),
        ({"granularities": ["mx"]}, "granularities"),
    ],
)  # fmt: skip
def test_what_a_quantisation_would_not_read_is_refused(over: dict[str, object], key: str) -> None:
    layer = read_layer(TOP / "params" / "FP8Test.yaml")
    with pytest.raises(InputError) as error:
        validate([layer, Layer("-p", over)], QuantizeParams)
    assert str(error.value).startswith(f"-p: {key}: ") and re.search(r"leave|set|add", str(error.value))


@pytest.mark.parametrize(
    "over",
    [
        {"sensitivity": False},
        {**WEIGHTS, "export": False},
        {**WEIGHTS, "calibration_images": 64},  # exported files hold the calibrated inputs
        {"operands": ["weights"], "export": False, "calibration_images": 64},  # the sensitivity needs them
        {"formats": ["e4m3"], "operands": ["weights_activations"], "granularities": ["channel"], "calibration_images": 64},
    ],
)
def test_what_a_quantisation_reads_or_the_files_state_is_accepted(over: dict[str, object]) -> None:
    validate([read_layer(TOP / "params" / "FP8Test.yaml"), Layer("-p", over)], QuantizeParams)


# --------------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "BaseFP32", "--preset", "smoke", "--skip", "AugmFP32"), "--skip: 'AugmFP32': would not run anyway"),
        (("run", "BaseFP32", "--preset", "smoke", "-p", "powermetrics", "true", "-p", "device", "cpu"), "powermetrics: true"),
        (("run", "BaseFP32", "--preset", "smoke", "-p", "workers", "2"), "-p: workers: 2: digits is held in memory"),
        (("run", "BaseFP32", "--preset", "smoke", "--seeds", "2", "-p", "seed", "3"), "contradicts --seeds"),
        (("watch", "--once", "--interval", "5"), "--interval: --once prints once"),
        (("backup", "--verify", "--moved", "there"), "--moved"),
        (("backup", "--verify", "there", "too"), "--verify: takes one folder"),
        (("verify", "--rerun"), "name the study"),
        (("export", "smoke", "--to", "ro-crate"), "not there yet"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused_and_nothing_is_written(
    project: Path, arguments: tuple[str, ...], words: str
) -> None:
    before = sorted(project.rglob("*"))
    done = CliRunner().invoke(main, list(arguments))
    assert done.exit_code == 2 and words in done.output and len(done.output.strip().splitlines()) == 1, done.output
    assert sorted(project.rglob("*")) == before


def test_a_benchmark_refuses_an_option_that_another_one_takes_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["input_pipeline", "--no-step", "--step-threads", "2"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(TOP / "benchmarks" / "input_pipeline.py"), run_name="__main__")
    assert "--no-step leaves that step out" in capsys.readouterr().err


def test_a_dry_run_says_what_the_options_between_runs_would_do(project: Path) -> None:
    words = ["run", "BaseFP32", "--preset", "smoke", "-p", "device", "cpu", "--dry-run"]
    output = CliRunner().invoke(main, [*words, "--cooldown", "60", "--retries", "2", "--timeout", "900"]).output
    for part in ("a cooldown of 60 s between runs", "tried again 2×", "stopped after 900 s"):
        assert part in output
    assert "cooldown of" not in CliRunner().invoke(main, words).output


def test_a_preset_over_a_quantisation_is_laid_over_it_by_check(project: Path) -> None:
    Path("mine.yaml").write_text("device: nowhere\nepochs: 2\n")
    done = CliRunner().invoke(main, ["check", "params/FP8Test.yaml", "--preset", "mine.yaml"])
    assert done.exit_code == 2 and "nowhere" in done.output


def test_records_that_verify_cannot_compare_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    old = imported()
    notebook = write_notebook(old, tmp_path / "executed/old" / f"{old.run_name}.ipynb")
    (found,) = verify_data([notebook])
    assert (found.level, found.subject) == ("note", "data") and "no digest" in found.text
    stopped = make_record(status="interrupted")
    write_notebook(stopped, tmp_path / "executed/old" / f"{stopped.run_name}.ipynb")
    output = CliRunner().invoke(main, ["verify", "old", "--rerun"]).output
    assert "repeat: is not executed again: was imported" in output
    assert "repeat: is not executed again: is interrupted" in output
