"""What the backend of Kubeflow Pipelines does to a task, for a run on a machine without one.

KFP's local runner hands a task's outputs on just as the task left them. On a cluster they pass through ML Metadata and
an object store first, and an exit handler is told of the end in ML Metadata's words. What a run relies on by mistake
thus works on a laptop and fails on a cluster; with these rules it fails on both. They are those of KFP 2.17
(`backend/src/v2`), and each function names the file it follows.
"""

import contextlib
import itertools
import json
import math
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contrique.errors import ContriqueError
from contrique.s3 import connect
from pipelines.laptop.stack import BUCKET, Stack

_INPUT = "--executor_input"  # option of a task's command: what it is told, as JSON


class Refused(ContriqueError):
    """The backend would fail the task although its own work is done."""


def read_output(text: str) -> dict[str, Any]:
    """What a task's executor wrote of its outputs, parsed as strictly as the launcher does.

    Follows `component/launcher_v2.go: getExecutorOutputFile`.

    Raises:
        Refused: it holds NaN or an infinity, which are no JSON.
    """

    def no_number(name: str) -> None:
        raise Refused(f"an output or its metadata is {name}, which is no JSON; leave it out")

    parsed: dict[str, Any] = json.loads(text, parse_constant=no_number)
    return parsed


def record_metadata(metadata: Mapping[str, Any], *, output: str, session: str) -> dict[str, Any]:
    """An artifact's metadata as the next task gets it: after a way through ML Metadata.

    Follows `metadata/converter.go: StructValueToMLMDValue, toRuntimeArtifact` and `metadata/client.go: RecordArtifact`.

    Args:
        metadata: as the task set it.
        output: name of the output, which becomes the artifact's `display_name`.
        session: how the store is reached, as JSON.
    Returns:
        numbers without their kind, booleans as 0 and 1, lists and dicts wrapped, and two entries more.
    Raises:
        Refused: a value is null or not a finite number.
    """
    own = {name: _record_value(name, value) for name, value in metadata.items()}
    return {"display_name": output, "store_session_info": session} | own


def _record_value(name: str, value: Any) -> Any:
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float) and math.isfinite(value):
        return float(value)
    if isinstance(value, list):
        return {"list": value}
    if isinstance(value, dict):
        return {"struct": value}
    raise Refused(f"metadata {name!r} is {value!r}: unknown/unsupported value type; leave the entry out")


def final_state(outcome: str, *, killed: bool) -> str:
    """How a group of tasks ended, as an exit handler on a cluster is told.

    Follows `driver/resolve.go: resolveInputParameter`, which hands on the last known state of an execution: it is
    RUNNING for ever if nobody lived to write another one.

    Args:
        outcome: SUCCEEDED or FAILED, the words of the local runner.
        killed: whether the task that failed was ended from outside: by a signal, for memory, at its deadline.
    """
    if outcome == "SUCCEEDED":
        return "COMPLETE"
    return "RUNNING" if killed else outcome


@dataclass(frozen=True)
class Size:
    """What a task's launcher carries: objects, and their bytes."""

    objects: int = 0
    bytes: int = 0

    def __add__(self, other: "Size") -> "Size":
        return Size(self.objects + other.objects, self.bytes + other.bytes)

    def __str__(self) -> str:
        return f"{self.objects} objects of {self.bytes / 1e6:.1f} MB"


class Store:
    """The object store of the artifacts: files as objects, folders as nothing but parts of their names.

    Follows `objectstore/object_store.go: UploadBlob, DownloadBlob`.

    Args:
        bucket: its name.
        client: of boto3, for S3.
    """

    session = '{"Provider":"s3","Params":{"fromEnv":"false"}}'  # as ML Metadata is told how to reach it

    def __init__(self, bucket: str, client: Any) -> None:
        self.bucket, self._client = bucket, client

    def upload(self, path: Path, key: str) -> Size:
        """Copy a file or a folder's files; a path that is not there is no error, for outputs are optional.

        Raises:
            Refused: a folder holds a link to a folder, which the launcher opens as a file, or a link to nothing, at
                which it stops without a word.
        """
        if path.is_dir():
            return sum((self._upload_entry(entry, key) for entry in sorted(path.iterdir())), Size())
        return self._put(path, key) if path.exists() else Size()

    def _upload_entry(self, path: Path, key: str) -> Size:
        if path.is_dir() and not path.is_symlink():
            return self.upload(path, f"{key}/{path.name}")
        if not path.is_file():
            raise Refused(
                f"{path}: a link to a folder or to nothing, which no artifact can hold; copy what it leads to"
            )
        return self._put(path, f"{key}/{path.name}")

    def _put(self, path: Path, key: str) -> Size:
        self._client.upload_file(str(path), self.bucket, key)
        return Size(1, path.stat().st_size)

    def download(self, key: str, path: Path) -> Size:
        """Copy the objects of a key and below it to a path; without any, nothing is made there."""
        total = Size()
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=key)
        for entry in (item for page in pages for item in page.get("Contents", [])):
            if entry["Key"] == key or entry["Key"].startswith(f"{key}/"):
                target = path / entry["Key"][len(key) :].lstrip("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                self._client.download_file(self.bucket, entry["Key"], str(target))
                total += Size(1, entry["Size"])
        return total


def round_trip(path: Path, key: str, store: Store) -> Size:
    """Replace an artifact on disk by what another machine would get of it: through the store, and back.

    Raises:
        Refused: as `Store.upload`.
    """
    size = store.upload(path, key)
    discard(path)
    store.download(key, path)
    return size


def discard(path: Path) -> None:
    """Remove an artifact of a failed task, which nobody sees on a cluster.

    Follows `component/launcher_v2.go: Execute`: `uploadOutputArtifacts` comes after the task's success.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


def measure(path: Path) -> Size:
    """What a launcher carries to a task that takes this artifact."""
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return Size(len(files), sum(each.stat().st_size for each in files))


class Backend:
    """The backend of one run: it stands between the local runner and each task.

    Args:
        store: of the artifacts.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._killed = False
        self._numbers = itertools.count(1)

    def prepare(self, command: list[str]) -> list[str]:
        """A task's command, with the end of what came before it in ML Metadata's words, if it asks for that."""
        place = command.index(_INPUT) + 1
        task = json.loads(command[place])
        for value in task.get("inputs", {}).get("parameterValues", {}).values():
            if isinstance(value, dict) and value.keys() >= {"state", "pipeline_task_name"}:
                job, name = (value.pop(f"pipeline_{key}_name") for key in ("job_resource", "task"))
                value |= {"state": final_state(value["state"], killed=self._killed), "error": {}}
                value |= {"pipelineJobResourceName": job, "pipelineTaskName": name}
        return [*command[:place], json.dumps(task), *command[place + 1 :]]

    def settle(self, command: list[str], code: int) -> str:
        """What becomes of a task's outputs: they are published, or discarded if it failed.

        Args:
            command: of the task.
            code: its exit status; that of a signal if it was killed.
        Returns:
            what was carried, for the log.
        Raises:
            Refused: the outputs cannot be published; they are discarded then.
        """
        task = read_task(command)
        outputs = [Path(artifact["uri"]) for artifact in _artifacts(task["outputs"])]
        try:
            if not code:
                return self._publish(task, outputs)
        except BaseException:
            code = 1
            raise
        finally:
            if code:
                self._killed |= is_killed(code)
                for path in outputs:
                    discard(path)
        return "KFP would discard the outputs of this task, for it failed"

    def _publish(self, task: dict[str, Any], outputs: list[Path]) -> str:
        file = Path(task["outputs"]["outputFile"])
        output = read_output(file.read_text()) if file.is_file() else {}
        for name, entry in output.get("artifacts", {}).items():
            for artifact in entry["artifacts"]:
                metadata = record_metadata(artifact.get("metadata", {}), output=name, session=self.store.session)
                artifact |= {"metadata": metadata, "name": str(next(self._numbers))}
        inputs = sum((measure(Path(item["uri"])) for item in _artifacts(task.get("inputs", {}))), Size())
        size = sum((round_trip(path, str(path).lstrip("/"), self.store) for path in outputs), Size())
        if output:
            file.write_text(json.dumps(output))
        return f"KFP carries to this task {inputs}, and from it {size}"


def read_task(command: list[str]) -> dict[str, Any]:
    """What a task is told: KFP's ExecutorInput."""
    task: dict[str, Any] = json.loads(command[command.index(_INPUT) + 1])
    return task


def is_killed(code: int) -> bool:
    """Whether an exit status is that of a signal: of the process itself, or as its shell tells it."""
    return code < 0 or code > 128


def _artifacts(side: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [item for entry in side.get("artifacts", {}).values() for item in entry["artifacts"]]


@contextlib.contextmanager
def serve_store(folder: Path) -> Iterator[Store]:
    """An S3 server of this block's own, its data in `folder`; the store waits for it when first used.

    Raises:
        StackError: it is not installed, or does not come up.
    """
    stack = Stack(folder)
    stack.s3.start()
    try:
        yield _LazyStore(stack)
    finally:
        stack.s3.stop(0)


class _LazyStore(Store):
    """A store whose server comes up while the first task runs."""

    def __init__(self, stack: Stack) -> None:
        super().__init__(BUCKET, None)
        self._stack, self._once = stack, threading.Lock()

    def _put(self, path: Path, key: str) -> Size:
        with self._once:
            if self._client is None:
                self._stack.s3.wait()
                self._client = connect(self._stack.s3_environment)
        return super()._put(path, key)
