"""An experiment is what it says, and a run's identity is formed once, by a rule that its record names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.analysis.records import make_record, write_notebook
from vitfp8.analysis.results import load_results
from vitfp8.catalog import BUNDLES, EXPERIMENTS, TRAININGS
from vitfp8.cli import main
from vitfp8.errors import InputError
from vitfp8.params import IDENTITY_RULE, Layer, RunParams, from_notebook, identity_digest, identity_of, read_layer, validate
from vitfp8.params.quantization import QuantizeParams
from vitfp8.record import RunRecord, digest_of
from vitfp8.run.plan import plan_batch
from vitfp8.run.study_file import Study
from vitfp8.verify.figures import wrong_digests
from vitfp8.verify.rerun import _compare

TOP = Path(__file__).resolve().parent.parent
SMOKE = TOP / "params" / "presets" / "smoke.yaml"

Make = Callable[..., RunParams]

#: Digests under the smoke preset as the first releases wrote them.
FIRST_RULE = {
    "BaseFP32": "aa43a51c0a050ab5585388c226bd63f35d111f23a528b3ec70c4de8a53f92cd0",
    "BaseFP16": "455f0b247963d5058551f4f437a23f95732472ef5aa6bafd038f3290d2acd1a9",
    "BaseFP8": "9b472304e0043c88c84537ee77bc8f8e79228ba4218e18b10bd87035007e0a00",
}

# ---------------------------------------------------------------------------------------- an experiment is what it says


@pytest.mark.parametrize("name", sorted(TRAININGS))
def test_the_catalogue_and_the_parameter_file_state_the_same_factors(name: str) -> None:
    values, row = read_layer(TOP / "params" / f"{name}.yaml").values, EXPERIMENTS[name]
    bundle = BUNDLES[row.augmentation]
    assert (values["precision"], values["augmentation"]) == (row.precision, row.augmentation)
    assert {key: values[key] for key in bundle} == bundle


@pytest.mark.parametrize(
    ("experiment", "values", "parts"),
    [
        ("BaseFP16", {"precision": "bf16"}, ["-p: precision: 'bf16'", "BaseFP16 has fp16", "run BaseBF16", "variant"]),
        ("BaseFP16", {"precision": "tf32"}, ["-p: precision: 'tf32'", "BaseFP16 has fp16", "variant"]),
        ("BaseFP32", {"augmentation": "extended"}, ["-p: augmentation: 'extended'", "BaseFP32 has basic", "variant"]),
        ("AugmFP32", {"gradient_clip": None}, ["-p: gradient_clip: None", "AugmFP32 has 1.0", "variant"]),
        ("BaseFP32", {"weight_decay": 0.1}, ["-p: weight_decay: 0.1", "BaseFP32 has 0.05", "variant"]),
        ("BaseFP32", {"warmup_fraction": 0.1}, ["-p: warmup_fraction: 0.1", "BaseFP32 has 0.0", "variant"]),
        ("BaseFP32", {"label_smoothing": 0.1}, ["-p: label_smoothing: 0.1", "BaseFP32 has 0.0", "variant"]),
        ("BaseFP32", {"gradient_clip": 1.0}, ["-p: gradient_clip: 1.0", "BaseFP32 has null", "variant"]),
        ("BaseFP32", {"experiment": "AugmFP8"}, ["'AugmFP8'", "precision fp32, not fp8", "run BaseFP32", "AugmFP8.yaml"]),
    ],
)  # fmt: skip
def test_factors_that_are_not_the_experiments_are_refused_with_the_way_out(
    experiment: str, values: dict[str, object], parts: list[str]
) -> None:
    layers = [read_layer(TOP / "params" / f"{experiment}.yaml"), Layer("-p", values)]
    with pytest.raises(InputError) as caught:
        validate(layers)
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    changed = validate([*layers, Layer("-p", {"variant": "trial"})])
    assert changed.variant == "trial" and getattr(changed, next(iter(values))) == next(iter(values.values()))


def test_the_command_check_and_the_notebook_refuse_it_alike(project: Path) -> None:
    ran = CliRunner().invoke(main, ["run", "BaseFP32", "BaseFP16", "--preset", "smoke", "-p", "precision", "bf16"])
    assert ran.exit_code == 2 and "run BaseBF16" in ran.stderr and not (project / "executed").exists()
    file = project / "params" / "BaseFP16.yaml"
    file.write_text(file.read_text().replace("precision: fp16", "precision: bf16"))
    checked = CliRunner().invoke(main, ["check", str(file)])
    assert checked.exit_code == 2 and "run BaseBF16" in checked.output
    notebook = json.loads((TOP / "notebooks" / "train.ipynb").read_text())
    cell = next("".join(c["source"]) for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", []))
    with pytest.raises(InputError, match="experiment: 'AugmFP8': the values are not its own .*run BaseFP32, which is that"):
        from_notebook([cell, 'experiment = "AugmFP8"', "from_notebook()"])


def test_a_quantisation_of_another_source_says_so_in_its_variant() -> None:
    layers = [read_layer(TOP / "params" / "FP8Test.yaml"), Layer("-p", {"source_experiment": "BaseFP32"})]
    with pytest.raises(InputError, match="source_experiment: 'BaseFP32': but FP8Test quantises AugmFP16; .*variant: BaseFP32"):
        validate(layers, QuantizeParams)
    assert validate([*layers, Layer("-p", {"variant": "BaseFP32"})], QuantizeParams).source_experiment == "BaseFP32"


@pytest.mark.parametrize("value", [0.5, 0, -1])
def test_a_loss_scale_below_one_is_refused_and_not_called_divergence(value: float) -> None:
    with pytest.raises(InputError, match="loss_scale: .*greater than or equal to 1"):
        validate([read_layer(TOP / "params" / "BaseFP16.yaml"), Layer("-p", {"loss_scale": value})])


# ----------------------------------------------------------------------------------------------------- identity, once


@pytest.mark.parametrize(
    ("precision", "unused"),
    [
        ("fp32", {"fp8_recipe": "mxfp8", "base_precision": "fp32", "loss_scale": 8.0, "loss_scale_interval": 5}),
        ("tf32", {"fp8_recipe": "mxfp8", "base_precision": "fp32", "loss_scale": 8.0, "loss_scale_interval": 5}),
        ("bf16", {"fp8_recipe": "mxfp8", "base_precision": "fp32", "loss_scale": 8.0, "loss_scale_interval": 5}),
        ("fp16", {"fp8_recipe": "mxfp8", "base_precision": "fp32"}),
        ("fp8", {"loss_scale": 8.0, "loss_scale_interval": 5}),
    ],
)
def test_a_knob_that_a_precision_does_not_use_is_no_part_of_its_identity(
    smoke_params: Make, precision: str, unused: dict[str, object]
) -> None:
    plain = smoke_params(precision=precision)
    assert smoke_params(precision=precision, **unused).digest == plain.digest
    used = {"fp8_recipe": "mxfp8", "base_precision": "fp32", "loss_scale": 8.0, "loss_scale_interval": 5}.items() - unused.items()
    for key, value in used:
        assert smoke_params(precision=precision, **{key: value}).digest != plain.digest


def test_one_option_sets_a_recipe_for_fp8_and_leaves_a_finished_fp32_alone(project: Path, smoke_params: Make) -> None:
    def planned(*assignments: tuple[str, str]) -> dict[str, str]:
        runs = plan_batch("smoke", Study(), experiments=["BaseFP32", "BaseFP8"], preset="smoke", assignments=assignments)
        return {run.params.experiment: run.params.digest for run in runs}

    plain, recipe = planned(), planned(("fp8_recipe", "mxfp8"))
    assert plain["BaseFP32"] == recipe["BaseFP32"] and plain["BaseFP8"] != recipe["BaseFP8"]


def test_the_first_rule_gives_the_digests_that_earlier_records_have(smoke_params: Make) -> None:
    for experiment, digest in FIRST_RULE.items():
        params = validate([read_layer(TOP / "params" / f"{experiment}.yaml"), read_layer(SMOKE)])
        assert params.digest_under(1) == digest
    assert smoke_params("BaseFP32").digest != FIRST_RULE["BaseFP32"], "it has no loss scale, and the present rule leaves it out"


def test_a_record_names_its_rule_and_verify_recomputes_the_digest_under_it(smoke_params: Make) -> None:
    params = smoke_params("BaseFP32")
    for rule in range(1, IDENTITY_RULE + 1):
        named = {"identity_rule": rule} if rule > 1 else {}
        record = RunRecord(
            experiment="BaseFP32", variant="", seed=0, question=params.question, expectation=params.expectation,
            parameters=params.model_dump(), parameters_digest=params.digest_under(rule), status="interrupted", **named,
        )  # fmt: skip
        assert list(wrong_digests(record)) == []
        record.parameters_digest = params.digest_under(3 - rule)
        assert any(line.startswith("parameters_digest:") for line in wrong_digests(record))


def test_the_deterministic_digest_is_the_same_under_every_rule(smoke_params: Make) -> None:
    params = smoke_params("BaseFP8")
    old = make_record("BaseFP8", parameters=params.model_dump(), parameters_digest=params.digest_under(1))
    new = make_record("BaseFP8", parameters=params.model_dump(), parameters_digest=params.digest, identity_rule=IDENTITY_RULE)
    assert digest_of(old.deterministic_part()) == digest_of(new.deterministic_part())


def test_whole_numbers_that_javascript_made_of_real_ones_leave_the_identity_as_it_is(smoke_params: Make) -> None:
    params = smoke_params("AugmFP16")
    saved = {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in params.model_dump().items()}
    assert saved["gradient_clip"] == 1 and type(saved["gradient_clip"]) is int
    record = RunRecord(experiment="AugmFP16", parameters=saved)
    for rule in (1, 2):
        assert identity_digest(RunParams, record.parameters, rule) == params.digest_under(rule)


def test_runs_with_equal_identities_make_one_group(tmp_path: Path, smoke_params: Make) -> None:
    folder = tmp_path / "executed" / "trial"
    for seed, changes in enumerate(({}, {"fp8_recipe": "mxfp8", "loss_scale": 8.0}, {"base_precision": "fp32"})):
        values = smoke_params(seed=seed, **changes).model_dump()
        if seed == 2:
            del values["torch_compile"]  # as in records from before it existed
        assert identity_of(RunParams, values) == smoke_params(seed=seed).identity()
        write_notebook(make_record("BaseFP32", seed, parameters=values), folder / f"BaseFP32-s{seed}.ipynb")
    (group,) = load_results(folder).groups
    assert group.n == 3


def test_a_repeat_is_compared_by_the_values_of_its_parameters_whatever_rule_its_record_names(
    tmp_path: Path, smoke_params: Make
) -> None:
    params = smoke_params("BaseFP32")
    old = make_record("BaseFP32", parameters=params.model_dump(), parameters_digest=params.digest_under(1))
    new = make_record("BaseFP32", parameters=params.model_dump(), parameters_digest=params.digest, identity_rule=IDENTITY_RULE)
    longer = smoke_params("BaseFP32", epochs=3)
    other = make_record("BaseFP32", parameters=longer.model_dump(), parameters_digest=longer.digest, identity_rule=IDENTITY_RULE)
    for record in (old, new, other):
        record.deterministic = {"promised": True, "digest": digest_of(record.deterministic_part())}
    path = tmp_path / "BaseFP32-s0.ipynb"
    assert [level for level, _ in _compare(path, old, new, path)] == ["ok"]
    assert ("FAILED", "parameters.epochs: 2, this time 3") in list(_compare(path, old, other, path))
