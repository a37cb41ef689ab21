"""Data versions: pull a pinned revision with DVC, prove its hash, and record where the data came from.

`data.dvc` in git pins the hash of a folder, `.dvc/config` says where its objects are. A team that keeps them in S3
points the same `data.dvc` there:

    dvc remote add --default team s3://BUCKET/PREFIX && dvc remote modify team verify true && dvc push
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import pandas as pd
from tqdm import tqdm

from contrique import s3
from contrique.artifacts import LINEAGE, MANIFEST, PIN
from contrique.data.manifest import as_manifest, read_manifest, write_manifest
from contrique.files import inside, write_aside
from contrique.sources import public_sets
from contrique.sources.dvc_pin import FetchError, dir_hash, list_files, parse_pin, pull
from contrique.sources.folders import Source, import_folder

_FRESH = "fresh-"  # begins a fingerprint that stands for no content


class _GitRefused(FetchError):
    """git ran and failed."""


@dataclass(frozen=True)
class Lineage:
    """Where a picture set came from.

    Attributes:
        source: the data as asked for.
        revision: git commit of the pin, with `-dirty` if the pin differs from it; "" outside git.
        hash: the `.dir` hash that `dvc add` would give the picture set; of a DVC project fetched alone, its pin.
        sources: the `.dir` hash of each source by its name as given; of a DVC project, its pin.
        files: files of the picture set.
        bytes: their size.
        rows: rows of the manifest.
        counts: rows by `split/kind`.
    """

    source: str
    revision: str
    hash: str
    sources: dict[str, str]
    files: int
    bytes: int
    rows: int
    counts: dict[str, int]


def read_lineage(directory: Path) -> Lineage:
    """Read the `lineage.json` that `fetch` left in a picture set."""
    return Lineage(**json.loads((directory / LINEAGE).read_text()))


def fetch(
    out: Path,
    *,
    data: str = "",
    revision: str = "",
    pristine: Sequence[str] = (),
    authentic: Sequence[str] = (),
    expected: str = "",
) -> Lineage:
    """Bring data from wherever they are into one picture set, whole or not at all.

    DVC projects are pulled by DVC into a cache of their own, so that what is proven is the remote, not what an
    earlier pull left behind; a cache that the project shares by `cache.dir` is used. Then every file is hashed again.

    Args:
        out: the picture set to write, with `lineage.json`; an existing one is replaced.
        data: a DVC project (a folder with `data.dvc`, or a git URL), a picture set (`manifest.parquet`), a labelled
            folder (`labels.csv`), a public set as NAME:PATH (`public_sets.SETS`), or any of these below
            `s3://bucket/prefix`. Empty to pretrain only.
        revision: git revision whose `data.dvc` is pulled; empty for the working tree's.
        pristine: folders of undistorted pictures without labels, local or s3://.
        authentic: folders of pictures with distortions of their own, without labels.
        expected: what `fingerprint` said of the same data; empty to take them as they are.
    Returns:
        the lineage, as written to `out/lineage.json`.
    Raises:
        FetchError: nothing to fetch, an unknown revision, an unreachable remote, a missing or a damaged file, or data
            that changed since their fingerprint was taken.
        dataset.DatasetError: a folder that is no picture set and cannot be imported as one.
        public_sets.PublicSetError: a download that is not the public set it is said to be, or not all of it.
        storage.StorageError: an S3 location that cannot be read.
    """
    refuse_credentials(data, *pristine, *authentic)
    if not (data or pristine or authentic):
        raise FetchError("nothing to fetch; give data, or folders of pristine or authentic pictures")
    asked: list[tuple[str, Literal["labelled", "pristine", "authentic"]]] = [(data, "labelled")] if data else []
    asked += [(folder, "pristine") for folder in pristine] + [(folder, "authentic") for folder in authentic]
    with write_aside(out) as aside, tempfile.TemporaryDirectory(prefix=".fetch-", dir=out.parent) as scratch:
        commit, sources = "", {}
        parts: list[tuple[Path, pd.DataFrame]] = []
        for number, (location, role) in enumerate(asked):
            work = Path(scratch) / str(number)
            work.mkdir()
            public, path = public_sets.split_name(location) if role == "labelled" else ("", location)
            if public:
                if revision:
                    raise FetchError(f"{location}: a public set has no revision '{revision}'; leave the revision out")
                folder, pinned = _local(path, work), ""
            elif role == "labelled":
                folder, commit, pinned = _open(location, revision, work)
            else:
                folder, pinned = _local(location, work), ""
            sources[location] = pinned or dir_hash(list_files(folder))
            is_set = role == "labelled" and not public and (folder / MANIFEST).is_file()
            if pinned and is_set and len(asked) == 1:
                folder.replace(aside)  # as pinned, to the byte
                frame = read_manifest(aside)
            else:
                if public:
                    frame = public_sets.read(public, folder)
                elif is_set:
                    frame = read_manifest(folder)
                else:
                    frame = import_folder(Source(folder, role))
                parts.append((folder, frame))
        if parts:
            frame = _merge(parts, aside)
        files = list_files(aside)
        counts = (frame["split"] + "/" + frame["kind"]).value_counts()
        lineage = Lineage(
            source=data,
            revision=commit,
            hash=dir_hash(files),
            sources=sources,
            files=len(files),
            bytes=sum((aside / name).stat().st_size for name in files),
            rows=len(frame),
            counts={str(name): int(counts[name]) for name in sorted(counts.index)},
        )
        (aside / LINEAGE).write_text(json.dumps(asdict(lineage), indent=2) + "\n")
        if expected and not expected.startswith(_FRESH):
            now = fingerprint(data=data, revision=revision, pristine=pristine, authentic=authentic)
            if now != expected:
                raise FetchError(f"{data or pristine or authentic}: changed while they were fetched; run again")
    return lineage


def fingerprint(
    *, data: str = "", revision: str = "", pristine: Sequence[str] = (), authentic: Sequence[str] = ()
) -> str:
    """A hash of the content that `fetch` would bring, without bringing it.

    A DVC project counts by the hash that it pins, an S3 prefix by the names, sizes and ETags of its objects.

    Args:
        data, revision, pristine, authentic: as `fetch`.
    Returns:
        a hash; with a plain folder among the sources, whose content nothing vouches for, a new one each time.
    Raises:
        FetchError: no such folder, an unknown revision, no pin.
        storage.StorageError: an S3 location that cannot be read.
    """
    refuse_credentials(data, *pristine, *authentic)
    contents = [_read_pinned_content(data, revision)] if data else []
    contents += [s3.fingerprint(one) if s3.is_s3(one) else "" for one in (*pristine, *authentic)]
    if not all(contents):
        return _FRESH + uuid.uuid4().hex
    described = json.dumps([data, list(pristine), list(authentic), contents])
    return hashlib.sha256(described.encode()).hexdigest()


def refuse_credentials(*locations: str) -> None:
    """Locations are logged and kept as lineage and parameters, so that what opens them must not stand in them.

    Raises:
        FetchError: a URL with credentials, which the message does not repeat.
    """
    for found in filter(None, (re.match(r"https?://.*@([^/@]*)", location) for location in locations)):
        raise FetchError(
            f"the URL of data on {found[1]} holds credentials, which would be logged; leave them out and give them to "
            f"git by its credential helper (on a cluster, use s3://)"
        )


def _read_pinned_content(location: str, revision: str) -> str:
    """What vouches for the content of labelled data; empty if nothing does."""
    public, path = public_sets.split_name(location)
    if s3.is_s3(path):
        return s3.fingerprint(path)
    if public:
        return ""
    with tempfile.TemporaryDirectory() as work:
        _, text, _ = _find(path, revision, Path(work))
    return parse_pin(text, location).hash if text else ""


def _merge(parts: Sequence[tuple[Path, pd.DataFrame]], out: Path) -> pd.DataFrame:
    """Copy the pictures of several folders below one, and write the manifest of them all."""
    names = [folder.name for folder, _ in parts]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise FetchError(
            f"two sources are called '{twice[0]}'; rename one of the folders, contents are told apart by it"
        )
    frames: list[pd.DataFrame] = []
    copies: dict[str, Path] = {}
    for folder, rows in parts:
        prefix = {"image": "", "shard": ""}
        if len(parts) > 1:
            prefix = {"image": f"images/{folder.name}/", "shard": f"shards/{folder.name}/"}
        frame = rows.copy()
        column = frame["shard"].astype(bool).map({True: "shard", False: "image"})
        for kind in ("image", "shard"):
            stored = frame.loc[column == kind, kind]
            copies |= {prefix[kind] + name: folder / name for name in stored.unique()}
            frame.loc[column == kind, kind] = prefix[kind] + stored
        frames.append(frame)
    for name, source in tqdm(copies.items(), desc="copying", unit="file", disable=None):
        target = out / inside(name, str(source))
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(source, target)
        except FileNotFoundError:
            raise FetchError(f"{source}: in the manifest, but not there; restore the file or remove its row") from None
    merged = as_manifest(pd.concat(frames, ignore_index=True))
    write_manifest(merged, out)
    return merged


def _local(location: str, work: Path) -> Path:
    """The folder that a location names, downloaded if it is in S3, with its proper name."""
    if not s3.is_s3(location):
        folder = Path(location).resolve()
        if not folder.is_dir():
            raise FetchError(f"{location}: no such folder; check the path")
        return folder
    folder = work / PurePosixPath(location.removeprefix("s3://")).name
    s3.download(location, folder)
    return folder


def _open(location: str, revision: str, work: Path) -> tuple[Path, str, str]:
    """The folder of the data, and for a DVC project the commit and the hash that pin it."""
    project, text, commit = _find(location, revision, work)
    if not text:
        return project, "", ""
    return pull(text, project, location, work), commit, parse_pin(text, location).hash


def _find(location: str, revision: str, work: Path) -> tuple[Path, str, str]:
    """The folder of a source, for a DVC project the text of its `data.dvc` and its commit, both else empty."""
    if re.match(r"(https?|ssh|git|file)://|git@", location) or location.endswith(".git"):
        project = work / "clone"
        _git("clone", "--quiet", "--", location, str(project))
        if revision:
            _git("checkout", "--quiet", "--detach", _commit(project, revision, location), cwd=project)
        pin = project / PIN
        text = pin.read_text() if pin.is_file() else ""
        commit = _commit(project, "HEAD", location)
    else:
        project = _local(location, work)
        pin = project / PIN
        if revision:
            commit = _commit(project, revision, location)
            text = _git("show", f"{commit}:./{PIN}", cwd=project)
        else:
            text, commit = (pin.read_text(), _describe(project)) if pin.is_file() else ("", "")
        return project, text, commit
    if not text:
        raise FetchError(f"{location}: no {PIN} in it; run `dvc add data` there and commit {PIN}")
    return project, text, commit


def _git(*arguments: str, cwd: Path | None = None) -> str:
    environment = os.environ | {"GIT_TERMINAL_PROMPT": "0"}
    try:
        done = subprocess.run(["git", *arguments], cwd=cwd, capture_output=True, text=True, env=environment, check=True)
    except FileNotFoundError:
        raise FetchError("git is not installed, but a revision or a git URL was asked for; install git") from None
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or ["no reason given"]
        reason = next((line for line in lines if line.startswith("fatal: ")), lines[-1])
        raise _GitRefused(f"git {arguments[0]} failed: {reason}; check the address and the revision") from error
    return done.stdout


def _commit(project: Path, revision: str, location: str) -> str:
    """The commit that a revision names: a commit, a tag, a branch, or a branch of the origin."""
    for name in (revision, f"origin/{revision}"):
        try:
            return _git(
                "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}", cwd=project
            ).strip()
        except _GitRefused as error:
            reason = error
    raise FetchError(
        f"{location}: no git revision '{revision}' there; check `git log` and `git fetch --tags`"
    ) from reason


def _describe(project: Path) -> str:
    """The commit of a project's working tree, `-dirty` if the pin differs from it; empty where git knows none."""
    if shutil.which("git") is None:
        return ""
    try:
        commit = _git("rev-parse", "--verify", "--quiet", "HEAD", cwd=project).strip()
    except _GitRefused:  # not a work tree, or one without a commit
        return ""
    return commit + ("-dirty" if _git("status", "--porcelain", "--", PIN, cwd=project) else "")
