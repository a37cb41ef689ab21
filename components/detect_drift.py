"""Scoring, stage 2: are the pictures still like those that the model was judged on?"""

from kfp import dsl

from components import component


@component
def detect_drift(
    scores: dsl.Input[dsl.Dataset],
    profile: str,
    overrides: dict,
    verdict: dsl.Output[dsl.Artifact],
    report: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Compare scores, features and types of distortion with the model's reference.

    Args:
        scores: folder with scores.parquet and the model's reference.
        profile: demo, gpu or paper.
        overrides: options that differ from the profile.
        verdict: JSON file: drifted or not, and every number behind it.
        report: the same for people.
        metrics: the stability indices, as the run page shows them.
    """
    from pathlib import Path

    from contrique import config, monitoring

    limits = config.resolve(profile, overrides).drift
    changes = monitoring.judge_set(Path(scores.path), Path(verdict.path), Path(report.path), config=limits)
    metrics.metadata.update(monitoring.describe_changes(changes))
