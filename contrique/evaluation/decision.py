"""Let the gate decide from the files of an evaluation."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from contrique.artifacts import EVALUATION, TEST_SCORES
from contrique.config import GateConfig
from contrique.evaluation import gate
from contrique.files import write_aside
from contrique.metrics import EvaluationError


def decide_set(evaluation: Path, out: Path, *, config: GateConfig) -> gate.Verdict:
    """Let the gate decide from what `evaluate_set` wrote; write the verdict as JSON.

    Args:
        evaluation: folder with `evaluation.json` and `test_scores.parquet`.
        out: JSON file to write.
        config: floor and margins.
    Raises:
        EvaluationError: the folder is missing, damaged or not from `evaluate_set`.
    """
    try:
        facts = json.loads((evaluation / EVALUATION).read_text())
        table = pd.read_parquet(evaluation / TEST_SCORES)
        challenger, rival, labels = (table[column].to_numpy() for column in ("challenger", "champion", "label"))
        contents, distortions = list(table["reference"]), list(table["distortion"])
        has_champion, version = facts["has_champion"], facts["champion_version"]
        bootstrap = {name: facts[name] for name in ("resamples", "confidence", "seed")}
        rises = _read_rises(facts.get("gaming"))  # absent from older evaluations
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise EvaluationError(f"{evaluation}: not a readable evaluation ({error}); evaluate again") from error
    verdict = gate.decide(
        challenger,
        rival if has_champion else None,
        labels,
        contents,
        distortions,
        config=config,
        rises=rises,
        **bootstrap,
    )
    with write_aside(out) as aside:
        text = json.dumps(verdict.as_dict() | {"champion_version": version}, indent=2, allow_nan=False)
        aside.write_text(text + "\n")
    return verdict


def _read_rises(gaming: dict[str, Any] | None) -> gate.Rises | None:
    """Each attack's rises of challenger and champion; None without both."""
    if not gaming or not gaming["champion"]:
        return None
    models = gaming["challenger"], gaming["champion"]
    points = {
        name: (np.array(rise["values"], np.float64), np.array(models[1][name]["values"], np.float64))
        for name, rise in models[0].items()
    }
    return gate.Rises(gaming["contents"], points)
