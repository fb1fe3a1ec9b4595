"""``vitfp8 backup`` and ``restore``: a checksum-verified copy of the lab records, and its way back."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from vitfp8.workflow.archive import Outcome


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("dest", required=False, type=click.Path(path_type=Path))
@click.option("--verify", is_flag=True, help="Read every file of the backup SOURCE and compare; copy nothing.")
def backup(source: Path, dest: Path | None, verify: bool) -> None:
    """Copy SOURCE (for example executed) to DEST with checksums, each copy read back.

    The same command goes on after whatever stopped it, and adds what is new.
    """
    from vitfp8.params import InputError
    from vitfp8.workflow.archive import back_up, verify_backup

    if verify:
        if dest is not None:
            raise InputError(f"--verify: takes the backup alone; leave {str(dest)!r} out")
        sound, problems = verify_backup(source)
        for problem in problems:
            click.echo(f"vitfp8: {problem}", err=True)
        click.echo(f"{sound} files are sound, {len(problems)} {'is' if len(problems) == 1 else 'are'} not")
        sys.exit(1 if problems else 0)
    if dest is None:
        raise InputError("backup: DEST is missing; `vitfp8 backup executed PLACE`")
    try:
        _tell(back_up(source, dest), dest)
    except OSError as error:
        _stopped(error, dest)


@click.command()
@click.argument("backup", type=click.Path(path_type=Path))
@click.argument("dest", type=click.Path(path_type=Path))
def restore(backup: Path, dest: Path) -> None:
    """Copy a BACKUP back to DEST, verified. Files that are there and differ are never overwritten."""
    from vitfp8.workflow.archive import restore as copy_back

    try:
        _tell(copy_back(backup, dest), dest)
    except OSError as error:
        _stopped(error, dest)


def _tell(outcome: Outcome, dest: Path) -> None:
    """What was done, and what was left out."""
    for line in outcome.left_out:
        click.echo(f"left out: {line}", err=True)
    click.echo(f"{outcome.copied} files ({outcome.bytes:,} bytes) copied to {dest} and read back, {outcome.kept} were there")


def _stopped(error: OSError, dest: Path) -> None:
    """The disk filled up or failed: one line, status 1."""
    click.echo(
        f"vitfp8: {error.filename or dest}: {error.strerror or error}; what is there is sound, the same command goes on", err=True
    )
    sys.exit(1)
