"""The explorer of formats: its figures, its tables and the notebook, executed by papermill in a real kernel."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import papermill
import pytest
import torch
from torch import nn

from vitfp8.analysis.figures import of_formats as format_figures
from vitfp8.analysis.figures.drawing import Figure
from vitfp8.errors import InputError
from vitfp8.explore import (
    format_errors,
    grid_points,
    images_in_formats,
    layer_tensors,
    logit_errors,
    logits_under,
    recipe_errors,
    train_briefly,
    validation_image,
)
from vitfp8.precision import FORMATS, round_to_format
from vitfp8.precision.recipes import RECIPES

TEMPLATE = Path(__file__).resolve().parents[2] / "notebooks" / "formats.ipynb"
QUICK = {"depth": 1, "embed_dim": 32, "train_steps": 3, "batch_size": 16}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def execute(output: Path, **parameters: Any) -> nbformat.NotebookNode:
    papermill.execute_notebook(str(TEMPLATE), str(output), QUICK | parameters, kernel_name="python3", progress_bar=False)
    notebook = nbformat.read(str(output), as_version=4)
    nbformat.validate(notebook)
    return notebook


def small_model() -> nn.Module:
    import timm

    torch.manual_seed(0)
    sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2, "in_chans": 1, "num_classes": 5}
    return timm.create_model("vit_tiny_patch16_224", **sizes)


@pytest.fixture(scope="module")
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, 1, 8, 8, generator=generator), torch.arange(6) % 5


# ------------------------------------------------------------------------------------------------ the notebook


def test_the_template_is_valid_and_marked_as_no_run() -> None:
    notebook = nbformat.read(str(TEMPLATE), as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.vitfp8.kind == "explorer"


def test_the_notebook_executes_to_all_figures_and_tables(tmp_path: Path) -> None:
    notebook = execute(tmp_path / "out.ipynb", image_index=3, recipe="mxfp8")
    data = {cell["id"]: output["data"] for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output}
    figures = {name for name, shown in data.items() if "image/png" in shown and "application/pdf" in shown}
    assert figures == {"grids", "steps", "magnitudes", "format-errors", "recipe-errors", "image", "outputs"}
    tables = {name for name, shown in data.items() if "text/html" in shown}
    assert tables == {"recipe-table", "outputs-table"}
    assert all(recipe in data["recipe-table"]["text/html"] for recipe in ("delayed", "blockwise", "mxfp8_rceil"))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"layer": "blocks.0.mlp.fc3"}, "layer: 'blocks.0.mlp.fc3': .* did you mean blocks.0.mlp.fc"),
        ({"formats": ["e4m4"]}, "number format 'e4m4' is unknown; did you mean"),
    ],
    ids=["layer", "format"],
)
def test_what_cannot_be_used_is_refused_in_one_line(tmp_path: Path, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(papermill.PapermillExecutionError, match=message) as refused:
        execute(tmp_path / "out.ipynb", **parameters)
    assert refused.value.ename == "InputError"
    assert "\n" not in refused.value.evalue


# ------------------------------------------------------------------------------------------------ what it computes


@pytest.mark.parametrize("name", ["e4m3", "e5m2", "e4m3fnuz", "e5m2fnuz", "fp16", "bf16", "int8"])
def test_a_grid_holds_every_number_of_its_format_and_no_other(name: str) -> None:
    points = grid_points(name)
    row = FORMATS[name]
    assert points[0] == 0 and points[1] == row.smallest_subnormal and points[-1] == row.largest
    assert np.all(np.diff(points) > 0)
    values = torch.from_numpy(points.astype(np.float32))
    assert torch.equal(round_to_format(values, name), values)
    if row.bits == 8 and row.dtype is not None and row.exponent_bits:
        codes = torch.arange(128, dtype=torch.uint8).view(row.dtype).float()
        assert np.array_equal(points, codes[codes.isfinite()].unique().numpy())


def test_a_format_with_too_many_numbers_is_not_listed() -> None:
    with pytest.raises(InputError, match="tf32"):
        grid_points("tf32")


def test_the_tensors_of_a_layer_give_its_output_and_its_weight_gradient(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    model = small_model()
    tensors = layer_tensors(model, "blocks.0.mlp.fc1", *batch)
    loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
    loss.backward()
    exact = model.get_parameter("blocks.0.mlp.fc1.weight").grad
    assert exact is not None
    assert torch.allclose(tensors["gradient"].t() @ tensors["activation"], exact, atol=1e-6)


def test_looking_leaves_the_model_without_gradients_and_hooks(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    model = small_model()
    layer_tensors(model, "blocks.0.attn.qkv", *batch)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.get_submodule("blocks.0.attn.qkv")._forward_hooks


def test_errors_have_the_sqnr_that_is_known_of_normal_data() -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(256, 256, generator=generator) for name in ("activation", "weight", "gradient")}
    found = {(row["format"], row["scaling"]): row["sqnr_db"] for row in format_errors(tensors, ["e4m3", "e5m2", "bf16"])}
    assert found["e4m3", "scaled"] == pytest.approx(31.5, abs=0.3)
    assert found["e5m2", "unscaled"] == pytest.approx(25.6, abs=0.3)
    assert found["bf16", "unscaled"] == pytest.approx(55.6, abs=0.3)


def test_errors_of_recipes_cover_the_products_that_run_in_fp8() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = {"activation": (24, 64), "weight": (48, 64), "gradient": (24, 48)}
    tensors = {name: torch.randn(size, generator=generator) for name, size in sizes.items()}
    rows = recipe_errors(tensors, list(RECIPES), earlier={name: tensor / 4 for name, tensor in tensors.items()})
    by_recipe = {name: [row for row in rows if row["recipe"] == name] for name in RECIPES}
    assert len(by_recipe["tensorwise"]) == 6 and len(by_recipe["rowwise_with_gw_hp"]) == 4
    assert {row["format"] for row in by_recipe["tensorwise"] if row["operand"] == "gradient"} == {"e5m2"}
    assert all(row["saturated"] > 0 for row in by_recipe["delayed"]), "tensors four times as large as the step before"
    assert all(row["saturated"] == 0 for row in by_recipe["mxfp8_rceil"])
    assert any(row["saturated"] > 0 for row in by_recipe["mxfp8_floor"])


def test_an_image_in_a_format_keeps_its_largest_element() -> None:
    image = torch.linspace(-1, 3, 64).view(1, 8, 8)
    for rounded in images_in_formats(image, ["e4m3", "int8"]).values():
        assert rounded.max() == pytest.approx(3.0)


def test_outputs_are_exact_in_fp32_and_leave_the_model_as_it_was(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    model = small_model().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    logits = logits_under(model, batch[0], ["bf16", "tensorwise", "delayed"], calibration=batch[0])
    with torch.no_grad():
        assert torch.allclose(logits["fp32"], model(batch[0]), atol=1e-6), "up to the order of sums in attention"
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    rows = {row["name"]: row for row in logit_errors(logits)}
    assert math.isinf(rows["fp32"]["sqnr_db"]) and rows["bf16"]["sqnr_db"] > rows["tensorwise"]["sqnr_db"] > 10
    assert rows["delayed"]["sqnr_db"] > 10, "its scales come from the calibration"


def test_a_brief_training_lowers_the_loss(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    losses = train_briefly(small_model(), [batch] * 8, 0.005)
    assert len(losses) == 8 and losses[-1] < losses[0]


def test_an_image_beyond_the_last_is_refused(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    image, label = validation_image([batch, batch], 7)
    assert torch.equal(image, batch[0][1]) and label == 1
    for index in (12, -1):
        with pytest.raises(InputError, match="image_index: .* there are 12 images; take 0 to 11"):
            validation_image([batch, batch], index)


# ------------------------------------------------------------------------------------------------ what it draws


def test_figures_take_one_format_empty_tensors_many_classes_and_colour() -> None:
    grid = {"FP8 E4M3": grid_points("e4m3")}
    image = np.random.default_rng(0).normal(size=(8, 8, 3))
    rows = [{"format": "e4m3", "operand": "weight", "sqnr_db": math.nan, "underflow": 0.0, "saturated": 1.0}]
    tensors = {"activation": np.zeros(4), "weight": np.ones(4), "gradient": np.full(4, 1e-30)}
    chances = np.full(100, 0.01)
    drawn = (
        format_figures.number_lines(grid),
        format_figures.relative_steps({"BF16": grid_points("bf16")}),
        format_figures.magnitudes(tensors, {"FP8 E4M3": (2.0**-9, 2.0**-6, 448.0)}),
        format_figures.error_map(rows, by=["format"], across=["operand"]),
        format_figures.image_panels(image, {"same": image}),
        format_figures.class_probabilities([f"class {i}" for i in range(100)], {"fp32": chances, "fp16": chances}),
    )
    assert all(isinstance(figure, Figure) and figure.png().startswith(b"\x89PNG") for figure in drawn)
