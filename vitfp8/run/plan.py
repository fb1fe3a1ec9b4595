"""Plan a batch of runs: what is finished is kept, what is unfinished continues, what has changed is refused. Writes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vitfp8.catalog import EXPERIMENTS
from vitfp8.errors import InputError, suggest
from vitfp8.files import check_writable
from vitfp8.home import at_home, from_home
from vitfp8.params import Layer, RunParams, identity_of, parse_assignment, read_layer, validate
from vitfp8.params.quantization import PARAMETER_CLASSES, QuantizeParams, parameters_of
from vitfp8.record import (
    RUNNER_LOCK,
    RecordError,
    RunRecord,
    UnreadHereError,
    compare_code,
    incomparable_code,
    is_live,
    is_locked,
    read_record,
    read_source_run,
    says_its_end,
    source_run_command,
)
from vitfp8.run.locate import executed_folder, parameter_file, preset_file, template
from vitfp8.run.study_file import Study, check_experiments, check_study_name


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
        force: whether the user wants it run again whatever there is.
        source_planned: whether the run that it starts from is executed before it, in the same batch or by another command.
    """

    params: RunParams | QuantizeParams
    injected: dict[str, object]
    notebook: Path
    output: Path
    action: str
    why: str
    force: bool = False
    source_planned: bool = False

    @property
    def folder(self) -> Path:
        """The run folder: journal, locks, checkpoints."""
        return self.output.with_suffix("")

    @property
    def source(self) -> Path | None:
        """The lab record of the run that it starts from; None for a training."""
        if not isinstance(self.params, QuantizeParams):
            return None
        if self.params.source_run:
            return at_home(self.params.source_run)
        return self.output.with_name(f"{self.params.source_name}.ipynb")

    def decided_again(self) -> PlannedRun:
        """The same run as things stand now that its lock is ours: another command may have finished or begun it meanwhile.

        Raises:
            InputError: it has been finished meanwhile with other parameters or code.
        """
        action, why = decide(self.output, self.params, self.force, locked_by_us=True)
        return replace(self, action=action, why=why)


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
        layers.append(layer if parameters_of(experiment) is RunParams else only_own(layer, experiment))
    if assignments:
        layers.append(only_own(Layer("-p", dict(parse_assignment(key, value) for key, value in assignments)), experiment))
    return layers


def only_own(layer: Layer, experiment: str) -> Layer:
    """A layer without the keys that only other kinds of experiment have; what no kind has stays, and is refused.

    Args:
        layer: a preset, or ``-p`` options.
        experiment: whose kind counts.
    """
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
    wanted = experiments or study.experiments
    for name in skip:
        if name not in wanted:
            raise InputError(f"--skip: {name!r}: would not run anyway; the command runs {', '.join(wanted)}: drop it")
    chosen = [name for name in wanted if name not in skip]
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
    folder = executed_folder() / study_name
    check_writable(folder)
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
            params = params.model_copy(update={"run_folder": str(from_home(output.with_suffix("")))})
            action, why = decide(output, params, force)
            if action not in ("keep", "busy"):
                for place in (output.with_suffix(""), output.with_suffix("") / "checkpoints"):
                    check_writable(place)
            run = PlannedRun(
                params=params,
                injected=params.model_dump(),
                notebook=template(EXPERIMENTS[name].notebook),
                output=output,
                action=action,
                why=why,
                force=force,
            )
            if isinstance(params, QuantizeParams) and action != "busy":
                run = _with_source(run, params, planned, study_name, preset or study.preset)
            planned.append(run)
    return planned


def _with_source(
    run: PlannedRun, params: QuantizeParams, planned: Sequence[PlannedRun], study_name: str, preset: str | None
) -> PlannedRun:
    """A planned run with the run that it starts from: planned before it in the same batch, or completed on disk.

    Raises:
        InputError: there is none, or a finished run started from weights that are there no more.
    """
    source = run.source
    assert source is not None
    command = source_run_command(
        params.source_experiment, variant=params.source_variant, seed=params.seed, study=study_name, preset=preset or ""
    )
    before = next((other for other in planned if other.output == source), None)
    executes = before is not None and before.action != "keep"
    digest = None
    if not executes:
        source_run = read_source_run(source, experiment=params.source_experiment, seed=params.seed, command=command)
        digest = source_run.checkpoints["best"]
    if run.action == "keep" and read_record(run.output).source.get("checkpoint_sha256") != digest:
        raise InputError(
            f"{run.output}: is finished, but with other weights of its source {source}"
            f"{', which runs again' if executes else ''}; --force moves it aside and runs it again"
        )
    return replace(run, source_planned=executes)


def decide(
    output: Path, params: RunParams | QuantizeParams, force: bool = False, *, locked_by_us: bool = False
) -> tuple[str, str]:
    """What becomes of a run, given what is there, and why. Writes nothing.

    Args:
        output: the lab record.
        params: what is asked for.
        force: whether it is run again whatever there is.
        locked_by_us: whether the caller holds the run's `RUNNER_LOCK`.

    Returns:
        ``run``, ``continue``, ``keep``, ``replace`` or ``busy``, and the reason in words.

    Raises:
        InputError: what is there was made with other parameters or code, and `force` is not given.
    """
    folder = output.with_suffix("")
    if is_live(folder) or (not locked_by_us and is_locked(folder / RUNNER_LOCK)):
        return "busy", "another process is running it"
    try:
        record = read_record(output, lock_is_ours=locked_by_us)
    except RecordError as error:
        if isinstance(error, UnreadHereError) and not force:
            raise InputError(f"{error}; or --force moves it aside and runs it anew") from None
        if output.exists():
            return "replace", "its notebook holds no record; it is moved aside"
        return "run", "new"
    finished = record.status in ("completed", "diverged")
    if not finished and not _has_begun(record, folder):
        return "run", f"{record.status} before its training began"
    changed = _what_changed(record, params)
    state = "finished" if finished else "unfinished"
    if force:
        return "replace", "--force; the old record is moved aside"
    if changed:
        raise InputError(f"{output}: is {state}{changed}; --force moves it aside and runs it anew, or give another --study")
    if finished and not says_its_end(output):
        return "continue", f"{record.status}, but its notebook was not written to the end"
    if finished:
        return "keep", f"{record.status}, same parameters and code"
    return "continue", f"{record.status} after {record.progress.get('unit', 'epoch')} {record.progress.get('epoch', 0)}"


def _has_begun(record: RunRecord, folder: Path) -> bool:
    """Whether there is work that continuing would build upon."""
    return bool(record.progress.get("epoch")) or any((folder / "checkpoints").glob("*.pt"))


def _what_changed(record: RunRecord, params: RunParams | QuantizeParams) -> str:
    """What a record was made with that is not so any more, as a part of a sentence; empty when nothing has changed."""
    there, here = identity_of(type(params), record.parameters), params.identity()
    if there != here:
        changed = [key for key in dict.fromkeys([*here, *there]) if there.get(key, ...) != here.get(key, ...)]
        return f" with other parameters ({', '.join(changed)})"
    code = compare_code(record.provenance, record.kind)
    if code == "same":
        return ""
    commit = str(record.provenance.get("commit") or "")[:10]
    was = f" (it was that of commit {commit})" if commit else ""
    if code == "other":
        return f", but the code that decides numbers has changed since{was}"
    return f", but was made by {incomparable_code(record.provenance)}{was}"
