"""Run the compiled pipeline on this machine: KFP's local runner, with a log file and a readable terminal.

The document that runs is the one that `compile` writes, less its retry policies: on a laptop a failing stage should
say so at once and not a quarter of an hour later.
"""

import contextlib
import datetime
import json
import os
import pkgutil
import pty
import re
import shlex
import subprocess
import sys
import tempfile
import termios
import time
import tty
import uuid
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import yaml
from kfp import compiler, components, dsl, local
from kfp.local import subprocess_task_handler

from contrique.errors import ContriqueError
from pipelines.resources import STAGES

_BAR = "%|"  # of tqdm: what tells a progress bar from a line of text
BRANCHES = ("register_model", "keep_champion")


class RunFailed(ContriqueError):
    """A task failed; the message names the task, the reason that it gave and the log."""


@dataclass(frozen=True)
class Artifact:
    """One output of a finished task."""

    path: Path
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        root: the folder that keeps everything of it.
        artifacts: by task, then by name; a task that did not run is absent.
        returned: what each task returned, None for most; likewise.
    """

    root: Path
    artifacts: dict[str, dict[str, Artifact]]
    returned: dict[str, Any]

    @property
    def branch(self) -> str:
        """The one branch of the gate that ran: register_model or keep_champion."""
        return next(name for name in BRANCHES if name in self.returned)


@dataclass
class Terminal:
    """What a person sees of the tasks: one line each, and their progress bars; everything goes to `log`."""

    log: TextIO
    screen: TextIO
    environment: dict[str, str]
    reason: str = ""
    tail: list[str] = field(default_factory=list)

    def run_task(self, full_command: list[str], env_vars: dict[str, str] | None = None) -> int:
        """Stands in for KFP's own function, which pipes a task's output by line, so that no progress bar can draw.

        The task is given a pseudo-terminal where this process has a terminal, and a pipe where not.
        """
        # KFP puts the interpreter into a shell command unquoted
        command = [part.replace(sys.executable, shlex.quote(sys.executable)) for part in full_command]
        task = json.loads(command[command.index("--executor_input") + 1])["outputs"]["outputFile"].split("/")[-2]
        title = STAGES[task.replace("-", "_")].title
        self.tail.clear()
        started = time.monotonic()
        self._show(f"  {title} ...")
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
        ) as process:
            os.close(writer)
            for line in self._lines(reader):
                self.tail = [*self.tail[-199:], line]
                print(line, file=self.log, flush=True)
        mark = "✓" if process.returncode == 0 else "✗"
        self._show(f"{mark} {title} ({time.monotonic() - started:.1f} s)\n")
        if process.returncode:
            self.reason = f"{title}: {_reason(self.tail, process.returncode)}"
        return process.returncode

    def _lines(self, reader: int) -> Iterator[str]:
        """Whole lines; what ends in a carriage return redraws the line on the screen instead."""
        text = ""
        with open(reader, "rb", buffering=0) as stream:
            while chunk := _read(stream):
                text += chunk.decode(errors="replace")
                *done, text = re.split(r"(?<=\n)|(?<=\r)(?!\n)", text)
                for piece in done:
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


def _read(stream: Any) -> bytes:
    try:
        return stream.read(65536)
    except OSError:  # a pseudo-terminal's end of file
        return b""


def _reason(lines: list[str], code: int) -> str:
    """What a person must know of a failed task: a ContriqueError's own message, or the end of a traceback."""
    if code > 128:
        return f"killed by signal {code - 128} (9 usually means that the machine ran out of memory)"
    for place, line in reversed(list(enumerate(lines))):
        if match := re.match(r"(contrique(?:\.\w+)+): (.+)", line):
            with contextlib.suppress(ImportError, AttributeError):
                if issubclass(pkgutil.resolve_name(match[1]), ContriqueError):
                    return "\n".join([match[2], *lines[place + 1 :]])
    begin = max((place for place, line in enumerate(lines) if line.startswith("Traceback")), default=0)
    return "\n".join(["unexpected failure", *lines[begin:][-15:]])


def run(arguments: dict[str, Any], runs: Path = Path("runs"), screen: TextIO | None = None) -> Run:
    """Run the training pipeline in this process's environment, one subprocess a task.

    Args:
        arguments: of `training`; paths in them must be absolute, for tasks need not share this directory.
        runs: folder under which the run's own folder is made, and kept.
        screen: where progress goes; standard output if not given.
    Returns:
        the finished run.
    Raises:
        RunFailed: a task failed, or the gate's branches did not run as the verdict says.
    """
    from pipelines.training import training

    name = f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"
    root = runs.resolve() / name
    root.mkdir(parents=True)
    failure, terminal_of_process = "", sys.stdout
    with (
        tempfile.TemporaryDirectory(prefix="contrique-") as scratch,
        (root / "run.log").open("w") as log,
        contextlib.redirect_stdout(log),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # KFP warns of every resource setting that has no meaning here
        terminal = Terminal(log, screen or terminal_of_process, {"CONTRIQUE_RUN": name, "TMPDIR": scratch})
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(root))
        piped, subprocess_task_handler.run_local_subprocess = (
            subprocess_task_handler.run_local_subprocess,
            terminal.run_task,
        )
        try:
            without_retries(training)(**arguments)
        except RuntimeError as error:
            failure = terminal.reason or str(error)
        finally:
            subprocess_task_handler.run_local_subprocess = piped
    if failure:
        raise RunFailed(f"{failure}\nThe whole log: {root / 'run.log'}")
    done = _read_run(root)
    check_branches(done)
    return done


def without_retries(pipeline: dsl.base_component.BaseComponent) -> dsl.base_component.BaseComponent:
    """The compiled pipeline, loaded again without its retry policies."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "pipeline.yaml")
        compiler.Compiler().compile(pipeline, str(path))
        documents = list(yaml.safe_load_all(path.read_text()))
    for component in [documents[0]["root"], *documents[0]["components"].values()]:
        for task in component.get("dag", {}).get("tasks", {}).values():
            task.pop("retryPolicy", None)
    return components.load_component_from_text(yaml.safe_dump_all(documents))


def _read_run(root: Path) -> Run:
    run = Run(root, {}, {})
    for path in sorted(root.glob("*/*/executor_output.json")):
        task, told = path.parent.name.replace("-", "_"), json.loads(path.read_text())
        listed = {name: value["artifacts"][0] for name, value in told.get("artifacts", {}).items()}
        run.artifacts[task] = {name: Artifact(Path(one["uri"]), one["metadata"]) for name, one in listed.items()}
        run.returned[task] = told.get("parameterValues", {}).get("Output")
    return run


def check_branches(run: Run) -> None:
    """KFP's local runner can skip a branch and still report success: see that the verdict's own branch ran."""
    verdict = json.loads(run.artifacts["decide_promotion"]["verdict"].path.read_text())
    expected = BRANCHES[0] if verdict["promote"] else BRANCHES[1]
    ran = [name for name in BRANCHES if name in run.returned]
    if ran != [expected]:
        raise RunFailed(f"the verdict asks for {expected}, but {ran or 'neither'} ran; see {run.root / 'run.log'}")
