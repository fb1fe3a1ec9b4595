"""``vitfp8 check`` and ``monitor``: this machine before a batch and while it works."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command()
@click.argument("files", nargs=-1, metavar="[FILE]...")
@click.option("--preset", metavar="P", help="Lay a preset over each parameter file and study; a preset is checked alone.")
def check(files: tuple[str, ...], preset: str | None) -> None:
    """Validate parameter files and this machine, before a long batch.

    Without a FILE: the four of the study. Presets and study files may be given too; of a study file all its runs are counted.
    Exit status 2 when something would be refused.
    """
    from vitfp8.cli.tables import print_findings
    from vitfp8.run.preflight import check_files, every_precision, examine_machine

    findings, runs = check_files([Path(file) for file in files], preset)
    findings += [*examine_machine(runs), *every_precision()]
    print_findings(findings)
    if any(finding.level == "refusal" for finding in findings):
        sys.exit(2)


@click.command()
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
