"""Low precision: number formats, scaling recipes, the products of a layer, native and emulated.

The door is `prepare`: it gives a model a precision and says what really runs. `PRECISIONS` and `FORMATS` are its tables.
"""

from vitfp8.precision.capability import compiler_for, has_native_products, resolve_device
from vitfp8.precision.formats import FORMATS, round_to_format
from vitfp8.precision.preparation import PRECISIONS, PreparedPrecision, check_layers, choose_backend, prepare

__all__ = [
    "FORMATS",
    "PRECISIONS",
    "PreparedPrecision",
    "check_layers",
    "choose_backend",
    "compiler_for",
    "has_native_products",
    "prepare",
    "resolve_device",
    "round_to_format",
]
