"""Stage 3, fanned out: the parts of the distorted set as one set."""

from typing import List  # noqa: UP035 (KFP knows no other list of artifacts)

from kfp import dsl

from components import component


@component
def gather_distortions(
    dataset: dsl.Input[dsl.Dataset],
    parts: dsl.Input[List[dsl.Dataset]],  # noqa: UP006
    profile: str,
    overrides: dict,
    seed: int,
    distorted: dsl.Output[dsl.Dataset],
) -> None:
    """Join what the fanned-out tasks made; the bytes are those of one task that makes everything.

    Args:
        dataset: validated picture set.
        parts: picture sets with some of the shards each.
        profile: demo, gpu or paper.
        overrides: options that differ from the profile.
        seed: that the parts were made with.
        distorted: picture set of all distorted pictures.
    """
    from pathlib import Path

    from contrique.config import resolve
    from contrique.data.synthesis import join_parts

    folders, settings = [Path(part.path) for part in parts], resolve(profile, overrides).synthesis
    distorted.metadata.update(
        join_parts(Path(dataset.path), folders, Path(distorted.path), seed=seed, config=settings).describe()
    )
