"""The command line: ``vitfp8 run``, ``check``, ``runs``, ``report``, ``monitor``.

Exit status: 0 done (a diverged run is a result); 1 a run failed; 2 bad input, before anything starts or is written; 130
interrupted.
Everything heavier than click is imported inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from vitfp8.workflow.runner import Batch, PlannedRun


class _Commands(click.Group):
    """A group whose commands say what is wrong with the input in one line and exit with status 2."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an `InputError` becomes its one line."""
        from vitfp8.params import InputError

        try:
            return super().invoke(ctx)
        except InputError as error:
            click.echo(f"vitfp8: {error}", err=True)
            ctx.exit(2)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vitfp8")
def main() -> None:
    """Train Vision Transformers in FP32, BF16, FP16 and FP8, as notebooks, and report what low precision costs."""


# ----------------------------------------------------------------------------------------------------------------- run


@main.command()
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
    from vitfp8.workflow.preflight import check_plan
    from vitfp8.workflow.runner import plan_batch, run_batch
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
    _console().print(table)


def _console() -> Any:
    """A rich console that honours NO_COLOR and uses the full width when nobody watches."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 140, highlight=False, soft_wrap=False)


class _Progress:
    """Shows a batch while it runs: a live table in a terminal, a line for each start and end elsewhere."""

    def __init__(self, study: str, runs: int) -> None:
        self.study, self.runs = study, runs
        self.live: Any = None
        self.said: set[tuple[str, str]] = set()

    def __enter__(self) -> _Progress:
        """Open the live table where somebody watches."""
        console = _console()
        if sys.stdout.isatty():
            from rich.live import Live

            self.live = Live(console=console, refresh_per_second=2)
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
        table.add_row(item.params.run_name, status, *_record_cells(record), note)
    return table


def _record_cells(record: Any) -> tuple[str, str, str, str]:
    """Epoch, best validation accuracy, test accuracy and time of a record, as text."""
    if record is None:
        return "", "", "", ""
    progress, metrics = record.progress, record.metrics
    best = metrics.best_val_acc
    if best is None:
        best = max((row.val_acc for row in record.history if row.val_acc is not None), default=None)
    seconds = sum(row.epoch_seconds or 0 for row in record.history)
    return (
        f"{progress.get('epoch', 0)}/{progress.get('epochs', '?')}",
        "" if best is None else f"{100 * best:.2f} %",
        "" if metrics.test_acc is None else f"{100 * metrics.test_acc:.2f} %",
        _duration(seconds) if record.history else "",
    )


def _duration(seconds: float) -> str:
    """Seconds as ``1:02:03`` or ``2:03``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _print_summary(batch: Batch) -> None:
    """The table at the end, also after Ctrl-C, and what to do next."""
    _console().print(_batch_table(batch, "summary"))
    study = batch.planned[0].output.parent.name
    if batch.signal is not None:
        click.echo("stopped; the same command continues.")
    elif batch.exit_status:
        click.echo("a run failed: its notebook shows where; the same command tries again.")
    else:
        click.echo(f"the lab records are in {batch.planned[0].output.parent}; `vitfp8 report {study}` writes the report.")


# ------------------------------------------------------------------------------------------------------- check and runs


@main.command()
@click.argument("files", nargs=-1, metavar="[FILE]...")
@click.option("--preset", metavar="P", help="Lay a preset over each file first.")
def check(files: tuple[str, ...], preset: str | None) -> None:
    """Validate parameter files and this machine, before a long batch.

    Without a FILE: the four of the study. Presets and study files may be given too.
    """
    from vitfp8.workflow.preflight import check_files

    for line in check_files([Path(file) for file in files], preset):
        click.echo(line)


@main.command()
@click.argument("study", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def runs(study: str | None, as_json: bool) -> None:
    """List what is there, also unfinished, failed and diverged runs."""
    import json

    from vitfp8.params import InputError
    from vitfp8.record import load_records
    from vitfp8.workflow.locate import EXECUTED

    folders = [EXECUTED / study] if study else sorted(path for path in EXECUTED.glob("*") if path.is_dir())
    if study and not folders[0].is_dir():
        there = ", ".join(sorted(path.name for path in EXECUTED.glob("*") if path.is_dir())) or "none yet"
        raise InputError(f"study: {study!r}: there is no {folders[0]}; there are: {there}")
    rows, problems = [], []
    for folder in folders:
        found, bad = load_records(folder)
        problems += bad
        rows += [(folder.name, path, record) for path, record in found]
    if as_json:
        out = [
            {
                "study": name,
                "run": path.stem,
                "status": record.status,
                "reason": record.reason,
                "progress": record.progress,
                "metrics": record.metrics.model_dump(),
                "path": str(path),
            }
            for name, path, record in rows
        ]
        click.echo(json.dumps({"runs": out, "problems": problems}, indent=1, allow_nan=False, default=str))
        return
    if not rows and not problems:
        click.echo(f"nothing in {EXECUTED}/ yet; `vitfp8 run --preset digits` is a start")
        return
    from rich.table import Table

    table = Table()
    for column in ("study", "run", "status", "epoch", "validation", "test", "time", "note"):
        table.add_column(column, overflow="fold")
    for name, path, record in rows:
        table.add_row(name, path.stem, record.status, *_record_cells(record), record.reason or "")
    _console().print(table)
    for problem in problems:
        click.echo(f"vitfp8: {problem}", err=True)


# --------------------------------------------------------------------------------------------------- report and monitor


@main.command()
@click.argument("study", default="paper")
@click.option("--to", "formats", default="html,latex,pdf", show_default=True, help="Which formats, separated by commas.")
def report(study: str, formats: str) -> None:
    """Execute the analysis of a study and export it as HTML, LaTeX and PDF."""
    from vitfp8.workflow.report import make_report

    for name, path in make_report(study, formats=[part.strip() for part in formats.split(",") if part.strip()]).items():
        click.echo(f"{name}: {path}")


@main.command()
@click.option("--name", help="Name of what is measured; names the file.")
@click.option("--output", type=click.Path(path_type=Path), help="CSV file; default: <name>.csv or hardware.csv.")
@click.option(
    "--interval", type=click.IntRange(10, 3_600_000), default=1000, show_default=True, help="Milliseconds between samples."
)
def monitor(name: str | None, output: Path | None, interval: int) -> None:
    """Sample the hardware to a CSV file until Ctrl-C."""
    from vitfp8.monitor import monitor_stream

    target = output or Path(f"{name or 'hardware'}.csv")
    click.echo(f"sampling to {target} every {interval} ms; Ctrl-C ends it")
    count = monitor_stream(target, interval / 1000, name=name)
    click.echo(f"{count} samples in {target}")
