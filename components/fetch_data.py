"""Stage 1: the pinned pictures, proven."""

from kfp import dsl

from components import component


@component
def fetch_data(
    data: str, revision: str, pristine: list, authentic: list, pin: str, dataset: dsl.Output[dsl.Dataset]
) -> None:
    """Fetch a revision of the data, prove its hash and record its lineage.

    Args:
        data: folder, git URL or s3:// prefix that holds data.dvc, a picture set, or images with labels.csv.
        revision: git revision of data.dvc; empty means what the folder holds now.
        pristine: folders of undistorted photographs without labels.
        authentic: folders of photographs as cameras made them, without labels.
        pin: what `pin_data` said; data that changed since then are refused.
        dataset: picture set with lineage.json (source, revision, hash, counts); its metadata say the same for people.
    """
    from pathlib import Path

    from contrique.sources.fetch import fetch

    lineage = fetch(
        Path(dataset.path), data=data, revision=revision, pristine=pristine, authentic=authentic, expected=pin
    )
    dataset.metadata.update(lineage.describe())
