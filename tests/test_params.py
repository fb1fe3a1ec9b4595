"""Parameters: complete files, refusals on one line, identities."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitfp8.catalog import EXPERIMENTS, TRAININGS
from vitfp8.errors import InputError
from vitfp8.params import Layer, RunParams, field_notes, from_notebook, merge, parse_assignment, parse_layer, read_layer, validate

TOP = Path(__file__).resolve().parent.parent
CORE = [name for name, row in EXPERIMENTS.items() if row.core]
BASE = TOP / "params" / "BaseFP32.yaml"
PRESETS = sorted((TOP / "params" / "presets").glob("*.yaml"))


def refusal(**values: object) -> str:
    """The line with which BaseFP32 plus these values is refused."""
    with pytest.raises(InputError) as caught:
        validate([read_layer(BASE), Layer("over.yaml", values, dict.fromkeys(values, 7))])
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize("name", sorted(TRAININGS))
def test_each_experiment_has_a_complete_valid_parameter_file(name: str) -> None:
    layer = read_layer(TOP / "params" / f"{name}.yaml")
    assert set(layer.values) == set(RunParams.model_fields)
    params = validate([layer])
    assert (params.experiment, params.precision) == (name, EXPERIMENTS[name].precision)
    assert params.augmentation == EXPERIMENTS[name].augmentation


def test_the_four_files_hold_the_values_of_the_papers_study() -> None:
    for name in CORE:
        params = validate([read_layer(TOP / "params" / f"{name}.yaml")])
        augm = name.startswith("Augm")
        assert (params.model, params.dataset, params.image_size, params.pretrained) == (
            "vit_tiny_patch16_224",
            "cifar10",
            224,
            False,
        )
        assert (params.batch_size, params.epochs, params.learning_rate, params.checkpoint_every) == (128, 50, 1e-3, 10)
        assert params.augmentation == ("extended" if augm else "basic")
        assert params.weight_decay == (0.1 if augm else 0.05)
        assert params.label_smoothing == (0.1 if augm else 0.0)
        assert params.gradient_clip == (1.0 if augm else None)
        assert params.warmup_fraction == (0.1 if augm else 0.0)
        assert params.precision == name[-4:].lower()


def test_the_four_files_differ_only_in_the_factors_they_are_meant_to_differ_in() -> None:
    files = {name: validate([read_layer(TOP / "params" / f"{name}.yaml")]).identity() for name in CORE}
    bundle = {"augmentation", "weight_decay", "label_smoothing", "gradient_clip", "warmup_fraction"}

    def differing(one: str, two: str) -> set[str]:
        return {key for key in files[one] if files[one][key] != files[two][key]} - {"experiment"}

    assert differing("BaseFP32", "BaseFP16") == {"precision"}
    assert differing("AugmFP32", "AugmFP16") == {"precision"}
    assert differing("BaseFP32", "AugmFP32") == bundle
    assert differing("BaseFP16", "AugmFP16") == bundle


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_a_preset_leaves_the_compared_factors_alone(preset: Path) -> None:
    layer = read_layer(preset)
    factors = {"augmentation", "weight_decay", "label_smoothing", "gradient_clip", "warmup_fraction", "precision", "seed"}
    assert not factors & set(layer.values)
    for name in CORE:
        validate([read_layer(TOP / "params" / f"{name}.yaml"), layer])


def test_the_notebooks_parameters_are_the_fields_and_its_defaults_the_smoke_preset() -> None:
    notebook = nbformat.read(TOP / "notebooks" / "train.ipynb", as_version=4)
    cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    values: dict[str, object] = {}
    exec(cell.source, {}, values)  # the project's own template
    assert list(values) == list(RunParams.model_fields)
    expected = validate([read_layer(BASE), read_layer(TOP / "params" / "presets" / "smoke.yaml")])
    assert validate([Layer("the notebook", values)]).identity() == expected.identity()


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"learning_ratee": 0.1}, ["over.yaml:7", "learning_ratee", "did you mean learning_rate?"]),
        ({"epochs": "many"}, ["over.yaml:7", "epochs", "'many'"]),
        ({"epochs": 2.5}, ["epochs", "2.5"]),
        ({"epochs": True}, ["epochs", "whole number"]),
        ({"learning_rate": -0.1}, ["learning_rate", "-0.1", "greater than 0"]),
        ({"learning_rate": float("nan")}, ["learning_rate", "nan"]),
        ({"learning_rate": [1, 2]}, ["learning_rate", "[1, 2]"]),
        ({"warmup_fraction": 1.5}, ["warmup_fraction", "1.5", "less than or equal to 1"]),
        ({"dataset": "cifar11"}, ["dataset", "cifar11", "did you mean cifar10?"]),
        ({"precision": "fp7"}, ["precision", "fp7", "did you mean fp8?"]),
        ({"experiment": "BaseFP23"}, ["experiment", "BaseFP23", "did you mean BaseFP32?"]),
        ({"image_size": 30, "patch_size": 4}, ["image_size", "30", "not divisible by patch_size 4", "try image_size 28"]),
        ({"batch_size": 100, "micro_batch_size": 33}, ["micro_batch_size", "33", "100"]),
        ({"pretrained_file": "w.safetensors"}, ["pretrained_file", "pretrained: true"]),
        ({"device": "tpu"}, ["device", "tpu", "cpu"]),
        ({"deterministic": "yes"}, ["deterministic", "'yes'"]),
        ({"embed_dim": 64, "num_heads": 3}, ["embed_dim", "num_heads 3"]),
        ({"variant": "../../etc"}, ["variant"]),
        ({"seed": -1}, ["seed", "-1"]),
        ({"dataset": "cifar10", "in_channels": 1}, ["in_channels", "cifar10"]),
    ],
)
def test_a_refusal_names_file_key_value_and_a_way_out(values: dict[str, object], parts: list[str]) -> None:
    line = refusal(**values)
    for part in parts:
        assert part in line, line


def test_an_incomplete_file_is_refused_by_the_names_it_lacks() -> None:
    with pytest.raises(InputError, match="does not state .*weight_decay"):
        layer = read_layer(BASE)
        validate([Layer(layer.source, {k: v for k, v in layer.values.items() if k != "weight_decay"})])


@pytest.mark.parametrize("text", ["1e-3", "1.0e-3", "0.001", "1E-3", "'1e-3'", "1.e-3"])
def test_numbers_are_numbers_from_files_and_from_options_alike(text: str) -> None:
    from_file = parse_layer(f"learning_rate: {text}", "f.yaml")
    from_option = Layer("-p", dict([parse_assignment("learning_rate", text)]))
    for layer in (from_file, from_option):
        assert validate([read_layer(BASE), layer]).learning_rate == 1e-3


@pytest.mark.parametrize(
    ("given_name", "name"),
    [
        ("32-true", "fp32"),
        ("16-mixed", "fp16"),
        ("bf16-mixed", "bf16"),
        (32, "fp32"),
        (16, "fp16"),
        ("16", "fp16"),
        ("FP16", "fp16"),
        ("float16", "fp16"),
    ],
)
def test_precision_names_of_other_programs_are_understood(given_name: object, name: str) -> None:
    assert validate([read_layer(BASE), Layer("x", {"variant": "trial", "precision": given_name})]).precision == name


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "is empty"),
        ("# only a comment\n", "is empty"),
        ("- a\n- b\n", "is not a mapping"),
        ("just words", "is not a mapping"),
        ("a: [1, 2", "is not YAML"),
        ("a: 1\na: 2\n", "is stated twice (first in line 1)"),
        ("a: {b: 1}\n", "nested"),
        ("a: !!python/object/apply:os.system ['true']\n", ""),
        ("a: !!python/name:os.system\n", "not a plain value"),
        ("? [a, b]\n: 1\n", "plain word"),
        ("a: \x00\n", "is not YAML"),
        ("[" * 5000, "is not YAML"),
        ("a: 1\n---\nb: 2\n", "is not YAML"),
    ],
)
def test_unreadable_yaml_is_one_line_that_names_the_file(text: str, part: str) -> None:
    with pytest.raises(InputError) as caught:
        validate([parse_layer(text, "bad.yaml")])
    line = str(caught.value)
    assert line.startswith("bad.yaml") and part in line and "\n" not in line


def test_missing_binary_and_unreadable_files_are_named(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x80")
    for path, part in ((tmp_path / "none.yaml", "no such file"), (binary, "UTF-8"), (tmp_path, "folder")):
        with pytest.raises(InputError, match=part):
            read_layer(path)


def test_identity_ignores_what_decides_no_numbers_and_fields_with_their_neutral_value() -> None:
    one = validate([read_layer(BASE)])
    two = validate([read_layer(BASE), Layer("x", {"data_dir": "/d", "run_folder": "r", "download": False, "question": "?"})])
    assert one.digest == two.digest
    assert one.digest != validate([read_layer(BASE), Layer("x", {"seed": 1})]).digest
    assert {"data_dir", "run_folder", "workers", "question", "expectation"}.isdisjoint(one.identity())
    for name, about in field_notes(RunParams).items():
        if about.neutral is not ...:
            assert name not in one.identity()


def test_values_are_compared_not_spellings() -> None:
    spelled = Layer("x", {"learning_rate": "1e-3", "epochs": 50.0, "precision": "32-true"})
    assert validate([read_layer(BASE), spelled]).digest == validate([read_layer(BASE)]).digest


def cells(*later: str) -> list[str]:
    """Executed cells of the train notebook: its parameters cell, then others."""
    notebook = json.loads((TOP / "notebooks" / "train.ipynb").read_text())
    return ["".join(notebook["cells"][1]["source"]), *later, "from_notebook()"]


def test_the_notebook_finds_a_misspelt_injected_name() -> None:
    with pytest.raises(InputError, match="injected parameters: unknown parameter 'epoch'; did you mean epochs"):
        from_notebook(cells("# Parameters\nepoch = 3\n"))


def test_the_notebook_names_what_it_took_from_defaults() -> None:
    found = from_notebook(cells('# Parameters\nepochs = 3\nlearning_rate = "1e-3"\n'))
    assert (found.params.epochs, found.params.learning_rate) == (3, 1e-3)
    assert set(found.injected) == {"epochs", "learning_rate"}
    assert "seed" in found.defaults_taken and "epochs" not in found.defaults_taken


def test_the_notebook_run_as_it_is_takes_its_defaults_without_a_word() -> None:
    found = from_notebook(cells())
    assert (found.injected, found.defaults_taken, found.params.epochs) == ((), (), 2)


@given(
    st.dictionaries(
        st.sampled_from([*RunParams.model_fields, "nonsense", ""]),
        st.one_of(
            st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.lists(st.integers(), max_size=2)
        ),
        max_size=4,
    )
)
@settings(max_examples=300, deadline=None)
def test_any_values_are_accepted_or_refused_on_one_line(values: dict[str, object]) -> None:
    layers = [read_layer(BASE), Layer("mutant.yaml", values)]
    try:
        params = validate(layers)
    except InputError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert set(merge(layers)) == set(params.model_dump())


@given(st.text(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_text_is_read_or_refused_on_one_line(text: str) -> None:
    try:
        parse_layer(text, "mutant.yaml")
    except InputError as error:
        assert len(str(error).splitlines()) == 1
