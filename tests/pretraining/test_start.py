"""Training that goes on from an encoder, and an encoder that is used as it is."""

from dataclasses import replace
from pathlib import Path

import pytest
import tiny_training
import torch

from contrique.artifacts import ENCODER, HISTORY
from contrique.encoder.architectures import EncoderError
from contrique.encoder.network import Encoder
from contrique.encoder.weights import load_encoder, read_metadata, save_encoder
from contrique.errors import ContriqueError
from contrique.files import sha256
from contrique.pretraining import launch
from contrique.pretraining.pretrain import adopt_encoder, pretrain
from contrique.pretraining.start import Start, limit_data

TINY = tiny_training.CONFIG


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tiny_training.picture_sets(tmp_path_factory.mktemp("dataset"), tmp_path_factory.mktemp("distorted"))


@pytest.fixture
def start(tmp_path: Path) -> Path:
    path = tmp_path / "start" / ENCODER
    save_encoder(Encoder(TINY.arch, seed=7), path, {"steps": 12, "crops": 34})
    return path


@pytest.mark.parametrize(
    ("overrides", "start", "contents", "authentic"),
    [
        ({}, "", 2, True),
        ({}, "bundled", 0, False),
        ({"pretrain.steps": 3}, "bundled", 2, True),
        ({"pretrain.authentic_share": 0}, "", 2, False),
        ({"pretrain.authentic_share": 0.01, "pretrain.images": 20}, "", 2, False),
        ({"validation.needs_authentic": True}, "bundled", 0, True),
    ],
)
def test_data_must_hold_what_a_step_draws(overrides, start, contents, authentic) -> None:
    limits = limit_data("demo", overrides, start)
    assert (limits.min_pretrain_contents, limits.needs_authentic) == (contents, authentic)


def test_training_goes_on_from_the_weights_of_the_file(sets: tuple[Path, Path], start: Path, tmp_path: Path) -> None:
    still = replace(TINY, steps=1, lr=0.0, weight_decay=0.0, calibration=0)
    summary = pretrain(*sets, tmp_path / "out", config=still, start=start)
    assert summary.start == sha256(start) == read_metadata(tmp_path / "out" / ENCODER)["start"]
    source, encoder = (dict(load_encoder(path).named_parameters()) for path in (start, tmp_path / "out" / ENCODER))
    assert all(torch.equal(source[name], encoder[name]) for name in source)


@pytest.mark.parametrize(("calibration", "same"), [(0, True), (2, False)])
def test_without_calibration_the_encoders_statistics_stay(
    calibration: int, same: bool, sets: tuple[Path, Path], start: Path, tmp_path: Path
) -> None:
    pretrain(*sets, tmp_path / "out", config=replace(TINY, steps=3, calibration=calibration), start=start)
    source, encoder = (dict(load_encoder(path).named_buffers()) for path in (start, tmp_path / "out" / ENCODER))
    names = [name for name in source if "running" in name]
    assert names
    assert all(torch.equal(source[name], encoder[name]) for name in names) == same


def test_without_a_start_nothing_says_so(sets: tuple[Path, Path], tmp_path: Path) -> None:
    summary = pretrain(*sets, tmp_path / "out", config=replace(TINY, steps=1))
    assert summary.start == ""
    assert "start" not in read_metadata(tmp_path / "out" / ENCODER)


def test_same_start_same_bytes(sets: tuple[Path, Path], start: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        pretrain(*sets, tmp_path / name, config=replace(TINY, steps=2), seed=1, start=start)
    assert sha256(tmp_path / "a" / ENCODER) == sha256(tmp_path / "b" / ENCODER)


def test_a_checkpoint_of_another_start_is_refused(sets: tuple[Path, Path], start: Path, tmp_path: Path) -> None:
    pretrain(*sets, tmp_path / "out", config=replace(TINY, steps=2), start=start)
    for other in (None, tmp_path / "other.safetensors"):
        if other:
            save_encoder(Encoder(TINY.arch, seed=8), other)
        with pytest.raises(ContriqueError, match="of another recipe, seed, data or start"):
            pretrain(*sets, tmp_path / "out", config=replace(TINY, steps=3), start=other)


@pytest.mark.parametrize("content", [None, b"", b"no encoder at all", "resnet50"])
def test_a_start_that_is_none_is_one_clear_error(
    content: bytes | str | None, sets: tuple[Path, Path], tmp_path: Path
) -> None:
    path = tmp_path / "start.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        save_encoder(Encoder("resnet50"), path)
    with pytest.raises(EncoderError, match=r"start\.safetensors: "):
        pretrain(*sets, tmp_path / "out", config=TINY, start=path)


def test_an_encoder_is_adopted_byte_for_byte(start: Path, tmp_path: Path) -> None:
    summary = adopt_encoder(start, tmp_path / "out")
    assert (tmp_path / "out" / ENCODER).read_bytes() == start.read_bytes()
    assert (tmp_path / "out" / HISTORY).read_text() == ""
    assert (summary.steps, summary.crops, summary.start) == (12, 34, sha256(start))


def test_a_stage_with_a_start_trains_only_if_it_is_told_how_long(
    sets: tuple[Path, Path], start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("CONTRIQUE_RUN", "monday")
    tiny = {f"pretrain.{name}": getattr(TINY, name) for name in ("crop", "images", "probe_every", "workers", "threads")}
    stage = {"profile": "paper", "seed": 0, "start": Start(start, "mine")}
    frozen = launch.pretrain(*sets, tmp_path / "kept", overrides=tiny, **stage)
    assert (frozen.steps, frozen.frozen, frozen.start_name, sha256(tmp_path / "kept" / ENCODER)) == (
        12,
        True,
        "mine",
        sha256(start),
    )
    summary = launch.pretrain(*sets, tmp_path / "trained", overrides=tiny | {"pretrain.steps": 2}, **stage)
    assert (summary.steps, summary.start) == (2, sha256(start))
    assert read_metadata(tmp_path / "trained" / ENCODER)["arch"] == TINY.arch  # and not the profile's
