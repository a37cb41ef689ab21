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
from numpy.typing import ArrayLike, NDArray

from contrique.artifacts import EVALUATION, TEST_SCORES
from contrique.config import EvaluationConfig, RegressorConfig
from contrique.data.leaks import check_leaks
from contrique.data.splits import judged_rows, label_kind, pretrain_rows
from contrique.encoder.feature_set import load_set
from contrique.evaluation.judgement import OPINION_UNAWARE, TEST_PART, Judgement, estimate_agreement
from contrique.evaluation.protocol import cross_validate, transfer
from contrique.files import write_aside
from contrique.metrics import EvaluationError
from contrique.regressor.cross_validation import ridge_learner
from contrique.regressor.head import Head

Array = NDArray[np.float64]
Rows = NDArray[np.intp]
Champion = Callable[[pd.DataFrame], ArrayLike]


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

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values, ready for JSON."""
        return asdict(self)

    def figures(self) -> dict[str, float]:
        """The protocol's figures with their intervals, flat, as a page of metrics shows them."""
        told: dict[str, float] = {}
        for name, estimate in self.protocol.metrics.items():
            told |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        return told


def evaluate_set(
    features: Path,
    fitted: Path,
    out: Path,
    *,
    config: EvaluationConfig,
    seed: int,
    alphas: RegressorConfig | None = None,
    champion: Champion | None = None,
    champion_version: str = "",
) -> Evaluation:
    """Judge a feature set: protocol, opinion-unaware figure, and challenger beside champion on the test part.

    Args:
        features: folder with `manifest.parquet` and `features.npz`.
        fitted: folder of the challenger's regressor (`regressor.fit_set`).
        out: folder to write: `evaluation.json` and `test_scores.parquet` (image, reference, distortion, label,
            challenger, champion; champion NaN if there is none).
        config: protocol and bootstrap.
        seed: of splits and bootstrap.
        alphas: of the protocol's ridge; the defaults of `RegressorConfig` unless given.
        champion: scores the manifest rows of the test part; higher is better, any scale. Prefer unclipped scores.
        champion_version: the registry version that `champion` is.
    Returns:
        what was written.
    Raises:
        LeakError: parts or contents share pictures.
        EvaluationError: too few contents or pictures, constant or non-finite challenger scores.
    """
    manifest, values = load_set(features)
    head = Head.load(fitted)
    kind, column = label_kind(manifest)
    judged = judged_rows(manifest).index.to_numpy()
    if not len(judged):
        raise EvaluationError(f"{features}: no row outside pretraining has a label; give a labelled set")
    rows = manifest.loc[judged]
    check_leaks(manifest, bits=config.near_duplicate_bits)
    check_leaks(rows, bits=config.near_duplicate_bits, parts=rows["reference"])
    grid = sorted((alphas or RegressorConfig()).alphas)
    target = (rows[column].to_numpy(), list(rows["reference"]), list(rows["distortion"]))
    learner = ridge_learner(grid)
    weak = pretrain_rows(manifest)
    extra = weak if kind == "weak" else weak[:0]  # where people judge, weak labels are no labels to fit beside theirs
    pool = pd.concat([rows, extra])
    protocol = cross_validate(
        values[pool.index],
        pool[column].to_numpy(),
        list(pool["reference"]),
        list(pool["distortion"]),
        learner,
        grid,
        config=config,
        seed=seed,
        kind=kind,
        extra=len(extra),
    )
    unaware = None
    if kind == "human" and weak["reference"].nunique() >= 2:
        source = (values[weak.index], weak["weak_label"].to_numpy(), list(weak["reference"]))
        unaware = transfer(
            *source, values[judged], *target, learner, grid, config=config, seed=seed, protocol=OPINION_UNAWARE
        )

    test = rows[rows["split"] == "test"]
    if test.empty:
        raise EvaluationError(f"{features}: no labelled rows in the test part; assign splits again")
    table = pd.DataFrame(
        {
            "image": test["image"],
            "reference": test["reference"],
            "distortion": test["distortion"],
            "label": test[column],
            "challenger": head.predict(values[test.index]),
        }
    ).reset_index(drop=True)
    table["champion"] = np.nan
    if champion is not None:
        given = np.asarray(champion(test.reset_index(drop=True)), np.float64)
        if given.shape != (len(test),):
            raise EvaluationError(f"the champion gave {given.shape} scores for {len(test)} pictures")
        table["champion"] = given

    def on_test(scores: pd.Series) -> Judgement:
        return estimate_agreement(
            [(np.arange(len(table)), scores.to_numpy())],
            table["label"],
            list(table["reference"]),
            list(table["distortion"]),
            config=config,
            seed=seed,
            protocol=TEST_PART,
            kind=kind,
        )

    rival, fault = None, ""
    if champion is not None:
        try:
            rival = on_test(table["champion"])
        except EvaluationError as error:  # a broken champion must not end the run: the gate holds, and says this
            fault = str(error)
    evaluation = Evaluation(
        labels=kind,
        seed=seed,
        resamples=config.resamples,
        confidence=config.confidence,
        protocol=protocol,
        opinion_unaware=unaware,
        challenger=on_test(table["challenger"]),
        champion=rival,
        champion_version=champion_version,
        champion_fault=fault,
    )
    with write_aside(out) as aside:
        aside.mkdir()
        table.to_parquet(aside / TEST_SCORES, index=False)
        text = json.dumps(evaluation.as_dict() | {"has_champion": champion is not None}, indent=2, allow_nan=False)
        (aside / EVALUATION).write_text(text + "\n")
    return evaluation
