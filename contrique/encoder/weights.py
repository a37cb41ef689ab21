"""Encoder files: safetensors with the architecture in the header."""

import hashlib
import json
import weakref
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from contrique.encoder.architectures import WIDTHS, EncoderError
from contrique.errors import one_line
from contrique.files import open_regular, write_aside

if TYPE_CHECKING:
    import torch

    from contrique.encoder.network import Encoder


_FORMAT: Final = "contrique-encoder-1"
_MAX_BYTES: Final = 2**30
_FLOATS: Final = ("float16", "bfloat16", "float32", "float64")


class EncoderFile:
    """An encoder's file, held open: known by its header and hash at once, loaded when it is needed.

    So a process that scores by an exported graph never imports PyTorch. The file may be deleted meanwhile.

    Args:
        path: a `.safetensors` file.
    Attributes:
        path: as given.
        metadata: as `read_metadata`.
        digest: SHA-256 of the file, in hex.
    Raises:
        EncoderError: missing, damaged, too large, or not an encoder file.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.metadata = path, read_metadata(path)
        self._file = open_regular(path, _MAX_BYTES)
        weakref.finalize(self, self._file.close)
        self.digest = hashlib.file_digest(self._file, "sha256").hexdigest()  # type: ignore[arg-type]

    @property
    def origin(self) -> str:
        """SHA-256, in hex, of the encoder that this one goes back to over any number of trainings; or its own."""
        return str(self.metadata.get("origin") or self.metadata.get("start") or self.digest)

    @property
    def width(self) -> int:
        """Channels of conv5."""
        return WIDTHS[self.metadata["arch"]]

    @cached_property
    def encoder(self) -> "Encoder":
        """The encoder, on the GPU if there is one; loaded once. Errors as `load_encoder`."""
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        return self.load().to(device).to(memory_format=torch.channels_last)

    def load(self) -> "Encoder":
        """As `load_encoder`."""
        import torch
        from safetensors.torch import load

        from contrique.encoder.network import Encoder

        encoder = Encoder(self.metadata["arch"])
        try:
            self._file.seek(0)
            tensors = load(self._file.read())
            _check_values(tensors)
            encoder.load_state_dict(tensors)
        except EncoderError as error:
            raise EncoderError(f"{self.path}: {error}; fetch it again") from error
        except Exception as error:  # a damaged or hostile file raises many unrelated types
            raise EncoderError(f"{self.path}: the weights do not fit {encoder.arch}: {one_line(error)}") from error
        return encoder.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def save_encoder(encoder: "Encoder", path: Path, metadata: dict[str, Any] | None = None) -> None:
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

    if not path.exists():
        raise EncoderError(f"{path}: no such encoder file; give the .safetensors of a pretraining run")
    try:
        open_regular(path, _MAX_BYTES).close()
        with safe_open(path, framework="np") as file:
            header = file.metadata() or {}
    except Exception as error:  # a damaged or hostile file raises many unrelated types
        raise EncoderError(f"{path}: not a readable safetensors file ({one_line(error)}); fetch it again") from error
    if _FORMAT not in header:
        raise EncoderError(f"{path}: not an encoder of this project (no '{_FORMAT}' in its header)")
    try:
        metadata: dict[str, Any] = json.loads(header[_FORMAT])
        is_supported = metadata["arch"] in WIDTHS
    except Exception as error:
        reason = one_line(error)
        raise EncoderError(f"{path}: '{_FORMAT}' in its header is damaged ({reason}); fetch it again") from error
    if not is_supported:
        raise EncoderError(f"{path}: unknown encoder {metadata['arch']!r:.100}; expected {' or '.join(WIDTHS)}")
    return metadata


def load_encoder(path: Path) -> "Encoder":
    """Load an encoder on the CPU, in eval mode, its parameters frozen, in channels_last (the fastest layout).

    Weights may be of any float type and are float32 afterwards.

    Raises:
        EncoderError: the file is missing, damaged, holds values that no encoder has, or its tensors do not fit the
            architecture it names.
    """
    return EncoderFile(path).load()


def _check_values(tensors: "dict[str, torch.Tensor]") -> None:
    for name, tensor in tensors.items():
        if name.endswith("num_batches_tracked"):
            continue
        kind = str(tensor.dtype).removeprefix("torch.")
        if kind not in _FLOATS:
            raise EncoderError(f"{name:.100} holds {kind}, expected floats")
        if not tensor.float().isfinite().all():
            raise EncoderError(f"{name:.100} holds NaN or infinite values")
        if name.endswith("running_var") and not (tensor >= 0).all():
            raise EncoderError(f"{name:.100} holds negative variances")
