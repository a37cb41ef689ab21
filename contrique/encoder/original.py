"""Checkpoints of the original CONTRIQUE, brought into this project's format."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from contrique.encoder.architectures import WIDTHS, EncoderError
from contrique.encoder.network import Encoder, Projector
from contrique.encoder.weights import save_encoder
from contrique.files import StorageError, open_regular, sha256

# place in the original's `nn.Sequential` of ResNet's children -> torchvision's name; 2 and 3 hold no weights
_ORIGINAL_LAYERS = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
_MAX_BYTES = 2**32


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
    faults = {arch: _find_faults(state, shapes) for arch, shapes in formats.items()}
    arch = min(faults, key=lambda name: sum(map(len, faults[name].values())))
    if any(faults[arch].values()):
        faulty = "; ".join(f"{what}: {_list_some(which)}" for what, which in faults[arch].items() if which)
        raise EncoderError(
            f"{path}: no checkpoint of the original ({arch} comes closest): {faulty}; download the published file again"
        )
    encoder = Encoder(arch)
    encoder.load_state_dict({_our_name(key): state[key] for key in formats[arch] if key.startswith("encoder.")})
    save_encoder(encoder, out, {"checkpoint": path.name, "checkpoint_sha256": sha256(path)})
    return arch


def _read_checkpoint(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise EncoderError(f"{path}: no such checkpoint; give the file that `torch.save` wrote")
    try:
        with open_regular(path, _MAX_BYTES) as file:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except StorageError as error:
        raise EncoderError(str(error)) from error
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


def _find_faults(state: Mapping[str, Any], shapes: Mapping[str, torch.Size]) -> dict[str, list[str]]:
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


def _list_some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
