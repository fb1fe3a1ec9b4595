"""From a folder of an earlier project to the record of a run.

The record has one note on what is known of this run and what is not. What holds for the earlier project as a whole stands in
its provenance as ``caveats``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from vitfp8.catalog import label_of, row_of
from vitfp8.errors import InputError, printable
from vitfp8.legacy.checkpoints import RefusedError, read_checkpoint
from vitfp8.legacy.hardware import Series, hardware_of
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
    is_quantization,
    known_parameters,
    variant_of,
)
from vitfp8.legacy.reader import (
    FINAL,
    GPU,
    INTERRUPTED,
    LOAD,
    QUANTIZED,
    TIMING,
    NotTakenError,
    Stated,
    read_config,
    read_gpu,
    read_history,
    read_load,
    read_quantization,
    read_timing,
)
from vitfp8.legacy.source import OldFolder, SourceFile, SourceTree
from vitfp8.record import RunRecord, digest_of, now
from vitfp8.record.codec import compress

_CHECKPOINTS = (".pt", ".pth", ".ckpt")

#: A text file up to this size is kept inside the record as well, while all of a run's together stay below `_EMBEDDED`.
_LARGEST_EMBEDDED = 64 * 1024
_EMBEDDED = 256 * 1024


@dataclass
class ImportedRun:
    """A run that can be imported.

    Attributes:
        folder: where it lies in the source.
        record: what becomes of it.
        files: those that are copied along.
        not_taken: one sentence for each of its files of which nothing is taken.
    """

    folder: OldFolder
    record: RunRecord
    files: list[SourceFile]
    not_taken: list[str]


@dataclass
class Imports:
    """What an earlier project's tree holds.

    Attributes:
        runs: those that can be imported.
        others: files that belong to none of them; they are copied beside.
        left: one sentence for each entry that is not imported, with a way out.
    """

    tree: SourceTree
    runs: list[ImportedRun] = field(default_factory=list)
    others: list[SourceFile] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


class _LeftError(Exception):
    """A folder is not imported; ``str(error)`` says why, without its path."""


def find_runs(tree: SourceTree, renaming: Mapping[str, tuple[str, str]]) -> Imports:
    """Read every experiment of a tree. Writes nothing.

    Args:
        tree: from `vitfp8.legacy.source.read_tree`.
        renaming: what the user says of folders: name or path → experiment and variant.

    Raises:
        InputError: a folder of ``renaming`` is not there, or two folders would become one run.
    """
    imports = Imports(tree, left=list(tree.left))
    for old in renaming:
        if not any(old in (folder.name, folder.path) for folder in tree.experiments):
            there = ", ".join(printable(folder.path, 160) for folder in tree.experiments) or "none"
            raise InputError(f"--as: {old!r}: {tree.given!r} holds no such experiment's folder; there are: {there}")
    order = list(OLD_NAMES)
    taken = set(renaming.values())
    refused: set[str] = set()
    for folder in sorted(tree.experiments, key=lambda f: (order.index(f.name) if f.name in order else len(order), f.path)):
        said = renaming.get(folder.path) or renaming.get(folder.name)
        old_run = _OldRun(tree, folder)
        try:
            if said is None and folder.name not in OLD_NAMES:
                old_run.read_stated()
                raise _LeftError(f"is not a known experiment; {old_run.say_which()}")
            experiment, variant = said or (OLD_NAMES[folder.name], "")
            run = old_run.read(experiment, assumed=said is None)
        except _LeftError as error:
            imports.left.append(f"{printable(folder.path, 160)}: {error}")
            continue
        finally:
            refused |= old_run.refused
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
    imports.others = [file for path, file in tree.files.items() if path not in copied | refused]
    return imports


def _free_variant(experiment: str, folder: OldFolder, taken: set[tuple[str, str]]) -> str:
    """No variant for the first folder of an experiment, their names for others."""
    name = variant_of(folder.name)
    names = ["", name, *(f"{name}.{count}" for count in range(2, 1000))]
    return next(variant for variant in names if (experiment, variant) not in taken)


def _fingerprint(record: RunRecord) -> str:
    """Digest of what was read and what it became, without times, places and wording: equal for equal imports."""
    values = record.model_dump(mode="python")
    about = values.pop("provenance")["imported"]
    del values["notes"]
    return digest_of([values, {key: about[key] for key in ("name", "layout", "files")}])


class _OldRun:
    """One experiment's folder while it is read.

    Attributes:
        refused: paths of files that are not copied, since loading them would execute code.
        not_taken: one sentence for each file of which nothing is taken.
    """

    def __init__(self, tree: SourceTree, folder: OldFolder) -> None:
        self.tree, self.folder, self.files = tree, folder, tree.of(folder)
        self.stated = Stated()
        self.checkpoints: dict[str, Mapping[str, float]] = {}
        self.refused: set[str] = set()
        self.not_taken: list[str] = []

    def read(self, experiment: str, *, assumed: bool) -> ImportedRun:
        """The folder as a run of an experiment; ``assumed``: the user did not name it. Raises `_LeftError`."""
        self._read_checkpoints()
        if is_quantization(experiment):
            record, notes = self._quantization()
            caveats = [CAVEATS[0], FP8_TEST_MEANS, CAVEATS[2], EVALUATED_IN_FP32]
        else:
            self.read_stated()
            record, notes = self._training(experiment, assumed=assumed)
            caveats = [*CAVEATS, *([EVALUATED_IN_FP32] if record.parameters["precision"] == "fp16" else [])]
        time = now()
        record.notes = [{"time": time, "text": "\n".join(notes + self.not_taken)}]
        record.provenance = {"imported": self._about(time) | {"caveats": caveats}}
        kept = [file for file in self.files if file.path not in self.refused]
        return ImportedRun(self.folder, record, kept, self.not_taken)

    def read_stated(self) -> None:
        """Take what the timing report and a configuration in the folder state."""
        if (file := self._file(TIMING)) is not None:
            with self._naming(file):
                read_timing(self.tree, file, self.stated)
        for file in self.files:
            if file.path.lower().endswith((".yaml", ".yml")):
                with suppress(NotTakenError):  # some other YAML file
                    read_config(self.tree, file, self.stated)
                    break

    def say_which(self) -> str:
        """The way out for a folder whose experiment is not known: the experiments that its files allow."""
        fitting = fitting_experiments(self.stated.precision, self.stated.augmentation)
        told = f"{self.stated.where[0]} states {self.stated.words()}; " if self.stated.where else ""
        if not fitting:
            return f"{told}no experiment of the earlier project had that, and it stays in the source"
        names = fitting[0] if len(fitting) == 1 else f"NAME, where NAME is one of {', '.join(fitting)}"
        return f"{told}say which one it is: --as {printable(self.folder.name, 160)}={names}"

    def _file(self, name: str) -> SourceFile | None:
        """A metrics file by its name; None where it is not there."""
        return self.tree.files.get(self.folder.metrics + name)

    @contextmanager
    def _naming(self, file: SourceFile) -> Iterator[None]:
        """Name a file of which nothing is taken, and go on."""
        try:
            yield
        except NotTakenError as error:
            self.not_taken.append(f"Not taken over: {printable(file.path, 160)}: {error}.")

    def _training(self, experiment: str, *, assumed: bool) -> tuple[RunRecord, list[str]]:
        """The record of a training, and what its note says."""
        name, stated, row = self.folder.name, self.stated, row_of(experiment)
        assert row is not None
        if stated.precision not in (None, row.precision) or stated.augmentation not in (None, row.augmentation):
            raise _LeftError(f"is not {label_of(experiment)}: {self.say_which()}")
        metrics = self._file(FINAL) or self._file(INTERRUPTED)
        if metrics is None:
            raise _LeftError(f"holds neither {FINAL} nor {INTERRUPTED}")
        try:
            history = read_history(self.tree, metrics)
        except NotTakenError as error:
            raise _LeftError(f"{printable(metrics.path[len(self.folder.path) + 1 :])} is not taken over: {error}") from None
        rates = [epoch.learning_rate for epoch in history.rows if epoch.learning_rate is not None]
        if assumed and name in ASSUMED and len(rates) > 5 and rates[0] >= max(rates):
            raise _LeftError(
                f"its learning rates show no warm-up, so it is not {label_of(experiment)}; if it is {label_of('BaseFP16')}, "
                f"say so: --as {name}=BaseFP16"
            )
        notes = [ASSUMED[name]] if assumed and name in ASSUMED and stated.augmentation is None else []
        notes += [OLD_FP16_NOTE] if experiment == OLD_FP16 else []
        status: Any
        reason: str | None
        if history.diverged:
            status, reason = "diverged", "the last training loss is not finite"
        elif metrics.path.endswith(INTERRUPTED):
            status, reason = "interrupted", "interrupted in the earlier project"
        else:
            status, reason = self._how_it_ended(len(history.rows), notes)
        done = len(history.rows)
        planned = stated.epochs or (done if status == "completed" else None)
        parameters = known_parameters(experiment, folder=name, epochs=planned)
        notes.append(self._where_known(parameters))
        series = self._series()
        notes += [note for one in series for note in one.notes]
        of_project = name in OLD_NAMES
        record = RunRecord(
            experiment=experiment, origin="imported", status=status, reason=reason, parameters=parameters,
            model={"name": parameters["model"]} if of_project else {},
            data={"name": parameters["dataset"]} if of_project else {},
            progress={"epoch": done} | ({"epochs": planned} if planned else {}),
            metrics=history.metrics, hardware=hardware_of(series), history=history.rows,
        )  # fmt: skip
        return record, notes

    def _how_it_ended(self, epochs: int, notes: list[str]) -> tuple[str, str | None]:
        """Status and reason of a run with final metrics.

        The earlier trainer wrote that file however training ended; after Ctrl-C the interrupted one as well, and the timing
        report unless training raised an error.
        """
        stopped = None  # epochs in the interrupted metrics: fewer than in the final ones if they are of an earlier try
        if (file := self._file(INTERRUPTED)) is not None:
            with self._naming(file):
                stopped = len(read_history(self.tree, file).rows)
        planned = self.stated.epochs
        if planned is not None:
            of_plan = f"after {epochs} of {planned} planned epochs"
            if epochs >= planned:
                return "completed", None
            if stopped == epochs or self.stated.report:
                return "interrupted", f"interrupted in the earlier project {of_plan}"
            return (
                "failed",
                f"ended in the earlier project {of_plan}, without the files of a training that returned or was interrupted",
            )
        unknown = "how many epochs were planned, no file states"
        if stopped is not None and stopped >= epochs:
            return "interrupted", f"interrupted in the earlier project after {epochs} epochs; {unknown}"
        last = max((int(values.get("epoch", 0)) for values in self.checkpoints.values()), default=0)
        if last > epochs:
            return "interrupted", f"a checkpoint is of epoch {last}, and the history ends with epoch {epochs}; {unknown}"
        notes.append(f"{FINAL}: {unknown}; the run counts as completed with its {epochs} epochs.")
        return "completed", None

    def _where_known(self, parameters: Mapping[str, Any]) -> str:
        """Which parameters a file states, which the name stands for, and which are known of the earlier project."""
        stated = self.stated
        told = {"precision": stated.precision, "augmentation": stated.augmentation}
        by_name = [name for name, value in told.items() if value is None]
        sentences = []
        if stated.where:
            verb = "states" if len(stated.where) == 1 else "state"
            sentences.append(f"{' and '.join(stated.where)} {verb} {stated.words()}.")
        what = f"{', '.join(by_name)} and bundle are" if by_name else "The rest of the bundle is"
        sentences.append(f"{what[0].upper()}{what[1:]} what the name stands for, read from no file of the folder.")
        words = {"dataset": "data set", "model": "model", "batch_size": "batch size", "learning_rate": "learning rate"}
        if known := [word for key, word in words.items() if key in parameters]:
            sentences.append(f"{', '.join(known[:-1])} and {known[-1]} are known of the earlier project.".capitalize())
        return " ".join(sentences)

    def _series(self) -> list[Series]:
        """What the earlier monitors saw."""
        found: list[Series] = []
        for name, read in ((LOAD, read_load), (GPU, read_gpu)):
            if (file := self._file(name)) is not None:
                with self._naming(file):
                    found.append(read(self.tree, file))
        return found

    def _read_checkpoints(self) -> None:
        """Look into the checkpoints; those that would execute code are refused."""
        for file in self.files:
            if file.path.lower().endswith(_CHECKPOINTS):
                with self._naming(file):
                    try:
                        self.checkpoints[file.path] = read_checkpoint(self.tree, file)
                    except RefusedError as error:
                        self.refused.add(file.path)
                        self.not_taken.append(
                            f"Not taken over: {printable(file.path, 160)}: is refused and stays in the source: loading it would "
                            f"execute {error}."
                        )

    def _quantization(self) -> tuple[RunRecord, list[str]]:
        """The record of an FP8 test, and what its note says."""
        file = next((file for name in QUANTIZED if (file := self._file(name)) is not None), None)
        if file is None:
            raise _LeftError(f"holds no result of an FP8 test ({' or '.join(QUANTIZED)})")
        name = PurePosixPath(file.path).name
        try:
            found = read_quantization(self.tree, file)
        except NotTakenError as error:
            raise _LeftError(f"{name} is not taken over: {error}") from None
        named = [OLD_NAMES[part] for part in (found.path or "").split("/") if part in OLD_NAMES]
        source: dict[str, Any] = {"run": None, "experiment": named[-1] if named else "original_fp16"}
        source |= ({"path": found.path} if found.path else {}) | found.source
        quantized = (
            f"Quantised: {found.path}, as {name} states."
            if found.path
            else f"Which run was quantised, {name} does not say; it calls it original_fp16."
        )
        known = self.folder.name in OLD_NAMES
        record = RunRecord(
            kind="quantization", experiment="FP8Test", origin="imported", status="completed",
            parameters={"experiment": "FP8Test"}, progress={"epoch": 1, "epochs": 1, "unit": "measurement"},
            model={"name": "vit_tiny_patch16_224"} if known else {}, data={"name": "cifar10"} if known else {},
            source=source, quantization=[found.row],
        )  # fmt: skip
        return record, [NO_FP8[found.row.format], quantized]

    def _about(self, time: str) -> dict[str, Any]:
        """Where a run comes from: its old name, its files with digests, and the small texts among them."""
        start = len(self.folder.path) + 1
        texts: dict[str, str] = {}
        for file in sorted(self.files, key=lambda file: file.bytes):
            if file.bytes > _LARGEST_EMBEDDED or sum(map(len, texts.values())) + file.bytes > _EMBEDDED:
                break
            try:
                with self.tree.open(file.path) as stream:
                    texts[_utf8(file.path[start:])] = stream.read(_LARGEST_EMBEDDED).decode("utf-8")
            except (OSError, UnicodeDecodeError):
                continue
        about: dict[str, Any] = {
            "time": time,
            "name": _utf8(self.folder.name),
            "source": _utf8(f"{self.tree.given}/{self.folder.path}"),
            "layout": self.folder.layout,
            "files": [
                {"path": _utf8(file.path[start:]), "bytes": file.bytes, "sha256": file.sha256}
                | {"copied": file.path not in self.refused}
                | self._inside(file)
                for file in self.files
            ],
            "originals": compress(texts),
        }
        return about | ({"timing_report": self.stated.report} if self.stated.report else {})

    def _inside(self, file: SourceFile) -> dict[str, float | None]:
        """Epoch and accuracy inside a checkpoint; empty without an accuracy."""
        values = self.checkpoints.get(file.path, {})
        return {"epoch": values.get("epoch"), "val_acc": values["val_acc"]} if "val_acc" in values else {}


def _utf8(path: str) -> str:
    """A path as a text that every file can hold: bytes that are not UTF-8 are written out."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
