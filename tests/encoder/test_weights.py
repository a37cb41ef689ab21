"""Encoder files of strangers: refused in one line, or loaded as float32."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from contrique.encoder.architectures import EncoderError
from contrique.encoder.network import Encoder
from contrique.encoder.weights import load_encoder, save_encoder

KEY = "contrique-encoder-1"


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder("resnet18").eval()


@pytest.fixture
def path(encoder, tmp_path):
    save_encoder(encoder, tmp_path / "encoder.safetensors")
    return tmp_path / "encoder.safetensors"


def rewrite(
    path: Path, change: Callable[[dict[str, Any]], object] = lambda state: None, arch: Any = "resnet18"
) -> None:
    state = load_file(path)
    change(state)
    save_file(state, path, metadata={KEY: arch if isinstance(arch, bytes) else json.dumps({"arch": arch})})


def relabel(path: Path, text: str) -> None:
    save_file(load_file(path), path, metadata={KEY: text})


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def grow(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(10**12)


def set_to(name: str, value: float) -> Callable[[dict[str, Any]], object]:
    return lambda state: state[name].fill_(value)


HOSTILE: dict[str, Callable[[Path], object]] = {
    "missing": lambda p: p.unlink(),
    "empty": lambda p: p.write_bytes(b""),
    "half": lambda p: p.write_bytes(p.read_bytes()[:-1000]),
    "a header without end": lambda p: p.write_bytes(b"\xff" * 8 + b"{}"),
    "a pipe": replace_by_pipe,
    "a folder": lambda p: (p.unlink(), p.mkdir()),
    "10 TB": grow,
    "no metadata": lambda p: save_file(load_file(p), p),
    "metadata that is no JSON": lambda p: relabel(p, "{"),
    "metadata of brackets": lambda p: relabel(p, "[" * 200_000),
    "metadata that is a list": lambda p: relabel(p, "[1]"),
    "no architecture": lambda p: relabel(p, "{}"),
    "another architecture": lambda p: rewrite(p, arch="vit\n" * 1000),
    "an architecture that is a list": lambda p: rewrite(p, arch=["resnet18"]),
    "weights of the other architecture": lambda p: rewrite(p, arch="resnet50"),
    "NaN": lambda p: rewrite(p, set_to("conv1.weight", float("nan"))),
    "infinite": lambda p: rewrite(p, set_to("layer1.0.bn1.running_mean", float("inf"))),
    "negative variance": lambda p: rewrite(p, set_to("bn1.running_var", -1.0)),
    "float64 beyond float32": lambda p: rewrite(
        p, lambda s: s.update({"bn1.weight": torch.full((64,), 1e300, dtype=torch.float64)})
    ),
    "complex": lambda p: rewrite(p, lambda s: s.update({"bn1.weight": torch.zeros(64, dtype=torch.complex64)})),
    "whole numbers": lambda p: rewrite(p, lambda s: s.update({"bn1.weight": torch.zeros(64, dtype=torch.int8)})),
    "a tensor missing": lambda p: rewrite(p, lambda s: s.pop("bn1.weight")),
    "a tensor more": lambda p: rewrite(p, lambda s: s.update({"fc.weight" * 100: torch.zeros(1)})),
    "another shape": lambda p: rewrite(p, lambda s: s.update({"bn1.weight": torch.zeros(63)})),
    "no dimension": lambda p: rewrite(p, lambda s: s.update({"bn1.weight": torch.tensor(1.0)})),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_encoder_is_refused_in_one_line(path, name):
    HOSTILE[name](path)
    with pytest.raises(EncoderError) as error:
        load_encoder(path)
    message = str(error.value)
    assert str(path) in message
    assert len(message) < 1000
    assert message.isprintable()


def test_half_precision_weights_load_as_float32(path, encoder):
    rewrite(path, lambda s: s.update({n: t.half() for n, t in s.items() if t.dtype == torch.float32 and t.ndim == 4}))
    copy = load_encoder(path)
    assert {parameter.dtype for parameter in copy.parameters()} == {torch.float32}
    expected = encoder.conv1.weight.half().float()
    torch.testing.assert_close(copy.conv1.weight, expected, rtol=0, atol=0)
