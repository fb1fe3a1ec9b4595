"""What a training asks of a device, read off the operations of an epoch on the meta device, augmentation and health included.

Tensors there have no values, and every path that is chosen because a device is not the processor is taken. So an ordinary machine
can tell whether Apple's GPU has a kernel for everything, and whether CUDA's deterministic mode would refuse something.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchgen
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchgen.gen import parse_native_yaml
from torchgen.model import DispatchKey

from tests.precision.test_no_waiting import META, Reads, a_trainer
from vitfp8.determinism import set_determinism
from vitfp8.precision import layers
from vitfp8.precision.layers import Arithmetic, attention_kernel
from vitfp8.trainer import ViTTrainer

#: Kernels that raise under deterministic algorithms on CUDA (``alertNotDeterministic`` in torch's source), by the operation.
NOT_DETERMINISTIC_ON_CUDA = (
    "_ctc_loss_backward", "_embedding_bag", "adaptive_avg_pool2d_backward", "adaptive_avg_pool3d_backward",
    "adaptive_max_pool2d_backward", "avg_pool3d_backward", "bincount", "cumsum", "fractional_max_pool2d_backward",
    "fractional_max_pool3d_backward", "grid_sampler_2d_backward", "grid_sampler_3d_backward", "histc", "kthvalue",
    "max_pool3d_with_indices_backward",
    "max_unpool2d", "max_unpool3d", "median.dim", "nll_loss2d", "put_", "reflection_pad1d_backward", "reflection_pad2d_backward",
    "reflection_pad3d_backward", "replication_pad1d_backward", "replication_pad2d_backward", "replication_pad3d_backward",
    "upsample_bicubic2d_backward", "upsample_bilinear2d_backward", "upsample_linear1d_backward", "upsample_trilinear3d_backward",
)  # fmt: skip


class Operations(TorchDispatchMode):
    """Notes every operation on the device, and those that give 64-bit floats."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.double: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and note it."""
        result = func(*args, **(kwargs or {}))
        if any(isinstance(leaf, Tensor) and leaf.device == META for leaf in tree_leaves((args, kwargs, result))):
            self.seen.add(str(func).removeprefix("aten."))
            if any(isinstance(leaf, Tensor) and leaf.dtype == torch.float64 for leaf in tree_leaves(result)):
                self.double.add(str(func))
        return result


@pytest.fixture(scope="module")
def operations() -> dict[str, Operations]:
    """Precision → the operations of an epoch, from the first batch to the row in the history."""
    found = {}
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(ViTTrainer, "_look_at_losses", lambda self, first: None)
        for precision, augmentation in (("fp32", "basic"), ("bf16", "extended"), ("fp16", "extended"), ("fp8", "extended")):
            trainer = a_trainer(precision, augmentation, monkeypatch, batch_size=400, health_every=1)
            found[precision] = Operations()
            with Reads(), found[precision]:
                trainer.train_epoch()
                trainer._close_epoch()
    return found


def test_apples_gpu_has_a_kernel_for_every_operation(operations: dict[str, Operations]) -> None:
    place = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native"
    table = parse_native_yaml(str(place / "native_functions.yaml"), str(place / "tags.yaml"))
    on_mps = table.backend_indices[DispatchKey.MPS]
    functions = {f"{f.func.name.name}.{f.func.name.overload_name or 'default'}": f for f in table.native_functions}

    def has_kernel(name: str) -> bool:
        function = functions[name]
        delegate = function.structured_delegate
        if delegate is not None:
            return on_mps.has_kernel(functions[f"{delegate.name}.{delegate.overload_name or 'default'}"])
        return function.has_composite_kernel or on_mps.has_kernel(function)

    seen = set().union(*(each.seen for each in operations.values()))
    assert len(seen) > 90
    assert [name for name in sorted(seen) if not has_kernel(name)] == []
    assert not has_kernel("_scaled_mm.default"), "a table in which everything has a kernel shows nothing"


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp8", "fp16"])
def test_nothing_is_64_bits_wide_on_a_device(operations: dict[str, Operations], precision: str) -> None:
    # torch's loss scaler inverts its scale in 64 bits, on Apple's GPU in 32
    scalers = {"aten._to_copy.default", "aten.reciprocal.default"} if precision == "fp16" else set()
    assert operations[precision].double == scalers


def test_no_operation_would_be_refused_by_deterministic_cuda(operations: dict[str, Operations]) -> None:
    seen = set().union(*(each.seen for each in operations.values()))
    refused = [name for name in seen if name.removesuffix(".default") in NOT_DETERMINISTIC_ON_CUDA]
    assert refused == []


@pytest.mark.parametrize(
    ("device", "deterministic", "mode"),
    [("cpu", True, 2), ("cuda", True, 2), ("mps", True, 1), ("cuda", False, 0)],
    ids=lambda value: str(value),
)
def test_what_cannot_repeat_raises_on_cuda(smoke_params: Any, device: str, deterministic: bool, mode: int) -> None:
    try:
        said = set_determinism(smoke_params(deterministic=deterministic), torch.device(device))
        assert torch.get_deterministic_debug_mode() == mode
        assert said["promised"] is (device == "cpu" and deterministic)
        # filling each new tensor first costs a launch, and decides nothing where nobody reads what was not written
        assert torch.utils.deterministic.fill_uninitialized_memory is False
    finally:
        set_determinism(smoke_params(), torch.device("cpu"))


def test_the_record_names_what_computes_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = a_trainer("bf16", "basic", monkeypatch)
    native = Arithmetic(format="bf16", dtype=torch.bfloat16, on_grid=False, low_results=True)
    asked = []

    def choose(query: Tensor, key: Tensor, value: Tensor) -> int:
        asked.append((query.shape, query.dtype, query.requires_grad))
        return 1

    monkeypatch.setattr(torch, "_fused_sdp_choice", choose)
    zeros = torch.zeros
    monkeypatch.setattr(layers.torch, "zeros", lambda shape, **options: zeros(shape, **{**options, "device": META}))
    assert attention_kernel(trainer.model, native, torch.device("cuda")) == "flash_attention"
    assert asked == [((1, 2, 16, 32), torch.bfloat16, True)]
    assert attention_kernel(trainer.model, native, torch.device("cpu")) == "written out"
    assert attention_kernel(torch.nn.Linear(2, 2), native, torch.device("cuda")) is None
    with_grid = SimpleNamespace(writes_attention_out=lambda device, dropout: True)
    assert attention_kernel(trainer.model, with_grid, torch.device("cuda")) == "written out"  # type: ignore[arg-type]
