"""Where MLflow keeps runs and models: a server, a database or, unless told otherwise, a SQLite file in `mlruns`."""

import os
import re
from pathlib import Path
from urllib.parse import quote, unquote

DEFAULT_URI = "sqlite:///mlruns/mlflow.db"
_PLAIN = "sqlite:///"
_QUOTED = "sqlite+pysqlite:///"  # the same to MLflow, which takes a quoted path behind the plain scheme for a folder


def store_uri() -> str:
    """The tracking store: `MLFLOW_TRACKING_URI`, else DEFAULT_URI under the working directory.

    A SQLite file is given by its absolute path, for MLflow remembers stores by their address.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    database = database_of(uri)
    _, mark, query = uri.partition("?")
    return sqlite_uri(database) + mark + query if database else uri


def sqlite_uri(database: Path) -> str:
    """Address of a SQLite file, whatever characters its path holds."""
    path = str(database.absolute())
    quoted = re.sub("[%?#]", lambda match: quote(match.group()), path)
    return (_PLAIN if quoted == path else _QUOTED) + quoted


def database_of(uri: str) -> Path | None:
    """The file of a SQLite store, None for any other store."""
    for scheme in (_PLAIN, _QUOTED):
        if uri.startswith(scheme):
            return Path(unquote(uri.removeprefix(scheme).partition("?")[0])).absolute()
    return None
