"""Each number of a training run at its bounds: what is still accepted, and what is refused by name."""

from __future__ import annotations

import pytest

from tests.conftest import TOP
from vitfp8.errors import InputError
from vitfp8.params import Layer, RunParams, read_layer, validate

SMALL, WHOLE = 1e-9, 2**31 - 1

#: Field → accepted at both ends, and refused just beyond.
BOUNDS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "seed": ((0, WHOLE), (-1, WHOLE + 1)),
    "validation_fraction": ((SMALL, 0.5 - SMALL), (0, 0.5)),
    "workers": ((0, 256), (-1, 257)),
    "image_size": ((4, 2048), (3, 2049)),
    "patch_size": ((1, 512), (0, 513)),
    "embed_dim": ((1, 16384), (0, 16385)),
    "depth": ((1, 256), (0, 257)),
    "num_heads": ((1, 256), (0, 257)),
    "epochs": ((1, 100_000), (0, 100_001)),
    "batch_size": ((1, 1_000_000), (0, 1_000_001)),
    "micro_batch_size": ((1, 1_000_000), (0, WHOLE + 1)),
    "learning_rate": ((SMALL, 100), (0, 100 + SMALL)),
    "weight_decay": ((0, 100), (-SMALL, 100 + SMALL)),
    "warmup_fraction": ((0, 1), (-SMALL, 1 + SMALL)),
    "label_smoothing": ((0, 1 - SMALL), (-SMALL, 1)),
    "gradient_clip": ((SMALL, 1e300), (0,)),
    "loss_scale": ((1, 2.0**40), (1 - SMALL, 2.0**40 + 1)),
    "loss_scale_interval": ((1, WHOLE), (0, WHOLE + 1)),
    "threads": ((1, 4096), (0, 4097)),
    "checkpoint_every": ((1, WHOLE), (0, WHOLE + 1)),
    "checkpoint_minutes": ((SMALL, 1440), (0, 1440 + SMALL)),
    "health_every": ((0, WHOLE), (-1, WHOLE + 1)),
    "monitor_interval": ((0.1, 3600), (0.1 - SMALL, 3600 + SMALL)),
}

#: What else has to be so that nothing but the bound speaks.
BESIDE: dict[str, dict[str, object]] = {
    "workers": {"dataset": "imagefolder", "data_dir": "pictures"},
    "image_size": {"patch_size": None},
    "patch_size": {"image_size": 512},
    "embed_dim": {"num_heads": None},
    "num_heads": {"embed_dim": None},
    "batch_size": {"micro_batch_size": None},
    "micro_batch_size": {"batch_size": 1_000_000},
}


def params_with(name: str, value: float) -> RunParams:
    changes = {"variant": "trial", **BESIDE.get(name, {}), name: value}
    return validate([read_layer(TOP / "params" / "BaseFP32.yaml"), Layer("the test", changes)])


def test_every_number_is_tried_at_its_bounds() -> None:
    fields = {name: str(told) for name, told in RunParams.model_json_schema(mode="serialization")["properties"].items()}
    assert {*BOUNDS} == {name for name, told in fields.items() if "'integer'" in told or "'number'" in told} - {"in_channels"}


@pytest.mark.parametrize("name", BOUNDS)
def test_numbers_are_accepted_up_to_their_bounds_and_refused_beyond(name: str) -> None:
    accepted, refused = BOUNDS[name]
    for value in accepted:
        assert getattr(params_with(name, value), name) == value
    for value in refused:
        with pytest.raises(InputError, match=rf"{name}: .*(greater|less) than"):
            params_with(name, value)


def test_a_number_beyond_all_sense_is_told_by_its_size() -> None:
    with pytest.raises(InputError, match=r"epochs: a whole number of 997 bits"):
        params_with("epochs", 10**300)
