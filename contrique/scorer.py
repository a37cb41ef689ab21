"""Pictures to scores, each with its contract: value, range, direction, labels and model version."""

import csv
import glob
import json
import math
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from contrique import images
from contrique.errors import ContriqueError
from contrique.reliability import COVERAGE
from contrique.storage import sha256

if TYPE_CHECKING:
    import pandas as pd

    from contrique.backends import Backend
    from contrique.encoder import Encoder
    from contrique.explain import Diagnosis

Scores = NDArray[np.float64]
Format = Literal["table", "json", "csv"]
RANGE = (0.0, 100.0)
DIRECTION = "higher is better"
TOLERANCE = 0.01  # of RANGE, in float32: the same picture alone or in a batch, by any number of threads, on any device
UNLIKE = "unlike the training pictures ({:.1f} times as far from them as 99 % of pictures like them)"
AHEAD = 8  # pictures decoded before their turn
AHEAD_PIXELS = 2**22  # a picture with more is read and decoded in its turn
BATCH_PIXELS = {"cpu": 2**18, "cuda": 2**23}  # in one pass of the encoder, unless one picture has more


class ScorerError(ContriqueError):
    """A model whose parts do not belong together, or a picture that it cannot score."""


@dataclass(frozen=True)
class Score:
    """One picture's score and everything that is needed to read it.

    Attributes:
        path: the picture.
        score: quality in `range`; `raw` mapped linearly from the declared range of the training labels, clipped.
        raw: the regressor's output, on the scale of its training labels, not clipped.
        interval: where a person's (or, for weak labels, the metrics') judgement of the picture lies with a probability
            of `reliability.COVERAGE`, on the scale of `score`: conformal, so it holds on average over pictures like
            the training ones. None for a model that was fitted without.
        distance: how unlike the training pictures it is; above 1 is farther than 99 % of pictures like them. None for
            a model that cannot tell.
        warning: empty, or in words that the picture is unlike the training pictures. None if `distance` is.
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
    interval: tuple[float, float] | None = None
    distance: float | None = None
    warning: str | None = None
    range: tuple[float, float] = RANGE
    direction: str = DIRECTION


@dataclass(frozen=True)
class Failure:
    """A path that gave no score, and why, in one line."""

    path: str
    error: str

    @classmethod
    def of(cls, name: str, error: ContriqueError) -> "Failure":
        """A failure that begins with the name of what failed."""
        line = " ".join(str(error).split())
        return cls(name, line if line.startswith(name) else f"{name}: {line}")


Named = tuple[str, images.Picture]


class Scorer:
    """A frozen encoder and a regressor: the whole no-reference model.

    A picture's score does not depend on its neighbours, on the number of threads or on the device, beyond rounding:
    TOLERANCE.

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

        from contrique.backends import Torch
        from contrique.encoder import load_encoder
        from contrique.regressor import load, load_companions

        self.version = version
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._encoder = load_encoder(Path(encoder)).to(self._device).to(memory_format=torch.channels_last)
        self._hash = sha256(Path(encoder))
        self._ridge, self._fitted = load(Path(regressor))
        self._companions = load_companions(Path(regressor))
        self._backend: Backend = Torch(self._encoder)
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

    @property
    def diagnosis(self) -> "Diagnosis | None":
        """Names the likeliest distortion; None if the model was fitted without synthesized pictures."""
        return self._companions.diagnosis

    def use(self, backend: str = "torch", precision: str = "float32") -> str:
        """Run the encoder by another backend from now on.

        Args:
            backend: `torch`, `onnx`, `openvino`, or `auto` for the fastest one measured here that agrees with PyTorch.
            precision: `float32`, or `bfloat16` where the backend has it.
        Returns:
            the backend's name.
        Raises:
            BackendError: not installed, or its scores are farther from those of PyTorch in float32 than is allowed.
        """
        from contrique import backends

        name, self._backend = backends.load(backend, self._encoder, self._hash, precision, self._score_of_features)
        return name

    def parity(self) -> dict[str, str]:
        """How near every other installed backend comes to PyTorch in float32: `backends.parity`."""
        from contrique import backends

        return backends.parity(self._encoder, self._hash, self._score_of_features)

    def raw(self, pictures: Iterable[images.Picture]) -> Scores:
        """The regressor's output, on the scale of its training labels.

        Args:
            pictures: RGB. Each of shape (H, W, 3), uint8, H and W at least 64; taken one at a time.
        Returns:
            Shape (N,), float64.
        Raises:
            ImageTooSmall: a side is under 64 pixels.
        """
        return np.array([self._raw(self._features(picture)) for picture in pictures], dtype=np.float64)

    def score(self, pictures: Iterable[images.Picture]) -> Scores:
        """Scores in RANGE, higher is better. Arguments and errors as `raw`. Shape (N,), float64."""
        return np.asarray(self.scaled(self.raw(pictures)))

    def scaled(self, raw: Any) -> Any:
        """Raw scores in RANGE, higher is better, clipped. Of the shape given."""
        low, high = self._fitted.label_low, self._fitted.label_high
        return np.clip(RANGE[0] + (RANGE[1] - RANGE[0]) * (raw - low) / (high - low), *RANGE)

    def local(self, picture: images.Picture) -> tuple[NDArray[np.float32], Scores]:
        """Features of a picture, and a raw score of each cell of conv5.

        The regressor takes each cell's vector, normalised as h is, for the features of a picture, at both scales. What
        is then left between the mean of the cells and the picture's own score is added to every cell.

        Args:
            picture: RGB. Shape (H, W, 3), uint8, H and W at least 64.
        Returns:
            features, shape (2 * width,), float32, and scores, shape (ceil(H / 32), ceil(W / 32)), float64.
        Raises:
            ImageTooSmall: a side is under 64 pixels.
        """
        from contrique.features import local_products, spread

        features = self._features(picture)
        width = len(features) // 2
        full, half = (
            local_products(scale, self._backend, self._ridge.coef[part])
            for scale, part in ((picture, slice(width)), (images.half_scale(picture), slice(width, None)))
        )
        cells = full + spread(half, full.shape, 2)
        return features, cells + (self._raw(features) - cells.mean())

    def judge(self, data: bytes, name: str, max_pixels: int = images.MAX_PIXELS) -> Score | Failure:
        """Score an encoded image file; one that cannot be scored gives a Failure.

        Args:
            data: the file's bytes, in any format of `images.decode`.
            name: what the result calls it.
            max_pixels: above which it is refused undecoded.
        """
        try:
            pixels = images.decode(data, name, max_pixels).pixels
        except ContriqueError as error:
            return Failure.of(name, error)
        return next(self._judged([(name, pixels)]))

    def score_paths(self, paths: Iterable[str | Path]) -> Iterator[Score | Failure]:
        """Score files, folders and globs, in order, at bounded memory: the next few are decoded meanwhile.

        Folders give every image file below them, sorted by path. A path that does not exist, a folder without
        images and a file that is not an image each give a Failure, and the rest goes on.
        """
        budget = BATCH_PIXELS[self._device]
        for batch in _batches(_decoded_ahead(find_images(paths)), budget):
            if isinstance(batch, Failure):
                yield batch
            else:
                yield from self._judged(batch)

    def rescore(self, *sets: Path) -> "Rescore":
        """This model as a function of manifest rows; see Rescore."""
        return Rescore(self, sets)

    def _judged(self, batch: list[Named]) -> Iterator[Score | Failure]:
        """Results of pictures of one size."""
        from contrique.features import describe

        # a view of one picture: a copy of 100 megapixels would be 300 MB
        pictures = batch[0][1][None] if len(batch) == 1 else np.stack([pixels for _, pixels in batch])
        try:
            features = describe(pictures, self._backend)
        except ContriqueError as error:
            yield from (Failure.of(name, error) for name, _ in batch)
            return
        for (name, _), row in zip(batch, features, strict=True):
            try:
                yield self.contract(name, row)
            except ContriqueError as error:
                yield Failure.of(name, error)

    def contract(self, name: str, features: NDArray[np.float32]) -> Score:
        """A picture's score with everything that comes with it.

        Args:
            name: what the result calls it.
            features: shape (2 * width,), float32.
        Raises:
            RegressorError, ScorerError: NaN in the features, or a score that is no finite number.
        """
        raw = self._raw(features)
        if not np.isfinite(raw):
            raise ScorerError("the model gave no finite number; roll it back")
        interval, distance, warning = None, None, None
        if (radius := self._fitted.interval) is not None:
            interval = (float(self.scaled(raw - radius)), float(self.scaled(raw + radius)))
        if novelty := self._companions.novelty:
            distance = float(novelty.distance(features[None])[0])
            warning = UNLIKE.format(distance) if distance > 1 else ""
        value = float(self.scaled(np.float64(raw)))
        return Score(name, value, raw, self.version, self.labels, interval, distance, warning)

    def _features(self, picture: images.Picture) -> NDArray[np.float32]:
        from contrique.features import describe

        return np.asarray(describe(picture[None], self._backend)[0])

    def _raw(self, features: NDArray[np.float32]) -> float:
        return float(self._ridge.predict(features[None])[0])

    def _score_of_features(self, features: NDArray[np.float32]) -> Scores:
        """On the scale of RANGE, not clipped: two backends must agree beyond its ends too. Shape (N,)."""
        low, high = self._fitted.label_low, self._fitted.label_high
        return np.asarray((RANGE[1] - RANGE[0]) * self._ridge.predict(features) / (high - low))


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


def _decoded_ahead(found: Iterable[Path | Failure]) -> Iterator[Named | Failure]:
    """Decoded pictures in order; threads decode the next ones while one is scored."""
    pool = ThreadPoolExecutor(2, "decode")
    waiting: deque[Future[Named | Path | Failure]] = deque()
    try:
        for item in found:
            waiting.append(pool.submit(_decoded, item))
            if len(waiting) > AHEAD:
                yield _in_turn(waiting.popleft().result())
        while waiting:
            yield _in_turn(waiting.popleft().result())
    finally:
        pool.shutdown(cancel_futures=True)


def _decoded(found: Path | Failure, large: float = AHEAD_PIXELS) -> Named | Path | Failure:
    """A picture; the path as it is if it has more than `large` pixels."""
    if isinstance(found, Failure):
        return found
    try:
        data = images.read_bytes(found)
        width, height = images.declared_size(data, str(found))
        return found if width * height > large else (str(found), images.decode(data, str(found)).pixels)
    except ContriqueError as error:
        return Failure.of(str(found), error)


def _in_turn(item: Named | Path | Failure) -> Named | Failure:
    if not isinstance(item, Path):
        return item
    done = _decoded(item, math.inf)
    assert not isinstance(done, Path)
    return done


def _batches(items: Iterable[Named | Failure], budget: int) -> Iterator[list[Named] | Failure]:
    """Neighbours of one size together, at most `budget` pixels; failures in their place."""
    batch: list[Named] = []
    for item in items:
        alike = batch and not isinstance(item, Failure) and item[1].shape == batch[0][1].shape
        if batch and not (alike and (len(batch) + 1) * batch[0][1].size <= 3 * budget):
            yield batch
            batch = []
        if isinstance(item, Failure):
            yield item
        else:
            batch.append(item)
    if batch:
        yield batch


def _unreadable(error: OSError) -> Failure:
    return Failure(str(error.filename), f"{error.filename}: cannot be read ({error.strerror}); check its permissions")


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


CSV_COLUMNS = (
    *("path", "score", "raw", "low", "high", "direction", "model", "labels", "error"),
    *("interval_low", "interval_high", "distance", "warning"),
)
TEXT_COLUMNS = ("path", "direction", "model", "labels", "error", "warning")  # the others hold numbers


def flat(item: Score | Failure) -> dict[str, Any]:
    """A result as one row of CSV_COLUMNS; what it lacks is None."""
    row: dict[str, Any] = dict.fromkeys(CSV_COLUMNS) | as_dict(item)
    if isinstance(item, Score):
        row["low"], row["high"] = row.pop("range")
        row["interval_low"], row["interval_high"] = row.pop("interval") or (None, None)
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
    file.write(f" score  {COVERAGE:.0%} interval  path\n")
    for item in items:
        if isinstance(item, Failure):
            failed += 1
            file.write(f"     -             -  {item.error}\n")
        else:
            scored, last = scored + 1, item
            within = f"{item.interval[0]:.1f} - {item.interval[1]:.1f}" if item.interval else "unknown"
            file.write(f"{item.score:6.1f}  {within:>12}  {item.path}{' | ' + item.warning if item.warning else ''}\n")
    summary = f"{scored} scored, {failed} failed"
    if last:
        low, high = last.range
        model = f"model {last.model}" if last.model else "unregistered model"
        summary += f" | scale {low:.0f} to {high:.0f}, {last.direction} | {model}, learned from {last.labels} labels"
    file.write(summary + "\n")
    return failed
