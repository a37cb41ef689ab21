"""Encoders that a training starts from, by every name that they have."""

import json
import shutil
from pathlib import Path

import pytest
import tiny_model
import tiny_training
from kfp import dsl
from servers import S3

from components.pin_encoder import pin_encoder as pin_component
from components.pretrain_encoder import pretrain_encoder
from contrique import s3 as s3_module
from contrique.artifacts import ENCODER, SUMMARY
from contrique.cli.main import main
from contrique.config import RegistryConfig
from contrique.encoder.architectures import EncoderError
from contrique.encoder.network import Encoder
from contrique.encoder.weights import load_encoder, read_metadata, save_encoder
from contrique.files import StorageError, sha256
from contrique.registry import registration
from contrique.registry.candidate import read_facts
from contrique.registry.start import fetch_encoder, pin_encoder
from contrique.scoring import bundled
from contrique.scoring.bundled import BundleError
from contrique.tracking.store import RegistryError

CONFIG = RegistryConfig(serve_seconds=0)


@pytest.fixture(autouse=True)
def _environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run" / ENCODER
    save_encoder(Encoder("resnet18", seed=7), path, {"steps": 12, "crops": 34})
    return path


def resolve_name(name: str) -> tuple[str, str]:
    """SHA-256 of the file and name of its origin."""
    with fetch_encoder(name, CONFIG) as start:
        assert start is not None
        return sha256(start.file), start.name


def test_none_is_none() -> None:
    assert pin_encoder("", CONFIG) == ""
    with fetch_encoder("", CONFIG) as start:
        assert start is None


def test_bundled_is_the_published_one() -> None:
    assert resolve_name("bundled") == (bundled.SHA256[ENCODER], "bundled")


def test_a_file_and_its_folder_are_the_same(file: Path) -> None:
    for name in (str(file), str(file.parent), "run"):
        assert resolve_name(name) == (sha256(file), name)


def test_a_version_and_its_alias(tmp_path: Path) -> None:
    parts = tiny_model.build(tmp_path / "model")
    registration.register(tiny_model.candidate(parts, ""), config=CONFIG, run="monday")
    for name in ("1", "champion"):
        assert resolve_name(name) == (sha256(parts.encoder), "version 1 of contrique")


@pytest.mark.parametrize(("frozen", "use"), [(True, "as it is"), (False, "trained on for 300 steps")])
def test_a_version_says_which_encoder_it_began_as(frozen: bool, use: str, tmp_path: Path) -> None:
    parts = tiny_model.build(tmp_path / "model")
    candidate = tiny_model.candidate(parts, "")
    assert not any(name.startswith("encoder.start") for name in read_facts(candidate).tags)
    summary = {"start": "ab" * 32, "start_name": "mine", "frozen": frozen, "steps": 300}
    parts.encoder.with_name(SUMMARY).write_text(json.dumps(summary))
    tags = read_facts(candidate).tags
    assert (tags["encoder.start"], tags["encoder.start.hash"], tags["encoder.use"]) == ("mine", "ab" * 32, use)
    parts.encoder.with_name(SUMMARY).write_text("[1, 2]")
    with pytest.raises(RegistryError, match=r"summary\.json: not a JSON object"):
        read_facts(candidate)


def test_an_object_and_its_prefix_in_s3(file: Path, s3: S3) -> None:
    prefix = f"{s3.bucket}/encoders/mine"
    s3_module.upload(file, prefix)
    for name in (prefix, f"{prefix}/", f"{prefix}/{ENCODER}"):
        assert resolve_name(name) == (sha256(file), name)


def test_nothing_stays_on_this_machine(file: Path, s3: S3) -> None:
    s3_module.upload(file, f"{s3.bucket}/mine")
    with fetch_encoder(f"{s3.bucket}/mine", CONFIG) as start:
        assert start is not None
        copy = start.file
        assert copy.is_file()
    assert not copy.parent.exists()


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("run/other.safetensors", EncoderError, "run/other.safetensors: no such encoder file"),
        ("far/away", EncoderError, "far/away: no such encoder; give bundled, a .safetensors file"),
        ("empty", EncoderError, "empty/encoder.safetensors: no such encoder file"),
        ("notes.safetensors", EncoderError, "notes.safetensors: not a readable safetensors file"),
        ("champion", RegistryError, "no registry"),
        ("s3:///x", StorageError, "not an S3 location"),
    ],
)
def test_what_is_no_encoder_is_one_clear_error(name: str, error: type[Exception], words: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.safetensors").write_text("no encoder at all")
    with pytest.raises(error) as info, fetch_encoder(name, CONFIG):
        pass
    assert words in str(info.value)
    assert "\n" not in str(info.value)


def test_an_object_that_is_not_there_is_named(s3: S3) -> None:
    name = f"{s3.bucket}/nowhere"
    with (
        pytest.raises(StorageError, match=rf"{name}/encoder\.safetensors: .*check bucket and key"),
        fetch_encoder(name, CONFIG),
    ):
        pass


def test_a_bundled_encoder_that_was_exchanged_is_refused(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bundled"
    shutil.copytree(bundled.bundled_folder(), folder)
    shutil.copyfile(file, folder / ENCODER)
    monkeypatch.setattr(bundled, "bundled_folder", lambda: folder)
    with pytest.raises(BundleError, match="not the published file"), fetch_encoder("bundled", CONFIG):
        pass


def test_another_encoder_than_was_pinned_is_refused(file: Path) -> None:
    pin = pin_encoder(str(file), CONFIG)
    with fetch_encoder(str(file), CONFIG, pin) as start:
        assert start is not None
    save_encoder(Encoder("resnet18", seed=8), file)
    with (
        pytest.raises(EncoderError, match="another encoder since this run began"),
        fetch_encoder(str(file), CONFIG, pin),
    ):
        pass


class TestStage:
    """The components, called as the pipeline calls them."""

    @pytest.fixture(scope="class")
    def sets(self, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
        return tiny_training.picture_sets(tmp_path_factory.mktemp("dataset"), tmp_path_factory.mktemp("distorted"))

    def stage(self, sets: tuple[Path, Path], out: Path, start: str, overrides: dict[str, object]) -> dsl.Model:
        dataset, distorted = (dsl.Dataset(name=path.name, uri=str(path)) for path in sets)
        encoder = dsl.Model(name="encoder", uri=str(out))
        pin = pin_component.python_func(encoder=start, profile="paper", overrides=overrides)
        pretrain_encoder.python_func(
            dataset=dataset, distorted=distorted, profile="paper", overrides=overrides, seed=0, start=start, pin=pin,
            encoder=encoder,
        )  # fmt: skip
        return encoder

    def test_an_encoder_is_used_as_it_is_or_trained_on(
        self, sets: tuple[Path, Path], file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CONTRIQUE_RUN", "monday")
        frozen = self.stage(sets, tmp_path / "frozen", str(file), {})
        assert sha256(tmp_path / "frozen" / ENCODER) == sha256(file)
        assert (frozen.metadata["start"], frozen.metadata["start_name"]) == (sha256(file), str(file))
        names = ("crop", "images", "probe_every", "workers", "threads")
        tiny = {f"pretrain.{name}": getattr(tiny_training.CONFIG, name) for name in names}
        encoder = self.stage(sets, tmp_path / "trained", str(file), tiny | {"pretrain.steps": 2})
        assert (encoder.metadata["steps"], encoder.metadata["start"]) == (2, sha256(file))
        metadata = read_metadata(tmp_path / "trained" / ENCODER)
        assert (metadata["arch"], metadata["start"]) == ("resnet18", sha256(file)), "its own, not the profile's"
        load_encoder(tmp_path / "trained" / ENCODER)
        assert (tmp_path / "trained" / SUMMARY).is_file()

    def test_the_command_line_does_the_same(
        self, sets: tuple[Path, Path], file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ["pretrain", "--dataset", str(sets[0]), "--distorted", str(sets[1]), "--encoder", str(file)]
        assert main([*words, "--out", "frozen"]) == 0
        assert "as it is; give --minutes" in capsys.readouterr().out
        assert sha256(Path("frozen") / ENCODER) == sha256(file)
        names = ("crop", "images", "probe_every", "workers", "threads", "calibration")
        tiny = [f"--set=pretrain.{name}={getattr(tiny_training.CONFIG, name)}" for name in names]
        assert main([*words, "--out", "trained", *tiny, "--set", "pretrain.steps=2"]) == 0
        assert read_metadata(Path("trained") / ENCODER)["start"] == sha256(file)

    def test_what_is_published_names_the_start(self, sets: tuple[Path, Path], file: Path, s3: S3) -> None:
        prefix = f"{s3.bucket}/published"
        words = ["--dataset", str(sets[0]), "--distorted", str(sets[1]), "--encoder", str(file), "--publish", prefix]
        assert main(["pretrain", *words, "--out", "frozen"]) == 0
        s3_module.download(prefix, Path("published"))
        summary = json.loads((Path("published") / SUMMARY).read_text())
        assert (summary["start_name"], summary["start"], summary["frozen"]) == (str(file), sha256(file), True)
