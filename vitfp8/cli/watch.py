"""``vitfp8 watch``: the progress of a batch, from any terminal."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from vitfp8.cli.tables import console, duration, record_cells

if TYPE_CHECKING:
    from vitfp8.run.progress import StudyProgress


@click.command()
@click.argument("study", required=False)
@click.option("--interval", type=click.FloatRange(0.2, 3600), default=2.0, show_default=True, help="Seconds between updates.")
@click.option("--once", is_flag=True, help="Print the present state and exit.")
def watch(study: str | None, interval: float, once: bool) -> None:
    """Show the progress of a batch: epoch, accuracy, time left. Reads only; Ctrl-C ends it.

    Without STUDY it shows the study that changed last. If the output is a file or a pipe it prints once and exits.
    """
    from vitfp8.errors import InputError
    from vitfp8.run.progress import latest_study, study_progress

    given = click.get_current_context().get_parameter_source("interval")
    if once and given is click.core.ParameterSource.COMMANDLINE:
        raise InputError("--interval: --once prints once; drop one of them")
    folder = latest_study(study)
    if once or not sys.stdout.isatty():
        console().print(_table(study_progress(folder), folder.name))
        return
    from rich.live import Live

    try:
        with Live(console=console(), auto_refresh=False) as live:
            while True:
                live.update(_table(study_progress(folder), folder.name), refresh=True)
                time.sleep(interval)
    except KeyboardInterrupt:  # the way to leave it
        return


def _table(progress: StudyProgress, study: str) -> Any:
    """A study's progress as a table: one row per run."""
    from rich.table import Table

    from vitfp8.record import remark_words

    if progress.batches == 0:
        state = "no batch runs here now"
    elif progress.seconds_left is None:
        state = "time left not known yet"
    else:
        state = f"about {duration(progress.seconds_left)} left"
    table = Table(title="  ".join(filter(None, (f"study {study}:", state, progress.message))), title_justify="left")
    for column in ("run", "status", "epoch", "validation", "test", "time", "left", "note"):
        table.add_column(column, justify="left" if column in ("run", "status", "note") else "right", overflow="fold")
    for run in progress.runs:
        left = "" if run.seconds_left is None else duration(run.seconds_left)
        said = (run.record.reason or "") if run.record and run.status not in ("waiting", "starting") else ""
        note = "; ".join(filter(None, [said, remark_words(run.remarks)]))
        table.add_row(run.run, run.status, *record_cells(run.record), left, note)
    for problem in progress.problems:
        table.add_row("", "", "", "", "", "", "", problem)
    return table
