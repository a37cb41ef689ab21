"""The model that comes with the package: it scores right after installation, without a registry and without a network.

Its files lie in `contrique/bundled`, with the model card that says what they are made of. Their SHA-256 stand here, so
that a damaged or exchanged file is one clear error and never a score.
"""

from importlib import resources
from pathlib import Path
from typing import Final

from contrique.artifacts import COEFFICIENTS, DESCRIPTION, ENCODER, FULL_REFERENCE, REGRESSOR
from contrique.config import RegressorConfig
from contrique.encoder.weights import EncoderFile
from contrique.errors import ContriqueError
from contrique.files import sha256
from contrique.regressor.full_reference import FullReference
from contrique.regressor.head import Head
from contrique.regressor.prior import Prior
from contrique.scoring.scorer import Scorer

NAME: Final = "bundled"
SHA256: Final = {
    ENCODER: "cc04480520b24f64f82fab28255743354b5c292e38feed4d00c3949bcaf86a65",
    f"{REGRESSOR}/{DESCRIPTION}": "123ebf103aa1a73e6fbee9ac13f8bdc4d0b978a7311630fbbe7779b904042896",
    f"{REGRESSOR}/{COEFFICIENTS}": "bd9f6f561ea469b4a78ac0bab4c6fc209ccc3114cc1c9912b1643708419a19cd",
    FULL_REFERENCE: "b587ff8dd2937e037e26fa27815547a76728a7b551a554ddaf5e83c77cc6ede3",
}


class BundleError(ContriqueError):
    """A file of the bundled model is missing or is not the one that was published."""


def bundled_folder() -> Path:
    """The folder of the bundled model: encoder, regressor, full-reference head and model card."""
    return Path(str(resources.files("contrique").joinpath("bundled")))


def check_bundle() -> Path:
    """`bundled_folder`, each of its files proven by SHA-256.

    Raises:
        BundleError: a file is missing, damaged or another one.
    """
    folder = bundled_folder()
    for name, digest in SHA256.items():
        path = folder / name
        if not path.is_file():
            raise BundleError(f"{path}: missing from the installation; install the package again")
        if sha256(path) != digest:
            raise BundleError(f"{path}: not the published file (its SHA-256 differs); install the package again")
    return folder


def load_bundled() -> Scorer:
    """The bundled model, ready to score; its scores name it `bundled`.

    Raises:
        BundleError: as `check_bundle`.
    """
    folder = check_bundle()
    return Scorer(folder / ENCODER, folder / REGRESSOR, version=NAME)


def load_full_reference() -> FullReference:
    """The bundled full-reference head, on features of the bundled encoder.

    Raises:
        BundleError: as `check_bundle`.
    """
    return FullReference.load(check_bundle() / FULL_REFERENCE)


def find_prior(encoder: EncoderFile, config: RegressorConfig) -> Prior | None:
    """The bundled head's scores for a ridge on an encoder's features.

    Args:
        encoder: whose features they are.
        config: `prior` says whether they shall be a feature.
    Returns:
        None if they shall not, or if the encoder is neither the bundled one nor was trained on from it: the bundled
        head knows nothing of other features.
    Raises:
        BundleError: as `check_bundle`.
    """
    if config.prior == "none" or encoder.origin != SHA256[ENCODER]:
        return None
    head = Head.load(check_bundle() / REGRESSOR)
    # the origin is what the file's header claims; a head of another width would not fit its features
    return Prior.of(head, NAME) if head.summary.features_dim == 2 * encoder.width else None
