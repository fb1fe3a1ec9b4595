"""``vitfp8 report``: the analysis of a study, exported."""

from __future__ import annotations

import click


@click.command()
@click.argument("study", default="paper")
@click.option("--to", "formats", default="html,latex,pdf", show_default=True, help="Which formats, separated by commas.")
def report(study: str, formats: str) -> None:
    """Execute the analysis of a study and export it as HTML, LaTeX and PDF."""
    from vitfp8.reporting.build import make_report

    for name, path in make_report(study, formats=[part.strip() for part in formats.split(",") if part.strip()]).items():
        click.echo(f"{name}: {path}")
