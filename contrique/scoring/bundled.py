"""The model that comes with the package: it scores right after installation, without a registry and without a network.

Its files lie in `contrique/bundled`, with the model card that says what they are made of. Their SHA-256 stand here, so
that a damaged or exchanged file is one clear error and never a score.
"""

from importlib import resources
from pathlib import Path
from typing import Final

from contrique.artifacts import COEFFICIENTS, DESCRIPTION, ENCODER, FULL_REFERENCE, REGRESSOR
from contrique.errors import ContriqueError
from contrique.files import sha256
from contrique.regressor.full_reference import FullReference
from contrique.scoring.scorer import Scorer

NAME: Final = "bundled"
SHA256: Final = {
    ENCODER: "cc04480520b24f64f82fab28255743354b5c292e38feed4d00c3949bcaf86a65",
    f"{REGRESSOR}/{DESCRIPTION}": "1ca8718e0746e3d3e83bed7a273a651435f0d9a267b4a271f41a48f816e3ead1",
    f"{REGRESSOR}/{COEFFICIENTS}": "52615f602358b0cb035f9978d1331c6ddd0a9cf7c4a2d98c88fc079a41c0d955",
    FULL_REFERENCE: "f1a263e00247cbadf766113b074d9c4b5ab702f83b7a2e31589e2096a774bc8a",
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
