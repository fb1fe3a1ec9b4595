"""Execute one notebook with papermill, so that it can be interrupted well and is a valid file at every instant.

Papermill does the work: load, parameterize, execute, write. Three of its parts are replaced by smaller ones: files are written
aside and moved into place; the kernel is always the running interpreter's; and a signal reaches the kernel as an interrupt, so
that the training saves a checkpoint, instead of killing it.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import papermill
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError
from papermill.iorw import LocalHandler, papermill_io

from vitfp8.workflow.files import write_whole

logging.getLogger("papermill").setLevel(logging.ERROR)

#: Seconds that a kernel has for its checkpoint after an interrupt, before it is killed.
GRACE_SECONDS = 120.0


class _AtomicHandler(LocalHandler):
    """Writes a notebook aside and moves it into place: whoever dies while writing leaves the earlier file intact."""

    def write(self, buf: str, path: str) -> None:
        """Write `buf` to `path`."""
        self._ensure_folder(path)
        write_whole(Path(path), buf)

    @staticmethod
    def _ensure_folder(path: str) -> None:
        """Papermill's own complaint about a missing folder."""
        if not Path(path).parent.exists():
            raise FileNotFoundError(f"output folder {Path(path).parent} doesn't exist.")


class _ThisInterpreter(KernelSpecManager):
    """Knows one kernel: the running interpreter's. A kernel spec of that name elsewhere may point to another Python."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        """The running interpreter's kernel, whatever the name."""
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name="Python 3 (ipykernel)", language="python")


class _Engine(NBClientEngine):
    """Papermill's engine with our kernel manager, which it hands to whoever must interrupt."""

    @classmethod
    def execute_managed_notebook(
        cls,
        nb_man: Any,
        kernel_name: str,
        on_kernel: Callable[[AsyncKernelManager], None],
        environment: dict[str, str],
        **options: Any,
    ) -> Any:
        """Execute the notebook of `nb_man`; see papermill."""
        # sockets in a folder of one's own: no port to collide on, nobody else listens, and the path is short enough for one
        with tempfile.TemporaryDirectory(prefix="vitfp8-", ignore_cleanup_errors=True) as sockets:
            manager = AsyncKernelManager(
                kernel_name=kernel_name,
                kernel_spec_manager=_ThisInterpreter(),
                transport="ipc" if os.name == "posix" else "tcp",
                connection_file=str(Path(sockets) / "kernel.json"),
            )
            on_kernel(manager)
            client = PapermillNotebookClient(
                nb_man,
                km=manager,
                timeout=None,
                startup_timeout=options.get("start_timeout") or 120,
                kernel_name=kernel_name,
                log_output=False,
            )
            client.owns_km = True  # so that the kernel is shut down at the end, as one that nbclient started itself
            return client.execute(env=environment)


papermill_engines.register("vitfp8", _Engine)


@dataclass(frozen=True)
class Execution:
    """How the execution of a notebook ended.

    Attributes:
        error: one line, when a cell raised or the kernel died.
        kernel_died: whether the kernel ended without a word.
        signal: the signal that the user sent meanwhile, else None.
        seconds: how long it took.
    """

    error: str | None
    kernel_died: bool
    signal: int | None
    seconds: float


class _Signals:
    """What the user asked for while a notebook executes: remembered, and passed to the kernel as an interrupt."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.at = 0.0
        self.kernel: AsyncKernelManager | None = None

    def __call__(self, number: int, _frame: object) -> None:
        """The handler: the first signal interrupts the kernel, the next one kills it."""
        again = self.received is not None
        if self.received is None:
            self.received, self.at = number, time.monotonic()
        self._send(signal.SIGKILL if again else signal.SIGINT)

    def expire(self) -> None:
        """Kill a kernel that has used up its grace."""
        if self.received is not None and time.monotonic() - self.at > GRACE_SECONDS:
            self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        """Send a signal to the kernel's process, if there is one."""
        provisioner = getattr(self.kernel, "provisioner", None)
        pid = getattr(provisioner, "pid", None)
        if pid:
            with suppress(ProcessLookupError):
                os.kill(pid, number)


@contextmanager
def _handling(handler: _Signals) -> Iterator[None]:
    """Install the handler for Ctrl-C and SIGTERM; outside the main thread there is nothing to install."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def execute(
    notebook: Path,
    output: Path,
    parameters: Mapping[str, Any],
    *,
    while_waiting: Callable[[], None] | None = None,
) -> Execution:
    """Execute a notebook with papermill in a kernel of the running interpreter.

    The working directory stays the caller's. The environment that decides determinism is set before the kernel starts.

    Args:
        notebook: the template.
        output: where the executed notebook goes; its folder must exist. Valid JSON at every instant.
        parameters: injected after the cell tagged ``parameters``.
        while_waiting: called about twice a second meanwhile, in the caller's thread.
    """
    # under the output's own path: of two handlers for "local" papermill takes the one that was there first
    papermill_io.register(str(output), _AtomicHandler())
    signals = _Signals()
    failure: list[BaseException] = []
    environment = {**os.environ, "PYTHONHASHSEED": "0", "TQDM_DISABLE": "1"}
    environment.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    environment.pop("JPY_SESSION_NAME", None)  # nobody watches a batch, even one that was started in JupyterLab

    def remember(manager: AsyncKernelManager) -> None:
        signals.kernel = manager

    def work() -> None:
        try:
            papermill.execute_notebook(
                str(notebook),
                str(output),
                parameters=dict(parameters),
                engine_name="vitfp8",
                kernel_name="python3",
                progress_bar=False,
                on_kernel=remember,
                environment=environment,
                autosave_cell_every=5,
            )
        except BaseException as error:  # handed to the caller's thread
            failure.append(error)

    started = time.monotonic()
    # in a thread of its own: there nbclient installs no signal handlers, which would kill the kernel in mid-step
    worker = threading.Thread(target=work, name=f"papermill {output.name}", daemon=True)
    with _handling(signals):
        worker.start()
        while worker.is_alive():
            worker.join(timeout=0.5)
            signals.expire()
            if while_waiting is not None:
                while_waiting()
    error, died = _explain(failure[0]) if failure else (None, False)
    return Execution(error=error, kernel_died=died, signal=signals.received, seconds=time.monotonic() - started)


def _explain(error: BaseException) -> tuple[str, bool]:
    """One line for what went wrong, and whether the kernel died."""
    if isinstance(error, PapermillExecutionError):
        return f"{error.ename}: {error.evalue}".splitlines()[0][:1000], False
    if isinstance(error, DeadKernelError):
        return "the kernel died without a word (killed, or out of memory)", True
    if isinstance(error, OSError):
        return f"the notebook could not be written: {error.strerror or error}", False
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:1000], False
