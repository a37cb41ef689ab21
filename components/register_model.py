"""Stage 9, on promote: a new version in the registry, and the champion alias on it."""

from kfp import dsl

from components import component


@component
def register_model(
    dataset: dsl.Input[dsl.Dataset],
    encoder: dsl.Input[dsl.Model],
    regressor: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    verdict: dsl.Input[dsl.Artifact],
    profile: str,
    overrides: dict,
) -> dict:
    """Register encoder and regressor as one model and make it champion.

    Args:
        dataset: picture set, for its lineage.
        encoder: folder with encoder.safetensors.
        regressor: folder with ridge.npz and regressor.json.
        evaluation: folder with evaluation.json.
        verdict: JSON file of the gate.
        profile: demo or paper.
        overrides: options that differ from the profile.

    Returns:
        name, version and alias of the registered model.
    """
    from pathlib import Path

    from contrique import config, registry

    registered = registry.register(
        Path(encoder.path, "encoder.safetensors"),
        Path(regressor.path),
        Path(evaluation.path, "evaluation.json"),
        Path(verdict.path),
        Path(dataset.path, "lineage.json"),
        config=config.resolve(profile, overrides).registry,
        run=registry.this_pipeline_run(),
    )
    return vars(registered)
