"""Sentences of the report: every number in them comes from records, and every text of a record is escaped.

Each function returns Markdown. The wording follows the number of runs: one run per cell is described, never judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vitfp8.analysis.contrasts import ENDPOINTS, FALLBACK, IMPORTED_ENDPOINTS, PRIMARY, find_contrasts
from vitfp8.analysis.escaping import escape_markdown as md
from vitfp8.analysis.escaping import one_line
from vitfp8.analysis.metrics import IMPORTED_CAVEATS, Group, StudyResults, finite
from vitfp8.analysis.statistics import (
    LEAST_SEEDS_FOR_A_TEST,
    binomial_standard_error,
    describe,
    least_p,
    wilson_interval,
)
from vitfp8.analysis.tables import diverged_beside, number
from vitfp8.catalog import AUGM_BUNDLE, AUGMENTATION_LEVELS, DATASETS, EXPERIMENTS, PRECISIONS, label_of


def percent(value: float, digits: int = 2) -> str:
    """A fraction as percent, with its unit.

    Args:
        value: a fraction.
        digits: after the point.
    """
    return f"{number(value, 100, digits)} %"


def listed(parts: Sequence[str]) -> str:
    """Parts as an enumeration in a sentence.

    Args:
        parts: at least one.
    """
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def mean_words(group: Group, key: str) -> str | None:
    """A mean with its spread and n, e.g. ``97.31 ± 0.22 % (n = 3)``; None where nothing is known.

    Args:
        group: whose.
        key: column of fractions.
    """
    sample = describe(group.values(key))
    if sample is None:
        return None
    if sample.sd is None:
        return f"{percent(sample.mean)} (n = 1)"
    return f"{number(sample.mean, 100)} ± {number(sample.sd, 100)} % (n = {sample.n})"


def opening(results: StudyResults, title: str, question: str = "") -> str:
    """Title, what the study asks, and what there is.

    Args:
        results: the study.
        title: of the report; empty: named after the study.
        question: of the study; empty: not said.
    """
    lines = [f"# {md(title or f'Study {results.name}')}", ""]
    if question:
        lines += [f"**Question.** {md(question)}", ""]
    runs = "one run" if len(results.runs) == 1 else f"{len(results.runs)} runs"
    lines.append(f"The study *{md(results.name)}* holds {runs}: {results.status_words()}. {headline(results)}")
    for sentence in results.mismatches():
        lines += ["", f"**Note.** {md(sentence)}"]
    return "\n".join(lines)


def headline(results: StudyResults) -> str:
    """The primary endpoint of every group in a sentence or two.

    Args:
        results: the study.
    """
    if not results.groups:
        return "None has completed, so that there is no result; what happened to them is listed below."
    for key in (PRIMARY, FALLBACK):
        known = [(group, words) for group in results.groups if group.origin == "run" and (words := mean_words(group, key))]
        if known:
            parts = [f"{md(group.label)} {words}" for group, words in known]
            return (
                f"{ENDPOINTS[key].capitalize()}: {listed(parts)}. {seeds_remark(results)} {_imported_headline(results)}".strip()
            )
    return f"No run that was executed here has a test or validation accuracy. {_imported_headline(results)}".strip()


def _imported_headline(results: StudyResults) -> str:
    """The best accuracies of imported runs, with what they are; empty where there are none."""
    known = [(group, words) for group in results.groups if group.imported and (words := mean_words(group, FALLBACK))]
    if not known:
        return ""
    parts = [f"{md(group.label)} {words}" for group, words in known]
    return f"Imported from an earlier project, {IMPORTED_ENDPOINTS[FALLBACK]}: {listed(parts)}."


def seeds_remark(results: StudyResults) -> str:
    """What the number of seeds allows.

    Args:
        results: the study.
    """
    counts = [group.n for group in results.groups if group.origin == "run"]
    if not counts:
        return ""
    if max(counts) == 1:
        return "There is one run per cell: differences are described, not judged, since a single seed shows no spread."
    if min(counts) < LEAST_SEEDS_FOR_A_TEST:
        n = max(min(counts), 1)
        least = f"; the least p that {n} paired seeds can give is {least_p(n):.3g}" if n > 1 else ""
        return f"There are {_range(counts)} seeds a cell{least}, so that no test of all can reach 0.05; intervals are given."
    return f"There are {_range(counts)} seeds a cell, compared in pairs."


def _range(counts: Sequence[int]) -> str:
    """Least to greatest count."""
    return str(counts[0]) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def _agreed(groups: Sequence[Group], key: str) -> str | None:
    """The value of a parameter when all groups state the same, for prose; None otherwise."""
    values = {str(group.parameters.get(key)) for group in groups}
    value = values.pop() if len(values) == 1 else "None"
    return None if value == "None" else value


#: How this project measures; said of runs that were executed here.
_PROTOCOL = (
    "Accuracy is correct images ÷ images, loss the mean over images. A validation split, the same for every seed, chooses "
    "the best epoch; the test set is read once, at the end. The generalisation gap is the accuracy on a fixed clean subset "
    "of the training images in evaluation mode, less that on the validation images."
)


def methods(results: StudyResults) -> str:
    """How the runs were made: data, model, training, arithmetic, machine; from the records' parameters.

    Args:
        results: the study.
    """
    groups = [group for group in results.groups if group.origin == "run"] or results.groups
    if not groups:
        return "No run has completed; there is nothing to describe."
    first = results.records[groups[0].runs["run"].iloc[0]]
    sentences = [_data_sentence(groups, first.data), _model_sentence(groups, first.model), _training_sentence(groups)]
    levels = dict.fromkeys(str(group.parameters.get("augmentation")) for group in groups)
    known = [f"*{level}*: {AUGMENTATION_LEVELS[level]}" for level in levels if level in AUGMENTATION_LEVELS]
    if known:
        sentences.append(f"Augmentation is {'; '.join(known)}.")
    if any(group.experiment.startswith("Augm") for group in groups):
        sentences.append(f"“Augm” is a bundle: {AUGM_BUNDLE} change together, and their effects cannot be told apart here.")
    if not groups[0].imported:
        sentences.append(_PROTOCOL)
    if results.has_imported:
        sentences += IMPORTED_CAVEATS
    machines = sorted({group.machine for group in groups if not group.imported})
    if machines:
        sentences.append(f"The runs were executed on {md(listed(machines))}.")
    return " ".join(sentence for sentence in sentences if sentence) + "\n\n" + arithmetic(results)


def _data_sentence(groups: Sequence[Group], data: dict[str, Any]) -> str:
    """Data set and sizes of its splits."""
    name = _agreed(groups, "dataset")
    if name is None:
        return ""
    sizes = data.get("sizes")
    counts = [f"{int(n):,} for {key}" for key in ("train", "validation", "val", "test") if (n := _size(sizes, key)) is not None]
    label = DATASETS[name].label if name in DATASETS else name
    split = f" ({listed([part.replace('train', 'training') for part in counts])})" if counts else ""
    return f"Data: {md(label)}{split}."


def _size(sizes: Any, key: str) -> float | None:
    """Number of images of a split."""
    return finite(sizes.get(key)) if isinstance(sizes, dict) else None


def _model_sentence(groups: Sequence[Group], model: dict[str, Any]) -> str:
    """Model, its sizes and its parameters."""
    name = _agreed(groups, "model")
    if name is None:
        return ""
    words = (
        ("image_size", "images of {0}×{0}"), ("patch_size", "patches of {0}×{0}"), ("depth", "{0} blocks"),
        ("embed_dim", "width {0}"),
    )  # fmt: skip
    sizes = [text.format(md(value)) for key, text in words if (value := _agreed(groups, key))]
    sizes = ["1 block" if size == "1 blocks" else size for size in sizes]
    count = finite(model.get("parameters"))
    sizes += [f"{int(count):,} parameters"] if count else []
    return f"Model: timm's `{one_line(name, 80).replace('`', '')}`" + (f" with {listed(sizes)}." if sizes else ".")


def _training_sentence(groups: Sequence[Group]) -> str:
    """Length, batch size and learning rate."""
    words = (("epochs", "{} epochs"), ("batch_size", "batches of {}"), ("learning_rate", "a peak learning rate of {}"))
    parts = [text.format(md(value)) for key, text in words if (value := _agreed(groups, key))]
    return f"Training: AdamW with a cosine schedule{', ' + ', '.join(parts) if parts else ''}."


def arithmetic(results: StudyResults) -> str:
    """Which arithmetic really ran, and what that means for the times.

    Args:
        results: the study.
    """
    said: dict[tuple[str, str], list[str]] = {}
    for group in results.groups:
        if group.backend:
            name = PRECISIONS.get(group.precision or "", group.precision or "unknown")
            said.setdefault((name, group.backend), []).append(group.label)
    if not said:
        return "The records do not say which arithmetic ran."
    parts = [f"{md(name)} was *{md(backend)}* ({md(', '.join(labels))})" for (name, backend), labels in said.items()]
    text = f"Arithmetic: {'; '.join(parts)}."
    if any(backend == "emulated" for _, backend in said):
        text += (
            " Emulated means that operands are rounded to the format's grid, multiplied exactly and accumulated in FP32: "
            "accuracies are those of the format, while times, memory and energy are those of the emulation. These carry a dagger "
            "(†) and are not compared."
        )
    return text


def outcomes(results: StudyResults) -> str:
    """Each experiment's question and expectation, said beforehand, beside its outcome.

    Args:
        results: the study.
    """
    blocks = []
    for group in results.groups:
        record = results.records[group.runs["run"].iloc[0]]
        lines = [f"**{md(group.label)}**", ""]
        if record.question:
            lines.append(f"- *Question:* {md(record.question)}")
        if record.expectation:
            lines.append(f"- *Expected:* {md(record.expectation)}")
        lines.append(f"- *Outcome:* {_outcome(results, group)}")
        blocks.append("\n".join(lines))
    for name in results.missing_experiments:
        beside = [row for row in results.excluded if row.experiment == name]
        how = listed([f"{md(row.run)} {row.status}" for row in beside]) if beside else "it was not run in this study"
        blocks.append(f"**{md(label_of(name))}**\n\n- *Outcome:* no completed run ({how}).")
    return "\n\n".join(blocks)


def _outcome(results: StudyResults, group: Group) -> str:
    """What came out of one group."""
    parts = []
    best = IMPORTED_ENDPOINTS[FALLBACK] if group.imported else ENDPOINTS[FALLBACK]
    for key, words in (("test_acc", "test accuracy"), (FALLBACK, best)):
        if shown := mean_words(group, key):
            parts.append(f"{words} {shown}")
    gap = describe(group.values("generalization_gap"))
    if gap is not None:
        parts.append(
            f"{'gap to the training accuracy while training' if group.imported else 'generalisation gap'} "
            f"{number(gap.mean, 100)} points"
        )
    if diverged := diverged_beside(results, group):
        parts.append(f"{diverged} more {'run' if diverged == 1 else 'runs'} diverged")
    return (", ".join(parts) if parts else "no accuracy is recorded") + "."


def comparisons(results: StudyResults) -> str:
    """The contrasts in words, each with what it allows to say, and the pairs that were left out.

    Args:
        results: the study.
    """
    contrasts, left_out = find_contrasts(results)
    lines = []
    headings = {"precision": "Precision, with all else equal:", "Augm": f"“Augm”, which is a bundle ({AUGM_BUNDLE}):"}
    for factor, heading in headings.items():
        chosen = [contrast for contrast in contrasts if contrast.factor == factor]
        if chosen:
            lines += ["", heading, ""]
            lines += [
                f"- {md(c.first.label)} against {md(c.second.label)}, {c.endpoint_words}: {md(c.conclusion)}." for c in chosen
            ]
    if not contrasts:
        lines.append("No two experiments of this study can be compared: that takes completed runs of both with the same seeds.")
    if left_out:
        lines += ["", *(f"- {md(sentence)}" for sentence in left_out)]
    return "\n".join(lines).strip()


def curve_remark(results: StudyResults) -> str:
    """When the best epochs were, and how far the last one is from them.

    Args:
        results: the study.
    """
    parts = []
    for group in results.groups:
        best, final, epochs = (describe(group.values(key)) for key in ("best_val_acc", "final_val_acc", "best_epoch"))
        if best and final and epochs:
            when = number(epochs.mean, 1, 0 if epochs.n == 1 else 1)
            accuracy = "best accuracy on the test set" if group.imported else "best validation accuracy"
            parts.append(
                f"{md(group.label)} has its {accuracy} ({percent(best.mean)}) in epoch {when} and ends at {percent(final.mean)}"
            )
    if not parts:
        return ""
    mean = " (means over the runs)" if any(group.n > 1 for group in results.groups) else ""
    return "; ".join(parts) + mean + "."


def time_remark(results: StudyResults) -> str:
    """Times of native arithmetic on one machine, which may be compared, and a word about the others.

    Args:
        results: the study.
    """
    native = [g for g in results.groups if g.backend == "native" and g.origin == "run" and g.values("epoch_seconds_mean")]
    sentences = []
    for machine in sorted({group.machine for group in native}):
        here = [group for group in native if group.machine == machine]
        times = [(group, describe(group.values("epoch_seconds_mean"))) for group in here]
        parts = [f"{md(group.label)} {number(sample.mean)} s" for group, sample in times if sample]
        sentences.append(f"An epoch in native arithmetic took on {md(machine)}: {listed(parts)}.")
    emulated = [md(group.label) for group in results.groups if group.emulated]
    if emulated:
        sentences.append(f"The times of {listed(emulated)} are those of an emulation (†) and are not compared with others.")
    throttled = [md(g.label) for g in results.groups if any(value is True for value in g.runs.get("throttled", []))]
    if throttled:
        sentences.append(f"The machine slowed itself down (heat or power) in runs of {listed(throttled)}: these took longer.")
    return " ".join(sentences)


def excluded_remark(results: StudyResults) -> str:
    """How many runs are not in the results; a sentence also when there is none.

    Args:
        results: the study.
    """
    missing = [label_of(name) for name in results.missing_experiments]
    lines = []
    if results.excluded or results.problems:
        counted = len(results.excluded) + len(results.problems)
        lines.append(
            f"{counted} {'notebook is' if counted == 1 else 'notebooks are'} in no mean. A diverged run is a result, and is "
            "counted; an interrupted or failed one says nothing yet."
        )
    else:
        lines.append("Every run of this study completed and is in the results.")
    if missing:
        lines.append(f"Without a completed run: {md(listed(missing))}.")
    return " ".join(lines)


def limits(results: StudyResults) -> str:
    """What these results cannot show, with the numbers that say so.

    Args:
        results: the study.
    """
    items = []
    if remark := seeds_remark(results):
        items.append(remark)
    images = results.test_images
    top = [value for group in results.groups if group.origin == "run" for value in group.values("test_acc")]
    if images and top:
        value = max(top)
        low, high = wilson_interval(value, images)
        items.append(
            f"The test set has {images:,} images: an accuracy of {percent(value)} has a standard error of "
            f"{number(binomial_standard_error(value, images), 100)} points from them alone (95 % interval "
            f"{number(low, 100)} to {number(high, 100)} %), beside the spread between seeds."
        )
    items += [md(sentence) for sentence in results.warnings()]
    if any(group.emulated for group in results.groups):
        items.append("Emulated arithmetic says nothing about speed, memory or energy of hardware with that format.")
    if any(EXPERIMENTS[g.experiment].augmentation == "extended" for g in results.groups if g.experiment in EXPERIMENTS):
        items.append("“Augm” is a bundle: its parts are not told apart.")
    items.append("A difference that is not significant does not show equality; that would need a margin stated beforehand.")
    return "\n".join(f"- {item}" for item in items)
