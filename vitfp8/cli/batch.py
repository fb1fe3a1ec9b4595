"""``vitfp8 run``: execute a batch of runs, and show it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from vitfp8.cli.tables import console, record_cells

if TYPE_CHECKING:
    from vitfp8.workflow.plan import PlannedRun
    from vitfp8.workflow.runner import Batch


@click.command()
@click.argument("experiments", nargs=-1, metavar="[EXPERIMENT]...")
@click.option("--study", "study_name", metavar="NAME", help="Study: the folder in executed/, and its file in params/studies/.")
@click.option("--preset", metavar="P", help="What is trained on and how long: digits, fashion_mnist, cifar10, smoke, or a file.")
@click.option("--seeds", type=click.IntRange(1, 1000), metavar="N", help="Run each experiment with the seeds 0 to N-1.")
@click.option(
    "-p", "--parameter", "assignments", type=(str, str), multiple=True, metavar="KEY VALUE", help="Override a parameter."
)
@click.option("--skip", multiple=True, metavar="EXPERIMENT", help="Leave an experiment out.")
@click.option("--cooldown", type=click.FloatRange(0, 86400), metavar="S", help="Seconds between runs.")
@click.option("--force", is_flag=True, help="Run again what is finished; the old records are moved aside.")
@click.option("--dry-run", is_flag=True, help="Say what would run and why; start and write nothing.")
def run(
    experiments: tuple[str, ...],
    study_name: str | None,
    preset: str | None,
    seeds: int | None,
    assignments: tuple[tuple[str, str], ...],
    skip: tuple[str, ...],
    cooldown: float | None,
    force: bool,
    dry_run: bool,
) -> None:
    """Execute runs with papermill, one notebook each.

    Without a name: the experiments of the study, else the four. Without study and preset: the study "paper". Finished runs with
    the same parameters and code are kept, unfinished ones continue, failed ones are tried again.
    """
    from vitfp8.workflow.plan import plan_batch
    from vitfp8.workflow.preflight import check_plan
    from vitfp8.workflow.runner import run_batch
    from vitfp8.workflow.study import resolve_study

    name, study = resolve_study(study_name, preset)
    planned = plan_batch(
        name,
        study,
        experiments=experiments,
        skip=skip,
        seeds=None if seeds is None else range(seeds),
        preset=preset,
        assignments=assignments,
        force=force,
    )
    check_plan(planned)
    if dry_run:
        _print_plan(planned)
        return
    with _Progress(name, len(planned)) as progress:
        batch = run_batch(planned, cooldown=study.cooldown if cooldown is None else cooldown, on_change=progress.show)
    _print_summary(batch)
    sys.exit(batch.exit_status)


def _print_plan(planned: Sequence[PlannedRun]) -> None:
    """What would run, what is kept, and why."""
    from rich.table import Table

    table = Table(title="dry run: nothing is started or written", title_justify="left")
    for column in ("run", "what", "why", "notebook"):
        table.add_column(column, overflow="fold")
    for item in planned:
        table.add_row(item.params.run_name, item.action, item.why, str(item.output))
    console().print(table)


class _Progress:
    """Shows a batch while it runs: a live table in a terminal, a line for each start and end elsewhere."""

    def __init__(self, study: str, runs: int) -> None:
        self.study, self.runs = study, runs
        self.live: Any = None
        self.said: set[tuple[str, str]] = set()

    def __enter__(self) -> _Progress:
        """Open the live table where somebody watches."""
        watched = console()
        if sys.stdout.isatty():
            from rich.live import Live

            self.live = Live(console=watched, refresh_per_second=2)
            self.live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Close the live table."""
        if self.live is not None:
            self.live.__exit__(*error)

    def show(self, batch: Batch) -> None:
        """Show the batch as it stands."""
        if self.live is not None:
            self.live.update(_batch_table(batch, f"study {self.study}"))
            return
        if batch.current is not None:
            self._say(batch, batch.current, "start")
        for result in batch.results.values():
            if result.planned.action not in ("keep", "busy"):
                self._say(batch, result.planned, result.status)

    def _say(self, batch: Batch, planned: PlannedRun, what: str) -> None:
        """One line, once."""
        key = (planned.params.run_name, what)
        if key not in self.said:
            self.said.add(key)
            number = batch.planned.index(planned) + 1
            click.echo(f"[{number}/{self.runs}] {planned.params.run_name}: {what}  ({planned.output})")


def _batch_table(batch: Batch, title: str) -> Any:
    """A batch as a table: one row a run."""
    from rich.table import Table

    from vitfp8.record import record_from_journal

    table = Table(title=f"{title}  {batch.message}".rstrip(), title_justify="left")
    for column in ("run", "status", "epoch", "validation", "test", "time", "note"):
        table.add_column(column, justify="left" if column in ("run", "status", "note") else "right", overflow="fold")
    for item in batch.planned:
        result = batch.results.get(item.output)
        running = batch.current is item
        record = result.record if result else record_from_journal(item.folder) if running else None
        status = "running" if running else result.status if result else "waiting"
        note = result.note if result else item.why
        table.add_row(item.params.run_name, status, *record_cells(record), note)
    return table


def _print_summary(batch: Batch) -> None:
    """The table at the end, also after Ctrl-C, and what to do next."""
    console().print(_batch_table(batch, "summary"))
    study = batch.planned[0].output.parent.name
    if batch.signal is not None:
        click.echo("stopped; the same command continues.")
    elif batch.exit_status:
        click.echo("a run failed: its notebook shows where; the same command tries again.")
    else:
        click.echo(f"the lab records are in {batch.planned[0].output.parent}; `vitfp8 report {study}` writes the report.")
