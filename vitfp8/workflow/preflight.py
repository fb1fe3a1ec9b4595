"""Refuse before starting: parameter files, names, data and machine are checked in seconds, not after a night."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vitfp8.catalog import EXPERIMENTS
from vitfp8.params import RunParams, read_layer, validate
from vitfp8.quantize_params import QuantizeParams, parameters_of
from vitfp8.workflow.locate import parameter_file, preset_file
from vitfp8.workflow.plan import PlannedRun
from vitfp8.workflow.study import parse_study


def check_plan(planned: Sequence[PlannedRun]) -> None:
    """Check every run that would start: model, device, precision, data. Loads torch; starts and writes nothing.

    Args:
        planned: from `vitfp8.workflow.plan.plan_batch`.

    Raises:
        InputError: the first thing that cannot be.
    """
    seen: set[tuple[object, ...]] = set()
    for run in planned:
        params = run.params
        if run.action in ("keep", "busy"):
            continue
        if isinstance(params, QuantizeParams):
            _check_source(params, run.source_planned)
            continue
        what = (params.model_copy(update={"seed": 0, "run_folder": None}).digest, params.data_dir, params.download)
        if what in seen:
            continue
        seen.add(what)
        _check_on_machine(params)


def _check_on_machine(params: RunParams) -> None:
    """What only torch and timm know; imported here so that planning stays light."""
    from vitfp8.experiment import check_experiment

    check_experiment(params)


def _check_source(params: QuantizeParams, planned: bool) -> None:
    """The same for a quantisation: its device, and its source run where that is there already."""
    from vitfp8.quantize import check_quantization

    check_quantization(params, source_planned=planned)


def check_files(files: Sequence[Path], preset: str | None = None) -> list[str]:
    """Validate parameter files, presets and study files, and what they need of this machine.

    Args:
        files: which; none: those of the four experiments.
        preset: laid over each parameter file.

    Returns:
        One line for each file.

    Raises:
        InputError: the first thing that is wrong.
    """
    core = [parameter_file(name) for name, row in EXPERIMENTS.items() if row.core]
    over = [read_layer(preset_file(preset))] if preset else []
    lines = []
    for file in files or core:
        layer = read_layer(file)
        known = [key for key in layer.values if key in RunParams.model_fields]
        if "experiments" in layer.values or ("preset" in layer.values and not known):
            study = parse_study(layer)
            lines.append(f"{file}: a valid study of {len(study.experiments)} experiments × {len(study.seeds)} seeds")
        elif parameters_of(str(layer.values.get("experiment"))) is QuantizeParams:
            quantization = validate([layer], QuantizeParams)
            _check_source(quantization, planned=True)
            lines.append(f"{file}: valid; {quantization.run_name} can run here after {quantization.source_name}")
        elif "experiment" in layer.values or not _is_preset(file):
            params = validate([layer, *over])
            _check_on_machine(params)
            lines.append(f"{file}: valid; {params.run_name} can run here")
        else:
            for name in (name for name, row in EXPERIMENTS.items() if row.core):
                validate([read_layer(parameter_file(name)), layer])
            lines.append(f"{file}: a valid preset")
    return lines


def _is_preset(file: Path) -> bool:
    """Whether a file lies among the presets; anything else is a parameter file and must be complete."""
    return file.parent.name == "presets"
