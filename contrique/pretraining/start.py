"""The encoder that a training starts from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from contrique.config import Config, ValidationConfig, resolve
from contrique.encoder.weights import read_metadata

if TYPE_CHECKING:
    from contrique.pretraining.pretrain import PretrainSummary

LENGTHS: Final = frozenset({"pretrain.steps", "pretrain.minutes", "pretrain.epochs"})


@dataclass(frozen=True)
class Start:
    """An encoder that exists.

    It is used as it is, frozen, unless an override says how long to train on (`has_length`).

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


def has_length(overrides: Mapping[str, Any]) -> bool:
    """Whether an override says how long to train: one of LENGTHS."""
    return not LENGTHS.isdisjoint(overrides)


def train_or_adopt(
    train: Callable[[Config, dict[str, Any]], "PretrainSummary"],
    out: Path,
    start: Start | None,
    *,
    profile: str,
    overrides: Mapping[str, Any],
) -> "PretrainSummary":
    """Train an encoder, or use one as it is.

    Args:
        train: called with the configuration and the overrides behind it, both with the architecture of `start`; writes
            to `out`.
        out: folder of the run.
        start: the encoder to start from; None for random weights.
        profile, overrides: of the configuration.
    Returns:
        the summary of the run, with the name of `start`.
    Raises:
        EncoderError: `start` is no encoder.
    """
    from contrique.pretraining.pretrain import adopt_encoder

    overrides = start.adapt(overrides) if start else dict(overrides)
    config = resolve(profile, overrides)
    if start is None:
        return train(config, overrides)
    summary = train(config, overrides) if has_length(overrides) else adopt_encoder(start.file, out)
    return replace(summary, start_name=start.name)


def limit_data(profile: str, overrides: Mapping[str, Any], start: str) -> ValidationConfig:
    """What the data must hold: nothing to pretrain on if an encoder is used as it is, else all that a step draws.

    Args:
        profile, overrides: of the configuration.
        start: name of the encoder that training starts from; empty for random weights.
    """
    config = resolve(profile, overrides)
    if start and not has_length(overrides):
        return replace(config.validation, min_pretrain_contents=0)
    needed = config.validation.needs_authentic or config.pretrain.authentic_images > 0
    return replace(config.validation, needs_authentic=needed)
