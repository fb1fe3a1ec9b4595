"""timm's Vision Transformers by name: each is described, or refused on one line."""

from __future__ import annotations

import re
from collections.abc import Callable

import timm

from vitfp8.errors import InputError
from vitfp8.model import check_model, model_facts
from vitfp8.params import RunParams

#: timm's Vision Transformers that are not built of plain blocks.
OTHER_BLOCKS = {
    "vit_base_patch16_18x2_224", "vit_small_patch16_18x2_224", "vit_base_patch16_xp_224", "vit_huge_patch14_xp_224",
    "vit_large_patch14_xp_224", "vit_pwee_patch16_reg1_gap_256", "vit_dpwee_patch16_reg1_gap_256",
}  # fmt: skip


def test_every_kind_of_vision_transformer_is_described_and_those_of_other_blocks_are_refused_on_one_line(
    smoke_params: Callable[..., RunParams],
) -> None:
    names = [name for module in ("vision_transformer", "deit") for name in timm.list_models(module=module)]
    kinds = {re.sub(r"\d+m?|tiny|small|base|large|huge", "", name): name for name in names}  # sizes are overridden
    refused = set()
    for name in {*kinds.values(), *OTHER_BLOCKS}:
        try:
            assert model_facts(check_model(smoke_params(model=name), 10), name)["flops_per_image"] > 0
        except InputError as error:
            assert "\n" not in str(error) and "plain blocks" in str(error), error
            refused.add(name)
    assert len(kinds) > 40 and refused == OTHER_BLOCKS
