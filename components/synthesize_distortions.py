"""Stage 3: the distortion bank over the pristine photographs."""

from kfp import dsl

from components import component


@component
def synthesize_distortions(
    dataset: dsl.Input[dsl.Dataset],
    profile: str,
    overrides: dict,
    seed: int,
    distorted: dsl.Output[dsl.Dataset],
) -> None:
    """Distort every pristine photograph by each type and level, into tar shards with weak labels.

    Args:
        dataset: validated picture set.
        profile: demo or paper.
        overrides: options that differ from the profile.
        seed: of every random draw; the same seed gives the same bytes.
        distorted: picture set of the distorted pictures.
    """
    from pathlib import Path

    from contrique.config import resolve
    from contrique.synthesis import synthesize

    settings = resolve(profile, overrides).synthesis
    distorted.metadata.update(vars(synthesize(Path(dataset.path), Path(distorted.path), seed=seed, config=settings)))
