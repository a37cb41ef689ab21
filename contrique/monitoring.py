"""Are the pictures that a model scores still like those that it was judged on?

Three distributions are compared with a reference that is kept beside the regressor: scores, distances of the features
to the training mean, and the mix of distortion types. Each by the population stability index (PSI); the continuous
ones by Kolmogorov and Smirnov's test too, for information. A PSI counts as drift if it is both large and more than
chance makes of samples of these sizes (Yurdakul 2018): between equal distributions PSI / (1/n + 1/m) follows a
chi-squared law with one degree of freedom less than there are bins.
"""

import itertools
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from contrique import pages
from contrique.arrays import pick_array, read_arrays
from contrique.artifacts import DRIFT_REFERENCE, SCORES, SUMMARY
from contrique.config import DriftConfig, RegistryConfig
from contrique.errors import ContriqueError, one_line
from contrique.files import write_aside
from contrique.metadata import Facts, Metadata, describe

if TYPE_CHECKING:
    from contrique.regressor.diagnosis import Diagnosis
    from contrique.scoring.results import Failure
    from contrique.scoring.scorer import Scorer


SAMPLE: Final = 5000  # pictures of the reference, at most
_MAX_REFERENCE_BYTES: Final = 2**26
SMOOTHING: Final = 0.5  # added to each count: an empty bin would make PSI infinite (Jeffreys' prior)
Array = NDArray[np.float64]


class DriftError(ContriqueError):
    """Pictures or a model for which nothing can be said."""


class DriftFound(ContriqueError):
    """The pictures are unlike those that the model was judged on."""

    exit_status = 3


@dataclass(frozen=True)
class Reference:
    """What the model was judged on.

    Attributes:
        scores: raw, of pictures that the ridge was not fitted to. Shape (n,).
        distances: of the features of the same pictures to `mean`. Shape (n,).
        types: likeliest distortion of each; empty for a model without a head for them. Shape (n,) or (0,).
        mean: of the features of all labelled pictures. Shape (D,).
    """

    scores: Array
    distances: Array
    types: NDArray[np.str_]
    mean: Array


@dataclass(frozen=True)
class Change:
    """How one distribution differs from the reference.

    Attributes:
        name: scores, distances or types.
        psi: population stability index; 0 for equal histograms.
        by_chance: PSI that equal distributions stay below with a probability of 1 - significance.
        ks_p: of Kolmogorov and Smirnov's two-sample test; None for types.
        drifted: `psi` is above both its threshold and `by_chance`.
        bins: of the histograms, in words.
        reference, current: shares of the bins. Each sums to 1.
    """

    name: str
    psi: float
    by_chance: float
    ks_p: float | None
    drifted: bool
    bins: list[str]
    reference: list[float]
    current: list[float]


@dataclass(frozen=True)
class ScoredSummary(Facts):
    """What `score_set` did: the model's version, pictures scored and failed."""

    model: str
    scored: int
    failed: int


def describe_changes(changes: Sequence[Change]) -> Metadata:
    """The stability indices, for the page of a run."""
    return describe({f"psi_{change.name}": change.psi for change in changes})


def keep_reference(features: Path, regressor: Path, *, seed: int = 0) -> int:
    """Write the reference of a regressor beside it, from the validation and test parts of its feature set.

    Args:
        features: the feature set that the regressor was fitted on.
        regressor: folder with `ridge.npz` and `regressor.json`; gets `drift.npz`.
        seed: draws at most SAMPLE pictures.
    Returns:
        the number of pictures in the reference.
    """
    from contrique.data.splits import judged_rows
    from contrique.encoder.feature_set import load_set
    from contrique.regressor.head import Head

    manifest, values = load_set(features)
    rows = judged_rows(manifest)
    mean = values[rows.index].mean(axis=0, dtype=np.float64)
    held_out = rows.index[rows["split"].isin(["validation", "test"])].to_numpy()
    sample = np.sort(np.random.default_rng(seed).permutation(held_out)[:SAMPLE])
    head = Head.load(regressor)
    with write_aside(regressor / DRIFT_REFERENCE) as aside, aside.open("wb") as file:
        np.savez(
            file,
            scores=head.predict(values[sample]),
            distances=distances(values[sample], mean),
            types=types(values[sample], head.diagnosis),
            mean=mean,
        )
    return len(sample)


def read_reference(regressor: Path) -> Reference:
    """What `keep_reference` wrote.

    Raises:
        DriftError: the model was fitted before references were kept, or the file is damaged.
    """
    from contrique.regressor.head import MAX_DIMENSION

    path = regressor / DRIFT_REFERENCE
    try:
        arrays = read_arrays(path, _MAX_REFERENCE_BYTES)
        scores = pick_array(arrays, "scores", np.float64, (None,), SAMPLE)
        far = pick_array(arrays, "distances", np.float64, scores.shape)
        kinds = pick_array(arrays, "types", np.str_, (None,), len(scores), least=0)
        reference = Reference(scores, far, kinds, pick_array(arrays, "mean", np.float64, (None,), MAX_DIMENSION))
        if (far < 0).any() or len(kinds) not in (0, len(scores)):
            raise ValueError("negative distances, or types of some pictures only")
    except Exception as error:  # a damaged or hostile file raises many unrelated types
        reason = one_line(error)
        raise DriftError(f"{path}: no readable reference ({reason}); train and register the model again") from error
    return reference


def distances(features: ArrayLike, mean: Array) -> Array:
    """Euclidean distance of each row to the mean. Shapes (N, D) and (D,) to (N,)."""
    return np.asarray(np.linalg.norm(np.asarray(features, np.float64) - mean, axis=1))


def types(features: ArrayLike, diagnosis: "Diagnosis | None") -> NDArray[np.str_]:
    """The likeliest distortion of each row. Shape (N,), or (0,) without a head for them."""
    if diagnosis is None:
        return np.array([], dtype=str)
    return np.array([diagnosis.suspects(row)[0].distortion for row in np.asarray(features)], dtype=str)


def score_set(pictures: str, out: Path, *, model: str, config: RegistryConfig) -> ScoredSummary:
    """Score every picture of a folder or an S3 prefix with a registered model; a bad file does not stop the rest.

    Args:
        pictures: a folder, or s3://bucket/prefix.
        out: folder to write: `scores.parquet` (the columns of `scorer.CSV_COLUMNS` and `mean_distance`, `type`), the
            model's reference, `drift.npz`, and what was done, `summary.json`.
        model: version or alias.
        config: names in MLflow.
    Raises:
        RegistryError: there is no such model, or it cannot be fetched.
        StorageError: the S3 location cannot be read.
        DriftError: no picture could be scored, or the model has no reference.
    """
    import pandas as pd
    from tqdm import tqdm

    from contrique import s3
    from contrique.registry.versions import Registry
    from contrique.scoring.inputs import find_images
    from contrique.scoring.scorer import Scorer

    with tempfile.TemporaryDirectory() as scratch, Registry(config).fetch(model) as files:
        folder = Path(pictures)
        if s3.is_s3(pictures):
            folder = Path(scratch, "pictures")
            s3.download(pictures, folder)
        scorer = Scorer(files.encoder, files.regressor, files.version)
        reference = read_reference(files.regressor)
        paths = tqdm(list(find_images([folder])), desc="scoring", unit="img", file=sys.stderr, disable=None)
        rows = [_score_row(path, folder, scorer, reference) for path in paths]
        with write_aside(out) as aside:
            aside.mkdir()
            pd.DataFrame(rows).to_parquet(aside / SCORES, index=False)
            shutil.copyfile(files.regressor / DRIFT_REFERENCE, aside / DRIFT_REFERENCE)
            failed = sum(bool(row["error"]) for row in rows)
            summary = ScoredSummary(files.version, len(rows) - failed, failed)
            (aside / SUMMARY).write_text(json.dumps(asdict(summary)))
    if failed == len(rows):
        raise DriftError(f"{pictures}: no picture could be scored, first: {rows[0]['error']}")
    return summary


def _score_row(path: "Path | Failure", folder: Path, scorer: "Scorer", reference: Reference) -> dict[str, Any]:
    """A row of `scores.parquet`."""
    from contrique import images
    from contrique.encoder.features import extract_one
    from contrique.scoring.results import Failure, flatten

    if isinstance(path, Failure):
        return flatten(path)
    name = path.name if path == folder else path.relative_to(folder).as_posix()
    try:
        features = extract_one(images.read(path), scorer.encoder)[None]
        row = flatten(scorer.contract(name, features[0]))
    except ContriqueError as error:
        return flatten(Failure(name, str(error)))
    kinds = types(features, scorer.head.diagnosis)
    return row | {
        "mean_distance": float(distances(features, reference.mean)[0]),
        "type": str(kinds[0]) if len(kinds) else "",
    }


def psi(reference: ArrayLike, current: ArrayLike) -> float:
    """Population stability index of two histograms: sum of (q - p) ln(q / p) over the bins' shares.

    Args:
        reference, current: counts. Shape (B,).
    """
    p, q = _shares(reference), _shares(current)
    return float(np.sum((q - p) * np.log(q / p)))


def _shares(counts: ArrayLike) -> Array:
    smooth = np.asarray(counts, np.float64) + SMOOTHING
    return np.asarray(smooth / smooth.sum())


def changes(reference: Reference, scores: Array, far: Array, kinds: Sequence[str], config: DriftConfig) -> list[Change]:
    """Each distribution against its reference.

    Args:
        reference: of the model.
        scores, far: raw scores and distances to the mean. Shape (N,).
        kinds: likeliest distortions, as the reference has them. Length N or 0.
        config: thresholds.
    """
    from scipy import stats

    results = []
    for name, old, new in (("scores", reference.scores, scores), ("distances", reference.distances, far)):
        edges = np.unique(np.quantile(old, np.linspace(0, 1, config.bins + 1)[1:-1]))
        before, now = (np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1) for values in (old, new))
        limits = ["-inf", *(f"{edge:.3g}" for edge in edges), "inf"]
        labels = [f"{low} to {high}" for low, high in itertools.pairwise(limits)]
        results.append(_change(name, labels, before, now, config, float(stats.ks_2samp(old, new).pvalue)))
    if len(reference.types):
        names = sorted({*map(str, reference.types), *kinds})
        before, now = (
            np.array([np.sum(np.asarray(each) == name) for name in names]) for each in (reference.types, kinds)
        )
        results.append(_change("types", names, before, now, config, None))
    return results


def _change(
    name: str, bins: list[str], old: NDArray[Any], new: NDArray[Any], config: DriftConfig, ks_p: float | None
) -> Change:
    from scipy import stats

    value = psi(old, new)
    noise = 1 / old.sum() + 1 / new.sum()
    by_chance = float(stats.chi2.ppf(1 - config.significance, max(1, len(bins) - 1)) * noise)
    drifted = value > max(config.psi, by_chance)
    return Change(name, value, by_chance, ks_p, drifted, bins, list(old / old.sum()), list(new / new.sum()))


def judge_set(scores: Path, out: Path, page: Path, *, config: DriftConfig) -> list[Change]:
    """Compare what `score_set` scored with its model's reference; write the verdict and a page for people.

    Args:
        scores: folder with `scores.parquet` and `drift.npz`.
        out: JSON file.
        page: HTML file.
        config: thresholds.
    Raises:
        DriftError: fewer than `config.min_pictures` scores.
    """
    import pandas as pd

    table = pd.read_parquet(scores / SCORES)
    good = table[table["error"].isna()]
    if len(good) < config.min_pictures:
        raise DriftError(
            f"{scores}: {len(good)} scored pictures say nothing of a distribution; "
            f"give at least {config.min_pictures} (drift.min_pictures)"
        )
    reference = read_reference(scores)
    kinds = [str(kind) for kind in good["type"] if kind]
    far = good["mean_distance"].to_numpy(dtype=np.float64)
    results = changes(reference, good["raw"].to_numpy(dtype=np.float64), far, kinds, config)
    reasons = [
        f"{change.name}: PSI {change.psi:.2f} (limit {max(config.psi, change.by_chance):.2f})"
        for change in results
        if change.drifted
    ]
    verdict = {
        "drifted": bool(reasons),
        "reason": "; ".join(reasons) or "no distribution has changed",
        "model": str(good["model"].iloc[0]),
        "pictures": len(good),
        "failed": len(table) - len(good),
        "reference": len(reference.scores),
        "changes": [asdict(change) for change in results],
    }
    with write_aside(out) as aside:
        aside.write_text(json.dumps(verdict, indent=2) + "\n")
    worst = good.sort_values("score").head(10).to_dict("records")
    with write_aside(page) as aside:
        aside.write_text(pages.render("drift.html", {"verdict": verdict, "config": config, "worst": worst}))
    return results


def alarm(verdict: Path, *, fail: bool) -> None:
    """Fail if there is drift, so that whoever watches the run learns of it; the report is written already.

    Args:
        verdict: JSON file of `judge_set`.
        fail: False to say nothing.
    Raises:
        DriftFound: the pictures are unlike those that the model was judged on.
    """
    outcome = json.loads(verdict.read_text())
    if fail and outcome["drifted"]:
        raise DriftFound(
            f"{outcome['pictures']} pictures are unlike those that version {outcome['model']} was judged on "
            f"({outcome['reason']}); look at the drift report, then label some of them and train again"
        )
