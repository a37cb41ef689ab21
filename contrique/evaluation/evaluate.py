"""Judge scores: the protocol by content, slices, intervals; and the gate's files.

Three figures, each with n, contents and an interval (spec section 5):

- protocol: the regressor fitted and judged on the same set's labels, out of fold, whole contents at a time;
- opinion-unaware: fitted on the weak labels of the pretraining photographs, judged on human scores it never saw;
- the fixed test part, on which challenger and champion are compared.

Labels of a test part choose nothing. The contents are the unit of everything: of splits, of the choice of alpha, and of
the bootstrap.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from contrique.artifacts import EVALUATION, TEST_SCORES
from contrique.config import EvaluationConfig, RegressorConfig
from contrique.data.leaks import check_leaks
from contrique.data.splits import judged_rows, label_kind, pretrain_rows
from contrique.encoder.feature_set import load_set
from contrique.encoder.features import Features
from contrique.evaluation.gaming import Gaming
from contrique.evaluation.judgement import OPINION_UNAWARE, TEST_PART, Judgement, Rated, estimate_agreement
from contrique.evaluation.protocol import cross_validate, transfer
from contrique.files import write_aside
from contrique.metadata import Metadata, describe
from contrique.metrics import EvaluationError
from contrique.regressor.cross_validation import Learner, ridge_learner
from contrique.regressor.head import Head
from contrique.regressor.prior import Prior, extend

Attack = Callable[[pd.DataFrame], Gaming]


@dataclass(frozen=True)
class Champion:
    """The model that a challenger is judged beside.

    Attributes:
        rescore: manifest rows of N pictures -> their scores, shape (N,); higher is better, any scale. Prefer unclipped
            scores.
        version: of the registry.
        head: brings the scores to points; None if they are shown nowhere.
    """

    rescore: Callable[[pd.DataFrame], ArrayLike]
    version: str
    head: Head | None = None


@dataclass(frozen=True)
class Evaluation:
    """What `evaluation.json` holds.

    Attributes:
        labels: `human` or `weak`.
        seed, resamples, confidence: of the bootstrap.
        protocol: out of fold over all judged rows.
        opinion_unaware: None without human labels, or with weak labels on fewer than two pretraining photographs.
        challenger, champion: on the test part; champion None if there is none or `champion_fault` says why not.
        champion_version: registry version that was rescored; empty if none.
        champion_fault: why the champion's scores cannot be judged; the gate then holds.
        gaming: how far attacks raise the scores of challenger and champion; None if that was not asked.
    """

    labels: str
    seed: int
    resamples: int
    confidence: float
    protocol: Judgement
    opinion_unaware: Judgement | None
    challenger: Judgement
    champion: Judgement | None
    champion_version: str
    champion_fault: str
    gaming: Gaming | None = None

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values, ready for JSON."""
        return asdict(self)

    def figures(self) -> Metadata:
        """The protocol's figures with their intervals, as a page of metrics shows them."""
        figures: dict[str, float] = {}
        for name, estimate in self.protocol.metrics.items():
            figures |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        return describe(figures)


def evaluate_set(
    features: Path,
    fitted: Path,
    out: Path,
    *,
    config: EvaluationConfig,
    seed: int,
    alphas: RegressorConfig | None = None,
    prior: Prior | None = None,
    champion: Champion | None = None,
    attack: Attack | None = None,
) -> Evaluation:
    """Judge a feature set: protocol, opinion-unaware figure, and challenger beside champion on the test part.

    Args:
        features: folder with `manifest.parquet` and `features.npz`.
        fitted: folder of the challenger's regressor (`regressor.fit_set`).
        out: folder to write: `evaluation.json` and `test_scores.parquet` (image, reference, distortion, label;
            challenger and champion, raw; challenger_points and champion_points, 0 to 100; NaN where there is none).
        config: protocol and bootstrap.
        seed: of splits and bootstrap.
        alphas: of the protocol's ridge; the defaults of `RegressorConfig` unless given.
        prior: scores of another head, as one more feature of the protocol's ridge, as the challenger has it.
        champion: scores the same test part; None if there is none.
        attack: attacks both models on some of the manifest rows of the test part; None to leave that out.
    Returns:
        what was written.
    Raises:
        LeakError: parts or contents share pictures.
        EvaluationError: too few contents or pictures, constant or non-finite challenger scores.
    """
    judged = _read_judged(features, config)
    learner = ridge_learner((alphas or RegressorConfig()).alphas)
    head = Head.load(fitted)
    table = _score_test_part(judged, head, champion)
    table["challenger_points"] = head.to_points(table["challenger"])
    champion_head = champion.head if champion else None
    table["champion_points"] = champion_head.to_points(table["champion"]) if champion_head else np.nan
    on_test = Rated(table["label"], list(table["reference"]), list(table["distortion"]), judged.label_source)

    def judge_column(name: str) -> Judgement:
        splits = [(np.arange(len(table)), table[name].to_numpy())]
        return estimate_agreement(splits, on_test, config=config, seed=seed, protocol=TEST_PART)

    rival, fault = None, ""
    if champion is not None:
        try:
            rival = judge_column("champion")
        except EvaluationError as error:  # a broken champion must not end the run: the gate holds, and says this
            fault = str(error)
    evaluation = Evaluation(
        labels=judged.label_source,
        seed=seed,
        resamples=config.resamples,
        confidence=config.confidence,
        protocol=_judge_out_of_fold(judged, learner, prior, config, seed),
        opinion_unaware=_judge_unaware(judged, learner, config, seed),
        challenger=judge_column("challenger"),
        champion=rival,
        champion_version=champion.version if champion else "",
        champion_fault=fault,
        gaming=attack(_pick_test_part(judged)) if attack else None,
    )
    _write(evaluation, table, out, has_champion=champion is not None)
    return evaluation


@dataclass(frozen=True)
class JudgedRows:
    """A feature set as it is judged.

    Attributes:
        folder: of the set.
        values: features of all its rows. Shape (N, D).
        rows: manifest rows outside pretraining with a label; index into `values`.
        weak: manifest rows of pretraining with a weak label; likewise.
        column: of the labels that judge.
        label_source: `human` or `weak`.
    """

    folder: Path
    values: Features
    rows: pd.DataFrame
    weak: pd.DataFrame
    column: str
    label_source: str

    def rated(self, rows: pd.DataFrame) -> Rated:
        """Labels of some rows."""
        return Rated(rows[self.column].to_numpy(), list(rows["reference"]), list(rows["distortion"]), self.label_source)


def _read_judged(features: Path, config: EvaluationConfig) -> JudgedRows:
    """Read a feature set, and prove that its parts and contents share no pictures."""
    manifest, values = load_set(features)
    source, column = label_kind(manifest)
    rows = judged_rows(manifest)
    if rows.empty:
        raise EvaluationError(f"{features}: no row outside pretraining has a label; give a labelled set")
    check_leaks(manifest, bits=config.near_duplicate_bits)
    check_leaks(rows, bits=config.near_duplicate_bits, parts=rows["reference"])
    return JudgedRows(features, values, rows, pretrain_rows(manifest), column, source)


def _judge_out_of_fold(
    judged: JudgedRows, learner: Learner, prior: Prior | None, config: EvaluationConfig, seed: int
) -> Judgement:
    # where people judge, weak labels are no labels to fit beside theirs
    extra = judged.weak if judged.label_source == "weak" else judged.weak[:0]
    pool = pd.concat([judged.rows, extra])
    inputs = extend(judged.values[pool.index], prior)
    return cross_validate(inputs, judged.rated(pool), learner, config=config, seed=seed, extra=len(extra))


def _judge_unaware(judged: JudgedRows, learner: Learner, config: EvaluationConfig, seed: int) -> Judgement | None:
    """Fitted on weak labels of two photographs or more, judged on human scores; None where one of them is missing."""
    weak = judged.weak
    if judged.label_source != "human" or weak["reference"].nunique() < 2:
        return None
    source = Rated(weak["weak_label"].to_numpy(), list(weak["reference"]), list(weak["distortion"]), "weak")
    return transfer(
        judged.values[weak.index],
        source,
        judged.values[judged.rows.index],
        judged.rated(judged.rows),
        learner,
        config=config,
        seed=seed,
        protocol=OPINION_UNAWARE,
    )


def _pick_test_part(judged: JudgedRows) -> pd.DataFrame:
    return judged.rows[judged.rows["split"] == "test"]


def _score_test_part(judged: JudgedRows, head: Head, champion: Champion | None) -> pd.DataFrame:
    """Raw scores of the test part, with what is known of each picture."""
    test = _pick_test_part(judged)
    if test.empty:
        raise EvaluationError(f"{judged.folder}: no labelled rows in the test part; assign splits again")
    table = pd.DataFrame(
        {
            "image": test["image"],
            "reference": test["reference"],
            "distortion": test["distortion"],
            "label": test[judged.column],
            "challenger": head.predict(judged.values[test.index]),
        }
    ).reset_index(drop=True)
    table["champion"] = np.nan
    if champion is not None:
        scores = np.asarray(champion.rescore(test.reset_index(drop=True)), np.float64)
        if scores.shape != (len(test),):
            raise EvaluationError(f"the champion gave {scores.shape} scores for {len(test)} pictures")
        table["champion"] = scores
    return table


def _write(evaluation: Evaluation, table: pd.DataFrame, out: Path, *, has_champion: bool) -> None:
    with write_aside(out) as aside:
        aside.mkdir()
        table.to_parquet(aside / TEST_SCORES, index=False)
        text = json.dumps(evaluation.as_dict() | {"has_champion": has_champion}, indent=2, allow_nan=False)
        (aside / EVALUATION).write_text(text + "\n")
