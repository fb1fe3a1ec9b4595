"""vitfp8: what low precision costs a Vision Transformer, measured in notebooks.

``RunParams``, ``read_record``, ``load_runs``, ``load_history`` and ``load_quantization`` need no torch; ``ViTTrainer`` and
``load_model`` import it when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from vitfp8.errors import InputError
    from vitfp8.params import RunParams
    from vitfp8.ptq.trained_model import load_model
    from vitfp8.record import load_history, load_quantization, load_runs, read_record
    from vitfp8.trainer import ViTTrainer

#: Public name → the module that has it; imported when first used, so that ``import vitfp8`` is quick and loads no torch.
_HOMES = {
    "InputError": "vitfp8.errors",
    "RunParams": "vitfp8.params",
    "ViTTrainer": "vitfp8.trainer",
    "load_history": "vitfp8.record",
    "load_model": "vitfp8.ptq.trained_model",
    "load_quantization": "vitfp8.record",
    "load_runs": "vitfp8.record",
    "read_record": "vitfp8.record",
}

__all__ = [
    "InputError",
    "RunParams",
    "ViTTrainer",
    "load_history",
    "load_model",
    "load_quantization",
    "load_runs",
    "read_record",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its home when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'vitfp8' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """The public names."""
    return sorted([*__all__, "__version__"])
