"""Parameters of a run: every field with its meaning, read from files and options, laid over each other, validated once.

    params = validate([read_layer("params/BaseFP32.yaml"), read_layer("params/presets/digits.yaml")])

A parameter file is flat YAML that states every field. Bad input is one line that names the file, the line, the
key, the value and a way out. Imports no torch.
"""

from vitfp8.params.fields import (
    IDENTITY_RULE,
    About,
    Parameters,
    describe_parameters,
    field_notes,
    identity_digest,
    identity_of,
)
from vitfp8.params.merge import Layer, merge, parse_assignment, parse_layer, read_layer, validate, why_no_text
from vitfp8.params.notebook import NotebookParameters, assignments, from_notebook, refuse_windows
from vitfp8.params.training import RunParams, idle_values

__all__ = [
    "IDENTITY_RULE",
    "About",
    "Layer",
    "NotebookParameters",
    "Parameters",
    "RunParams",
    "assignments",
    "describe_parameters",
    "field_notes",
    "from_notebook",
    "identity_digest",
    "identity_of",
    "idle_values",
    "merge",
    "parse_assignment",
    "parse_layer",
    "read_layer",
    "refuse_windows",
    "validate",
    "why_no_text",
]
