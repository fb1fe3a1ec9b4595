"""``vitfp8 bench``: the benchmarks of a checkout."""

from __future__ import annotations

import subprocess
import sys

import click


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("name", required=False, metavar="[NAME]")
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[OPTIONS]...")
def bench(name: str | None, options: tuple[str, ...]) -> None:
    """Run a benchmark; without a NAME, list them.

    OPTIONS go to the benchmark: `vitfp8 bench training_step -- --help` shows them.
    """
    from vitfp8.errors import InputError, suggest
    from vitfp8.home import PACKAGE

    folder = PACKAGE.parent / "benchmarks"
    there = {path.stem: path for path in sorted(folder.glob("*.py"))}
    if not there:
        raise InputError(f"bench: there is no {folder}; benchmarks come with a checkout of the project, not with an installation")
    if name is None:
        for known, path in there.items():
            first = path.read_text(encoding="utf-8").splitlines()[0].strip('"')
            click.echo(f"{known:16} {first}")
        return
    if name not in there:
        raise InputError(f"bench: there is no benchmark {name!r}; {suggest(name, there)}")
    sys.exit(subprocess.run([sys.executable, str(there[name]), *options], check=False).returncode)
