"""Refuse before starting: parameter files, names, data and machine are checked in seconds, not after a night.

`check_plan` raises for the first thing that cannot be; `examine_machine` says what is so of this machine, refusals and warnings
told apart. `vitfp8 check` prints both, `vitfp8 run` makes the same check before it starts.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from vitfp8.catalog import EXPERIMENTS, FP8_RECIPES, PRECISION_FACTS, PRECISIONS
from vitfp8.errors import InputError
from vitfp8.files import size_words
from vitfp8.monitor import read_heat
from vitfp8.params import Layer, RunParams, read_layer, validate
from vitfp8.params.quantization import QuantizeParams, parameters_of
from vitfp8.record import backup_state, git_state, read_record
from vitfp8.run.estimates import PROCESS_BYTES, disk_bytes, memory_bytes, model_facts_of
from vitfp8.run.locate import executed_folder, parameter_file, preset_file
from vitfp8.run.plan import PlannedRun, layers_for, only_own
from vitfp8.run.study_file import Study, parse_study

#: Room on the disk beyond what is needed, as a part of it: below that a warning is given.
_SPARE_ROOM = 0.5

#: Width of a model from which native FP8 may be expected to be faster than BF16; not measured here.
_WIDE = 1024


@dataclass(frozen=True)
class Finding:
    """Something that is so of this machine.

    Attributes:
        level: ``ok``; ``note``: worth knowing; ``warning``: runs may suffer; ``refusal``: runs would fail.
        subject: what it is about, in a word.
        text: one line, with a way out where there is something to do.
    """

    level: Literal["ok", "note", "warning", "refusal"]
    subject: str
    text: str


# ------------------------------------------------------------------------------------------------------------- a batch


def check_plan(planned: Sequence[PlannedRun]) -> None:
    """Check every run that would start: model, device, precision, data. Loads torch; starts and writes nothing.

    Of runs that are kept or continued it is checked that data and pretrained weights are those that they began with.

    Args:
        planned: from `vitfp8.run.plan.plan_batch`.

    Raises:
        InputError: the first thing that cannot be.
    """
    seen: set[tuple[object, ...]] = set()
    digests: dict[tuple[object, ...], str | None] = {}
    for run in planned:
        params = run.params
        if run.action in ("keep", "continue") and isinstance(params, RunParams):
            _check_same_data(run, params, digests)
            _check_same_weights(run, params)
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


def _check_same_data(run: PlannedRun, params: RunParams, digests: dict[tuple[object, ...], str | None]) -> None:
    """Refuse a finished or begun run whose data set is another one today; where it is not at hand nothing can be told."""
    recorded = read_record(run.output).data.get("digest")
    if recorded is None:
        return
    what = (params.dataset, params.data_dir, params.validation_fraction)
    if what not in digests:
        from vitfp8.data import data_digest

        digests[what] = data_digest(
            dataset=params.dataset, data_dir=params.data_dir, validation_fraction=params.validation_fraction
        )
    today = digests[what]
    if today is not None and today != recorded:
        raise InputError(
            f"{run.output}: was trained on another data set than {params.dataset!r} is now (digest {str(recorded)[:12]}, "
            f"today {today[:12]}); restore those files, --force moves it aside and runs it anew, or give another --study"
        )


def _check_same_weights(run: PlannedRun, params: RunParams) -> None:
    """Refuse a finished or begun run that started from other pretrained weights; where none are at hand nothing can be told."""
    recorded = read_record(run.output).weights_digest
    if recorded is None:
        return
    from vitfp8.pretrained import weights_digest

    today = weights_digest(params.model, params.pretrained_file)
    if today is not None and today != recorded:
        raise InputError(
            f"{run.output}: started from other pretrained weights than {params.pretrained_file or params.model} is now (SHA-256 "
            f"{recorded[:12]}, today {today[:12]}); restore that file, --force moves it aside and runs it anew, or give another "
            "--study"
        )


def _check_on_machine(params: RunParams) -> None:
    """What only torch and timm know; imported here so that planning stays light."""
    from vitfp8.experiment import check_experiment

    check_experiment(params)


def _check_source(params: QuantizeParams, planned: bool) -> None:
    """The same for a quantisation: its device, and its source run where that is there already."""
    from vitfp8.ptq import check_quantization

    check_quantization(params, source_planned=planned)


# ---------------------------------------------------------------------------------------------------------- the machine


def examine_machine(runs: Sequence[RunParams], folder: Path | None = None) -> list[Finding]:
    """What is so of this machine for runs that would start: disk, memory, power, heat, code, arithmetic. Writes nothing.

    Args:
        runs: parameters of the trainings that would start, one entry a run.
        folder: where lab records and checkpoints go; it need not exist. None: ``executed/`` at the study's home.
    """
    folder = folder or executed_folder()
    findings = [_disk(runs, folder)]
    if runs:
        findings += [_memory(runs), *_shared_memory(runs), *_devices(runs), *_arithmetic(runs), *_compilation(runs)]
        findings += _weights(runs)
    findings += [_power(), _heat(), _code(), *_backups(folder)]
    return findings


def needed_disk(runs: Sequence[RunParams]) -> int:
    """Disk that runs need until all are done, in bytes: their checkpoints and records stay.

    Args:
        runs: parameters of the trainings that would start, one entry a run.
    """
    return sum(disk_bytes(params) for params in runs)


def _disk(runs: Sequence[RunParams], folder: Path) -> Finding:
    """Room for checkpoints and records."""
    place = folder.resolve()
    while not place.exists():
        place = place.parent
    free, needed = shutil.disk_usage(place).free, needed_disk(runs)
    count = "1 run needs" if len(runs) == 1 else f"{len(runs)} runs need"
    words = f"{count} {size_words(needed)}, {size_words(free)} are free in {folder}"
    if needed > free:
        kept = "; checkpoint_every: null keeps fewer checkpoints" if any(p.checkpoint_every is not None for p in runs) else ""
        return Finding("refusal", "disk", f"{words}; make room, work on another disk, or run fewer at once{kept}")
    if needed * (1 + _SPARE_ROOM) > free:
        return Finding("warning", "disk", f"{words}: little to spare")
    return Finding("ok", "disk", words)


def _memory(runs: Sequence[RunParams]) -> Finding:
    """Memory of the processor against the largest run; a GPU's is known only when it is tried."""
    from vitfp8.experiment import who_multiplies

    needed = max(memory_bytes(params) for params in runs)
    available = psutil.virtual_memory().available
    model = f"{size_words(needed - PROCESS_BYTES)} of it the model's, images not counted"
    words = f"the largest run takes about {size_words(needed)}, {model}; {size_words(available)} are available"
    if needed > available and who_multiplies(runs[0])[0] == "cpu":
        return Finding("warning", "memory", f"{words}; close other programs, or set micro_batch_size")
    return Finding("ok", "memory", words)


def _shared_memory(runs: Sequence[RunParams], place: Path = Path("/dev/shm")) -> list[Finding]:
    """Room for the batches that workers hand over, where it is less than what they may have ready: two each."""
    sizes = [2 * p.workers * 3 * p.image_size**2 * p.batch_size for p in runs if p.dataset == "imagefolder"]
    needed = max(sizes, default=0)
    try:
        free = shutil.disk_usage(place).free
    except OSError:
        return []  # not Linux
    if needed <= free:
        return []
    words = f"workers may have {size_words(needed)} of images ready, {place} has {size_words(free)} free: what does not fit goes"
    return [Finding("note", "memory", f"{words} through pipes, which is slower; docker run --shm-size, or workers: 0")]


def every_precision() -> list[Finding]:
    """Who multiplies in each precision on this machine, and why; recipes of FP8 that differ are told apart.

    Raises:
        InputError: ``VITFP8_DEVICE`` names no device that is there.
    """
    from vitfp8.experiment import who_multiplies

    found: dict[tuple[str, str, str], tuple[str, list[str]]] = {}
    for precision in PRECISIONS:
        for recipe in FP8_RECIPES if PRECISION_FACTS[precision].scaled else ("tensorwise",):
            # only what decides the backend: the parameter files need not be found for it
            params = RunParams.model_construct(
                precision=precision, device="auto", backend="auto", fp8_recipe=recipe, base_precision="bf16"
            )
            device, backend, reason = who_multiplies(params)
            found.setdefault((precision, device, backend), (reason, []))[1].append(recipe)
    findings = []
    for (precision, device, backend), (reason, recipes) in found.items():
        of = "" if not PRECISION_FACTS[precision].scaled or len(recipes) == len(FP8_RECIPES) else f"{', '.join(recipes)}: "
        marked = "" if backend == "native" else "; its times are marked and never compared"
        level: Literal["ok", "note"] = "ok" if backend == "native" else "note"
        findings.append(Finding(level, PRECISIONS[precision], f"{of}{backend} on {device}: {reason}{marked}"))
    return findings


def _devices(runs: Sequence[RunParams]) -> list[Finding]:
    """GPUs that torch announces and that ``device: auto`` does not take."""
    from vitfp8.precision.capability import devices_passed_over

    said = dict.fromkeys(reason for params in runs for reason in devices_passed_over(params.device))
    return [Finding("warning", "device", reason) for reason in said]


def _slow_fp8(params: RunParams) -> list[str]:
    """Why native FP8 is expected to be slower than BF16; nothing where it is not."""
    width = int(model_facts_of(params)["embed_dim"])
    narrow = f"its layers are {width} wide, and FP8 gains from about {_WIDE} on" if width < _WIDE else ""
    eager = "without torch_compile a step starts thousands of small kernels" if params.torch_compile is False else ""
    return list(filter(None, (narrow, eager)))


def _compilation(runs: Sequence[RunParams]) -> list[Finding]:
    """What `torch_compile: auto` comes to where it can compile; nothing elsewhere."""
    from vitfp8.experiment import who_multiplies, why_eager
    from vitfp8.precision import compiler_for

    open_choice = [params for params in runs if params.torch_compile == "auto" and who_multiplies(params)[0] == "cuda"]
    if not open_choice:
        return []
    count = "1 run" if len(open_choice) == 1 else f"{len(open_choice)} runs"
    reason = why_eager(runs)
    compiles, why = compiler_for("cuda")
    if reason is None and compiles:
        return [Finding("ok", "compile", f"{count} will be compiled ({why})")]
    words = f"{count} will not be compiled: {f'{reason}, and times must be comparable' if reason else why}"
    if any(params.cuda_graphs for params in open_choice):
        return [Finding("refusal", "compile", f"{words}; cuda_graphs: true needs that, set it to false")]
    return [Finding("note", "compile", words)]


def _arithmetic(runs: Sequence[RunParams]) -> list[Finding]:
    """Who multiplies in each precision, and why; and whether native FP8 is a loss."""
    from vitfp8.experiment import who_multiplies

    findings = []
    scaled = [params for params in runs if PRECISION_FACTS[params.precision].scaled]
    fp8 = {params.model: params for params in scaled if who_multiplies(params)[1] == "native"}
    for model, params in fp8.items():
        if why := _slow_fp8(params):
            findings.append(Finding("note", "speed", f"expect FP8 of {model} to be slower than BF16: {'; '.join(why)}"))
    for (precision, device, backend, reason), count in Counter((p.precision, *who_multiplies(p)) for p in runs).items():
        words = f"{PRECISIONS[precision]} is {backend} on {device} ({reason}): {count} {'run' if count == 1 else 'runs'}"
        findings.append(Finding("ok" if backend == "native" else "note", "arithmetic", words))
    return findings


def _weights(runs: Sequence[RunParams]) -> list[Finding]:
    """Trained weights that the first run downloads."""
    asked = {(params.model, params.pretrained_file) for params in runs if params.pretrained}
    if not asked:
        return []
    from vitfp8.pretrained import find_weights

    sources = [find_weights(model, file) for model, file in sorted(asked, key=str)]
    missing = [source.hub or source.url for source in sources if source.path is None]
    return [Finding("note", "weights", f"{place} is not on this machine: the first run downloads it") for place in missing]


def _power() -> Finding:
    """Whether the machine could run out of battery."""
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    if battery is None:
        return Finding("ok", "power", "no battery")
    if battery.power_plugged is False:
        return Finding("warning", "power", f"on battery ({battery.percent:.0f} %); plug it in before a long batch")
    return Finding("ok", "power", f"plugged in, battery {battery.percent:.0f} %")


def _heat() -> Finding:
    """Whether the machine is hot before it begins."""
    heat = read_heat()
    if heat.is_hot():
        return Finding(
            "warning", "heat", f"{heat.words()}: timings of a hot machine mislead; let it cool down, or give --cooldown"
        )
    return Finding("ok", "heat", heat.words() or "the machine tells no temperature")


def _code() -> Finding:
    """Whether a commit names the code that would run."""
    state = git_state()
    if state["commit"] is None:
        return Finding("note", "code", f"{state['git_note']}: records name versions and the code's digest, no commit")
    commit = f"commit {state['commit'][:10]}"
    if state["dirty"] is None:
        return Finding("note", "code", f"{commit}; whether it was changed is not known: {state['git_note']}")
    if not state["dirty"]:
        return Finding("ok", "code", f"{commit}, clean")
    said = []
    if "patch_zlib_base64" in state:
        said.append("uncommitted changes of vitfp8/, notebooks/ and params/, whose patch goes into each record")
    elif "patch_sha256" in state:
        said.append("uncommitted changes, whose patch is too large for a record: its digest goes into each")
    if "untracked" in state:
        said.append("files that are not in git, whose digests go into each record")
    return Finding("note", "code", f"{commit} with {', and '.join(said)}")


def _backups(folder: Path) -> list[Finding]:
    """Whether the studies that are there are backed up."""
    found = []
    for study in sorted(path for path in folder.glob("*") if path.is_dir()):
        state = backup_state(study)
        found.append(Finding("ok" if state.is_current else "note", "backup", f"{study.name} is {state.words}"))
    return found


# ---------------------------------------------------------------------------------------------------------------- files


def check_files(files: Sequence[Path], preset: str | None = None) -> tuple[list[Finding], list[RunParams]]:
    """Validate parameter files, presets and study files, and what they need of this machine.

    Args:
        files: which; none: those of the four experiments.
        preset: laid over each parameter file.

    Returns:
        One finding for each file, and the parameters of the runs that the sound ones stand for.

    Raises:
        InputError: there is no such preset, or it is refused.
    """
    core = [parameter_file(name) for name, row in EXPERIMENTS.items() if row.core]
    over = [read_layer(preset_file(preset))] if preset else []
    findings: list[Finding] = []
    runs: list[RunParams] = []
    for file in files or core:
        try:
            text, stands_for = _check_file(file, over, preset)
        except InputError as refusal:
            # a refusal by the machine names a key, not the file that asks for it
            named = str(refusal) if str(refusal).startswith(str(file)) else f"{file}: {refusal}"
            findings.append(Finding("refusal", "parameters", named))
            continue
        findings.append(Finding("ok", "parameters", f"{file}: {text}"))
        runs += stands_for
    return findings, runs


def _check_file(file: Path, over: list[Layer], preset: str | None) -> tuple[str, list[RunParams]]:
    """What one file is, in words, and the trainings that it stands for."""
    layer = read_layer(file)
    known = [key for key in layer.values if key in RunParams.model_fields]
    if "experiments" in layer.values or ("preset" in layer.values and not known):
        study = parse_study(layer)
        return f"a valid study of {len(study.experiments)} experiments × {len(study.seeds)} seeds", _runs_of(study, preset)
    if parameters_of(str(layer.values.get("experiment"))) is QuantizeParams:
        quantization = validate([layer, *(only_own(each, str(layer.values["experiment"])) for each in over)], QuantizeParams)
        _check_source(quantization, planned=True)
        return f"valid; {quantization.run_name} can run here after {quantization.source_name}", []
    if "experiment" in layer.values or not _is_preset(file):
        params = validate([layer, *over])
        _check_on_machine(params)
        return f"valid; {params.run_name} can run here", [params]
    for name in (name for name, row in EXPERIMENTS.items() if row.core):
        validate([read_layer(parameter_file(name)), layer])
    return "a valid preset", []


def _runs_of(study: Study, preset: str | None) -> list[RunParams]:
    """The trainings of a study, each checked on this machine once."""
    runs: list[RunParams] = []
    for name in study.experiments:
        if parameters_of(name) is not RunParams:
            continue
        layers = layers_for(name, preset or study.preset, ())
        _check_on_machine(validate(layers))
        runs += [validate([*layers, Layer("the study", {"seed": seed})]) for seed in study.seeds]
    return runs


def _is_preset(file: Path) -> bool:
    """Whether a file lies among the presets; anything else is a parameter file and must be complete."""
    return file.parent.name == "presets"
