"""Stage 5, fanned out: the parts of the feature set as one set."""

from typing import List  # noqa: UP035 (KFP knows no other list of artifacts)

from kfp import dsl

from components import component


@component
def gather_features(
    parts: dsl.Input[List[dsl.Dataset]],  # noqa: UP006
    features: dsl.Output[dsl.Dataset],
) -> None:
    """Join feature sets, in order.

    Args:
        parts: feature sets of the fanned-out tasks.
        features: folder with manifest.parquet and features.npz, row by row alike.
    """
    from pathlib import Path

    from contrique.encoder.feature_set import join_sets

    features.metadata["pictures"] = join_sets([Path(part.path) for part in parts], Path(features.path))
