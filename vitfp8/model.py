"""The Vision Transformer: timm's model by name, its size overridable, and its facts (parameters, FLOPs).

The model is timm's, unchanged; `vitfp8.precision` decides afterwards how its products are computed.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vitfp8.catalog import DATASETS
from vitfp8.errors import InputError, suggest
from vitfp8.params import RunParams
from vitfp8.pretrained import check_reachable, fetch_weights, find_weights, loading

#: Parameter → timm's keyword; None in the parameter leaves the model as its name says.
_OVERRIDES: Mapping[str, str] = {
    "patch_size": "patch_size",
    "embed_dim": "embed_dim",
    "depth": "depth",
    "num_heads": "num_heads",
}


def channels_of(params: RunParams) -> int:
    """Colour channels that the model takes: the parameter, or the data set's."""
    return params.in_channels or DATASETS[params.dataset].channels


def create_model(params: RunParams, classes: int) -> VisionTransformer:
    """Build timm's Vision Transformer as the parameters say; random weights follow torch's global generator.

    Returns:
        The model in FP32 on the default device. Input ``[B, C, S, S]``, output ``[B, classes]``.

    Raises:
        InputError: timm has no such Vision Transformer, sizes do not fit, or the trained weights cannot be had.
    """
    overrides = {keyword: getattr(params, key) for key, keyword in _OVERRIDES.items() if getattr(params, key) is not None}
    options: dict[str, Any] = {
        "num_classes": classes,
        "img_size": params.image_size,
        "in_chans": channels_of(params),
        **overrides,
    }
    _check_name(params.model)
    taken: dict[str, Any] | None = None
    try:
        if params.pretrained:
            source = find_weights(params.model, params.pretrained_file)
            with loading(source, fetch_weights(source)) as taken:
                model = timm.create_model(params.model, pretrained=True, **options)
        else:
            model = timm.create_model(params.model, **options)
    except InputError:
        raise
    except TypeError as error:
        raise InputError(f"model: {params.model!r}: is not a Vision Transformer that takes these sizes ({error})") from None
    except (AssertionError, ValueError, RuntimeError, OSError) as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"model: {params.model!r}: cannot be built with these sizes ({why})") from None
    if not isinstance(model, VisionTransformer):
        raise InputError(f"model: {params.model!r}: is not a Vision Transformer; `timm.list_models('vit_*')` lists them")
    if not isinstance(model.patch_embed.proj, nn.Conv2d) or not all(hasattr(block, "attn") for block in model.blocks):
        odd = {type(model.patch_embed).__name__, *(type(block).__name__ for block in model.blocks)} - {"PatchEmbed", "Block"}
        raise InputError(
            f"model: {params.model!r}: is not built of a patch convolution and plain blocks ({', '.join(sorted(odd))}); "
            "take a model such as vit_tiny_patch16_224 or deit_tiny_patch16_224"
        )
    patch = model.patch_embed.patch_size[0]
    if params.image_size % patch:
        fitting = params.image_size // patch * patch or patch
        raise InputError(f"image_size: {params.image_size}: is not divisible by the patch size {patch}; try {fitting}")
    model.taken_weights = taken
    return model


def _check_name(model: str) -> None:
    """Refuse a name, or a tag of trained weights after it, that timm does not know."""
    name, _, tag = model.partition(".")
    if name not in timm.list_models():
        vits = timm.list_models("vit_*") + timm.list_models("deit*")
        near = difflib.get_close_matches(name, vits, n=1)
        way_out = f"did you mean {near[0]}?" if near else "`timm.list_models('vit_*')` lists them"
        raise InputError(f"model: {model!r}: timm {timm.__version__} has no such model; {way_out}")
    tags = [known.partition(".")[2] for known in timm.list_models(f"{name}.*", include_tags=True)]
    if "." in model and tag not in tags:
        there = suggest(tag, tags) if tags else f"it has none; take model: {name}"
        raise InputError(f"model: {model!r}: timm {timm.__version__} has no weights {tag!r} of {name}; {there}")


def tokens_of(model: VisionTransformer) -> int:
    """Tokens that the blocks see: patches and the prefix (class) tokens."""
    return int(model.patch_embed.num_patches + model.num_prefix_tokens)


def forward_flops(model: VisionTransformer) -> int:
    """Floating-point operations of one image's forward pass: two for each multiplication with its addition.

    Counted are the matrix products: convolutions, linear layers, attention products. Norms, softmax, GELU
    and adds (about one per cent) are not, as in Kaplan et al. 2020, arXiv 2001.08361, and in `torch.utils.flop_counter`.
    """
    stored = {name: tensor.detach().to("meta") for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    channels = next(module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d))
    image = torch.empty(1, channels, *model.patch_embed.img_size, device="meta")
    training = model.training
    model.eval()
    try:  # on the meta device nothing is computed, and attention is two products that can be counted
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            torch.func.functional_call(model, stored, (image,))
    except (RuntimeError, ValueError, TypeError, AssertionError, NotImplementedError) as error:
        why = " ".join(str(error).split())[:200]
        raise InputError(
            f"model: does not compute an image of {image.shape[-1]} pixels ({why}); take vit_tiny_patch16_224"
        ) from None
    finally:
        model.train(training)
    return int(counter.get_total_flops())


def model_facts(model: VisionTransformer, name: str) -> dict[str, Any]:
    """What the record says of the model.

    Returns:
        name, parameters (number), flops_per_image (forward), tokens, depth, embed_dim, num_heads, patch_size, …; of a model that
        starts from trained weights ``pretrained``: file, sha256, tag, and how many tensors came from there.
    """
    taken = getattr(model, "taken_weights", None)
    return {
        "name": name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "flops_per_image": forward_flops(model),
        "tokens": tokens_of(model),
        "depth": len(model.blocks),
        "embed_dim": int(model.embed_dim),
        "num_heads": int(model.blocks[0].attn.num_heads),
        "patch_size": int(model.patch_embed.patch_size[0]),
        "image_size": int(model.patch_embed.img_size[0]),
        "in_channels": next(module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)),
        "classes": int(model.num_classes),
        **({"pretrained": taken} if taken else {}),
    }


def decay_groups(model: VisionTransformer, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for AdamW: no decay on biases, norms, position and class embeddings, as timm's train script does."""
    spared = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (free if parameter.ndim <= 1 or name in spared else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def describe_model(params: RunParams, classes: int) -> dict[str, Any]:
    """What `model_facts` says of a model, without allocating its weights.

    Raises:
        InputError: see `create_model`.
    """
    with torch.device("meta"):
        model = create_model(params.model_copy(update={"pretrained": False, "pretrained_file": None}), classes)
    return model_facts(model, params.model)


def started_from(model: nn.Module) -> str | None:
    """SHA-256 of the file of trained weights that a model started from; None for random weights.

    Args:
        model: from `create_model`.
    """
    taken: Mapping[str, Any] | None = getattr(model, "taken_weights", None)
    return str(taken["sha256"]) if taken else None


def check_model(params: RunParams, classes: int) -> VisionTransformer:
    """Refuse a model that cannot be built, or whose trained weights cannot be had or do not fit, without allocating it.

    Weights that are not on this machine are asked for by the header of their file; they are downloaded when the run starts.

    Returns:
        The model on the meta device.

    Raises:
        InputError: see `create_model`.
    """
    with torch.device("meta"):
        model = create_model(params.model_copy(update={"pretrained": False, "pretrained_file": None}), classes)
    if "." in params.model and not params.pretrained:
        name, _, tag = params.model.partition(".")
        raise InputError(
            f"model: {params.model!r}: names trained weights, but pretrained is false; set it to true, or drop .{tag}"
        )
    if params.pretrained:
        source = find_weights(params.model, params.pretrained_file)
        check_reachable(source)
        if source.path is not None:
            with torch.device("meta"):
                create_model(params, classes)
    return model
