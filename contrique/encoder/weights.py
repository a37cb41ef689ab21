"""Encoder files: safetensors with the architecture in the header."""

import json
from pathlib import Path
from typing import Any, Final

import torch

from contrique.encoder.network import WIDTHS, Encoder, EncoderError
from contrique.errors import one_line
from contrique.files import check_regular, write_aside

_FORMAT: Final = "contrique-encoder-1"
_MAX_BYTES: Final = 2**30
_FLOATS: Final = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


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
    """The metadata given to `save_encoder`, with `arch`, a key of WIDTHS.

    Raises:
        EncoderError: missing, damaged, too large, or not an encoder file.
    """
    from safetensors import safe_open

    try:
        check_regular(path, _MAX_BYTES)
        with safe_open(path, framework="np") as file:
            header = file.metadata() or {}
    except FileNotFoundError:
        raise EncoderError(f"{path}: no such encoder file; give the .safetensors of a pretraining run") from None
    except Exception as error:  # a damaged or hostile file raises many unrelated types
        raise EncoderError(f"{path}: not a readable safetensors file ({one_line(error)}); fetch it again") from error
    if _FORMAT not in header:
        raise EncoderError(f"{path}: not an encoder of this project (no '{_FORMAT}' in its header)")
    try:
        metadata: dict[str, Any] = json.loads(header[_FORMAT])
        known = metadata["arch"] in WIDTHS
    except Exception as error:
        raise EncoderError(
            f"{path}: '{_FORMAT}' in its header is damaged ({one_line(error)}); fetch it again"
        ) from error
    if not known:
        raise EncoderError(f"{path}: unknown encoder {metadata['arch']!r:.100}; expected {' or '.join(WIDTHS)}")
    return metadata


def load_encoder(path: Path) -> Encoder:
    """Load an encoder on the CPU, in eval mode, its parameters frozen, in channels_last (the fastest layout).

    Weights may be of any float type and are float32 afterwards.

    Raises:
        EncoderError: the file is missing, damaged, holds values that no encoder has, or its tensors do not fit the
            architecture it names.
    """
    from safetensors.torch import load_file

    encoder = Encoder(read_metadata(path)["arch"])
    try:
        tensors = load_file(path)
        _check_values(tensors)
        encoder.load_state_dict(tensors)
    except EncoderError as error:
        raise EncoderError(f"{path}: {error}; fetch it again") from error
    except Exception as error:  # a damaged or hostile file raises many unrelated types
        raise EncoderError(f"{path}: the weights do not fit {encoder.arch}: {one_line(error)}") from error
    return encoder.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def _check_values(tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if name.endswith("num_batches_tracked"):
            continue
        if tensor.dtype not in _FLOATS:
            raise EncoderError(f"{name:.100} holds {tensor.dtype}, expected floats")
        if not tensor.float().isfinite().all():
            raise EncoderError(f"{name:.100} holds NaN or infinite values")
        if name.endswith("running_var") and not (tensor >= 0).all():
            raise EncoderError(f"{name:.100} holds negative variances")
