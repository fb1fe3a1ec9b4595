"""The model and its facts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from vitfp8.errors import InputError
from vitfp8.model import check_model, create_model, decay_groups, forward_flops, model_facts
from vitfp8.params import RunParams

Make = Callable[..., RunParams]


@pytest.mark.parametrize(
    "overrides",
    [{}, {"embed_dim": 48, "depth": 3, "num_heads": 3, "image_size": 24, "patch_size": 8}, {"in_channels": 3}],
)
def test_flops_and_parameters_agree_with_independent_counters(smoke_params: Make, overrides: dict[str, object]) -> None:
    params = smoke_params(**overrides)
    model = create_model(params, 10)
    facts = model_facts(model, params.model)
    for block in model.blocks:
        block.attn.fused_attn = False  # the counter does not know the CPU's fused kernel
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, facts["in_channels"], params.image_size, params.image_size))
    assert facts["flops_per_image"] == counter.get_total_flops()
    assert facts["parameters"] == sum(p.numel() for p in timm.create_model(
        params.model, num_classes=10, img_size=params.image_size, in_chans=facts["in_channels"],
        patch_size=params.patch_size, embed_dim=params.embed_dim, depth=params.depth, num_heads=params.num_heads,
    ).parameters())  # fmt: skip


def test_the_papers_model_is_vit_tiny_with_its_known_size(smoke_params: Make) -> None:
    params = smoke_params(dataset="cifar10", image_size=224, patch_size=None, embed_dim=None, depth=None, num_heads=None)
    model = create_model(params, 10)
    assert model_facts(model, params.model)["parameters"] == 5_526_346
    assert 2.1e9 < forward_flops(model) < 2.6e9


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        ({"model": "vit_tinny_patch16_224"}, "did you mean vit_tiny_patch16_224"),
        ({"model": "resnet18"}, "is not a Vision Transformer"),
        ({"patch_size": None, "image_size": 20}, "not divisible by the patch size 16"),
        ({"embed_dim": 50, "num_heads": None}, "embed_dim|cannot be built|divisible"),
    ],
)
def test_a_model_that_cannot_be_is_refused_on_one_line(smoke_params: Make, overrides: dict[str, object], part: str) -> None:
    with pytest.raises(InputError, match=part) as caught:
        check_model(smoke_params(**overrides), 10)
    assert "\n" not in str(caught.value)


def test_pretrained_weights_come_from_a_local_file(smoke_params: Make, tmp_path) -> None:  # type: ignore[no-untyped-def]
    source = create_model(smoke_params(seed=1), 10)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    model = create_model(smoke_params(pretrained=True, pretrained_file=str(tmp_path / "weights.pth")), 10)
    assert torch.equal(model.blocks[0].attn.qkv.weight, source.blocks[0].attn.qkv.weight)


def test_pretrained_weights_that_cannot_be_had_are_refused_with_the_way_to_a_local_file(
    smoke_params: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    plain = smoke_params(pretrained=True, image_size=224, patch_size=None, embed_dim=None, depth=None, num_heads=None)
    with pytest.raises(InputError, match="pretrained_file"):
        create_model(plain, 10)
    with pytest.raises(InputError, match="no such file"):
        create_model(smoke_params(pretrained=True, pretrained_file="nowhere.pth"), 10)


def test_biases_norms_and_embeddings_do_not_decay(smoke_params: Make) -> None:
    model = create_model(smoke_params(), 10)
    decayed, free = decay_groups(model, 0.1)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(p)] for p in free["params"]} >= {"pos_embed", "cls_token", "blocks.0.norm1.weight", "head.bias"}
    assert all(names[id(p)].endswith("weight") and p.ndim > 1 for p in decayed["params"])
