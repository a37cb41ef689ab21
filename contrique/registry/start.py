"""An encoder by its name, for a training to start from: bundled, of the registry, in a file or in S3."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from contrique import s3
from contrique.artifacts import ENCODER
from contrique.config import RegistryConfig
from contrique.encoder.architectures import EncoderError
from contrique.encoder.weights import read_metadata
from contrique.files import sha256
from contrique.pretraining.start import Start
from contrique.registry.versions import Registry
from contrique.scoring import bundled

_SUFFIX = ".safetensors"


def pin_encoder(name: str, config: RegistryConfig) -> str:
    """Name an encoder's content by its SHA-256; empty for no encoder. Arguments and errors as `fetch_encoder`."""
    with fetch_encoder(name, config) as start:
        return sha256(start.file) if start else ""


@contextmanager
def fetch_encoder(name: str, config: RegistryConfig, expected: str = "") -> Iterator[Start | None]:
    """An encoder to start from, on this machine for as long as the block lasts.

    Args:
        name: `bundled`; an encoder file, or a folder that holds `encoder.safetensors`, here or below `s3://`; a
            version or an alias of the registry; empty for none.
        config: names in MLflow.
        expected: SHA-256 that `pin_encoder` gave; empty to take what is there.
    Raises:
        BundleError: the bundled encoder is damaged.
        EncoderError: no such file, no encoder, or not the one that was pinned.
        RegistryError: no such version, or it cannot be fetched.
        StorageError: S3 cannot be read.
    """
    with _fetch(name, config) as start:
        if start:
            read_metadata(start.file)
            if expected and sha256(start.file) != expected:
                raise EncoderError(f"{name}: another encoder since this run began; run the pipeline again")
        yield start


@contextmanager
def _fetch(name: str, config: RegistryConfig) -> Iterator[Start | None]:
    path = Path(name)
    if not name:
        yield None
    elif name == bundled.NAME:
        yield Start(bundled.check_bundle() / ENCODER, name)
    elif s3.is_s3(name):
        with tempfile.TemporaryDirectory() as scratch:
            address = name if name.endswith(_SUFFIX) else f"{name.rstrip('/')}/{ENCODER}"
            s3.fetch_object(address, Path(scratch) / ENCODER)
            yield Start(Path(scratch) / ENCODER, name)
    elif path.suffix == _SUFFIX or path.exists():
        yield Start(path / ENCODER if path.is_dir() else path, name)
    elif "/" in name:
        raise EncoderError(f"{name}: no such encoder; give bundled, a .safetensors file, s3://... or a version")
    else:
        with Registry(config).fetch(name) as model:
            yield Start(model.encoder, f"version {model.version} of {config.model}")
