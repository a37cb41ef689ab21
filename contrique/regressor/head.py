"""A fitted head: from features to a score, its interval, its distance from the training pictures and its distortion."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike

from contrique.arrays import Arrays, pick_array, pick_number, read_arrays
from contrique.artifacts import COEFFICIENTS, DESCRIPTION
from contrique.errors import one_line
from contrique.files import read_regular, write_aside
from contrique.metadata import Facts
from contrique.regressor.diagnosis import Diagnosis
from contrique.regressor.reliability import NEIGHBOURS, Novelty
from contrique.regressor.ridge import Array, RegressorError, Ridge

RANGE: Final = (0.0, 100.0)  # of a score
DIRECTION: Final = "higher is better"
FORMAT: Final = 1
MAX_DIMENSION: Final = 2**16  # features
MAX_ROWS: Final = 10_000  # of the bank and of the diagnosis
MAX_LEVEL: Final = 5
MAX_NAME: Final = 64  # characters of a distortion or of a prior
_MAX_DESCRIPTION_BYTES: Final = 2**20
_MAX_COEFFICIENT_BYTES: Final = 2**28


@dataclass(frozen=True)
class RegressorSummary(Facts):
    """What a regressor was fitted on; `regressor.json` holds it.

    Attributes:
        labels: `human` (MOS) or `weak` (full-reference metrics).
        label_low, label_high: declared range of the labels, higher is better: [0, 1] for weak labels, lowest and
            highest training label for human ones.
        alpha: chosen on the validation part (`cross_validation.choose_within_error`).
        n: training pictures.
        contents: training contents.
        validation_n: validation pictures.
        validation_srcc: SRCC of what chose alpha, hence optimistic.
        features_dim: D.
        interval: half-width of the conformal interval of `reliability.COVERAGE`, in the unit of the labels; None if
            there were too few residuals, or in a file from before it was kept.
        interval_n: residuals that set it.
        diagnosis_accuracy: share of held-out synthesized pictures whose distortion is named right; None without them.
        prior: whose head's scores were one more feature of the ridge (`regressor.prior`); empty for none.
        format: version of the two files.
    """

    labels: str
    label_low: float
    label_high: float
    alpha: float
    n: int
    contents: int
    validation_n: int
    validation_srcc: float
    features_dim: int
    interval: float | None = None
    interval_n: int = 0
    diagnosis_accuracy: float | None = None
    prior: str = ""
    format: int = FORMAT


@dataclass(frozen=True)
class Head:
    """All that stands between frozen features and a score with its contract.

    Attributes:
        ridge: features to raw scores, in the unit of the training labels.
        summary: what it was fitted on.
        novelty: tells pictures unlike the training ones; None if it could not be fitted, or was not yet kept.
        diagnosis: names the likeliest distortion; None likewise.
    """

    ridge: Ridge
    summary: RegressorSummary
    novelty: Novelty | None = None
    diagnosis: Diagnosis | None = None

    @classmethod
    def load(cls, folder: Path) -> "Head":
        """Read `regressor.json` and `ridge.npz`, and trust neither: shapes, types and ranges are checked.

        Files from before interval, novelty and diagnosis were kept give None for each.

        Raises:
            RegressorError: a file is missing, damaged, too large or of another format, holds values that no fitted
                head has, or does not belong to the other.
        """
        try:
            summary = _read_summary(read_regular(folder / DESCRIPTION, _MAX_DESCRIPTION_BYTES))
            return _read_head(summary, read_arrays(folder / COEFFICIENTS, _MAX_COEFFICIENT_BYTES))
        except Exception as error:  # a damaged or hostile file raises many unrelated types
            raise RegressorError(f"{folder}: not a readable regressor ({one_line(error)}); fit it again") from error

    def save(self, folder: Path) -> None:
        """Write `regressor.json` (the summary) and `ridge.npz` (all the rest); the same head gives the same bytes."""
        arrays: dict[str, Any] = {
            "coef": self.ridge.coef,
            "intercept": np.float64(self.ridge.intercept),
            "alpha": np.float64(self.ridge.alpha),
        }
        if self.novelty:
            arrays |= {"novelty_bank": self.novelty.bank, "novelty_threshold": np.float64(self.novelty.threshold)}
        if self.diagnosis:
            arrays |= {
                "diagnosis_coef": self.diagnosis.coef,
                "diagnosis_intercept": self.diagnosis.intercept,
                "diagnosis_distortions": np.asarray(self.diagnosis.distortions, dtype=str),
                "diagnosis_levels": np.asarray(self.diagnosis.levels, dtype=np.int64),
            }
        with write_aside(folder) as aside:
            aside.mkdir()
            with (aside / COEFFICIENTS).open("wb") as file:
                np.savez(file, **arrays)
            (aside / DESCRIPTION).write_text(json.dumps(asdict(self.summary), indent=2, allow_nan=False) + "\n")

    def predict(self, features: ArrayLike) -> Array:
        """Raw scores, in the unit of the training labels, not clipped. Arguments and errors as `Ridge.predict`."""
        return self.ridge.predict(features)

    def to_points(self, raw: ArrayLike, *, clip: bool = True) -> Array:
        """Raw scores in RANGE: linear from the declared range of the labels. The only such mapping.

        Args:
            raw: any shape.
            clip: whether values beyond the ends of RANGE become those ends.
        Returns:
            of the shape of `raw`, float64.
        """
        points = RANGE[0] + self._stretch(np.asarray(raw, np.float64) - self.summary.label_low)
        return np.asarray(np.clip(points, *RANGE) if clip else points)

    @property
    def point(self) -> float:
        """One point of RANGE, in the unit of the labels."""
        return (self.summary.label_high - self.summary.label_low) / (RANGE[1] - RANGE[0])

    @property
    def half_width(self) -> float | None:
        """Of the conformal interval, in points of RANGE; None for a head without."""
        return None if self.summary.interval is None else float(self._stretch(self.summary.interval))

    def interval(self, raw: float) -> tuple[float, float] | None:
        """Lower and upper end of the conformal interval around a raw score, in RANGE; None for a head without."""
        if self.summary.interval is None:
            return None
        low, high = (float(self.to_points(raw + side * self.summary.interval)) for side in (-1, 1))
        return low, high

    def _stretch(self, difference: Any) -> Any:
        """A difference of two raw scores in points of RANGE."""
        return (RANGE[1] - RANGE[0]) * difference / (self.summary.label_high - self.summary.label_low)


def _read_summary(data: bytes) -> RegressorSummary:
    summary = RegressorSummary(**json.loads(data))
    if summary.format != FORMAT:
        _refuse(f"format {summary.format!r}, this version reads {FORMAT}")
    _check_summary(summary)
    return summary


def _check_summary(summary: RegressorSummary) -> None:
    """Raise RegressorError for a value that no fitted regressor has."""
    if summary.labels not in ("human", "weak"):
        _refuse(f"labels {summary.labels!r}, expected human or weak")
    ranges: dict[str, tuple[float, float]] = {
        "label_low": (-math.inf, math.inf),
        "label_high": (-math.inf, math.inf),
        "alpha": (0, math.inf),
        "validation_srcc": (-1, 1),
    }
    ranges |= {name: (0, math.inf) for name in ("interval",) if summary.interval is not None}
    ranges |= {name: (0, 1) for name in ("diagnosis_accuracy",) if summary.diagnosis_accuracy is not None}
    for name, (low, high) in ranges.items():
        value = getattr(summary, name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not low <= value <= high:
            _refuse(f"{name} is {value!r}, expected a number from {low:g} to {high:g}")
    for name, low in (("n", 1), ("contents", 1), ("validation_n", 0), ("features_dim", 1), ("interval_n", 0)):
        value = getattr(summary, name)
        if type(value) is not int or not low <= value < 2**53:
            _refuse(f"{name} is {value!r}, expected a whole number from {low}")
    if summary.features_dim > MAX_DIMENSION:
        _refuse(f"features_dim is {summary.features_dim}, over {MAX_DIMENSION}")
    _check_name("a prior", summary.prior)
    width = summary.label_high - summary.label_low
    if not 0 < width < math.inf:
        _refuse(f"the declared range of its labels is empty: {summary.label_low:g} to {summary.label_high:g}")


def _read_head(summary: RegressorSummary, arrays: Arrays) -> Head:
    width = (summary.features_dim,)
    ridge = Ridge(
        pick_array(arrays, "coef", np.float64, width),
        pick_number(arrays, "intercept"),
        pick_number(arrays, "alpha"),
    )
    if ridge.alpha <= 0:
        _refuse(f"alpha is {ridge.alpha:g}, expected more than 0")
    novelty = diagnosis = None
    if any(name.startswith("novelty_") for name in arrays):
        bank = pick_array(arrays, "novelty_bank", np.float32, (None, *width), MAX_ROWS)
        novelty = Novelty(bank, pick_number(arrays, "novelty_threshold"))
        if novelty.threshold <= 0 or len(bank) < NEIGHBOURS:
            _refuse(f"{len(bank)} novelty pictures with a threshold of {novelty.threshold:g}: nothing to compare with")
    if any(name.startswith("diagnosis_") for name in arrays):
        diagnosis = _read_diagnosis(arrays, width)
    return Head(ridge, summary, novelty, diagnosis)


def _read_diagnosis(arrays: Arrays, width: tuple[int]) -> Diagnosis:
    coef = pick_array(arrays, "diagnosis_coef", np.float32, (None, *width), MAX_ROWS)
    rows = (len(coef),)
    names = pick_array(arrays, "diagnosis_distortions", np.str_, rows)
    levels = pick_array(arrays, "diagnosis_levels", np.int64, rows)
    intercept = pick_array(arrays, "diagnosis_intercept", np.float32, rows)
    for name in map(str, names):
        _check_name("a distortion", name, 1)
    if not all(-1 <= level <= MAX_LEVEL for level in levels):
        _refuse(f"levels {levels.min()} to {levels.max()}, expected at most {MAX_LEVEL}")
    return Diagnosis(coef, intercept, tuple(map(str, names)), tuple(map(int, levels)))


def _check_name(kind: str, name: object, least: int = 0) -> None:
    if not isinstance(name, str) or not least <= len(name) <= MAX_NAME or not name.isprintable():
        _refuse(f"{kind} called {str(name)[:MAX_NAME]!r}")


def _refuse(reason: str) -> None:
    raise RegressorError(reason)
