"""The command line ``vitfp8``; a module here for each family of commands.

Exit status: 0 done (a diverged run is a result); 1 a run failed; 2 bad input, before anything starts or is written; 130
interrupted.
Everything heavier than click is imported inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import sys
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
from vitfp8.cli.verify import verify
from vitfp8.cli.watch import watch

# Reading a notebook imports jsonschema, which builds the grammar of every kind of IRI at import if this package is there (Jupyter
# brings it): one to four seconds of each command for a check that no notebook schema asks for.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]


class _Commands(click.Group):
    """A group whose commands say what is wrong with the input in one line and exit with status 2."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an `InputError` becomes its one line, Ctrl-C status 130."""
        from vitfp8.params import InputError

        try:
            return super().invoke(ctx)
        except InputError as error:
            click.echo(f"vitfp8: {error}", err=True)
            ctx.exit(2)
        except KeyboardInterrupt:
            click.echo("vitfp8: interrupted", err=True)
            ctx.exit(130)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vitfp8")
def main() -> None:
    """Train Vision Transformers in FP32, BF16, FP16 and FP8, as notebooks, and report what low precision costs."""


for command in (
    run, check, runs, watch, diff, note, verify, report, export, backup, restore, import_command, monitor, bench, doctor,
):  # fmt: skip
    main.add_command(command)
