"""Checkpoints in a folder and on a real S3 server: whole, or refused."""

import subprocess
import threading
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch
from servers import S3

from contrique import s3 as s3_module
from contrique.files import StorageError
from contrique.pretraining.checkpoints import Checkpoints, DamagedCheckpoint

TENSORS = {"model": {"a": torch.arange(6.0).view(2, 3), "n": torch.tensor(3)}, "optimizer": {"0.m": torch.ones(5)}}


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Checkpoints:
    if request.param == "folder":
        return Checkpoints(str(tmp_path / "checkpoints"))
    return Checkpoints(f"{request.getfixturevalue('s3').bucket}/checkpoints/{tmp_path.name}/")


def overwrite(store: Checkpoints, step: int, file: str, data: bytes | None) -> None:
    """Put other bytes in the place of a file of a checkpoint, or remove it."""
    bucket, _, key = f"{store.name(step)}/{file}".removeprefix("s3://").partition("/")
    if not s3_module.is_s3(store.location):
        path = Path(store.name(step)) / file
        path.unlink() if data is None else path.write_bytes(data)
    elif data is None:
        boto3.client("s3").delete_object(Bucket=bucket, Key=key)
    else:
        boto3.client("s3").put_object(Bucket=bucket, Key=key, Body=data)


def test_what_was_saved_is_loaded(store: Checkpoints) -> None:
    assert store.steps() == []
    state = {"step": 7, "losses": [0.1, 1e-300], "history": [{"loss": 2.5}]}
    store.save(7, TENSORS, state, last=True)
    assert store.steps() == [7]
    tensors, content = store.load(7)
    assert content == state
    assert tensors.keys() == TENSORS.keys()
    for file, expected in TENSORS.items():
        assert tensors[file].keys() == expected.keys()
        assert all(torch.equal(tensors[file][name], tensor) for name, tensor in expected.items())


def test_two_are_kept(store: Checkpoints) -> None:
    for step in (5, 90, 200, 1000):
        store.save(step, TENSORS, {}, last=True)
    assert store.steps() == [1000, 200]


def test_later_ones_that_were_refused_do_not_push_out_new_ones(store: Checkpoints) -> None:
    for step in (8, 9, 3, 4, 5):
        store.save(step, TENSORS, {}, last=True)
    assert store.steps() == [9, 8, 5, 4]


def test_what_a_killed_process_left_half_written_goes(tmp_path: Path) -> None:
    store = Checkpoints(str(tmp_path))
    (tmp_path / ".step-00000001.0badcafe.tmp").mkdir()
    store.save(1, {"model": {}}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


@pytest.mark.parametrize("file", ["model.safetensors", "state.json", "SHA256SUMS"])
def test_damaged_and_partial_checkpoints_are_refused_by_name(store: Checkpoints, file: str) -> None:
    store.save(1, TENSORS, {"step": 1}, last=True)
    store.save(2, TENSORS, {"step": 2}, last=True)
    overwrite(store, 2, file, b"other bytes")
    with pytest.raises(DamagedCheckpoint, match=f"{store.name(2)} is damaged"):
        store.load(2)
    overwrite(store, 2, file, None)
    with pytest.raises(DamagedCheckpoint, match=f"{store.name(2)} is (partial|damaged)"):
        store.load(2)
    assert store.load(1)[1] == {"step": 1}


def test_sums_are_those_of_coreutils(tmp_path: Path) -> None:
    store = Checkpoints(str(tmp_path))
    store.save(1, TENSORS, {})
    command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    output = subprocess.run(command, cwd=store.name(1), capture_output=True, text=True, check=True).stdout
    assert output.count("OK") == 3


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    store = Checkpoints(str(tmp_path))
    store.save(1, TENSORS, {})
    path = Path(store.name(1)) / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedCheckpoint, match=r"SHA-256 of model\.safetensors"):
        store.load(1)


def test_training_does_not_wait_for_an_upload(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Checkpoints(f"{s3.bucket}/{tmp_path.name}")
    slow = threading.Event()
    upload = s3_module.upload

    def wait_and_upload(*arguments: Any, **options: Any) -> int:
        slow.wait(60)
        return upload(*arguments, **options)

    monkeypatch.setattr(s3_module, "upload", wait_and_upload)
    store.save(1, TENSORS, {"step": 1})
    store.save(2, TENSORS, {"step": 2})  # returns, though the first has not begun
    assert f"{store.name(2)}: left out" in capsys.readouterr().err
    slow.set()
    store.save(3, TENSORS, {"step": 3}, last=True)
    assert store.steps() == [3, 1]


def test_a_failed_upload_is_told_and_the_last_one_raises(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Checkpoints(f"{s3.bucket}/{tmp_path.name}")
    with monkeypatch.context() as wrong:
        wrong.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        store.save(1, TENSORS, {})
        with pytest.raises(StorageError, match="AWS_SECRET_ACCESS_KEY"):
            store.save(2, TENSORS, {}, last=True)
    assert "a checkpoint was not stored" in capsys.readouterr().err
    store.save(3, TENSORS, {}, last=True)
    assert store.steps() == [3]
