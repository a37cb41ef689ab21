"""Distorted pictures of pristine photographs, in tar shards, the same bytes whoever makes them and in whatever order.

A shard holds a fixed run of photographs, each as it is and with every distortion at every level. It is written aside,
renamed, and then vouched for by a JSON sidecar, so that a run that was killed goes on where it stopped. Pictures are
stored as QOI: docs/distortions.md has the measurement behind that.
"""

import hashlib
import importlib.metadata
import io
import itertools
import json
import multiprocessing
import os
import shutil
import tarfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from contrique import distortions, images
from contrique.artifacts import MANIFEST
from contrique.config import SynthesisConfig
from contrique.data.manifest import as_manifest, read_manifest, read_picture_bytes, rows_of
from contrique.errors import ContriqueError
from contrique.files import room, write_aside
from contrique.interrupts import shield_children
from contrique.metadata import Facts

SHARDS = "shards"
FORMAT = 1  # of the shards; a change makes finished ones stale
LIBRARIES = ("imagecodecs", "numpy", "opencv-python-headless", "pillow", "scikit-image", "simplejpeg")
ROW_GROUP = 100_000  # manifest rows held in memory at once


class SynthesisError(ContriqueError):
    """Photographs that cannot be distorted."""


class Version(NamedTuple):
    """One picture made of a photograph: a distortion and its level, or ("", 0) for the photograph itself."""

    distortion: str
    level: int


@dataclass(frozen=True)
class SynthesisSummary(Facts):
    """What `synthesize` made.

    Attributes:
        photographs: pristine photographs.
        pictures: pictures in the set, the photographs themselves included.
        weak_labels: pictures with a full-reference score.
        shards: tar files.
        resumed: shards that an earlier run had finished.
        bytes: of all shards.
    """

    photographs: int
    pictures: int
    weak_labels: int
    shards: int
    resumed: int
    bytes: int


@dataclass(frozen=True)
class _Job:
    """A shard to make."""

    source: Path
    shard: Path
    rows: tuple[Any, ...]
    seed: int
    config: SynthesisConfig
    fingerprint: str


def synthesize(
    source: Path,
    out: Path,
    *,
    seed: int,
    config: SynthesisConfig,
    part: tuple[int, int] = (0, 1),
    may_be_empty: bool = False,
) -> SynthesisSummary:
    """Distort every pristine photograph of a picture set.

    Writes `out/shards/*.tar`, a sidecar beside each, and `out/manifest.parquet`. Each row keeps the photograph's split,
    reference, source and licence; `weak_label` is set for the versions that `draw_weakly_labelled` picks. Shards that
    an earlier run finished from the same photographs, seed, configuration and library versions are kept.

    Args:
        source: a picture set; only its rows of kind `pristine` are used.
        out: folder of the new picture set.
        seed: of every random number.
        config: `workers` changes the time that it takes and nothing else.
        part: (k, n) makes every n-th shard from the k-th on, for `join_parts` to join with the others.
        may_be_empty: write an empty set where there is no pristine photograph, instead of an error.
    Raises:
        SynthesisError: no pristine photograph, one that is too small or has changed, a worker that died.
        storage.DiskFull: no room for the set; finished shards are kept.
        images.BadImage: a photograph that cannot be decoded.
        distortions.DistortionError: an unknown distortion or level in `config`.
    """
    versions(config)
    manifest = read_manifest(source)
    rows = rows_of(manifest[manifest["kind"] == "pristine"])
    if not rows and not may_be_empty:
        raise SynthesisError(f"{source}: no pristine photographs in it; import some with --pristine")
    jobs = list(_jobs(source, out, rows, seed, config))[part[0] :: part[1]]
    photographs = sum(len(job.rows) for job in jobs)
    pending = [job for job in jobs if _read_sidecar(job) is None]
    with room(out):
        _tidy(out, jobs, stale=bool(pending))
        _run(pending, config, len(jobs) - len(pending), len(jobs))
        return _collect(out, jobs, SynthesisSummary(photographs, 0, 0, len(jobs), len(jobs) - len(pending), 0))


def join_parts(
    source: Path, parts: Sequence[Path], out: Path, *, seed: int, config: SynthesisConfig
) -> SynthesisSummary:
    """Join what several calls of `synthesize` made of one picture set; the same bytes as one call for everything.

    Shards that no part has are made.

    Args:
        source: the picture set.
        parts: folders of the parts.
        out, seed, config: as `synthesize`, with the seed and the configuration of the parts.
    Raises:
        as `synthesize`, but for no pristine photograph, which makes an empty set.
    """
    shards = out / SHARDS
    for path in (path for part in parts for path in sorted((part / SHARDS).glob("*"))):
        with write_aside(shards / path.name) as aside:
            try:
                aside.hardlink_to(path)
            except OSError:  # another file system
                shutil.copyfile(path, aside)
    return synthesize(source, out, seed=seed, config=config, may_be_empty=True)


def versions(config: SynthesisConfig) -> list[Version]:
    """What is made of each photograph, in order: itself, then each distortion at each level.

    Raises:
        distortions.DistortionError: an unknown distortion or level.
    """
    selection = config.distortions or distortions.NAMES
    for name, level in itertools.product(selection, config.levels):
        distortions.parameter(name, level)
    names = [name for name in distortions.NAMES if name in selection]
    return [Version("", 0), *itertools.starmap(Version, itertools.product(names, sorted(set(config.levels))))]


def draw_weakly_labelled(content: str, seed: int, config: SynthesisConfig) -> set[Version]:
    """The versions of a photograph that get a full-reference score: itself, then as many of each distortion.

    Rounds over all distortions in a random order, each time at another of its levels, until
    `config.weak_labels_per_photograph` are picked.

    Args:
        content: hash of the photograph's bytes.
        seed: of the set.
    """
    rng = distortions.generator(content, "weak_labels", 0, seed)
    pristine, *distorted = versions(config)
    groups = [list(group) for _, group in itertools.groupby(distorted, lambda version: version.distortion)]
    shuffled = [[groups[k][i] for i in rng.permutation(len(groups[k]))] for k in rng.permutation(len(groups))]
    ranked = [pristine, *itertools.chain.from_iterable(zip(*shuffled, strict=True))]
    return set(ranked[: max(0, config.weak_labels_per_photograph)])


def _jobs(source: Path, out: Path, rows: list[Any], seed: int, config: SynthesisConfig) -> Iterator[_Job]:
    plain = asdict(replace(config, workers=0))
    libraries = {name: importlib.metadata.version(name) for name in LIBRARIES}
    size = max(1, config.photographs_per_shard)
    for number, start in enumerate(range(0, len(rows), size)):
        part = tuple(rows[start : start + size])
        inputs = [
            (row.image, row.sha256, row.dataset, row.reference, row.split, row.source, row.licence) for row in part
        ]
        described = json.dumps([FORMAT, inputs, seed, plain, libraries], sort_keys=True)
        fingerprint = hashlib.sha256(described.encode()).hexdigest()
        yield _Job(source, out / SHARDS / f"{number:06d}.tar", part, seed, config, fingerprint)


def _read_sidecar(job: _Job) -> list[dict[str, Any]] | None:
    """The rows of a shard that is whole and made from the same inputs, or None."""
    try:
        sidecar = json.loads(job.shard.with_suffix(".json").read_text())
        size = job.shard.stat().st_size
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    if sidecar["fingerprint"] != job.fingerprint or sidecar["bytes"] != size:
        return None
    rows: list[dict[str, Any]] = sidecar["rows"]
    return rows


def _tidy(out: Path, jobs: list[_Job], *, stale: bool) -> None:
    """Remove what a killed run left half-written and what belongs to another set."""
    shards = out / SHARDS
    shards.mkdir(parents=True, exist_ok=True)
    expected = {path for job in jobs for path in (job.shard, job.shard.with_suffix(".json"))}
    for path in shards.iterdir():
        if path not in expected and path.suffix in (".tar", ".json", ".tmp"):
            path.unlink()
    if stale:  # a manifest must never describe shards that are being replaced
        (out / MANIFEST).unlink(missing_ok=True)


def _run(jobs: list[_Job], config: SynthesisConfig, done: int, total: int) -> None:
    from tqdm import tqdm

    workers = min(config.workers or len(os.sched_getaffinity(0)), len(jobs))
    torch_too = config.weak_labels_per_photograph > 0  # its import takes seconds
    with tqdm(total=total, initial=done, desc="synthesize", unit="shard", disable=None) as bar:
        if workers <= 1:
            with _one_thread(torch_too):
                for job in jobs:
                    _make(job)
                    bar.update()
            return
        waiting = iter(jobs)
        running: set[Future[None]] = set()
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(torch_too,)) as pool:
            try:
                with shield_children():  # which the pool starts as it takes jobs
                    for job in itertools.islice(waiting, 2 * workers):
                        running.add(pool.submit(_make, job))
                while running:
                    finished, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in finished:
                        future.result()
                        bar.update()
                    running |= {pool.submit(_make, job) for job in itertools.islice(waiting, len(finished))}
            except BrokenProcessPool as error:
                raise SynthesisError(
                    "a worker died (out of memory?); run again with fewer workers: finished shards are kept"
                ) from error
            finally:
                for future in running:  # not shutdown(cancel_futures=True), which can hang in Python 3.11
                    future.cancel()


def _start_worker(torch_too: bool) -> None:
    def leave_with_parent() -> None:  # a worker whose parent was killed would wait for work for ever
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()
    _set_threads(1, 1 if torch_too else None)


def _set_threads(for_cv2: int, for_torch: int | None) -> None:
    import cv2

    cv2.setNumThreads(for_cv2)
    if for_torch is not None:
        import torch

        torch.set_num_threads(for_torch)


@contextmanager
def _one_thread(torch_too: bool) -> Iterator[None]:
    import cv2

    before = cv2.getNumThreads()
    torch_before = None
    if torch_too:
        import torch

        torch_before = torch.get_num_threads()
    _set_threads(1, 1 if torch_too else None)
    try:
        yield
    finally:
        _set_threads(before, torch_before)


def _make(job: _Job) -> None:
    """Write a shard and then its sidecar."""
    rows: list[dict[str, Any]] = []
    with write_aside(job.shard) as aside, tarfile.open(aside, "w", format=tarfile.GNU_FORMAT) as tar:
        for row in job.rows:
            rows += (record | {"shard": f"{SHARDS}/{job.shard.name}"} for record in _distort(job, row, tar))
    sidecar = {"fingerprint": job.fingerprint, "bytes": job.shard.stat().st_size, "rows": rows}
    with write_aside(job.shard.with_suffix(".json")) as aside:
        aside.write_text(json.dumps(sidecar))


def _distort(job: _Job, row: Any, tar: tarfile.TarFile) -> Iterator[dict[str, Any]]:
    data = read_picture_bytes(job.source, row)
    content = images.content_hash(data)
    if row.sha256 and content != row.sha256:
        raise SynthesisError(f"{row.image}: changed since its manifest was made; import the folder again")
    reference = images.decode(data, row.image).pixels
    if job.config.max_side:
        reference = images.fit_within(reference, job.config.max_side)
    pristine = images.as_float(reference)
    labelled = draw_weakly_labelled(content, job.seed, job.config)
    for version in versions(job.config):
        name, level = version
        if name:
            try:
                distorted = distortions.distort(
                    pristine, name, level, distortions.generator(content, name, level, job.seed)
                )
            except distortions.DistortionError as error:
                raise SynthesisError(f"{row.image}: {error}; remove the photograph from the set") from error
            pixels = images.as_uint8(distorted)
        else:
            pixels = reference
        encoded = images.encode_qoi(pixels)
        member = f"{row.image}/{name}-{level}.qoi" if name else f"{row.image}/pristine.qoi"
        yield {
            "image": member,
            "sha256": images.content_hash(encoded),
            "dataset": row.dataset,
            "reference": row.reference,
            "kind": "distorted" if name else "pristine",
            "distortion": name,
            "level": level,
            "weak_label": _weak_label(pixels, reference) if version in labelled else None,
            "split": row.split,
            "width": pixels.shape[1],
            "height": pixels.shape[0],
            "channels": 3,
            "phash": "" if name else row.phash,
            "source": row.source,
            "licence": row.licence,
            "offset": _append(tar, member, encoded),
            "size": len(encoded),
        }


def _weak_label(distorted: images.Picture, reference: images.Picture) -> float:
    from contrique.data.weak_labels import weak_label

    return weak_label(distorted, reference)


def _append(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Add a file with nothing of this machine or moment in its header; the place of its first byte."""
    info = tarfile.TarInfo(name)  # mtime, uid and gid are 0
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
    return int(tar.offset) - -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _collect(out: Path, jobs: list[_Job], summary: SynthesisSummary) -> SynthesisSummary:
    """Write the manifest from the sidecars, a row group at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pictures = weak = size = 0
    with write_aside(out / MANIFEST) as aside:
        writer: pq.ParquetWriter | None = None
        try:
            for rows in _groups(jobs):
                frame = as_manifest(rows)
                table = pa.Table.from_pandas(frame, preserve_index=False)
                writer = writer or pq.ParquetWriter(aside, table.schema, compression="zstd")
                writer.write_table(table)
                pictures += len(frame)
                weak += int(frame["weak_label"].notna().sum())
        finally:
            if writer is not None:
                writer.close()
    size = sum(job.shard.stat().st_size for job in jobs)
    return replace(summary, pictures=pictures, weak_labels=weak, bytes=size)


def _groups(jobs: list[_Job]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    for job in jobs:
        rows = _read_sidecar(job)
        if rows is None:
            raise SynthesisError(f"{job.shard}: vanished while the set was made; is another run writing there?")
        group += rows
        if len(group) >= ROW_GROUP:
            yield group
            group = []
    if group or not jobs:  # a part may be empty where there are more parts than shards
        yield group
