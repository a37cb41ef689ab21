"""Stage 6: ridge regression from features to scores."""

from kfp import dsl

from components import component


@component
def fit_regressor(
    features: dsl.Input[dsl.Dataset],
    encoder: dsl.Input[dsl.Model],
    profile: str,
    overrides: dict,
    regressor: dsl.Output[dsl.Model],
) -> None:
    """Fit the ridge on the training part, its alpha chosen on the validation part.

    Args:
        features: feature set.
        encoder: folder with encoder.safetensors, which made the features.
        profile: demo, gpu or paper.
        overrides: options that differ from the profile.
        regressor: folder with ridge.npz, regressor.json and drift.npz.
    """
    from pathlib import Path

    from contrique import config, monitoring
    from contrique.registry.challenge import fit_challenger

    regressor.metadata.update(
        fit_challenger(
            Path(features.path),
            Path(encoder.path, "encoder.safetensors"),
            Path(regressor.path),
            config=config.resolve(profile, overrides).regressor,
        ).describe()
    )
    monitoring.keep_reference(Path(features.path), Path(regressor.path))
