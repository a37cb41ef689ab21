"""A SQLite store in a folder: made by one process at a time, whole or not at all, and at home wherever it is moved."""

import errno
import fcntl
import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from contrique.files import write_aside
from contrique.text import escape_control
from contrique.tracking.address import sqlite_uri

ARTIFACTS = "artifacts"  # beside the database
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
# Where MLflow remembers a place; which of them exist depends on its version.
_PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


@contextmanager
def hold_database(database: Path) -> Iterator[None]:
    """Hold a store for this process alone; inside the block the database exists, and its places are right.

    The lock is `<database>.lock`, which the kernel gives back if this process dies; it also says where the store was
    when it was last used.

    Args:
        database: SQLite file; its tables are made if it is missing.
    """
    database.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = database.with_name(f"{database.name}.lock").open("ab+")
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise
        yield  # a store that this user may only read, hence neither make nor mend
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        home = Path(os.fsdecode(file.read()))
        moved = not _is_same(home, database.parent)
        if not database.is_file():
            _create(database)
        elif moved:
            _relocate(database, home)
        if moved:
            file.truncate(0)
            file.write(os.fsencode(database.parent))
            file.flush()
        yield


def _create(database: Path) -> None:
    """Make MLflow's tables. An interrupt leaves no database rather than half of one."""
    import mlflow

    with write_aside(database) as aside:
        mlflow.MlflowClient(sqlite_uri(aside)).search_experiments()


def _is_same(home: Path, folder: Path) -> bool:
    """Whether both are names of one folder, as a link makes them."""
    return home == folder or (home.is_absolute() and home.exists() and home.samefile(folder))


def _relocate(database: Path, home: Path) -> None:
    """Make a store that was moved or copied with its folder look for its artifacts beside itself.

    MLflow remembers absolute paths. Without this a moved project would lose its models, and a copy would read from the
    original and write into it. Places elsewhere (a server's, S3, a disk of its own) stay as they are.

    Args:
        database: where it is now.
        home: folder that it was in before; relative if that is not known, and then guessed from the experiments.
    """
    with closing(sqlite3.connect(database, timeout=60)) as connection:
        columns = {table: {row[1] for row in connection.execute(f"PRAGMA table_info({table})")} for table, _ in _PLACES}
        if "artifact_location" not in columns["experiments"]:
            return  # none of MLflow's; it says so itself
        locations = [row[0] for row in connection.execute("SELECT DISTINCT artifact_location FROM experiments")]
        homes = {home} if home.is_absolute() else _guess_homes(locations, database)
        changes = 0
        with connection:
            # as an address, quoted or not, and as a path
            for before in (form for old in homes for form in (old.as_uri(), f"file://{old}", str(old))):
                for table, column in _PLACES:
                    if column in columns[table]:
                        changes += connection.execute(
                            f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                            f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                            (database.parent.as_uri(), len(before) + 1, before, len(before) + 1, before + "/"),
                        ).rowcount
    if changes:
        former = ", ".join(map(str, homes))
        print(
            escape_control(f"{database.parent} was moved or copied from {former}: artifacts are looked for there now"),
            file=sys.stderr,
        )


def _guess_homes(locations: list[str], database: Path) -> set[Path]:
    """Former folders of a store that does not say where it was: of artifacts that lay beside a folder of this name."""
    homes = set()
    for location in locations:
        parts = urlsplit(location)
        path = Path(unquote(parts.path) if parts.scheme else location)
        local = parts.scheme in ("", "file") and not parts.netloc and path.is_absolute()
        if (
            local
            and path.parts[-2:] == (database.parent.name, ARTIFACTS)
            and not _is_same(path.parent, database.parent)
        ):
            homes.add(path.parent)
    return homes
