"""Read git repositories of strangers: no configuration, hook, filter or helper of theirs is ever obeyed."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from contrique.files import StorageError, inside, read_regular
from contrique.sources.dvc_remote import FetchError
from contrique.text import mask_secrets

_REF = re.compile(rb"(ref: refs/[^\0\n]+|[0-9a-f]{40})\n?")
_CHUNK = 2**20
_MAX_REF = 4096  # bytes
_MAX_REFS = 64 * 2**20  # bytes of packed-refs
# Variables that would point git somewhere else, as inside a hook
_MISLEADING = ("DIR", "WORK_TREE", "INDEX_FILE", "OBJECT_DIRECTORY", "ALTERNATE_OBJECT_DIRECTORIES", "NAMESPACE")
_TRANSPORTS = "file:git:http:https:ssh"  # not ext::, which runs a command


class GitError(FetchError):
    """git is not installed, or ran and failed."""


@dataclass(frozen=True)
class Repository:
    """Objects and refs of a repository, read under a configuration of this program's own.

    Attributes:
        directory: a bare repository that this program made.
        objects: where the objects lie.
    """

    directory: Path
    objects: Path

    def find_commit(self, revision: str) -> str:
        """The commit that a revision names: a commit, a tag, a branch, or a branch of the origin.

        Raises:
            GitError: it names none.
        """
        for name in (revision, f"origin/{revision}"):
            try:
                arguments = ("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
                return self._read(*arguments).decode().strip()
            except GitError as error:
                reason = error
        raise GitError(f"no git revision '{revision}'") from reason

    def read(self, commit: str, path: str, limit: int) -> bytes | None:
        """The bytes of a file in a commit; None if the commit has no such regular file.

        Raises:
            GitError: it has more than `limit` bytes.
        """
        entries = self._list(commit, path)
        if path not in entries:
            return None
        content = self._read("cat-file", "blob", entries[path])
        if len(content) > limit:
            raise GitError(f"{path} has {len(content)} bytes, more than {limit}")
        return content

    def extract(self, commit: str, select: Callable[[str], bool], folder: Path) -> None:
        """Write the regular files of a commit whose path `select` takes below a folder, without links and submodules.

        Raises:
            StorageError: a path that leads out of the folder.
        """
        blobs = {path: blob for path, blob in self._list(commit).items() if select(path)}
        with tempfile.TemporaryFile() as stream:
            self._read("cat-file", "--batch", input="\n".join(blobs.values()).encode(), output=stream)
            stream.seek(0)
            for path in blobs:
                target = folder / inside(path, "the git repository")
                target.parent.mkdir(parents=True, exist_ok=True)
                size = int(stream.readline().split()[2])
                with target.open("wb") as file:
                    for start in range(0, size, _CHUNK):
                        file.write(stream.read(min(_CHUNK, size - start)))
                stream.read(1)

    def _list(self, commit: str, *paths: str) -> dict[str, str]:
        """The blob of each regular file of a commit, by its path."""
        listing = self._read("ls-tree", "-r", "-z", "--full-tree", commit, "--", *paths)
        entries = (entry.partition(b"\t") for entry in listing.split(b"\0") if entry.startswith(b"100"))
        return {os.fsdecode(path): facts.split()[2].decode() for facts, _, path in entries}

    def _read(self, *arguments: str, input: bytes = b"", output: IO[bytes] | None = None) -> bytes:
        own = {
            "GIT_DIR": str(self.directory),
            "GIT_OBJECT_DIRECTORY": str(self.objects),
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_ALLOW_PROTOCOL": "none",  # a repository without some of its objects would fetch them
            "GIT_NO_LAZY_FETCH": "1",
            "GIT_NO_REPLACE_OBJECTS": "1",
            "GIT_LITERAL_PATHSPECS": "1",
        }
        return _run(arguments, own, input, output)


def clone(location: str, directory: Path) -> Repository:
    """Clone a repository without a work tree, so that no filter, hook or submodule of it can run.

    The user's own configuration holds: credential helpers, proxies, keys.

    Args:
        location: URL or path.
        directory: to make.
    Raises:
        GitError: no such repository, no access, or git is missing.
    """
    options = {
        "core.hooksPath": os.devnull,
        "core.fsmonitor": "false",
        "submodule.recurse": "false",
        "protocol.allow": "never",
        **{f"protocol.{name}.allow": "always" for name in _TRANSPORTS.split(":")},
    }
    settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
    flags = ["--quiet", "--bare", "--no-local", "--template=", "--no-recurse-submodules"]
    own = {"GIT_TERMINAL_PROMPT": "0", "GIT_ALLOW_PROTOCOL": _TRANSPORTS, "GIT_NO_LAZY_FETCH": "1"}
    _run((*settings, "clone", *flags, "--", location, str(directory)), own)
    return Repository(directory, directory / "objects")


@contextmanager
def open_work_tree(folder: Path) -> Iterator[tuple[Repository, str] | None]:
    """The repository that a folder lies in, and the folder's path in it with `/` at the end, or ""; None outside git.

    Refs are copied and objects are read where they lie, under a configuration of this program's own: nothing in the
    folder's `.git/config` can start a program.
    """
    folder = folder.resolve()
    top = next((place for place in (folder, *folder.parents) if (place / ".git").exists()), None)
    if top is None or shutil.which("git") is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as scratch:
        prefix = folder.relative_to(top).as_posix()
        yield _borrow(top, Path(scratch)), "" if prefix == "." else f"{prefix}/"


def _borrow(top: Path, directory: Path) -> Repository:
    """A bare repository with copies of another one's refs, which reads the other one's objects."""
    own = _follow(top / ".git", b"gitdir: ") if (top / ".git").is_file() else top / ".git"
    common = _follow(own / "commondir", b"") if (own / "commondir").is_file() else own  # of a linked work tree
    (directory / "refs").mkdir()
    (directory / "objects").mkdir()
    (directory / "config").write_text("[core]\n\trepositoryformatversion = 0\n\tbare = true\n")
    for name in ("packed-refs", "shallow"):
        if (common / name).is_file():
            (directory / name).write_bytes(read_regular(common / name, _MAX_REFS))
    for parent, _, names in os.walk(common / "refs"):
        for path in (Path(parent) / name for name in names):
            _copy_ref(path, directory / path.relative_to(common))
    _copy_ref(own / "HEAD", directory / "HEAD")
    return Repository(directory, common / "objects")


def _follow(file: Path, prefix: bytes) -> Path:
    return (file.parent / os.fsdecode(read_regular(file, _MAX_REF).removeprefix(prefix).rstrip(b"\r\n"))).resolve()


def _copy_ref(source: Path, target: Path) -> None:
    try:
        content = read_regular(source, _MAX_REF)
    except StorageError:  # a pipe, a lost link: no ref of git's
        return
    if _REF.fullmatch(content):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def _run(
    arguments: tuple[str, ...], environment: Mapping[str, str], input: bytes = b"", output: IO[bytes] | None = None
) -> bytes:
    inherited = {name: value for name, value in os.environ.items() if name not in {f"GIT_{end}" for end in _MISLEADING}}
    try:
        process = subprocess.run(
            ["git", *arguments],
            input=input,
            stdout=output or subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**inherited, **environment},
            check=True,
        )
    except FileNotFoundError:
        raise GitError("git is not installed, but a revision or a git URL was asked for; install git") from None
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        reason = next((line for line in lines if line.startswith("fatal: ")), lines[-1])
        command = next(argument for argument in arguments if argument in _COMMANDS)
        raise GitError(f"git {command} failed: {mask_secrets(reason)}; check the address and the revision") from error
    return process.stdout or b""


_COMMANDS = ("clone", "rev-parse", "ls-tree", "cat-file")
