"""Machines as torch describes them, and the tables of docs/hardware.md: what the code answers for each.

    python -m tests.hardware [--write docs/hardware.md]

The facts are those that torch 2.14's wheels would tell, from their source, their binaries and the makers' data sheets. Most of
these machines were never at hand: `VERIFIED` names those that were.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from vitfp8.catalog import FP8_RECIPES, PRECISIONS
from vitfp8.precision.capability import Machine, fp8_products, has_kernels, native_products
from vitfp8.precision.recipes import recipe_named

#: What PyTorch's wheels of 2.14 for CUDA 13 have kernels for, on x86.
WHEEL = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")

_AVX2 = frozenset({"avx", "avx2", "f16c", "fma3"})
_AVX512 = _AVX2 | {"avx512_f", "avx512_bw", "avx512_dq", "avx512_vl", "avx512_vnni", "avx512_bf16"}
_AMX = _AVX512 | {"avx512_fp16", "amx_tile", "amx_bf16", "amx_int8"}
_ARM = frozenset({"neon", "fp16_arith", "bf16", "i8mm", "dot", "fhm", "atomics"})
_BOTH = frozenset({"bf16", "fp16"})


def _nvidia(major: int, minor: int) -> Machine:
    return Machine(device="cuda", compute_capability=(major, minor), built_for=WHEEL)


#: Machine → its facts. Under Linux on Arm, oneDNN says that it takes FP16 on any processor; wheels for macOS have no oneDNN.
MACHINES: Mapping[str, Machine] = {
    "x86 AVX2": Machine(device="cpu", instructions=_AVX2, onednn=frozenset()),
    "x86 AVX-512 BF16": Machine(device="cpu", instructions=_AVX512, onednn=frozenset({"bf16"})),
    "x86 AMX (Sapphire Rapids)": Machine(device="cpu", instructions=_AMX, onednn=_BOTH),
    "Arm Graviton 3": Machine(device="cpu", instructions=_ARM | {"sve", "sve_bf16"}, onednn=_BOTH),
    "Arm Grace": Machine(device="cpu", instructions=_ARM | {"sve", "sve2", "sve_bf16"}, onednn=_BOTH),
    "Apple processor (M2)": Machine(device="cpu", instructions=_ARM, onednn=None),
    "Apple GPU (macOS 14)": Machine(device="mps", macos14=True),
    "NVIDIA V100": _nvidia(7, 0),
    "NVIDIA T4": _nvidia(7, 5),
    "NVIDIA A100": _nvidia(8, 0),
    "NVIDIA L4": _nvidia(8, 9),
    "NVIDIA H100": _nvidia(9, 0),
    "NVIDIA B200": _nvidia(10, 0),
    "AMD MI300": Machine(device="cuda", amd="gfx942"),
}

#: Machine → where and when the answers of its row were seen to hold. Nothing else is verified.
VERIFIED: Mapping[str, str] = {
    "x86 AVX2": "Linux, AMD EPYC, torch 2.14.1, November 2026",
    "x86 AVX-512 BF16": "Linux, AMD EPYC, torch 2.14.1, November 2026",
}


def answer(machine: Machine, precision: str) -> tuple[bool, str]:
    """Whether a precision, or ``fp8:`` and a recipe, is native on a machine, and why."""
    if precision.startswith("fp8:"):
        return fp8_products(machine, precision.removeprefix("fp8:"))
    return native_products(machine, precision)


def columns() -> dict[str, list[str]]:
    """Head of a column → what it answers for; recipes of FP8 that are alike on every machine share one."""
    found = {PRECISIONS[name]: [name] for name in PRECISIONS if name != "fp8"}
    alike: dict[tuple[bool, ...], list[str]] = {}
    for recipe in dict.fromkeys(recipe_named(name).name for name in FP8_RECIPES):
        alike.setdefault(tuple(fp8_products(machine, recipe)[0] for machine in MACHINES.values()), []).append(recipe)
    return found | {f"FP8 {', '.join(recipes)}": [f"fp8:{recipe}" for recipe in recipes] for recipes in alike.values()}


def tables() -> str:
    """What is native where, and why the rest is not, as Markdown."""
    heads = columns()
    lines = [f"| machine | {' | '.join(heads)} | verified |", f"|---|{'---|' * (len(heads) + 1)}"]
    reasons: dict[tuple[str, str], list[str]] = {}
    for name, machine in MACHINES.items():
        runs, missing = has_kernels(machine)
        answers = {head: answer(machine, asked[0]) for head, asked in heads.items()}
        cells = ["native" if native else "emulated" for native, _ in answers.values()] if runs else ["refused"] * len(heads)
        lines.append(f"| {name} | {' | '.join(cells)} | {VERIFIED.get(name, 'unverified')} |")
        for head, (native, reason) in answers.items() if runs else [("everything", (False, missing))]:
            if not native:
                only = "emulated only" in reason  # a matter of these recipes, wherever they run
                whose = reasons.setdefault(
                    (head if only else head.split()[0], reason.partition(" is ")[2] if only else reason), []
                )
                whose += [] if name in whose else [name]
    rows = [f"| {what} | {', '.join(whose)} | {reason} |" for (what, reason), whose in sorted(reasons.items())]
    return "\n".join([*lines, "", "| what | on | why it is not native |", "|---|---|---|", *rows])


BEGIN, END = "<!-- machines -->\n", "<!-- end of machines -->"


def written(page: str) -> str:
    """A page with the tables between its marks."""
    head, _, rest = page.partition(BEGIN)
    return f"{head}{BEGIN}{tables()}\n{END}{rest.partition(END)[2]}"


def main() -> None:
    """Print the tables, or write them into a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="put the tables between the marks of this file")
    options = parser.parse_args()
    if options.write:
        options.write.write_text(written(options.write.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(tables())


if __name__ == "__main__":
    main()
