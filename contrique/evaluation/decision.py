"""Let the gate decide from the files of an evaluation."""

import json
from pathlib import Path

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
    except (OSError, KeyError, ValueError) as error:
        raise EvaluationError(f"{evaluation}: not a readable evaluation ({error}); evaluate again") from error
    verdict = gate.decide(
        challenger, rival if has_champion else None, labels, contents, distortions, config=config, **bootstrap
    )
    with write_aside(out) as aside:
        text = json.dumps(verdict.as_dict() | {"champion_version": version}, indent=2, allow_nan=False)
        aside.write_text(text + "\n")
    return verdict
