"""Execute one notebook with papermill, so that it can be interrupted well and is a valid file at every instant.

Papermill does the work: load, parameterize, execute, write. Three of its parts are replaced by smaller ones: files are written
aside and moved into place; the kernel is always the running interpreter's; and a signal reaches the kernel as an interrupt, so
that the training saves a checkpoint, instead of killing it.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import papermill
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError
from papermill.iorw import LocalHandler, papermill_io

from vitfp8.files import write_atomically

logging.getLogger("papermill").setLevel(logging.ERROR)

#: Seconds that a kernel has for its checkpoint after an interrupt, before it is killed.
GRACE_SECONDS = 120.0


class _AtomicHandler(LocalHandler):
    """Writes a notebook aside and moves it into place: whoever dies while writing leaves the earlier file intact."""

    def write(self, buf: str, path: str) -> None:
        """Write `buf` to `path`."""
        self._ensure_folder(path)
        write_atomically(Path(path), buf)

    @staticmethod
    def _ensure_folder(path: str) -> None:
        """Papermill's own complaint about a missing folder."""
        if not Path(path).parent.exists():
            raise FileNotFoundError(f"output folder {Path(path).parent} doesn't exist.")


class _ThisInterpreter(KernelSpecManager):
    """Knows one kernel: the running interpreter's. A kernel spec of that name elsewhere may point to another Python."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        """The running interpreter's kernel, whatever the name."""
        # what it warns of (its transport, a runner that was killed) is for its notebook's reader, not for the command's terminal
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--IPKernelApp.log_level=ERROR"]
        return KernelSpec(argv=argv, display_name="Python 3 (ipykernel)", language="python")


def _connection_folder(fallback: Path) -> tuple[Path, str]:
    """A new folder for the kernel's connection file and sockets, and the transport: ``ipc``, or ``tcp`` where no folder will do.

    Sockets in a folder of one's own: no port to collide on, and nobody else listens. But a socket's path has about a hundred
    characters at most, which the TMPDIR of a cluster job may exceed by itself, and not every file system has sockets.

    Args:
        fallback: a folder that can be written, for the connection file where there is no temporary folder.
    """
    places = [Path(os.environ.get("XDG_RUNTIME_DIR") or "/tmp"), *map(Path, ("/tmp", "/var/tmp", "/dev/shm")), fallback]
    with suppress(OSError):
        places.insert(0, Path(tempfile.gettempdir()))
    usable: list[Path] = []
    for place in places:
        with suppress(OSError):
            folder = Path(tempfile.mkdtemp(prefix="vitfp8-", dir=place)).absolute()
            if os.name == "posix" and _takes_sockets(folder):
                return folder, "ipc"
            folder.rmdir()
            usable.append(place)
    return Path(tempfile.mkdtemp(prefix="vitfp8-", dir=usable[0] if usable else fallback)).absolute(), "tcp"


def _home_is_writable() -> bool:
    """Whether IPython can keep its own folder where it would."""
    place = Path("~/.ipython").expanduser() if "HOME" in os.environ else Path.cwd()
    return os.access(place if place.exists() else place.parent, os.W_OK)


def _takes_sockets(folder: Path) -> bool:
    """Whether a kernel's sockets can be made in a folder."""
    path = folder / "kernel-ipc-10"  # as long as the longest of a kernel's five
    with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.bind(str(path))
        path.unlink()
        return True
    return False


class _Engine(NBClientEngine):
    """Papermill's engine with our kernel manager, which it hands to whoever must interrupt."""

    @classmethod
    def execute_managed_notebook(
        cls,
        nb_man: Any,
        kernel_name: str,
        on_kernel: Callable[[AsyncKernelManager], None],
        environment: dict[str, str],
        output_folder: Path,
        **options: Any,
    ) -> Any:
        """Execute the notebook of `nb_man`; see papermill."""
        folder, transport = _connection_folder(output_folder)
        if not _home_is_writable():  # else both warn, and leave a folder behind
            homes = {"IPYTHONDIR": str(folder / "ipython"), "MPLCONFIGDIR": str(folder / "matplotlib")}
            environment = homes | environment
        try:
            manager = AsyncKernelManager(
                kernel_name=kernel_name,
                kernel_spec_manager=_ThisInterpreter(),
                transport=transport,
                connection_file=str(folder / "kernel.json"),
            )
            on_kernel(manager)
            client = PapermillNotebookClient(
                nb_man,
                km=manager,
                timeout=None,
                startup_timeout=options.get("start_timeout") or 120,
                kernel_name=kernel_name,
                log_output=False,
                # every cell has ended by then, and with it the training, its journal and its lock: there is nothing to wait for
                shutdown_kernel="immediate",
            )
            client.owns_km = True  # so that the kernel is shut down at the end, as one that nbclient started itself
            return client.execute(env=environment)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


papermill_engines.register("vitfp8", _Engine)


@dataclass(frozen=True)
class Execution:
    """How the execution of a notebook ended.

    Attributes:
        error: one line, when a cell raised or the kernel died.
        kernel_died: whether the kernel ended without a word.
        signal: the signal that the user sent meanwhile, else None.
        timed_out: whether it was stopped because its time was up.
        seconds: how long it took.
    """

    error: str | None
    kernel_died: bool
    signal: int | None
    timed_out: bool
    seconds: float


class Signals:
    """What the user asked for while notebooks execute: remembered, and passed to the kernel as an interrupt.

    Attributes:
        received: the first signal that came, None before.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._kernel: AsyncKernelManager | None = None
        self._interrupted_at: float | None = None

    def __call__(self, number: int, _frame: object) -> None:
        """The handler: the first signal interrupts the kernel, the next one kills it."""
        again = self.received is not None
        if self.received is None:
            self.received = number
        if again:
            self._send(signal.SIGKILL)
        else:
            self.interrupt()

    def begin(self) -> None:
        """Forget the kernel before: a new one starts."""
        self._kernel, self._interrupted_at = None, None

    def watch_over(self, kernel: AsyncKernelManager) -> None:
        """Remember the kernel that runs now.

        Args:
            kernel: its manager.
        """
        self._kernel = kernel

    def interrupt(self) -> None:
        """Ask the kernel to save a checkpoint and end; its grace begins."""
        if self._send(signal.SIGINT) and self._interrupted_at is None:
            self._interrupted_at = time.monotonic()

    def expire(self) -> None:
        """Interrupt a kernel that started after the signal, and kill one that has used up its grace."""
        if self.received is not None and self._interrupted_at is None:
            self.interrupt()
        if self._interrupted_at is not None and time.monotonic() - self._interrupted_at > GRACE_SECONDS:
            self._send(signal.SIGKILL)

    def _send(self, number: int) -> bool:
        """Send a signal to the kernel's process; whether there is one."""
        provisioner = getattr(self._kernel, "provisioner", None)
        pid = getattr(provisioner, "pid", None)
        if not pid:
            return False
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        return True


@contextmanager
def listening() -> Iterator[Signals]:
    """Hear Ctrl-C, SIGTERM and a closed terminal; outside the main thread there is nothing to install.

    A signal that was ignored when the command started stays ignored: so ``nohup`` does what it says.
    """
    signals = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    numbers = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, signals) for number in heard}
    try:
        yield signals
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def execute(
    notebook: Path,
    output: Path,
    parameters: Mapping[str, Any],
    *,
    signals: Signals | None = None,
    timeout: float | None = None,
    while_waiting: Callable[[], None] | None = None,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> Execution:
    """Execute a notebook with papermill in a kernel of the running interpreter.

    The working directory stays the caller's. The environment that decides determinism is set before the kernel starts.

    Args:
        notebook: the template.
        output: where the executed notebook goes; its folder must exist. Valid JSON at every instant.
        parameters: injected after the cell tagged ``parameters``.
        signals: of whoever listens already; None: listened to while it executes.
        timeout: seconds after which the kernel is interrupted, so that a training saves a checkpoint; None: never.
        while_waiting: called about twice a second meanwhile, in the caller's thread.
        variables: of the kernel's environment, beside the caller's.
    """
    if signals is None:
        with listening() as heard:
            return execute(
                notebook, output, parameters, signals=heard, timeout=timeout, while_waiting=while_waiting, variables=variables
            )
    # under the output's own path: of two handlers for "local" papermill takes the one that was there first
    papermill_io.register(str(output), _AtomicHandler())
    signals.begin()
    failure: list[BaseException] = []
    environment = {**os.environ, "PYTHONHASHSEED": "0", "TQDM_DISABLE": "1", **variables}
    environment.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    environment.pop("JPY_SESSION_NAME", None)  # nobody watches a batch, even one that was started in JupyterLab

    def work() -> None:
        try:
            papermill.execute_notebook(
                str(notebook),
                str(output),
                parameters=dict(parameters),
                engine_name="vitfp8",
                kernel_name="python3",
                progress_bar=False,
                on_kernel=signals.watch_over,
                environment=environment,
                output_folder=output.parent,
                autosave_cell_every=5,
            )
        except BaseException as error:  # handed to the caller's thread
            failure.append(error)

    started = time.monotonic()
    # in a thread of its own: there nbclient installs no signal handlers, which would kill the kernel in mid-step
    worker = threading.Thread(target=work, name=f"papermill {output.name}", daemon=True)
    worker.start()
    timed_out = False
    while worker.is_alive():
        worker.join(timeout=0.5)
        signals.expire()
        if timeout is not None and not timed_out and time.monotonic() - started > timeout:
            timed_out = True
            signals.interrupt()
        if while_waiting is not None:
            while_waiting()
    error, died = _explain(failure[0]) if failure else (None, False)
    seconds = time.monotonic() - started
    return Execution(error=error, kernel_died=died, signal=signals.received, timed_out=timed_out, seconds=seconds)


def _explain(error: BaseException) -> tuple[str, bool]:
    """One line for what went wrong, and whether the kernel died."""
    if isinstance(error, PapermillExecutionError):
        return f"{error.ename}: {error.evalue}".splitlines()[0][:1000], False
    if isinstance(error, DeadKernelError):
        return "the kernel died without a word (killed, or out of memory)", True
    if isinstance(error, OSError):
        return f"the notebook could not be written: {error.strerror or error}", False
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:1000], False
