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
    part: int = 0,
    parts: int = 1,
) -> None:
    """Distort every pristine photograph by each type and level, into tar shards with weak labels.

    Args:
        dataset: validated picture set.
        profile: demo, gpu or paper.
        overrides: options that differ from the profile.
        seed: of every random draw; the same seed gives the same bytes.
        distorted: picture set of the distorted pictures; empty if there is no pristine photograph.
        part: makes this one of `parts` parts, for gather_distortions to join.
        parts: over how many tasks the work is fanned out.
    """
    from pathlib import Path

    from contrique.config import resolve
    from contrique.data.synthesis import synthesize

    summary = synthesize(
        Path(dataset.path),
        Path(distorted.path),
        seed=seed,
        config=resolve(profile, overrides).synthesis,
        part=(part, parts),
        may_be_empty=True,
    )
    distorted.metadata.update(summary.describe())
