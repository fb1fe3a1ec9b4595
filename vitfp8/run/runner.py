"""Execute a batch of planned runs, one after the other: each is locked while it runs; one bad run does not stop the others."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout

from vitfp8.errors import InputError
from vitfp8.monitor import Heat, read_heat
from vitfp8.params import RunParams
from vitfp8.record import (
    RUNNER_LOCK,
    JournalError,
    RecordError,
    RunJournal,
    RunRecord,
    append_to_run_log,
    is_live,
    is_locked,
    load_records,
    now,
    read_record,
    record_from_journal,
    says_its_end,
)
from vitfp8.run.execute import Execution, Signals, execute, listening
from vitfp8.run.plan import PlannedRun
from vitfp8.run.superseded import move_aside

#: Seconds that a kernel without its runner has to notice and end; it usually takes two.
ORPHAN_SECONDS = 15.0

#: Seconds of a cooldown that pass in any case: sensors lag.
SHORTEST_COOLDOWN = 10.0


@dataclass(frozen=True)
class RunResult:
    """How a planned run ended: its record (None when there is none), a status and one line about it.

    The status is the record's, or ``running`` (by another command), or ``refused`` (what is there now is another run).
    """

    planned: PlannedRun
    record: RunRecord | None
    status: str
    note: str


@dataclass
class Batch:
    """A batch while it runs: the plan, what has ended, and what runs now.

    Attributes:
        planned: the runs in their order.
        results: of those that have ended or were kept, by lab record.
        current: the run that is executing; None between runs.
        signal: the signal that stopped the batch, else None.
        message: what it waits for, in words.
        attempts: how often each run was started in this batch, by lab record.
        variables: what every kernel's environment holds beside the runner's own.
    """

    planned: list[PlannedRun]
    results: dict[Path, RunResult] = field(default_factory=dict)
    current: PlannedRun | None = None
    signal: int | None = None
    message: str = ""
    attempts: dict[Path, int] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def exit_status(self) -> int:
        """0 done; 1 a run failed; 130 or 143 stopped by Ctrl-C or SIGTERM."""
        if self.signal is not None:
            return 128 + self.signal
        return 1 if any(result.status in ("failed", "interrupted", "refused") for result in self.results.values()) else 0


def run_batch(
    planned: Sequence[PlannedRun],
    *,
    cooldown: float = 0.0,
    retries: int = 0,
    timeout: float | None = None,
    on_change: Callable[[Batch], None] = lambda batch: None,
) -> Batch:
    """Execute a batch, one run after the other.

    Ctrl-C, SIGTERM and SIGHUP end it well at any time: the run that executes saves a checkpoint.

    Args:
        planned: from `vitfp8.run.plan.plan_batch`.
        cooldown: seconds between runs; fewer where the machine reports that it is cool.
        retries: how often a failed run is tried again at once, from its last checkpoint.
        timeout: seconds after which a run is stopped with a checkpoint; None: never.
        on_change: called whenever something changed, and about twice a second meanwhile.

    Returns:
        The batch with its results.
    """
    batch = Batch(list(planned))
    for run in batch.planned:
        if run.action == "keep":
            batch.results[run.output] = _result(run, note=run.why)
    idle = read_heat() if cooldown else Heat()
    batch.variables = study_variables(batch.planned)
    executed = False
    with listening() as signals:
        for run in [run for run in batch.planned if run.action != "keep"]:
            if executed and cooldown:
                _cool_down(cooldown, idle, batch, signals, on_change)
            for attempt in range(1 + retries):
                if signals.received is not None:
                    break
                batch.current, batch.message = run, ""
                batch.attempts[run.output] = attempt + 1
                on_change(batch)
                result, executed = _execute_run(run, batch, signals, timeout=timeout, on_change=on_change)
                batch.results[run.output] = result
                batch.current = None
                on_change(batch)
                if result.status != "failed" or _cannot_get_better(result):
                    break
            if signals.received is not None:
                break
    batch.signal, batch.message = signals.received, ""
    return batch


def study_variables(planned: Sequence[PlannedRun]) -> dict[str, str]:
    """What a kernel must know of the other runs of its study: whether one of them keeps all from being compiled.

    Args:
        planned: the runs; what their study holds already counts too.

    Returns:
        Variables of the kernels' environment.
    """
    from vitfp8 import experiment
    from vitfp8.compilation import STUDY_RUNS_EAGERLY

    runs = [run.params for run in planned if isinstance(run.params, RunParams) and run.params.torch_compile == "auto"]
    if not any(experiment.resolve_device(params.device).type == "cuda" for params in runs):
        return {}
    reason = experiment.why_eager(runs)
    folders = {run.output.parent for run in planned if run.output.parent.is_dir()}  # a new study has none yet
    for folder in folders if reason is None else ():
        for _, record in load_records(folder)[0]:
            made_on = record.provenance.get("device_type")
            if record.precision is not None and record.precision.backend == "emulated" and made_on == "cuda":
                reason = f"{record.precision.requested} of the same study was emulated"
    return {STUDY_RUNS_EAGERLY: reason} if reason else {}


def _cannot_get_better(result: RunResult) -> bool:
    """Whether trying a failed run again is no use: its input was refused."""
    return result.note.startswith("InputError")


def _execute_run(
    planned: PlannedRun, batch: Batch, signals: Signals, *, timeout: float | None, on_change: Callable[[Batch], None]
) -> tuple[RunResult, bool]:
    """Execute one run; its result, and whether a kernel was started. What cannot be written fails this run alone."""
    try:
        with _lock(planned) as held:
            if not held:
                return _result(planned, status="running", note="another command is running it"), False
            return _execute_locked(planned, batch, signals, timeout=timeout, on_change=on_change)
    except JournalError as error:
        return _result(planned, status="failed", note=str(error)), True
    except OSError as error:
        place = error.filename or planned.folder
        note = f"{place}: cannot be written ({error.strerror or error}); make room, or check permissions"
        return _result(planned, status="failed", note=note), True


def _execute_locked(
    planned: PlannedRun, batch: Batch, signals: Signals, *, timeout: float | None, on_change: Callable[[Batch], None]
) -> tuple[RunResult, bool]:
    """The same while the run's lock is ours."""

    def waiting_for(words: str, condition: Callable[[], bool], seconds: float | None = None) -> bool:
        """Wait while the condition holds; whether it has ended."""
        end = None if seconds is None else time.monotonic() + seconds
        while condition():
            if signals.received is not None or (end is not None and time.monotonic() > end):
                return False
            batch.message = words
            on_change(batch)
            time.sleep(0.5)
        batch.message = ""
        return True

    # a kernel whose runner was killed ends by itself within seconds
    if not waiting_for("an earlier kernel of this run is ending", lambda: is_live(planned.folder), ORPHAN_SECONDS):
        return _result(planned, status="running", note="another process trains in its run folder"), False
    try:
        planned = planned.decided_again()
    except InputError as refusal:
        return _result(planned, status="refused", note=str(refusal)), False
    if planned.action == "keep":
        return _result(planned, note=planned.why), False
    if (source := planned.source) is not None:
        lock = source.with_suffix("") / RUNNER_LOCK
        waiting_for(f"another command runs {source.stem}, which this run starts from", lambda: is_locked(lock))
    if signals.received is not None:
        return _result(planned, status="interrupted", note="stopped before it began"), False
    if planned.action == "replace":
        move_aside(planned.output)
    _begin(planned)
    ended = execute(
        planned.notebook,
        planned.output,
        planned.injected,
        signals=signals,
        timeout=timeout,
        while_waiting=lambda: on_change(batch),
        variables=batch.variables,
    )
    _write_down(planned, ended, timeout)
    result = _result(planned, note=ended.error or "")
    stopped = ended.signal is not None or ended.timed_out
    if ended.error and not stopped and result.status != "failed" and not says_its_end(planned.output):
        result = replace(result, status="failed", note=ended.error)  # half a lab record, or nobody could write down why it failed
    return result, True


def _write_down(planned: PlannedRun, ended: Execution, timeout: float | None) -> None:
    """What only the runner knows of the end goes to the run log."""
    with suppress(OSError):  # a full disk must not end the batch: the record tells of the interruption by itself
        if ended.timed_out and not ended.kernel_died:
            reason = f"stopped after {timeout:g} s (--timeout)"
            append_to_run_log(planned.output, {"time": now(), "event": "interrupted", "reason": reason})
        elif ended.error is not None and ended.signal is None:
            append_to_run_log(planned.output, {"time": now(), "event": "failed", "reason": ended.error})


@contextmanager
def _lock(planned: PlannedRun) -> Iterator[bool]:
    """Hold the run for this command; False when another command holds it."""
    planned.folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(planned.folder / RUNNER_LOCK)
    try:
        lock.acquire(timeout=1)  # whoever only asks whether it is held holds it for an instant
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _begin(planned: PlannedRun) -> None:
    """Say in the run's journal what is about to run: even a kernel that never starts leaves a record."""
    if planned.output.exists():
        attempts = (planned.folder / f"attempt-{number}.ipynb" for number in count(1))
        shutil.move(planned.output, next(path for path in attempts if not path.exists()))
    if record_from_journal(planned.folder) is None:
        params = planned.params
        progress = {"epoch": 0, "epochs": params.epochs} if isinstance(params, RunParams) else {}
        with RunJournal(planned.folder, RunRecord.of(params, progress=progress), show=False):
            pass


def _result(planned: PlannedRun, *, status: str | None = None, note: str = "") -> RunResult:
    """A run's record as it stands, and one line on how it ended; `note` is said where the record gives no reason."""
    try:
        record = read_record(planned.output, lock_is_ours=True)
    except RecordError as problem:
        return RunResult(planned, None, status or "failed", note or str(problem))
    if status is None:
        return RunResult(planned, record, record.status, record.reason or note)
    return RunResult(planned, record, status, note)


def _cool_down(seconds: float, idle: Heat, batch: Batch, signals: Signals, on_change: Callable[[Batch], None]) -> None:
    """Wait between runs, saying how long; less where the machine reports that it is as cool as before the batch."""
    begin = time.monotonic()
    while (left := begin + seconds - time.monotonic()) > 0 and signals.received is None:
        if time.monotonic() - begin >= SHORTEST_COOLDOWN and read_heat().is_cool(idle):
            break
        batch.message = f"cooling down, {left:.0f} s"
        on_change(batch)
        time.sleep(min(0.5, left))
    batch.message = ""
