"""Saving as JupyterLab does: JSON read and written by JavaScript, which knows one kind of number."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any


def javascript_number(value: float) -> str:
    """A number as ``JSON.stringify`` writes it (ECMA-262, Number::toString)."""
    number = float(value)
    if number == 0:
        return "0"
    sign, digits, exponent = Decimal(repr(abs(number))).normalize().as_tuple()
    text, point = "".join(map(str, digits)), len(digits) + int(exponent)
    minus = "-" if number < 0 else ""
    if len(text) <= point <= 21:
        return minus + text + "0" * (point - len(text))
    if 0 < point <= 21:
        return f"{minus}{text[:point]}.{text[point:]}"
    if -6 < point <= 0:
        return f"{minus}0.{'0' * -point}{text}"
    mantissa = text[0] + (f".{text[1:]}" if len(text) > 1 else "")
    return f"{minus}{mantissa}e{point - 1:+d}"


def saved_by_javascript(value: Any) -> Any:
    """What Python reads after JupyterLab has read a JSON value and saved it."""

    def text(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ",".join(f"{json.dumps(key)}:{text(item)}" for key, item in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ",".join(map(text, value)) + "]"
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return javascript_number(value)
        return json.dumps(value)

    return json.loads(text(value))
