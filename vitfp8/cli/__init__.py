"""The command line ``vitfp8``; a module here for each family of commands.

Exit status: 0 done (a diverged run is a result); 1 a run failed; 2 bad input, before anything starts or is written; 130
interrupted.
Everything heavier than click is imported inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import errno
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from vitfp8.cli.archive import backup, restore
from vitfp8.cli.batch import run
from vitfp8.cli.bench import bench
from vitfp8.cli.diff import diff
from vitfp8.cli.doctor import doctor
from vitfp8.cli.export import export
from vitfp8.cli.importing import import_command
from vitfp8.cli.machine import check, monitor
from vitfp8.cli.note import note
from vitfp8.cli.records import runs
from vitfp8.cli.report import report
from vitfp8.cli.streams import keep_standard_streams
from vitfp8.cli.verify import verify
from vitfp8.cli.watch import watch

# Reading a notebook imports jsonschema, which builds the grammar of every kind of IRI at import if this package is there (Jupyter
# brings it): one to four seconds of each command for a check that no notebook schema asks for.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]


def _working_folder() -> None:
    """Refuse a working folder that is not there any more.

    Raises:
        InputError: it has been removed.
    """
    from vitfp8.errors import InputError

    try:
        Path.cwd()
    except OSError:
        raise InputError("the working folder has been removed, or cannot be read; cd into one that is there") from None


class _Commands(click.Group):
    """A group whose commands say what is wrong with the input in one line and exit with status 2."""

    _batch = False

    def main(self, *args: Any, **options: Any) -> Any:
        """Run the command line; output that nobody can read is dropped, and a full disk is told at the end."""
        output = keep_standard_streams()
        try:
            return super().main(*args, **options)
        except SystemExit as end:
            with suppress(ValueError):
                sys.stdout.flush()
            problem = None if output is None else output.problem
            if problem is None or problem.errno == errno.EPIPE:  # a reader that has left, e.g. head, has what it wanted
                raise
            click.echo(f"vitfp8: not all output could be written ({problem.strerror})", err=True)
            if end.code in (0, None) and not self._batch:  # a batch's status is that of its runs
                raise SystemExit(1) from None
            raise

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an `InputError` becomes its one line, Ctrl-C status 130."""
        from vitfp8.errors import InputError
        from vitfp8.params import refuse_windows

        try:
            refuse_windows()
            _working_folder()
            return super().invoke(ctx)
        except InputError as error:
            click.echo(f"vitfp8: {error}", err=True)
            ctx.exit(2)
        except OSError as error:  # a disk that is full, a folder that is gone
            place = "" if error.filename is None else f"{error.filename}: "
            click.echo(f"vitfp8: {place}{error.strerror or error}", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            click.echo("vitfp8: interrupted", err=True)
            ctx.exit(130)
        finally:
            self._batch = ctx.invoked_subcommand == "run"


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vitfp8")
def main() -> None:
    """Train Vision Transformers in FP32, BF16, FP16 and FP8, as notebooks, and report what low precision costs."""


for command in (
    run, check, runs, watch, diff, note, verify, report, export, backup, restore, import_command, monitor, bench, doctor,
):  # fmt: skip
    main.add_command(command)
