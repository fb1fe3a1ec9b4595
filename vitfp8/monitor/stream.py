"""``vitfp8 monitor``: samples of the machine as lines of a CSV file."""

from __future__ import annotations

import csv
import io
import os
import threading
import time
from datetime import datetime
from pathlib import Path

from vitfp8.errors import InputError
from vitfp8.monitor.machine import machine_probes
from vitfp8.monitor.probes import ProbeSet, Row, Value
from vitfp8.monitor.sampling import check_interval, ticks


def monitor_stream(
    output_file: str | os.PathLike[str],
    interval: float = 1.0,
    *,
    name: str | None = None,
    stop: threading.Event | None = None,
    duration: float | None = None,
    pid: int | None = None,
    gpu: bool = True,
    device_index: int = 0,
    powermetrics: bool = False,
) -> int:
    """Write one line per sample to a CSV file until Ctrl-C, each as soon as it is measured; returns the number of samples.

    The first column is ``timestamp`` (local time, ISO 8601 with milliseconds and zone), then ``name`` if one is given,
    then the columns of `SystemMonitor`. An empty field was not measured. Lines are appended to a file that has the
    same columns already.

    Args:
        output_file: the CSV file; its folder must exist.
        interval: seconds between samples, above 0.
        name: written into every line, to tell several measurements in one file apart.
        stop: ends the measurement when set, as Ctrl-C does.
        duration: seconds after which to end; None for no end.
        pid: a process to measure beside the machine; without one its columns stay empty.
        gpu: whether to ask the GPU.
        device_index: which NVIDIA device.
        powermetrics: on a Mac, run ``sudo -n powermetrics``.

    Raises:
        InputError: when the file cannot be written, or holds other columns; nothing is changed then.
    """
    interval = check_interval(interval)
    if duration is not None and not duration >= 0:
        raise InputError(f"duration is {duration!r}, but must be a number of seconds, at least 0")
    path = Path(output_file)
    stop = stop or threading.Event()
    probes = ProbeSet(
        machine_probes(
            interval=interval, pid=pid, process=pid is not None, gpu=gpu, device_index=device_index, powermetrics=powermetrics
        )
    )
    written = 0
    try:
        begin = time.monotonic()
        probes.open()
        labels: Row = {} if name is None else {"name": name}
        header = _line(["timestamp", *labels, "seconds", *probes.columns])
        with _appending(path, header) as file:
            for due in ticks(begin, interval):
                if duration is not None and due - begin > duration + 1e-9:
                    break
                if stop.wait(max(0.0, due - time.monotonic())):
                    break
                row = probes.read()
                now = datetime.now().astimezone().isoformat(timespec="milliseconds")
                file.write(_line([now, *labels.values(), round(time.monotonic() - begin, 3), *row.values()]))
                file.flush()
                written += 1
    except KeyboardInterrupt:
        pass
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        probes.close()
    return written


def _line(values: list[Value]) -> str:
    """One line of CSV; None becomes an empty field."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(["" if value is None else value for value in values])
    return text.getvalue()


def _appending(path: Path, header: str) -> io.TextIOWrapper:
    """Open a CSV file at its end, with its header in place; `InputError` when it cannot be that file."""
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder; name a CSV file in it")
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.parent}; create it first")
    cut_short = False
    if path.exists() and path.stat().st_size:
        with path.open("rb") as existing:
            first = existing.readline()
            existing.seek(-1, os.SEEK_END)
            cut_short = existing.read(1) != b"\n"
        if first != header.encode():
            raise InputError(f"{path} holds other columns than this measurement; name another file")
        header = ""
    file = path.open("a", encoding="utf-8", newline="")
    # The last line of a measurement that was killed may lack its end.
    file.write("\n" if cut_short else header)
    file.flush()
    return file
