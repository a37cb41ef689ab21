"""The encoder (a ResNet to conv5), the projector of pretraining, and their files."""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from contrique.errors import ContriqueError
from contrique.storage import write_aside

Arch = Literal["resnet18", "resnet50"]
WIDTHS: dict[str, int] = {"resnet18": 512, "resnet50": 2048}
MIN_SIDE = 64  # at half scale one cell of conv5 is left
_FORMAT = "contrique-encoder-1"


class EncoderError(ContriqueError):
    """An encoder file that cannot be loaded; the message names the file and what differs."""


class Encoder(nn.Module):
    """ResNet to conv5, trained from scratch (spec section 3). Standard torchvision layer names.

    Args:
        arch: `resnet18` (width 512) or `resnet50` (width 2048).
        seed: of the initial weights; the global generator is left as it was.
    """

    def __init__(self, arch: str = "resnet50", seed: int = 0) -> None:
        super().__init__()
        import torchvision

        if arch not in WIDTHS:
            raise EncoderError(f"unknown encoder '{arch}'; choose one of {', '.join(WIDTHS)}")
        self.arch = arch
        self.width = WIDTHS[arch]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = getattr(torchvision.models, arch)(weights=None)
        for name, child in net.named_children():
            if name not in ("avgpool", "fc"):
                self.add_module(name, child)

    def maps(self, images: Tensor) -> Tensor:
        """conv5 activations.

        Args:
            images: RGB in [0, 1] (or a view's colour space). Shape (N, 3, H, W), H and W at least 32.
        Returns:
            Shape (N, width, ceil(H / 32), ceil(W / 32)).
        """
        x = images
        for child in self.children():
            x = child(x)
        return x

    def forward(self, images: Tensor) -> Tensor:
        """Frozen features h: global average pool of conv5, L2-normalised. Shape (N, width), float32."""
        return nn.functional.normalize(self.maps(images).float().mean((2, 3)), dim=1)

    def local(self, images: Tensor, pool: int = 2) -> Tensor:
        """Local vectors of pretraining: adaptive average pool to (pool, pool), each L2-normalised.

        Returns:
            Shape (N, pool * pool, width).
        """
        pooled = nn.functional.adaptive_avg_pool2d(self.maps(images), pool)
        return nn.functional.normalize(pooled.flatten(2).transpose(1, 2), dim=2)


class Projector(nn.Sequential):
    """Two linear layers without bias, each followed by batch norm, ReLU between (spec section 3).

    Args:
        width: of the local vectors.
        projection: d of z.
        seed: of the initial weights.
    """

    def __init__(self, width: int, projection: int = 128, seed: int = 0) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 1)
            super().__init__(
                nn.Linear(width, width, bias=False),
                nn.BatchNorm1d(width),
                nn.ReLU(inplace=True),
                nn.Linear(width, projection, bias=False),
                nn.BatchNorm1d(projection),
            )


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
