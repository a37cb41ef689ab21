"""What `data.dvc` pins: pulled by DVC into a throwaway project and proven, or pushed. The only importer of DVC."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from tqdm import tqdm

from contrique.artifacts import PIN
from contrique.errors import ContriqueError
from contrique.files import inside

_CHECK = (
    "check the remote's URL and its credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL for S3)"
)


class FetchError(ContriqueError):
    """Data that cannot be fetched or are not what their pin says; the message names the file and the remedy."""


@dataclass(frozen=True)
class Pin:
    hash: str
    path: str


def parse_pin(text: str, location: str) -> Pin:
    try:
        (out,) = yaml.safe_load(text)["outs"]
        pin = Pin(str(out["md5"]), str(out["path"]))
        if out.get("hash") != "md5" or not pin.hash.endswith(".dir"):
            raise ValueError("it pins no folder by md5")
        inside(pin.path, f"{location}/{PIN}")
    except (yaml.YAMLError, TypeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise FetchError(
            f"{location}/{PIN}: not a pin of one folder ({reason}); make it with `dvc add data`"
        ) from error
    return pin


def read_pin(project: Path) -> str:
    """The `.dir` hash that a project's `data.dvc` pins.

    Raises:
        FetchError: there is no `data.dvc`, or it pins something else than one folder.
    """
    path = project / PIN
    if not path.is_file():
        raise FetchError(f"{path}: not found; make it with `dvc add data`")
    return parse_pin(path.read_text(), str(project)).hash


def pull(text: str, project: Path, location: str, work: Path) -> Path:
    """Pull what `data.dvc` pins into a throwaway project and prove every file."""
    pin = parse_pin(text, location)
    name = PurePosixPath(pin.path).name
    with _throwaway(project, work / "project") as repo:
        remote = repo.config["core"]["remote"]
        where = f"remote '{remote}' ({repo.config['remote'][remote]['url']})"
        root = Path(repo.root_dir)
        (root / PIN).write_text(text)
        with _translate_errors(f"{location}: cannot pull {PIN} from {where}"):
            _holds(repo, pin.hash)  # where no server answers, a pull takes half a minute to say so
        try:
            repo.pull()
        except Exception as error:  # DVC and the file systems below it raise many unrelated types
            cause = _find_fault(repo, pin, name) or f"{' '.join(str(error).split())}; {_CHECK}"
            raise FetchError(f"{location}: cannot pull {PIN} from {where}: {cause}") from error
        folder = root / pin.path
        found = list_files(folder)
        if dir_hash(found) != pin.hash:
            cause = _find_fault(repo, pin, name)
            if not cause:
                listed = _read_list(repo, pin)
                wrong = sorted(file for file in listed.keys() | found.keys() if listed.get(file) != found.get(file))
                objects = ", ".join(listed[file] for file in wrong[:5] if file in listed)
                cause = f"{_name_files(name, wrong)} differ from {PIN}; delete {objects} from {repo.cache.local.path}"
            raise FetchError(f"{location}: what {where} gave is not what {PIN} pins: {cause}")
    return folder


def _read_list(repo: Any, pin: Pin) -> dict[str, str]:
    """The pinned files and their hashes, from the cache or the remote; empty if neither has the list as pinned."""
    cached = _object_path(Path(repo.cache.local.path), pin.hash)
    if cached.is_file():
        content = cached.read_bytes()
    else:
        odb = repo.cloud.get_remote().odb
        content = odb.fs.cat_file(odb.oid_to_path(pin.hash))
    if hashlib.md5(content, usedforsecurity=False).hexdigest() + ".dir" != pin.hash:
        return {}
    return {entry["relpath"]: entry["md5"] for entry in json.loads(content)}


def _object_path(store: Path, md5: str) -> Path:
    return store / md5[:2] / md5[2:]


def _find_fault(repo: Any, pin: Pin, name: str) -> str:
    """What is wrong with the remote, in words; empty if nothing is."""
    try:
        if not _holds(repo, pin.hash):
            return f"it does not hold {pin.hash}; run `dvc push` where the data are, or correct the remote's URL"
        listed = _read_list(repo, pin)
        if not listed:
            return f"the list of its files, {pin.hash}, is damaged; delete it there and `dvc push` a good copy"
        lacking = sorted(
            file for file in listed if not _object_path(Path(repo.cache.local.path), listed[file]).is_file()
        )
        absent = [file for file in lacking if not _holds(repo, listed[file])]
    except Exception as error:  # as in `_explained`
        return f"{' '.join(str(error).split())}; {_CHECK}"
    if absent:
        return f"{_name_files(name, absent)} not there; run `dvc push` from a good copy"
    objects = ", ".join(listed[file] for file in lacking[:5])
    return f"{_name_files(name, lacking)} damaged; delete {objects} there and `dvc push` a good copy" if lacking else ""


def _holds(repo: Any, md5: str) -> bool:
    """Whether the default remote has an object; unlike DVC's own test, a refusal is no absence."""
    odb = repo.cloud.get_remote().odb
    return bool(odb.fs.exists(odb.oid_to_path(md5)))


def _name_files(folder: str, files: Sequence[str]) -> str:
    shown = ", ".join(f"{folder}/{file}" for file in files[:5])
    return shown if len(files) <= 5 else f"{shown} and {len(files) - 5} more"


@contextmanager
def _throwaway(project: Path, root: Path) -> Iterator[Any]:
    """An empty DVC project without git that has another one's remotes; its default remote is verified on reading.

    It works where there is no git, leaves the other project and its cache alone, and DVC refuses a damaged object.
    """
    from dvc.config import Config
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo

    try:
        home = Path(Repo.find_root(str(project)))
    except NotDvcRepoError:
        raise FetchError(
            f"{project}: no .dvc/config there or above, so no remote is known; copy it beside {PIN}"
        ) from None
    theirs = Config(dvc_dir=str(home / ".dvc"))
    remote = theirs["core"].get("remote")
    if remote not in theirs["remote"]:
        raise FetchError(f"{home}/.dvc/config: no default remote; run `dvc remote add --default NAME URL`")
    remotes = {name: dict(options) for name, options in theirs["remote"].items()}
    remotes[remote]["verify"] = True
    ours: dict[str, Any] = {"core": {"remote": remote, "no_scm": True}, "remote": remotes}
    if "dir" in theirs["cache"]:
        ours["cache"] = {"dir": theirs["cache"]["dir"]}
    (root / ".dvc").mkdir(parents=True)
    ours["core"]["site_cache_dir"] = str(root / ".dvc" / "site")
    (root / ".dvc" / "config").touch()
    with Repo(str(root), config=ours) as repo:
        # fsspec keeps file systems, their credentials and their listings, for the life of the process
        type(repo.cloud.get_remote().fs.fs).clear_instance_cache()
        yield repo


@contextmanager
def _translate_errors(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # DVC and the file systems below it raise many unrelated types
        reason = " ".join(str(error).split())
        raise FetchError(f"{what}: {reason}; {_CHECK}") from error


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
    with tempfile.TemporaryDirectory() as scratch, _throwaway(project, Path(scratch)) as repo:
        shutil.copytree(folder, Path(scratch) / "data")
        with _translate_errors(f"{project}: cannot push to its remote '{repo.config['core']['remote']}'"):
            repo.add(str(Path(scratch) / "data"))
            repo.push()
        return (Path(scratch) / PIN).read_text()


def is_published(project: Path) -> bool:
    """Whether a project's default remote holds what its `data.dvc` pins (the list, which DVC writes last)."""
    pin = read_pin(project)
    with (
        tempfile.TemporaryDirectory() as scratch,
        _throwaway(project, Path(scratch)) as repo,
        _translate_errors(f"{project}: cannot read its remote '{repo.config['core']['remote']}'"),
    ):
        return _holds(repo, pin)


def list_files(folder: Path) -> dict[str, str]:
    """The MD5 of every file below a folder, by relative path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())

    def md5(path: Path) -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        hashes = list(tqdm(pool.map(md5, paths), total=len(paths), desc="hashing", unit="file", disable=None))
    return {path.relative_to(folder).as_posix(): value for path, value in zip(paths, hashes, strict=True)}


def dir_hash(files: dict[str, str]) -> str:
    """The hash by which DVC 3 pins a folder: MD5 of the JSON list of its files, with `.dir` at the end.

    Args:
        files: the MD5 of each file by relative path, as `listing` gives.
    """
    entries = [{"md5": files[name], "relpath": name} for name in sorted(files)]
    text = json.dumps(entries, sort_keys=True).encode()
    return hashlib.md5(text, usedforsecurity=False).hexdigest() + ".dir"
