"""``vitfp8 import``: results of an earlier project become records, beside the runs that were executed here."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from vitfp8.cli.tables import console

if TYPE_CHECKING:
    from vitfp8.legacy import ImportResult


@click.command(name="import")
@click.argument("source", metavar="SOURCE")
@click.option(
    "--study", default="imported", show_default=True, metavar="NAME", help="Study that gets the records: the folder in executed/."
)
@click.option(
    "--as", "renaming", multiple=True, metavar="OLD=NEW",
    help="Which experiment a folder is: my_run=BaseFP32, or my_run=BaseFP32~second beside another one.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Move earlier imports that differ aside.")
@click.option("--dry-run", is_flag=True, help="Print what would be imported; write nothing.")
def import_command(source: str, study: str, renaming: tuple[str, ...], force: bool, dry_run: bool) -> None:
    """Import the results tree of an earlier project.

    SOURCE holds checkpoints/NAME/ or NAME/{checkpoints,metrics}/. It is only read, and no file in it is executed. A damaged
    file is named, and nothing is taken from it.
    """
    from vitfp8.legacy import import_results

    result = import_results(source, study=study, renaming=renaming, force=force, dry_run=dry_run)
    _print(result, dry_run)
    sys.exit(1 if result.failed else 0)


def _print(result: ImportResult, dry_run: bool) -> None:
    """One row per run, then one line for each file or folder that was not taken over."""
    from rich.table import Table
    from rich.text import Text

    from vitfp8.errors import printable

    words = {"keep": "already imported", "import": "would be imported" if dry_run else "imported",
             "replace": "would replace another" if dry_run else "imported; the other is in superseded/"}  # fmt: skip
    table = Table(title="dry run: nothing is written" if dry_run else f"study {result.study.name}", title_justify="left")
    for column in ("old folder", "run", "status", "best*", "files", "what"):
        table.add_column(column, overflow="fold")
    for item in result.planned:
        record = item.run.record
        best = record.metrics.best_val_acc
        table.add_row(
            Text(printable(item.run.folder.path, 160)), item.output.stem, record.status,
            "" if best is None else f"{100 * best:.2f} %", str(len(item.run.files)), words[item.action],
        )  # fmt: skip
    console().print(table)
    click.echo("* best accuracy on the test set, which also chose the epoch; not a validation accuracy of this project")
    for item in result.planned:
        for sentence in item.run.not_taken:
            click.echo(f"{item.output.stem}: {sentence}")
    for sentence in result.imports.left:
        click.echo(f"left: {sentence}")
    if result.others is not None:
        click.echo(f"{len(result.imports.others)} files that belong to no run: {result.others}")
    for sentence in result.failed:
        click.echo(f"vitfp8: {sentence}", err=True)
    if not dry_run and not result.failed:
        click.echo(f"the records are in {result.study}; `vitfp8 report {result.study.name}` writes the report.")
