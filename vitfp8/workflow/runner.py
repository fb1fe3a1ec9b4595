"""Plan a batch of runs and execute it: what is finished is kept, what is unfinished continues, what failed is tried again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from vitfp8.catalog import EXPERIMENTS
from vitfp8.params import InputError, Layer, RunParams, parse_assignment, read_layer, suggest, validate
from vitfp8.quantize_params import PARAMETER_CLASSES, QuantizeParams, parameters_of
from vitfp8.record import (
    RecordError,
    RunJournal,
    RunRecord,
    append_to_run_log,
    code_digest,
    is_live,
    now,
    read_record,
    read_source,
    record_from_journal,
    source_command,
)
from vitfp8.workflow.execution import execute
from vitfp8.workflow.locate import EXECUTED, parameter_file, preset_file, template
from vitfp8.workflow.study import Study, check_experiments, check_study_name

#: Folder inside a study's for lab records that a repeated run replaced; nothing is deleted.
SUPERSEDED = "superseded"


@dataclass(frozen=True)
class PlannedRun:
    """One run of a batch.

    Attributes:
        params: its parameters, with `run_folder` set.
        injected: what papermill lays over the notebook's own values.
        notebook: the template.
        output: the lab record.
        action: ``run``, ``continue``, ``keep``, ``replace`` or ``busy``.
        why: the reason for the action.
        source_planned: whether the run that it starts from is executed before it in the same batch.
    """

    params: RunParams | QuantizeParams
    injected: dict[str, object]
    notebook: Path
    output: Path
    action: str
    why: str
    source_planned: bool = False

    @property
    def folder(self) -> Path:
        """The run folder: journal, lock, checkpoints."""
        return self.output.with_suffix("")


@dataclass(frozen=True)
class RunResult:
    """How a planned run ended: its record (None when there is none) and one line about it."""

    planned: PlannedRun
    record: RunRecord | None
    status: str
    note: str


def layers_for(experiment: str, preset: str | None, assignments: Sequence[tuple[str, str]]) -> list[Layer]:
    """Parameter file, preset and ``-p`` options, in the order in which they are laid over each other.

    A preset says what is trained on: over an experiment that trains nothing, only what such an experiment has is laid. So it is
    with ``-p``, whose keys may be meant for other experiments of the same command.

    Args:
        experiment: its name.
        preset: name or path of a preset, or None.
        assignments: ``-p KEY VALUE`` pairs.
    """
    layers = [read_layer(parameter_file(experiment))]
    if preset is not None:
        layer = read_layer(preset_file(preset))
        layers.append(layer if parameters_of(experiment) is RunParams else _only_own(layer, experiment))
    if assignments:
        layers.append(_only_own(Layer("-p", dict(parse_assignment(key, value) for key, value in assignments)), experiment))
    return layers


def _only_own(layer: Layer, experiment: str) -> Layer:
    """A layer without the keys that only other kinds of experiment have; what no kind has stays, and is refused."""
    own = parameters_of(experiment).model_fields
    foreign = {key for kind in PARAMETER_CLASSES.values() for key in kind.model_fields} - set(own)
    return Layer(layer.source, {key: value for key, value in layer.values.items() if key not in foreign}, layer.lines)


def _check_assignments(assignments: Sequence[tuple[str, str]], chosen: Sequence[str]) -> None:
    """Refuse a ``-p`` whose key none of the chosen experiments has."""
    known = list(dict.fromkeys(key for name in chosen for key in parameters_of(name).model_fields))
    for key, _ in assignments:
        if key in ("experiment", "run_folder"):
            raise InputError(f"-p {key}: is set by the runner; name the experiment as an argument, the study with --study")
        if key not in known:
            raise InputError(f"-p: unknown parameter {key!r} of {', '.join(chosen)}; {suggest(key, known)}")


def plan_batch(
    study_name: str,
    study: Study,
    *,
    experiments: Sequence[str] = (),
    skip: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    preset: str | None = None,
    assignments: Sequence[tuple[str, str]] = (),
    force: bool = False,
) -> list[PlannedRun]:
    """Every run of a batch, validated; nothing is started or written.

    Args:
        study_name: names the folder below ``executed/``.
        study: its settings, which the other arguments override.
        experiments: which to run; empty: the study's.
        skip: which to leave out.
        seeds: which seeds; None: the study's.
        preset: which preset; None: the study's.
        assignments: ``-p KEY VALUE`` pairs.
        force: replace finished runs whose parameters or code differ, and repeat those that do not.

    Returns:
        The runs in their order: interleaved by seed.

    Raises:
        InputError: something is wrong with names, files, values or the place to write.
    """
    check_study_name(study_name)
    check_experiments(experiments)
    check_experiments(skip, "--skip")
    chosen = [name for name in (experiments or study.experiments) if name not in skip]
    if not chosen:
        raise InputError("--skip: leaves nothing to run; skip fewer experiments")
    _check_assignments(assignments, chosen)
    chosen.sort(key=lambda name: bool(EXPERIMENTS[name].source))  # what starts from another run comes after it
    if seeds is None:
        seeds = study.seeds
        if any(key == "seed" for key, _ in assignments):
            seeds = (-1,)  # the seed that -p states
    elif any(key == "seed" for key, _ in assignments):
        raise InputError("-p seed: contradicts --seeds; give one of them")
    folder = EXECUTED / study_name
    _check_writable(folder)
    planned: list[PlannedRun] = []
    for seed in seeds:
        for name in chosen:
            layers = layers_for(name, preset or study.preset, assignments)
            own = {} if seed == -1 else {"seed": seed}
            kind = parameters_of(name)
            params: RunParams | QuantizeParams = validate([*layers, Layer("the runner", own)], kind)
            if params.experiment != name:
                raise InputError(
                    f"{layers[0].source}: experiment: {params.experiment!r}: the file is named {name}; make them agree"
                )
            output = folder / f"{params.run_name}.ipynb"
            params = params.model_copy(update={"run_folder": str(output.with_suffix(""))})
            action, why = _what_to_do(output, params, code_digest(kind_of(params)), force)
            run = PlannedRun(
                params=params,
                injected=params.model_dump(),
                notebook=template(EXPERIMENTS[name].notebook),
                output=output,
                action=action,
                why=why,
            )
            if isinstance(params, QuantizeParams) and action != "busy":
                run = _with_source(run, params, planned, study_name, preset or study.preset)
            planned.append(run)
    return planned


def kind_of(params: RunParams | QuantizeParams) -> str:
    """The kind of the record of a run: ``run`` of a training, ``quantization`` of a trained model.

    Args:
        params: of the run.
    """
    return "quantization" if isinstance(params, QuantizeParams) else "run"


def _with_source(
    run: PlannedRun, params: QuantizeParams, planned: Sequence[PlannedRun], study_name: str, preset: str | None
) -> PlannedRun:
    """A planned run with the run that it starts from: planned before it in the same batch, or completed on disk.

    Raises:
        InputError: there is none, or a finished run started from weights that are there no more.
    """
    source = Path(params.source_run) if params.source_run else run.output.with_name(f"{params.source_name}.ipynb")
    command = source_command(
        params.source_experiment, variant=params.source_variant, seed=params.seed, study=study_name, preset=preset
    )
    before = next((other for other in planned if other.output == source), None)
    executes = before is not None and before.action not in ("keep", "busy")
    digest = None
    if not executes:
        digest = read_source(source, experiment=params.source_experiment, seed=params.seed, command=command).checkpoints["best"]
    if run.action == "keep" and read_record(run.output).source.get("checkpoint_sha256") != digest:
        raise InputError(
            f"{run.output}: is finished, but with other weights of its source {source}"
            f"{', which runs again' if executes else ''}; --force moves it aside and runs it again"
        )
    return replace(run, source_planned=executes)


def _check_writable(folder: Path) -> None:
    """Refuse a place where nothing can be written, without writing."""
    place = folder
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"{folder}: {place.resolve()} cannot be written; check its permissions or work in another folder")


def _what_to_do(output: Path, params: RunParams | QuantizeParams, digest: str, force: bool) -> tuple[str, str]:
    """What becomes of a run, given what is there."""
    if is_live(output.with_suffix("")):
        return "busy", "another process is running it"
    try:
        record = read_record(output)
    except RecordError:
        if output.exists():
            return "replace", "its notebook holds no record; it is moved aside"
        return "run", "new"
    same = record.parameters_digest == params.digest
    if record.status in ("completed", "diverged"):
        if force:
            return "replace", "--force; the old record is moved aside"
        if not same:
            changed = [key for key, value in params.identity().items() if record.parameters.get(key, ...) != value]
            raise InputError(
                f"{output}: is finished with other parameters ({', '.join(changed) or 'values differ'}); "
                "--force moves it aside and runs again, or give another --study"
            )
        if record.provenance.get("code_digest") != digest:
            raise InputError(
                f"{output}: is finished, but the code that decides numbers has changed since; "
                "--force moves it aside and runs again, or give another --study"
            )
        return "keep", f"{record.status}, same parameters and code"
    if not same or force:
        return "replace", f"{record.status} with other parameters; the old record is moved aside" if not same else "--force"
    epoch = record.progress.get("epoch", 0)
    return "continue", f"{record.status} after {record.progress.get('unit', 'epoch')} {epoch}"


def _move_aside(planned: PlannedRun) -> None:
    """Move a lab record, its run folder and its log into ``superseded/``; nothing is deleted."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    place = planned.output.parent / SUPERSEDED
    place.mkdir(parents=True, exist_ok=True)
    for path in (planned.output, planned.folder, planned.output.with_name(planned.output.stem + ".log.jsonl")):
        if path.exists():
            suffix = path.name.removeprefix(planned.output.stem)
            path.rename(place / f"{planned.output.stem}@{stamp}{suffix}")


def _begin(planned: PlannedRun) -> None:
    """Make the run folder and say in its journal what is about to run: even a kernel that never starts leaves a record."""
    planned.folder.mkdir(parents=True, exist_ok=True)
    if planned.output.exists():
        attempts = len(list(planned.folder.glob("attempt-*.ipynb")))
        planned.output.rename(planned.folder / f"attempt-{attempts + 1}.ipynb")
    if record_from_journal(planned.folder) is None:
        params = planned.params
        record = RunRecord(
            kind=kind_of(params),
            experiment=params.experiment,
            variant=params.variant,
            seed=params.seed,
            question=params.question,
            expectation=params.expectation,
            parameters=params.model_dump(),
            parameters_digest=params.digest,
            started=now(),
            progress={"epoch": 0, "epochs": params.epochs} if isinstance(params, RunParams) else {},
        )
        with RunJournal(planned.folder, record, show=False):
            pass


def execute_run(planned: PlannedRun, *, while_waiting: Callable[[], None] | None = None) -> tuple[RunResult, int | None]:
    """Execute one planned run.

    Args:
        planned: what to run.
        while_waiting: called about twice a second meanwhile.

    Returns:
        How it ended, and the signal that the user sent meanwhile.
    """
    if planned.action == "replace":
        _move_aside(planned)
    _begin(planned)
    ended = execute(planned.notebook, planned.output, planned.injected, while_waiting=while_waiting)
    if ended.error is not None and ended.signal is None:
        append_to_run_log(planned.output, {"time": now(), "event": "failed", "reason": ended.error})
    return _result(planned, ended.error), ended.signal


def _result(planned: PlannedRun, error: str | None = None) -> RunResult:
    """Read a run's record back and say in one line how it ended."""
    try:
        record = read_record(planned.output)
    except RecordError as problem:
        return RunResult(planned, None, "failed", error or str(problem))
    return RunResult(planned, record, record.status, record.reason or "")


@dataclass
class Batch:
    """A batch while it runs: the plan, what has ended, and what runs now.

    Attributes:
        planned: the runs in their order.
        results: of those that have ended or were kept.
        current: the run that is executing; None between runs.
        signal: the signal that stopped the batch, else None.
    """

    planned: list[PlannedRun]
    results: dict[Path, RunResult]
    current: PlannedRun | None = None
    signal: int | None = None
    message: str = ""

    @property
    def exit_status(self) -> int:
        """0 done; 1 a run failed; 130 or 143 stopped by Ctrl-C or SIGTERM."""
        if self.signal is not None:
            return 128 + self.signal
        return 1 if any(result.status in ("failed", "interrupted") for result in self.results.values()) else 0


def run_batch(planned: Sequence[PlannedRun], *, cooldown: float, on_change: Callable[[Batch], None]) -> Batch:
    """Execute a batch, one run after the other; one bad run does not stop the others.

    Args:
        planned: from `plan_batch`.
        cooldown: seconds between runs; Ctrl-C ends them too.
        on_change: called whenever something changed, and about twice a second while a run executes.

    Returns:
        The batch with its results.
    """
    batch = Batch(list(planned), {})
    for run in batch.planned:
        if run.action in ("keep", "busy"):
            result = _result(run)
            batch.results[run.output] = RunResult(
                run, result.record, "running" if run.action == "busy" else result.status, run.why
            )
    waiting = [run for run in batch.planned if run.action not in ("keep", "busy")]
    for index, run in enumerate(waiting):
        batch.current, batch.message = run, ""
        on_change(batch)
        result, batch.signal = execute_run(run, while_waiting=lambda: on_change(batch))
        batch.results[run.output] = result
        batch.current = None
        on_change(batch)
        if batch.signal is not None:
            break
        if cooldown and index + 1 < len(waiting):
            try:
                _cool_down(cooldown, batch, on_change)
            except KeyboardInterrupt:
                batch.signal = int(signal.SIGINT)
                break
    return batch


def _cool_down(seconds: float, batch: Batch, on_change: Callable[[Batch], None]) -> None:
    """Wait between runs, saying how long."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        batch.message = f"cooling down, {left:.0f} s"
        on_change(batch)
        time.sleep(min(0.5, left))
