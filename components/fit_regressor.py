"""Stage 6: ridge regression from features to scores."""

from kfp import dsl

from components import component


@component
def fit_regressor(
    features: dsl.Input[dsl.Dataset],
    profile: str,
    overrides: dict,
    regressor: dsl.Output[dsl.Model],
) -> None:
    """Fit the ridge on the training part, its alpha chosen on the validation part.

    Args:
        features: feature set.
        profile: demo, gpu or paper.
        overrides: options that differ from the profile.
        regressor: folder with ridge.npz, regressor.json and drift.npz.
    """
    from pathlib import Path

    from contrique import config, monitoring
    from contrique.regressor.fit import fit_set

    regressor.metadata.update(
        fit_set(
            Path(features.path), Path(regressor.path), config=config.resolve(profile, overrides).regressor
        ).describe()
    )
    monitoring.keep_reference(Path(features.path), Path(regressor.path))
