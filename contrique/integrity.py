"""A model's files are known by their hash, and proven against it before they score."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from contrique.artifacts import COEFFICIENTS, DESCRIPTION, DRIFT_REFERENCE
from contrique.errors import ContriqueError
from contrique.files import sha256

MODEL_HASH = "model.hash"  # of what scores: the encoder and the regressor
REFERENCE_HASH = "reference.hash"  # of what drift is measured against, for a model that has it
HASHES = (MODEL_HASH, REFERENCE_HASH)


class ModelChanged(ContriqueError):
    """A model's files are not those that were registered."""


def hash_model(encoder: Path, regressor: Path) -> dict[str, str]:
    """SHA-256 of a model's files by name: MODEL_HASH and, if there is a reference, REFERENCE_HASH.

    Args:
        encoder: `encoder.safetensors`.
        regressor: folder with `ridge.npz`, `regressor.json` and perhaps `drift.npz`.
    """
    digest = hashlib.sha256()
    for file in (encoder, regressor / COEFFICIENTS, regressor / DESCRIPTION):
        digest.update(bytes.fromhex(sha256(file)))
    reference = regressor / DRIFT_REFERENCE
    hashes = {MODEL_HASH: digest.hexdigest()}
    return hashes | {REFERENCE_HASH: sha256(reference)} if reference.is_file() else hashes


def check_model(encoder: Path, regressor: Path, expected: Mapping[str, str], model: str, keeper: str) -> None:
    """Compare a model's files with the hashes that somebody kept of them.

    Args:
        encoder, regressor: as `hash_model` takes them.
        expected: hashes by name; names that `hash_model` does not know are ignored.
        model: how the message calls the model.
        keeper: how the message calls whoever kept the hashes.
    Raises:
        ModelChanged: a file is missing, or another one than was registered, or there is no MODEL_HASH.
    """
    remedy = "do not trust its scores; restore the artifact store, or roll back to another version"
    try:
        hashes = hash_model(encoder, regressor)
    except OSError as error:
        raise ModelChanged(f"{model}: {error.filename} cannot be read ({error.strerror}); {remedy}") from error
    recorded = {name: expected.get(name, "") for name in HASHES}
    if not recorded[MODEL_HASH]:
        raise ModelChanged(f"{model}: {keeper} has no {MODEL_HASH} of it; register the model again")
    for name, files in (
        (MODEL_HASH, f"{encoder.name}, {COEFFICIENTS} or {DESCRIPTION}"),
        (REFERENCE_HASH, DRIFT_REFERENCE),
    ):
        if recorded[name] and hashes.get(name) != recorded[name]:
            raise ModelChanged(
                f"{model}: {files} is not what was registered ({name} is {hashes.get(name, 'missing')[:12]}, "
                f"{keeper} says {recorded[name][:12]}); {remedy}"
            )
