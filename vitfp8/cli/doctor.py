"""``vitfp8 doctor``: what this machine lacks, for which feature, and the command that installs it."""

from __future__ import annotations

import sys

import click

from vitfp8.cli.tables import console


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print every line as JSON.")
def doctor(as_json: bool) -> None:
    """Say what is missing on this machine, for which feature, and what installs it.

    Takes seconds: torch is loaded and a kernel started. Exit status 1 when something is missing that four runs on the digits and
    their report need.
    """
    import json
    from dataclasses import asdict

    from vitfp8.doctor import can_do_the_basic_study, examine

    lines = list(examine())
    fine = can_do_the_basic_study(lines)
    if as_json:
        click.echo(json.dumps({"basic_study": fine, "lines": [asdict(line) for line in lines]}, indent=1))
        sys.exit(not fine)
    from rich.table import Table

    table = Table()
    for column in ("", "what", "for", "found", "way out"):
        table.add_column(column, overflow="fold")
    for line in lines:
        level = "MISSING" if line.level == "missing" and line.needed else line.level
        table.add_row(level, line.subject, line.feature, line.text, line.command or "")
    console().print(table)
    needed = [line.subject for line in lines if line.level == "missing" and line.needed]
    if fine:
        click.echo("nothing is missing that four runs on the digits and their report need: `vitfp8 run --preset digits`")
    else:
        click.echo(f"missing for the four runs on the digits and their report: {', '.join(needed)}", err=True)
    sys.exit(not fine)
