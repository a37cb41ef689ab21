"""Run a compiled pipeline on this machine: KFP's local runners, with a log file and a readable terminal.

The document that runs is the one that `compile` writes, less its retry policies: on a laptop a failing stage should
say so at once and not a quarter of an hour later. Each task is a process of this environment, or a container of the
pipeline's image. What it makes passes through the rules of a cluster's backend (`pipelines.laptop.backend`), unless
the run is direct.
"""

import builtins
import codecs
import contextlib
import datetime
import json
import logging
import os
import pkgutil
import pty
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import termios
import threading
import time
import tty
import uuid
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any, TextIO

import yaml
from kfp import compiler, components, dsl, local
from kfp.local import subprocess_task_handler

from contrique.errors import ContriqueError
from contrique.files import room
from contrique.tracking.address import sqlite_uri
from pipelines.cluster.resources import STAGES
from pipelines.laptop.backend import Backend, Refused, is_killed, read_task, serve_store
from pipelines.laptop.stack import bypass_proxies

_BAR = "%|"  # of tqdm: what tells a progress bar from a line of text
_PASSED = ("AWS_", "MLFLOW_", "CONTRIQUE_", "OMP_")  # variables of this process that containers are given too
_GRACE_SECONDS = 1.0  # that a task has after SIGTERM; a cluster gives about as much
BRANCHES = ("register_model", "keep_champion")


class RunFailed(ContriqueError):
    """A task failed; the message names the task, the reason that it gave and the log.

    Args:
        message: all of it.
        exit_status: of the task's own error.
    """

    has_lines = True

    def __init__(self, message: str, exit_status: int = ContriqueError.exit_status) -> None:
        super().__init__(message)
        self.exit_status = exit_status


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        root: the folder that keeps everything of it.
        artifacts: where they are, by task, then by name; a task that did not run is absent.
        returned: what each task returned, None for most; likewise.
    """

    root: Path
    artifacts: dict[str, dict[str, Path]]
    returned: dict[str, Any]

    @property
    def branch(self) -> str:
        """The one branch of the gate that ran: register_model or keep_champion."""
        return next(name for name in BRANCHES if name in self.returned)


@dataclass
class Terminal:
    """What a person sees of the tasks: one line each, and their progress bars; everything goes to `log`.

    Attributes:
        log, screen: where to write.
        environment: given to each task beside its own.
        volumes: folders of this machine that containers may see, as Docker takes them.
        backend: what stands between the runner and each task; None if nothing does.
        stop_signal: signal that this run was told to end by; 0 if it was not.
        reason: why the first task failed; empty if none did.
        exit_status: of that task's error.
    """

    log: TextIO
    screen: TextIO
    environment: dict[str, str]
    volumes: dict[str, dict[str, str]] = field(default_factory=dict)
    backend: Backend | None = None
    stop_signal: int = 0
    reason: str = ""
    exit_status: int = ContriqueError.exit_status
    _enders: list[Callable[[int], None]] = field(default_factory=list)  # of the tasks that run

    def run_task(self, full_command: list[str], env_vars: dict[str, str] | None = None) -> int:
        """Stands in for KFP's own function, which pipes a task's output by line, so that no progress bar can draw.

        The task is given a pseudo-terminal where this process has a terminal, and a pipe where not.
        """
        # KFP puts the interpreter into a shell command unquoted
        command = [part.replace(sys.executable, shlex.quote(sys.executable)) for part in self._prepare(full_command)]
        reader, writer = pty.openpty() if self.screen.isatty() else os.pipe()
        if self.screen.isatty():
            tty.setraw(writer)  # or each newline would come with a carriage return
            size = termios.tcgetwinsize(self.screen)
            termios.tcsetwinsize(writer, size if all(size) else (24, 80))  # tqdm draws nothing on no columns
        with subprocess.Popen(
            command,
            stdout=writer,
            stderr=writer,
            stdin=subprocess.DEVNULL,
            env=os.environ | self.environment | (env_vars or {}),
            process_group=0,  # of its own: a signal reaches the shell and what it runs, and Ctrl-C this process alone
        ) as process:
            os.close(writer)

            def end(number: int) -> None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)

            # closed if the log cannot be written, too: a task that speaks then ends, and waits for no reader
            with self._register_end(end), os.fdopen(reader, "rb", buffering=0) as output:
                return self._watch(command, _chunks(output), process.wait)

    def run_container(
        self, client: Any, image: str, command: list[str], volumes: dict[str, Any], **arguments: Any
    ) -> int:
        """Stands in for KFP's own function, which takes a container that vanished before it was asked for a success.

        This one is removed only after its status is known (kubeflow/pipelines#13332).
        """
        from docker.errors import APIError

        environment = self.environment | arguments.pop("environment", {})
        command = self._prepare(command)
        try:
            container = client.containers.run(
                image, command, detach=True, volumes=volumes | self.volumes, environment=environment, **arguments
            )
        except APIError as error:  # no such image here nor in a registry
            reason = " ".join(str(error).split())
            raise RunFailed(f"{image}: Docker cannot run it ({reason}); build it with `make image`") from error
        try:
            with self._register_end(lambda number: container.kill(number)):
                return self._watch(command, container.logs(stream=True), lambda: container.wait()["StatusCode"])
        finally:
            container.remove(force=True)

    def stop(self, number: int, _: Any = None) -> None:
        """Have the tasks that run end by a signal, as a cluster does when a run is terminated; the last task runs."""
        self.stop_signal = self.stop_signal or number
        enders = list(self._enders)
        for end in enders:
            end(signal.SIGTERM)
        timer = threading.Timer(_GRACE_SECONDS, lambda: [end(signal.SIGKILL) for end in enders])
        timer.daemon = True
        timer.start()

    @contextlib.contextmanager
    def _register_end(self, end: Callable[[int], None]) -> Iterator[None]:
        self._enders.append(end)
        try:
            yield
        finally:
            self._enders.remove(end)

    def _prepare(self, command: list[str]) -> list[str]:
        return self.backend.prepare(command) if self.backend else command

    def _watch(self, command: list[str], output: Iterable[bytes], wait: Callable[[], int]) -> int:
        task = read_task(command)["outputs"]["outputFile"].split("/")[-2]
        title = STAGES[task.replace("-", "_")].title
        tail: deque[str] = deque(maxlen=200)
        start = time.monotonic()
        self._show(f"  {title} ...")
        for line in self._lines(output):
            tail.append(line)
            print(line, file=self.log, flush=True)
        code, refusal = wait(), ""
        if self.backend:
            try:
                print(self.backend.settle(command, code), file=self.log, flush=True)
            except Refused as error:
                code, refusal = 1, f"{error} (so the backend of Kubeflow Pipelines would have it)"
                print(refusal, file=self.log, flush=True)
        self._show(f"{'✗' if code else '✓'} {title} ({time.monotonic() - start:.1f} s)\n")
        if code and not self.reason:
            reason, self.exit_status = (refusal, self.exit_status) if refusal else _failure(list(tail), code)
            self.reason = f"{title}: {reason}"
        return code

    def _lines(self, chunks: Iterable[bytes]) -> Iterator[str]:
        """Whole lines; what ends in a carriage return redraws the line on the screen instead."""
        text, decoder = "", codecs.getincrementaldecoder("utf-8")("replace")  # a chunk may end within a character
        for chunk in chunks:
            text += decoder.decode(chunk)
            *lines, text = re.split(r"(?<=\n)|(?<=\r)(?!\n)", text)
            for piece in lines:
                if piece.strip() and (piece.endswith("\r") or _BAR in piece):
                    self._show(f"  {piece.strip()}")
                if piece.endswith("\n"):
                    yield piece.rstrip("\r\n")
            if _BAR in text:  # tqdm writes the return first and the bar after it
                self._show(f"  {text.strip()}")
                text = ""
        if text:
            yield text

    def _show(self, text: str) -> None:
        if self.screen.isatty():
            self.screen.write(f"\r\x1b[K{text}")
        elif text.endswith("\n"):
            self.screen.write(text)
        self.screen.flush()


def _chunks(stream: FileIO) -> Iterator[bytes]:
    with contextlib.suppress(OSError):  # a pseudo-terminal's end of file
        while chunk := stream.read(65536):
            yield chunk


def _failure(lines: list[str], code: int) -> tuple[str, int]:
    """What a person must know of a failed task, and its error's exit status.

    A ContriqueError's own message, or the end of a traceback.
    """
    if is_killed(code):
        number = -code if code < 0 else code - 128
        reason = f"killed by signal {number} (9 usually means that the machine ran out of memory)"
        return reason, ContriqueError.exit_status
    for place, line in reversed(list(enumerate(lines))):
        if match := re.match(r"(contrique(?:\.\w+)+): (.+)", line):
            with contextlib.suppress(ImportError, AttributeError):
                kind = pkgutil.resolve_name(match[1])
                if issubclass(kind, ContriqueError):
                    return "\n".join([match[2], *lines[place + 1 :]]), kind.exit_status
    begin = max((place for place, line in enumerate(lines) if line.startswith("Traceback")), default=0)
    return "\n".join(["unexpected failure", *lines[begin:][-15:]]), ContriqueError.exit_status


def run(
    pipeline: dsl.base_component.BaseComponent,
    arguments: dict[str, Any],
    runs: Path = Path("runs"),
    screen: TextIO | None = None,
    *,
    mounts: Sequence[str] | None = None,
    direct: bool = False,
) -> Run:
    """Run a pipeline on this machine, one process or one container a task.

    Args:
        pipeline: training or scoring.
        arguments: of it; paths in them must be absolute, for tasks need not share this directory.
        runs: folder under which the run's own folder is made, and kept.
        screen: where progress goes; standard output if not given.
        mounts: None: each task is a process. Else each is a container of the pipeline's image, by Docker, that may
            read these folders beside those in `arguments`, write `mlruns` and the run's own, and use this network.
        direct: hand outputs on just as tasks leave them, without a cluster's rules and its object store.
    Returns:
        the finished run.
    Raises:
        RunFailed: a task failed, the run was told to end by SIGTERM or Ctrl-C, the gate's branches did not run as the
            verdict says, or Docker cannot be used.
        StackError: the object store does not come up.
        DiskFull: the run's own folder or log cannot be written.
    """
    name = f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"
    root = runs.resolve() / name
    failure, terminal_of_process = "", sys.stdout
    with room(root):
        root.mkdir(parents=True)
    with (
        room(root),
        tempfile.TemporaryDirectory(prefix="contrique-") as scratch,
        (root / "run.log").open("w") as log,
        contextlib.redirect_stdout(log),
        warnings.catch_warnings(),
        _kfps_changes_undone(),
        contextlib.ExitStack() as stack,
    ):
        warnings.simplefilter("ignore")  # KFP warns of every resource setting that has no meaning here
        terminal = Terminal(log, screen or terminal_of_process, bypass_proxies() | {"CONTRIQUE_RUN": name})
        if not direct:
            store = stack.enter_context(serve_store(Path(scratch, "store")))
            terminal.backend = Backend(store)
        if mounts is not None:
            runner, module, function = _docker_runner(terminal, [*_paths(arguments), *mounts])
            stand_in: Callable[..., int] = terminal.run_container
        else:
            terminal.environment["TMPDIR"] = scratch
            runner, module, function = (
                local.SubprocessRunner(use_venv=False),
                subprocess_task_handler,
                "run_local_subprocess",
            )
            stand_in = terminal.run_task
        stack.enter_context(_handle_signals(terminal.stop))
        local.init(runner, pipeline_root=str(root))
        original = getattr(module, function)
        setattr(module, function, stand_in)
        try:
            with_retries(pipeline)(**arguments)
        except RuntimeError as error:
            failure = terminal.reason or str(error)
        finally:
            setattr(module, function, original)
    if terminal.stop_signal:
        raise RunFailed(
            f"told to end by {signal.Signals(terminal.stop_signal).name}\nThe whole log: {root / 'run.log'}",
            128 + terminal.stop_signal,
        )
    if failure:
        raise RunFailed(f"{failure}\nThe whole log: {root / 'run.log'}", terminal.exit_status)
    outcome = _read_run(root)
    if pipeline.name == "contrique-training":
        check_branches(outcome)
    return outcome


@contextlib.contextmanager
def _handle_signals(stop: Callable[[int, Any], None]) -> Iterator[None]:
    """SIGTERM and Ctrl-C end the tasks and not this process, once: the next one ends it as always."""
    if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def handle(number: int, frame: Any) -> None:
        for each, handler in before.items():
            signal.signal(each, handler)
        stop(number, frame)

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _kfps_changes_undone() -> Iterator[None]:
    """Put `print` and the root logger's handlers back.

    KFP swaps them around each task, also in the threads of a loop, where the last to leave may restore another's: a
    `print` that indents, a handler that writes to this run's log, which is closed by then.
    """
    root, printing = logging.getLogger(), builtins.print
    level, handlers, raising = root.level, root.handlers[:], logging.raiseExceptions
    logging.raiseExceptions = False  # on a full disk: a traceback a line, and the run ends by its own line anyhow
    try:
        yield
    finally:
        logging.raiseExceptions = raising
        root.setLevel(level)
        root.handlers[:] = handlers
        builtins.print = printing


def _paths(arguments: dict[str, Any]) -> list[str]:
    values = [
        value for argument in arguments.values() for value in (argument if isinstance(argument, list) else [argument])
    ]
    return [value for value in values if isinstance(value, str) and value.startswith("/")]


def _docker_runner(terminal: Terminal, folders: list[str]) -> tuple[local.DockerRunner, Any, str]:
    """KFP's runner for Docker, and the function of it that must be replaced; what tasks need goes to the terminal."""
    import docker
    from kfp.local import docker_task_handler

    try:
        with contextlib.closing(docker.from_env()) as client:
            client.ping()
    except docker.errors.DockerException as error:
        raise RunFailed(f"Docker does not answer ({error}); start its daemon, or set DOCKER_HOST") from error
    store = Path("mlruns").resolve()
    store.mkdir(exist_ok=True)
    passed = {name: value for name, value in os.environ.items() if name.startswith(_PASSED)}
    default = {"MLFLOW_TRACKING_URI": sqlite_uri(store / "mlflow.db"), "HOME": "/tmp"}
    terminal.environment = default | passed | terminal.environment
    terminal.volumes = {folder: {"bind": folder, "mode": "ro"} for folder in folders}
    terminal.volumes[str(store)] = {"bind": str(store), "mode": "rw"}
    runner = local.DockerRunner(network_mode="host", user=f"{os.getuid()}:{os.getgid()}")
    return runner, docker_task_handler, "run_docker_container"


def with_retries(pipeline: dsl.base_component.BaseComponent, times: int = 0) -> dsl.base_component.BaseComponent:
    """The compiled pipeline, loaded again: what a cluster would retry is tried so many times more, without a pause."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "pipeline.yaml")
        compiler.Compiler().compile(pipeline, str(path))
        documents = list(yaml.safe_load_all(path.read_text()))
    for component in [documents[0]["root"], *documents[0]["components"].values()]:
        for task in component.get("dag", {}).get("tasks", {}).values():
            if task.pop("retryPolicy", None) and times:
                task["retryPolicy"] = {"maxRetryCount": times}
    return components.load_component_from_text(yaml.safe_dump_all(documents))


def _read_run(root: Path) -> Run:
    run = Run(root, {}, {})
    for path in sorted(root.glob("*/*/executor_output.json")):
        task, output = path.parent.name.replace("-", "_"), json.loads(path.read_text())
        outputs = {name: value["artifacts"][0] for name, value in output.get("artifacts", {}).items()}
        run.artifacts[task] = {name: Path(item["uri"]) for name, item in outputs.items()}
        run.returned[task] = output.get("parameterValues", {}).get("Output")
    return run


def check_branches(run: Run) -> None:
    """KFP's local runner can skip a branch and still report success: see that the verdict's own branch ran."""
    verdict = json.loads(run.artifacts["decide_promotion"]["verdict"].read_text())
    expected = BRANCHES[0] if verdict["promote"] else BRANCHES[1]
    ran = [name for name in BRANCHES if name in run.returned]
    if ran != [expected]:
        raise RunFailed(f"the verdict asks for {expected}, but {ran or 'neither'} ran; see {run.root / 'run.log'}")
