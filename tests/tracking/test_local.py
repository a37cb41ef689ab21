"""A store in a folder: first use by several processes, interrupts, odd paths, moves and copies."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest
import tiny_model

from contrique import images
from contrique.config import RegistryConfig
from contrique.registry import registration
from contrique.registry.versions import Registry
from contrique.tracking.address import database_of, sqlite_uri, store_uri
from contrique.tracking.runs import Runs
from contrique.tracking.store import RegistryError, Store, current_user

CONFIG = RegistryConfig(serve_seconds=0)
ROOT = Path(__file__).parents[2]
OPEN = """
import sys
from contrique.config import RegistryConfig
from contrique.tracking.runs import Runs
print("ready", flush=True)
sys.stdin.readline()
print(Runs(RegistryConfig()).open("monday").id)
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    """An empty working directory; MLFLOW_TRACKING_URI is not set."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return tiny_model.build(tmp_path_factory.mktemp("model") / "parts")


def enter(folder):
    """Work in a folder, as a process does that starts there: MLflow keeps its address in the environment."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    os.chdir(folder)


def start(code, folder, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def places(database):
    """Every place that MLflow's database remembers."""
    with sqlite3.connect(database) as connection:
        return [
            str(row[0])
            for table, column in (
                ("experiments", "artifact_location"),
                ("runs", "artifact_uri"),
                ("logged_models", "artifact_location"),
                ("model_versions", "storage_location"),
            )
            for row in connection.execute(f"SELECT {column} FROM {table}")
        ]


@pytest.mark.parametrize("count", [2, 4])
def test_processes_that_make_one_store_at_once_open_the_same_run(work, count):
    processes = [start(OPEN, work) for _ in range(count)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:  # all have imported what they need
        process.stdin.write("\n")
        process.stdin.flush()
    ends = [(*process.communicate(timeout=300), process.returncode) for process in processes]
    assert [end[2] for end in ends] == [0] * count, ends
    assert len({end[0] for end in ends}) == 1


def test_an_interrupt_while_the_store_is_made_leaves_none_or_all_of_it(work):
    process = start(OPEN, work)
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("\n")
    process.stdin.flush()
    while process.poll() is None and not list(work.glob("mlruns/.mlflow.db.*")):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not Path("mlruns/mlflow.db").exists()
    assert Runs(CONFIG).open("monday").id  # the lock went with its holder


@pytest.mark.parametrize("name", ["feature%2Fx", "100% what?#", "a%20b", "café 写真", "it's a+b&c=d;e"])
def test_odd_paths(tmp_path, monkeypatch, name):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "outer" / name
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    run = Runs(CONFIG).open("monday")
    Path("page.html").write_text("hello")
    run.log_file(Path("page.html"), "report")
    assert Path(mlflow.artifacts.download_artifacts(f"runs:/{run.id}/report/page.html")).read_text() == "hello"
    assert database_of(store_uri()) == folder / "mlruns" / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri())  # as a child process is told
    assert Runs(CONFIG).open("monday").id == run.id
    assert [path.name for path in (tmp_path / "outer").iterdir()] == [name]
    assert sorted(path.name for path in folder.iterdir()) == ["mlruns", "page.html"]


@pytest.mark.parametrize("name", ["release%2F1?#", "plain ü"])
def test_a_model_is_registered_and_loaded_below_an_odd_path(tmp_path, monkeypatch, parts, name):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / name
    folder.mkdir()
    monkeypatch.chdir(folder)
    registration.register(tiny_model.candidate(parts, ""), config=CONFIG, run="monday")
    assert Registry(CONFIG).load("champion").version == "1"
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["/a/b.db", "/a b/é.db", "/a%2Fb?c#d/m.db"])
def test_an_address_stands_for_its_path(name):
    assert database_of(sqlite_uri(Path(name))) == Path(name)


@pytest.fixture
def original(work, parts):
    """A project with a champion."""
    folder = work / "project"
    folder.mkdir()
    enter(folder)
    registration.register(tiny_model.candidate(parts, ""), config=CONFIG, run="monday")
    return folder


def score(folder):
    enter(folder)
    return Registry(CONFIG).load("champion").judge(images.encode_png(tiny_model.picture(1)), "picture").score


def list_files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("name", ["elsewhere", "odd %2F?#ü/deeper"])
def test_a_moved_project_keeps_its_champion(original, work, capsys, name):
    expected = score(original)
    (work / name).parent.mkdir(exist_ok=True)
    original.rename(work / name)
    assert score(work / name) == expected
    assert "moved or copied from" in capsys.readouterr().err
    assert score(work / name) == expected
    assert "moved" not in capsys.readouterr().err
    assert not original.exists()
    assert all(str(original) not in place for place in places(work / name / "mlruns" / "mlflow.db"))


@pytest.mark.parametrize("remembers", [True, False])
def test_a_copy_leaves_the_original_alone(original, work, remembers):
    """Also one of a store from before it said where it was, in which places are paths."""
    expected = score(original)
    if not remembers:
        (original / "mlruns" / "mlflow.db.lock").unlink()
        with sqlite3.connect(original / "mlruns" / "mlflow.db") as connection:
            for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
                connection.execute(f"UPDATE {table} SET {column} = replace({column}, 'file://', '')")
    shutil.copytree(original, work / "copy")
    before = list_files(original)
    enter(work / "copy")
    run = Runs(CONFIG).open("tuesday")
    (work / "page.html").write_text("hello")
    run.log_file(work / "page.html")
    assert score(work / "copy") == expected
    assert list_files(original) == before
    shutil.rmtree(original)
    assert score(work / "copy") == expected


def test_a_copy_of_mlruns_under_another_name(original, work, monkeypatch):
    shutil.copytree(original / "mlruns", work / "backup")
    shutil.rmtree(original)
    enter(work)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///backup/mlflow.db")
    assert Registry(CONFIG).load("champion").version == "1"


def test_a_copy_of_the_database_alone_does_not_read_the_original(original, work):
    (work / "mlruns").mkdir()
    shutil.copy(original / "mlruns" / "mlflow.db", work / "mlruns")
    enter(work)
    with pytest.raises(RegistryError, match=r"fetching version 1 failed .* check the artifact store"):
        Registry(CONFIG).load("champion")


def test_a_link_to_the_project_is_no_move(original, work, monkeypatch, capsys):
    expected, before = score(original), places(original / "mlruns" / "mlflow.db")
    (work / "link").symlink_to(original)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{work}/link/mlruns/mlflow.db")
    picture = images.encode_png(tiny_model.picture(1))
    assert Registry(CONFIG).load("champion").judge(picture, "picture").score == expected
    assert places(original / "mlruns" / "mlflow.db") == before
    assert "moved" not in capsys.readouterr().err


def test_artifacts_elsewhere_stay_where_they_are(work):
    """A disk of its own, chosen when the experiment was made."""
    (work / "project").mkdir()
    enter(work / "project")
    client = mlflow.MlflowClient(sqlite_uri(Path("mlruns/mlflow.db")))
    client.create_experiment("contrique", artifact_location=(work / "disk").as_uri())
    assert Runs(CONFIG).open("monday").id
    (work / "project").rename(work / "moved")
    enter(work / "moved")
    assert Runs(CONFIG).open("monday").id
    assert (work / "disk").as_uri() in places(work / "moved" / "mlruns" / "mlflow.db")


def test_a_user_without_a_name_or_a_home(work):
    """As containers and clusters give one; root alone can become such a user."""
    if os.getuid():
        pytest.skip("needs root to become a user without a name")
    work.chmod(0o777)
    code = "from contrique.tracking.store import current_user\nprint(current_user())\n" + OPEN
    capability = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "USER", "LOGNAME")}
    process = subprocess.run(
        ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups", *capability, sys.executable, "-c", code],
        cwd=work,
        env=environment | {"PYTHONPATH": str(ROOT)},
        input="\n",
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("uid 54321\n")
    assert current_user()


def test_a_store_that_may_only_be_read_is_one_line(work):
    Path("mlruns").mkdir()
    Path("mlruns/mlflow.db").write_text("")
    Path("mlruns/mlflow.db.lock").mkdir()
    with pytest.raises(RegistryError, match="connecting failed"):
        assert Store(CONFIG).client
