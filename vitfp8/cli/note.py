"""``vitfp8 note``: a dated note on a run."""

from __future__ import annotations

import click

#: Most characters of a note, about a page; a longer text belongs in a file beside the study.
LONGEST_NOTE = 4000


@click.command()
@click.argument("run", metavar="RUN")
@click.argument("text", metavar="TEXT")
def note(run: str, text: str) -> None:
    """Append a dated note to the log of a run; its notebook stays as executed.

    RUN: a notebook, a run folder, or STUDY/RUN, e.g. digits/BaseFP32-s0. Readers of the record show the note.
    """
    from vitfp8.errors import InputError
    from vitfp8.record import append_to_run_log, find_run, now, read_record, run_log_of

    notebook = find_run(run)
    read_record(notebook)  # a note on a notebook without a record would never be shown
    text = text.strip()
    if not text:
        raise InputError("note: TEXT: is empty; say what there is to know of the run")
    if len(text) > LONGEST_NOTE:
        raise InputError(f"note: TEXT: has {len(text)} characters, more than {LONGEST_NOTE}; shorten it")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InputError("note: TEXT: is not valid text in this terminal's encoding; type it again in UTF-8")
    log, time = run_log_of(notebook), now()
    try:
        append_to_run_log(notebook, {"time": time, "event": "note", "text": text})
    except OSError as error:
        raise InputError(f"{log}: cannot be written ({error.strerror}); check its permissions and the disk") from None
    click.echo(f"{time}: noted in {log}")
