"""The encoder (a ResNet to conv5), the projector of pretraining, and their files."""

import json
import pickle
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from contrique.errors import ContriqueError
from contrique.storage import sha256, write_aside

Arch = Literal["resnet18", "resnet50"]
WIDTHS: dict[str, int] = {"resnet18": 512, "resnet50": 2048}
MIN_SIDE = 64  # at half scale one cell of conv5 is left
_FORMAT = "contrique-encoder-1"
# place in the original's `nn.Sequential` of ResNet's children -> torchvision's name; 2 and 3 hold no weights
_ORIGINAL_LAYERS = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


class EncoderError(ContriqueError):
    """An encoder file that cannot be loaded; the message names the file and what differs."""


class Encoder(nn.Module):
    """ResNet to conv5, trained from scratch (spec section 3). Standard torchvision layer names.

    Args:
        arch: `resnet18` (width 512) or `resnet50` (width 2048).
        seed: of the initial weights; the global generator is left as it was.
        views: that a training batch holds, one after another, each normalised by its own statistics.
    """

    def __init__(self, arch: str = "resnet50", seed: int = 0, views: int = 1) -> None:
        super().__init__()
        import torchvision

        if arch not in WIDTHS:
            raise EncoderError(f"unknown encoder '{arch}'; choose one of {', '.join(WIDTHS)}")
        self.arch, self.views = arch, views
        self.width = WIDTHS[arch]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = getattr(torchvision.models, arch)(weights=None, norm_layer=partial(ViewNorm, views=views))
        for layer in net.modules():
            if isinstance(layer, nn.Conv2d) and (layer.kernel_size, layer.stride) == ((3, 3), (1, 1)):
                layer.__class__ = Conv3x3
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


class ViewNorm(nn.BatchNorm2d):
    """Batch norm that in training takes the statistics of each view apart, as if the views came in turn.

    One pass over all views at once is faster than one pass each, and the paper's statistics are a view's own.

    Args:
        channels: C.
        views: that a batch holds one after another, in equal parts.
    """

    def __init__(self, channels: int, views: int = 1) -> None:
        super().__init__(channels)
        self.views = views

    def forward(self, x: Tensor) -> Tensor:
        """Shape (N, C, H, W) -> the same; N a multiple of `views` in training."""
        if not self.training or self.views == 1:
            return super().forward(x)
        normalise = super().forward
        return torch.cat([normalise(view) for view in x.chunk(self.views)])


class Conv3x3(nn.Conv2d):
    """Convolution 3 x 3 of stride 1 that, in training on a CPU, is a matrix product where the map is 2 x 2.

    On such a map five of nine taps fall on the padding, and the library's gradient with respect to the weight is slow:
    a training step of ResNet-18 on views of 64 pixels is 1.14 times as fast.
    """

    def forward(self, x: Tensor) -> Tensor:
        """As `nn.Conv2d`."""
        if self.training and x.device.type == "cpu" and x.shape[2:] == (2, 2):
            y: Tensor = _Dense2x2.apply(x, self.weight.to(x.dtype))
            return y
        return super().forward(x)


class _Dense2x2(torch.autograd.Function):
    """3 x 3 convolution of a 2 x 2 map: each of 4 pixels out sees all 4 in, by 2 x 2 of the taps."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, weight: Tensor) -> Tensor:
        taps = weight.permute(0, 2, 3, 1)
        dense = torch.stack([taps[window] for window in _WINDOWS]).view(4 * len(weight), -1)
        pixels = x.permute(0, 2, 3, 1).reshape(len(x), -1)
        ctx.save_for_backward(pixels, dense)
        return (pixels @ dense.T).view(len(x), 2, 2, -1).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, Tensor]:
        pixels, dense = ctx.saved_tensors  # type: ignore[attr-defined]
        count, channels = grads[0].shape[:2]
        grad = grads[0].permute(0, 2, 3, 1).reshape(count, -1)
        parts = (grad.T @ pixels).view(4, channels, 2, 2, -1)
        taps = parts.new_zeros(channels, 3, 3, parts.shape[-1])
        for part, window in zip(parts, _WINDOWS, strict=True):
            taps[window] += part
        return (grad @ dense).view(count, 2, 2, -1).permute(0, 3, 1, 2), taps.permute(0, 3, 1, 2)


# of each pixel out in turn, the taps that fall on the map
_WINDOWS = [(slice(None), slice(1 - y, 3 - y), slice(1 - x, 3 - x)) for y in (0, 1) for x in (0, 1)]


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


def import_checkpoint(path: Path, out: Path) -> str:
    """Bring the encoder of a checkpoint in the original's format into a file of this project (spec section 5).

    The checkpoint is a `state_dict`, alone or below that key, with `encoder.0` ... `encoder.7` (children of
    torchvision's ResNet-50, or ResNet-18, up to layer4) and `projector.0` ... `projector.4`. The projector is checked
    like the rest and then dropped: frozen features do not pass it. Nothing in the file is ever run.

    Args:
        path: written by `torch.save`, such as `CONTRIQUE_checkpoint25.tar`.
        out: `.safetensors` file to write, for `load_encoder`; its metadata name the checkpoint and its SHA-256.
    Returns:
        the architecture found, a key of WIDTHS.
    Raises:
        EncoderError: missing or truncated, holds anything but tensors, or names, shapes or values differ from the
            format; the message says how.
    """
    state = _read_checkpoint(path)
    formats = {arch: _original_shapes(arch) for arch in WIDTHS}
    faults = {arch: _faults(state, shapes) for arch, shapes in formats.items()}
    arch = min(faults, key=lambda name: sum(map(len, faults[name].values())))
    if any(faults[arch].values()):
        shown = "; ".join(f"{what}: {_some(which)}" for what, which in faults[arch].items() if which)
        raise EncoderError(
            f"{path}: no checkpoint of the original ({arch} comes closest): {shown}; download the published file again"
        )
    encoder = Encoder(arch)
    encoder.load_state_dict({_our_name(key): state[key] for key in formats[arch] if key.startswith("encoder.")})
    save_encoder(encoder, out, {"checkpoint": path.name, "checkpoint_sha256": sha256(path)})
    return arch


def _read_checkpoint(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise EncoderError(f"{path}: no such checkpoint; give the file that `torch.save` wrote") from None
    except pickle.UnpicklingError as error:
        raise EncoderError(
            f"{path}: not a file of tensors alone: it is damaged, or holds code, which was not run "
            f"({str(error).splitlines()[0]}); download the published file again"
        ) from error
    except Exception as error:  # a damaged file raises many unrelated types
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EncoderError(
            f"{path}: damaged, truncated or no PyTorch file ({reason}); download the published file again"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping):
        raise EncoderError(f"{path}: holds a {type(state).__name__}, not a state_dict; give the published checkpoint")
    return dict(state)


def _original_shapes(arch: str) -> dict[str, torch.Size]:
    """Names and shapes of the tensors of the original's model."""
    with torch.device("meta"):
        encoder, projector = Encoder(arch), Projector(WIDTHS[arch])
    theirs = {ours: number for number, ours in _ORIGINAL_LAYERS.items()}
    shapes = {}
    for name, tensor in encoder.state_dict().items():
        layer, _, rest = name.partition(".")
        shapes[f"encoder.{theirs[layer]}.{rest}"] = tensor.shape
    return shapes | {f"projector.{name}": tensor.shape for name, tensor in projector.state_dict().items()}


def _our_name(key: str) -> str:
    _, number, rest = key.split(".", 2)
    return f"{_ORIGINAL_LAYERS[number]}.{rest}"


def _faults(state: Mapping[str, Any], shapes: Mapping[str, torch.Size]) -> dict[str, list[str]]:
    """What keeps a checkpoint from being one of the original with these shapes, by kind."""
    wrong = []
    for name in shapes.keys() & state.keys():
        if not isinstance(state[name], Tensor):
            wrong.append(f"{name} is a {type(state[name]).__name__}, not a tensor")
        elif state[name].shape != shapes[name]:
            wrong.append(f"{name} has shape {tuple(state[name].shape)}, expected {tuple(shapes[name])}")
        elif not state[name].isfinite().all():
            wrong.append(f"{name} holds NaN or infinite values")
    return {
        "missing": [name for name in shapes if name not in state],
        "unexpected": [str(name) for name in state if name not in shapes],
        "wrong": sorted(wrong),
    }


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
