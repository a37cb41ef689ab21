"""The encoder that a training starts from."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from contrique.config import ValidationConfig, resolve
from contrique.encoder.weights import read_metadata

LENGTHS: Final = frozenset({"pretrain.steps", "pretrain.minutes", "pretrain.epochs"})


@dataclass(frozen=True)
class Start:
    """An encoder that exists.

    It is used as it is, frozen, unless an override says how long to train on: one of LENGTHS.

    Attributes:
        file: its `encoder.safetensors`.
        name: whose it is, for people: `bundled`, a version of the registry, a path or an `s3://` URL.
    """

    file: Path
    name: str

    def adapt(self, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """Overrides of the configuration with this encoder's architecture, unless they name another.

        Raises:
            EncoderError: the file is no encoder.
        """
        return {"pretrain.arch": read_metadata(self.file)["arch"]} | dict(overrides)

    @staticmethod
    def is_frozen(overrides: Mapping[str, Any]) -> bool:
        """Whether no override says how long to train on."""
        return not LENGTHS & overrides.keys()


def limit_data(profile: str, overrides: Mapping[str, Any], start: str) -> ValidationConfig:
    """What the data must hold: nothing to pretrain on if an encoder is used as it is.

    Args:
        profile, overrides: of the configuration.
        start: name of the encoder that training starts from; empty for random weights.
    """
    limits = resolve(profile, overrides).validation
    return replace(limits, min_pretrain_contents=0) if start and Start.is_frozen(overrides) else limits
