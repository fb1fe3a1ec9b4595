"""Exported models: quantised weights in their real 8-bit dtypes with scales, everything else as it was, in one safetensors file.

For each quantised layer ``<layer>.weight`` holds the codes (``float8_e4m3fn``, ``float8_e5m2`` or ``int8``) and
``<layer>.weight_scale`` the scale: float32, or for MX the E8M0 bytes (uint8) of the factor that dequantises.
``<layer>.input_amax`` is the calibrated largest magnitude of the layer's input. All other tensors keep name and dtype. Nothing in
the file executes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from vitfp8.errors import InputError
from vitfp8.files import write_atomically
from vitfp8.ptq.schemes import QuantizedWeight, Scheme, block_layers, scale_bytes, scale_from_bytes

#: Layout of the file, in its metadata.
EXPORT_VERSION = "1"


def save_quantized(
    path: Path,
    model: VisionTransformer,
    weights: Mapping[str, QuantizedWeight],
    scheme: Scheme,
    amax: Mapping[str, Tensor],
    about: Mapping[str, Any],
) -> None:
    """Write a quantised model, atomically.

    Args:
        path: the file; its folder is made.
        amax: from `calibrate`.

    Raises:
        InputError: it cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    for name, weight in weights.items():
        tensors[f"{name}.weight"] = weight.codes.cpu().to(scheme.row.dtype or torch.float32).contiguous()
        scale = weight.scale.cpu()
        tensors[f"{name}.weight_scale"] = (scale_bytes(scale) if weight.granularity == "mx" else scale).contiguous()
        if name in amax:
            tensors[f"{name}.input_amax"] = amax[name].cpu().reshape(1)
    metadata = {
        "vitfp8_export": EXPORT_VERSION,
        "format": scheme.format,
        "granularity": scheme.granularity,
        "layers": json.dumps(sorted(weights)),
        "about": json.dumps(dict(about), sort_keys=True),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, save(tensors, metadata))  # not save_file, whose files only their owner may read
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be written ({error}); check disk space and permissions, or set export: false") from None


def load_quantized(path: Path, model: VisionTransformer) -> tuple[Scheme, dict[str, QuantizedWeight], dict[str, Tensor]]:
    """Read an exported model; what is not quantised is loaded into `model`.

    Args:
        path: what `save_quantized` wrote.

    Returns:
        Format and granularity (as weights alone), layer → quantised weight, layer → calibrated amax: what `quantized` takes.

    Raises:
        InputError: it is missing, damaged, no export of this version, or of another model.
    """
    device = next(model.parameters()).device
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be read as an exported model ({' '.join(str(error).split())[:150]})") from None
    if about.get("vitfp8_export") != EXPORT_VERSION:
        raise InputError(f"{path}: is not an exported model of this version of vitfp8")
    names = json.loads(about["layers"])
    scheme = Scheme(format=about["format"], granularity=about["granularity"], operands="weights")
    weights, amax = {}, {}
    try:
        for name in names:  # widened before they go to a device that may have no such type
            tensors[f"{name}.weight"] = tensors[f"{name}.weight"].float()
        tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
        for name in names:
            scale = tensors.pop(f"{name}.weight_scale")
            scale = scale_from_bytes(scale) if scheme.granularity == "mx" else scale
            weights[name] = QuantizedWeight(codes=tensors.pop(f"{name}.weight"), scale=scale, granularity=scheme.granularity)
            if f"{name}.input_amax" in tensors:
                amax[name] = tensors.pop(f"{name}.input_amax").reshape(())
        layers = block_layers(model)
        with torch.no_grad():
            for name, weight in weights.items():
                layers[name].weight.copy_(weight.dequantized())
        missing, unexpected = model.load_state_dict(tensors, strict=False)
    except (KeyError, RuntimeError) as error:
        why = (str(error).splitlines() or [""])[0][:150]
        raise InputError(f"{path}: does not fit this model ({why}); build the model that its metadata names") from None
    if unexpected or {name for name in missing if not name.endswith(".weight") or name.removesuffix(".weight") not in weights}:
        raise InputError(f"{path}: does not fit this model; build the model that its metadata names")
    return scheme, weights, amax
