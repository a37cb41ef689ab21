from pathlib import Path

import pytest
import torch
import torchvision

from contrique.encoder.architectures import WIDTHS, EncoderError
from contrique.encoder.network import Conv3x3, Encoder, Projector
from contrique.encoder.weights import load_encoder, read_metadata, save_encoder


@pytest.mark.parametrize("arch", sorted(WIDTHS))
def test_equals_torchvision_up_to_the_global_pool(arch: str) -> None:
    encoder = Encoder(arch, seed=3).eval()
    net = getattr(torchvision.models, arch)(weights=None)
    net.load_state_dict(encoder.state_dict(), strict=False)
    net.fc = torch.nn.Identity()
    images = torch.rand(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        h, expected = encoder(images), net.eval()(images)
    assert h.shape == (2, encoder.width)
    torch.testing.assert_close(h, torch.nn.functional.normalize(expected, dim=1), rtol=1e-5, atol=1e-6)


def test_local_vectors_are_unit_norm_and_average_to_the_map() -> None:
    encoder = Encoder("resnet18").eval()
    images = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        local, maps = encoder.local(images), encoder.maps(images)
    assert local.shape == (2, 4, 512)
    torch.testing.assert_close(local.norm(dim=2), torch.ones(2, 4))
    top_left = maps[:, :, :2, :2].mean((2, 3))
    torch.testing.assert_close(local[:, 0], torch.nn.functional.normalize(top_left, dim=1))


def test_views_together_are_as_views_in_turn() -> None:
    apart, together = Encoder("resnet18", 2), Encoder("resnet18", 2, views=2)
    images = torch.rand(12, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    expected = torch.cat([apart.maps(view) for view in images.chunk(2)])
    maps = together.maps(images)
    for encoder, outputs in ((apart, expected), (together, maps)):
        outputs.square().sum().backward()
        encoder.eval()
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-4)
    for (name, parameter), other in zip(apart.named_parameters(), together.parameters(), strict=True):
        assert float((parameter.grad - other.grad).norm() / parameter.grad.norm()) < 1e-4, name
    torch.testing.assert_close(together(images), apart(images), rtol=1e-4, atol=1e-5)  # by the running statistics
    assert not torch.allclose(apart.train().maps(images), expected, rtol=1e-2, atol=1e-2)  # of both views at once


@pytest.mark.parametrize("size", [2, 3])
def test_convolution_of_a_tiny_map_is_the_convolution(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    x = torch.randn(5, 6, size, size, dtype=torch.float64, generator=generator, requires_grad=True)
    convolution = Conv3x3(6, 4, 3, padding=1, bias=False).double()
    expected = torch.nn.functional.conv2d(x, convolution.weight, padding=1)
    towards = torch.randn(expected.shape, dtype=torch.float64, generator=generator)
    grads = torch.autograd.grad(expected, (x, convolution.weight), towards)
    actual = convolution(x)
    torch.testing.assert_close(actual, expected)
    for grad, reference in zip(torch.autograd.grad(actual, (x, convolution.weight), towards), grads, strict=True):
        torch.testing.assert_close(grad, reference)


def test_seed_decides_the_weights_and_leaves_the_global_generator() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    a, b, c = Encoder("resnet18", 1), Encoder("resnet18", 1), Encoder("resnet18", 2)
    Projector(8, 4)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(a.conv1.weight, b.conv1.weight)
    assert not torch.equal(a.conv1.weight, c.conv1.weight)


def test_projector_has_no_biases() -> None:
    projector = Projector(16, 4)
    assert [type(layer).__name__ for layer in projector] == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    assert projector[0].bias is None
    assert projector[3].bias is None


def test_round_trip_gives_the_same_features_and_bytes(tmp_path: Path) -> None:
    encoder = Encoder("resnet18", 5).eval()
    save_encoder(encoder, tmp_path / "a.safetensors", {"seed": 5})
    copy = load_encoder(tmp_path / "a.safetensors")
    save_encoder(copy, tmp_path / "b.safetensors", {"seed": 5})
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(encoder(images), copy(images), rtol=0, atol=1e-6)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert read_metadata(tmp_path / "a.safetensors") == {"seed": 5, "arch": "resnet18"}
    assert not copy.training
    assert not any(p.requires_grad for p in copy.parameters())


def test_files_that_are_not_encoders_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    with pytest.raises(EncoderError, match="no such encoder file"):
        load_encoder(path)
    save_encoder(Encoder("resnet18"), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EncoderError, match=r"e\.safetensors: not a readable safetensors file"):
        load_encoder(path)
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, path, metadata={"format": "other"})
    with pytest.raises(EncoderError, match="not an encoder of this project"):
        load_encoder(path)
    save_file({"x": torch.zeros(1)}, path, {"contrique-encoder-1": '{"arch": "resnet18"}'})
    with pytest.raises(EncoderError, match="do not fit resnet18"):
        load_encoder(path)
    with pytest.raises(EncoderError, match="unknown encoder 'vgg'"):
        Encoder("vgg")
