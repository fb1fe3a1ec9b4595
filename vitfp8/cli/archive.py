"""``vitfp8 backup`` and ``restore``: verified copies of results, and their way back."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

T = TypeVar("T")


@click.command()
@click.argument("source", metavar="SOURCE", type=click.Path(path_type=Path))
@click.argument("dest", metavar="DEST", required=False, type=click.Path(path_type=Path))
@click.option("--verify", "only_verify", is_flag=True, help="Read every file of the backup SOURCE instead; change nothing.")
@click.option("--moved", is_flag=True, help="SOURCE was elsewhere when DEST was made.")
def backup(source: Path, dest: Path | None, only_verify: bool, moved: bool) -> None:
    """Copy the folder SOURCE to the backup DEST, or bring DEST up to date.

    Each copy is read back and its SHA-256 compared. What has not changed is not copied again, what was interrupted goes on, and
    earlier versions of changed and deleted files are kept in DEST/superseded. `vitfp8 backup --verify DEST` checks a backup.
    """
    from vitfp8.archive.backup import backup as back_up
    from vitfp8.archive.manifest import shown
    from vitfp8.archive.restore import verify
    from vitfp8.errors import InputError
    from vitfp8.files import size_words

    if only_verify:
        if moved:
            raise InputError(
                "--moved: says where a backup's source is now, and --verify reads the backup alone; drop one of them"
            )
        if dest is not None:
            raise InputError(f"--verify: takes one folder, and {shown(dest)} is a second; give the backup alone")
        check = _until_stopped(lambda **watch: verify(source, **watch), "checking")
        _say(check.problems)
        files = f"{check.files} files, {size_words(check.size)}, {check.seconds:.1f} s"
        click.echo(f"{len(check.problems)} problems in {files}" if check.problems else f"sound: {files}")
        sys.exit(bool(check.problems))
    if dest is None:
        raise InputError("backup: DEST: is missing; give a folder on another disk: `vitfp8 backup executed PLACE`")
    done = _until_stopped(lambda **watch: back_up(source, dest, moved=moved, **watch), "backing up")
    if done.links:
        named = "; ".join(done.links[:5]) + ("; …" if len(done.links) > 5 else "")
        click.echo(f"links are recorded, not followed; back up by itself what they point to: {named}")
    for folder in done.live:
        click.echo(f"{shown(folder)} is being trained: copied as far as it was; back up again when it has ended")
    for note in done.notes:
        click.echo(note)
    if done.kept_aside is not None:
        versions = "1 earlier version" if done.aside == 1 else f"{done.aside} earlier versions"
        click.echo(f"{versions} of changed or deleted files kept in {shown(done.kept_aside)}")
    click.echo(
        f"{done.files} files, {size_words(done.size)}: {done.copied} copied and read back ({size_words(done.copied_size)}), "
        f"the others were there; {done.seconds:.1f} s"
    )
    _say(done.problems)
    sys.exit(bool(done.problems))


@click.command()
@click.argument("place", metavar="BACKUP", type=click.Path(path_type=Path))
@click.argument("dest", metavar="DEST", type=click.Path(path_type=Path))
def restore(place: Path, dest: Path) -> None:
    """Copy BACKUP back to the folder DEST, verified.

    Files that are in DEST with the same content are kept; when one differs, nothing is restored.
    """
    from vitfp8.archive.restore import restore as put_back
    from vitfp8.files import size_words

    done = _until_stopped(lambda **watch: put_back(place, dest, **watch), "restoring")
    for note in done.notes:
        click.echo(note)
    click.echo(
        f"{done.copied + done.kept} files: {done.copied} copied and read back ({size_words(done.copied_size)}), "
        f"{done.kept} were there; {done.seconds:.1f} s"
    )
    _say(done.problems)
    sys.exit(bool(done.problems))


def _say(problems: list[str]) -> None:
    """A line for each problem."""
    for problem in problems:
        click.echo(f"vitfp8: {problem}", err=True)


def _until_stopped(work: Callable[..., T], what: str) -> T:
    """Do the work where Ctrl-C and SIGTERM end it well, with a bar where somebody watches; its errors end the command."""
    from vitfp8.archive.copying import ArchiveError, StoppedError

    received: list[int] = []
    try:
        with _hearing(received), _bar(what) as progress:
            return work(stop=lambda: bool(received), progress=progress)
    except StoppedError:
        click.echo("vitfp8: stopped; the same command goes on", err=True)
        sys.exit(128 + received[0])
    except ArchiveError as error:
        click.echo(f"vitfp8: {error}; what was copied is sound: the same command goes on when that is mended", err=True)
        sys.exit(1)


@contextmanager
def _hearing(received: list[int]) -> Iterator[None]:
    """Note Ctrl-C, SIGTERM and a closed terminal; one that was ignored from the start, as under ``nohup``, stays ignored."""
    numbers = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda number, frame: received.append(number)) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar of bytes in a terminal, nothing elsewhere."""
    if not sys.stdout.isatty():
        yield lambda done, total, name: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from vitfp8.cli.tables import console

    columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()]
    with Progress(*columns, TimeRemainingColumn(), console=console(), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total, name: bar.update(task, completed=done, total=total)
