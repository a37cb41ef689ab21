"""Where a DVC project keeps its objects, and how much of its configuration is believed. The only importer of DVC.

Three kinds of projects, by who vouches for them:

- a clone is a stranger's: of its `.dvc/config` the remote's `url`, `endpointurl` and `region` are taken, and nothing
  else; a remote in a folder must lie inside the clone;
- so is a folder somewhere else on this machine, but its remote may be another folder;
- a project that the user works in, or names in CONTRIQUE_TRUSTED_PROJECTS, is read as DVC itself reads it, less what
  its committed `.dvc/config` says of programs and of files with credentials.

Credentials, profiles and a shared cache of the first two come from the user's own levels alone: the environment and
`dvc config --global`. An endpoint that a stranger names is read without credentials, unless AWS_ENDPOINT_URL or
CONTRIQUE_TRUSTED_ENDPOINTS names it too.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from contrique.artifacts import PIN
from contrique.errors import ContriqueError
from contrique.files import StorageError, open_regular, read_regular, write_aside
from contrique.s3 import adopt_settings
from contrique.text import mask_secrets

_CHECK = (
    "check the remote's URL and its credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL for S3)"
)
_MAX_CONFIG = 2**20  # bytes
_CHUNK = 2**20
_OF_A_STRANGER = ("url", "endpointurl", "region")
_BEHAVIOUR = {"verify", "jobs", "checksum_jobs"}  # of a stranger's remote, left out without a word
# Options that start programs or open files with credentials: a team's committed configuration has no need of them.
_DANGEROUS = (
    "configpath",
    "credentialpath",
    "bearer_token_command",
    "keyfile",
    "cert_path",
    "key_path",
    "gdrive_user_credentials_file",
    "gdrive_service_account_json_file_path",
)
_REGION = re.compile(r"[a-z0-9-]{1,40}")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}")
_LAYOUT = Path("files", "md5")  # of DVC 3, below a remote's URL and in a cache


class FetchError(ContriqueError):
    """Data that cannot be fetched or are not what their pin says; the message names the file and the remedy."""


@dataclass(frozen=True)
class _Settings:
    """What is believed of a remote.

    Attributes:
        name: of the remote.
        options: as DVC takes them.
        cache: a cache that the user shares among projects.
        ignored: options of the project that were not believed.
    """

    name: str
    options: dict[str, Any]
    cache: Path | None
    ignored: tuple[str, ...] = ()


class Remote:
    """The objects of a project's remote, and the user's shared cache before it.

    Attributes:
        cache: folder of objects in that cache, or None.
    """

    def __init__(self, settings: _Settings) -> None:
        from dvc.data_cloud import Remote as Store
        from dvc.fs import get_cloud_fs

        self._settings = settings
        self.cache = settings.cache and settings.cache / _LAYOUT
        make, options, path = get_cloud_fs({"remote": {settings.name: settings.options}}, name=settings.name)
        file_system = make(**options)
        # fsspec keeps file systems, their credentials and their listings, for the life of the process
        type(file_system.fs).clear_instance_cache()
        self._store = Store(settings.name, path, make(**options), **options).odb

    def __str__(self) -> str:
        return f"remote '{self._settings.name}' ({mask_secrets(str(self._settings.options['url']))})"

    def holds(self, md5: str) -> bool:
        """Whether the remote or the cache has an object; unlike DVC's own test, a refusal is no absence."""
        return self.is_cached(md5) or bool(self._store.fs.exists(self._store.oid_to_path(md5)))

    def is_cached(self, md5: str) -> bool:
        """Whether the shared cache has an object."""
        return bool(self.cache and _object_path(self.cache, md5).is_file())

    def read(self, md5: str, limit: int) -> bytes:
        """The bytes of an object.

        Raises:
            FileNotFoundError: there is none.
            StorageError: it has more than `limit` bytes.
        """
        with self._open(md5) as source:
            content = source.read(limit + 1)
        if len(content) > limit:
            raise StorageError(f"{self}: {md5} has more than {limit / 1e9:.1f} GB")
        return content

    def copy(self, md5: str, path: Path) -> str:
        """Copy an object to a file; the MD5 of what arrived.

        Raises:
            FileNotFoundError: there is none.
        """
        digest = hashlib.md5(usedforsecurity=False)
        with self._open(md5) as source, path.open("wb") as target:
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
                target.write(chunk)
        return digest.hexdigest()

    def _open(self, md5: str) -> BinaryIO:
        if self.cache and self.is_cached(md5):
            return open_regular(_object_path(self.cache, md5), limit=2**63)
        path = self._store.oid_to_path(md5)
        if self._store.fs.protocol == "local":
            if not os.path.lexists(path):
                raise FileNotFoundError(path)
            return open_regular(path, limit=2**63)
        source: BinaryIO = self._store.fs.open(path, "rb")
        return source

    def keep(self, md5: str, path: Path) -> None:
        """Put a file into the shared cache, if there is one."""
        if self.cache and not self.is_cached(md5):
            with write_aside(_object_path(self.cache, md5)) as aside:
                shutil.copyfile(path, aside)
                aside.chmod(0o444)

    def write(self, paths: Mapping[str, Path]) -> None:
        """Put files into the remote, each under its MD5."""
        from dvc.fs import localfs

        self._store.add([str(path) for path in paths.values()], localfs, list(paths))

    def write_bytes(self, md5: str, content: bytes) -> None:
        """Put an object into the remote."""
        self._store.add_bytes(md5, content)
        self._store.protect(self._store.oid_to_path(md5))

    @contextmanager
    def translate_errors(self, what: str) -> Iterator[None]:
        """Turn what DVC and the file systems below it raise, many unrelated types, into one line with a remedy."""
        try:
            yield
        except ContriqueError:
            raise
        except Exception as error:
            raise FetchError(f"{what}: {_reason(error)}; {self._remedy()}") from error

    def _remedy(self) -> str:
        if not self._settings.ignored:
            return _CHECK
        return (
            f"of this project's configuration {', '.join(self._settings.ignored)} of the remote were not used: work "
            "inside the project, name it in CONTRIQUE_TRUSTED_PROJECTS, or set them by `dvc remote modify --global`"
        )


def _object_path(store: Path, md5: str) -> Path:
    return store / md5[:2] / md5[2:]


def _reason(error: BaseException) -> str:
    return mask_secrets(" ".join(str(error).split())) or type(error).__name__


def open_remote(project: Path, name: str, location: str, *, foreign: bool = False) -> Remote:
    """The remote of a DVC project.

    Args:
        project: folder at or below one with `.dvc/config`.
        name: of the remote; empty for the default one.
        location: the project as the user named it, for messages.
        foreign: the project is a clone.
    Raises:
        FetchError: no configuration, no such remote, or one that is refused.
    """
    adopt_settings()
    root = next((place for place in (project, *project.parents) if (place / ".dvc").is_dir()), None)
    if root is None or (foreign and root != project):
        raise FetchError(f"{location}: no .dvc/config there or above, so no remote is known; copy it beside {PIN}")
    try:
        if not foreign and _is_own(root):
            return Remote(_read_own(root, name))
        return Remote(_read_foreign(root, name, location, inside=foreign))
    except ContriqueError:
        raise
    except Exception as error:  # DVC, its parsers and the file systems below it raise many unrelated types
        raise FetchError(f"{location}/.dvc/config: cannot be used ({_reason(error)}); correct it") from error


def _is_own(root: Path) -> bool:
    """Whether the user works in a project, or vouches for it."""
    places = os.environ.get("CONTRIQUE_TRUSTED_PROJECTS", "").split(os.pathsep)
    trusted = [Path.cwd(), *(Path(place).resolve() for place in places if place)]
    return any(place == root or root in place.parents for place in trusted)


def _pick(sections: Mapping[str, Any], name: str, where: str) -> tuple[str, dict[str, Any]]:
    remote = (name or sections.get("core", {}).get("remote", "")).lower()
    remotes = sections.get("remote", {})
    if remote not in remotes:
        if name:
            raise FetchError(f"{where}: no remote '{name}', which {PIN} names; run `dvc remote add {name} URL`")
        raise FetchError(f"{where}: no default remote; run `dvc remote add --default NAME URL`")
    return remote, dict(remotes[remote])


def _read_own(root: Path, name: str) -> _Settings:
    from dvc.config import Config

    sections = Config(dvc_dir=str(root / ".dvc"))
    remote, options = _pick(sections, name, f"{root}/.dvc/config")
    committed = _load(root / ".dvc" / "config").get("remote", {}).get(remote, {})
    for option in _DANGEROUS:
        if option in committed:
            raise FetchError(
                f"{root}/.dvc/config: remote '{remote}' sets {option}, which is not taken from a file that is handed "
                f"on with the project; set it by `dvc remote modify --local {remote} {option} VALUE`"
            )
    _refuse_versioned(options, remote, f"{root}/.dvc/config")
    options["url"] = _resolve_references(sections, options["url"])
    return _Settings(remote, options, _cache_of(sections))


def _resolve_references(sections: Mapping[str, Any], url: str) -> str:
    """`remote://NAME/path` stands for a path below the URL of another remote."""
    for _ in range(5):
        parts = urlsplit(url)
        if parts.scheme != "remote":
            return url
        url = sections["remote"][parts.netloc.lower()]["url"].rstrip("/") + parts.path
    raise ValueError(f"{url} goes round in a circle")


def _read_foreign(root: Path, name: str, location: str, *, inside: bool) -> _Settings:
    from dvc.config import Config

    where = f"{location}/.dvc/config"
    users = Config(validate=False)  # the system's and the user's own level; of a remote it may hold credentials alone
    remote, theirs = _pick(_load(root / ".dvc" / "config"), name, where)
    own = dict(users["remote"].get(remote, {}))
    if "url" in own:
        return _Settings(remote, own, _cache_of(users))
    _refuse_versioned(theirs, remote, where)
    options: dict[str, Any] = {option: str(theirs[option]) for option in _OF_A_STRANGER if option in theirs}
    ignored = tuple(sorted(theirs.keys() - options.keys() - _BEHAVIOUR))
    what = f"{where}: remote '{remote}'"
    url, scheme = options.get("url", ""), _scheme_of(options.get("url", ""))
    if scheme not in ("", "s3", "http", "https"):
        raise FetchError(
            f"{what} is at {scheme[:20]}://, which is not read for a project of somebody else's; name it for yourself: "
            f"`dvc remote add --global {remote} URL`"
        )
    if not url or any(mark in url for mark in "\0\n\r") or (scheme and set("?#@") & set(url)):
        raise FetchError(f"{what} has no plain URL, or one with credentials or a query; correct it")
    if scheme == "":
        path = Path(os.path.normpath(root / ".dvc" / url))
        if inside and not path.resolve().is_relative_to(root.resolve()):
            raise FetchError(
                f"{what} is a folder outside of the repository; name it for yourself: "
                f"`dvc remote add --global {remote} FOLDER`"
            )
        return _Settings(remote, {"url": str(path)}, _cache_of(users), ignored)
    if scheme == "s3":
        _check_bucket(options, what)
        credentials = _are_trusted(options.get("endpointurl", ""))
        options |= own if credentials else {"allow_anonymous_login": True}
    elif _are_trusted(url):
        options |= own
    return _Settings(remote, options, _cache_of(users), ignored)


def _scheme_of(url: str) -> str:
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", url)
    return match[1].lower() if match else ""


def _check_bucket(options: Mapping[str, str], what: str) -> None:
    if not _BUCKET.fullmatch(urlsplit(options["url"]).netloc):
        raise FetchError(f"{what} names no bucket; write s3://BUCKET/PREFIX")
    if not _REGION.fullmatch(options.get("region", "x")):
        raise FetchError(f"{what} names no region; correct it")
    endpoint = urlsplit(options.get("endpointurl", "https://x"))
    if endpoint.scheme not in ("http", "https") or not endpoint.hostname or "@" in endpoint.netloc or endpoint.query:
        raise FetchError(f"{what} has no plain endpointurl; write https://HOST:PORT, without credentials")


def _are_trusted(address: str) -> bool:
    """Whether the user's credentials may go to an address: the default endpoint, or one that the user names."""
    addresses = os.environ.get("CONTRIQUE_TRUSTED_ENDPOINTS", "").split(",")
    addresses += [os.environ.get(name, "") for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")]
    return not address or _origin(address) in {_origin(item) for item in addresses if item.strip()}


def _origin(address: str) -> tuple[str, str, int | None]:
    parts = urlsplit(address.strip())
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, (parts.hostname or "").lower(), port


def _refuse_versioned(options: Mapping[str, Any], name: str, where: str) -> None:
    for option in ("version_aware", "worktree"):
        if str(options.get(option, "false")).lower() != "false":
            raise FetchError(
                f"{where}: remote '{name}' sets {option}, which is not supported; `dvc push` to a plain one"
            )


def _load(path: Path) -> dict[str, Any]:
    """The sections of a configuration file, by DVC's own parser, which obeys nothing in it."""
    from dvc.config import Config

    if not path.exists():
        return {}
    read_regular(path, _MAX_CONFIG)
    sections: dict[str, Any] = Config.load_file(str(path))
    return sections


def _cache_of(sections: Mapping[str, Any]) -> Path | None:
    folder = sections.get("cache", {}).get("dir")
    return Path(folder) if folder else None
