"""The last checkpoints of a run, in a folder or under an s3:// prefix: each is whole and proven, or it is refused.

A checkpoint is a folder `step-N` with safetensors files, `state.json` and, written last, `SHA256SUMS`, which
`sha256sum --check` reads too.
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


_KEPT = 2
_STATE, _SUMS = "state.json", "SHA256SUMS"


class DamagedCheckpoint(ContriqueError):
    """A checkpoint that is not what was written; the message names it and what is wrong."""


class Checkpoints:
    """Save and load checkpoints by step.

    Under an s3:// prefix they are uploaded in the background: a step waits for the copy to local disk alone. If the
    one before is still on its way, or the upload fails, that is told on stderr and training goes on; the next
    checkpoint tries again.

    Args:
        location: a folder, or `s3://bucket/prefix`.
    """

    def __init__(self, location: str) -> None:
        self.location = location.rstrip("/")
        self._uploads = ThreadPoolExecutor(1)
        self._upload: Future[None] | None = None

    def name(self, step: int) -> str:
        """The full name of a checkpoint."""
        return f"{self.location}/step-{step:08d}"

    def save(
        self, step: int, tensors: "Mapping[str, Mapping[str, Tensor]]", state: dict[str, Any], *, last: bool = False
    ) -> None:
        """Write one checkpoint and remove all older ones but the one before it, and what an interrupted one left.

        Args:
            step: its name.
            tensors: file stem to tensors by name.
            state: JSON values.
            last: return when it is stored, and not before; it is never left out.
        Raises:
            StorageError: `last`, and it could not be uploaded.
            DiskFull: no room for it; the one before stays.
        """
        if not s3.is_s3(self.location):
            with write_aside(Path(self.name(step))) as aside:
                _write(aside, tensors, state)
            left = Path(self.location).glob(".step-*")  # by a process that was killed as it wrote
            for outdated in [*left, *(Path(self.name(old)) for old in self._outdated(step))]:
                shutil.rmtree(outdated)
            return
        if self._upload and not (self._upload.done() or last):
            print(f"{self.name(step)}: left out, the one before is still being uploaded", file=sys.stderr)
            return
        self._settle()
        with room(Path(tempfile.gettempdir())):
            passing = Path(tempfile.mkdtemp(prefix="contrique-checkpoint-"))
        folder = passing / "checkpoint"
        try:
            with room(folder):
                _write(folder, tensors, state)
        except BaseException:
            shutil.rmtree(passing)
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
        """Of the checkpoints up to this one all but the newest; later ones are damaged, or it would not be made."""
        return [old for old in self.steps() if old <= step][_KEPT:]

    def steps(self) -> list[int]:
        """The steps that there are checkpoints of, whole or not, newest first.

        Raises:
            StorageError: the S3 location cannot be listed.
        """
        if s3.is_s3(self.location):
            names = s3.list_names(self.location)
        else:
            names = [path.name for path in Path(self.location).glob("step-*")]
        return sorted((int(found[1]) for name in names if (found := re.fullmatch(r"step-(\d+)", name))), reverse=True)

    def load(self, step: int) -> "tuple[dict[str, dict[str, Tensor]], dict[str, Any]]":
        """Tensors and state of a checkpoint, as given to `save`.

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
        with tempfile.TemporaryDirectory(prefix="contrique-checkpoint-") as passing:
            target = Path(passing) / "checkpoint"
            try:
                s3.download(self.name(step), target, progress=False)
            except s3.DamagedObject as error:
                raise DamagedCheckpoint(f"checkpoint {self.name(step)} is damaged ({error})") from error
            yield target


def _write(folder: Path, tensors: "Mapping[str, Mapping[str, Tensor]]", state: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    folder.mkdir()
    for stem, named in tensors.items():
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}
        save_file(whole, folder / f"{stem}.safetensors")
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
