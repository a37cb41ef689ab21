"""Stage 8: the SRCC gate."""

from kfp import dsl

from components import component


@component
def decide_promotion(
    evaluation: dsl.Input[dsl.Artifact],
    profile: str,
    overrides: dict,
    verdict: dsl.Output[dsl.Artifact],
) -> str:
    """Say `promote` or `hold`; the reason and every number behind it stand in the verdict file.

    Args:
        evaluation: folder with evaluation.json and test_scores.parquet.
        profile: demo, gpu or paper.
        overrides: options that differ from the profile.
        verdict: JSON file with promote, reason, numbers and thresholds.
    """
    from pathlib import Path

    from contrique.config import resolve
    from contrique.evaluation.decision import decide_set

    decision = decide_set(Path(evaluation.path), Path(verdict.path), config=resolve(profile, overrides).gate)
    return "promote" if decision.promote else "hold"
