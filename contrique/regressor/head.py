"""A fitted head: ridge, what it was fitted on, and what comes with its scores."""

import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from contrique.artifacts import COEFFICIENTS, DESCRIPTION
from contrique.files import write_aside
from contrique.regressor.diagnosis import Diagnosis
from contrique.regressor.reliability import Novelty
from contrique.regressor.ridge import RegressorError, Ridge

FORMAT: Final = 1


@dataclass(frozen=True)
class RegressorSummary:
    """What a regressor was fitted on; `regressor.json` holds it.

    Attributes:
        labels: `human` (MOS) or `weak` (full-reference metrics).
        label_low, label_high: declared range of the labels, higher is better: [0, 1] for weak labels, lowest and
            highest training label for human ones.
        alpha: chosen by SRCC on the validation part.
        n: training pictures.
        contents: training contents.
        validation_n: validation pictures.
        validation_srcc: SRCC that chose alpha, hence optimistic.
        features_dim: D.
        interval: half-width of the conformal interval of `reliability.COVERAGE`, in the unit of the labels; None if
            there were too few residuals, or in a file from before it was kept.
        interval_n: residuals that set it.
        diagnosis_accuracy: share of held-out synthesized pictures whose distortion is named right; None without them.
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
    format: int = FORMAT


@dataclass(frozen=True)
class Companions:
    """What is fitted beside a ridge on the same features; None for what could not be, or was not yet kept.

    Attributes:
        novelty: tells pictures unlike the training ones.
        diagnosis: names the likeliest distortion.
    """

    novelty: Novelty | None = None
    diagnosis: Diagnosis | None = None


def save_head(ridge: Ridge, summary: RegressorSummary, directory: Path, companions: Companions | None = None) -> None:
    """Write `ridge.npz` (coef, intercept, alpha, and what `companions` hold) and `regressor.json`.

    The same regressor gives the same bytes.
    """
    arrays: dict[str, Any] = {
        "coef": ridge.coef,
        "intercept": np.float64(ridge.intercept),
        "alpha": np.float64(ridge.alpha),
    }
    novelty, diagnosis = (companions.novelty, companions.diagnosis) if companions else (None, None)
    if novelty:
        arrays |= {"novelty_bank": novelty.bank, "novelty_threshold": np.float64(novelty.threshold)}
    if diagnosis:
        arrays |= {
            "diagnosis_coef": diagnosis.coef,
            "diagnosis_intercept": diagnosis.intercept,
            "diagnosis_distortions": np.asarray(diagnosis.distortions, dtype=str),
            "diagnosis_levels": np.asarray(diagnosis.levels, dtype=np.int64),
        }
    with write_aside(directory) as aside:
        aside.mkdir()
        with (aside / COEFFICIENTS).open("wb") as file:
            np.savez(file, **arrays)
        (aside / DESCRIPTION).write_text(json.dumps(asdict(summary), indent=2, allow_nan=False) + "\n")


def load_head(directory: Path) -> tuple[Ridge, RegressorSummary]:
    """Read what `save` wrote.

    Raises:
        RegressorError: missing or damaged files, another format, NaN, or two files that do not belong together.
    """
    try:
        summary = RegressorSummary(**json.loads((directory / DESCRIPTION).read_text()))
        with np.load(directory / COEFFICIENTS, allow_pickle=False) as file:
            ridge = Ridge(file["coef"], float(file["intercept"]), float(file["alpha"]))
    except (OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise RegressorError(f"{directory}: not a readable regressor ({error}); fit it again") from error
    if summary.format != FORMAT:
        raise RegressorError(
            f"{directory}: regressor format {summary.format}, this version reads {FORMAT}; fit it again"
        )
    if ridge.coef.shape != (summary.features_dim,) or not np.isfinite([*ridge.coef, ridge.intercept]).all():
        raise RegressorError(f"{directory}: {COEFFICIENTS} does not fit {DESCRIPTION}; fit the regressor again")
    return ridge, summary


def load_companions(directory: Path) -> Companions:
    """Read what `save` wrote beside the coefficients; a file from before it was kept gives None for each.

    Raises:
        RegressorError: as `load`, or arrays that do not belong together.
    """
    ridge, _ = load_head(directory)
    with np.load(directory / COEFFICIENTS, allow_pickle=False) as file:
        held = {name: file[name] for name in file.files}
    try:
        novelty, diagnosis = None, None
        if "novelty_bank" in held:
            novelty = Novelty(held["novelty_bank"], float(held["novelty_threshold"]))
        if "diagnosis_coef" in held:
            diagnosis = Diagnosis(
                held["diagnosis_coef"],
                held["diagnosis_intercept"],
                tuple(map(str, held["diagnosis_distortions"])),
                tuple(map(int, held["diagnosis_levels"])),
            )
    except (KeyError, TypeError, ValueError) as error:
        raise RegressorError(f"{directory}: {COEFFICIENTS} is incomplete ({error}); fit the regressor again") from error
    held_widths = [held[name].shape[1:] for name in ("novelty_bank", "diagnosis_coef") if name in held]
    if any(width != ridge.coef.shape for width in held_widths):
        raise RegressorError(f"{directory}: {COEFFICIENTS} holds arrays of another width; fit the regressor again")
    return Companions(novelty, diagnosis)
