"""Stage 5: frozen features of the labelled pictures."""

from kfp import dsl

from components import component


@component
def extract_features(
    dataset: dsl.Input[dsl.Dataset],
    distorted: dsl.Input[dsl.Dataset],
    encoder: dsl.Input[dsl.Model],
    profile: str,
    overrides: dict,
    features: dsl.Output[dsl.Dataset],
    part: int = 0,
    parts: int = 1,
) -> None:
    """Two-scale features of every labelled picture, the encoder frozen.

    Args:
        dataset: validated picture set.
        distorted: synthesized picture set.
        encoder: folder with encoder.safetensors.
        profile: demo, gpu or paper.
        overrides: options that differ from the profile.
        features: folder with manifest.parquet and features.npz, row by row alike.
        part: makes this one of `parts` parts, for gather_features to join.
        parts: over how many tasks the work is fanned out.
    """
    from pathlib import Path

    from contrique.config import resolve
    from contrique.encoder.feature_set import extract_set

    weights, settings = Path(encoder.path, "encoder.safetensors"), resolve(profile, overrides).features
    features.metadata["pictures"] = extract_set(
        Path(dataset.path), Path(distorted.path), weights, Path(features.path), config=settings, part=(part, parts)
    )
