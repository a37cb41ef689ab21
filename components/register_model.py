"""Stage 9, on promote: a new version in the registry, and the champion alias on it."""

from kfp import dsl

from components import component


@component
def register_model(
    extract: dsl.Input[dsl.Dataset],
    encoder: dsl.Input[dsl.Model],
    regressor: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    verdict: dsl.Input[dsl.Artifact],
    profile: str,
    overrides: dict,
    tracking: dsl.Output[dsl.Markdown],
) -> dict:
    """Register encoder and regressor as one model and make it champion.

    Args:
        extract: folder with lineage.json and pictures of the test part, which the served model must score.
        encoder: folder with encoder.safetensors.
        regressor: folder with ridge.npz and regressor.json.
        evaluation: folder with evaluation.json.
        verdict: JSON file of the gate.
        profile: demo, gpu or paper.
        overrides: options that differ from the profile.
        tracking: where the MLflow run is.

    Returns:
        name, version and alias of the registered model.
    """
    from pathlib import Path

    from contrique.config import resolve
    from contrique.registry.registration import Candidate, register
    from contrique.reports.card import texts_here

    return vars(
        register(
            Candidate(
                Path(encoder.path, "encoder.safetensors"),
                Path(regressor.path),
                Path(evaluation.path, "evaluation.json"),
                Path(verdict.path),
                Path(extract.path, "lineage.json"),
                sets=[Path(extract.path, "test_pictures")],
                **texts_here(extract, encoder, regressor, evaluation, verdict, profile=profile, overrides=overrides),
            ),
            config=resolve(profile, overrides).registry,
            page=Path(tracking.path),
        )
    )
