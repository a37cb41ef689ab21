"""The MLflow server or database: reached, locked, and its errors in plain words."""

import getpass
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contrique.config import RegistryConfig
from contrique.errors import ContriqueError

if TYPE_CHECKING:
    from mlflow import MlflowClient


DEFAULT_URI = "sqlite:///mlruns/mlflow.db"
LOCK_SECONDS = 60.0
STORE_REMEDY = "check the artifact store behind it and its credentials; its own log says more"
_STORES = ("boto3", "botocore", "mlflow", "requests", "sqlalchemy", "urllib3")  # whose exceptions are a store's


class RegistryError(ContriqueError):
    """MLflow cannot be reached, or refuses; the message names the address or version and the remedy."""


def connect(config: RegistryConfig) -> "MlflowClient":
    """Point MLflow at the tracking store and prove that it answers.

    `MLFLOW_TRACKING_URI` wins; without it the store is `mlruns/mlflow.db` under the working directory. Telemetry is
    off. Calls to a server are bounded: 30 seconds and two retries, unless MLflow's own variables say otherwise.

    Args:
        config: names.
    Returns:
        a client of that store, the experiment made if it was missing.
    Raises:
        RegistryError: MLflow is not installed, or the store cannot be reached or read.
    """
    mlflow = _import_mlflow()
    uri = store_uri()
    if database := _database_of(uri):
        database.parent.mkdir(parents=True, exist_ok=True)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    with translate_errors("connecting"):
        client: MlflowClient = mlflow.MlflowClient()
        experiment = client.get_experiment_by_name(config.experiment)
        if experiment is None:
            location = str(database.parent / "artifacts") if database else None
            create_once(client.create_experiment, config.experiment, artifact_location=location)
        elif experiment.lifecycle_stage != "active":
            raise RegistryError(
                f"MLflow at {mask_password(uri)}: experiment '{config.experiment}' was deleted; "
                "restore it with `mlflow experiments restore`, or set registry.experiment to another name"
            )
    return client


def read_code_revision() -> str:
    """Git commit of the code, `+` appended if files differ from it; `CONTRIQUE_REVISION` wins; else `unknown`."""
    if named := os.environ.get("CONTRIQUE_REVISION"):
        return named
    root = Path(__file__).parent
    try:
        commit = _run_git("rev-parse", "HEAD", cwd=root)
        return commit + ("+" if _run_git("status", "--porcelain", "--untracked-files=no", cwd=root) else "")
    except (OSError, subprocess.SubprocessError):  # no git, or not a clone: a container image
        return "unknown"


def _run_git(*arguments: str, cwd: Path) -> str:
    done = subprocess.run(["git", *arguments], cwd=cwd, capture_output=True, text=True, check=True, timeout=30)
    return done.stdout.strip()


def _import_mlflow() -> Any:
    quiet = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    }
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    import mlflow

    if not hasattr(mlflow, "MlflowClient"):  # the folder mlflow/ of this project, found as an empty namespace
        raise RegistryError("MLflow is not installed; run: pip install -e '.[platform]'")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    return mlflow


def store_uri() -> str:
    """The tracking store; a SQLite file by its absolute path, for MLflow remembers stores by their address."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    database = _database_of(uri)
    return f"sqlite:///{database}{uri[uri.index('?') :] if '?' in uri else ''}" if database else uri


def mask_password(text: str) -> str:
    """Text for logs and pages: the password of every address in it, `scheme://user:password@host`, becomes `***`."""
    return re.sub(r"(://[^/\s:@]*:)[^@\s]*@", r"\1***@", text)


def _database_of(uri: str) -> Path | None:
    """The file of a SQLite store."""
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]).absolute() if uri.startswith("sqlite:///") else None


def store_exists(uri: str) -> bool:
    """Whether asking is worth it: a SQLite file that is not there would only be made, empty."""
    database = _database_of(uri)
    return database is None or database.is_file()


def connect_existing(config: RegistryConfig) -> "MlflowClient":
    """A client of a store that must be there already."""
    if not store_exists(store_uri()):
        raise RegistryError(f"{store_uri()}: no registry there; run the pipeline first, or set MLFLOW_TRACKING_URI")
    return connect(config)


@contextmanager
def translate_errors(
    doing: str, remedy: str = "start the server, or correct or unset MLFLOW_TRACKING_URI"
) -> Iterator[None]:
    """Turn the failures of MLflow and its stores into one line that names the address and what was tried."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in _STORES and not isinstance(error, OSError):
            raise
        address = mask_password(store_uri())
        raise RegistryError(f"MLflow at {address}: {doing} failed ({_shorten(error)}); {remedy}") from error


def _shorten(error: BaseException) -> str:
    text = mask_password(" ".join(str(error).split()))
    return text if len(text) <= 300 else text[:300] + " ..."


def create_once(create: Any, name: str, **arguments: Any) -> bool:
    """Create something that has a unique name; False if it is there already."""
    from mlflow.exceptions import MlflowException

    try:
        create(name, **arguments)
    except MlflowException as error:
        # MLflow looks up what is there already, which may be gone again by then
        if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"):
            raise
        return False
    return True


@contextmanager
def hold_lock(client: "MlflowClient", name: str) -> Iterator[None]:
    """Hold `<name>.lock` in the tracking store; see the module's docstring for what it is and its limits."""
    lock = f"{name}.lock"
    seen, since = 0, time.monotonic()
    while not create_once(
        client.create_registered_model, lock, description=f"held by {current_user()}, since {current_time()}"
    ):
        holder = _read_lock_time(client, lock)
        if holder != seen:
            seen, since = holder, time.monotonic()
        elif time.monotonic() - since > LOCK_SECONDS:
            print(f"breaking {lock}: its holder is gone", file=sys.stderr)
            find_or_none(client.delete_registered_model, lock)  # it may be gone by now: others wait, too
        time.sleep(0.1)
    mine = _read_lock_time(client, lock)
    try:
        yield
    finally:
        if mine and _read_lock_time(client, lock) == mine:  # else it was broken, and another may hold it
            find_or_none(client.delete_registered_model, lock)


def _read_lock_time(client: "MlflowClient", lock: str) -> int:
    """When a lock was taken, in milliseconds; 0 if nobody holds it."""
    model = find_or_none(client.get_registered_model, lock)
    return model.creation_timestamp if model else 0


def find_or_none(get: Any, *arguments: Any) -> Any:
    """What `get` gives, None if there is no such thing."""
    from mlflow.exceptions import MlflowException

    try:
        return get(*arguments)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def current_time() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def current_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"uid {os.getuid()}"
