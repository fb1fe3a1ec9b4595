"""From a folder of an earlier project to the record of a run, with what is known, what is not, and what was wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from vitfp8.catalog import EXPERIMENTS, label_of, row_of
from vitfp8.errors import InputError
from vitfp8.legacy.checkpoints import ENDINGS, OldCheckpoint, look_into
from vitfp8.legacy.names import (
    ASSUMED,
    CAVEATS,
    EVALUATED_IN_FP32,
    FP8_TEST_MEANS,
    NO_FP8,
    OLD_FP16,
    OLD_FP16_NOTE,
    OLD_NAMES,
    fitting_experiments,
    known_parameters,
    variant_of,
)
from vitfp8.legacy.source import (
    OldFolder,
    SourceFile,
    SourceTree,
    experiment_folders,
    read_csv,
    read_json,
    shown,
)
from vitfp8.legacy.stated import TIMING, Stated, read_stated
from vitfp8.legacy.values import OldHistory, read_hardware, read_history, read_quantization
from vitfp8.record import Hardware, RunRecord, digest_of, now
from vitfp8.record.codec import compress, expand

FINAL, INTERRUPTED = "final_metrics.json", "interrupted_metrics.json"
LOAD, GPU = "hardware_stats.json", "gpu_stats.csv"
QUANTIZED = ("fp8_test_results.json", "fp8_quantization_results.json")

#: A text file up to this size is kept inside the record as well, while all of a run's together are below `_EMBEDDED`.
_LARGEST_EMBEDDED = 64 * 1024
_EMBEDDED = 256 * 1024


@dataclass
class ImportedRun:
    """A run that can be imported.

    Attributes:
        folder: where it lies in the source.
        record: what becomes of it.
        files: those that are copied along.
        remarks: a sentence for each thing that is wrong with the files.
    """

    folder: OldFolder
    record: RunRecord
    files: list[SourceFile]
    remarks: list[str]


@dataclass
class Imports:
    """What an earlier project's tree holds.

    Attributes:
        tree: the tree.
        runs: those that can be imported.
        others: files that belong to none of them; they are copied beside.
        left: a sentence for each entry that is not taken, with a way out.
    """

    tree: SourceTree
    runs: list[ImportedRun] = field(default_factory=list)
    others: list[SourceFile] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def find_runs(tree: SourceTree, renaming: Mapping[str, tuple[str, str]]) -> Imports:
    """Read every experiment of a tree. Writes nothing.

    Args:
        tree: from `vitfp8.legacy.source.read_tree`.
        renaming: what the user says of folders: name or path → experiment and variant.

    Raises:
        InputError: a folder of `renaming` is not there, or two folders would become one run.
    """
    imports = Imports(tree, left=list(tree.left))
    folders = experiment_folders(tree)
    for old in renaming:
        if not any(old in (folder.name, folder.path) for folder in folders):
            there = ", ".join(shown(folder.path) for folder in folders) or "none"
            raise InputError(f"--as: {old!r}: there is no such experiment's folder in {tree.given!r}; there are: {there}")
    order = list(OLD_NAMES)
    folders.sort(key=lambda folder: (order.index(folder.name) if folder.name in order else len(order), folder.path))
    taken: set[tuple[str, str]] = set(renaming.values())
    refused: set[str] = set()
    for folder in folders:
        said = renaming.get(folder.path) or renaming.get(folder.name)
        if said is None and folder.name not in OLD_NAMES:
            stated = read_stated(tree, next(iter(tree.candidates(folder, TIMING)), None), tree.of(folder), [])
            imports.left.append(f"{shown(folder.path)}: is not an experiment that is known; {_say_which(folder, stated)}")
            continue
        experiment, variant = said or (OLD_NAMES[folder.name], "")
        run = _read_run(tree, folder, experiment, refused, assumed=said is None)
        if isinstance(run, str):
            imports.left.append(run)
            continue
        if said is None:
            variant = _free_variant(experiment, folder, taken)
        elif any((other.record.experiment, other.record.variant) == said for other in imports.runs):
            raise InputError(
                f"--as: {folder.name!r}: two folders would be {experiment}; tell them apart: --as OLD={experiment}~VARIANT"
            )
        taken.add((experiment, variant))
        run.record.variant = run.record.parameters["variant"] = variant
        run.record.provenance["imported"]["fingerprint"] = _fingerprint(run.record)
        imports.runs.append(run)
    copied = {file.path for run in imports.runs for file in run.files}
    imports.others = [file for file in tree.files if file.path not in copied | refused]
    return imports


def _say_which(folder: OldFolder, stated: Stated) -> str:
    """The way out for a folder whose experiment is not known: the experiments that its files allow."""
    fitting = fitting_experiments(stated.precision, stated.augmentation)
    told = f"{stated.where[0]} states {stated.words()}; " if stated.where else ""
    if not fitting:
        return f"{told}no experiment of the earlier project had that, and it stays in the source"
    names = fitting[0] if len(fitting) == 1 else f"NAME, where NAME is one of {', '.join(fitting)}"
    return f"{told}say which one it is: --as {shown(folder.name)}={names}"


def _free_variant(experiment: str, folder: OldFolder, taken: set[tuple[str, str]]) -> str:
    """No variant for the first folder of an experiment; for others their names."""
    name = variant_of(folder.name)
    names = ["", name, *(f"{name}.{count}" for count in range(2, 1000))]
    return next(variant for variant in names if (experiment, variant) not in taken)


def _read_run(tree: SourceTree, folder: OldFolder, experiment: str, refused: set[str], *, assumed: bool) -> ImportedRun | str:
    """One folder as a run, or a sentence on why it is none; the paths of refused files go to `refused`."""
    remarks: list[str] = []
    read: dict[str, SourceFile] = {}
    for name in (FINAL, INTERRUPTED, LOAD, GPU, TIMING, *QUANTIZED):
        found = tree.candidates(folder, name)
        if found:
            read[name] = found[0]
        remarks += [f"{shown(other.path)}: is not read, {shown(found[0].path)} is; it is copied" for other in found[1:]]
    files = tree.of(folder)
    checkpoints = [look_into(tree, file) for file in files if file.path.lower().endswith(ENDINGS)]
    for checkpoint in checkpoints:
        if checkpoint.refused:
            refused.add(checkpoint.file.path)
            remarks.append(f"{shown(checkpoint.file.path)}: is refused, {checkpoint.refused}; it stays in the source")
        elif checkpoint.problem:
            remarks.append(f"{shown(checkpoint.file.path)}: {checkpoint.problem}; it is copied as it is")
    stated = read_stated(tree, read.get(TIMING), files, remarks)
    if EXPERIMENTS.get(experiment) and EXPERIMENTS[experiment].parameters == "QuantizeParams":
        record = _quantization(tree, folder, read, remarks)
    else:
        record = _training(tree, folder, experiment, read, checkpoints, stated, remarks, assumed=assumed)
    if isinstance(record, str):
        return record
    kept = [file for file in files if file.path not in refused]
    about = _about(tree, folder, files, kept, checkpoints, refused)
    if stated.report:
        about["timing_report"] = stated.report
    record.provenance = {"imported": about}
    record.experiment = experiment
    record.notes += [{"time": about["time"], "text": text} for text in remarks]
    return ImportedRun(folder, record, kept, remarks)


def _about(
    tree: SourceTree, folder: OldFolder, files: Sequence[SourceFile], kept: Sequence[SourceFile],
    checkpoints: Sequence[OldCheckpoint], refused: set[str],
) -> dict[str, Any]:  # fmt: skip
    """Where a run comes from: the old name, its files with digests, and the small texts among them."""
    start = len(folder.path) + 1
    texts: dict[str, str] = {}
    for file in sorted(kept, key=lambda file: file.bytes):
        if file.bytes > _LARGEST_EMBEDDED or sum(map(len, texts.values())) + file.bytes > _EMBEDDED:
            break
        try:
            with tree.open(file.path) as stream:
                texts[portable(file.path[start:])] = stream.read(_LARGEST_EMBEDDED).decode("utf-8")
        except (OSError, UnicodeDecodeError):
            continue
    inside = {one.file.path: {"epoch": one.epoch, "val_acc": one.val_acc} for one in checkpoints if one.val_acc is not None}
    return {
        "time": now(),
        "name": portable(folder.name),
        "source": portable(f"{tree.given}/{folder.path}"),
        "layout": folder.layout,
        "files": [
            {
                "path": portable(file.path[start:]), "bytes": file.bytes, "sha256": file.sha256,
                "copied": file.path not in refused, **inside.get(file.path, {}),
            }
            for file in files
        ],
        "originals": compress(texts),
    }  # fmt: skip


def portable(path: str) -> str:
    """A path as a text that every file can hold: bytes that are no UTF-8 are written out.

    Args:
        path: as the system gives it.
    """
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _fingerprint(record: RunRecord) -> str:
    """Digest of what was read and what it became, without times, places and wording: equal for equal imports."""
    values = record.model_dump(mode="python")
    about = values.pop("provenance")["imported"]
    del values["notes"]
    return digest_of([values, {key: about[key] for key in ("name", "layout", "files")}])


def originals(record: RunRecord) -> dict[str, str]:
    """The small text files of an imported run, as they were: path in its old folder → content.

    Args:
        record: of an imported run.
    """
    return dict(expand(record.provenance["imported"]["originals"]))


def _training(
    tree: SourceTree, folder: OldFolder, experiment: str, read: Mapping[str, SourceFile],
    checkpoints: Sequence[OldCheckpoint], stated: Stated, remarks: list[str], *, assumed: bool,
) -> RunRecord | str:  # fmt: skip
    """The record of a training, or a sentence on why there is none."""
    row = row_of(experiment)
    assert row is not None
    if stated.precision not in (None, row.precision) or stated.augmentation not in (None, row.augmentation):
        return f"{shown(folder.path)}: is not {label_of(experiment)}: {_say_which(folder, stated)}"
    history, status, reason = _history(tree, read, remarks)
    seen = [one for one in checkpoints if one.val_acc is not None]
    if not history.rows and not seen:
        return f"{shown(folder.path)}: holds neither metrics nor checkpoints that can be read; nothing to import"
    if not history.rows:
        status, reason = "interrupted", "no metrics file can be read; checkpoints alone are known"
    rates = [row.learning_rate for row in history.rows if row.learning_rate is not None]
    if assumed and folder.name in ASSUMED and len(rates) > 5 and rates[0] >= max(rates):
        return (
            f"{shown(folder.path)}: its learning rates show no warm-up, so that it is not {label_of(experiment)}; if it is "
            f"{label_of('BaseFP16')}, say so: --as {folder.name}=BaseFP16"
        )
    if status == "completed":
        status, reason = _how_it_ended(tree, len(history.rows), stated, read, checkpoints, remarks)
    _compare_checkpoints(history, seen, remarks)
    best = history.metrics.best_val_acc
    if stated.best_val_acc is not None and best is not None and abs(stated.best_val_acc - best) > 1e-6:
        remarks.append(
            f"{stated.where[0] if stated.where else TIMING}: has the best accuracy {stated.best_val_acc:.4f}, the history "
            f"{best:.4f}; the history counts"
        )
    done = history.metrics.epochs
    hardware = _hardware(tree, read, remarks)
    notes = [ASSUMED[folder.name]] if assumed and folder.name in ASSUMED and stated.augmentation is None else []
    notes += [OLD_FP16_NOTE] if experiment == OLD_FP16 else []
    of_project = folder.name in OLD_NAMES
    planned = stated.epochs or (done if status == "completed" else None)
    notes += CAVEATS
    parameters = known_parameters(experiment, folder=folder.name, epochs=planned)
    if parameters["precision"] == "fp16":
        notes.append(EVALUATED_IN_FP32)
    notes.append(_where_known(stated, parameters))
    return RunRecord(
        experiment=experiment, origin="imported", status=status, reason=reason, parameters=parameters,
        model={"name": parameters["model"]} if of_project else {}, data={"name": parameters["dataset"]} if of_project else {},
        progress={"epoch": done or 0} | ({"epochs": planned} if planned else {}),
        metrics=history.metrics, hardware=hardware, history=history.rows, notes=[{"time": now(), "text": text} for text in notes],
    )  # fmt: skip


def _where_known(stated: Stated, parameters: Mapping[str, Any]) -> str:
    """Which parameters a file states, which the name stands for, and which are known of the earlier project."""
    told = {"precision": stated.precision, "augmentation": stated.augmentation}
    by_name = [name for name, value in told.items() if value is None] + ["bundle"]
    words = (
        [f"{' and '.join(stated.where)} {'states' if len(stated.where) == 1 else 'state'} {stated.words()}."]
        if stated.where
        else []
    )
    last = f"{', '.join(by_name[:-1])} and {by_name[-1]} are" if len(by_name) > 1 else "the rest of the bundle is"
    words.append(f"{last[0].upper()}{last[1:]} what the name stands for, read from no file of the folder.")
    known = [name for name, key in (("data set", "dataset"), ("model", "model"), ("batch size", "batch_size"),
                                    ("learning rate", "learning_rate")) if key in parameters]  # fmt: skip
    if known:
        words.append(f"{', '.join(known[:-1])} and {known[-1]} are known of the earlier project.".capitalize())
    return " ".join(words)


def _how_it_ended(
    tree: SourceTree, epochs: int, stated: Stated, read: Mapping[str, SourceFile], checkpoints: Sequence[OldCheckpoint],
    remarks: list[str],
) -> tuple[Any, str | None]:  # fmt: skip
    """Status and reason of a run with a whole final metrics file.

    The earlier trainer wrote that file however training ended; after Ctrl-C the interrupted one as well, and the timing report
    unless training raised an error.
    """
    stopped = None  # epochs in the interrupted metrics file; of an earlier try in the same folder where the history is longer
    if INTERRUPTED in read:
        other = read_history(read_json(tree, read[INTERRUPTED], [])[0], INTERRUPTED, [])
        stopped = len(other.rows) or epochs
    if stated.epochs is not None:
        of_plan = f"after {epochs} of {stated.epochs} planned epochs"
        if epochs >= stated.epochs:
            if stopped is not None:
                remarks.append(f"{shown(read[INTERRUPTED].path)}: is there, but all {stated.epochs} planned epochs are as well")
            return "completed", None
        if stopped == epochs or stated.report:
            return "interrupted", f"interrupted in the earlier project {of_plan}"
        return (
            "failed",
            f"ended in the earlier project {of_plan}, without the files of a training that returned or was interrupted",
        )
    unknown = "how many epochs were planned, no file states"
    if stopped is not None and stopped >= epochs:
        return "interrupted", f"interrupted in the earlier project after {epochs} epochs; {unknown}"
    last = max((one.epoch for one in checkpoints if one.epoch is not None), default=0)
    if last > epochs:
        return "interrupted", f"a checkpoint is of epoch {last}, and the history ends with epoch {epochs}; {unknown}"
    remarks.append(
        f"{shown(read[FINAL].path)}: {unknown}; it counts as completed with the {epochs} epochs that are there, although the "
        "earlier trainer wrote this file after an error too"
    )
    return "completed", None


def _hardware(tree: SourceTree, read: Mapping[str, SourceFile], remarks: list[str]) -> Hardware:
    """What the earlier monitors saw."""
    load = read_json(tree, read[LOAD], remarks)[0] if LOAD in read else {}
    gpu = read_csv(tree, read[GPU], remarks) if GPU in read else {}
    return read_hardware((shown(read[LOAD].path), load) if load else None, (shown(read[GPU].path), gpu) if gpu else None, remarks)


def _history(tree: SourceTree, read: Mapping[str, SourceFile], remarks: list[str]) -> tuple[OldHistory, Any, str | None]:
    """The history of the first metrics file that has one, the status that follows, and its reason."""
    found = OldHistory()
    for name, status in ((FINAL, "completed"), (INTERRUPTED, "interrupted")):
        if name not in read:
            continue
        path = shown(read[name].path)
        values, whole = read_json(tree, read[name], remarks)
        if not values:
            continue
        found = read_history(values, path, remarks)
        if not found.rows:
            continue
        if found.diverged:
            return found, "diverged", "the last training loss is not finite"
        if not whole:
            return found, "interrupted", f"{path} is no whole file: how the run ended is not known"
        return found, status, None if status == "completed" else "interrupted in the earlier project"
    if FINAL not in read and INTERRUPTED not in read:
        remarks.append(f"there is neither {FINAL} nor {INTERRUPTED}")
    return found, "interrupted", None


def _compare_checkpoints(history: OldHistory, seen: Sequence[OldCheckpoint], remarks: list[str]) -> None:
    """Say where the best checkpoint and the history disagree on the best accuracy."""
    best = next((one for one in seen if PurePosixPath(one.file.path).name == "best_model.pt"), None)
    known = history.metrics.best_val_acc
    if best is not None and best.val_acc is not None and known is not None and abs(best.val_acc - known) > 1e-6:
        remarks.append(
            f"{shown(best.file.path)}: has the accuracy {best.val_acc:.4f}, the best of the history is {known:.4f}; "
            "the history counts"
        )
    numbered = [one for one in seen if re.fullmatch(r"checkpoint_epoch_\d+\.pt", PurePosixPath(one.file.path).name)]
    if not history.rows and numbered:
        remarks.append(f"{len(numbered)} checkpoints of single epochs have accuracies; they are in the table of files")


def _quantization(tree: SourceTree, folder: OldFolder, read: Mapping[str, SourceFile], remarks: list[str]) -> RunRecord | str:
    """The record of an FP8 test, or a sentence on why there is none."""
    for name in QUANTIZED:
        if name not in read:
            continue
        values = read_json(tree, read[name], remarks)[0]
        source, rows = read_quantization(values, shown(read[name].path), remarks)
        if rows:
            break
    else:
        return f"{shown(folder.path)}: holds no result of an FP8 test that can be read; nothing to import"
    path = values.get("source_model")
    path = shown(path) if isinstance(path, str) and path.strip() else None
    experiment = next((OLD_NAMES[part] for part in reversed((path or "").split("/")) if part in OLD_NAMES), "original_fp16")
    notes = [
        NO_FP8[rows[0].format],
        CAVEATS[0],
        FP8_TEST_MEANS,
        CAVEATS[2],
        EVALUATED_IN_FP32,
        f"Quantised: {path}, as {shown(read[name].path)} states."
        if path
        else f"Which run was quantised, {shown(read[name].path)} does not say; it calls it original_fp16.",
    ]
    known = folder.name in OLD_NAMES
    return RunRecord(
        kind="quantization", experiment="FP8Test", origin="imported", status="completed",
        parameters={"experiment": "FP8Test"}, progress={"epoch": 1, "epochs": 1, "unit": "measurement"},
        model={"name": "vit_tiny_patch16_224"} if known else {},
        data={"name": "cifar10"} if known else {},
        source={"run": None, "experiment": experiment, **({"path": path} if path else {}), **source}, quantization=rows,
        notes=[{"time": now(), "text": text} for text in notes],
    )  # fmt: skip
