"""Rounding in one pass, and what is known to be on the grid: both decide no bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vitfp8.model import create_model
from vitfp8.params import Layer, read_layer, validate
from vitfp8.precision import attention, prepare, rounding
from vitfp8.precision import grid as emulated
from vitfp8.precision.grid import Grid
from vitfp8.run.locate import parameter_file

FORMATS = {"fp16": torch.float16, "bf16": torch.bfloat16}
needs_compiler = pytest.mark.skipif(rounding.load() is None, reason="no compiler, so no compiled rounding")


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two FP32 tensors have the same bits; every NaN counts as the same."""
    return bool(((a.view(torch.int32) == b.view(torch.int32)) | (a.isnan() & b.isnan())).all())


@needs_compiler
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("in_place", [False, True])
def test_the_compiled_rounding_has_the_bits_of_a_cast_there_and_back(format: str, in_place: bool) -> None:
    routine, dtype = rounding.load(), FORMATS[format]
    assert routine is not None
    patterns = torch.arange(-(2**31), 2**31, 4093, dtype=torch.int64)  # over a million floats of every exponent, both signs
    halves = torch.arange(2**16, dtype=torch.int64).to(torch.int16).view(torch.float16).float().view(torch.int32).long()
    near_ties = (halves[:, None] + torch.tensor([0, 0xFFF, 0x1000, 0x1001])).flatten()
    for bits in (patterns, near_ties):
        x = bits.to(torch.int32).view(torch.float32)
        wanted = x.to(dtype).float()
        assert same_bits(routine.round(x.clone(), dtype, in_place=in_place), wanted)


def gradients(precision: str) -> list[Tensor]:
    """Loss and gradients of one step of a small model in an emulated precision."""
    sizes = {"image_size": 16, "patch_size": 4, "embed_dim": 64, "depth": 2, "num_heads": 2}
    params = validate([read_layer(parameter_file("AugmFP16")), Layer("test", sizes)])
    torch.manual_seed(0)
    model = create_model(params, 10).train()
    prepared = prepare(model, precision, device=torch.device("cpu"), backend="emulated")
    loss = F.cross_entropy(model(torch.randn(16, 3, 16, 16)).float(), torch.arange(16) % 10)
    prepared.backward(loss)
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@contextmanager
def rounding_everything(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two conversions for every operand, whether it is on the grid already or not."""
    with monkeypatch.context() as patch:
        patch.setattr(emulated, "_routine", lambda _x: None)
        patch.setattr(Grid, "holds", lambda _self, _x: False)
        yield


@pytest.mark.parametrize("precision", ["fp16", "bf16", "tf32"])
def test_what_is_not_rounded_again_was_on_the_grid(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = gradients(precision)
    with rounding_everything(monkeypatch):
        slow = gradients(precision)
    assert len(fast) > 20 and all(same_bits(a, b) for a, b in zip(fast, slow, strict=True))


def test_results_are_known_to_be_on_the_grid_forward_and_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    rounded: list[bool] = []
    plain = Grid.operand

    def watch(self: Grid, x: Tensor) -> Tensor:
        if not self.holds(x) and x.ndim == 3:  # activations and their gradients
            rounded.append(torch.equal(x.to(torch.float16).float(), x))
        return plain(self, x)

    monkeypatch.setattr(Grid, "operand", watch)
    gradients("fp16")
    assert rounded and not any(rounded), "an operand was rounded that was on the grid already"


@pytest.mark.parametrize("format", ["fp16", "bf16", "tf32"])
def test_attention_of_packed_heads_has_the_bits_of_attention(format: str) -> None:
    grid = Grid(format, low_results=format != "tf32")
    packed = torch.randn(4, 17, 3 * 64, generator=torch.Generator().manual_seed(0))
    results = []
    for whole in (True, False):
        qkv = packed.clone().requires_grad_()
        if whole:
            y = attention.packed_attention(qkv, 2, 0.3, grid)
        else:
            query, key, value = qkv.reshape(4, 17, 3, 2, 32).permute(2, 0, 3, 1, 4).unbind(0)
            y = attention.attention(query, key, value, 0.3, grid).transpose(1, 2).reshape(4, 17, 64)
        (y * torch.linspace(-1, 1, 64)).sum().backward()
        assert qkv.grad is not None
        results.append((y.detach(), qkv.grad))
    assert same_bits(results[0][0], results[1][0]) and same_bits(results[0][1], results[1][1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_native_attention_has_the_bits_of_what_autograd_makes_of_its_formula(dtype: torch.dtype) -> None:
    packed = torch.randn(4, 17, 3 * 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    results = []
    for whole in (True, False):
        qkv = packed.clone().requires_grad_()
        if whole:
            y = attention.packed_attention(qkv, 2, 0.3, attention.Native(dtype))
        else:
            query, key, value = qkv.reshape(4, 17, 3, 2, 32).permute(2, 0, 3, 1, 4).unbind(0)
            scores = (query * 0.3) @ key.transpose(-2, -1)
            y = (scores.float().softmax(dim=-1).to(dtype) @ value).transpose(1, 2).reshape(4, 17, 64)
        assert y.dtype == dtype
        (y * torch.linspace(-1, 1, 64).to(dtype)).sum().backward()
        assert qkv.grad is not None and qkv.grad.dtype == dtype
        results.append((y.detach(), qkv.grad))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


def test_a_tensor_that_was_written_into_is_not_taken_to_be_on_the_grid() -> None:
    grid = Grid("fp16", low_results=True)
    x = grid.result(torch.randn(3, 3))
    assert grid.holds(x) and grid.operand(x) is x
    x.add_(1e-5)
    assert not grid.holds(x) and not Grid("bf16", low_results=True).holds(grid.result(torch.randn(3)))
    assert torch.equal(grid.operand(x), x.half().float())


def test_a_prepared_model_predicts_in_inference_mode() -> None:
    grid = Grid("fp16", low_results=True)
    with torch.inference_mode():
        y = emulated.linear(torch.randn(2, 3, 4), torch.randn(5, 4), None, grid)
    assert torch.equal(y, y.half().float())
