"""Pictures to scores, each with its contract: value, range, direction, labels and model version."""

import csv
import glob
import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from contrique import images
from contrique.errors import ContriqueError

if TYPE_CHECKING:
    import pandas as pd

    from contrique.encoder import Encoder

Scores = NDArray[np.float64]
Format = Literal["table", "json", "csv"]
RANGE = (0.0, 100.0)
DIRECTION = "higher is better"


class ScorerError(ContriqueError):
    """A model whose parts do not belong together, or a picture that it cannot score."""


@dataclass(frozen=True)
class Score:
    """One picture's score and everything that is needed to read it.

    Attributes:
        path: the picture.
        score: quality in `range`; `raw` mapped linearly from the declared range of the training labels, clipped.
        raw: the regressor's output, on the scale of its training labels, not clipped.
        range: lowest and highest possible `score`.
        direction: `higher is better`.
        model: version in the registry; empty for a model that is not registered.
        labels: what the regressor learned from: `human` opinion scores, or `weak` full-reference labels.
    """

    path: str
    score: float
    raw: float
    model: str
    labels: str
    range: tuple[float, float] = RANGE
    direction: str = DIRECTION


@dataclass(frozen=True)
class Failure:
    """A path that gave no score, and why, in one line."""

    path: str
    error: str


class Scorer:
    """A frozen encoder and a regressor: the whole no-reference model.

    Each picture goes through the network alone, so its score does not depend on its neighbours.

    Args:
        encoder: a `.safetensors` file.
        regressor: folder with `ridge.npz` and `regressor.json`.
        version: in the registry, if it comes from there.
    Raises:
        EncoderError, RegressorError: a file is missing or damaged.
        ScorerError: the regressor was fitted on features of another width.
    """

    def __init__(self, encoder: Path | str, regressor: Path | str, version: str = "") -> None:
        import torch

        from contrique.encoder import load_encoder
        from contrique.regressor import load

        self.version = version
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._encoder = load_encoder(Path(encoder)).to(self._device).to(memory_format=torch.channels_last)
        self._ridge, self._fitted = load(Path(regressor))
        given, expected = 2 * self._encoder.width, self._fitted.features_dim
        if given != expected:
            raise ScorerError(
                f"{regressor}: fitted on {expected} features, but {encoder} gives {given}; "
                "give the regressor that was fitted on this encoder's features"
            )
        if not self._fitted.label_low < self._fitted.label_high:
            raise ScorerError(f"{regressor}: the declared range of its labels is empty; fit the regressor again")

    @property
    def labels(self) -> str:
        """`human` or `weak`."""
        return self._fitted.labels

    @property
    def encoder(self) -> "Encoder":
        """The frozen encoder, for other regressors on the same features."""
        return self._encoder

    def raw(self, pictures: Iterable[images.Picture]) -> Scores:
        """The regressor's output, on the scale of its training labels.

        Args:
            pictures: RGB. Each of shape (H, W, 3), uint8, H and W at least 64; taken one at a time.
        Returns:
            Shape (N,), float64.
        Raises:
            ImageTooSmall: a side is under 64 pixels.
        """
        return np.array([self._raw(picture) for picture in pictures], dtype=np.float64)

    def score(self, pictures: Iterable[images.Picture]) -> Scores:
        """Scores in RANGE, higher is better. Arguments and errors as `raw`. Shape (N,), float64."""
        return np.asarray(self._scaled(self.raw(pictures)))

    def judge(self, data: bytes, name: str) -> Score | Failure:
        """Score an encoded image file; one that cannot be scored gives a Failure.

        Args:
            data: the file's bytes, in any format of `images.decode`.
            name: what the result calls it.
        """
        try:
            pixels = images.decode(data, name).pixels
            raw = self._raw(pixels)
            if not np.isfinite(raw):
                raise ScorerError("the model gave no finite number; roll it back")
        except ContriqueError as error:
            return Failure(name, _named(name, error))
        return Score(name, float(self._scaled(np.float64(raw))), raw, self.version, self.labels)

    def score_paths(self, paths: Iterable[str | Path]) -> Iterator[Score | Failure]:
        """Score files, folders and globs, one picture in memory at a time.

        Folders give every image file below them, sorted by path. A path that does not exist, a folder without
        images and a file that is not an image each give a Failure, and the rest goes on.
        """
        for found in find_images(paths):
            if isinstance(found, Failure):
                yield found
                continue
            try:
                data = found.read_bytes()
            except OSError as error:
                yield Failure(str(found), f"{found}: cannot be read ({error.strerror}); check its permissions")
                continue
            yield self.judge(data, str(found))

    def rescore(self, *sets: Path) -> "Rescore":
        """This model as a function of manifest rows; see Rescore."""
        return Rescore(self, sets)

    def _raw(self, picture: images.Picture) -> float:
        from contrique.features import extract_one

        return float(self._ridge.predict(extract_one(picture, self._encoder)[None])[0])

    def _scaled(self, raw: Any) -> Any:
        low, high = self._fitted.label_low, self._fitted.label_high
        return np.clip(RANGE[0] + (RANGE[1] - RANGE[0]) * (raw - low) / (high - low), *RANGE)


class Rescore:
    """A champion, ready to be tested on the pictures of a challenger's test part.

    Rows are found by the content hash of their file, so that rows gathered from several picture sets need not say
    which one they came from.

    Args:
        scorer: the champion.
        sets: picture sets that hold the pictures.
    """

    def __init__(self, scorer: Scorer, sets: Iterable[Path]) -> None:
        from contrique.dataset import read_manifest

        self.version = scorer.version
        self._scorer = scorer
        self._found = {row.sha256: (folder, row) for folder in sets for row in read_manifest(folder).itertuples()}

    def __call__(self, rows: "pd.DataFrame") -> Scores:
        """Raw scores of manifest rows, in order: not clipped, so that ranks are kept. Shape (N,), float64.

        Raises:
            ScorerError: a row's picture is in none of the sets.
            BadImage: a picture cannot be decoded.
        """
        from tqdm import tqdm

        from contrique.dataset import picture

        missing = [row.image for row in rows.itertuples() if row.sha256 not in self._found]
        if missing:
            raise ScorerError(
                f"{len(missing)} pictures to rescore are in none of the picture sets, first {missing[0]}; "
                "give the sets that the features were extracted from"
            )
        pictures = (picture(*self._found[sha256]) for sha256 in rows["sha256"])
        return self._scorer.raw(
            tqdm(pictures, total=len(rows), desc="champion", unit="img", file=sys.stderr, disable=None)
        )


def find_images(paths: Iterable[str | Path]) -> Iterator[Path | Failure]:
    """The image files that paths stand for, in the order of `paths`, lazily.

    Args:
        paths: files (taken whatever their name), folders (every file below with a suffix of `images.EXTENSIONS`,
            sorted) or globs (`**` goes down folders; matches sorted).
    """
    for given in paths:
        try:
            yield from _expanded(str(given))
        except OSError as error:  # a name that is too long, a parent that may not be entered
            yield _unreadable(error)


def _expanded(given: str) -> Iterator[Path | Failure]:
    path = Path(given)
    if path.is_dir():
        yield from _below(path)
    elif path.exists():
        yield path
    elif not glob.has_magic(given):
        yield Failure(given, f"{given}: no such file; check the path")
    else:
        # Path.glob takes no absolute pattern
        matches = sorted(Path(match) for match in glob.iglob(given, recursive=True))  # noqa: PTH207
        files = [match for match in matches if match.is_file()]
        yield from files
        if not files:
            yield Failure(given, f"{given}: matches no file; check the pattern")


def _below(folder: Path) -> Iterator[Path | Failure]:
    failures: list[Failure] = []
    found = 0
    for parent, folders, files in os.walk(folder, onerror=lambda error: failures.append(_unreadable(error))):
        folders.sort()
        for name in sorted(files):
            path = Path(parent) / name
            if path.suffix.lower() in images.EXTENSIONS and path.is_file():
                found += 1
                yield path
    if not found and not failures:
        expected = ", ".join(sorted(images.EXTENSIONS))
        failures.append(Failure(str(folder), f"{folder}: no image files below it; expected {expected}"))
    yield from failures


def _unreadable(error: OSError) -> Failure:
    return Failure(str(error.filename), f"{error.filename}: cannot be read ({error.strerror}); check its permissions")


def _named(name: str, error: ContriqueError) -> str:
    line = " ".join(str(error).split())
    return line if line.startswith(name) else f"{name}: {line}"


def as_dict(item: Score | Failure) -> dict[str, Any]:
    """A score, or a failure, as plain values for JSON."""
    return asdict(item)


def write(items: Iterable[Score | Failure], file: IO[str], form: Format = "table") -> int:
    """Write results as they come, one line each.

    Args:
        items: results.
        file: text stream.
        form: `json` (a list of objects with `path` and either `score` and its fields, or `error`), `csv` (one
            header, the same columns for scores and failures) or `table` (for people).
    Returns:
        how many failed.
    """
    return {"table": _write_table, "json": _write_json, "csv": _write_csv}[form](items, file)


def _write_json(items: Iterable[Score | Failure], file: IO[str]) -> int:
    failed = 0
    before = "[\n  "
    for item in items:
        failed += isinstance(item, Failure)
        file.write(before + json.dumps(as_dict(item), ensure_ascii=False))
        before = ",\n  "
    file.write("[]\n" if before.startswith("[") else "\n]\n")
    return failed


CSV_COLUMNS = ("path", "score", "raw", "low", "high", "direction", "model", "labels", "error")


def flat(item: Score | Failure) -> dict[str, Any]:
    """A result as one row of CSV_COLUMNS; what it lacks is None."""
    row: dict[str, Any] = dict.fromkeys(CSV_COLUMNS) | as_dict(item)
    if isinstance(item, Score):
        row["low"], row["high"] = row.pop("range")
    return row


def _write_csv(items: Iterable[Score | Failure], file: IO[str]) -> int:
    failed = 0
    writer = csv.DictWriter(file, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for item in items:
        failed += isinstance(item, Failure)
        writer.writerow(flat(item))
    return failed


def _write_table(items: Iterable[Score | Failure], file: IO[str]) -> int:
    failed = scored = 0
    last: Score | None = None
    file.write(" score  path\n")
    for item in items:
        if isinstance(item, Failure):
            failed += 1
            file.write(f"     -  {item.error}\n")
        else:
            scored, last = scored + 1, item
            file.write(f"{item.score:6.1f}  {item.path}\n")
    summary = f"{scored} scored, {failed} failed"
    if last:
        low, high = last.range
        model = f"model {last.model}" if last.model else "unregistered model"
        summary += f" | scale {low:.0f} to {high:.0f}, {last.direction} | {model}, learned from {last.labels} labels"
    file.write(summary + "\n")
    return failed
