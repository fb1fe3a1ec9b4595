"""Trained weights that no reader gets to, or that no model could take: one line each."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from vitfp8.errors import InputError
from vitfp8.experiment import check_experiment
from vitfp8.model import create_model
from vitfp8.params import RunParams
from vitfp8.precision import prepare
from vitfp8.pretrained import find_weights, read_weights

Make = Callable[..., RunParams]


def refusal(make: Make, file: Path) -> str:
    """The line that refuses an experiment which starts from a file."""
    with pytest.raises(InputError) as refused:
        check_experiment(make(pretrained=True, pretrained_file=str(file)))
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_file_that_may_not_be_read_is_refused_on_one_line(
    smoke_params: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "closed.pth"
    torch.save(create_model(smoke_params(), 10).state_dict(), file)
    opened, looked_at = Path.open, Path.is_file

    def denied(path: Path) -> None:
        if path == file:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    def open_denied(path: Path, *args: Any, **options: Any) -> Any:
        denied(path)
        return opened(path, *args, **options)

    def is_file_denied(path: Path, **options: Any) -> bool:
        denied(path)
        return looked_at(path, **options)

    # root may read everything, so the refusal of the system is put in its place
    for name, closed in (("open", open_denied), ("is_file", is_file_denied)):
        with monkeypatch.context() as patched:
            patched.setattr(Path, name, closed)
            line = refusal(smoke_params, file)
        assert "closed.pth" in line and "cannot be read (Permission denied)" in line


def test_a_name_that_is_too_long_is_refused_on_one_line(smoke_params: Make, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be read \(File name too long\)"):
        find_weights(smoke_params().model, str(tmp_path / ("x" * 300)))


def test_files_that_torch_reads_and_no_model_can_take_are_refused_on_one_line(smoke_params: Make, tmp_path: Path) -> None:
    itself: dict[str, Any] = {}
    itself["model"] = itself
    held = {
        "itself.pth": (itself, "dictionaries in one another"),
        "sparse.pth": ({"w": torch.eye(3).to_sparse()}, "w is sparse, quantized or without values"),
        "meta.pth": ({"w": torch.zeros(3, device="meta")}, "w is sparse, quantized or without values"),
        "mixed.pth": ({"w": torch.zeros(3), "epoch": 3}, "holds no weights: a dictionary of w, epoch"),
        "module.pth": (torch.nn.Linear(2, 2), "is code; only tensors are loaded"),
    }
    for name, (value, words) in held.items():
        torch.save(value, tmp_path / name)
        line = refusal(smoke_params, tmp_path / name)
        assert name in line and words in line


def test_the_usual_depth_of_wrappers_is_opened(tmp_path: Path) -> None:
    torch.save({"model": {"state_dict": {"model": {"w": torch.ones(1)}}}}, tmp_path / "w.pth")
    tensors, unwrapped = read_weights(tmp_path / "w.pth", "w.pth")
    assert list(tensors) == ["w"] and unwrapped == ["model", "state_dict", "model"]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "fp8"])
def test_a_precision_draws_no_numbers_and_leaves_the_weights(precision: str) -> None:
    torch.manual_seed(1)
    model = timm.create_model("test_vit3", img_size=32, num_classes=10)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    drawn = torch.get_rng_state()
    prepare(model, precision, device=torch.device("cpu"), rows=16)
    assert list(before) == list(model.state_dict())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)
