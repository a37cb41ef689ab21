"""Checkpoints in the original's format, made from seeded torchvision networks, and files that are none."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from contrique.cli.main import main
from contrique.encoder.architectures import EncoderError
from contrique.encoder.original import import_checkpoint
from contrique.encoder.weights import load_encoder, read_metadata

torch.set_num_threads(1)


class OriginalNetwork(nn.Module):
    """The model as the paper's repository lays it out."""

    def __init__(self, arch: str) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(11)
            net = getattr(torchvision.models, arch)(weights=None)
            width = net.fc.in_features
            self.encoder = nn.Sequential(*list(net.children())[:-2])
            self.projector = nn.Sequential(
                nn.Linear(width, width, bias=False),
                nn.BatchNorm1d(width),
                nn.ReLU(inplace=True),
                nn.Linear(width, 128, bias=False),
                nn.BatchNorm1d(128),
            )
            for module in self.modules():  # statistics as after training, or a swap of two would go unseen
                if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                    nn.init.uniform_(module.running_mean, -0.1, 0.1)
                    nn.init.uniform_(module.running_var, 0.5, 2)
                    nn.init.uniform_(module.weight, 0.5, 1.5)


@pytest.fixture(scope="module")
def small() -> dict[str, torch.Tensor]:
    return OriginalNetwork("resnet18").state_dict()


def save(content: Any, path: Path, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


@pytest.mark.parametrize(("arch", "nested"), [("resnet50", True), ("resnet18", False)])
def test_gives_the_features_of_the_original_network(arch: str, nested: bool, tmp_path: Path) -> None:
    original = OriginalNetwork(arch).eval()
    state = original.state_dict()
    checkpoint = save({"state_dict": state} if nested else state, tmp_path / "CONTRIQUE_checkpoint25.tar")
    assert import_checkpoint(checkpoint, tmp_path / "e.safetensors") == arch
    images = torch.rand(2, 3, 80, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        maps = original.encoder(images)
        expected = nn.functional.normalize(nn.functional.adaptive_avg_pool2d(maps, 1).flatten(1), dim=1)
        actual = load_encoder(tmp_path / "e.safetensors")(images)
    assert expected.std() > 1e-3
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    metadata = read_metadata(tmp_path / "e.safetensors")
    assert metadata["arch"] == arch
    assert metadata["checkpoint"] == "CONTRIQUE_checkpoint25.tar"
    assert len(metadata["checkpoint_sha256"]) == 64


def test_the_format_before_zip_is_read_too(small: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save({"state_dict": small}, tmp_path / "old.tar", _use_new_zipfile_serialization=False)
    import_checkpoint(tmp_path / "old.tar", tmp_path / "old.safetensors")
    save({"state_dict": small}, tmp_path / "new.tar")
    import_checkpoint(tmp_path / "new.tar", tmp_path / "new.safetensors")
    old, new = (load_encoder(tmp_path / f"{name}.safetensors").state_dict() for name in ("old", "new"))
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old)


def test_differences_are_named(small: dict[str, torch.Tensor], tmp_path: Path) -> None:
    key = "encoder.5.0.conv1.weight"
    rest = {name: tensor for name, tensor in small.items() if name != key}
    nan = small["projector.0.weight"].clone()
    nan[3, 5] = float("nan")
    cases = {
        f"missing: {key};": rest,
        f"wrong: {key} has shape (128, 64, 1, 1), expected (128, 64, 3, 3);": small | {key: small[key][..., :1, :1]},
        f"wrong: {key} is a int, not a tensor;": small | {key: 3},
        "wrong: projector.0.weight holds NaN": small | {"projector.0.weight": nan},
        "unexpected: fc.weight;": small | {"fc.weight": torch.zeros(1)},
        "missing: projector.0.weight, projector.1.weight, projector.1.bias and 9 more;": {
            name: tensor for name, tensor in small.items() if "projector" not in name
        },
        "unexpected: module.encoder.0.weight, module.": {f"module.{name}": tensor for name, tensor in small.items()},
    }
    path = tmp_path / "c.tar"
    for expected, state in cases.items():
        save({"state_dict": state}, path)
        with pytest.raises(EncoderError) as error:
            import_checkpoint(path, tmp_path / "out.safetensors")
        assert str(error.value).startswith(f"{path}: no checkpoint of the original (resnet18 comes closest): ")
        assert expected in str(error.value)
    assert not (tmp_path / "out.safetensors").exists()


class Payload:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("form", ["plain", "torch", "torch-legacy"])
def test_code_is_refused_and_not_run(form: str, small: dict[str, torch.Tensor], tmp_path: Path) -> None:
    trace, path = tmp_path / "ran", tmp_path / "evil.tar"
    content = {"state_dict": {"encoder.0.weight": small["encoder.0.weight"], "more": Payload(trace)}}
    if form == "plain":
        path.write_bytes(pickle.dumps(Payload(trace)))
    else:
        save(content, path, _use_new_zipfile_serialization=form == "torch")
    with pytest.raises(EncoderError, match=r"evil\.tar: not a file of tensors alone: .*holds code, which was not run"):
        import_checkpoint(path, tmp_path / "out.safetensors")
    assert not trace.exists()
    if form == "torch":  # the trap is live
        torch.load(path, weights_only=False)
        assert trace.exists()


def test_files_that_are_no_checkpoints(small: dict[str, torch.Tensor], tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    with pytest.raises(EncoderError, match="no such checkpoint"):
        import_checkpoint(tmp_path / "absent.tar", out)
    for name, options in (("zip", {}), ("legacy", {"_use_new_zipfile_serialization": False})):
        whole = save({"state_dict": small}, tmp_path / f"{name}.tar", **options).read_bytes()
        for share in (0.0, 0.01, 0.5, 0.999):
            (tmp_path / "cut.tar").write_bytes(whole[: int(share * len(whole))])
            with pytest.raises(EncoderError, match=r"cut\.tar: .*(damaged|not a file of tensors)"):
                import_checkpoint(tmp_path / "cut.tar", out)
    (tmp_path / "text.tar").write_text("<html>quota exceeded</html>")
    with pytest.raises(EncoderError, match=r"text\.tar: "):
        import_checkpoint(tmp_path / "text.tar", out)
    with zipfile.ZipFile(tmp_path / "z.tar", "w") as archive:
        archive.writestr("readme", "hello")
    with pytest.raises(EncoderError, match=r"z\.tar: damaged, truncated or no PyTorch file"):
        import_checkpoint(tmp_path / "z.tar", out)
    with pytest.raises(EncoderError, match="holds a list, not a state_dict"):
        import_checkpoint(save([1, 2], tmp_path / "list.tar"), out)
    with pytest.raises(EncoderError, match="holds a Tensor, not a state_dict"):
        import_checkpoint(save({"state_dict": torch.zeros(2)}, tmp_path / "tensor.tar"), out)
    assert not out.exists()


def test_the_command(small: dict[str, torch.Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, out = save({"state_dict": small}, tmp_path / "good.tar"), tmp_path / "e.safetensors"
    assert main(["import-checkpoint", str(good), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: resnet18, 512 channels, from {good}\n"
    assert load_encoder(out).arch == "resnet18"
    assert main(["import-checkpoint", str(tmp_path / "none.tar"), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("contrique: ")
    assert error.count("\n") == 1
