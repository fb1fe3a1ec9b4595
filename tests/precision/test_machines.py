"""What each machine multiplies in: machines that are not there are described, and torch's answers are put in its mouth."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.conftest import TOP
from tests.hardware import END, MACHINES, VERIFIED, WHEEL, written
from vitfp8.errors import InputError
from vitfp8.precision import capability
from vitfp8.precision.capability import (
    DEVICE_VARIABLE,
    Machine,
    compiler_for,
    devices_passed_over,
    fp8_products,
    has_kernels,
    has_native_products,
    native_products,
    native_support,
    resolve_device,
    set_tf32,
    this_machine,
)

CPU = torch.device("cpu")

#: Machine → what it multiplies in natively, of FP16, BF16, TF32 and FP8 with a per-tensor scale.
NATIVE = {
    "x86 AVX2": "",
    "x86 AVX-512 BF16": "bf16",
    "x86 AMX (Sapphire Rapids)": "bf16 fp16",
    "Arm Graviton 3": "bf16 fp16",
    "Arm Grace": "bf16 fp16",
    "Apple processor (M2)": "",
    "Apple GPU (macOS 14)": "bf16 fp16",
    "NVIDIA V100": "fp16",
    "NVIDIA T4": "fp16",
    "NVIDIA A100": "bf16 fp16 tf32",
    "NVIDIA L4": "bf16 fp16 tf32 fp8",
    "NVIDIA H100": "bf16 fp16 tf32 fp8",
    "NVIDIA B200": "bf16 fp16 tf32 fp8",
    "AMD MI300": "bf16 fp16",
}

#: What `torch.cpu.get_capabilities` returns on some processors: not only booleans, and other names on Arm than on x86.
_TOLD: Mapping[str, dict[str, Any]] = {
    "x86 AVX2": {"architecture": "x86_64", "cpu_name": "AMD EPYC", "avx2": True, "avx512_bf16": False, "amx_bf16": False},
    "x86 AMX (Sapphire Rapids)": {
        "architecture": "x86_64", "avx512_bf16": True, "avx512_fp16": True, "amx_bf16": True, "amx_fp16": False,
        "l2_cache_size": 2097152,
    },
    "Arm Graviton 3": {
        "architecture": "arm64", "neon": True, "fp16_arith": True, "bf16": True, "sve": True, "sve_bf16": True, "sve2": False,
        "sve_max_length": 32,
    },
    "Arm Grace": {"architecture": "arm64", "fp16_arith": True, "bf16": True, "sve2": True, "sve_bf16": True, "num_sockets": 1},
    "Apple processor (M2)": {"architecture": "arm64", "neon": True, "fp16_arith": True, "bf16": True, "sve": False},
}  # fmt: skip


def speak_as(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Make torch tell of its processor what it would tell on a described machine."""
    machine = MACHINES[name]
    operators = {} if machine.onednn is None else {
        f"_is_mkldnn_{format}_supported": (lambda has: lambda: has)(format in machine.onednn) for format in ("bf16", "fp16")
    }  # fmt: skip
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: _TOLD[name])
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace(**operators))


@pytest.mark.parametrize("name", MACHINES)
def test_what_each_machine_multiplies_in(name: str) -> None:
    machine = MACHINES[name]
    native = [format for format in ("bf16", "fp16", "tf32") if native_products(machine, format)[0]]
    native += ["fp8"] if fp8_products(machine, "tensorwise")[0] else []
    assert native == NATIVE[name].split()
    assert native_products(machine, "fp32")[0] and fp8_products(machine, "mxfp8")[0] is (name == "NVIDIA B200")


@pytest.mark.parametrize("name", _TOLD)
def test_torchs_answers_become_the_facts_of_a_processor(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    speak_as(monkeypatch, name)
    assert [f for f in ("bf16", "fp16") if has_native_products(f, CPU)[0]] == NATIVE[name].split()
    assert this_machine(CPU).onednn == MACHINES[name].onednn


def test_a_torch_without_onednns_operators_multiplies_nothing_natively_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    speak_as(monkeypatch, "Apple processor (M2)")
    assert has_native_products("fp16", CPU) == (
        False, "the processor has FP16 products (fp16_arith), and this PyTorch has no oneDNN to use them"
    )  # fmt: skip
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert has_native_products("bf16", CPU) == (False, "this processor has no BF16 products")


def test_an_instruction_set_that_is_switched_off_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    amx = MACHINES["x86 AMX (Sapphire Rapids)"]
    off = Machine(device="cpu", instructions=amx.instructions, onednn=frozenset(), isa_limit="AVX2")
    assert native_products(off, "bf16") == (False, "BF16 products are switched off in oneDNN (ONEDNN_MAX_CPU_ISA)")
    unused = Machine(device="cpu", instructions=amx.instructions, onednn=frozenset())
    assert native_products(unused, "bf16")[1].endswith("(avx512_bf16, amx_bf16), and oneDNN does not use them")


@pytest.mark.parametrize(
    ("architecture", "bf16"),
    [("gfx900", False), ("gfx906", False), ("gfx908", True), ("gfx90a", True), ("gfx90c", False), ("gfx942", True),
     ("gfx950", True), ("gfx1030", False), ("gfx1100", True), ("gfx1151", True), ("gfx1201", True)],
)  # fmt: skip
def test_amd_gpus_are_asked_by_architecture(architecture: str, bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    properties = SimpleNamespace(gcnArchName=f"{architecture}:sramecc+:xnack-")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))  # AMD's numbers mean nothing to us
    device = torch.device("cuda")
    assert has_native_products("bf16", device) == (bf16, f"{architecture} has {'' if bf16 else 'no '}matrix products in BF16")
    assert has_native_products("fp16", device)[0]
    assert has_native_products("tf32", device) == (False, f"{architecture}: TF32 is asked of NVIDIA's GPUs only")
    assert native_support("tensorwise", device)[0] is False


# ----------------------------------------------------------------------------------------------------------- the device


@pytest.mark.parametrize(
    ("capability", "built", "runs"),
    [((7, 0), WHEEL, False), ((6, 1), WHEEL, False), ((7, 5), WHEEL, True), ((8, 9), WHEEL, True), ((12, 1), WHEEL, True),
     ((9, 0), ("sm_90a",), True), ((9, 1), ("sm_90a",), False), ((13, 0), WHEEL, False), ((13, 0), (*WHEEL, "compute_120"), True),
     ((7, 0), ("compute_75",), False), ((10, 3), ("sm_100f",), True), ((7, 0), (), True)],
)  # fmt: skip
def test_a_gpu_needs_kernels_of_its_major_number_or_ptx(capability: tuple[int, int], built: tuple[str, ...], runs: bool) -> None:
    assert has_kernels(Machine(device="cuda", compute_capability=capability, built_for=built))[0] is runs


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine without GPUs, and without a word on which device to take."""
    monkeypatch.delenv(DEVICE_VARIABLE, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    return monkeypatch


def put_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(WHEEL))


def test_auto_passes_over_a_gpu_that_this_torch_has_no_kernels_for(bare: pytest.MonkeyPatch) -> None:
    put_gpu(bare, (7, 0))
    assert resolve_device("auto").type == "cpu"
    (said,) = devices_passed_over("auto")
    assert said.startswith("device: auto takes cpu, not cuda: compute capability 7.0 is not among those")
    assert devices_passed_over("cpu") == []
    with pytest.raises(InputError, match=r"^device: 'cuda': compute capability 7\.0 .*; there is cpu, or take device: auto$"):
        resolve_device("cuda")
    put_gpu(bare, (8, 9))
    assert resolve_device("auto").type == resolve_device("cuda").type == "cuda" and devices_passed_over("auto") == []


def test_auto_passes_over_an_apple_gpu_that_cannot_hold_a_tensor(bare: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> torch.Tensor:
        raise RuntimeError("MPS backend out of memory (MPS allocated: 0 bytes,\n max allowed: 0 bytes)")

    bare.setattr(torch.backends.mps, "is_available", lambda: True)
    bare.setattr(capability.torch, "zeros", refuse)
    assert resolve_device("auto").type == "cpu"
    (said,) = devices_passed_over("auto")
    assert "not mps: it is announced and cannot hold a tensor (MPS backend out of memory" in said and "\n" not in said
    with pytest.raises(InputError, match="cannot hold a tensor"):
        resolve_device("mps")
    bare.setattr(capability.torch, "zeros", lambda *args, **options: None)
    assert resolve_device("auto").type == "mps"


def test_the_environment_says_what_auto_means(bare: pytest.MonkeyPatch) -> None:
    put_gpu(bare, (9, 0))
    bare.setenv(DEVICE_VARIABLE, "cpu")
    assert resolve_device("auto").type == "cpu" and resolve_device("cuda").type == "cuda" and devices_passed_over("auto") == []
    bare.setenv(DEVICE_VARIABLE, "auto")
    assert resolve_device("auto").type == "cuda"
    bare.setenv(DEVICE_VARIABLE, "gpu")
    with pytest.raises(
        InputError, match=r"^VITFP8_DEVICE: 'gpu' is not a device; set it to cpu, cuda, mps or auto, or unset it$"
    ):
        resolve_device("auto")
    bare.setenv(DEVICE_VARIABLE, "mps")
    with pytest.raises(InputError, match=r"^VITFP8_DEVICE: 'mps': torch finds none on this machine; .*unset VITFP8_DEVICE$"):
        resolve_device("auto")


# ------------------------------------------------------------------------------------------------------------- switches


@pytest.mark.parametrize("on", [True, False])
@pytest.mark.parametrize("before", ["fresh", "the other", "older switches", "generic"])
def test_every_switch_can_be_read_after_tf32_was_set(on: bool, before: str) -> None:
    """Dynamo and Inductor read the older ones, which raise where they contradict the newer."""
    backends: Any = torch.backends
    if before == "the other":
        set_tf32(not on)
    elif before == "older switches":
        backends.cudnn.allow_tf32 = backends.cuda.matmul.allow_tf32 = not on
    elif before == "generic":
        backends.fp32_precision = "ieee" if on else "tf32"
    try:
        switches = set_tf32(on)
        assert backends.cudnn.allow_tf32 is on and backends.cuda.matmul.allow_tf32 is on
        assert torch.get_float32_matmul_precision() == ("high" if on else "highest")
        value = "tf32" if on else "ieee"
        assert {backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision, backends.cudnn.rnn.fp32_precision} == {
            value
        }
        assert {backends.mkldnn.matmul.fp32_precision, backends.mkldnn.conv.fp32_precision} == {"ieee"}
        assert (
            switches["torch.backends.cuda.matmul.fp32_precision"] == switches["torch.backends.cudnn.conv.fp32_precision"] == value
        )
    finally:
        backends.fp32_precision = "none"
        set_tf32(False)


# ------------------------------------------------------------------------------------------------------------- compiler


def test_compiling_needs_what_torch_looks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    there: set[str] = set()
    monkeypatch.setattr(capability.shutil, "which", lambda name: f"/usr/bin/{name}" if name in there else None)
    monkeypatch.setattr(capability.Path, "exists", lambda path: True)
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    assert compiler_for("cpu") == (False, "needs a C++ compiler; install g++ or set CXX")
    there.add("clang++")
    assert not compiler_for(CPU)[0], "Inductor takes clang++ on Linux only where CXX names it"
    monkeypatch.setenv("CXX", "clang++ -stdlib=libc++")
    assert compiler_for(CPU) == (True, "compiles with /usr/bin/clang++")
    monkeypatch.setenv("CXX", "/nowhere/g++")
    there.add("g++")
    assert not compiler_for(CPU)[0]
    assert compiler_for("cuda") == (False, "Triton needs a C compiler; install gcc or set CC")
    there.add("clang")
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: False)
    assert compiler_for("cuda")[1].startswith("Triton is not installed")
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: True)
    assert compiler_for("cuda") == (True, "compiles with /usr/bin/clang") and compiler_for("mps")[0]
    monkeypatch.setattr(capability.Path, "exists", lambda path: False)
    assert compiler_for("cuda") == (
        False,
        f"needs Python's headers, and {sysconfig.get_path('include')} has none; install python3-dev",
    )


# ----------------------------------------------------------------------------------------------------------------- docs


def test_the_page_on_hardware_says_what_the_code_answers() -> None:
    page = (TOP / "docs" / "hardware.md").read_text(encoding="utf-8")
    assert END in page and written(page) == page, "python -m tests.hardware --write docs/hardware.md"
    assert set(VERIFIED) <= set(MACHINES) == set(NATIVE)
