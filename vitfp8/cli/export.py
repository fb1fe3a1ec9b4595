"""``vitfp8 export``: records in the forms of other tools."""

from __future__ import annotations

from pathlib import Path

import click

#: Planned forms, so that asking for one gets an answer.
LATER = ("mlflow", "tensorboard", "ro-crate")


@click.command()
@click.argument("target", metavar="RUN|STUDY")
@click.option("--to", "form", default="json", show_default=True, metavar="FORM", help="The form: json, the old layout.")
@click.option("--output", type=click.Path(path_type=Path), metavar="DIR", help="Folder to write to; default: exports/STUDY.")
def export(target: str, form: str, output: Path | None) -> None:
    """Write a run, or every run of a study, in the form of other tools.

    json: DIR/RUN/metrics/ with final_metrics.json, hardware_stats.json, timing_report.json and, if a GPU was measured,
    gpu_stats.csv; `vitfp8 import` reads them back. An earlier export is replaced, nothing else.
    """
    from vitfp8.errors import InputError, suggest
    from vitfp8.legacy.old_layout import EXPORTS, export_runs, import_command, runs_to_export

    if form in LATER:
        raise InputError(f"--to: {form!r}: is not there yet; take json")
    if form != "json":
        raise InputError(f"--to: {form!r}: is unknown; {suggest(form, ['json'])}")
    runs, problems = runs_to_export(target)
    if not runs:
        raise InputError(f"export: {target!r}: holds no run that can be read; `vitfp8 runs` lists what there is")
    place = output or EXPORTS / runs[0][0].parent.name
    done = export_runs(runs, place)
    if not done.runs:
        raise InputError(f"export: {done.left[0]}" + (f" (and {len(done.left) - 1} more)" if len(done.left) > 1 else ""))
    for folder, files in done.runs.items():
        click.echo(f"{folder}: {', '.join(file.name for file in files)}")
    for line in (*done.left, *problems):
        click.echo(f"left: {line}", err=True)
    click.echo(f"read back with: {import_command(done, place, runs)}")
