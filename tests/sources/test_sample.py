"""The sample photographs, and their way through a real DVC remote."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dvc_projects import flip

from contrique import images
from contrique.data.manifest import read_manifest
from contrique.sources.dvc_pin import dir_hash, list_files, read_pin
from contrique.sources.dvc_remote import FetchError
from contrique.sources.fetch import fetch
from contrique.sources.sample import MAX_SIDE, build, write

ROOT = Path(__file__).parents[2]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What a fresh clone has of the data: the pin and the remote's address, no data and no remote."""
    (tmp_path / "clone" / ".dvc").mkdir(parents=True)
    for name in ("data.dvc", ".dvc/config", ".dvcignore", ".gitignore"):
        shutil.copyfile(ROOT / name, tmp_path / "clone" / name)
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path / "clone", check=True)
    return tmp_path / "clone"


def run(clone: Path, *command: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "DVC_NO_ANALYTICS": "1"}
    return subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, check=False)


def test_two_builds_give_the_same_bytes(photographs, tmp_path):
    write(tmp_path / "again")
    assert list_files(tmp_path / "again") == list_files(photographs)


def test_the_pin_in_git_is_what_is_built_here(photographs):
    assert dir_hash(list_files(photographs)) == read_pin(ROOT)


def test_the_photographs_are_varied_whole_contents_with_their_sources(photographs):
    manifest = read_manifest(photographs)
    assert len(manifest) == manifest["sha256"].nunique() == manifest["reference"].nunique() == 20
    assert (manifest[["width", "height"]].max(axis=1) <= MAX_SIDE).all()
    assert (manifest[["width", "height"]].min(axis=1) >= 128).all()
    assert (manifest["source"] != "").all()
    assert (manifest["licence"] != "").all()
    assert manifest["mos"].isna().all()
    counts = (manifest["split"] + " " + manifest["kind"]).value_counts().to_dict()
    assert counts == {
        "pretrain pristine": 7,
        "pretrain authentic": 7,
        "train pristine": 3,
        "validation pristine": 1,
        "test pristine": 2,
    }


def test_no_two_photographs_are_near_duplicates(photographs):
    hashes = list(read_manifest(photographs)["phash"])
    assert min(images.hamming(a, b) for i, a in enumerate(hashes) for b in hashes[:i]) > 14


def test_dvc_pull_restores_the_data_in_a_fresh_clone(clone, photographs):
    process = run(clone, sys.executable, "-m", "contrique.sources.sample")
    assert process.returncode == 0, process.stderr
    assert read_pin(clone) in process.stdout
    for _ in range(2):
        pull = run(clone, "dvc", "pull")
        assert pull.returncode == 0, pull.stderr
        assert list_files(clone / "data") == list_files(photographs)
        shutil.rmtree(clone / "data")
    assert (clone / "data.dvc").read_bytes() == (ROOT / "data.dvc").read_bytes()


@pytest.fixture
def whole_clone(clone: Path) -> Path:
    """A fresh clone with the remote that is committed."""
    listing = subprocess.run(["git", "ls-files", ".dvc-remote"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listing.stdout.split():
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, clone / name)
    return clone


def test_dvc_pull_alone_restores_the_data_after_a_clone(whole_clone, photographs):
    pull = run(whole_clone, "dvc", "pull")
    assert pull.returncode == 0, pull.stderr
    assert list_files(whole_clone / "data") == list_files(photographs)


def test_a_byte_flipped_in_the_committed_remote_is_refused_and_named(whole_clone, photographs, tmp_path):
    md5 = list_files(photographs)["images/rocket.png"]
    flip(whole_clone / ".dvc-remote" / "files" / "md5" / md5[:2] / md5[2:])
    pull = run(whole_clone, "dvc", "pull")
    assert pull.returncode != 0
    assert not (whole_clone / "data" / "images" / "rocket.png").exists()
    with pytest.raises(FetchError, match=r"data/images/rocket\.png damaged"):
        fetch(tmp_path / "out", data=str(whole_clone))


def test_a_remote_of_the_team_that_cannot_be_reached_is_one_line(whole_clone, tmp_path):
    for arguments in (("add", "--default", "team", "http://127.0.0.1:9/store"), ("modify", "team", "verify", "true")):
        assert run(whole_clone, "dvc", "remote", *arguments).returncode == 0
    with pytest.raises(
        FetchError, match=r"cannot pull data\.dvc from remote 'team' \(http://127.0.0.1:9/store\)"
    ) as error:
        fetch(tmp_path / "out", data=str(whole_clone))
    assert "\n" not in str(error.value)
    assert run(whole_clone, "dvc", "pull", "--remote", "local").returncode == 0


def test_nothing_is_built_where_the_remote_holds_the_data(clone):
    build(clone)
    before = {path: path.stat().st_mtime_ns for path in (clone / ".dvc-remote").rglob("*")}
    assert build(clone) == read_pin(clone)
    assert {path: path.stat().st_mtime_ns for path in (clone / ".dvc-remote").rglob("*")} == before


def test_another_pin_is_refused_and_replaced_only_on_purpose(clone):
    text = (clone / "data.dvc").read_text()
    hash_ = read_pin(clone)
    (clone / "data.dvc").write_text(text.replace(hash_, "0" * 32 + ".dir"))
    refusal = run(clone, sys.executable, "-m", "contrique.sources.sample")
    assert refusal.returncode == 2
    assert "--repin" in refusal.stderr
    assert hash_ in refusal.stderr
    assert "Traceback" not in refusal.stderr
    assert not (clone / ".dvc-remote").exists()
    repin = run(clone, sys.executable, "-m", "contrique.sources.sample", "--repin")
    assert repin.returncode == 0, repin.stderr
    assert (clone / "data.dvc").read_text() == text


def test_the_committed_remote_is_a_folder_beside_the_project_and_is_verified():
    config = (ROOT / ".dvc" / "config").read_text()
    assert "url = ../.dvc-remote" in config
    assert "verify = true" in config
    assert "analytics = false" in config
