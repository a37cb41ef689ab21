"""The MLflow server or database: reached, locked, and its errors in plain words."""

import getpass
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from contrique.config import RegistryConfig
from contrique.errors import ContriqueError
from contrique.s3 import adopt_settings
from contrique.text import escape_markdown, mask_secrets
from contrique.tracking.address import database_of, store_uri
from contrique.tracking.local import ARTIFACTS, hold_database

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment


LOCK_SECONDS = 60.0
# Without a kind MLflow guesses one, and shows an experiment without runs as one of traces of language models.
EXPERIMENT_TAGS: Final = {
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.note.content": "No-reference image quality (CONTRIQUE). Each run is one run of the training pipeline, from "
    "data to verdict; its models are judged by the gate before they become versions of the registered model.",
}
STORE_REMEDY = "check the artifact store behind it and its credentials; its own log says more"
_SERVER_REMEDY = "start the server, or correct or unset MLFLOW_TRACKING_URI"
_LIBRARIES = (
    "boto3",
    "botocore",
    "mlflow",
    "requests",
    "sqlalchemy",
    "sqlite3",
    "urllib3",
)  # whose exceptions are a store's
_MESSAGE_CHARS = 300  # of a library's error


class RegistryError(ContriqueError):
    """MLflow cannot be reached, or refuses; the message names the address or version and the remedy."""

    has_lines = True  # the end of a server's log


class Store:
    """MLflow's tracking and registry store, under the names of a configuration.

    `MLFLOW_TRACKING_URI` says where it is; without it, it is `mlruns/mlflow.db` under the working directory. Nothing is
    opened or made before `client` is asked for.

    Args:
        config: names.

    Attributes:
        config: the same.
        uri: address, with its password if it has one.
    """

    def __init__(self, config: RegistryConfig) -> None:
        self.config = config
        self.uri = store_uri()

    @property
    def exists(self) -> bool:
        """Whether asking is worth it: a SQLite file that is missing would only be made, empty."""
        database = database_of(self.uri)
        return database is None or database.is_file()

    def require(self) -> None:
        """Raise RegistryError if there is no store yet."""
        if not self.exists:
            raise RegistryError(f"{self.uri}: no registry there; run the pipeline first, or set MLFLOW_TRACKING_URI")

    @cached_property
    def client(self) -> "MlflowClient":
        """MLflow's client, once the store has answered; the experiment is made if it was missing.

        Calls to a server are bounded: 30 seconds and two retries, unless MLflow's own variables say otherwise.

        Raises:
            RegistryError: MLflow is not installed, or the store cannot be reached or read.
        """
        mlflow = _import_mlflow()
        adopt_settings()  # for artifacts that MLflow's clients take from S3 themselves
        mlflow.set_tracking_uri(self.uri)
        mlflow.set_registry_uri(self.uri)
        database = database_of(self.uri)
        location = (database.parent / ARTIFACTS).as_uri() if database else None
        with self.translate_errors("connecting"), hold_database(database) if database else nullcontext():
            client: MlflowClient = mlflow.MlflowClient()
            experiment = client.get_experiment_by_name(self.config.experiment)
            if experiment is None:
                create_once(
                    client.create_experiment, self.config.experiment, artifact_location=location, tags=EXPERIMENT_TAGS
                )
            else:
                _complete_tags(client, experiment)
        if experiment is not None and experiment.lifecycle_stage != "active":
            raise RegistryError(
                f"MLflow at {self.uri}: experiment '{self.config.experiment}' was deleted; "
                "restore it with `mlflow experiments restore`, or set registry.experiment to another name"
            )
        return client

    def experiment_id(self) -> str:
        """Identifier of the experiment in MLflow."""
        return str(self.client.get_experiment_by_name(self.config.experiment).experiment_id)

    @contextmanager
    def translate_errors(self, doing: str, remedy: str = _SERVER_REMEDY) -> Iterator[None]:
        """Turn the failures of MLflow and its stores into one line that names the address and what was tried.

        Args:
            doing: what the block does, as in "listing versions".
            remedy: what a person can do about it.
        """
        try:
            yield
        except Exception as error:
            if type(error).__module__.partition(".")[0] not in _LIBRARIES and not isinstance(error, OSError):
                raise
            message = f"MLflow at {self.uri}: {doing} failed ({_shorten(error, self.uri)}); {remedy}"
            raise RegistryError(message) from _without_secrets(error, self.uri)

    @contextmanager
    def hold_lock(self, name: str) -> Iterator[None]:
        """Hold a lock that every process with this store sees: the registered model `<name>.lock`, which exists once.

        A lock that stays with one holder for LOCK_SECONDS is taken for abandoned, and broken.
        """
        lock, client = f"{name}.lock", self.client
        last, since = 0, time.monotonic()
        while not create_once(
            client.create_registered_model,
            lock,
            description=escape_markdown(f"held by {current_user()}, since {current_time()}"),
        ):
            holder = _read_lock_time(client, lock)
            if holder != last:
                last, since = holder, time.monotonic()
            elif time.monotonic() - since > LOCK_SECONDS:
                print(f"breaking {lock}: its holder is gone", file=sys.stderr)
                find_or_none(client.delete_registered_model, lock)  # it may be gone by now: others wait, too
            time.sleep(0.1)
        acquired = _read_lock_time(client, lock)
        try:
            yield
        finally:
            if acquired and _read_lock_time(client, lock) == acquired:  # else it was broken, and another may hold it
                find_or_none(client.delete_registered_model, lock)


def limit_waiting() -> None:
    """Bound MLflow's calls to a server, which may take 14 minutes by default, unless its own variables do."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")


def _import_mlflow() -> Any:
    limit_waiting()
    try:
        Path.home()
    except RuntimeError:  # a user without a name, as containers have; MLflow asks for the folder as it is imported
        os.environ["HOME"] = "/nonexistent"
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow

    if not hasattr(mlflow, "MlflowClient"):  # the folder mlflow/ of this project, found as an empty namespace
        raise RegistryError("MLflow is not installed; run: pip install -e '.[platform]'")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    return mlflow


def _complete_tags(client: "MlflowClient", experiment: "Experiment") -> None:
    """Set the tags of an experiment that an older version or a person made; those that a person set stay."""
    for name, value in EXPERIMENT_TAGS.items():
        guessed = experiment.tags.get(name, "").endswith("_inferred")
        if experiment.lifecycle_stage == "active" and (name not in experiment.tags or guessed):
            client.set_experiment_tag(experiment.experiment_id, name, value)


def _shorten(error: BaseException, uri: str) -> str:
    text = mask_secrets(" ".join(str(error).split()), uri)
    return text if len(text) <= _MESSAGE_CHARS else text[:_MESSAGE_CHARS] + " ..."


def _without_secrets(error: BaseException, uri: str) -> BaseException | None:
    """The error as a cause to be shown in a traceback; None if it, or one behind it, holds a secret."""
    link: BaseException | None = error
    while link:
        if mask_secrets(str(link), uri) != str(link):
            return None
        link = link.__cause__ or link.__context__
    return error


def create_once(create: Callable[..., Any], name: str, **arguments: Any) -> bool:
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


def find_or_none(get: Callable[..., Any], *arguments: Any) -> Any:
    """The result of `get`, None if what it looks for does not exist."""
    from mlflow.exceptions import MlflowException

    try:
        return get(*arguments)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _read_lock_time(client: "MlflowClient", lock: str) -> int:
    """When a lock was taken, in milliseconds; 0 if nobody holds it."""
    model = find_or_none(client.get_registered_model, lock)
    return model.creation_timestamp if model else 0


def current_time() -> str:
    """UTC in ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def current_user() -> str:
    """Name of the user of this process, `uid N` for one without a name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # as in a container
        return f"uid {os.getuid()}"
