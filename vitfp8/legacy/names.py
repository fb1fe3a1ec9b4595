"""What an earlier project's result folders are called now, and what is known of how its runs were made.

This is the one place that knows the old names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from vitfp8.catalog import ARCHIVED, BUNDLES, EXPERIMENTS, row_of
from vitfp8.errors import InputError, suggest

#: The superseded FP16 run: the Augm bundle, but basic augmentation.
OLD_FP16 = "BaseFP16_OLD_ARCHIVE"

#: Old folder name → experiment. Where several folders are one experiment, the first in this order gets its plain name.
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

#: Old name whose meaning is assumed → the assumption, as the record states it. The FP8 test that followed this folder quantised
#: AugmFP16, and no file says what had been "fixed". Learning rates without a warm-up speak against it: the folder then needs
#: ``--as``.
ASSUMED: Mapping[str, str] = MappingProxyType(
    {
        "exp3_fp16_fixed": (
            "That this folder is AugmFP16 is assumed: the FP8 test that followed it quantised AugmFP16, and none of its files "
            "states the augmentation. If it was basic, without the bundle, import it with --as exp3_fp16_fixed=BaseFP16."
        ),
    }
)

#: Warm-up of the bundle in the earlier project, in epochs, whatever the number of epochs.
OLD_WARMUP_EPOCHS = 5

#: Folders that versions of the earlier project filled with different batch sizes (64, later 128).
_BATCH_SIZE_CHANGED = ("baseline_fp32", "experiment2_regularized")

#: What all runs of the earlier project had in common. Known of the project, stated in none of its result files.
_PROJECT: Mapping[str, Any] = MappingProxyType(
    {
        "dataset": "cifar10", "model": "vit_tiny_patch16_224", "pretrained": False, "image_size": 224, "batch_size": 128,
        "learning_rate": 1e-3,
    }
)  # fmt: skip

#: Where the earlier project worked differently; the provenance of every imported run holds these sentences.
CAVEATS: tuple[str, ...] = (
    "The best epoch was chosen on the test set: what the files call validation (val_acc, val_loss) is the test set, and the best "
    "of these accuracies is biased upwards. It is neither a validation nor a test accuracy of this project.",
    "Losses and accuracies are means of batch means, not means over images: a small last batch weighs too much.",
    "No seed was set: the run cannot be repeated, and it is never paired with a run of this project.",
    "Training accuracy was taken while training, on augmented images: the gap to it understates overfitting under augmentation.",
    "Commit, machine and library versions are not known.",
)

#: A further caveat of runs in half precision.
EVALUATED_IN_FP32 = "The model was trained in FP16 and evaluated in FP32."

#: The caveat of the superseded FP16 run.
OLD_FP16_NOTE = (
    "Superseded run: trained in FP16 with weight decay 0.1, label smoothing 0.1, gradient clip 1.0 and a warm-up of "
    f"{OLD_WARMUP_EPOCHS} epochs, but basic augmentation. It is neither BaseFP16 nor AugmFP16, and is compared with neither."
)

#: Format under which an old FP8 test stands here → what it really was.
NO_FP8: Mapping[str, str] = MappingProxyType(
    {
        name: (
            f"What the files call FP8 rounds scaled weights to whole numbers up to ±{largest}: not an FP8 format, and not E4M3. "
            f"It stands here as {name}."
        )
        for name, largest in (("int_240", 240), ("int_4", 4))
    }
)

#: How the FP8 tests of the earlier project averaged.
FP8_TEST_MEANS = "Accuracies of the FP8 test are correct images ÷ images of the test set; its losses are means of batch means."


def is_quantization(experiment: str) -> bool:
    """Whether an experiment quantises a trained model."""
    return experiment in EXPERIMENTS and EXPERIMENTS[experiment].parameters == "QuantizeParams"


def fitting_experiments(precision: str | None, augmentation: str | None) -> list[str]:
    """The experiments that an old folder can be, given the precision and augmentation that its files state (None: not stated)."""
    rows = {name: row for name in dict.fromkeys(OLD_NAMES.values()) if (row := row_of(name)) is not None}
    if precision is None and augmentation is None:
        return list(rows)
    return [
        name
        for name, row in rows.items()
        if not is_quantization(name) and precision in (None, row.precision) and augmentation in (None, row.augmentation)
    ]


def parse_renaming(assignments: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Old name → experiment and variant, from ``--as OLD=NEW`` and ``--as OLD=NEW~VARIANT``.

    OLD is a folder's name, or its path in the source where two folders share a name.

    Raises:
        InputError: an assignment cannot be read, NEW is unknown, or an OLD is given twice.
    """
    found: dict[str, tuple[str, str]] = {}
    known = [*EXPERIMENTS, *ARCHIVED]
    for text in assignments:
        old, equals, new = text.rpartition("=")
        if not equals or not old or not new:
            raise InputError(f"--as: {text!r}: is not of the form OLD=NEW; write for instance --as my_run=BaseFP32")
        experiment, _, variant = new.partition("~")
        if experiment not in known:
            raise InputError(f"--as: {text!r}: {experiment!r} is not an experiment; {suggest(experiment, known)}")
        if not re.fullmatch(r"[A-Za-z0-9_.+]{0,80}", variant):
            raise InputError(f"--as: {text!r}: {variant!r} is not a variant; use letters, digits, '_', '.' and '+'")
        if old in found:
            raise InputError(f"--as: {old!r}: is given twice; keep one")
        found[old] = experiment, variant
    return found


def variant_of(folder: str) -> str:
    """A folder's name as the variant that tells two imports of one experiment apart."""
    return re.sub(r"[^A-Za-z0-9_.+]", "_", folder)[:60]


def known_parameters(experiment: str, *, folder: str, epochs: int | None) -> dict[str, Any]:
    """The known parameters of an imported training; unknown ones are left out.

    Args:
        experiment: its present name, which stands for precision, augmentation and bundle.
        folder: its old name; data set, model and (mostly) batch size are known only for names of the earlier project.
        epochs: planned, as its files state; None where they do not.
    """
    row = row_of(experiment)
    assert row is not None
    found: dict[str, Any] = {"experiment": experiment, "precision": row.precision, "augmentation": row.augmentation}
    found |= BUNDLES["extended" if experiment == OLD_FP16 else row.augmentation]
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
