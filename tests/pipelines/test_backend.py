"""The rules of KFP's backend, each against what its source says, the copying through a real S3 server."""

import json
import math
from pathlib import Path

import boto3
import pytest

from pipelines.laptop import backend
from pipelines.laptop.backend import Refused, Size, Store, carried, final_state, read_output, recorded

ADDED = {"display_name": "dataset", "store_session_info": "{}"}


def through(value: object) -> object:
    return recorded({"key": value}, output="dataset", session="{}")["key"]


@pytest.mark.parametrize(
    ("value", "back"),
    [
        ("text", "text"),
        ("", ""),
        (3, 3.0),
        (0.25, 0.25),
        (True, 1.0),
        (False, 0.0),
        ([1.0, 5.0], {"list": [1.0, 5.0]}),
        ([], {"list": []}),
        ({"train": 3}, {"struct": {"train": 3}}),
        ([None], {"list": [None]}),
    ],
)
def test_metadata_comes_back_as_ml_metadata_keeps_it(value, back):
    assert through(value) == back
    assert isinstance(through(value), type(back)), "an integer cannot be told from a float, nor a boolean"


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_what_ml_metadata_has_no_value_for_fails_the_task(value):
    with pytest.raises(Refused, match=r"metadata 'key' is (None|nan|-?inf): unknown/unsupported value type"):
        through(value)


def test_name_and_store_are_added_unless_the_task_set_them():
    assert recorded({}, output="dataset", session="{}") == ADDED
    assert recorded({"display_name": "mine"}, output="dataset", session="{}") == ADDED | {"display_name": "mine"}


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_an_output_file_is_json(value):
    """The executor writes it by Python's json, which writes what is none."""
    text = json.dumps({"parameterValues": {"score": float(value.lower().replace("infinity", "inf"))}})
    with pytest.raises(Refused, match=f"is {value}, which is no JSON"):
        read_output(text)
    assert read_output('{"parameterValues": {"score": 0.5}}') == {"parameterValues": {"score": 0.5}}


@pytest.mark.parametrize(
    ("said", "killed", "state"),
    [("SUCCEEDED", False, "COMPLETE"), ("FAILED", False, "FAILED"), ("FAILED", True, "RUNNING")],
)
def test_the_end_in_the_words_of_ml_metadata(said, killed, state):
    assert final_state(said, killed=killed) == state
    assert (state in backend.SUCCESS) == (said == "SUCCEEDED")


@pytest.fixture
def store(s3) -> Store:
    return Store(s3.bucket.removeprefix("s3://"), boto3.client("s3"))


@pytest.fixture
def folder(tmp_path) -> Path:
    artifact = tmp_path / "artifact"
    for name, text in {"a.txt": "one", "deep/er/b.txt": "four", "empty.txt": ""}.items():
        (artifact / name).parent.mkdir(parents=True, exist_ok=True)
        (artifact / name).write_text(text)
    return artifact


def files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


class TestStore:
    def test_a_folder_is_its_files(self, store, folder):
        before = files(folder)
        assert carried(folder, "run/folder", store) == Size(3, 7)
        assert files(folder) == before

    def test_empty_folders_vanish(self, store, folder):
        (folder / "nothing" / "here").mkdir(parents=True)
        carried(folder, "run/empty", store)
        assert not (folder / "nothing").exists()

    def test_a_folder_of_nothing_is_not_there(self, store, tmp_path):
        (tmp_path / "hollow").mkdir()
        assert carried(tmp_path / "hollow", "run/hollow", store) == Size()
        assert not (tmp_path / "hollow").exists()

    def test_one_file(self, store, tmp_path):
        (tmp_path / "report").write_text("<p>")
        assert carried(tmp_path / "report", "run/report", store) == Size(1, 3)
        assert (tmp_path / "report").read_text() == "<p>"

    def test_an_output_that_was_not_made(self, store, tmp_path):
        assert carried(tmp_path / "metrics", "run/metrics", store) == Size()
        assert not (tmp_path / "metrics").exists()

    def test_a_link_to_a_file_becomes_the_file(self, store, folder):
        (folder / "link.txt").symlink_to(folder / "a.txt")
        carried(folder, "run/link", store)
        assert not (folder / "link.txt").is_symlink()
        assert (folder / "link.txt").read_text() == "one"

    @pytest.mark.parametrize("target", ["deep", "nowhere"])
    def test_another_link_fails(self, store, folder, target):
        (folder / "link").symlink_to(folder / target)
        with pytest.raises(Refused, match=r"artifact/link: a link to a folder or to nothing"):
            carried(folder, "run/links", store)

    def test_the_artifact_itself_may_be_a_link(self, store, folder, tmp_path):
        (tmp_path / "link").symlink_to(folder)
        before = files(folder)
        carried(tmp_path / "link", "run/itself", store)
        assert files(tmp_path / "link") == before
        assert not (tmp_path / "link").is_symlink()

    def test_a_name_that_begins_alike_is_another_artifact(self, store, folder, tmp_path):
        store.upload(folder, "run/pictures")
        store.upload(folder, "run/pictures-too")
        assert store.download("run/pictures", tmp_path / "back") == Size(3, 7)


def test_what_a_failed_task_left_is_gone(tmp_path, folder):
    (tmp_path / "report").write_text("<p>")
    (tmp_path / "link").symlink_to(folder)
    for name in ("artifact", "report", "link", "nothing"):
        backend.discard(tmp_path / name)
        assert not (tmp_path / name).exists()
    assert not (tmp_path / "link").is_symlink()
