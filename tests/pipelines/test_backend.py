"""The rules of KFP's backend, each against what its source says, the copying through a real S3 server."""

import json
import math
import signal
from pathlib import Path

import boto3
import pytest
from processes import VARIABLE, find_processes, survivors

from contrique.tracking.runs import SUCCESS
from pipelines.laptop import backend
from pipelines.laptop.backend import (
    Backend,
    Refused,
    Size,
    Store,
    final_state,
    measure,
    read_output,
    record_metadata,
    round_trip,
    serve_store,
)

ADDED = {"display_name": "dataset", "store_session_info": "{}"}


def through(value: object) -> object:
    return record_metadata({"key": value}, output="dataset", session="{}")["key"]


@pytest.mark.parametrize(
    ("value", "expected"),
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
def test_metadata_comes_back_as_ml_metadata_keeps_it(value, expected):
    assert through(value) == expected
    assert isinstance(through(value), type(expected)), "an integer cannot be told from a float, nor a boolean"


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_what_ml_metadata_has_no_value_for_fails_the_task(value):
    with pytest.raises(Refused, match=r"metadata 'key' is (None|nan|-?inf): unknown/unsupported value type"):
        through(value)


def test_name_and_store_are_added_unless_the_task_set_them():
    assert record_metadata({}, output="dataset", session="{}") == ADDED
    assert record_metadata({"display_name": "mine"}, output="dataset", session="{}") == ADDED | {"display_name": "mine"}


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_an_output_file_is_json(value):
    """The executor writes it by Python's json, which writes what is none."""
    text = json.dumps({"parameterValues": {"score": float(value.lower().replace("infinity", "inf"))}})
    with pytest.raises(Refused, match=f"is {value}, which is no JSON"):
        read_output(text)
    assert read_output('{"parameterValues": {"score": 0.5}}') == {"parameterValues": {"score": 0.5}}


@pytest.mark.parametrize(
    ("word", "killed", "state"),
    [("SUCCEEDED", False, "COMPLETE"), ("FAILED", False, "FAILED"), ("FAILED", True, "RUNNING")],
)
def test_the_end_in_the_words_of_ml_metadata(word, killed, state):
    assert final_state(word, killed=killed) == state
    assert (state in SUCCESS) == (word == "SUCCEEDED"), "as close_run understands it"


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
        assert round_trip(folder, "run/folder", store) == Size(3, 7)
        assert files(folder) == before

    def test_empty_folders_vanish(self, store, folder):
        (folder / "nothing" / "here").mkdir(parents=True)
        round_trip(folder, "run/empty", store)
        assert not (folder / "nothing").exists()

    def test_a_folder_of_nothing_is_not_there(self, store, tmp_path):
        (tmp_path / "hollow").mkdir()
        assert round_trip(tmp_path / "hollow", "run/hollow", store) == Size()
        assert not (tmp_path / "hollow").exists()

    def test_one_file(self, store, tmp_path):
        (tmp_path / "report").write_text("<p>")
        assert round_trip(tmp_path / "report", "run/report", store) == Size(1, 3)
        assert (tmp_path / "report").read_text() == "<p>"

    def test_an_output_that_was_not_made(self, store, tmp_path):
        assert round_trip(tmp_path / "metrics", "run/metrics", store) == Size()
        assert not (tmp_path / "metrics").exists()

    def test_a_link_to_a_file_becomes_the_file(self, store, folder):
        (folder / "link.txt").symlink_to(folder / "a.txt")
        round_trip(folder, "run/link", store)
        assert not (folder / "link.txt").is_symlink()
        assert (folder / "link.txt").read_text() == "one"

    @pytest.mark.parametrize("target", ["deep", "nowhere"])
    def test_another_link_fails(self, store, folder, target):
        (folder / "link").symlink_to(folder / target)
        with pytest.raises(Refused, match=r"artifact/link: a link to a folder or to nothing"):
            round_trip(folder, "run/links", store)

    def test_the_artifact_itself_may_be_a_link(self, store, folder, tmp_path):
        (tmp_path / "link").symlink_to(folder)
        before = files(folder)
        round_trip(tmp_path / "link", "run/itself", store)
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


class TestBackend:
    """Between the local runner and a task: what it is told, and what becomes of what it made."""

    @pytest.fixture
    def task(self, tmp_path, folder) -> list[str]:
        """The command of a task that takes a folder and made one, and metadata of it."""
        (tmp_path / "made").mkdir()
        (tmp_path / "made" / "file").write_text("text")
        artifact = {"name": "made", "uri": str(tmp_path / "made"), "metadata": {"rows": 3, "good": True}}
        output = {"artifacts": {"made": {"artifacts": [artifact]}}, "parameterValues": {"Output": "promote"}}
        (tmp_path / "output.json").write_text(json.dumps(output))
        status = {"state": "FAILED", "pipeline_task_name": "training", "pipeline_job_resource_name": "job", "error": {}}
        executor_input = {
            "inputs": {
                "artifacts": {"taken": {"artifacts": [{"uri": str(folder)}]}},
                "parameterValues": {"status": status, "settings": {"state": "of the art"}},
            },
            "outputs": {
                "artifacts": {"made": {"artifacts": [{"uri": str(tmp_path / "made")}]}},
                "outputFile": str(tmp_path / "output.json"),
            },
        }
        return ["python", "--executor_input", json.dumps(executor_input), "--function_to_execute", "f"]

    def test_publishes_what_a_task_made(self, store, task, tmp_path):
        message = Backend(store).settle(task, 0)
        assert message == "KFP carries to this task 3 objects of 0.0 MB, and from it 1 objects of 0.0 MB"
        output = json.loads((tmp_path / "output.json").read_text())
        (artifact,) = output["artifacts"]["made"]["artifacts"]
        assert artifact["metadata"] == {
            "display_name": "made",
            "store_session_info": store.session,
            "rows": 3.0,
            "good": 1.0,
        }
        assert (artifact["name"], output["parameterValues"]) == ("1", {"Output": "promote"})
        assert (tmp_path / "made" / "file").read_text() == "text"

    def test_discards_what_a_failed_task_made(self, store, task, tmp_path):
        assert "discard" in Backend(store).settle(task, 1)
        assert not (tmp_path / "made").exists()

    @pytest.mark.parametrize("flaw", ["metadata", "link"])
    def test_discards_what_it_refuses(self, store, task, tmp_path, folder, flaw):
        if flaw == "link":
            (tmp_path / "made" / "link").symlink_to(folder)
        else:
            text = (tmp_path / "output.json").read_text()
            (tmp_path / "output.json").write_text(text.replace("3", "null"))
        with pytest.raises(Refused):
            Backend(store).settle(task, 0)
        assert not (tmp_path / "made").exists()

    @pytest.mark.parametrize(
        ("codes", "state"),
        [([1], "FAILED"), ([1, -signal.SIGKILL], "RUNNING"), ([128 + signal.SIGTERM], "RUNNING")],
    )
    def test_tells_an_exit_handler_how_it_ended(self, store, task, codes, state):
        run = Backend(store)
        for code in codes:
            run.settle(task, code)
        parameters = backend.read_task(run.prepare(task))["inputs"]["parameterValues"]
        status = {"state": state, "pipelineTaskName": "training", "pipelineJobResourceName": "job", "error": {}}
        assert parameters == {"status": status, "settings": {"state": "of the art"}}
        assert run.prepare(task)[-2:] == task[-2:]


def test_what_an_artifact_weighs(folder, tmp_path):
    assert measure(folder) == Size(3, 7)
    assert measure(folder / "a.txt") == Size(1, 3)
    assert measure(tmp_path / "nothing") == Size()


@pytest.mark.slow
def test_a_server_of_its_own_is_there_for_a_block(tmp_path, folder, monkeypatch):
    """It is waited for when first used, and nothing of it is left behind."""
    monkeypatch.setenv(VARIABLE, "of-its-own")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    before = files(folder)
    with serve_store(tmp_path / "store") as store:
        assert find_processes("of-its-own")
        assert round_trip(folder, "run/folder", store) == Size(3, 7)
    assert files(folder) == before
    assert list(scratch.iterdir()) == []
    assert survivors("of-its-own") == []
