"""Trained weights to start from: where they are, whether they can be read, whether they fit, and what the record says of them.

timm knows how weights are adapted to a model (position embeddings and patches of another size, other colour channels, another
number of classes) and does it here too. What timm leaves to chance is decided here: every tensor but the classifier's head
comes from the file, or the file is refused. Weights that the Hugging Face cache holds are taken from there without a request.
"""

from __future__ import annotations

import argparse
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import safetensors.torch
import timm
import torch
from timm.models import _builder, get_pretrained_cfg
from torch import Tensor, nn

from vitfp8.errors import InputError
from vitfp8.files import file_digest

#: Keys under which training programs keep the weights, in the order in which they are looked for; timm's averaged ones first.
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict", "encoder")

#: What wrappers of modules put before every name.
PREFIXES = ("_orig_mod.", "module.", "_orig_mod.", "model.")

#: A hub that does not answer for so long is taken as unreachable, in seconds.
PATIENCE = 10.0

#: Dictionaries in one another that are opened in search of weights.
_DEEPEST = 8

#: Names that a line lists.
_LISTED = 3

#: The way out of a file that cannot be read.
_READABLE = "give a file that you may read, or set pretrained: false"


@dataclass(frozen=True, kw_only=True)
class TrainedWeights:
    """Where the trained weights of a model come from.

    Attributes:
        asked: what the parameters say, as a line names it.
        path: the file; None: it is not on this machine.
        hub: id of the repository on the Hugging Face hub; None: not from there.
        revision: branch, tag or commit of it.
        files: names that the file may have there, in order of preference.
        url: where the file is when it is not on the hub.
        tag: timm's name for the weights.
    """

    asked: str
    path: Path | None = None
    hub: str | None = None
    revision: str | None = None
    files: tuple[str, ...] = ()
    url: str | None = None
    tag: str | None = None

    def refusal(self, why: str) -> InputError:
        """The line for weights that cannot be had, with the ways out."""
        fetch = f"hf download {self.hub} {self.files[0]}" if self.hub else f"curl -L -o {Path(str(self.url)).name} {self.url}"
        return InputError(
            f"{self.asked}: the weights cannot be had: {self.hub or self.url} is not on this machine, and {why}; "
            f"fetch them where there is a network (`{fetch}`), give a local file with pretrained_file, or set pretrained: false"
        )


def find_weights(model: str, pretrained_file: str | None = None) -> TrainedWeights:
    """Where the trained weights of a model are. Asks no network.

    Args:
        pretrained_file: a local file; None: timm's own weights.

    Raises:
        InputError: the local file does not exist, or timm knows no weights of this model.
    """
    config = get_pretrained_cfg(model)
    tag = config.tag if config else None
    if pretrained_file is not None:
        given, asked = Path(pretrained_file), f"pretrained_file: {pretrained_file!r}"
        try:
            is_file = given.is_file()
        except OSError as error:  # a folder that may not be entered, a name that is too long
            raise InputError(f"{asked}: cannot be read ({error.strerror}); {_READABLE}") from None
        if not is_file:
            raise InputError(f"{asked}: {'is a folder, not a file' if given.is_dir() else 'there is no such file'}")
        return TrainedWeights(asked=asked, path=given, tag=tag)
    asked = f"pretrained: true: {model}"
    if config is None or not (config.hf_hub_id or config.url):
        raise InputError(
            f"{asked}: timm {timm.__version__} has no trained weights of this model; set pretrained: false, give a local file "
            f"with pretrained_file, or take a model of `timm.list_pretrained('vit_*')`"
        )
    if config.hf_hub_id:
        hub, _, revision = config.hf_hub_id.partition("@")
        file = config.hf_hub_filename or "pytorch_model.bin"
        safe = {"pytorch_model.bin": "model.safetensors"}.get(file, file.removesuffix(".bin") + ".safetensors")
        files = (file,) if not file.endswith(".bin") else (safe, file)
        cached = (huggingface_hub.try_to_load_from_cache(hub, name, revision=revision or None) for name in files)
        held = next((Path(hit) for hit in cached if isinstance(hit, str)), None)
        return TrainedWeights(asked=asked, path=held, hub=hub, revision=revision or None, files=files, tag=tag)
    url = config.url if isinstance(config.url, str) else config.url[0]
    if url.endswith(".npz"):
        raise InputError(f"{asked}: these weights are a NumPy archive of JAX's layout, which is not read here; take another tag")
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    return TrainedWeights(asked=asked, path=path if path.is_file() else None, url=url, tag=tag)


def weights_digest(model: str, pretrained_file: str | None = None) -> str | None:
    """SHA-256 of the weights that a training would start from today; None where they are not at hand.

    Args:
        model: see `find_weights`.
        pretrained_file: see `find_weights`.
    """
    with suppress(InputError, OSError, RuntimeError):  # RuntimeError: timm has no such tag any more
        source = find_weights(model, pretrained_file)
        return file_digest(source.path) if source.path else None
    return None


def _is_offline() -> bool:
    """Whether the user has forbidden requests to the hub."""
    return huggingface_hub.constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def check_reachable(source: TrainedWeights) -> None:
    """Ask for the file's header, and no more, where the file is not on this machine.

    Args:
        source: from `find_weights`.

    Raises:
        InputError: it cannot be downloaded.
    """
    if source.path is not None:
        return
    if source.hub and _is_offline():
        raise source.refusal("HF_HUB_OFFLINE forbids to ask for it")
    try:
        if source.url:
            import urllib.request

            request = urllib.request.Request(source.url, method="HEAD")
            urllib.request.urlopen(request, timeout=PATIENCE).close()
            return
        for name in source.files:
            with suppress(huggingface_hub.errors.EntryNotFoundError):
                address = huggingface_hub.hf_hub_url(str(source.hub), name, revision=source.revision)
                huggingface_hub.get_hf_file_metadata(address, timeout=PATIENCE)
                return
    except Exception as error:  # name resolution, proxies, certificates, gated repositories: the line says which
        raise source.refusal(f"it cannot be asked for ({_words(error)})") from None
    raise source.refusal(f"it holds none of {', '.join(source.files)}")


def fetch_weights(source: TrainedWeights) -> Path:
    """The file of the weights, downloaded where it is not on this machine.

    Args:
        source: from `find_weights`.

    Raises:
        InputError: it cannot be downloaded.
    """
    if source.path is not None:
        return source.path
    check_reachable(source)
    try:
        if source.url:
            path = Path(torch.hub.get_dir()) / "checkpoints" / source.url.rpartition("/")[2]
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(source.url, str(path), progress=False)
            return path
        for name in source.files:
            with suppress(huggingface_hub.errors.EntryNotFoundError):
                return Path(huggingface_hub.hf_hub_download(str(source.hub), name, revision=source.revision))
    except Exception as error:  # as above
        raise source.refusal(f"the download failed ({_words(error)})") from None
    raise source.refusal(f"it holds none of {', '.join(source.files)}")


def _words(error: BaseException, limit: int = 140) -> str:
    """What an error says, on one line, or its type."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:limit]}" if text else type(error).__name__


# ------------------------------------------------------------------------------------------------------------- reading


def read_weights(path: Path, asked: str) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a file by name, and what they were wrapped in. Executes nothing.

    Args:
        path: a file of safetensors, by its suffix, or of ``torch.save``.

    Raises:
        InputError: it is damaged, or holds something else.
    """
    held = _load(path, asked)
    unwrapped: list[str] = []
    while isinstance(held, Mapping) and not _are_tensors(held):
        inside = next((key for key in WRAPPERS if isinstance(held.get(key), Mapping)), None)
        if inside is None:
            keys = ", ".join(str(key)[:40] for key in list(held)[:_LISTED])
            raise InputError(f"{asked}: holds no weights: a dictionary of {keys or 'nothing'}, not of tensors by their names")
        held = held[inside]
        unwrapped.append(inside)
        if len(unwrapped) > _DEEPEST:  # a pickle may hold itself
            raise InputError(f"{asked}: holds no weights: more than {_DEEPEST} dictionaries in one another")
    if not isinstance(held, Mapping):
        raise InputError(f"{asked}: holds no weights: a {type(held).__name__}, not a dictionary of tensors by their names")
    tensors = dict(held)
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
            unwrapped.append(prefix)
    odd = next((n for n, t in tensors.items() if t.layout != torch.strided or t.is_meta or t.is_quantized), None)
    if odd is not None:
        raise InputError(f"{asked}: {odd} is sparse, quantized or without values; give plain tensors")
    damaged = next((n for n, t in tensors.items() if t.is_floating_point() and not torch.isfinite(t.float()).all()), None)
    if damaged is not None:
        raise InputError(f"{asked}: is damaged: {damaged} holds values that are not finite")
    return tensors, unwrapped


def _are_tensors(held: Mapping[Any, Any]) -> bool:
    """Whether a dictionary is one of tensors by their names."""
    return bool(held) and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in held.items())


def _load(path: Path, asked: str) -> Any:
    """What is in a file of weights."""
    try:
        with path.open("rb") as file:
            begin = file.read(64)
    except OSError as error:
        raise InputError(f"{asked}: cannot be read ({error.strerror}); {_READABLE}") from None
    try:
        if not begin:
            raise InputError(f"{asked}: is empty; take the file anew from where it comes")
        if begin.startswith(b"version https://git-lfs"):
            raise InputError(f"{asked}: is a pointer of Git LFS, not the weights; `git lfs pull` fetches them")
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path, device="cpu")
        # a namespace is inert; timm's training program keeps its options in one. A check builds its model on the meta device,
        # where torch's reader would fail at sparse tensors as if the file were damaged
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]), torch.device("cpu"):
            warnings.simplefilter("ignore")  # torch warns of pickles that it goes on to refuse
            return torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # torch's reader meets any bytes, and fails in any way
        program = re.search(r"GLOBAL ([\w.]+)", str(error))
        if program:
            raise InputError(
                f"{asked}: needs {program[1]}, which is code; only tensors are loaded, nothing is executed"
            ) from None
        kind = "safetensors" if path.suffix == ".safetensors" else "torch.save"
        whole = "is truncated or damaged" if begin.startswith(b"PK") else f"is damaged, or is not a file of {kind}"
        raise InputError(f"{asked}: {whole} ({_words(error, 90)}); take the file anew from where it comes") from None


# ------------------------------------------------------------------------------------------------------------- fitting


@contextmanager
def loading(source: TrainedWeights, path: Path) -> Iterator[dict[str, Any]]:
    """Within, a model that timm creates with ``pretrained=True`` takes these weights; yields what the record says of them.

    On the meta device nothing is copied, and the same is refused.

    Args:
        source: from `find_weights`.
        path: the file, from `fetch_weights`.

    Raises:
        InputError: the file cannot be read, or does not fit the model.
    """
    asked = source.asked
    tensors, unwrapped = read_weights(path, asked)
    taken: dict[str, Any] = {
        "file": path.name, "sha256": file_digest(path), "tag": source.tag, "hub": source.hub, "url": source.url,
        "revision": path.parent.name if source.hub else None, "timm": timm.__version__, "unwrapped": unwrapped,
    }  # fmt: skip
    timms = _builder.load_pretrained

    def load(
        model: nn.Module, pretrained_cfg: Mapping[str, Any], num_classes: int = 1000, strict: bool = True, **options: Any
    ) -> None:
        """In place of timm's function, of which it makes use."""
        replaced = _heads(pretrained_cfg) if num_classes != pretrained_cfg["num_classes"] else ()
        superfluous = not strict

        def take(adapted: Mapping[str, Tensor], strict: bool) -> Any:
            taken.update(_fit(asked, model, tensors, adapted, replaced, superfluous))
            if any(parameter.is_meta for parameter in model.parameters()):
                return SimpleNamespace(missing_keys=[], unexpected_keys=[])
            return type(model).load_state_dict(model, adapted, strict=False)

        model.load_state_dict = take  # type: ignore[method-assign, assignment]
        here = {**pretrained_cfg, "state_dict": dict(tensors), "source": ""}
        try:
            with torch.device("cpu"):  # timm computes with the weights: a device that only the model is to be on must not matter
                timms(model, pretrained_cfg=here, num_classes=num_classes, strict=strict, **options)
        except InputError:
            raise
        except Exception as error:  # timm's adaptations assume files of their kind
            raise InputError(f"{asked}: does not fit this model ({_words(error)}); give weights of its architecture") from None
        finally:
            del model.load_state_dict

    _builder.load_pretrained = load
    try:
        yield taken
    finally:
        _builder.load_pretrained = timms
    if "tensors_loaded" not in taken:
        raise InputError(f"{asked}: timm {timm.__version__} builds this model without loading weights; set pretrained: false")


def _heads(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the classifier's modules."""
    named = config.get("classifier") or ()
    return (named,) if isinstance(named, str) else tuple(named)


def _fit(
    asked: str,
    model: nn.Module,
    held: Mapping[str, Tensor],
    adapted: Mapping[str, Tensor],
    replaced: Sequence[str],
    superfluous: bool,
) -> dict[str, Any]:
    """Where each of the model's tensors comes from; refuses weights that leave one to chance."""
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    initialised = [name for name in wanted if name not in adapted and name.rpartition(".")[0] in replaced]
    missing = [name for name in wanted if name not in adapted and name not in initialised]
    unexpected = [name for name in adapted if name not in wanted]
    shapes = [name for name in wanted if name in adapted and adapted[name].shape != wanted[name]]
    problems = []
    if missing:
        problems.append(f"{len(missing)} of the model's {len(wanted)} tensors are missing ({_some(missing)})")
    if unexpected and not superfluous:
        problems.append(f"{len(unexpected)} are unexpected ({_some(unexpected)})")
    if shapes:
        sizes = [f"{name} is {_size(adapted[name].shape)}, not {_size(wanted[name])}" for name in shapes]
        problems.append(f"{len(shapes)} have another shape ({_some(sizes)})")
    if problems:
        raise InputError(f"{asked}: does not fit this model: {'; '.join(problems)}; give weights of its architecture and sizes")
    return {
        "tensors_loaded": len(wanted) - len(initialised),
        "tensors_initialised": initialised,
        "tensors_unused": len(unexpected),
        "resized": [name for name in wanted if name in held and name in adapted and held[name].shape != adapted[name].shape],
    }


def _some(names: Sequence[str]) -> str:
    """The first names, and a sign that there are more."""
    return ", ".join(names[:_LISTED]) + (", …" if len(names) > _LISTED else "")


def _size(shape: Sequence[int]) -> str:
    """A shape in words."""
    return "×".join(map(str, shape)) or "a scalar"
