"""What the folders of an earlier project are called now, and what is known of how its runs were made.

This is the one place that knows the old names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from vitfp8.catalog import ARCHIVED, EXPERIMENTS, row_of
from vitfp8.errors import InputError, suggest

#: The superseded FP16 run: the Augm bundle, but basic augmentation.
OLD_FP16 = "BaseFP16_OLD_ARCHIVE"

#: Old folder name → experiment, in the order in which folders of one experiment are taken. See `ASSUMED` for the third FP16.
OLD_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "BaseFP32": "BaseFP32",
        "AugmFP32": "AugmFP32",
        "BaseFP16": "BaseFP16",
        "AugmFP16": "AugmFP16",
        "FP8Test": "FP8Test",
        OLD_FP16: OLD_FP16,
        "baseline_fp32": "BaseFP32",
        "exp1_baseline": "BaseFP32",
        "experiment2_regularized": "AugmFP32",
        "exp2_regularized": "AugmFP32",
        "exp3_fp16_fixed": "AugmFP16",
        "experiment3_fp16": OLD_FP16,
        "exp3_fp16": OLD_FP16,
        "experiment3_fp16_OLD_ARCHIVE": OLD_FP16,
        "exp4_fp8_test": "FP8Test",
    }
)

#: Old names whose meaning is an assumption → the assumption, in a sentence that the record carries.
#: The FP8 test of the earlier project followed this folder and quantised AugmFP16; no file says that extended augmentation was
#: what had been "fixed" in it. Learning rates without a warm-up speak against it: then the folder waits for ``--as``.
ASSUMED: Mapping[str, str] = MappingProxyType(
    {
        "exp3_fp16_fixed": (
            "That this folder is AugmFP16 is assumed: the FP8 test that followed it quantised AugmFP16. No file of it says "
            "which augmentation it had. If it was basic augmentation without the bundle, import it with "
            "--as exp3_fp16_fixed=BaseFP16."
        ),
    }
)

_BASE: Mapping[str, Any] = {"weight_decay": 0.05, "label_smoothing": 0.0, "gradient_clip": None, "warmup_fraction": 0.0}
_AUGM: Mapping[str, Any] = {"weight_decay": 0.1, "label_smoothing": 0.1, "gradient_clip": 1.0, "warmup_fraction": 0.1}

#: Warm-up of the bundle in the earlier project, in epochs, however many epochs there were.
OLD_WARMUP_EPOCHS = 5

#: Folders that were filled by versions of the earlier project with different batch sizes (64, later 128).
_BATCH_SIZE_CHANGED = ("baseline_fp32", "experiment2_regularized")

#: What all runs of the earlier project had in common; known of the project, and in none of its files.
_PROJECT: Mapping[str, Any] = MappingProxyType(
    {
        "dataset": "cifar10", "model": "vit_tiny_patch16_224", "pretrained": False, "image_size": 224, "batch_size": 128,
        "learning_rate": 1e-3,
    }
)  # fmt: skip

#: How the earlier project worked, as far as it differs from this one; each record carries these sentences.
CAVEATS: tuple[str, ...] = (
    "The best epoch was chosen on the test set. What its files call validation (val_acc, val_loss) is the test set, and the best "
    "of these accuracies is biased upwards: it is no validation accuracy and no test accuracy of this project.",
    "Means of batch means were taken, not means over images: a small last batch weighs too much.",
    "No seed was set: the run cannot be repeated, and it is never paired with a run of this project.",
    "Training accuracy was taken while training, on augmented images: the gap to it understates overfitting under augmentation.",
    "Commit, machine and versions of libraries are not known.",
)

#: The further caveat of runs in half precision.
EVALUATED_IN_FP32 = "The model was trained in FP16 and evaluated in FP32."

#: The caveat of the superseded FP16 run.
OLD_FP16_NOTE = (
    "Superseded run: trained in FP16 with weight decay 0.1, label smoothing 0.1, gradient clip 1.0 and a warm-up of "
    f"{OLD_WARMUP_EPOCHS} epochs, but basic augmentation. It is neither BaseFP16 nor AugmFP16, and is compared with neither."
)

#: What the earlier project called FP8, by the format that it stands here as. Its first script had nine levels.
NO_FP8: Mapping[str, str] = MappingProxyType(
    {
        name: (
            f"What the files call FP8 is a rounding of scaled weights to whole numbers up to ±{largest}: not an FP8 format, and "
            f"not E4M3. It stands here as {name}."
        )
        for name, largest in (("int_240", 240), ("int_4", 4))
    }
)

#: How the FP8 tests of the earlier project worked.
FP8_TEST_MEANS = "Accuracies of the FP8 test are correct images ÷ images of the test set; its losses are means of batch means."


def fitting_experiments(precision: str | None, augmentation: str | None) -> list[str]:
    """The experiments that an earlier folder can be, given what its files state of it.

    Args:
        precision: as they state it; None where they do not.
        augmentation: likewise.
    """
    rows = {name: row for name in dict.fromkeys(OLD_NAMES.values()) if (row := row_of(name)) is not None}
    if precision is None and augmentation is None:
        return list(rows)
    return [
        name
        for name, row in rows.items()
        if row.parameters == "RunParams" and precision in (None, row.precision) and augmentation in (None, row.augmentation)
    ]


def parse_renaming(assignments: Iterable[str]) -> dict[str, tuple[str, str]]:
    """What ``--as OLD=NEW`` and ``--as OLD=NEW~VARIANT`` say.

    Args:
        assignments: as typed. OLD is a folder's name, or its path in the source where two have one name.

    Returns:
        Old name → experiment and variant.

    Raises:
        InputError: it is no assignment, NEW is unknown, or an OLD is given twice.
    """
    found: dict[str, tuple[str, str]] = {}
    known = [*EXPERIMENTS, *ARCHIVED]
    for text in assignments:
        old, equals, new = text.rpartition("=")
        if not equals or not old or not new:
            raise InputError(f"--as: {text!r}: is no OLD=NEW; write for instance --as my_run=BaseFP32")
        experiment, _, variant = new.partition("~")
        if experiment not in known:
            raise InputError(f"--as: {text!r}: {experiment!r} is no experiment; {suggest(experiment, known)}")
        if not re.fullmatch(r"[A-Za-z0-9_.+]{0,80}", variant):
            raise InputError(f"--as: {text!r}: {variant!r} is no variant; take letters, digits, '_', '.' and '+'")
        if old in found:
            raise InputError(f"--as: {old!r}: is given twice; keep one")
        found[old] = experiment, variant
    return found


def variant_of(folder: str) -> str:
    """A folder's name as the variant that tells two imports of one experiment apart.

    Args:
        folder: any name.
    """
    return re.sub(r"[^A-Za-z0-9_.+]", "_", folder)[:60]


def known_parameters(experiment: str, *, folder: str, epochs: int | None) -> dict[str, Any]:
    """The parameters of an imported training that are known; what is not known is left out.

    Args:
        experiment: its new name, which stands for precision, augmentation and bundle.
        folder: its old name; for a name of the earlier project, data set, model and (mostly) batch size are known.
        epochs: planned, by its files; None where they do not say.
    """
    row = row_of(experiment)
    assert row is not None
    found: dict[str, Any] = {"experiment": experiment, "precision": row.precision, "augmentation": row.augmentation}
    found |= _AUGM if experiment == OLD_FP16 or row.augmentation == "extended" else _BASE
    if folder in OLD_NAMES:
        found |= _PROJECT
    if folder in _BATCH_SIZE_CHANGED:
        del found["batch_size"]
    if found["warmup_fraction"] and (folder in OLD_NAMES or experiment == OLD_FP16):
        del found["warmup_fraction"]
        if epochs and epochs >= OLD_WARMUP_EPOCHS:
            found["warmup_fraction"] = OLD_WARMUP_EPOCHS / epochs
    if epochs is not None:
        found["epochs"] = epochs
    return found
