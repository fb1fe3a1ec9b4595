"""Trained weights: what is read, what must fit, what is recorded, and what their content decides."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor

from tests.analysis.records import make_record, write_notebook
from vitfp8.analysis.results import load_results
from vitfp8.checkpoint import CheckpointError
from vitfp8.errors import InputError
from vitfp8.experiment import check_experiment, prepare_experiment
from vitfp8.files import file_digest
from vitfp8.model import check_model, create_model, model_facts, started_from
from vitfp8.params import RunParams
from vitfp8.run.plan import PlannedRun
from vitfp8.run.preflight import check_plan, examine_machine
from vitfp8.verify.checks import verify, verify_data
from vitfp8.verify.rerun import why_not_promised

Make = Callable[..., RunParams]

TAG = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"


def weights(make: Make, seed: int = 7, **sizes: Any) -> dict[str, Tensor]:
    """Weights of the smoke preset's model."""
    torch.manual_seed(seed)
    return dict(create_model(make(**sizes), 10).state_dict())


def saved(value: object, path: Path) -> str:
    """A file of ``torch.save``."""
    torch.save(value, path)
    return str(path)


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Weights as a wrapper of modules names them."""
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("wrapped", "unwrapped"),
    [
        (lambda state: state, []),
        (lambda state: {"epoch": 50, "model_state_dict": state, "val_acc": 0.83}, ["model_state_dict"]),
        (lambda state: {"state_dict": prefixed(state, "module.")}, ["state_dict", "module."]),
        (
            lambda state: {"model": {"state_dict": prefixed(state, "_orig_mod.module.")}},
            ["model", "state_dict", "_orig_mod.", "module."],
        ),
    ],
)  # fmt: skip
def test_usual_wrappers_are_taken_off_and_the_record_says_so(
    wrapped: Callable[[Any], Any], unwrapped: list[str], smoke_params: Make, tmp_path: Path
) -> None:
    state = weights(smoke_params)
    params = smoke_params(pretrained=True, pretrained_file=saved(wrapped(state), tmp_path / "w.pt"), seed=1)
    check_experiment(params)
    model = create_model(params, 10)
    own = model.state_dict()
    assert all(torch.equal(own[name], state[name]) for name in state if not name.startswith("head."))
    assert not torch.equal(own["head.weight"], state["head.weight"]), "timm begins a head of another number of classes anew"
    facts = model_facts(model, params.model)["pretrained"]
    assert facts["unwrapped"] == unwrapped and facts["sha256"] == file_digest(tmp_path / "w.pt")
    assert facts["tensors_initialised"] == ["head.weight", "head.bias"] and facts["tensors_loaded"] == len(state) - 2
    assert facts["file"] == "w.pt" and facts["tag"] == "augreg_in21k_ft_in1k" and facts["timm"] == timm.__version__


def test_the_head_apart_a_model_that_is_not_pretrained_draws_the_same_numbers(smoke_params: Make, tmp_path: Path) -> None:
    torch.manual_seed(3)
    plain = create_model(smoke_params(), 10)
    file = saved(weights(smoke_params), tmp_path / "w.pt")
    torch.manual_seed(3)
    trained = create_model(smoke_params(pretrained=True, pretrained_file=file), 10)
    assert torch.equal(plain.head.weight, trained.head.weight) and started_from(plain) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: {"a": torch.zeros(1)}, r"of the model's \d+ tensors are missing \(cls_token, .*unexpected \(a\)"),
        (lambda state: {name: t for name, t in state.items() if "qkv" not in name}, r"2 of .* missing \(blocks\.0\.attn\.qkv"),
        (lambda state: prefixed(state, "vit."), r"missing \(.*unexpected \(vit\.cls_token"),
        (lambda state: {**state, "extra": torch.zeros(1)}, r"1 are unexpected \(extra\)"),
        (lambda state: {**state, "norm.weight": torch.zeros(5)}, r"norm\.weight is 5, not \d+"),
        (lambda state: {"a": 1}, "holds no weights: a dictionary of a"),
        (lambda state: [1, 2], "holds no weights: a list"),
        (lambda state: {}, "holds no weights: a dictionary of nothing"),
        (lambda state: {**state, "cls_token": torch.full((1, 1, 32), torch.nan)}, "cls_token holds values that are not finite"),
    ],
)
def test_weights_that_leave_a_tensor_to_chance_are_refused_before_anything_starts(
    change: Callable[[dict[str, Tensor]], Any], words: str, smoke_params: Make, tmp_path: Path
) -> None:
    file = saved(change(weights(smoke_params)), tmp_path / "w.pth")
    with pytest.raises(InputError, match=words) as refused:
        check_experiment(smoke_params(pretrained=True, pretrained_file=file))
    assert "w.pth" in str(refused.value) and "\n" not in str(refused.value)


def test_damaged_files_are_refused_by_name_and_reason(smoke_params: Make, tmp_path: Path) -> None:
    state = weights(smoke_params)
    whole = {"pth": tmp_path / "whole.pth", "safetensors": tmp_path / "whole.safetensors"}
    torch.save(state, whole["pth"])
    safetensors.torch.save_file(state, whole["safetensors"])
    half = {suffix: path.read_bytes()[: path.stat().st_size // 2] for suffix, path in whole.items()}
    files = {
        "text.pth": (b"hello", "is damaged, or is not a file of torch.save"),
        "text.safetensors": (b"hello", "is damaged, or is not a file of safetensors"),
        "empty.pth": (b"", "is empty"),
        "pointer.safetensors": (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        "half.pth": (half["pth"], "is truncated or damaged"),
        "half.safetensors": (half["safetensors"], "is damaged, or is not a file of safetensors"),
    }
    for name, (content, words) in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=words) as refused:
            check_experiment(smoke_params(pretrained=True, pretrained_file=str(tmp_path / name)))
        assert name in str(refused.value) and "\n" not in str(refused.value)
    with pytest.raises(InputError, match="is a folder"):
        check_experiment(smoke_params(pretrained=True, pretrained_file=str(tmp_path)))


def test_position_embeddings_and_patches_of_another_size_are_resized_and_the_record_says_so(
    smoke_params: Make, tmp_path: Path
) -> None:
    file = saved(weights(smoke_params, image_size=32, patch_size=8, in_channels=3), tmp_path / "w.pt")
    params = smoke_params(image_size=24, patch_size=4, pretrained=True, pretrained_file=file)
    models = [create_model(params, 10) for _ in range(2)]
    facts = model_facts(models[0], params.model)["pretrained"]
    assert facts["resized"] == ["pos_embed", "patch_embed.proj.weight"]
    assert torch.equal(models[0].pos_embed, models[1].pos_embed)


# ------------------------------------------------------------------------------------------------- what content decides


def recorded(path: Path, params: RunParams, sha256: str, **changes: Any) -> Path:
    """A finished run that started from weights."""
    record = make_record(
        params.experiment, params.seed, parameters=params.model_dump(), parameters_digest=params.digest,
        model={"name": params.model, "pretrained": {"file": "w.pt", "sha256": sha256}}, **changes,
    )  # fmt: skip
    return write_notebook(record, path)


def test_a_run_that_started_from_other_weights_is_neither_kept_nor_continued(smoke_params: Make, tmp_path: Path) -> None:
    params = smoke_params(pretrained=True, pretrained_file=saved(weights(smoke_params, 1), tmp_path / "w.pt"))
    output = recorded(tmp_path / "BaseFP32-s0.ipynb", params, file_digest(tmp_path / "w.pt"), data={})
    run = PlannedRun(params=params, injected={}, notebook=output, output=output, action="keep", why="")
    check_plan([run])
    saved(weights(smoke_params, 2), tmp_path / "w.pt")
    with pytest.raises(InputError, match="started from other pretrained weights") as refused:
        check_plan([run])
    assert str(output) in str(refused.value) and "--force" in str(refused.value)
    assert [(c.level, c.subject) for c in verify_data([output]) if c.subject == "pretrained weights"] == [
        ("FAILED", "pretrained weights")
    ]
    (tmp_path / "w.pt").unlink()
    check_plan([run])  # nothing can be told


def test_runs_from_different_weights_are_not_averaged_and_verify_names_them(smoke_params: Make, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    for seed, sha256 in ((0, "a" * 64), (1, "b" * 64), (2, "a" * 64)):
        params = smoke_params(seed=seed, pretrained=True, pretrained_file="w.pt")
        recorded(folder / f"BaseFP32-s{seed}.ipynb", params, sha256, provenance={"run_id": str(seed)})
    assert sorted(group.n for group in load_results(folder).groups) == [1, 2]
    named = [check for check in verify(sorted(folder.glob("*.ipynb"))) if check.subject == "pretrained weights"]
    assert [(check.path.stem, check.level) for check in named] == [("BaseFP32-s1", "FAILED")]


def test_the_weights_digest_is_in_the_deterministic_part_only_where_there_is_one() -> None:
    plain = make_record()
    trained = make_record(model={"pretrained": {"sha256": "a" * 64}})
    assert "pretrained" not in plain.deterministic_part()
    assert trained.deterministic_part()["pretrained"] == "a" * 64
    assert any("other pretrained weights" in reason for reason in why_not_promised(trained, plain))


def test_a_checkpoint_is_not_continued_from_other_weights(smoke_params: Make, tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    params = smoke_params(
        pretrained=True, pretrained_file=saved(weights(smoke_params, 1), file), run_folder=str(tmp_path / "run")
    )
    experiment = prepare_experiment(params)
    experiment.trainer.save_checkpoint()
    assert experiment.record().weights_digest == file_digest(file)
    prepare_experiment(params)
    saved(weights(smoke_params, 2), file)
    with pytest.raises(CheckpointError, match="started from other pretrained weights"):
        prepare_experiment(params)


# --------------------------------------------------------------------------------------------------- timm's own weights


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "hub"


def put_in_cache(hub: Path, name: str, state: dict[str, Tensor]) -> Path:
    """Weights as the hub's own client keeps them."""
    repository = hub / f"models--timm--{name}"
    file = repository / "snapshots" / "c0ffee" / "model.safetensors"
    file.parent.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("c0ffee")
    safetensors.torch.save_file(state, file)
    return file


def test_a_tag_chooses_the_weights_and_without_one_the_record_says_which_were_taken(hub: Path, smoke_params: Make) -> None:
    state = {n: t for n, t in weights(smoke_params, in_channels=3).items() if not n.startswith("head")}
    other = TAG.replace("augreg_in21k_ft_in1k", "augreg_in21k")
    files = {TAG: put_in_cache(hub, TAG, state), other: put_in_cache(hub, other, {n: t + 1 for n, t in state.items()})}
    for model, taken in ((TAG.partition(".")[0], TAG), (TAG, TAG), (other, other)):
        params = smoke_params(model=model, pretrained=True)
        check_experiment(params)
        facts = model_facts(create_model(params, 10), params.model)
        pretrained = facts["pretrained"]
        assert facts["name"] == model and pretrained["hub"] == f"timm/{taken}" and pretrained["tag"] == taken.partition(".")[2]
        assert pretrained["sha256"] == file_digest(files[taken]) and pretrained["revision"] == "c0ffee"
        json.dumps(facts)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "vit_tiny_patch16_224.augreg_in21kk", "pretrained": True}, "did you mean augreg_in21k"),
        ({"model": TAG}, "names trained weights, but pretrained is false"),
        ({"model": "vit_small_patch16_36x1_224", "pretrained": True}, "has no trained weights of this model"),
        ({"model": TAG, "pretrained": True}, f"HF_HUB_OFFLINE .*`hf download timm/{TAG} model.safetensors`.*pretrained_file"),
    ],
)
def test_weights_that_cannot_be_had_are_refused_before_anything_starts(
    changes: dict[str, Any], words: str, hub: Path, smoke_params: Make
) -> None:
    with pytest.raises(InputError, match=words) as refused:
        check_experiment(smoke_params(**changes))
    assert "\n" not in str(refused.value) and not hub.exists()


def test_a_hub_that_cannot_be_reached_is_asked_once_and_one_that_answers_is_noted(
    hub: Path, smoke_params: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    asked: list[str] = []

    def unreachable(url: str, **options: Any) -> None:
        asked.append(url)
        raise ConnectionError("no route to host")

    params = smoke_params(model=TAG, pretrained=True)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", unreachable)
    with pytest.raises(InputError, match=r"no route to host.*hf download"):
        check_model(params, 10)
    assert len(asked) == 1 and asked[0].endswith("model.safetensors")
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url, timeout: None)
    check_model(params, 10)
    notes = [finding.text for finding in examine_machine([params]) if finding.subject == "weights"]
    assert notes == [f"timm/{TAG} is not on this machine: the first run downloads it"]
