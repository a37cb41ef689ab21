"""What the backend of Kubeflow Pipelines does to a task, for a run on a machine without one.

KFP's local runner hands a task's outputs on just as the task left them. On a cluster they pass through ML Metadata and
an object store first, and an exit handler is told of the end in ML Metadata's words. What a run relies on by mistake
thus works on a laptop and fails on a cluster; with these rules it fails on both. They are those of KFP 2.17
(`backend/src/v2`), and each function names the file it follows.
"""

import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contrique.errors import ContriqueError

SUCCESS = ("COMPLETE", "CACHED")  # states of ML Metadata's executions; the others are FAILED, RUNNING and CANCELED


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


def recorded(metadata: Mapping[str, Any], *, output: str, session: str) -> dict[str, Any]:
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
    kept = {name: _recorded(name, value) for name, value in metadata.items()}
    return {"display_name": output, "store_session_info": session} | kept


def _recorded(name: str, value: Any) -> Any:
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float) and math.isfinite(value):
        return float(value)
    if isinstance(value, list):
        return {"list": value}
    if isinstance(value, dict):
        return {"struct": value}
    raise Refused(f"metadata {name!r} is {value!r}: unknown/unsupported value type; leave the entry out")


def final_state(said: str, *, killed: bool) -> str:
    """How a group of tasks ended, as an exit handler on a cluster is told.

    Follows `driver/resolve.go: resolveInputParameter`, which hands on the last known state of an execution: it is
    RUNNING for ever if nobody lived to write another one.

    Args:
        said: SUCCEEDED or FAILED, the words of the local runner.
        killed: whether the task that failed was ended from outside: by a signal, for memory, at its deadline.
    """
    if said == "SUCCEEDED":
        return SUCCESS[0]
    return "RUNNING" if killed else said


@dataclass(frozen=True)
class Size:
    """What a task's launcher carries: objects, and their bytes."""

    objects: int = 0
    bytes: int = 0

    def __add__(self, other: "Size") -> "Size":
        return Size(self.objects + other.objects, self.bytes + other.bytes)


class Store:
    """The object store of the artifacts: files as objects, folders as nothing but parts of their names.

    Follows `objectstore/object_store.go: UploadBlob, DownloadBlob`.

    Args:
        bucket: its name.
        client: of boto3, for S3.
    """

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
        for found in (one for page in pages for one in page.get("Contents", [])):
            if found["Key"] == key or found["Key"].startswith(f"{key}/"):
                target = path / found["Key"][len(key) :].lstrip("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                self._client.download_file(self.bucket, found["Key"], str(target))
                total += Size(1, found["Size"])
        return total


def carried(path: Path, key: str, store: Store) -> Size:
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
