"""Keep the machine awake while a batch runs, where that can be had (wakepy, extra ``awake``); nothing is lost where it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psutil


@contextmanager
def keep_awake() -> Iterator[str]:
    """Hold off the machine's automatic sleep until the block is left; the screen may still go dark.

    Yields:
        One line that says why it is not kept awake and what to do; empty when it is, and where there is no battery: such a
        machine is a server or a desktop computer, whose sleep its owner has set.
    """
    try:
        from wakepy import keep
    except ImportError:
        yield _complaint("wakepy is not installed; `pip install 'vitfp8[awake]'`")
        return
    with keep.running(on_fail="pass") as mode:
        yield "" if mode.active else _complaint("its system offers no way to hold that off")


def _complaint(why: str) -> str:
    """What is said on a machine with a battery."""
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    return f"this machine may fall asleep: {why}, or switch automatic sleep off" if battery is not None else ""
