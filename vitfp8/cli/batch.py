"""``vitfp8 run``: execute a batch of runs, and show it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vitfp8.cli.tables import console, duration, print_findings, record_cells

if TYPE_CHECKING:
    from vitfp8.run.estimates import TimeEstimate
    from vitfp8.run.plan import PlannedRun
    from vitfp8.run.runner import Batch


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
@click.option("--retries", type=click.IntRange(0, 100), default=0, metavar="N", help="Try a failed run again at once, N times.")
@click.option(
    "--timeout",
    type=click.FloatRange(1),
    metavar="S",
    help="Stop a run after S seconds, with a checkpoint; the next one follows.",
)
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
    retries: int,
    timeout: float | None,
    force: bool,
    dry_run: bool,
) -> None:
    """Execute runs with papermill, one notebook each.

    Without a name: the experiments of the study, else the four. Without study and preset: the study "paper". Finished runs with
    the same parameters, code and data are kept, unfinished ones continue, failed ones are tried again.
    """
    from vitfp8.errors import InputError
    from vitfp8.params import RunParams
    from vitfp8.run.awake import keep_awake
    from vitfp8.run.estimates import TimeEstimates
    from vitfp8.run.locate import executed_folder
    from vitfp8.run.plan import plan_batch
    from vitfp8.run.preflight import check_plan, examine_machine
    from vitfp8.run.progress import BatchFile
    from vitfp8.run.runner import run_batch
    from vitfp8.run.study_file import resolve_study

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
    ahead = [item for item in planned if item.action != "keep"]
    trainings = [item.params for item in ahead if isinstance(item.params, RunParams) and item.action != "busy"]
    findings = examine_machine(trainings) if ahead else []
    if refusal := next((finding for finding in findings if finding.level == "refusal"), None):
        raise InputError(f"{refusal.subject}: {refusal.text}")
    print_findings([finding for finding in findings if finding.level == "warning"])
    if dry_run:
        times = TimeEstimates()
        _print_plan(planned, {item.output: times.of(item) for item in ahead})
        rules = [
            f"a cooldown of {pause:g} s between runs" if (pause := study.cooldown if cooldown is None else cooldown) else "",
            f"a failed run is tried again {retries}×" if retries else "",
            f"a run is stopped after {timeout:g} s, with a checkpoint" if timeout is not None else "",
        ]
        if said := "; ".join(filter(None, rules)):
            click.echo(f"with {said}")
        print_findings([finding for finding in findings if finding.level != "warning"])
        return
    times = TimeEstimates(measure=False)
    expected = {item.output: times.of(item).seconds for item in ahead}
    with (
        keep_awake() as complaint,
        BatchFile(executed_folder() / name, expected) as file,
        _Progress(name, len(planned)) as progress,
    ):
        if complaint:
            click.echo(f"warning: {complaint}", err=True)

        def changed(batch: Batch) -> None:
            progress.show(batch)
            file.write(batch)

        batch = run_batch(
            planned,
            cooldown=study.cooldown if cooldown is None else cooldown,
            retries=retries,
            timeout=timeout,
            on_change=changed,
        )
    _print_summary(batch)
    sys.exit(batch.exit_status)


def _print_plan(planned: Sequence[PlannedRun], times: Mapping[Path, TimeEstimate]) -> None:
    """What would run, what is kept, why, and how long it takes."""
    from rich.table import Table

    from vitfp8.run.estimates import total

    table = Table(title="dry run: nothing is started or written", title_justify="left")
    for column in ("run", "what", "why", "time", "known from", "notebook"):
        table.add_column(column, overflow="fold")
    for item in planned:
        time = times.get(item.output)
        cells = ("", "") if time is None else ("?" if time.seconds is None else duration(time.seconds), time.basis)
        table.add_row(item.params.run_name, item.action, item.why, *cells, str(item.output))
    console().print(table)
    if times:
        seconds = total(list(times.values()))
        known = [time.seconds for time in times.values() if time.seconds is not None]
        words = f"about {duration(seconds)}" if seconds is not None else f"at least {duration(sum(known))}"
        click.echo(f"{len(times)} {'run' if len(times) == 1 else 'runs'} to execute, {words} without cooldown")


class _Progress:
    """Shows a batch while it runs: a live table in a terminal, a line for each start and end elsewhere."""

    def __init__(self, study: str, runs: int) -> None:
        self.study, self.runs = study, runs
        self.live: Any = None
        self.said: set[object] = set()

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
            self._say(batch, batch.current, "start" if batch.attempts[batch.current.output] == 1 else "try again")
        if batch.message:
            self._say_once(batch.message.partition(",")[0], batch.message)
        for item in batch.planned:
            if (result := batch.results.get(item.output)) is not None and item.action != "keep":
                self._say(batch, item, result.status)

    def _say(self, batch: Batch, planned: PlannedRun, what: str) -> None:
        """One line on a run, once an attempt."""
        number, attempt = batch.planned.index(planned) + 1, batch.attempts.get(planned.output, 0)
        line = f"[{number}/{self.runs}] {planned.params.run_name}: {what}  ({planned.output})"
        self._say_once((planned.output, attempt, what), line)

    def _say_once(self, key: object, line: str) -> None:
        """One line, once."""
        if key not in self.said:
            self.said.add(key)
            click.echo(line)


def _batch_table(batch: Batch, title: str) -> Any:
    """A batch as a table: one row per run."""
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
    """The table at the end, also after Ctrl-C, whether the results are backed up, and what to do next."""
    from vitfp8.record import backup_state

    console().print(_batch_table(batch, "summary"))
    study = batch.planned[0].output.parent.name
    click.echo(f"the results are {backup_state(batch.planned[0].output.parent).words}")
    if any(result.status == "running" for result in batch.results.values()):
        click.echo(f"another command is still running a part of it; `vitfp8 watch {study}` shows how far it is.")
    if batch.signal is not None:
        click.echo("stopped; the same command continues.")
    elif batch.exit_status:
        click.echo("a run did not complete: its notebook and its note above show why; the same command continues or tries again.")
    else:
        click.echo(f"the lab records are in {batch.planned[0].output.parent}; `vitfp8 report {study}` writes the report.")
