"""``vitfp8 verify``: do the lab records agree with themselves, their parameters and their files; do they repeat."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from vitfp8.verify.checks import Check


@click.command()
@click.argument("study", required=False)
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option("--rerun", "again", is_flag=True, help="Execute the runs again, aside, and compare; the study is only read.")
@click.option("--data", is_flag=True, help="Compare today's data sets and pretrained weights with those that the records saw.")
@click.option("--json", "as_json", is_flag=True, help="Print every check as JSON.")
def verify(study: str | None, runs: tuple[str, ...], again: bool, data: bool, as_json: bool) -> None:
    """Verify that records, notebooks, parameters, journals, checkpoints and digests agree.

    Without STUDY: every study; STUDY may be one run: its notebook, its run folder, or STUDY/RUN. RUN: the name of a run, e.g.
    BaseFP32-s0. What may differ without anybody's doing is a note. Exit status 1 when something failed.
    """
    import json

    from vitfp8.errors import InputError
    from vitfp8.run.locate import executed_folder
    from vitfp8.verify.checks import Check, find_notebooks, verify_data
    from vitfp8.verify.checks import verify as verify_records
    from vitfp8.verify.rerun import check_repeatable

    paths = find_notebooks(study, runs)
    if again and study is None:
        raise InputError("--rerun: executes every run again; name the study, and runs of it if need be")
    named = bool(runs) or (study is not None and ("/" in study or study.endswith(".ipynb")))
    passed_over = {path: why for path in paths if again and not named and (why := _why_not_repeatable(path))}
    repeats = [path for path in paths if again and path not in passed_over]
    for path in repeats:
        check_repeatable(path)
    checks = list(verify_records(paths))
    checks += [Check(path, "repeat", "note", f"is not executed again: {why}") for path, why in passed_over.items()]
    if data:
        checks += verify_data(paths)
    if not as_json:
        if not paths:
            click.echo(f"nothing in {executed_folder()}/ yet; `vitfp8 run --preset digits` is a start")
        _print(checks)
    signal = _repeat(repeats, checks, as_json)
    if as_json:
        click.echo(json.dumps([_row(check) for check in checks], indent=1))
    elif signal is None and paths:
        _print_summary(checks)
    if signal is not None:
        click.echo("vitfp8: interrupted", err=True)
        sys.exit(128 + signal)
    sys.exit(any(check.level == "FAILED" for check in checks))


def _why_not_repeatable(path: Path) -> str | None:
    """Why a run is passed over where no run is named; None where it is finished and of this project."""
    from vitfp8.errors import InputError
    from vitfp8.verify.rerun import check_repeatable

    try:
        check_repeatable(path)
    except InputError as error:
        return str(error).removeprefix(f"{path}: ")
    return None


def _repeat(paths: Sequence[Path], checks: list[Check], quiet: bool) -> int | None:
    """Execute runs again, adding what comes of it; the signal that stopped it."""
    from vitfp8.run.execute import listening
    from vitfp8.verify.rerun import rerun

    with listening() as signals:
        for path in paths:
            if not quiet:
                click.echo(f"again   {path}")
            repeat = rerun(path, signals=signals)
            if repeat.signal is not None:
                return repeat.signal
            checks += repeat.checks
            if not quiet:
                for check in repeat.checks:
                    click.echo(f"{check.level:7} {check.path}: {check.subject}: {check.text}")
    return None


def _print(checks: Sequence[Check]) -> None:
    """A line for each run in which all agrees, and a line for each note and failure."""
    for path in dict.fromkeys(check.path for check in checks):
        of_run = [check for check in checks if check.path == path]
        agree = sum(check.level == "ok" for check in of_run)
        if agree and not any(check.level == "FAILED" for check in of_run):
            click.echo(f"ok      {path}: {agree} checks")
        for check in of_run:
            if check.level != "ok":
                click.echo(f"{check.level:7} {check.path}: {check.subject}: {check.text}")


def _print_summary(checks: Sequence[Check]) -> None:
    """How many runs, failures and notes."""
    failed = {check.path for check in checks if check.level == "FAILED"}
    notes = sum(check.level == "note" for check in checks)
    runs = len({check.path for check in checks})
    click.echo(f"{runs} verified, {len(failed)} FAILED, {notes} {'note' if notes == 1 else 'notes'}")


def _row(check: Check) -> dict[str, str]:
    """A check as JSON has it."""
    return {"path": str(check.path), "subject": check.subject, "level": check.level, "text": check.text}
