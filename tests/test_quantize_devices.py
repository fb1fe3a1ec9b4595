"""Quantisation after training on a device without FP8 types, as Apple's GPU is; exported files keep their bits."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vitfp8.ptq import Scheme, load_quantized, quantize_weight, quantized, save_quantized

#: SHA-256 over the tensors of an exported file, its beginning, from when codes were kept in 8-bit types on the device.
DIGESTS = {
    ("e4m3", "tensor"): "6e03ec3f1f41d764",
    ("e4m3", "channel"): "032f45d2e63f15c6",
    ("e4m3", "mx"): "60942bdefe2e6468",
    ("e5m2", "tensor"): "138ce1a3dba637b6",
    ("e5m2", "channel"): "f4e7e349b0db37d8",
    ("e5m2", "mx"): "a6aa2d0f4108abc6",
    ("int8", "tensor"): "bc3a9e71d38b472f",
    ("int8", "channel"): "310d93c7eaae5a5b",
    ("int8", "mx"): "8b50b704c6a476e7",
}


class Blocks(nn.Module):
    """A model whose weights are the same on every machine, to the bit."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList([nn.Linear(40, 6)]), nn.Linear(6, 2)
        with torch.no_grad():
            for parameter in self.parameters():
                numbers = torch.arange(parameter.numel(), dtype=torch.float32)
                parameter.copy_((((numbers * 37) % 101 - 50) / 64).reshape(parameter.shape))


class NoFP8Types(TorchDispatchMode):
    """Every device but the processor refuses FP8 types, in the words of Apple's."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if (
                isinstance(tensor, Tensor)
                and tensor.device.type != "cpu"
                and tensor.dtype.itemsize == 1
                and tensor.is_floating_point()
            ):
                raise TypeError(
                    f"Trying to convert {tensor.dtype} to the MPS backend but it does not have support for that dtype."
                )
        return out


def exported(path: Path, format: str, granularity: str) -> None:
    """A quantised model in a file."""
    model, scheme = Blocks(), Scheme(format=format, granularity=granularity, operands="weights")
    with quantized(model, scheme, {}) as weights:
        pass
    save_quantized(path, model, weights, scheme, {}, {})


@pytest.mark.parametrize(("format", "granularity"), DIGESTS)
def test_exported_files_hold_the_bits_that_they_always_held(tmp_path: Path, format: str, granularity: str) -> None:
    exported(tmp_path / "x", format, granularity)
    digest = hashlib.sha256()
    with safe_open(tmp_path / "x", framework="pt") as file:
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name)
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    assert digest.hexdigest()[:16] == DIGESTS[format, granularity]


@pytest.mark.parametrize("format", ["e4m3", "e5m2"])
def test_a_device_without_fp8_types_quantises_and_loads_what_was_exported(tmp_path: Path, format: str) -> None:
    """The meta device stands for Apple's GPU: what is created there has a type and no values."""
    exported(tmp_path / "x", format, "channel")
    model = Blocks().to("meta")
    with NoFP8Types():
        scheme = Scheme(format=format, granularity="channel", operands="weights")
        assert quantize_weight(model.blocks[0].weight, scheme).dequantized().device.type == "meta"
        with quantized(model, scheme, {}) as weights:
            assert weights["blocks.0"].codes.dtype == torch.float32
        loaded = load_quantized(tmp_path / "x", model)[1]["blocks.0"]
        assert (loaded.codes.device.type, loaded.codes.dtype) == ("meta", torch.float32)
        with pytest.raises(TypeError, match="MPS backend"):
            model.head.weight.to(torch.float8_e4m3fn)
