"""Standard output and error that a command can always write to, even when they are closed or their disk is full."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import Any


class Lossy(io.FileIO):
    """Standard output or error that drops what cannot be written: a batch must not end because its log's disk is full.

    Attributes:
        problem: why something was dropped first, None before.
    """

    problem: OSError | None = None

    def write(self, data: Any) -> int:
        """Write bytes, or drop them."""
        try:
            return super().write(data) or 0
        except BlockingIOError:
            raise
        except OSError as error:
            self.problem = self.problem or error
            return len(memoryview(data).cast("B"))


def keep_standard_streams() -> Lossy | None:
    """Make all three standard streams usable whatever the shell made of them; standard output, where it is the process's own.

    A closed one (``>&-``) is opened to nowhere, so that no other file takes its number, which child processes write to. What a
    stream's encoding does not have is replaced.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            while (opened := os.open(os.devnull, os.O_RDWR)) < number:
                pass
            if opened > number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
    streams = {}
    for name, number in (("stdout", 1), ("stderr", 2)):
        before = getattr(sys, name)
        if before is not None and before is not getattr(sys, f"__{name}__"):
            continue  # a test's, or a notebook's
        raw = Lossy(number, "w", closefd=False)
        stream = io.TextIOWrapper(
            io.BufferedWriter(raw),
            encoding=getattr(before, "encoding", None) or "utf-8",
            errors="backslashreplace" if name == "stderr" else "replace",
            line_buffering=name == "stderr" or raw.isatty(),
        )
        if before is not None:
            with suppress(OSError, ValueError):
                before.flush()
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
        streams[name] = raw
    return streams.get("stdout")
