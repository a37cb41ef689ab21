"""Scoring, stage 1: what the champion says of new pictures."""

from kfp import dsl

from components import component


@component
def score_pictures(
    data: str,
    model: str,
    profile: str,
    overrides: dict,
    scores: dsl.Output[dsl.Dataset],
) -> None:
    """Score every picture of a folder or an S3 prefix; a bad file does not stop the rest.

    Args:
        data: folder or s3:// prefix.
        model: version or alias in the registry.
        profile: demo, gpu or paper.
        overrides: options that differ from the profile.
        scores: folder with scores.parquet and the model's reference.
    """
    from pathlib import Path

    from contrique.config import resolve
    from contrique.monitoring import score_set

    names = resolve(profile, overrides).registry
    scores.metadata.update(score_set(data, Path(scores.path), model=model, config=names).describe())
