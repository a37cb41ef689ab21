"""Stage 0: which data these are, before any is fetched."""

from components import component


@component
def pin_data(data: str, revision: str, pristine: list, authentic: list) -> str:
    """Name the content of the data by a hash, so that fetching the same content again can be skipped.

    Args:
        data: folder, git URL or s3:// prefix that holds data.dvc, a picture set, or images with labels.csv.
        revision: git revision of data.dvc; empty means what the folder holds now.
        pristine: folders of undistorted photographs without labels.
        authentic: folders of photographs as cameras made them, without labels.

    Returns:
        the hash; a fresh one each time if a source is a folder whose content nothing vouches for.
    """
    from contrique.sources.fetch import fingerprint

    return fingerprint(data=data, revision=revision, pristine=pristine, authentic=authentic)
