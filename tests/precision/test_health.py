"""Numeric health: the definitions, what is sampled when, and that sampling changes no bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from vitfp8.analysis.figures.of_health import health_figure, health_grid, steps_figure
from vitfp8.experiment import prepare_experiment
from vitfp8.params import RunParams
from vitfp8.precision.health import LARGEST_SERIES, MEASURES, HealthSampler, measure
from vitfp8.record import RunJournal, RunRecord

Make = Callable[..., RunParams]


def run(params: RunParams) -> RunRecord:
    """Train and return the record."""
    experiment = prepare_experiment(params)
    with RunJournal(experiment.folder, experiment.record(), show=False) as journal:
        return experiment.run(journal)


def test_measures_are_fractions_counts_amax_sqnr_and_scale() -> None:
    x = torch.tensor([0.0, 2.0**-12, 1.0, 500.0, float("inf"), 2.0, 4.0, 8.0])
    values = dict(zip(MEASURES, measure(x, "e4m3").tolist(), strict=True))
    assert values["underflow"] == 1 / 8, "not zero before, zero after, ÷ all"
    assert values["saturated"] == 1 / 8 and values["nonfinite"] == 1
    assert values["amax"] == float("inf") and values["scale"] == 1.0
    torch.manual_seed(0)
    normal = torch.randn(256, 256)
    scale = torch.tensor(448.0) / normal.abs().max()
    assert dict(zip(MEASURES, measure(normal, "e4m3", scale).tolist(), strict=True))["sqnr_db"] == pytest.approx(31.5, abs=0.3)
    assert dict(zip(MEASURES, measure(normal, "fp16", saturate=False).tolist(), strict=True))["sqnr_db"] == pytest.approx(
        73.7, abs=0.3
    )


@pytest.mark.parametrize(("experiment", "layers"), [("BaseFP8", 4), ("BaseFP16", 5), ("BaseBF16", 5), ("BaseFP32", 0)])
def test_every_converted_linear_layer_is_sampled_on_the_chosen_steps(
    smoke_params: Make, tmp_path: Path, experiment: str, layers: int
) -> None:
    record = run(smoke_params(experiment, run_folder=str(tmp_path), health_every=15))
    health = record.health
    assert len(health["steps"]["grad_norm"]) == 2 * record.progress["steps_per_epoch"]
    if not layers:
        assert "samples" not in health and isinstance(health_figure(health), str)
        return
    samples = health["samples"]
    assert len(health["layers"]) == layers and sorted(set(samples["step"])) == [1, 16, 31]
    assert len(samples["step"]) == 3 * layers * 3, "three operands of each layer on each sampled step"
    assert all(0 <= value <= 1 for value in samples["underflow"] + samples["saturated"])
    if experiment == "BaseFP16":
        assert set(health["steps"]["loss_scale"]) == {65536.0}
    names, steps, grid = health_grid(health, "sqnr_db", "activation")
    assert grid.shape == (layers, 3) and steps == [1, 16, 31] and names == health["layers"]
    assert isinstance(health_figure(health), Figure) and isinstance(steps_figure(health), Figure)


@pytest.mark.parametrize("experiment", ["BaseFP8", "BaseFP16"])
def test_sampling_changes_no_bit(smoke_params: Make, tmp_path: Path, experiment: str) -> None:
    digests = {
        run(smoke_params(experiment, run_folder=str(tmp_path / str(every)), health_every=every)).deterministic["digest"]
        for every in (0, 1)
    }
    assert len(digests) == 1


def test_a_long_series_is_thinned_and_survives_a_resume(smoke_params: Make, tmp_path: Path) -> None:
    experiment = prepare_experiment(smoke_params("BaseFP8", run_folder=str(tmp_path), health_every=1))
    sampler = experiment.precision.health
    images = torch.zeros(2, 1, 16, 16)
    for step in range(LARGEST_SERIES + 10):
        with sampler.watching(step), torch.no_grad():
            experiment.model(images)
    steps = sorted(set(sampler.report()["samples"]["step"]))
    assert len(steps) <= LARGEST_SERIES and {b - a for a, b in zip(steps, steps[1:], strict=False)} == {2}
    other = HealthSampler(experiment.model, 1, lambda device: None)
    other.load_state_dict(sampler.state_dict())
    assert other.report() == sampler.report()
