"""A folder at a glance: what each picture scores and looks like, when it was taken, and what it is a copy of."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import pandas as pd

from contrique import images
from contrique.data.leaks import near_duplicates
from contrique.files import write_aside
from contrique.scoring.inputs import NamedPicture, decode_ahead
from contrique.scoring.results import (
    CSV_COLUMNS,
    TEXT_COLUMNS,
    Failure,
    Score,
    escape_cell,
    flatten,
)
from contrique.scoring.scorer import Scorer
from contrique.text import dump_json

MOST_COMPARED: Final = 20_000  # pictures among which copies are sought: two hundred million pairs, seconds
COLUMNS: Final = (*CSV_COLUMNS, "fault", "day")
FORMATS: Final = (".parquet", ".csv", ".json")


@dataclass(frozen=True)
class Observation:
    """A scored picture.

    Attributes:
        score: with its contract.
        fault: the likeliest distortion, `pristine` for none; empty if the model cannot name any.
        phash: `images.perceptual_hash`.
        day: of the picture in ISO 8601, from EXIF or else of the file; empty for what is no file.
    """

    score: Score
    fault: str
    phash: str
    day: str


def observe(scorer: Scorer, paths: Iterable[Path | Failure]) -> Iterator[Observation | Failure]:
    """Score pictures, in order and at bounded memory, and note what else their pixels tell.

    Args:
        scorer: the model.
        paths: as `inputs.find_images` gives them.
    """
    hashes: dict[str, str] = {}

    def note(items: Iterable[NamedPicture | Failure]) -> Iterator[NamedPicture | Failure]:
        for item in items:
            if not isinstance(item, Failure):
                hashes[item[0]] = images.perceptual_hash(item[1])
            yield item

    for item, fault in scorer.diagnose_pictures(note(decode_ahead(paths))):
        if isinstance(item, Failure):
            yield item
        else:
            yield Observation(item, fault, hashes[item.path], read_day(Path(item.path)))


def read_day(path: Path) -> str:
    """The day on which a picture was taken: by its EXIF, else by the time of its file. ISO 8601; empty for no file."""
    try:
        return images.read_day(path) or datetime.fromtimestamp(path.stat().st_mtime).date().isoformat()
    except (OSError, images.BadImage):  # it was scored, and has been deleted or replaced since
        return ""


def group_copies(observations: Sequence[Observation], bits: int) -> list[list[Observation]]:
    """Groups of pictures that are near-duplicates of each other, largest first; in a group the best score first.

    Args:
        observations: of which the first MOST_COMPARED are compared.
        bits: of 64, by which the perceptual hashes of copies differ at most.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    hashes = [item.phash for item in observations[:MOST_COMPARED]]
    pairs = [(a, b) for a, b in near_duplicates(hashes, hashes, bits) if a < b]
    if not pairs:
        return []
    rows, columns = zip(*pairs, strict=True)
    graph = coo_matrix(([1] * len(pairs), (rows, columns)), shape=(len(hashes), len(hashes)))
    _, labels = connected_components(graph, directed=False)
    groups: dict[int, list[Observation]] = {}
    for item, label in zip(observations, labels, strict=False):
        groups.setdefault(int(label), []).append(item)
    copies = [sorted(group, key=lambda item: -item.score.score) for group in groups.values() if len(group) > 1]
    return sorted(copies, key=lambda group: (-len(group), group[0].score.path))


def as_row(item: Observation | Failure) -> dict[str, Any]:
    """A result as one row of COLUMNS; what it lacks is None."""
    if isinstance(item, Failure):
        row = flatten(item) | {"fault": None, "day": None}
    else:
        row = flatten(item.score) | {"fault": item.fault, "day": item.day}
    # A file name need not be Unicode, and a table must.
    return {
        name: value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
        for name, value in row.items()
    }


def write_table(items: Iterable[Observation | Failure], out: Path) -> None:
    """Write results as `.parquet`, `.csv` or `.json`, by the name of the file, with COLUMNS; whole or not at all.

    Cells of a CSV are escaped as those of `contrique score --format csv`.
    """
    rows = [as_row(item) for item in items]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    with write_aside(out) as aside:
        if out.suffix == ".parquet":
            numbers = [column for column in CSV_COLUMNS if column not in TEXT_COLUMNS]
            table[numbers] = table[numbers].astype("float64")
            table.to_parquet(aside, index=False)
        elif out.suffix == ".csv":
            import csv

            for column in (*TEXT_COLUMNS, "fault"):
                table[column] = [escape_cell(text) if isinstance(text, str) else text for text in table[column]]
            table.to_csv(aside, index=False, quoting=csv.QUOTE_ALL, lineterminator="\n")
        else:
            aside.write_text(dump_json(rows, indent=2) + "\n", encoding="utf-8")
