"""The notebook of an imported run: it reads like a lab record, and running its cells shows the same tables and curves again.

Texts of the source stand only in tables, which escape them for each format.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vitfp8.analysis.table import ReportTable, number
from vitfp8.catalog import AUGM_BUNDLE, PRECISIONS, label_of
from vitfp8.errors import printable
from vitfp8.legacy.reader import TIMING
from vitfp8.record import RECORD_MIME, RunRecord, read_record
from vitfp8.record.codec import expand

_MOST_FILES = 300

_RUN_TEXT = """\
# {label}, imported

**This run was not executed here.** `vitfp8 import` made its record from the files of an earlier project. Figures and tables
show it beside runs of this project, marked *imported*, and never average or compare it with them.

Below: the record as data, where it came from, what is known and what is not, and what its files say. Running the cells reads the
record from this file and shows it again; nothing is trained.
"""

_CURVES_TEXT = """\
## Curves

What the files call validation is the test set, which also chose the best epoch. Training accuracy and loss were taken while
training, on augmented images.
"""

_CURVES_CODE = """\
from vitfp8.analysis.figures.of_run import run_curves

run_curves([row.model_dump() for row in record.history], validation="test set")"""


def show_record(path: str | Path) -> RunRecord:
    """Read the record of an imported run and show it, with the record as data in the output."""
    from IPython.display import display

    record = read_record(path)
    display(_record_data(record), raw=True)
    return record


def _record_data(record: RunRecord) -> dict[str, Any]:
    """The record as an output's data."""
    return {RECORD_MIME: record.to_payload(), "text/plain": f"vitfp8 record: {record.run_name} · {record.status} · imported"}


def originals(record: RunRecord) -> dict[str, str]:
    """The small text files of an imported run, as they were: path in its old folder → content."""
    return dict(expand(record.provenance["imported"]["originals"]))


def origin_table(record: RunRecord) -> ReportTable:
    """Where a run comes from, and what is known of how it was made."""
    about = record.provenance["imported"]
    parameters = record.parameters
    rows = [
        ["Called in the earlier project", about["name"]],
        ["Taken from", about["source"]],
        ["Imported", about["time"]],
        ["Status", record.status + (f": {record.reason}" if record.reason else "")],
        ["Seed", "none was set"],
    ]
    names = (
        ("precision", "Precision"), ("augmentation", "Augmentation"), ("weight_decay", "Weight decay"),
        ("label_smoothing", "Label smoothing"), ("gradient_clip", "Gradient clip"),
        ("warmup_fraction", "Warm-up, part of training"),
        ("dataset", "Data set"), ("model", "Model"), ("image_size", "Image size"), ("batch_size", "Batch size"),
        ("learning_rate", "Learning rate, peak"), ("epochs", "Epochs"),
    )  # fmt: skip
    if record.kind == "run":
        for key, label in names:
            value = parameters.get(key, "not known")
            rows.append([label, PRECISIONS.get(str(value), "none" if value is None else str(value))])
    rows += [[f"{TIMING}: {key}", str(value)] for key, value in about.get("timing_report", {}).items()]
    if record.kind == "quantization":
        rows.append(["Quantised", str(record.source.get("path") or record.source.get("experiment"))])
    notes = [f"“Augm” is a bundle: {AUGM_BUNDLE} change together."] if parameters.get("augmentation") == "extended" else []
    cells = [[printable(cell, 500) for cell in row] for row in rows]
    return ReportTable(stem="origin", columns=["What", "Value"], rows=cells, notes=notes)


def notes_table(record: RunRecord) -> ReportTable:
    """Notes of the run (assumptions, files that were not taken over), then caveats of the earlier project as a whole."""
    sentences = [line for note in record.notes for line in str(note.get("text", "")).splitlines()]
    sentences += record.provenance["imported"].get("caveats", [])
    rows = [[str(index), printable(line, 600)] for index, line in enumerate(sentences, 1)]
    return ReportTable(stem="notes", columns=["", "Note"], rows=rows)


def result_table(record: RunRecord) -> ReportTable:
    """The final figures that follow from the files."""
    if record.kind == "quantization":
        rows = [["original_fp16", number(record.source.get("test_acc"), 100), number(record.source.get("test_loss"), 1, 4)]]
        rows += [
            [f"{row.format}: scaled weights rounded to whole numbers", number(row.test_acc, 100), number(row.test_loss, 1, 4)]
            for row in record.quantization
        ]
        return ReportTable(stem="results", columns=["Model", "Accuracy (%)", "Loss"], rows=rows)
    metrics, summary = record.metrics, record.hardware.summary
    rows = [
        ["Best accuracy on the test set, which chose the epoch (%)", number(metrics.best_val_acc, 100)],
        ["in epoch", number(metrics.best_epoch, 1, 0)],
        ["Accuracy on the test set after the last epoch (%)", number(metrics.final_val_acc, 100)],
        ["Training accuracy in the last epoch, while training (%)", number(metrics.final_train_acc, 100)],
        ["Gap between the two (points)", number(metrics.generalization_gap, 100)],
        ["Training loss in the last epoch", number(metrics.final_train_loss, 1, 4)],
        ["Loss on the test set after the last epoch", number(metrics.final_val_loss, 1, 4)],
        ["Epochs", number(metrics.epochs, 1, 0)],
        ["Total time (s)", number(metrics.train_seconds, 1, 1)],
        ["Time per epoch (s)", number(metrics.epoch_seconds_mean)],
        ["CPU, mean (%)", number(summary.get("cpu_percent_mean"), 1, 0)],
        ["Memory, mean (%)", number(summary.get("memory_percent_mean"), 1, 0)],
        ["GPU, mean (%)", number(summary.get("gpu_utilization_percent_mean"), 1, 0)],
        ["GPU power, mean (W)", number(summary.get("gpu_power_watts_mean"), 1, 1)],
        [f"Energy, integral of sampled power ({summary.get('energy_covers') or 'not measured'}; kJ)",
         number(summary.get("energy_joules"), 1e-3)],
    ]  # fmt: skip
    return ReportTable(stem="results", columns=["Figure", "Value"], rows=rows)


def history_table(record: RunRecord) -> ReportTable:
    """The history, one row per epoch; a dash stands for an unknown value."""
    rows = [
        [str(row.epoch), number(row.train_loss, 1, 4), number(row.train_acc, 100), number(row.val_loss, 1, 4),
         number(row.val_acc, 100),
         number(row.learning_rate, 1, 6), number(row.epoch_seconds, 1, 1)]
        for row in record.history[:1000]
    ]  # fmt: skip
    columns = [
        "Epoch",
        "Training loss",
        "Training acc. (%)",
        "Loss, test set",
        "Accuracy, test set (%)",
        "Learning rate",
        "Time (s)",
    ]
    notes = ["Test set: what the files call validation."]
    if len(record.history) > len(rows):
        notes.append(f"The first {len(rows):,} of {len(record.history):,} epochs; all of them are in the record.")
    return ReportTable(stem="history", columns=columns, rows=rows, notes=notes)


def files_table(record: RunRecord) -> ReportTable:
    """The files that the record was made from, with their digests."""
    files = record.provenance["imported"]["files"]
    rows = []
    for file in files[:_MOST_FILES]:
        inside = number(file.get("val_acc"), 100)
        epoch = "–" if file.get("epoch") is None else str(file["epoch"])
        copied = "yes" if file["copied"] else "refused"
        rows.append([printable(file["path"], 120), f"{file['bytes']:,}", copied, epoch, inside, file["sha256"][:16]])
    columns = ["File", "Bytes", "Copied", "Epoch inside", "Accuracy inside (%)", "SHA-256, first 16 digits"]
    notes = [f"{len(files)} files in all; whole digests are in the record."]
    if record.run_folder:
        notes.append(f"Copies: {printable(record.run_folder)}/original.")
    return ReportTable(stem="files", columns=columns, rows=rows, notes=notes)


def notebook_text(record: RunRecord, file_name: str) -> str:
    """The notebook of an imported run, as the text of its file; valid, and marked as a run."""
    import nbformat
    from nbformat import v4

    code = "from vitfp8.legacy.notebook import {}\n\n{}(record)"
    title = label_of(record.experiment) + (f" ({record.variant})" if record.variant else "")
    start = f"from vitfp8.legacy.notebook import show_record\n\nrecord = show_record({json.dumps(file_name)})"
    cells = [
        _text("title", _RUN_TEXT.format(label=title)),
        _code("record", start, _record_data(record)),
        _text(
            "origin-text", "## Where it comes from, and what is known\n\n*Not known* is what neither a file nor the name says."
        ),
        _code("origin", code.format("origin_table", "origin_table"), _bundle(origin_table(record))),
        _text("notes-text", "## What to bear in mind"),
        _code("notes", code.format("notes_table", "notes_table"), _bundle(notes_table(record))),
        _text("results-text", "## Results"),
        _code("results", code.format("result_table", "result_table"), _bundle(result_table(record))),
    ]
    if record.history:
        from vitfp8.analysis.figures.of_run import run_curves

        rows = [row.model_dump() for row in record.history]
        figure, details = run_curves(rows, validation="test set")._repr_mimebundle_()
        cells += [
            _text("curves-text", _CURVES_TEXT),
            _code("curves", _CURVES_CODE, figure, details),
            _code("history", code.format("history_table", "history_table"), _bundle(history_table(record))),
        ]
    cells += [
        _text("files-text", "## The files it was made from\n\nThe record also holds the small text files: "
              "`vitfp8.legacy.notebook.originals(record)`."),
        _code("files", code.format("files_table", "files_table"), _bundle(files_table(record))),
    ]  # fmt: skip
    notebook = v4.new_notebook(
        cells=cells,
        metadata={
            "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
            "vitfp8": {"kind": "run", "origin": "imported"},
        },
    )
    nbformat.validate(notebook)
    return str(nbformat.writes(notebook)) + "\n"


def _text(name: str, source: str) -> Any:
    """A Markdown cell; its text holds nothing of the source."""
    from nbformat import v4

    return v4.new_markdown_cell(source.strip(), id=name)


def _code(name: str, source: str, data: dict[str, Any], details: dict[str, Any] | None = None) -> Any:
    """A code cell with the output that running it gives."""
    from nbformat import v4

    output = v4.new_output("display_data", data=data, metadata=details or {})
    return v4.new_code_cell(source, id=name, outputs=[output])


def _bundle(table: ReportTable) -> dict[str, Any]:
    """A table's forms as an output's data."""
    return dict(table._repr_mimebundle_())
