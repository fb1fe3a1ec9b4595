"""What of a record can be counted with or shown: finite numbers, texts that are not empty."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

#: No loss, norm or time is as large; squares of such numbers, and sums of them, overflow.
_LARGEST = 1e100


def finite(value: Any) -> float | None:
    """A number as a float; None for what is missing, no number, NaN, infinite, or so large that its square is.

    Args:
        value: anything that a record may hold.
    """
    if value is None or value is pd.NA or isinstance(value, (bool, np.bool_, str)):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if abs(number) < _LARGEST else None


def finite_values(values: Iterable[Any]) -> list[float]:
    """Those values that are finite numbers.

    Args:
        values: anything that a record may hold.
    """
    return [number for number in map(finite, values) if number is not None]


def steady_seconds(values: Iterable[Any]) -> list[float]:
    """The seconds of a run's epochs that count: without the first, slower one where there are more.

    Args:
        values: in the order of the epochs.
    """
    seconds = list(values)
    return finite_values(seconds[1:] or seconds)


def nonempty_text(value: Any) -> str | None:
    """A text that is not empty; None for anything else.

    Args:
        value: anything that a record may hold.
    """
    return value if isinstance(value, str) and value else None


def nonempty_texts(values: Iterable[Any]) -> list[str]:
    """Those values that are texts and not empty.

    Args:
        values: anything that a record may hold.
    """
    return [value for value in values if isinstance(value, str) and value]
