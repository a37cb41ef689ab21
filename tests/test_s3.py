"""Writing aside, and S3 against a real server."""

import os
import sqlite3
import subprocess
from pathlib import Path

import boto3
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from contrique.config import RegistryConfig
from contrique.files import DiskFull, StorageError, inside, room, write_aside
from contrique.s3 import SETTINGS, download, is_s3, upload
from contrique.sources.dvc_pin import publish
from contrique.tracking.store import Store


def test_write_aside_replaces_the_file_whole_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "new" / "file"
    for text in ("old", "new"):
        with write_aside(path) as aside:
            aside.write_text(text)
            assert not path.exists() or path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_write_aside_keeps_the_old_content_when_the_body_fails(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "member").write_text("old")
    for name, write in (("file", Path.touch), ("folder", Path.mkdir)):
        with pytest.raises(ZeroDivisionError), write_aside(tmp_path / name) as aside:  # noqa: PT012
            write(aside)
            raise ZeroDivisionError
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "member").read_text() == "old"


def test_write_aside_replaces_a_folder_whole(tmp_path):
    for name in ("old", "new"):
        with write_aside(tmp_path / "folder") as aside:
            aside.mkdir()
            (aside / name).touch()
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["new"]


MANY = range(100_000)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_text("x" * 1_000_000),
        lambda path: pd.DataFrame({"a": MANY}).to_parquet(path),
        lambda path: save_file({"a": torch.tensor(MANY)}, path),
    ],
    ids=["text", "parquet", "safetensors"],
)
def test_on_a_full_disk_the_file_is_named_and_the_old_one_stays(write, tmp_path):
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(tmp_path)], capture_output=True)
    if mount.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        path = tmp_path / "file"
        path.write_text("old")
        message = rf"^{path}: no space left \(.+\); make room or choose another disk, and run again$"
        with pytest.raises(DiskFull, match=message), write_aside(path) as aside:
            write(aside)
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_full_disk_behind_another_error_is_told_by_the_file_nearest_to_it(tmp_path):
    def fail() -> None:
        with sqlite3.connect(":memory:") as database:
            database.execute("PRAGMA max_page_count = 2")
            try:
                database.execute("CREATE TABLE t AS SELECT zeroblob(100000)")
            except sqlite3.Error as error:
                raise StorageError("a remote that is said to be damaged") from error

    message = r"^near: no space left \(database or disk is full\)"
    with pytest.raises(DiskFull, match=message), room(Path("far")), room(Path("near")):
        fail()


def test_another_error_is_left_as_it_is():
    with pytest.raises(FileNotFoundError), room(Path("a")):
        Path("/nowhere/at/all").touch()


def test_a_folder_goes_to_s3_and_comes_back_equal(s3, tmp_path):
    big = bytes(range(256)) * 80_000  # 20 MB: more than one part
    files = {"a.bin": big, "below/ä b.txt": b"text", "below/empty": b""}
    for name, data in files.items():
        (tmp_path / "from" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "from" / name).write_bytes(data)
    url = f"{s3.bucket}/round/trip"
    assert upload(tmp_path / "from", url) == 3
    assert boto3.client("s3").head_object(Bucket="contrique", Key="round/trip/a.bin")["ETag"].endswith('-3"')
    assert download(f"{url}/", tmp_path / "to") == 3
    copies = {
        p.relative_to(tmp_path / "to").as_posix(): p.read_bytes() for p in (tmp_path / "to").rglob("*") if p.is_file()
    }
    assert copies == files


def test_one_file_goes_to_s3(s3, tmp_path):
    (tmp_path / "one.txt").write_text("1")
    assert upload(tmp_path / "one.txt", f"{s3.bucket}/single") == 1
    assert download(f"{s3.bucket}/single", tmp_path / "to") == 1
    assert (tmp_path / "to" / "one.txt").read_text() == "1"


def test_a_prefix_is_a_folder_not_a_beginning_of_names(s3, tmp_path):
    client = boto3.client("s3")
    for key in ("set/in", "set2/out", "set/marker/"):
        client.put_object(Bucket="contrique", Key=key, Body=b"")
    assert download(f"{s3.bucket}/set", tmp_path / "to") == 1
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["in"]


@pytest.mark.slow
def test_more_objects_than_one_page_lists(s3, tmp_path):
    (tmp_path / "from").mkdir()
    for number in range(1100):
        (tmp_path / "from" / str(number)).touch()
    upload(tmp_path / "from", f"{s3.bucket}/many")
    assert download(f"{s3.bucket}/many", tmp_path / "to") == 1100


def test_a_changed_object_is_named_and_nothing_is_left(s3, tmp_path):
    (tmp_path / "good").write_text("good")
    upload(tmp_path / "good", f"{s3.bucket}/changed")
    client = boto3.client("s3")
    metadata = client.head_object(Bucket="contrique", Key="changed/good")["Metadata"]
    client.put_object(Bucket="contrique", Key="changed/good", Body=b"evil", Metadata=metadata)
    with pytest.raises(StorageError, match=r"s3://contrique/changed/good: damaged"):
        download(f"{s3.bucket}/changed", tmp_path / "to")
    assert [path.name for path in tmp_path.iterdir()] == ["good"]


@pytest.mark.parametrize("name", ["../out", "a/../../out", "/etc/out"])
def test_a_name_that_leads_out_of_its_folder_is_refused(name):
    with pytest.raises(StorageError, match=r"s3://b/k: the name .* leads out of its folder"):
        inside(name, "s3://b/k")
    assert str(inside("a/b..c", "s3://b/k")) == "a/b..c"


@pytest.mark.parametrize(
    ("variable", "value", "location", "words"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wrong", "s3://contrique/x", "AWS_SECRET_ACCESS_KEY"),
        ("AWS_ACCESS_KEY_ID", "nobody", "s3://contrique/x", "AWS_ACCESS_KEY_ID"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9", "s3://contrique/x", "AWS_ENDPOINT_URL"),
        ("AWS_DEFAULT_REGION", "us-east-1", "s3://absent-bucket/x", "create the bucket or correct its name"),
        ("AWS_DEFAULT_REGION", "us-east-1", "s3://contrique/absent", "no objects there"),
        ("AWS_DEFAULT_REGION", "us-east-1", "s3://", "s3://BUCKET/PREFIX"),
    ],
)
def test_what_goes_wrong_is_said_with_the_place_and_the_remedy(
    s3, tmp_path, monkeypatch, variable, value, location, words
):
    monkeypatch.setenv(variable, value)
    with pytest.raises(StorageError) as download_error:
        download(location, tmp_path / "to")
    assert str(download_error.value).startswith(location)
    assert words in str(download_error.value)
    assert "\n" not in str(download_error.value)
    assert not (tmp_path / "to").exists()
    if "absent" not in location or "bucket" in location:
        (tmp_path / "file").touch()
        with pytest.raises(StorageError, match=words.replace(" ", r"\s")):
            upload(tmp_path / "file", location)


def test_without_credentials_the_message_says_which_to_set(s3, tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(StorageError, match="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        download("s3://contrique/x", tmp_path / "to")


def test_uploading_nothing_is_an_error(tmp_path):
    with pytest.raises(StorageError, match="nothing to upload"):
        upload(tmp_path, "s3://contrique/x")


@pytest.mark.parametrize(("location", "expected"), [("s3://b/p", True), ("/s3/b", False), ("https://s3.host/b", False)])
def test_is_s3(location, expected):
    assert is_s3(location) is expected


class TestSettings:
    """This project's own names for them, which a cluster gives to its tasks."""

    @pytest.fixture
    def own(self, s3, monkeypatch):
        """The server's settings by this project's names, and AWS's leading astray, as the launcher's own might."""
        for ours, theirs in SETTINGS.items():
            monkeypatch.setenv(ours, s3.environment[theirs])
            monkeypatch.setenv(theirs, "http://127.0.0.1:9" if "URL" in theirs else "astray")
        return s3

    def test_they_reach_the_server(self, own, tmp_path):
        (tmp_path / "file").write_text("text")
        assert upload(tmp_path / "file", f"{own.bucket}/settings") == 1

    def test_so_do_dvc_and_mlflow_by_them(self, own, tmp_path, monkeypatch):
        """Both read AWS's names, and are opened at one place each."""
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
        assert Store(RegistryConfig()).client
        assert {name: os.environ[name] for name in SETTINGS.values()} == {
            name: own.environment[name] for name in SETTINGS.values()
        }
        project = tmp_path / "project"
        (project / ".dvc").mkdir(parents=True)
        config = f"[core]\n    remote = store\n    no_scm = true\n['remote \"store\"']\n    url = {own.bucket}/dvc\n"
        (project / ".dvc" / "config").write_text(config)
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "file").write_text("text")
        for theirs in SETTINGS.values():
            monkeypatch.setenv(theirs, "astray")
        assert "md5" in publish(tmp_path / "data", project)

    def test_without_them_awss_own_are_used(self, s3, tmp_path, monkeypatch):
        for ours in SETTINGS:
            monkeypatch.delenv(ours, raising=False)
        (tmp_path / "file").write_text("text")
        assert upload(tmp_path / "file", f"{s3.bucket}/settings") == 1


def put_objects(s3, *keys: str) -> None:
    client = boto3.Session().client("s3")
    for key in keys:
        client.put_object(Bucket=s3.bucket.removeprefix("s3://"), Key=key, Body=b"1")


@pytest.mark.parametrize("keys", [("both/x", "both/x/a.png"), ("deep/a/b", "deep/a/b/c/d.png")])
def test_an_object_that_is_called_as_a_folder_is_one_clear_line(s3, tmp_path, keys):
    put_objects(s3, *keys)
    with pytest.raises(
        StorageError, match=rf"{keys[0]}: an object that is called as the folder of .*{keys[1]}; rename"
    ):
        download(f"{s3.bucket}/{keys[0].partition('/')[0]}", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("address", ["127.0.0.1:9000", "localhost", "http://", "ftp://host.test"])
@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_an_endpoint_that_is_no_address_is_named(s3, tmp_path, monkeypatch, address, name):
    monkeypatch.setenv(name, address)
    with pytest.raises(StorageError, match=rf"{name}={address}: not an address; write http://HOST:PORT"):
        download(f"{s3.bucket}/any", tmp_path / "out")


def test_a_password_in_the_endpoint_is_not_told(s3, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://me:secretword@127.0.0.1:9")
    with pytest.raises(StorageError) as error:
        download(f"{s3.bucket}/any", tmp_path / "out")
    assert "secretword" not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [b"caf\xe9.png", b"\xff/a.png"])
def test_a_name_that_s3_cannot_hold_is_refused_by_name(s3, tmp_path, name):
    path = tmp_path / "set" / os.fsdecode(name)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"1")
    with pytest.raises(StorageError, match="is not UTF-8; rename it"):
        upload(tmp_path / "set", f"{s3.bucket}/odd")


@pytest.mark.parametrize("bucket", ["..", "a b", "UPPER!", "x" * 80])
def test_a_bucket_that_cannot_be_is_one_clear_line(s3, tmp_path, bucket):
    with pytest.raises(StorageError) as error:
        download(f"s3://{bucket}/x", tmp_path / "out")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("proxy", ["http_proxy", "HTTP_PROXY", "ALL_PROXY"])
def test_a_proxy_does_not_stand_before_this_machine(s3, tmp_path, monkeypatch, host, proxy):
    monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.environment["AWS_ENDPOINT_URL"].replace("127.0.0.1", host))
    (tmp_path / "file").write_text("text")
    assert upload(tmp_path / "file", f"{s3.bucket}/proxy") == 1
