"""One server process of the stack: started, looked after, ended, its log at hand."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from contrique.errors import ContriqueError

START_SECONDS = 180.0  # seconds suffice on a quiet machine


class StackError(ContriqueError):
    """A part of the stack cannot be started, or died; the message names its log and the remedy."""

    has_lines = True  # the end of a server's log


class Service:
    """One server process, its log and its health check.

    Args:
        name: in messages, and of its log.
        command: the program and its arguments.
        environment: added to this process's.
        folder: working directory; holds `<name>.log`.
        ready: whether the server does its work; called until it says so.
        stop_signal: asks it to end soon and cleanly.
        prepare: called before each start.
    """

    def __init__(
        self,
        name: str,
        command: list[str],
        environment: dict[str, str],
        folder: Path,
        ready: Callable[[], bool],
        stop_signal: signal.Signals = signal.SIGTERM,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._command, self._environment, self._folder = command, environment, folder
        self._ready, self._stop_signal, self._prepare = ready, stop_signal, prepare
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process; `wait` tells when it works."""
        self._prepare()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                env=os.environ | self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self, seconds: float = START_SECONDS) -> None:
        """Until the health check succeeds.

        Raises:
            StackError: the process ended, or the time is over.
        """
        deadline = time.monotonic() + seconds
        while not self._ready():
            self.check()
            if time.monotonic() > deadline:
                raise StackError(f"{self.name}: not ready after {seconds:.0f} s; see {self.log}{tail(self.log)}")
            time.sleep(0.1)

    def running(self) -> bool:
        """Whether the process is there, ready or not."""
        return self._process is not None and self._process.poll() is None

    def check(self) -> None:
        """Raise StackError if the process has ended."""
        if not self.running():
            raise StackError(f"{self.name}: ended by itself; see {self.log}{tail(self.log)}")

    def stop(self, grace: float = 20.0) -> None:
        """Ask the process to end, and after `grace` seconds kill it; its children are killed in any case."""
        if self._process is None:
            return
        if grace and self._process.poll() is None:
            self._process.send_signal(self._stop_signal)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(grace)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None


def tail(log: Path, lines: int = 8) -> str:
    """The last lines of a log, each on a line of its own."""
    return "".join(f"\n  {line}" for line in log.read_text(errors="replace").splitlines()[-lines:])
