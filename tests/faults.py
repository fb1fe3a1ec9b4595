"""Faults for real processes: a disk that is full from a moment on, and a clock that jumps.

`Faults` writes a ``sitecustomize.py``, which Python imports by itself: a command that has its folder on PYTHONPATH, and the
kernels that it starts, obey `fill` and `set_clock` from then on. A file that would grow beyond the room (RLIMIT_FSIZE) is refused
by the system itself, in the midst of a write, in the kernel or in the runner alone; so no disk has to be mounted for it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

_SHIM = """
import ctypes, datetime, gc, json, resource, sys, threading, time

_FAULTS = {faults!r}
_role = "kernel" if "ipykernel_launcher" in " ".join(sys.orig_argv) else "runner"


def _said():
    try:
        with open(_FAULTS) as file:
            return json.load(file)
    except (OSError, ValueError):
        return {{}}


def _obey():
    before = None
    while True:
        room = _said().get(_role)
        if room != before:
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard if room is None else room, hard))
            before = room
        _sleep(0.005)


_sleep, _time = time.sleep, time.time
threading.Thread(target=_obey, daemon=True).start()


def _now(cls, tz=None):
    return cls.fromtimestamp(time.time(), tz)


if {clock!r}:
    time.time = lambda: _time() + 3600 * _said().get("hours", 0)
    # the method of the one class that there is: C extensions hold on to it, and crash on another
    gc.get_referents(datetime.datetime.__dict__)[0]["now"] = classmethod(_now)
    ctypes.pythonapi.PyType_Modified(ctypes.py_object(datetime.datetime))
"""


class Faults:
    """What the processes with our shim suffer from.

    Args:
        folder: of the shim; made when it is not there.
        clock: whether their clock shall obey `set_clock`.
    """

    def __init__(self, folder: Path, *, clock: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._file = folder / "faults.json"
        (folder / "sitecustomize.py").write_text(_SHIM.format(faults=str(self._file), clock=clock))

    @property
    def environment(self) -> Mapping[str, str]:
        """The environment of a command that obeys."""
        path = os.pathsep.join([str(self.folder), *filter(None, [os.environ.get("PYTHONPATH")])])
        return {**os.environ, "PYTHONPATH": path}

    def fill(self, *, kernel: int | None = None, runner: int | None = None) -> None:
        """No file grows beyond so many bytes from now on, in the kernel or in the runner; None: there is room again."""
        self._write({"kernel": kernel, "runner": runner})

    def set_clock(self, hours: float) -> None:
        """The clock is so many hours ahead from now on."""
        self._write({"hours": hours})

    def _write(self, said: Mapping[str, float | None]) -> None:
        """Tell the processes, all at once."""
        aside = self._file.with_suffix(".tmp")
        aside.write_text(json.dumps(said))
        aside.replace(self._file)
