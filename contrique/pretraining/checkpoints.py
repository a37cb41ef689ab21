"""The last checkpoints of a run, in a folder or under an s3:// prefix. A partial or damaged one is refused.

A checkpoint is a folder `step-N` with safetensors files, `state.json` and `SHA256SUMS`, which is written last and which
`sha256sum --check` can read.
"""

import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contrique import s3
from contrique.errors import ContriqueError
from contrique.files import room, sha256, write_aside

if TYPE_CHECKING:
    from torch import Tensor


_COPIES = 2
_STATE, _SUMS = "state.json", "SHA256SUMS"


class DamagedCheckpoint(ContriqueError):
    """A checkpoint is partial or damaged; the message names it and what is wrong."""


class Checkpoints:
    """Save and load checkpoints by step.

    Under an s3:// prefix they are uploaded in the background: a step waits only for the copy to local disk. If the
    previous upload has not ended, or fails, a line on stderr says so and training goes on; the next checkpoint
    tries again.

    Args:
        location: a folder, or `s3://bucket/prefix`.
    """

    def __init__(self, location: str) -> None:
        self.location = location.rstrip("/")
        self._uploads = ThreadPoolExecutor(1)
        self._upload: Future[None] | None = None

    def name(self, step: int) -> str:
        """Path or URL of a checkpoint."""
        return f"{self.location}/step-{step:08d}"

    def save(
        self, step: int, tensors: "Mapping[str, Mapping[str, Tensor]]", state: dict[str, Any], *, last: bool = False
    ) -> None:
        """Write a checkpoint; remove all older ones but the previous one, and the remains of interrupted writes.

        Args:
            step: number of the step.
            tensors: file stem to tensors by name.
            state: JSON values.
            last: return only when it is stored; it is never skipped.
        Raises:
            StorageError: `last` is set and the upload failed.
            DiskFull: no room for it; the previous one stays.
        """
        if not s3.is_s3(self.location):
            with write_aside(Path(self.name(step))) as aside:
                _write(aside, tensors, state)
            remains = Path(self.location).glob(".step-*")  # of a process that was killed while writing
            for outdated in [*remains, *(Path(self.name(old)) for old in self._outdated(step))]:
                shutil.rmtree(outdated)
            return
        if self._upload and not (self._upload.done() or last):
            print(f"{self.name(step)}: left out, the one before is still being uploaded", file=sys.stderr)
            return
        self._settle()
        with room(Path(tempfile.gettempdir())):
            staging = Path(tempfile.mkdtemp(prefix="contrique-checkpoint-"))
        folder = staging / "checkpoint"
        try:
            with room(folder):
                _write(folder, tensors, state)
        except BaseException:
            shutil.rmtree(staging)
            raise
        self._upload = self._uploads.submit(self._send, folder, step)
        if last:
            self._upload.result()

    def _settle(self) -> None:
        if self._upload and (error := self._upload.exception()):
            print(f"a checkpoint was not stored: {error}; going on without it", file=sys.stderr)
        self._upload = None

    def _send(self, folder: Path, step: int) -> None:
        try:
            sums = folder.with_name(_SUMS)
            (folder / _SUMS).rename(sums)
            s3.upload(folder, self.name(step), progress=False)
            s3.upload(sums, self.name(step), progress=False)
            for old in self._outdated(step):
                s3.remove(self.name(old))
        finally:
            shutil.rmtree(folder.parent)

    def _outdated(self, step: int) -> list[int]:
        """Checkpoints up to this step, without the newest ones; later ones are damaged, as training resumed here."""
        return [old for old in self.steps() if old <= step][_COPIES:]

    def steps(self) -> list[int]:
        """Steps with a checkpoint, whole or not, newest first.

        Raises:
            StorageError: the S3 location cannot be listed.
        """
        if s3.is_s3(self.location):
            names = s3.list_names(self.location)
        else:
            names = [path.name for path in Path(self.location).glob("step-*")]
        return sorted((int(match[1]) for name in names if (match := re.fullmatch(r"step-(\d+)", name))), reverse=True)

    def load(self, step: int) -> "tuple[dict[str, dict[str, Tensor]], dict[str, Any]]":
        """Tensors and state of a checkpoint, as passed to `save`.

        Raises:
            DamagedCheckpoint: it is partial or damaged.
            StorageError: it cannot be downloaded.
        """
        with self._local(step) as folder:
            return _read(folder, self.name(step))

    @contextmanager
    def _local(self, step: int) -> Iterator[Path]:
        if not s3.is_s3(self.location):
            yield Path(self.name(step))
            return
        with tempfile.TemporaryDirectory(prefix="contrique-checkpoint-") as staging:
            target = Path(staging) / "checkpoint"
            try:
                s3.download(self.name(step), target, progress=False)
            except s3.DamagedObject as error:
                raise DamagedCheckpoint(f"checkpoint {self.name(step)} is damaged ({error})") from error
            yield target


def _write(folder: Path, tensors: "Mapping[str, Mapping[str, Tensor]]", state: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    folder.mkdir()
    for stem, group in tensors.items():
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in group.items()}
        save_file(contiguous, folder / f"{stem}.safetensors")
    (folder / _STATE).write_text(json.dumps(state))
    sums = "".join(f"{sha256(path)}  {path.name}\n" for path in sorted(folder.iterdir()))
    (folder / _SUMS).write_text(sums)


def _read(folder: Path, name: str) -> "tuple[dict[str, dict[str, Tensor]], dict[str, Any]]":
    from safetensors.torch import load_file

    if not (folder / _SUMS).is_file():
        raise DamagedCheckpoint(f"checkpoint {name} is partial (no {_SUMS} in it)")
    files = []
    for line in (folder / _SUMS).read_text(errors="replace").splitlines():
        digest, _, file = line.partition("  ")
        files.append(file)
        if not (folder / file).is_file() or sha256(folder / file) != digest:
            raise DamagedCheckpoint(f"checkpoint {name} is damaged (the SHA-256 of {file} differs from {_SUMS})")
    if _STATE not in files:
        raise DamagedCheckpoint(f"checkpoint {name} is damaged (no {_STATE} in {_SUMS})")
    tensors = {Path(file).stem: load_file(folder / file) for file in files if file != _STATE}
    return tensors, json.loads((folder / _STATE).read_text())
