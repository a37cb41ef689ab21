"""What `data.dvc` pins: parsed, fetched from a DVC remote, proven by its hashes, or pushed there.

A pin, its list of files and the objects may be a stranger's. So the list is proven by its MD5 before it is believed,
every name goes through `files.inside`, and an object becomes a file only here, in a folder of this program's own.
"""

import hashlib
import json
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from tqdm import tqdm

from contrique.artifacts import PIN
from contrique.files import inside, read_regular
from contrique.sources.dvc_remote import FetchError, Remote, open_remote

MAX_PIN = 2**20  # bytes of data.dvc
_MAX_LIST = 2**30  # bytes of a list of files: ten million names
_DIRECTORY_HASH = re.compile(r"[0-9a-f]{32}\.dir")
_FILE_HASH = re.compile(r"[0-9a-f]{32}")
_TRANSFERS = 16
# Fields that change nothing here: what they describe is checked, done otherwise, or for people.
_HARMLESS = {"outs", "md5", "desc", "meta", "labels", "type", "frozen", "wdir"}
_HARMLESS_OF_OUT = {"md5", "size", "nfiles", "hash", "path", "remote", "desc", "meta", "labels", "type", "persist"}
_REMEDIES = {
    "deps": "`dvc import` made it, and its data lie in another project; give that project as data",
    "files": "a cloud-versioned remote keeps its files elsewhere; `dvc push` to a plain remote",
    "cache": "DVC keeps no copy of such data; give their folder as data",
    "push": "such data are in no remote; give their folder as data",
    "cmd": "a stage makes these data; pin its result with `dvc add data`",
}


@dataclass(frozen=True)
class Pin:
    """One folder, pinned.

    Attributes:
        hash: MD5 of the list of its files, with `.dir` at the end.
        path: of the folder.
        remote: the remote that holds it; empty for the project's default.
    """

    hash: str
    path: str
    remote: str = ""


def parse_pin(text: str, location: str) -> Pin:
    """The pin that a `data.dvc` holds.

    Args:
        text: of the file.
        location: the project, for messages.
    Raises:
        FetchError: it pins something else than one folder by MD5, or has a field that is not supported.
    """
    where = f"{location}/{PIN}"
    try:
        fields = yaml.safe_load(text)
        (out,) = fields["outs"]
        unsupported = [*(fields.keys() - _HARMLESS), *(out.keys() - _HARMLESS_OF_OUT)]
        pin = Pin(out["md5"], out["path"], out.get("remote", ""))
        if not all(isinstance(value, str) for value in (*unsupported, *vars(pin).values())):
            raise ValueError("a field that should be text is not")
    except (yaml.YAMLError, TypeError, KeyError, ValueError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise FetchError(f"{where}: not a pin of one folder ({reason}); make it with `dvc add data`") from error
    for field in sorted(unsupported):
        remedy = _REMEDIES.get(field, "make the pin with `dvc add data`")
        raise FetchError(f"{where}: the field '{field[:40]}' is not supported; {remedy}")
    if out.get("hash") != "md5" or not _DIRECTORY_HASH.fullmatch(pin.hash):
        raise FetchError(f"{where}: not a pin of one folder (it pins no folder by md5); make it with `dvc add data`")
    inside(pin.path, where)
    return pin


def read_pin_text(project: Path) -> str:
    """The text of a project's `data.dvc`; empty if it has none.

    Raises:
        StorageError: it is not a file, or not a small one of UTF-8 text.
    """
    path = project / PIN
    if not path.exists():
        return ""
    return decode_text(read_regular(path, MAX_PIN), str(path))


def decode_text(data: bytes, name: str) -> str:
    """UTF-8 text of a file.

    Raises:
        FetchError: it is not UTF-8.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise FetchError(f"{name}: not UTF-8 text; make it with `dvc add data`") from error


def read_pin(project: Path) -> str:
    """The `.dir` hash that a project's `data.dvc` pins.

    Raises:
        FetchError: there is no `data.dvc`, or it pins something else than one folder.
    """
    if not (text := read_pin_text(project)):
        raise FetchError(f"{project / PIN}: not found; make it with `dvc add data`")
    return parse_pin(text, str(project)).hash


def parse_list(content: bytes, pin: Pin, location: str) -> dict[str, str]:
    """The files that a pin's list names, and the MD5 of each.

    Args:
        content: the list's bytes.
        pin: it.
        location: for messages.
    Returns:
        MD5 by relative path.
    Raises:
        FetchError: these are not the bytes that the pin names, or no list of files.
        StorageError: a name leads out of the folder.
    """
    if _md5(content) + ".dir" != pin.hash:
        raise _DamagedList
    where = f"{location}: the list of files {pin.hash}"
    try:
        entries = [(entry["relpath"], entry["md5"]) for entry in json.loads(content)]
        if not all(isinstance(name, str) and _FILE_HASH.fullmatch(md5) for name, md5 in entries):
            raise ValueError("a name or a hash is none")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise FetchError(f"{where} cannot be read ({str(error)[:200]}); pin the data with `dvc add data`") from error
    files: dict[str, str] = {}
    for name, md5 in entries:
        path = inside(name, where).as_posix()
        if path in files:
            raise FetchError(f"{where} names {path!r} twice; pin the data with `dvc add data`")
        files[path] = md5
    for path in files:
        if parent_file := next((parent for parent in map(str, PurePosixPath(path).parents) if parent in files), ""):
            raise FetchError(f"{where} has {parent_file!r} as a file and as a folder; pin the data with `dvc add data`")
    return files


class _DamagedList(FetchError):
    """Bytes that are not the list of files that a pin names."""


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def pull(pin: Pin, project: Path, location: str, folder: Path, *, foreign: bool = False) -> None:
    """Fetch what `data.dvc` pins, and prove every file.

    Args:
        pin: what to fetch.
        project: folder at or below one with `.dvc/config`, which names the remotes.
        location: the project as the user named it, for messages.
        folder: to make; its files are those of the pin and no others.
        foreign: the project is a clone; of its configuration little is obeyed (`dvc_remote.open_remote`).
    Raises:
        FetchError: an unreachable remote, a missing or a damaged object, or a pin that cannot be believed.
        StorageError: a name that leads out of the folder.
    """
    remote = open_remote(project, pin.remote, location, foreign=foreign)
    what = f"{location}: cannot pull {PIN} from {remote}"
    with remote.translate_errors(what):
        files = _read_list(remote, pin, location, what)
        names: dict[str, list[str]] = defaultdict(list)
        for name, md5 in files.items():
            names[md5].append(name)
        folder.mkdir(parents=True)
        with ThreadPoolExecutor(_TRANSFERS) as pool:
            try:
                copies = pool.map(lambda md5: _fetch(remote, md5, [folder / name for name in names[md5]]), names)
                bar = tqdm(zip(names, copies, strict=True), "fetching", len(names), unit="file", disable=None)
                faults = {md5: fault for md5, fault in bar if fault}
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    for fault in ("absent", "cached", "damaged"):
        objects = [md5 for md5 in names if faults.get(md5) == fault]
        if objects:
            examples = _name_files(PurePosixPath(pin.path).name, sorted(names[md5][0] for md5 in objects))
            raise FetchError(f"{what}: {examples} {_describe_fault(fault, objects, remote)}")


def _describe_fault(fault: str, objects: Sequence[str], remote: Remote) -> str:
    examples = ", ".join(objects[:5])
    if fault == "absent":
        return "not there; run `dvc push` from a good copy"
    if fault == "cached":
        return f"differ from {PIN}; delete {examples} from {remote.cache}"
    return f"damaged; delete {examples} there and `dvc push` a good copy"


def _read_list(remote: Remote, pin: Pin, location: str, what: str) -> dict[str, str]:
    if not remote.holds(pin.hash):  # where no server answers, to read takes half a minute to say so
        remedy = "run `dvc push` where the data are, or correct the remote's URL"
        raise FetchError(f"{what}: it does not hold {pin.hash}; {remedy}")
    try:
        return parse_list(remote.read(pin.hash, _MAX_LIST), pin, location)
    except _DamagedList:
        remedy = "delete it there and `dvc push` a good copy"
        raise FetchError(f"{what}: the list of its files, {pin.hash}, is damaged; {remedy}") from None


def _fetch(remote: Remote, md5: str, paths: Sequence[Path]) -> str:
    """Write one object to every path that it stands at; what is wrong with it, or nothing."""
    first, *others = paths
    try:
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(exist_ok=False)
    except (FileExistsError, NotADirectoryError):
        raise FetchError(f"{path}: this file system does not tell its name from another one's; rename one") from None
    try:
        # what arrives otherwise than it lies there, arrives otherwise the second time too
        if not any(remote.copy(md5, first) == md5 for _ in range(2)):
            return "cached" if remote.is_cached(md5) else "damaged"
    except FileNotFoundError:
        return "absent"
    for path in others:
        shutil.copyfile(first, path)
    remote.keep(md5, first)
    return ""


def _name_files(folder: str, files: Sequence[str]) -> str:
    examples = ", ".join(f"{folder}/{file}" for file in files[:5])
    return examples if len(files) <= 5 else f"{examples} and {len(files) - 5} more"


def publish(folder: Path, project: Path) -> str:
    """Put a folder into a project's default remote, leaving the project itself as it is.

    Args:
        folder: what `data.dvc` shall pin.
        project: a DVC project with a default remote.
    Returns:
        the text of the `data.dvc` that pins `folder` as `data`.
    Raises:
        FetchError: the project has no remote, or the remote does not take the objects.
    """
    files = list_files(folder)
    listing = _write_list(files)
    pinned = _md5(listing) + ".dir"
    remote = open_remote(project, "", str(project))
    with remote.translate_errors(f"{project}: cannot push to {remote}"):
        remote.write({md5: folder / name for name, md5 in files.items()})
        remote.write_bytes(pinned, listing)  # last: who finds it finds the files
    size = sum((folder / name).stat().st_size for name in files)
    out: dict[str, Any] = {"md5": pinned, "size": size, "nfiles": len(files), "hash": "md5", "path": "data"}
    return yaml.safe_dump({"outs": [out]}, sort_keys=False)


def is_published(project: Path) -> bool:
    """Whether a project's remote holds what its `data.dvc` pins (the list, which is written last)."""
    pin = parse_pin(read_pin_text(project), str(project))
    remote = open_remote(project, pin.remote, str(project))
    with remote.translate_errors(f"{project}: cannot read {remote}"):
        return remote.holds(pin.hash)


def list_files(folder: Path) -> dict[str, str]:
    """The MD5 of every file below a folder, by relative path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())

    def md5(path: Path) -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        hashes = list(tqdm(pool.map(md5, paths), total=len(paths), desc="hashing", unit="file", disable=None))
    return {path.relative_to(folder).as_posix(): value for path, value in zip(paths, hashes, strict=True)}


def dir_hash(files: Mapping[str, str]) -> str:
    """The hash by which DVC 3 pins a folder: MD5 of the JSON list of its files, with `.dir` at the end.

    Args:
        files: the MD5 of each file by relative path, as `list_files` gives.
    """
    return _md5(_write_list(files)) + ".dir"


def _write_list(files: Mapping[str, str]) -> bytes:
    entries = [{"md5": files[name], "relpath": name} for name in sorted(files)]
    return json.dumps(entries, sort_keys=True).encode()
