"""Sentences of the report: every number in them comes from records, and every text of a record is escaped.

Each function returns Markdown. The wording follows the number of runs: one run per cell is described, never judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vitfp8.analysis.after_training import QuantizedGroup, quantized_groups, way_words
from vitfp8.analysis.contrasts import ENDPOINTS, FALLBACK, IMPORTED_ENDPOINTS, PRIMARY, Contrast, find_contrasts
from vitfp8.analysis.escaping import escape_markdown as md
from vitfp8.analysis.escaping import one_line
from vitfp8.analysis.grouping import Group, group_label
from vitfp8.analysis.results import IMPORTED_CAVEATS, StudyResults
from vitfp8.analysis.statistics import (
    LEAST_SEEDS_FOR_A_TEST,
    binomial_standard_error,
    describe,
    least_p,
    wilson_interval,
)
from vitfp8.analysis.table import number
from vitfp8.analysis.values import finite
from vitfp8.catalog import AUGM_BUNDLE, AUGMENTATION_LEVELS, DATASETS, PRECISIONS, label_of
from vitfp8.record import RunRecord


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
    runs = "one run" if results.run_count == 1 else f"{results.run_count} runs"
    lines.append(f"The study *{md(results.name)}* holds {runs}: {results.status_words()}. {headline(results)}")
    for sentence in [*results.misnamed(), *results.mismatches()]:
        lines += ["", f"**Note.** {md(sentence)}"]
    return "\n".join(lines)


def headline(results: StudyResults) -> str:
    """The primary endpoint of every group in a sentence or two.

    Args:
        results: the study.
    """
    quantized = quantized_groups(results)
    if not results.groups and not quantized:
        return "None has completed, so that there is no result; what happened to them is listed below."
    fresh = [group for group in results.groups if not group.imported]
    sentences, unknown = [], fresh
    for key in (PRIMARY, FALLBACK):
        known = [(group, words) for group in unknown if (words := mean_words(group, key))]
        if known:
            sentences.append(
                f"{ENDPOINTS[key].capitalize()}: {listed([f'{md(group.label)} {words}' for group, words in known])}."
            )
        unknown = [group for group in unknown if not group.values(key)]
    if unknown:
        sentences.append(f"No test or validation accuracy is recorded of {listed([md(group.label) for group in unknown])}.")
    sentences += [f"{md(group.label)}: {_quantized_outcome(group)}" for group in quantized]
    return " ".join(filter(None, [*sentences, seeds_remark(results), _imported_headline(results)]))


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
        if len(counts) == 1:
            return "There is a single run, which shows no spread."
        return "There is one run per cell: differences are described, not judged, since a single seed shows no spread."
    there = f"There are {_range(counts)} seeds a cell"
    pairs = [contrast.paired.n for contrast in find_contrasts(results)[0] if not contrast.first.imported]
    short = [n for n in pairs if n < LEAST_SEEDS_FOR_A_TEST]
    if not pairs:
        return f"{there}."
    if not short:
        return f"{there}, compared in pairs."
    intervals = "; intervals are given where there are two pairs or more" if max(pairs) > 1 else ""
    if len(short) == len(pairs):
        n = max(pairs)
        least = f"; the least p that {n} paired seeds can give is {least_p(n):.3g}" if n > 1 else ""
        return f"{there}, compared in {_range(pairs)} pairs{least}, so that no test can reach 0.05{intervals}."
    return (
        f"{there}; {len(short)} of {len(pairs)} comparisons {'has' if len(short) == 1 else 'have'} fewer than "
        f"{LEAST_SEEDS_FOR_A_TEST} pairs, with which no test can reach 0.05{intervals}."
    )


def _range(counts: Sequence[int]) -> str:
    """Least to greatest count."""
    return str(min(counts)) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


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
    after = _after_training(results)
    if not groups:
        return after or "No run has completed; there is nothing to describe."
    records = [results.records[run] for group in groups for run in group.runs["run"]]
    sentences = [_data_sentence(groups, records), _model_sentence(groups, records), _training_sentence(groups)]
    levels = dict.fromkeys(str(group.parameters.get("augmentation")) for group in groups)
    known = [f"*{level}*: {AUGMENTATION_LEVELS[level]}" for level in levels if level in AUGMENTATION_LEVELS]
    if known:
        sentences.append(f"Augmentation is {'; '.join(known)}.")
    if any(_is_augmented(group) for group in groups):
        sentences.append(f"“Augm” is a bundle: {AUGM_BUNDLE} change together, and their effects cannot be told apart here.")
    if not groups[0].imported:
        sentences.append(_PROTOCOL)
    if results.has_imported:
        sentences += IMPORTED_CAVEATS
    machines = sorted({group.machine for group in groups if not group.imported})
    if machines:
        sentences.append(f"The models were trained on {md(listed(machines))}.")
    return "\n\n".join(filter(None, [" ".join(filter(None, sentences)), arithmetic(results), after]))


def _is_augmented(group: Group) -> bool:
    """Whether a group has the extended augmentation: by its record, or where that does not say, by its name."""
    stated = group.parameters.get("augmentation")
    return stated == "extended" if stated is not None else group.experiment.startswith("Augm")


def _after_training(results: StudyResults) -> str:
    """What was quantised after training; empty where nothing was."""
    fresh = [record for group in quantized_groups(results) for record in group.records if record.origin == "run"]
    if not fresh:
        return ""
    sources = sorted({group_label(str(r.source.get("experiment")), str(r.source.get("variant") or "")) for r in fresh})
    data = sorted({DATASETS[name].label if name in DATASETS else name for r in fresh if (name := str(r.data.get("name") or ""))})
    where = f", on {md(listed(data))}" if data else ""
    return (
        f"After training: trained models of {md(listed(sources))} were quantised in several ways and evaluated on the test "
        f"images, each beside its source{where}."
    )


def _same(values: Sequence[Any]) -> Any:
    """The value on which all records agree; None where they do not."""
    return values[0] if values and all(value == values[0] for value in values) else None


def _data_sentence(groups: Sequence[Group], records: Sequence[RunRecord]) -> str:
    """Data set, and sizes of its splits where all runs had the same."""
    name = _agreed(groups, "dataset")
    if name is None:
        return ""
    sizes = _same([record.data.get("sizes") for record in records])
    counts = [f"{int(n):,} for {key}" for key in ("train", "validation", "val", "test") if (n := _size(sizes, key)) is not None]
    label = DATASETS[name].label if name in DATASETS else name
    split = f" ({listed([part.replace('train', 'training') for part in counts])})" if counts else ""
    return f"Data: {md(label)}{split}."


def _size(sizes: Any, key: str) -> float | None:
    """Number of images of a split."""
    return finite(sizes.get(key)) if isinstance(sizes, dict) else None


def _model_sentence(groups: Sequence[Group], records: Sequence[RunRecord]) -> str:
    """Model, its sizes, and its number of parameters where all runs had the same."""
    name = _agreed(groups, "model")
    if name is None:
        return ""
    words = (
        ("image_size", "images of {0}×{0}"), ("patch_size", "patches of {0}×{0}"), ("depth", "{0} blocks"),
        ("embed_dim", "width {0}"),
    )  # fmt: skip
    sizes = [text.format(md(value)) for key, text in words if (value := _agreed(groups, key))]
    sizes = ["1 block" if size == "1 blocks" else size for size in sizes]
    count = finite(_same([record.model.get("parameters") for record in records]))
    sizes += [f"{int(count):,} parameters"] if count else []
    return f"Model: timm's `{one_line(name, 80).replace('`', '')}`" + (f" with {listed(sizes)}." if sizes else ".")


def _training_sentence(groups: Sequence[Group]) -> str:
    """Length, batch size and learning rate; what an earlier project did is known by its parameters alone."""
    words = (("epochs", "{} epochs"), ("batch_size", "batches of {}"), ("learning_rate", "a peak learning rate of {}"))
    parts = [text.format(md(value)) for key, text in words if (value := _agreed(groups, key))]
    how = [] if groups[0].imported else ["AdamW with a cosine schedule"]
    return f"Training: {', '.join([*how, *parts])}." if [*how, *parts] else ""


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
        return "The records do not say which arithmetic ran." if results.groups else ""
    parts = [f"{md(name)} was *{md(backend)}* ({md(', '.join(labels))})" for (name, backend), labels in said.items()]
    text = f"Arithmetic: {'; '.join(parts)}."
    if silent := [md(group.label) for group in results.groups if not group.backend]:
        text += f" The records of {listed(silent)} do not say which arithmetic ran."
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
        records = [results.records[run] for run in group.runs["run"]]
        blocks.append(_block(group.label, records, _outcome(results, group)))
    for quantized in quantized_groups(results):
        blocks.append(_block(quantized.label, quantized.records, _quantized_outcome(quantized)))
    there = {record.experiment for cell in results.quantization_cells for record in cell.values()}
    after = {record.experiment: None for record in results.quantizations.values() if record.experiment not in there}
    for name in [*results.missing_experiments, *after]:
        beside = [f"{md(row.run)} {row.status}" for row in results.excluded if row.experiment == name]
        beside += [f"{md(group.label)} has completed" for group in results.groups if group.experiment == name]
        how = listed(beside) if beside else "it was not run in this study"
        blocks.append(f"**{md(label_of(name))}**\n\n- *Outcome:* no completed run ({how}).")
    return "\n\n".join(blocks)


def _block(label: str, records: Sequence[RunRecord], outcome: str) -> str:
    """Question and expectation of some runs, as said beforehand (each, where they differ), beside their outcome."""
    lines = [f"**{md(label)}**", ""]
    lines += [f"- *Question:* {md(text)}" for text in dict.fromkeys(record.question for record in records) if text]
    lines += [f"- *Expected:* {md(text)}" for text in dict.fromkeys(record.expectation for record in records) if text]
    return "\n".join([*lines, f"- *Outcome:* {outcome}"])


def _quantized_outcome(group: QuantizedGroup) -> str:
    """What quantisation after training cost: the source, the way that costs least and the one that costs most."""
    source = describe(group.source_values)
    parts = []
    if source is not None:
        spread = f" ± {number(source.sd, 100)}" if source.sd is not None else ""
        parts.append(f"test accuracy of the trained model {number(source.mean, 100)}{spread} % (n = {source.n})")
    judged = group.judged
    if judged:
        best, worst = judged[0], judged[-1]
        own = best[0].mean("test_acc")
        reached = f", to {percent(own)}" if own is not None else ""
        few = "the only way to 8 bits" if len(judged) == 1 else f"of {len(judged)} ways to 8 bits the best on the test set"
        parts.append(f"{few} changes it by {points(best[1])} points{reached} ({md(way_words(best[0]))})")
        if len(judged) > 1:
            parts.append(f"the worst by {points(worst[1])} points ({md(way_words(worst[0]))})")
    return (", ".join(parts) if parts else "no accuracy is recorded") + "."


def points(value: float) -> str:
    """A difference of accuracies in points, with its sign.

    Args:
        value: a difference of fractions.
    """
    return ("+" if value > 0 else "") + number(value, 100)


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
    if diverged := results.diverged_beside(group):
        parts.append(f"{diverged} more {'run' if diverged == 1 else 'runs'} diverged")
    return (", ".join(parts) if parts else "no accuracy is recorded") + "."


def comparisons(results: StudyResults) -> str:
    """The contrasts in words, each with what it allows to say, and the pairs that were left out.

    Args:
        results: the study.
    """
    contrasts, left_out = find_contrasts(results)
    lines = []
    headings = {
        "precision": "Precision, with the same data, model and training:",
        "Augm": f"“Augm”, which is a bundle ({AUGM_BUNDLE}):",
        "variant": "Variants, each against its own base and against FP32 of the same augmentation; whatever differs is named:",
    }
    for factor, heading in headings.items():
        chosen = [contrast for contrast in contrasts if contrast.factor == factor]
        if chosen:
            lines += ["", heading, ""]
            lines += [_contrast_line(contrast) for contrast in chosen]
    if not contrasts and not left_out:
        lines.append("This study has no two experiments that could be compared.")
    elif not contrasts:
        lines.append("No two experiments of this study are compared:")
    if left_out:
        lines += ["", *(f"- {md(sentence)}" for sentence in left_out)]
    return "\n".join(lines).strip()


def _contrast_line(contrast: Contrast) -> str:
    """One contrast as an item of a list."""
    first, second = md(contrast.first.label), md(contrast.second.label)
    differs = f" ({md(contrast.changed_words)})" if contrast.changed_words else ""
    return f"- {first} against {second}{differs}, {contrast.endpoint_words}: {md(contrast.conclusion)}."


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


#: What must agree so that times of an epoch may stand beside each other, whatever the arithmetic and the augmentation.
_WORKLOAD = (
    "dataset", "data_digest", "validation_fraction", "model", "image_size", "patch_size", "embed_dim", "depth", "num_heads",
    "in_channels", "batch_size", "micro_batch_size", "device", "threads", "deterministic", "cuda_graphs",
)  # fmt: skip


def time_remark(results: StudyResults) -> str:
    """Times of native arithmetic on one machine, which may be compared, and a word about the others.

    Args:
        results: the study.
    """
    native = [g for g in results.groups if g.backend == "native" and g.origin == "run" and g.epoch_quartiles()]
    sentences = []
    for machine in sorted({group.machine for group in native}):
        workloads: dict[tuple[Any, ...], list[Group]] = {}
        for group in native:
            if group.machine == machine and group.disturbed < group.n:
                key = (group.compiled, *(str(group.parameters.get(key)) for key in _WORKLOAD))
                workloads.setdefault(key, []).append(group)
        for number_of, here in enumerate(workloads.values()):
            times = [(group, q) for group in here if (q := group.epoch_quartiles())]
            parts = [f"{md(group.label)} {number(q[1])} s ({number(q[0])} to {number(q[2])})" for group, q in times]
            alike = "compiled, " if here[0].compiled else ""
            beside = (
                " with other data, model, batches, threads or compilation, not to be compared with those" if number_of else ""
            )
            took = f"An epoch in native arithmetic took on {md(machine)}{beside}, {alike}in the median (and quartiles)"
            sentences.append(f"{took}: {listed(parts)}.")
    emulated = [md(group.label) for group in results.groups if group.emulated]
    if emulated:
        sentences.append(f"The times of {listed(emulated)} are those of an emulation (†) and are not compared with others.")
    sentences += [md(sentence) for sentence in results.disturbances()]
    throttled = [md(g.label) for g in results.groups if any(value is True for value in g.runs.get("throttled", []))]
    if throttled:
        sentences.append(
            f"The machine slowed itself down (heat or power) in runs of {listed(throttled)}: they may have taken longer."
        )
    return " ".join(sentences)


def excluded_remark(results: StudyResults) -> str:
    """How many runs are not in the results; a sentence also when there is none.

    Args:
        results: the study.
    """
    missing = [label_of(name) for name in results.missing_experiments]
    lines = []
    if counted := len(results.excluded) + len(results.problems):
        lines.append(f"{counted} {'notebook is' if counted == 1 else 'notebooks are'} in no mean.")
        there = {row.status for row in results.excluded}
        if "diverged" in there:
            lines.append("A diverged run is a result, and is counted.")
        if {"interrupted", "failed", "running"} & there:
            lines.append("A run that was interrupted, failed or still runs says nothing yet.")
    else:
        lines.append("Every run of this study completed and is in the results.")
    if results.set_aside:
        lines.append(f"Of {md(listed(list(results.set_aside)))} only earlier lab records are there, in superseded/.")
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
    if any(_is_augmented(group) for group in results.groups):
        items.append("“Augm” is a bundle: its parts are not told apart.")
    if quantized_groups(results):
        items.append(
            "The best way to quantise after training is chosen by the test accuracy that is given for it, which flatters it."
        )
    items.append("A difference that is not significant does not show equality; that would need a margin stated beforehand.")
    return "\n".join(f"- {item}" for item in items)
