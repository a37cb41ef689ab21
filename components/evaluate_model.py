"""Stage 7: how well challenger and champion rank pictures they never saw."""

from kfp import dsl

from components import component


@component
def evaluate_model(
    dataset: dsl.Input[dsl.Dataset],
    distorted: dsl.Input[dsl.Dataset],
    features: dsl.Input[dsl.Dataset],
    encoder: dsl.Input[dsl.Model],
    regressor: dsl.Input[dsl.Model],
    profile: str,
    overrides: dict,
    seed: int,
    result: dsl.Output[dsl.Artifact],
    extract: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Run the protocol on content-wise splits, rescore the champion on the test pictures, and attack both models.

    Args:
        dataset: validated picture set, read by the champion.
        distorted: synthesized picture set, read by the champion.
        features: feature set of the challenger.
        encoder: folder with encoder.safetensors.
        regressor: folder with ridge.npz and regressor.json.
        profile: demo, gpu or paper.
        overrides: options that differ from the profile.
        seed: of the splits and of the resampling behind each interval.
        result: folder with evaluation.json and test_scores.parquet.
        extract: folder of the few pictures that later stages show or ask for, with lineage.json.
        metrics: the correlations, as the run page shows them.
    """
    from pathlib import Path

    from contrique.config import resolve
    from contrique.registry.challenge import evaluate_challenger

    judged = evaluate_challenger(
        Path(features.path),
        Path(encoder.path, "encoder.safetensors"),
        Path(regressor.path),
        Path(result.path),
        Path(extract.path),
        sets=(Path(dataset.path), Path(distorted.path)),
        config=resolve(profile, overrides),
        seed=seed,
    )
    metrics.metadata.update(judged.figures())
