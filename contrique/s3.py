"""Copy files and folders to and from S3. The only importer of boto3.

Endpoint and credentials come from the environment, as for any AWS tool (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...), or
by this project's own names (SETTINGS), which a cluster gives to a task: the program that starts the task there reads
AWS's names too, for a store of its own.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from tqdm import tqdm

from contrique.files import StorageError, inside, sha256, write_aside
from contrique.text import escape_control, mask_secrets

T = TypeVar("T")
SETTINGS = {
    "CONTRIQUE_S3_ENDPOINT": "AWS_ENDPOINT_URL",
    "CONTRIQUE_S3_REGION": "AWS_DEFAULT_REGION",
    "CONTRIQUE_S3_ACCESS_KEY": "AWS_ACCESS_KEY_ID",
    "CONTRIQUE_S3_SECRET_KEY": "AWS_SECRET_ACCESS_KEY",
}  # environment variable of this project -> AWS's name for it
_TRANSFERS = 8  # objects under way at once; each large one is split into parts besides


class DamagedObject(StorageError):
    """An object whose bytes are not those that were uploaded."""


def is_s3(location: str) -> bool:
    """Whether a location is an `s3://bucket/prefix` URL."""
    return location.startswith("s3://")


def upload(source: Path, url: str, *, progress: bool = True) -> int:
    """Copy a file or a folder to S3, in parallel and in parts, each object with its SHA-256 as metadata.

    Args:
        source: a file, or a folder that is copied with everything below it.
        url: `s3://bucket/prefix`; objects are called `prefix/RELATIVE_PATH`.
        progress: draw a bar.
    Returns:
        the number of objects written.
    Raises:
        StorageError: no such source, no such bucket, refused credentials, or the server cannot be reached.
    """
    bucket, prefix = _bucket_and_prefix(url)
    files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    if not files:
        raise StorageError(f"{source}: nothing to upload; check the path")
    for path in files:
        try:
            str(path).encode()
        except UnicodeEncodeError as error:
            raise StorageError(f"{escape_control(str(path))}: the name is not UTF-8; rename it") from error
    root = source.parent if source.is_file() else source
    client = connect()

    def put(path: Path) -> None:
        key = prefix + path.relative_to(root).as_posix()
        client.upload_file(str(path), bucket, key, ExtraArgs={"Metadata": {"sha256": sha256(path)}})

    with _translate_errors(url):
        return _each(put, files, "uploading", progress)


def download(url: str, target: Path, *, progress: bool = True) -> int:
    """Copy everything below an S3 prefix to a folder, whole or not at all, and check each object.

    Objects written by `upload` are compared with their SHA-256; others with their size, beside the checksums of the
    S3 protocol.

    Args:
        url: `s3://bucket/prefix`.
        target: the folder to make; an existing one is replaced.
        progress: draw a bar.
    Returns:
        the number of files written.
    Raises:
        DamagedObject: an object is not what was uploaded.
        StorageError: nothing below the prefix, no such bucket, refused credentials, or the server cannot be reached.
    """
    bucket, prefix = _bucket_and_prefix(url)
    client = connect()
    with _translate_errors(url), write_aside(target) as aside:
        keys = [entry["Key"] for entry in _objects(client, bucket, prefix) if not entry["Key"].endswith("/")]
        if not keys:
            raise StorageError(f"{url}: no objects there; check the bucket and the prefix")
        names = {key: inside(key[len(prefix) :], f"s3://{bucket}/{key}") for key in keys}
        _refuse_objects_as_folders(names, bucket)

        def get(key: str) -> None:
            path = aside / names[key]
            path.parent.mkdir(parents=True, exist_ok=True)
            _get(client, bucket, key, path)

        return _each(get, keys, "downloading", progress)


def _refuse_objects_as_folders(names: Mapping[str, PurePosixPath], bucket: str) -> None:
    """S3 may hold `a` beside `a/b`, a folder may not."""
    keys = {path: key for key, path in names.items()}
    for key, path in names.items():
        if other := next((keys[parent] for parent in path.parents if parent in keys), ""):
            raise StorageError(
                f"s3://{bucket}/{other}: an object that is called as the folder of s3://{bucket}/{key}; rename or "
                "delete one of them"
            )


def fetch_object(url: str, target: Path) -> None:
    """Copy one object to a file, whole or not at all, and check it as `download` does.

    Args:
        url: `s3://bucket/key`.
        target: the file to write.
    Raises:
        DamagedObject: the object is not what was uploaded.
        StorageError: no such object, no such bucket, refused credentials, or the server cannot be reached.
    """
    bucket, prefix = _bucket_and_prefix(url)
    with _translate_errors(url), write_aside(target) as aside:
        _get(connect(), bucket, prefix.rstrip("/"), aside)


def list_names(url: str) -> list[str]:
    """The first part of the name of every object below an S3 prefix, each once; empty if there is none.

    Raises:
        StorageError: no such bucket, refused credentials, or the server cannot be reached.
    """
    bucket, prefix = _bucket_and_prefix(url)
    with _translate_errors(url):  # without a delimiter: some servers list the folders of objects that are gone
        keys = [entry["Key"] for entry in _objects(connect(), bucket, prefix)]
    return sorted({key[len(prefix) :].partition("/")[0] for key in keys if not key.endswith("/")})


def remove(url: str) -> None:
    """Delete every object below an S3 prefix.

    Raises:
        StorageError: no such bucket, refused credentials, or the server cannot be reached.
    """
    bucket, prefix = _bucket_and_prefix(url)
    client = connect()
    with _translate_errors(url):
        for entry in _objects(client, bucket, prefix):
            client.delete_object(Bucket=bucket, Key=entry["Key"])


def fingerprint(url: str) -> str:
    """A hash of what lies below an S3 prefix, by the names, sizes and ETags of the objects; no object is read.

    Raises:
        StorageError: nothing below the prefix, no such bucket, refused credentials, or the server cannot be reached.
    """
    bucket, prefix = _bucket_and_prefix(url)
    with _translate_errors(url):
        entries = [(entry["Key"], entry["Size"], entry["ETag"]) for entry in _objects(connect(), bucket, prefix)]
    if not entries:
        raise StorageError(f"{url}: no objects there; check the bucket and the prefix")
    return hashlib.sha256(repr(sorted(entries)).encode()).hexdigest()


def _bucket_and_prefix(url: str) -> tuple[str, str]:
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    if not is_s3(url) or not bucket:
        raise StorageError(f"{url}: not an S3 location; write s3://BUCKET/PREFIX")
    prefix = prefix.strip("/")
    return bucket, f"{prefix}/" if prefix else ""


def adopt_settings() -> None:
    """Give this process's settings AWS's names too, which DVC, MLflow and boto3 read; called before any of them."""
    os.environ.update({theirs: os.environ[ours] for ours, theirs in SETTINGS.items() if ours in os.environ})


def connect(settings: Mapping[str, str] | None = None) -> Any:
    """A client of boto3.

    Args:
        settings: by AWS's names; the environment unless given.
    """
    import boto3
    from botocore.config import Config

    if settings is None:
        adopt_settings()
    addresses = os.environ if settings is None else settings
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        endpoint = addresses.get(name, "")
        if endpoint and not re.match(r"https?://[^/]", endpoint):
            raise StorageError(f"{name}={mask_secrets(endpoint)}: not an address; write http://HOST:PORT or https://")
    endpoint = addresses.get("AWS_ENDPOINT_URL_S3") or addresses.get("AWS_ENDPOINT_URL", "")
    direct = re.match(r"https?://(127\.|localhost[:/]|localhost$|\[::1\])", endpoint)  # no proxy reaches this machine
    options = Config(
        retries={"mode": "standard", "total_max_attempts": 3}, connect_timeout=10, proxies={} if direct else None
    )
    if settings is None:
        return boto3.Session().client("s3", config=options)  # the default session would keep its first credentials
    session = boto3.Session(
        aws_access_key_id=settings["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=settings["AWS_SECRET_ACCESS_KEY"],
        region_name=settings["AWS_DEFAULT_REGION"],
    )
    return session.client("s3", endpoint_url=settings["AWS_ENDPOINT_URL"], config=options)


def _get(client: Any, bucket: str, key: str, path: Path) -> None:
    head = client.head_object(Bucket=bucket, Key=key)
    client.download_file(bucket, key, str(path))
    expected = head["Metadata"].get("sha256")
    if path.stat().st_size != head["ContentLength"] or (expected and sha256(path) != expected):
        raise DamagedObject(f"s3://{bucket}/{key}: damaged (its SHA-256 differs); upload the object again")


def _objects(client: Any, bucket: str, prefix: str) -> Iterator[dict[str, Any]]:
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        yield from page.get("Contents", [])


def _each(action: Callable[[T], None], items: Sequence[T], what: str, progress: bool) -> int:
    with ThreadPoolExecutor(_TRANSFERS) as pool:
        pending = [pool.submit(action, item) for item in items]
        hidden = None if progress else True  # None: on a terminal alone
        try:
            for future in tqdm(as_completed(pending), total=len(items), desc=what, unit="file", disable=hidden):
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return len(items)


@contextmanager
def _translate_errors(url: str) -> Iterator[None]:
    """Turn what boto3 raises into one line with a remedy."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (Boto3Error, BotoCoreError, ClientError, ValueError) as error:  # ValueError: an address that is none
        text = mask_secrets(" ".join(str(error).split()))
        remedy = next(
            (remedy for sign, remedy in _REMEDIES.items() if sign in text), "check the AWS_* or CONTRIQUE_S3_* settings"
        )
        raise StorageError(f"{url}: {text}; {remedy}") from error


_REFUSED = "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy"
_REMEDIES = {
    "HeadObject operation: Not Found": "check bucket and key",
    "NoSuchBucket": "create the bucket or correct its name",
    "locate credentials": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "connect to the endpoint": "check AWS_ENDPOINT_URL and that the server is up",
    "SignatureDoesNotMatch": _REFUSED,
    "InvalidAccessKeyId": _REFUSED,
    "AccessDenied": _REFUSED,
    "403": _REFUSED,
}
