"""Data versions: pull a pinned revision with DVC, prove its hash, and record where the data came from.

`data.dvc` in git pins the hash of a folder, `.dvc/config` says where its objects are. A team that keeps them in S3
points the same `data.dvc` there:

    dvc remote add --default team s3://BUCKET/PREFIX && dvc remote modify team verify true && dvc push
"""

import hashlib
import json
import re
import shutil
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
from contrique.metadata import Facts
from contrique.sources import git, public_sets
from contrique.sources.dvc_pin import (
    MAX_PIN,
    Pin,
    decode_text,
    dir_hash,
    list_files,
    parse_pin,
    pull,
    read_pin_text,
)
from contrique.sources.dvc_remote import FetchError
from contrique.sources.folders import Source, import_folder

_FRESH = "fresh-"  # begins a fingerprint that stands for no content


@dataclass(frozen=True)
class Lineage(Facts):
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
        licences: rows by licence, as the manifest states it.
    """

    source: str
    revision: str
    hash: str
    sources: dict[str, str]
    files: int
    bytes: int
    rows: int
    counts: dict[str, int]
    licences: dict[str, int]


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
    requests = [_Request(data, "labelled", revision)] if data else []
    requests += [_Request(folder, "pristine") for folder in pristine]
    requests += [_Request(folder, "authentic") for folder in authentic]
    if not requests:
        raise FetchError("nothing to fetch; give data, or folders of pristine or authentic pictures")
    with write_aside(out) as aside, tempfile.TemporaryDirectory(prefix=".fetch-", dir=out.parent) as scratch:
        parts = [_bring(request, Path(scratch) / str(number)) for number, request in enumerate(requests)]
        whole = parts[0] if len(parts) == 1 and parts[0].pinned else None
        if whole and (whole.folder / MANIFEST).is_file():
            whole.folder.replace(aside)  # as pinned, to the byte
            frame = whole.rows
        else:
            frame = _merge(parts, aside)
        lineage = _describe(aside, frame, data, parts)
        (aside / LINEAGE).write_text(json.dumps(asdict(lineage), indent=2) + "\n")
        if expected and not expected.startswith(_FRESH):
            now = fingerprint(data=data, revision=revision, pristine=pristine, authentic=authentic)
            if now != expected:
                raise FetchError(f"{data or pristine or authentic}: changed while they were fetched; run again")
    return lineage


@dataclass(frozen=True)
class _Request:
    """A source as it was asked for."""

    location: str
    role: Literal["labelled", "pristine", "authentic"]
    revision: str = ""


@dataclass(frozen=True)
class _Part:
    """A source, brought here.

    Attributes:
        location: as asked for.
        folder: of its pictures.
        name: of the set.
        rows: its manifest, relative to the folder.
        hash: what vouches for its content.
        pinned: whether a pin does.
        commit: of the pin.
    """

    location: str
    folder: Path
    name: str
    rows: pd.DataFrame
    hash: str
    pinned: bool = False
    commit: str = ""


def _bring(request: _Request, work: Path) -> _Part:
    """Download, unpack or pull a source, and read its manifest or make one."""
    work.mkdir()
    location = request.location
    public, path = public_sets.split_name(location) if request.role == "labelled" else ("", location)
    if public:
        if request.revision:
            raise FetchError(f"{location}: a public set has no revision '{request.revision}'; leave the revision out")
        folder = _local(path, work)
        return _Part(location, folder, folder.name, public_sets.read(public, folder), dir_hash(list_files(folder)))
    if request.role != "labelled":
        folder = _local(path, work)
        rows = import_folder(Source(folder, request.role))
        return _Part(location, folder, folder.name, rows, dir_hash(list_files(folder)))
    project = _find(location, request.revision, work)
    folder, pin = project.folder, project.pin
    if pin:
        folder = work / "pulled" / PurePosixPath(pin.path).name
        pull(pin, project.folder, location, folder, foreign=project.foreign)
    is_set = (folder / MANIFEST).exists()
    rows = read_manifest(folder) if is_set else import_folder(Source(folder, "labelled"))
    content = pin.hash if pin else dir_hash(list_files(folder))
    return _Part(location, folder, folder.name, rows, content, bool(pin), project.commit)


def _describe(folder: Path, rows: pd.DataFrame, data: str, parts: Sequence[_Part]) -> Lineage:
    files = list_files(folder)
    counts = (rows["split"] + "/" + rows["kind"]).value_counts()
    licences = rows["licence"].replace("", "not stated").value_counts()
    return Lineage(
        source=data,
        revision=next((part.commit for part in parts if part.commit), ""),
        hash=dir_hash(files),
        sources={part.location: part.hash for part in parts},
        files=len(files),
        bytes=sum((folder / name).stat().st_size for name in files),
        rows=len(rows),
        counts={str(name): int(counts[name]) for name in sorted(counts.index)},
        licences={str(name): int(licences[name]) for name in sorted(licences.index)},
    )


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
    contents += [s3.fingerprint(folder) if s3.is_s3(folder) else "" for folder in (*pristine, *authentic)]
    if not all(contents):
        return _FRESH + uuid.uuid4().hex
    described = json.dumps([data, list(pristine), list(authentic), contents])
    return hashlib.sha256(described.encode()).hexdigest()


def refuse_credentials(*locations: str) -> None:
    """Locations are logged and kept as lineage and parameters, so that what opens them must not stand in them.

    Of `ssh://USER@host` and `USER@host:path` the user is no secret, and git cannot do without.

    Raises:
        FetchError: a URL with credentials, which the message does not repeat.
    """
    for location in locations:
        if _holds_credentials(location):
            host = re.split(r"[/?#:]", location.rpartition("@")[2].rpartition("://")[2])[0]
            raise FetchError(
                f"the URL of data on {host} holds credentials or a query, which would be logged; leave them out and "
                "give them to git by its credential helper (on a cluster, use s3://)"
            )


_SECRET_QUERY = re.compile(r"(?i)\?.*(token|secret|key|password|signature|credential)[^=&]*=")


def _holds_credentials(location: str) -> bool:
    url = re.match(r"(?:\w+:)?([A-Za-z][A-Za-z0-9+.-]*)://(.*)", location, re.DOTALL)
    if not url:  # user@host:path, as git takes it
        return bool(re.match(r"[^/:@]+:[^/@]+@[^/:@]+:", location))
    scheme, rest = url[1].lower(), url[2]
    userinfo, at, host = re.split(r"[/?#]", rest)[0].rpartition("@")
    if _SECRET_QUERY.search(rest) or not re.fullmatch(r"[^:]*(:\d*)?|\[[0-9a-fA-F:]+\](:\d*)?", host):
        return True
    if scheme in ("s3", "file"):  # names there may hold @ and ?
        return bool(at)
    if scheme == "ssh":
        return ":" in userinfo or "?" in rest
    return "@" in rest or "?" in rest


def _read_pinned_content(location: str, revision: str) -> str:
    """What vouches for the content of labelled data; empty if nothing does."""
    public, path = public_sets.split_name(location)
    if s3.is_s3(path):
        return s3.fingerprint(path)
    if public:
        return ""
    with tempfile.TemporaryDirectory() as work:
        pin = _find(path, revision, Path(work)).pin
    return pin.hash if pin else ""


def _merge(parts: Sequence[_Part], out: Path) -> pd.DataFrame:
    """Copy the pictures of several folders below one, and write the manifest of them all."""
    names = [part.name for part in parts]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise FetchError(
            f"two sources are called '{twice[0]}'; rename one of the folders, contents are told apart by it"
        )
    frames: list[pd.DataFrame] = []
    copies: dict[str, Path] = {}
    for part in parts:
        prefix = {"image": "", "shard": ""}
        if len(parts) > 1:
            prefix = {"image": f"images/{part.name}/", "shard": f"shards/{part.name}/"}
        frame = part.rows.copy()
        column = frame["shard"].astype(bool).map({True: "shard", False: "image"})
        for kind in ("image", "shard"):
            stored = frame.loc[column == kind, kind]
            copies |= {prefix[kind] + name: part.folder / name for name in stored.unique()}
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
            name, colon, _ = location.partition(":")
            sets = f", or name one of {', '.join(public_sets.SETS)}" if colon and re.fullmatch(r"[\w-]+", name) else ""
            raise FetchError(f"{location}: no such folder; check the path{sets}")
        return folder
    folder = work / PurePosixPath(location.removeprefix("s3://")).name
    s3.download(location, folder)
    return folder


@dataclass(frozen=True)
class _Project:
    """Where labelled data are asked for.

    Attributes:
        folder: of the data themselves, or of the DVC project that pins them.
        pin: of a DVC project; None if the folder holds the data.
        commit: git commit of the pin, with `-dirty` if the pin differs from it; empty outside git.
        foreign: it is a clone.
    """

    folder: Path
    pin: Pin | None
    commit: str = ""
    foreign: bool = False


def _find(location: str, revision: str, work: Path) -> _Project:
    if re.match(r"(https?|ssh|git|file)://|[^/@:]+@[^/:]+:", location) or location.endswith(".git"):
        return _clone(location, revision, work)
    folder = _local(location, work)
    text = read_pin_text(folder)
    if not text and not revision:
        return _Project(folder, None)
    with git.open_work_tree(folder) as tree:
        if tree is None:
            if revision:
                raise FetchError(f"{location}: no git revision '{revision}' there, for it is not in git; leave it out")
            return _Project(folder, parse_pin(text, location))
        repository, prefix = tree
        if revision:
            commit = _find_commit(repository, revision, location)
            return _Project(folder, parse_pin(_read(repository, commit, prefix + PIN, location), location), commit)
        try:
            commit = repository.find_commit("HEAD")
            committed = repository.read(commit, prefix + PIN, MAX_PIN)
        except git.GitError:  # without a commit, or one of another format
            return _Project(folder, parse_pin(text, location))
        same = committed is not None and committed.splitlines() == text.encode().splitlines()
        return _Project(folder, parse_pin(text, location), commit if same else f"{commit}-dirty")


def _clone(location: str, revision: str, work: Path) -> _Project:
    """What DVC needs of a clone: the pin, the configuration, and the objects of a remote inside the repository."""
    repository = git.clone(location, work / "clone")
    commit = _find_commit(repository, revision or "HEAD", location)
    pin = parse_pin(_read(repository, commit, PIN, location), location)
    folder = work / "project"
    folder.mkdir()
    repository.extract(commit, lambda path: path == ".dvc/config" or "files/md5/" in path, folder)
    return _Project(folder, pin, commit, foreign=True)


def _read(repository: git.Repository, commit: str, path: str, location: str) -> str:
    content = repository.read(commit, path, MAX_PIN)
    if content is None:
        raise FetchError(f"{location}: no {PIN} in it; run `dvc add data` there and commit {PIN}")
    return decode_text(content, f"{location}/{PIN}")


def _find_commit(repository: git.Repository, revision: str, location: str) -> str:
    try:
        return repository.find_commit(revision)
    except git.GitError as error:
        message = f"{location}: no git revision '{revision}' there; check `git log` and `git fetch --tags`"
        raise FetchError(message) from error
