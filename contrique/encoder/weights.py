"""Encoder files: safetensors with the architecture in the header."""

import json
from pathlib import Path
from typing import Any

import torch

from contrique.encoder.network import Encoder, EncoderError
from contrique.files import write_aside

_FORMAT = "contrique-encoder-1"


def save_encoder(encoder: Encoder, path: Path, metadata: dict[str, Any] | None = None) -> None:
    """Write the encoder as safetensors, whole or not at all; the same weights give the same bytes.

    Args:
        encoder: any device, any mode.
        path: of the file.
        metadata: JSON values kept in the header (training data hash, steps, seed).
    """
    from safetensors.torch import save_file

    # one key: safetensors writes several in an order that changes from run to run
    header = {_FORMAT: json.dumps({"arch": encoder.arch, **(metadata or {})}, sort_keys=True)}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}
    with write_aside(path) as aside:
        save_file(tensors, aside, metadata=header)


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata given to `save_encoder`, with `arch`.

    Raises:
        EncoderError: not an encoder file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
    except FileNotFoundError:
        raise EncoderError(f"{path}: no such encoder file; give the .safetensors of a pretraining run") from None
    except (SafetensorError, OSError) as error:
        raise EncoderError(f"{path}: not a readable safetensors file ({error}); fetch it again") from error
    if _FORMAT not in header:
        raise EncoderError(f"{path}: not an encoder of this project (no '{_FORMAT}' in its header)")
    metadata: dict[str, Any] = json.loads(header[_FORMAT])
    return metadata


def load_encoder(path: Path) -> Encoder:
    """Load an encoder on the CPU, in eval mode, its parameters frozen, in channels_last (the fastest layout).

    Raises:
        EncoderError: the file is missing, damaged, or its tensors do not fit the architecture it names.
    """
    from safetensors.torch import load_file

    encoder = Encoder(read_metadata(path)["arch"])
    try:
        encoder.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise EncoderError(f"{path}: the weights do not fit {encoder.arch}: {error}") from error
    return encoder.eval().requires_grad_(False).to(memory_format=torch.channels_last)
