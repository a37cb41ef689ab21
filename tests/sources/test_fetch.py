"""Fetching against real remotes: a folder and an S3 server, with real git."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from dvc_projects import dvc_project, files, flip, git, picture, picture_set

from contrique import images
from contrique import s3 as s3_module
from contrique.artifacts import LINEAGE
from contrique.data.manifest import (
    DatasetError,
    read_manifest,
    read_picture_bytes,
    write_manifest,
)
from contrique.files import StorageError
from contrique.sources.dvc_pin import dir_hash, is_published, list_files, publish, read_pin
from contrique.sources.dvc_remote import FetchError
from contrique.sources.fetch import Lineage, fetch, fingerprint


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A git repository with `data.dvc` and a remote in its folder `store`."""
    return dvc_project(tmp_path / "project", "../store")


def remote_object(project: Path, file: str) -> Path:
    md5 = list_files(project.parent / "built")[file]
    return project / "store" / "files" / "md5" / md5[:2] / md5[2:]


def test_the_pinned_files_arrive_with_their_lineage(project, tmp_path):
    lineage = fetch(tmp_path / "out", data=str(project))
    contents = files(tmp_path / "out")
    assert Lineage(**json.loads((tmp_path / "out" / LINEAGE).read_text())) == lineage
    del contents["lineage.json"]
    assert contents == files(tmp_path / "built")
    assert lineage.hash == read_pin(project) == lineage.sources[str(project)]
    assert lineage.revision == git(project, "rev-parse", "HEAD").strip()
    assert (lineage.files, lineage.rows, lineage.counts) == (5, 4, {"pretrain/pristine": 4})
    assert lineage.bytes == sum(map(len, contents.values()))
    assert not (project / "data").exists()
    assert git(project, "status", "--porcelain") == ""


def test_fetching_again_replaces_what_was_there(project, tmp_path):
    first = fetch(tmp_path / "out", data=str(project))
    (tmp_path / "out" / "stray").touch()
    assert fetch(tmp_path / "out", data=str(project)) == first
    assert not (tmp_path / "out" / "stray").exists()


def test_our_hash_is_the_one_that_dvc_itself_gives(tmp_path):
    folder = picture_set(tmp_path / "repo" / "data")
    (folder / "empty").touch()
    (folder / "z").mkdir()
    (folder / "z" / '日本 "quoted".txt').write_text("text")
    for command in (["init", "--no-scm", "--quiet"], ["add", "--quiet", "data"]):
        subprocess.run(["dvc", *command], cwd=tmp_path / "repo", check=True, env=with_tools())
    assert read_pin(tmp_path / "repo") == dir_hash(list_files(folder))


def with_tools() -> dict[str, str]:
    import sys

    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "DVC_NO_ANALYTICS": "1",
    }


def assert_refused(tmp_path: Path, data: Path | str, *words: str, **options: str) -> None:
    before = sorted(tmp_path.iterdir())
    with pytest.raises(FetchError) as error:
        fetch(tmp_path / "out", data=str(data), **options)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("options", ["", "    verify = true\n", "    verify = false\n"])
def test_one_flipped_byte_in_the_remote_fails_and_names_the_file(tmp_path, options):
    project = dvc_project(tmp_path / "project", "../store", options)
    flip(remote_object(project, "images/pear.png"))
    assert_refused(tmp_path, project, "data/images/pear.png damaged", "dvc push")


def test_a_failed_fetch_leaves_what_was_there_before(project, tmp_path):
    fetch(tmp_path / "out", data=str(project))
    before = files(tmp_path / "out")
    flip(remote_object(project, "manifest.parquet"))
    assert_refused(tmp_path, project, "data/manifest.parquet damaged")
    assert files(tmp_path / "out") == before


def test_a_damaged_object_in_a_shared_cache_fails_and_names_the_file(project, tmp_path, monkeypatch):
    monkeypatch.chdir(project)
    subprocess.run(
        ["dvc", "cache", "dir", "--local", str(tmp_path / "cache")], cwd=project, check=True, env=with_tools()
    )
    fetch(tmp_path / "out", data=str(project))
    store = remote_object(project, "images/plum.png").relative_to(project / "store")
    flip(tmp_path / "cache" / store)
    assert_refused(tmp_path, project, "data/images/plum.png", "differ from data.dvc", str(tmp_path / "cache"))


def test_the_projects_own_cache_is_neither_trusted_nor_touched(project, tmp_path):
    subprocess.run(["dvc", "pull", "--quiet"], cwd=project, check=True, env=with_tools())
    store = remote_object(project, "images/plum.png").relative_to(project / "store")
    flip(project / ".dvc" / "cache" / store)
    before = files(project / ".dvc" / "cache")
    fetch(tmp_path / "out", data=str(project))
    assert files(tmp_path / "out")["images/plum.png"] == files(tmp_path / "built")["images/plum.png"]
    assert files(project / ".dvc" / "cache") == before


def test_missing_and_damaged_objects_are_told_apart(project, tmp_path):
    remote_object(project, "images/apple.png").unlink()
    assert_refused(tmp_path, project, "data/images/apple.png not there", "dvc push")
    pin = read_pin(project)
    listing = project / "store" / "files" / "md5" / pin[:2] / pin[2:]
    flip(listing)
    assert_refused(tmp_path, project, f"the list of its files, {pin}, is damaged")
    listing.unlink()
    assert_refused(tmp_path, project, f"does not hold {pin}", str(project / "store"))
    shutil.rmtree(project / "store")
    assert_refused(tmp_path, project, f"does not hold {pin}", str(project / "store"))


def test_a_list_swapped_for_another_valid_one_is_refused(project, tmp_path):
    pin = read_pin(project)
    listing = project / "store" / "files" / "md5" / pin[:2] / pin[2:]
    entries = json.loads(listing.read_bytes())
    listing.chmod(0o644)
    listing.write_text(json.dumps(entries[1:]))
    assert_refused(tmp_path, project, f"the list of its files, {pin}, is damaged")


def test_a_revision_gives_the_data_of_that_time(project, tmp_path):
    old, old_pin = git(project, "rev-parse", "HEAD").strip(), read_pin(project)
    git(project, "tag", "v1")
    git(project, "branch", "earlier")
    (project / "data.dvc").write_text(publish(picture_set(tmp_path / "newer", seed=50), project))
    dirty = fetch(tmp_path / "dirty", data=str(project))
    git(project, "commit", "--quiet", "--all", "--message", "newer")
    clean = fetch(tmp_path / "clean", data=str(project))
    assert dirty.hash == clean.hash == read_pin(project) != old_pin
    assert dirty.revision == f"{old}-dirty"
    assert clean.revision == git(project, "rev-parse", "HEAD").strip()
    for revision in (old, old[:10], "v1", "earlier", "HEAD~1"):
        lineage = fetch(tmp_path / "old", data=str(project), revision=revision)
        assert (lineage.hash, lineage.revision) == (old_pin, old)
    assert_refused(tmp_path, project, "no git revision 'v9'", revision="v9")
    assert_refused(tmp_path, project, "no git revision '--help'", revision="--help")


def test_a_project_in_an_image_without_git(project, tmp_path):
    shutil.rmtree(project / ".git")
    lineage = fetch(tmp_path / "out", data=str(project))
    assert (lineage.hash, lineage.revision) == (read_pin(project), "")
    assert_refused(tmp_path, project, "no git revision 'v1'", revision="v1")


def test_a_project_below_the_root_of_its_repository(project, tmp_path):
    (project / "sub").mkdir()
    git(project, "mv", "data.dvc", "sub/data.dvc")
    git(project, "commit", "--quiet", "--message", "moved")
    for revision in ("", "main"):
        lineage = fetch(tmp_path / "out", data=str(project / "sub"), revision=revision)
        assert lineage.hash == read_pin(project / "sub")


def test_what_is_not_a_usable_project_is_said_so(project, tmp_path):
    assert_refused(tmp_path, "", "nothing to fetch")
    assert_refused(tmp_path, tmp_path / "absent", "absent: no such folder; check the path")
    assert_refused(tmp_path, f"tid2023:{tmp_path}", "no such folder; check the path, or name one of live, csiq")
    assert_refused(tmp_path, "koniq-10k:x", "no such folder; check the path, or name one of live, csiq")
    assert_refused(tmp_path, "LIVE:x", "no such folder; check the path, or name one of live, csiq")
    text = (project / "data.dvc").read_text()
    for bad in (
        "outs: []",
        "- a\n- b",
        "outs:\n- {path: data, md5: abc, hash: md5}",
        text.replace("path: data", "path: ../x"),
    ):
        (project / "data.dvc").write_text(bad)
        with pytest.raises((FetchError, StorageError), match=r"data\.dvc"):
            fetch(tmp_path / "out", data=str(project))
    (project / "data.dvc").write_text(text)
    (project / ".dvc" / "config").write_text("[core]\n    analytics = false\n")
    assert_refused(tmp_path, project, "no default remote", "dvc remote add")
    shutil.rmtree(project / ".dvc")
    assert_refused(tmp_path, project, "no .dvc/config")


def test_a_git_url_with_an_s3_remote(s3, tmp_path):
    project = dvc_project(tmp_path / "project", f"{s3.bucket}/team")
    git(project, "tag", "v1")
    pin = read_pin(project)
    (project / "data.dvc").write_text(publish(picture_set(tmp_path / "newer", seed=70), project))
    git(project, "commit", "--quiet", "--all", "--message", "newer")
    newest = fetch(tmp_path / "newest", data=f"file://{project}")
    assert newest.hash == read_pin(project)
    assert newest.revision == git(project, "rev-parse", "HEAD").strip()
    for revision in ("v1", "main~1"):
        assert fetch(tmp_path / "old", data=f"file://{project}", revision=revision).hash == pin
    assert_refused(tmp_path, f"file://{project}", "no git revision 'v9'", revision="v9")
    assert_refused(tmp_path, f"file://{tmp_path}/nowhere.git", "git clone failed", "nowhere.git")


def test_a_git_url_whose_remote_is_a_folder_says_which_is_missing(project, tmp_path):
    assert_refused(tmp_path, f"file://{project}", "remote 'team'", "does not hold")


def test_an_s3_remote_that_fails(s3, tmp_path, monkeypatch):
    import boto3

    project = dvc_project(tmp_path / "project", f"{s3.bucket}/failing")
    assert fetch(tmp_path / "good", data=str(project)).hash == read_pin(project)
    md5 = list_files(tmp_path / "built")["images/pear.png"]
    key, client = f"failing/files/md5/{md5[:2]}/{md5[2:]}", boto3.Session().client("s3")
    data = bytearray(client.get_object(Bucket="contrique", Key=key)["Body"].read())
    data[100] ^= 1
    client.put_object(Bucket="contrique", Key=key, Body=bytes(data))
    assert_refused(tmp_path, project, "data/images/pear.png damaged")
    client.delete_object(Bucket="contrique", Key=key)
    assert_refused(tmp_path, project, "data/images/pear.png not there")
    with monkeypatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        assert_refused(tmp_path, project, "remote 'team'", "AWS_")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert_refused(tmp_path, project, "remote 'team'", "127.0.0.1:9")


def write_labelled(folder: Path) -> Path:
    for number, name in enumerate("abcd"):
        picture(folder, name, 20 + number)
    pd.DataFrame({"image": [f"{name}.png" for name in "abcd"], "mos": [1.0, 2.0, 3.0, 4.0]}).to_csv(
        folder / "labels.csv"
    )
    return folder


def assert_pictures_match(out: Path) -> pd.DataFrame:
    manifest = read_manifest(out)
    for row in manifest.itertuples():
        assert images.content_hash(read_picture_bytes(out, row)) == row.sha256
    return manifest


def test_several_sources_become_one_picture_set(tmp_path):
    for number, name in enumerate("xyz"):
        picture(tmp_path / "clean" / "below", name, 30 + number)
        picture(tmp_path / "phone", name, 40 + number)
    sources = {"pristine": [str(tmp_path / "clean")], "authentic": [str(tmp_path / "phone")]}
    lineage = fetch(tmp_path / "out", data=str(write_labelled(tmp_path / "rated")), **sources)
    manifest = assert_pictures_match(tmp_path / "out")
    assert list(manifest["dataset"]) == ["rated"] * 4 + ["clean"] * 3 + ["phone"] * 3
    assert manifest["image"].iloc[4] == "images/clean/below/x.png"
    assert list(manifest["mos"].dropna()) == [1, 2, 3, 4]
    assert lineage.counts["pretrain/pristine"] == lineage.counts["pretrain/authentic"] == 3
    assert sorted(lineage.sources) == sorted(str(tmp_path / name) for name in ("rated", "clean", "phone"))
    second = fetch(tmp_path / "again", data=str(tmp_path / "rated"), **sources)
    assert second == lineage
    (tmp_path / "phone" / "z.png").unlink()
    assert fetch(tmp_path / "out", data=str(tmp_path / "rated"), **sources).hash != lineage.hash


def test_photographs_alone_for_pretraining(tmp_path):
    picture(tmp_path / "clean", "x", 1)
    lineage = fetch(tmp_path / "out", pristine=[str(tmp_path / "clean")])
    assert (lineage.source, lineage.counts) == ("", {"pretrain/pristine": 1})
    assert_pictures_match(tmp_path / "out")


def test_a_project_and_photographs_together(project, tmp_path):
    picture(tmp_path / "phone", "x", 99)
    lineage = fetch(tmp_path / "out", data=str(project), authentic=[str(tmp_path / "phone")])
    assert lineage.sources[str(project)] == read_pin(project) != lineage.hash
    assert len(assert_pictures_match(tmp_path / "out")) == 5


def test_shards_are_taken_along(tmp_path):
    folder = picture_set(tmp_path / "built")
    manifest = read_manifest(folder)
    contents = [(folder / name).read_bytes() for name in manifest["image"]]
    (tmp_path / "sharded" / "shards").mkdir(parents=True)
    (tmp_path / "sharded" / "shards" / "0.tar").write_bytes(b"".join(contents))
    sizes = np.array([len(data) for data in contents])
    manifest = manifest.assign(shard="shards/0.tar", size=sizes, offset=np.cumsum(sizes) - sizes)
    write_manifest(manifest, tmp_path / "sharded")
    picture(tmp_path / "phone", "x", 99)
    for options in ({}, {"authentic": [str(tmp_path / "phone")]}):
        fetch(tmp_path / "out", data=str(tmp_path / "sharded"), **options)
        assert len(assert_pictures_match(tmp_path / "out")) == 4 + len(options)


def test_everything_may_lie_in_s3(s3, tmp_path):
    picture(tmp_path / "clean", "x", 1)
    s3_module.upload(picture_set(tmp_path / "built"), f"{s3.bucket}/sets/fruit")
    s3_module.upload(tmp_path / "clean", f"{s3.bucket}/sets/clean")
    alone = fetch(tmp_path / "alone", data=f"{s3.bucket}/sets/fruit")
    assert alone.hash == dir_hash(list_files(tmp_path / "built"))
    fetch(tmp_path / "out", data=f"{s3.bucket}/sets/fruit/", pristine=[f"{s3.bucket}/sets/clean"])
    assert list(assert_pictures_match(tmp_path / "out")["dataset"]) == ["f"] * 4 + ["clean"]
    with pytest.raises(StorageError, match="no objects there"):
        fetch(tmp_path / "absent", data=f"{s3.bucket}/sets/absent")


@pytest.mark.parametrize("ask", [lambda url: fetch(Path("out"), data=url), lambda url: fingerprint(data=url)])
@pytest.mark.parametrize(
    "url",
    [
        "https://token@git.test/team/data",
        "https://me:word@git.test/team/data",
        "https://me@corp.test:a/word@git.test/x",
    ],
)
def test_a_url_with_credentials_is_refused_without_repeating_them(url, ask):
    with pytest.raises(FetchError, match=r"data on git\.test holds credentials") as error:
        ask(url)
    assert "token@" not in str(error.value)
    assert "word" not in str(error.value)


def test_sources_that_cannot_be_merged(tmp_path):
    picture(tmp_path / "a" / "same", "x", 1)
    picture(tmp_path / "b" / "same", "x", 2)
    with pytest.raises(FetchError, match="two sources are called 'same'"):
        fetch(tmp_path / "out", pristine=[str(tmp_path / "a" / "same")], authentic=[str(tmp_path / "b" / "same")])
    folder = picture_set(tmp_path / "built")
    (folder / "images" / "plum.png").unlink()
    assert_refused(tmp_path, folder, "images/plum.png", "restore the file")
    manifest = read_manifest(folder)
    manifest.loc[0, "image"] = "../../escape.png"
    write_manifest(manifest, folder)
    with pytest.raises(DatasetError, match="leads out of its folder"):
        fetch(tmp_path / "out", data=str(folder))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"labels\.csv"):
        fetch(tmp_path / "out", data=str(tmp_path / "empty"))
    assert not (tmp_path / "out").exists()


def test_publishing_to_a_remote_that_refuses(s3, tmp_path, monkeypatch):
    project = dvc_project(tmp_path / "project", f"{s3.bucket}/refusing")
    assert is_published(project)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(FetchError, match="cannot push to remote 'team'"):
        publish(picture_set(tmp_path / "newer", seed=5), project)
    with pytest.raises(FetchError, match="remote 'team'"):
        is_published(project)


def test_a_fingerprint_names_the_content_of_the_data(project, s3, tmp_path):
    """The same for the same content, another for another, and of a folder that nothing vouches for new each time."""

    def name(data: str = str(project), **options) -> str:
        return fingerprint(data=data, **options)

    first = name()
    git(project, "tag", "v1")
    (project / "data.dvc").write_text(publish(picture_set(tmp_path / "newer", seed=50), project))
    assert name() != first
    assert name(revision="v1") == first
    folder = tmp_path / "built"
    assert name(str(folder)) != name(str(folder))
    where = f"{s3.bucket}/fingerprint/fruit"
    s3_module.upload(folder, where)
    stored = name(where)
    assert name(where) == stored
    picture(folder / "images", "pear", 99)
    s3_module.upload(folder, where)
    assert name(where) != stored
    assert name(pristine=[where]) == name(pristine=[where]) != name()
    assert name(pristine=[str(folder)]) != name(pristine=[str(folder)])


def test_data_that_changed_since_their_fingerprint_was_taken_are_refused(project, tmp_path):
    expected = fingerprint(data=str(project))
    fetch(tmp_path / "out", data=str(project), expected=expected)
    (project / "data.dvc").write_text(publish(picture_set(tmp_path / "newer", seed=50), project))
    assert_refused(tmp_path, project, "changed while they were fetched", expected=expected)
