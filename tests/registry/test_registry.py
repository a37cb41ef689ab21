import base64
import dataclasses
import html
import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import traceback
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import mistune
import mlflow
import pandas as pd
import pytest
import tiny_model
import yaml
from processes import VARIABLE, survivors

from contrique import images
from contrique.artifacts import COEFFICIENTS, DESCRIPTION, DRIFT_REFERENCE, ENCODER, TEST_SCORES
from contrique.config import RegistryConfig, resolve
from contrique.data.manifest import as_manifest, inspect_file, write_manifest
from contrique.encoder.architectures import EncoderError
from contrique.integrity import ModelChanged, hash_model
from contrique.registry import registration
from contrique.registry.load import load_model
from contrique.registry.model_server import NotServed, ask_server
from contrique.registry.promotion import (
    ChampionMoved,
    Registered,
    keep_champion,
    move_alias,
    promote,
    read_history,
    rollback,
)
from contrique.registry.proof import read_known_pictures
from contrique.registry.registration import _log_version
from contrique.registry.versions import COMPLETE, PROVEN, STATE, UNPROVEN, Registry
from contrique.regressor.head import Head
from contrique.scoring.results import CSV_COLUMNS
from contrique.scoring.scorer import Scorer
from contrique.tracking import store as store_module
from contrique.tracking.address import store_uri
from contrique.tracking.revision import read_code_revision
from contrique.tracking.runs import Runs
from contrique.tracking.store import RegistryError, Store, _read_lock_time

SERVING = RegistryConfig(serve_seconds=500)  # of a busy machine
CONFIG = RegistryConfig(serve_seconds=0)  # starting MLflow's server takes seconds, and most tests are not about it
SOURCE = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [tiny_model.build(folder / str(seed), seed) for seed in range(2)]


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory):
    """An MLflow database without content: making its tables takes seconds, copying it none."""
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_registered_models()
    return path


@pytest.fixture
def store(tmp_path, monkeypatch, empty_database):
    """A working directory of its own with a SQLite store, in a path with a space in it."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "my work"
    (folder / "mlruns").mkdir(parents=True)
    shutil.copy(empty_database, folder / "mlruns" / "mlflow.db")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def stack(whole_stack, tmp_path, monkeypatch):
    """The MLflow server on PostgreSQL, artifacts in S3, emptied; this client knows its address and nothing else."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", whole_stack.environment["MLFLOW_TRACKING_URI"])
    monkeypatch.chdir(tmp_path)
    client = Store(CONFIG).client
    for model in client.search_registered_models():
        client.delete_registered_model(model.name)
    client.rename_experiment(client.get_experiment_by_name("contrique").experiment_id, uuid.uuid4().hex)
    assert Store(CONFIG).client
    yield whole_stack
    assert not (tmp_path / "mlruns").exists()


@pytest.fixture(params=["store", pytest.param("stack", marks=pytest.mark.slow)])
def either(request):
    """One test on SQLite and on the stack."""
    return request.getfixturevalue(request.param)


def register(parts, run, expected=None, config=CONFIG, sets=()):
    return registration.register(tiny_model.candidate(parts, expected, sets), config=config, run=run)


def state():
    """Aliases and versions as MLflow itself tells them."""
    client = mlflow.MlflowClient()
    aliases = client.get_registered_model("contrique").aliases
    versions = [v.version for v in client.search_model_versions("name='contrique'")]
    return {name: str(version) for name, version in aliases.items()}, sorted(map(str, versions))


def sql(store, statement):
    with sqlite3.connect(store / "mlruns" / "mlflow.db") as connection:
        connection.execute(statement)


@pytest.mark.slow
@pytest.mark.parametrize("config", [CONFIG, SERVING], ids=["loaded", "served"])
def test_a_registration_leaves_no_temporary_files(stack, models, tmp_path, monkeypatch, config):
    """MLflow leaves each model that it fetches, 45 megabytes, and a laptop registers many."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    assert register(models[0], "monday", expected="", config=config).version == "1"
    assert list(scratch.iterdir()) == []


def test_the_installed_mlflow_is_not_shadowed_by_the_folder():
    assert mlflow.__version__ == "3.17.2"
    assert not (SOURCE / "mlflow" / "__init__.py").exists()


def test_the_walk(either, models):
    """Register, register again, roll back, promote; each with what it leaves behind."""
    assert Registry(CONFIG).load_champion() is None
    assert register(models[0], "monday", expected="") == Registered("contrique", "1", "champion")
    assert state() == ({"champion": "1"}, ["1"])

    champion = Registry(CONFIG).load_champion()
    assert champion.version == "1"
    pictures = [tiny_model.picture(i) for i in range(3)]
    assert list(champion.raw(pictures)) == list(Scorer(models[0].encoder, models[0].regressor).raw(pictures))

    tags = mlflow.MlflowClient().get_model_version("contrique", "1").tags
    assert tags["data.hash"] == "data0.dir"
    assert tags["labels"] == "human"
    assert (tags["srcc"], tags["srcc.interval"], tags["srcc.n"]) == ("0.8000", "0.7000 to 0.9000", "40")
    assert tags["verdict"] == "promote"
    assert tags["backend.onnx.float32"].startswith("within ")
    assert tags["backend.openvino.bfloat16"].startswith(("within ", "refused: backend openvino in bfloat16 differs"))
    verdict = json.loads(models[0].verdict.read_text())
    assert json.loads(tags["verdict.json"]) == verdict | {"champion_version": ""}
    assert tags["code.revision"] == read_code_revision()

    assert register(models[0], "monday", expected="").version == "1"  # the step, tried again
    assert state()[1] == ["1"]

    assert register(models[1], "tuesday", expected="1").version == "2"
    assert state() == ({"champion": "2", "previous": "1"}, ["1", "2"])
    assert Registry(CONFIG).load("previous").version == "1"
    assert [(item.version, item.aliases) for item in Registry(CONFIG).list_versions()] == [
        ("2", ("champion",)),
        ("1", ("previous",)),
    ]

    assert rollback(Registry(CONFIG), "drifts").version == "1"
    assert state()[0] == {"champion": "1", "previous": "2"}
    assert promote(Registry(CONFIG), "2", "better after all").version == "2"
    assert promote(Registry(CONFIG), "2").version == "2"  # it is already: nothing moves
    assert state()[0] == {"champion": "2", "previous": "1"}

    events = [(e.action, e.replaced, e.version, e.reason, e.data_hash, e.run) for e in read_history(Registry(CONFIG))]
    assert events == [
        ("register", "", "1", "promote: meets the floor", "data0.dir", "monday"),
        ("register", "1", "2", "promote: meets the floor", "data1.dir", "tuesday"),
        ("rollback", "2", "1", "drifts", "data0.dir", "monday"),
        ("promote", "1", "2", "better after all", "data1.dir", "tuesday"),
    ]
    assert all(event.who and event.time for event in read_history(Registry(CONFIG)))


def test_the_version_is_complete_and_without_pickles(store, models):
    register(models[0], "monday", expected="")
    (folder,) = (store / "mlruns" / "artifacts" / "models").glob("*/artifacts")
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert {"encoder.safetensors", "ridge.npz", "regressor.json", "mlflow_model.py", "scorer.py"} <= names
    assert not any(name.endswith((".pkl", ".pickle", ".pyc", ".pt", ".joblib")) for name in names)
    description = yaml.safe_load((folder / "MLmodel").read_text())
    assert json.loads(description["signature"]["inputs"]) == [{"type": "string", "name": "image", "required": True}]
    columns = {column["name"]: column["type"] for column in json.loads(description["signature"]["outputs"])}
    assert list(columns) == [column for column in CSV_COLUMNS if column != "path"]
    assert (columns["score"], columns["error"]) == ("double", "string")
    example = json.loads((folder / "input_example.json").read_text())
    assert images.decode(base64.b64decode(example["data"][0][0])).pixels.shape == (96, 128, 3)
    run = mlflow.MlflowClient().search_runs(["1"])[0]
    assert run.info.status == "FINISHED"
    assert run.data.tags["registered_version"] == "1"


@pytest.mark.slow
def test_it_loads_in_a_process_that_knows_nothing_of_the_project(store, models, tmp_path):
    register(models[0], "monday", expected="")
    picture = images.encode_png(tiny_model.picture(3))
    (tmp_path / "3.png").write_bytes(picture)
    script = """
import base64, json, sys
from pathlib import Path
import mlflow, pandas as pd
data = Path(sys.argv[1]).read_bytes()
model = mlflow.pyfunc.load_model("models:/contrique@champion")
rows = [data, base64.b64encode(data).decode(), "!", None, base64.encodebytes(data).decode()]
answer = model.predict(pd.DataFrame({"image": pd.Series(rows, dtype=object)}))
import contrique
print(json.dumps({"code": contrique.__file__, "rows": answer.to_dict("records")}))
"""
    workdir = tmp_path / "elsewhere"
    workdir.mkdir()
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": f"sqlite:///{store}/mlruns/mlflow.db",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "3.png")],
        cwd=workdir,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    answer = json.loads(process.stdout.splitlines()[-1])
    assert answer["code"].startswith(str(store / "mlruns"))
    expected = Scorer(models[0].encoder, models[0].regressor).judge(picture, "3.png")
    good = [answer["rows"][i] for i in (0, 1, 4)]
    assert [row["score"] for row in good] == pytest.approx([expected.score] * 3, abs=1e-3)
    assert all(row["error"] is None and row["model"] == "1" and row["labels"] == "human" for row in good)
    assert all((row["low"], row["high"], row["direction"]) == (0, 100, "higher is better") for row in good)
    assert "not base64" in answer["rows"][2]["error"]
    assert "neither base64 nor bytes" in answer["rows"][3]["error"]
    assert [answer["rows"][i]["score"] for i in (2, 3)] == [None, None]


def test_on_hold_the_registry_stays_as_it_is(either, models, tmp_path):
    register(models[0], "monday", expected="")
    before = state()
    verdict = tmp_path / "hold.json"
    verdict.write_text(json.dumps({"promote": False, "reason": "hold: below the floor"}))
    version = keep_champion(verdict, models[1].lineage, config=CONFIG, run="tuesday")
    assert version == Registered("contrique", "1", "champion")
    assert state() == before
    event = read_history(Registry(CONFIG))[-1]
    assert (event.action, event.version, event.reason) == ("hold", "1", "hold: below the floor")
    assert (event.data_hash, event.run) == ("data1.dir", "tuesday")
    with pytest.raises(RegistryError, match="does not say promote"):
        register(tiny_model.Parts(**vars(models[1]) | {"verdict": verdict}), "tuesday")
    assert state() == before


def test_hold_without_any_champion(store, models, tmp_path):
    verdict = tmp_path / "hold.json"
    verdict.write_text(json.dumps({"promote": False, "reason": "hold: below the floor"}))
    assert keep_champion(verdict, models[0].lineage, config=CONFIG, run="monday") is None
    assert Registry(CONFIG).list_versions() == []
    assert mlflow.MlflowClient().search_registered_models() == []


def test_judged_against_a_champion_that_is_gone(store, models):
    with pytest.raises(ChampionMoved, match=r"no version of 'contrique' is champion, but .* against version 4"):
        register(models[0], "monday", expected="4")
    assert mlflow.MlflowClient().search_registered_models() == []


def test_the_verdict_says_what_it_was_judged_against(store, models, tmp_path):
    with pytest.raises(RegistryError, match="has no champion_version"):
        register(models[0], "monday")
    verdict = tmp_path / "verdict.json"
    verdict.write_text(json.dumps({"promote": True, "reason": "promote", "champion_version": "3"}))
    parts = tiny_model.Parts(**{**vars(models[0]), "verdict": verdict})
    with pytest.raises(ChampionMoved, match="judged against version 3"):
        register(parts, "monday")


def test_a_reason_is_shown_by_mlflow_and_is_no_markdown(store, models, tmp_path):
    """Names of distortions stand in it, and MLflow's page renders descriptions."""
    verdict = tmp_path / "verdict.json"
    reason = "promote: # <img src=x onerror=alert(1)> is as good\n\n[as](https://evil.test) ![x](//evil.test/x.png) $x$"
    verdict.write_text(json.dumps({"promote": True, "reason": reason, "champion_version": ""}))
    version = register(tiny_model.Parts(**{**vars(models[0]), "verdict": verdict}), "monday").version
    description = mlflow.MlflowClient().get_model_version("contrique", version).description
    render = mistune.create_markdown(escape=False, plugins=["url", "math"])
    assert set(re.findall(r"<[^>]*>", render(description))) == {"<p>", "</p>"}
    assert html.unescape(render(description)) == f"<p>{' '.join(reason.split())}</p>\n"


RACER = """
import sys, time
from pathlib import Path
import torch; torch.set_num_threads(1)
import mlflow
from contrique.integrity import ModelChanged, hash_model
from contrique.registry import registration
from contrique.registry.load import load_model
from contrique.registry.candidate import Candidate
from contrique.config import RegistryConfig
folder, gate, me = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
names = ("encoder.safetensors", "regressor", "evaluation.json", "verdict-.json", "lineage.json")
parts = [folder / name for name in names]
def prove(*arguments, real=registration.prove):
    said = real(*arguments)
    (gate / me).touch()  # both are past the first comparison before either moves the alias
    while len(list(gate.iterdir())) < 2:
        time.sleep(0.01)
    return said
registration.prove = prove
print(registration.register(Candidate(*parts), config=RegistryConfig(serve_seconds=0), run=me))
"""


@pytest.mark.slow
def test_two_runs_racing_for_the_alias(either, models, tmp_path):
    """Two processes, both judged against no champion, both with a complete version: one wins."""
    gate = tmp_path / "gate"
    gate.mkdir()
    for parts in models:
        tiny_model.candidate(parts, "")
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(parts.encoder.parent), str(gate), f"racer{i}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i, parts in enumerate(models)
    ]
    try:
        ends = [(*racer.communicate(timeout=300), racer.returncode) for racer in racers]
    finally:
        for racer in racers:  # one that waits for the other in vain
            racer.kill()
            racer.wait()
    winner, loser = sorted(ends, key=lambda end: end[2])
    assert (winner[2], loser[2]) == (0, 1), ends
    assert "ChampionMoved" in loser[1]
    assert Store(CONFIG).client
    aliases, versions = state()
    assert versions == [aliases["champion"]]  # the loser's version is gone
    assert set(aliases) == {"champion"}
    assert f"version='{aliases['champion']}'" in winner[0]
    assert Registry(CONFIG).load_champion().version == aliases["champion"]


def test_of_many_moves_from_one_champion_one_succeeds(either):
    client = Store(CONFIG).client
    client.create_registered_model("contrique")
    run = Runs(CONFIG).open("monday").id
    for _ in range(6):
        client.create_model_version("contrique", f"runs:/{run}/x", run, tags={STATE: COMPLETE})

    def move(version):
        try:
            move_alias(Registry(CONFIG), str(version), "", "register", "race")
        except ChampionMoved as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(6) as pool:
        ends = list(pool.map(move, range(1, 7)))
    assert ends.count("") == 1
    winner = ends.index("") + 1
    assert state()[0] == {"champion": str(winner)}
    assert all(f"version {winner} of 'contrique' is champion" in end for end in ends if end)
    assert len(read_history(Registry(CONFIG))) == 1
    assert [model.name for model in client.search_registered_models()] == ["contrique"]  # the lock is gone


def test_a_lock_whose_holder_died_is_broken(store, monkeypatch, capsys):
    client = Store(CONFIG).client
    client.create_registered_model("contrique")
    client.create_model_version("contrique", "runs:/0/x", tags={STATE: COMPLETE})
    client.create_registered_model("contrique.lock")
    monkeypatch.setattr(store_module, "LOCK_SECONDS", 0.3)
    assert promote(Registry(CONFIG), "1").version == "1"
    assert "breaking contrique.lock" in capsys.readouterr().err
    assert [model.name for model in client.search_registered_models()] == ["contrique"]


def test_a_lock_that_is_given_back_while_it_is_looked_at_is_nobodys(store, monkeypatch, capsys):
    """Whoever finds it taken, and then gone, must not take its holder for dead: the next lock is another's."""
    client = Store(CONFIG).client
    client.create_registered_model("contrique")
    client.create_model_version("contrique", "runs:/0/x", tags={STATE: COMPLETE})
    client.create_registered_model("contrique.lock")
    real = _read_lock_time

    def give_back_first(*arguments):
        monkeypatch.setattr(store_module, "_read_lock_time", real)
        client.delete_registered_model("contrique.lock")
        return real(*arguments)

    monkeypatch.setattr(store_module, "_read_lock_time", give_back_first)
    assert promote(Registry(CONFIG), "1").version == "1"
    assert "breaking" not in capsys.readouterr().err


@pytest.mark.parametrize("table", ["model_version_tags", "registered_model_aliases"])
def test_a_failure_midway_leaves_no_half_version(store, models, table):
    """The database refuses the write that completes the version, or the one that moves the alias."""
    register(models[0], "monday", expected="")
    before = state()
    condition = "WHEN NEW.key = 'contrique.state'" if table == "model_version_tags" else "WHEN NEW.alias = 'champion'"
    for event in ("INSERT", "UPDATE"):
        sql(
            store,
            f"CREATE TRIGGER fail_{event} BEFORE {event} ON {table} {condition} "
            "BEGIN SELECT RAISE(ABORT, 'disk is full'); END",
        )
    with pytest.raises(RegistryError, match="disk is full"):
        register(models[1], "tuesday", expected="1")
    aliases, versions = state()
    assert versions == before[1]
    assert aliases["champion"] == "1"
    assert Registry(CONFIG).load_champion().version == "1"
    assert [item.version for item in Registry(CONFIG).list_versions()] == ["1"]
    for event in ("INSERT", "UPDATE"):
        sql(store, f"DROP TRIGGER fail_{event}")
    assert register(models[1], "tuesday", expected="1").version == "3"
    assert Registry(CONFIG).load_champion().version == "3"


def test_a_failure_after_the_alias_moved_keeps_the_champion(store, models):
    sql(
        store,
        "CREATE TRIGGER fail BEFORE INSERT ON registered_model_tags BEGIN SELECT RAISE(ABORT, 'disk is full'); END",
    )
    with pytest.raises(RegistryError, match="disk is full"):
        register(models[0], "monday", expected="")
    assert state() == ({"champion": "1"}, ["1"])
    sql(store, "DROP TRIGGER fail")
    assert register(models[0], "monday", expected="") == Registered("contrique", "1", "champion")
    run = mlflow.MlflowClient().search_runs(["1"])[0]
    assert (run.info.status, run.data.tags["registered_version"]) == ("FINISHED", "1")


def test_a_broken_model_is_not_registered(store, models, tmp_path):
    path = tmp_path / "encoder.safetensors"
    path.write_bytes(models[0].encoder.read_bytes()[:-1000])
    with pytest.raises(EncoderError, match="not a readable safetensors file"):
        register(tiny_model.Parts(**{**vars(models[0]), "encoder": path}), "monday", expected="")
    assert mlflow.MlflowClient().search_registered_models() == []


def test_a_version_that_was_damaged_on_its_way_is_deleted(store, models, monkeypatch):
    """The artifact store damages the regressor between logging and loading back."""

    def log_and_spoil(*arguments, real=_log_version):
        version = real(*arguments)
        (stored,) = (store / "mlruns" / "artifacts" / "models").glob("*/artifacts/artifacts/regressor")
        head = Head.load(stored)
        ridge = dataclasses.replace(head.ridge, intercept=head.ridge.intercept + 1)
        dataclasses.replace(head, ridge=ridge).save(stored)
        return version

    monkeypatch.setattr(registration, "_log_version", log_and_spoil)
    with pytest.raises(
        ModelChanged, match=r"version 1 of 'contrique': encoder.safetensors, ridge.npz or regressor.json is not"
    ):
        register(models[0], "monday", expected="")
    assert state() == ({}, [])
    assert Registry(CONFIG).load_champion() is None


class TestTampering:
    """Somebody who may write to the artifact store, but not to the registry, swaps files of the champion."""

    @pytest.fixture
    def parts(self, store, models):
        for parts in models:
            (parts.regressor / DRIFT_REFERENCE).write_bytes(f"of {parts.regressor}".encode())
        register(models[0], "monday", "")
        yield models[1]
        for parts in models:
            (parts.regressor / DRIFT_REFERENCE).unlink()

    def folder(self, store):
        (folder,) = (store / "mlruns" / "artifacts" / "models").glob("*/artifacts")
        return folder

    def swap(self, store, parts, name):
        source = parts.encoder if name == ENCODER else parts.regressor / name
        target = "artifacts" if name == ENCODER else "artifacts/regressor"
        shutil.copy(source, self.folder(store) / target / name)

    @pytest.mark.parametrize("name", [ENCODER, COEFFICIENTS, DRIFT_REFERENCE])
    def test_a_swapped_file_is_one_error_wherever_the_model_is_loaded(self, store, parts, name):
        self.swap(store, parts, name)
        message = rf"version 1 of 'contrique': .*{name}.* is not what was registered .*roll back to another version"
        for load in (
            Registry(CONFIG).load_champion,
            lambda: load_model("1", CONFIG),
            lambda: mlflow.pyfunc.load_model("models:/contrique@champion"),
        ):
            with pytest.raises(ModelChanged, match=message):
                load()

    def test_a_changed_digit_of_the_description_is_seen(self, store, parts):
        path = self.folder(store) / "artifacts" / "regressor" / DESCRIPTION
        path.write_text(path.read_text().replace("120.0", "121.0"))
        with pytest.raises(ModelChanged, match=DESCRIPTION):
            load_model("", CONFIG)

    def test_a_swap_that_is_covered_up_in_the_model_itself_is_seen_by_the_registry(self, store, parts):
        self.swap(store, parts, ENCODER)
        path = self.folder(store) / "MLmodel"
        content = yaml.safe_load(path.read_text())
        folder = self.folder(store) / "artifacts"
        content["flavors"]["python_function"]["config"] = hash_model(folder / ENCODER, folder / "regressor")
        path.write_text(yaml.safe_dump(content))
        with pytest.raises(ModelChanged, match="the registry says"):
            mlflow.pyfunc.load_model("models:/contrique@champion")

    def test_a_model_that_was_carried_away_proves_itself(self, store, parts, tmp_path, monkeypatch, caplog):
        """Its registry does not answer; the hashes in its MLmodel are still there."""
        folder = tmp_path / "carried"
        mlflow.artifacts.download_artifacts("models:/contrique@champion", dst_path=str(folder))
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        address = f"http://people:s3cret@127.0.0.1:{free_port()}"
        mlflow.set_tracking_uri(address)
        mlflow.set_registry_uri(address)
        assert mlflow.pyfunc.load_model(str(folder))
        assert "not compared with the registry" in caplog.text
        assert "s3cret" not in caplog.text
        shutil.copy(parts.encoder, folder / "artifacts" / ENCODER)
        with pytest.raises(ModelChanged, match="MLmodel says"):
            mlflow.pyfunc.load_model(str(folder))


def test_a_version_that_was_never_completed_is_no_champion(store, models):
    """A version made by others, or left half by a crash, cannot be promoted."""
    client = Store(CONFIG).client
    client.create_registered_model("contrique")
    client.create_model_version("contrique", "runs:/0/x")
    with pytest.raises(RegistryError, match="version 1 of 'contrique' was never proven"):
        promote(Registry(CONFIG), "1")
    for version in ("9", "0", "nine"):
        with pytest.raises(RegistryError, match=f"no version '{version}'"):
            promote(Registry(CONFIG), version)
    with pytest.raises(RegistryError, match="no version 'best'"):
        Registry(CONFIG).load("best")
    with pytest.raises(RegistryError, match="no previous champion"):
        rollback(Registry(CONFIG))
    assert [item.proof for item in Registry(CONFIG).list_versions()] == [UNPROVEN]


def test_lost_artifacts_are_named(store, models):
    register(models[0], "monday", expected="")
    shutil.rmtree(store / "mlruns" / "artifacts" / "models")
    with pytest.raises(RegistryError, match=r"fetching version 1 failed .* check the artifact store"):
        Registry(CONFIG).load_champion()


@pytest.mark.parametrize("name", ["my_model", "3"])
def test_a_model_that_is_nowhere_is_said_so(tmp_path, monkeypatch, name):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RegistryError, match=f"model '{name}': no folder with .*, and .* holds no registry"):
        load_model(name, CONFIG)
    assert list(tmp_path.iterdir()) == []


def test_reading_makes_no_store(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert Registry(CONFIG).load_champion() is None
    assert Registry(CONFIG).list_versions() == []
    assert read_history(Registry(CONFIG)) == []
    for command in (lambda: promote(Registry(CONFIG), "1"), lambda: Registry(CONFIG).load("1")):
        with pytest.raises(RegistryError, match="no registry there"):
            command()
    with pytest.raises(RegistryError, match="no previous champion"):
        rollback(Registry(CONFIG))
    assert list(tmp_path.iterdir()) == []


def test_a_step_finds_the_run_of_its_pipeline(store):
    with ThreadPoolExecutor(6) as pool:
        ids = list(pool.map(lambda _: Runs(CONFIG).open("monday").id, range(6)))
    assert len(set(ids)) == 1
    assert Runs(CONFIG).open("tuesday").id not in ids
    assert Runs(CONFIG).open("monday").id == ids[0]
    with pytest.raises(RegistryError, match="needs a name"):
        Runs(CONFIG).open("")


def test_what_a_run_keeps(store, tmp_path):
    config = resolve("demo", {"pretrain.steps": 7})
    run = Runs(CONFIG).open("monday")
    run.log_config(config)
    run.log_config(config)  # the step, tried again
    for step, loss in enumerate([3.0, 2.5, 2.0]):
        run.log_metrics({"loss": loss, "lr": 0.1}, step)
    run.log_metrics({"srcc": 0.75})
    run.set_tags({"verdict": "hold"})
    (tmp_path / "page.html").write_text("hello")
    run.log_file(tmp_path / "page.html", "report")
    run.close("FAILED")

    client = mlflow.MlflowClient()
    record = client.get_run(run.id)
    assert record.info.status == "FAILED"
    assert record.data.params["pretrain.steps"] == "7"
    assert record.data.params["registry.alias"] == "champion"
    assert record.data.metrics["srcc"] == 0.75
    assert record.data.tags["verdict"] == "hold"
    assert [(m.step, m.value) for m in client.get_metric_history(run.id, "loss")] == [(0, 3.0), (1, 2.5), (2, 2.0)]
    settings = json.loads(Path(client.download_artifacts(run.id, "config.json")).read_text())
    assert settings["pretrain"]["steps"] == 7
    assert Path(client.download_artifacts(run.id, "report/page.html")).read_text() == "hello"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_server_that_is_not_there(monkeypatch, models):
    address = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for ask in (lambda: Registry(CONFIG).load_champion(), lambda: register(models[0], "monday", expected="")):
        with pytest.raises(RegistryError, match=rf"MLflow at {address}: connecting failed .*MLFLOW_TRACKING_URI"):
            ask()


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("http://people:s3cret@127.0.0.1:{port}", r"http://\*\*\*@127\.0\.0\.1:\d+: connecting failed"),
        ("http://s3cret@127.0.0.1:{port}", r"http://\*\*\*@127\.0\.0\.1:\d+: connecting failed"),
        ("http://127.0.0.1:{port}/x?token=s3cret", r"\?token=\*\*\*: connecting failed"),
        (
            "postgresql+psycopg2://people:s3cret@s3cret@127.0.0.1:{port}/db",
            r"postgresql\+psycopg2://\*\*\*@127.*: connecting failed",
        ),
    ],
)
def test_no_secret_leaves_by_an_error(monkeypatch, uri, message):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(port=free_port()))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 1)
    with pytest.raises(RegistryError, match=message) as error:
        Registry(CONFIG).load_champion()
    assert "s3cret" not in "".join(traceback.format_exception(error.value))


def test_a_database_that_is_none(store):
    (store / "mlruns" / "mlflow.db").write_text("this is no database " * 100)
    with pytest.raises(RegistryError, match=r"mlflow\.db: connecting failed"):
        Registry(CONFIG).load_champion()


def test_a_deleted_experiment_is_named(store):
    client = Store(CONFIG).client
    client.delete_experiment(client.get_experiment_by_name("contrique").experiment_id)
    with pytest.raises(RegistryError, match="experiment 'contrique' was deleted; restore it"):
        Runs(CONFIG).open("monday")


@pytest.fixture
def candidate(models, tmp_path):
    """The first model with a test part: its pictures as a set, and beside evaluation.json their scores."""
    folder = tmp_path / "set"
    (folder / "images").mkdir(parents=True)
    rows = []
    for seed in range(6):
        path = folder / "images" / f"{seed}.png"
        path.write_bytes(images.encode_png(tiny_model.picture(seed)))
        row = {"image": f"images/{seed}.png", "reference": f"scene {seed}", "kind": "authentic", "split": "test"}
        rows.append(row | inspect_file(path))
    manifest = as_manifest(rows)
    write_manifest(manifest, folder)
    evaluation = shutil.copy(models[0].evaluation, tmp_path)
    scores = manifest[["image", "reference", "distortion"]].copy()
    scores["challenger"] = Scorer(models[0].encoder, models[0].regressor).raw(tiny_model.picture(i) for i in range(6))
    scores.to_parquet(tmp_path / TEST_SCORES)
    return tiny_model.Parts(**{**vars(models[0]), "evaluation": Path(evaluation)}), folder


@pytest.fixture
def mark(monkeypatch):
    """In the environment of every process started by this test."""
    monkeypatch.setenv(VARIABLE, name := uuid.uuid4().hex)
    return name


@pytest.mark.slow
def test_mlflow_serves_a_candidate_before_it_becomes_champion(store, candidate, mark):
    parts, folder = candidate
    register(parts, "monday", "", SERVING, [folder])
    tags = mlflow.MlflowClient().get_model_version("contrique", "1").tags
    assert tags["proof"].startswith("served by MLflow: 5 pictures within ")
    assert float(tags["proof"].split()[6]) < 0.01
    assert survivors(mark) == []

    pictures = [images.encode_png(tiny_model.picture(i)) for i in range(2)]
    inputs = [pictures[0], b"no image", pictures[1]]
    answers = ask_server("models:/contrique@champion", inputs, store=store_uri(), seconds=SERVING.serve_seconds)
    scorer = Scorer(parts.encoder, parts.regressor)
    expected = [scorer.judge(data, "x").score for data in pictures]
    assert [answers[i]["score"] for i in (0, 2)] == pytest.approx(expected, abs=1e-3)
    assert all(answers[i]["model"] == "1" for i in (0, 2))
    assert answers[1]["score"] is None
    assert "not an image in a known format" in answers[1]["error"]


@pytest.mark.slow
def test_a_candidate_that_answers_otherwise_than_it_was_judged_is_withdrawn(store, candidate, models, mark):
    """The best picture was judged one and a half points better than the served model finds it."""
    register(models[1], "monday", "")
    before = state()
    parts, folder = candidate
    path = parts.evaluation.with_name(TEST_SCORES)
    scores = pd.read_parquet(path)
    scores.loc[scores["challenger"].idxmax(), "challenger"] += 1.5 * 1.4
    scores.to_parquet(path)
    with pytest.raises(RegistryError, match=r"version 2 of 'contrique', served by MLflow, scores known picture 4 of 4"):
        register(parts, "tuesday", "1", SERVING, [folder])
    assert state() == before
    assert Registry(CONFIG).load_champion().version == "1"
    assert survivors(mark) == []


@pytest.mark.slow
def test_a_candidate_that_cannot_be_loaded_is_withdrawn_and_the_log_says_why(store, models, mark, monkeypatch):
    def log_and_lose(*arguments, real=_log_version):
        version = real(*arguments)
        (stored,) = (store / "mlruns" / "artifacts" / "models").glob("*/artifacts/artifacts/regressor/ridge.npz")
        stored.unlink()
        return version

    monkeypatch.setattr(registration, "_log_version", log_and_lose)
    with pytest.raises(NotServed, match=r"ended with status 1 \(.*\n(.*\n)*.*ModelChanged: .*ridge.npz cannot be read"):
        register(models[0], "monday", "", SERVING)
    assert state() == ({}, [])
    assert survivors(mark) == []


def test_a_server_that_takes_too_long_is_killed(store, models, mark):
    with pytest.raises(NotServed, match=r"gave no answer within 0.5 s .* set registry.serve_seconds to more"):
        register(models[0], "monday", "", RegistryConfig(serve_seconds=0.5))
    assert state() == ({}, [])
    assert survivors(mark) == []
    run = mlflow.MlflowClient().search_runs(["1"])[0]
    assert run.data.tags["registration"] == "failed, version 1 deleted"


def test_the_known_pictures_are_the_evaluations_from_worst_to_best(candidate, tmp_path):
    parts, folder = candidate
    items = read_known_pictures(tiny_model.candidate(parts, sets=[folder]))
    scores = sorted(pd.read_parquet(parts.evaluation.with_name(TEST_SCORES))["challenger"])
    assert [item.raw for item in items] == [scores[i] for i in (0, 1, 3, 5)]
    assert [item.tolerance for item in items] == pytest.approx([0.5 * 1.4] * 4)
    shutil.rmtree(folder)
    write_manifest(as_manifest([]), tmp_path / "other")
    with pytest.raises(RegistryError, match=r"images/\d.png: judged by .* in none of the picture sets"):
        read_known_pictures(tiny_model.candidate(parts, sets=[tmp_path / "other"]))


@pytest.mark.slow
def test_a_champion_served_from_the_stack(stack, candidate):
    """The whole of it: the server fetches the candidate from S3 through the MLflow server."""
    parts, folder = candidate
    assert register(parts, "monday", "", SERVING, [folder]).version == "1"
    assert mlflow.MlflowClient().get_model_version("contrique", "1").tags["proof"].startswith("served by MLflow: 5")


@pytest.mark.slow
class TestFaults:
    """A part of the stack fails: one clear error, nothing half-registered, and success once it is mended."""

    @pytest.fixture(autouse=True)
    def champion(self, stack, models):
        """Version 1 of the first model; after the test, every server is up again."""
        register(models[0], "monday", "")
        yield
        for service in (stack.s3, stack.database, stack.mlflow):
            if not service.running():
                service.start()
                service.wait()

    def check_refusal(self, parts, match):
        with pytest.raises(RegistryError, match=match) as error:
            register(parts, "tuesday", "1")
        assert os.environ["MLFLOW_TRACKING_URI"] in str(error.value)
        assert "\n" not in str(error.value)

    def still_monday(self):
        assert Registry(CONFIG).load_champion().version == "1"
        assert [item.version for item in Registry(CONFIG).list_versions() if item.proof == PROVEN] == ["1"]
        assert [event.run for event in read_history(Registry(CONFIG))] == ["monday"]

    def tuesday_wins(self, models):
        version = register(models[1], "tuesday", "1").version
        aliases, versions = state()
        assert aliases == {"champion": version, "previous": "1"}
        assert versions == ["1", version]
        assert [event.run for event in read_history(Registry(CONFIG))] == ["monday", "tuesday"]
        picture = tiny_model.picture(1)
        expected = Scorer(models[1].encoder, models[1].regressor).raw([picture])
        assert list(Registry(CONFIG).load_champion().raw([picture])) == list(expected)

    def check_recovery(self, service, models):
        service.start()
        service.wait()
        self.still_monday()
        self.tuesday_wins(models)

    def test_s3_is_down(self, stack, models):
        stack.s3.stop(0)
        self.check_refusal(models[1], "check the artifact store behind it")
        with pytest.raises(RegistryError, match=r"fetching version 1 failed .* check the artifact store behind it"):
            Registry(CONFIG).load_champion()
        self.check_recovery(stack.s3, models)

    def test_mlflow_is_down(self, stack, models):
        stack.mlflow.stop(0)
        self.check_refusal(
            models[1], r"connecting failed .*; start the server, or correct or unset MLFLOW_TRACKING_URI"
        )
        self.check_recovery(stack.mlflow, models)

    def test_mlflow_dies_while_a_candidate_is_proven(self, stack, models):
        """The version that it leaves has no champion's tag, shows as never proven, and goes with the next try."""
        with self.mlflow_dying_before("prove", stack):
            self.check_refusal(models[1], "loading models:/contrique/2 back failed")
        self.check_recovery(stack.mlflow, models)

    def test_mlflow_dies_before_the_alias_moves(self, stack, models):
        """The version is complete: the next try makes it champion, and makes no other."""
        with self.mlflow_dying_before("move_alias", stack):
            self.check_refusal(models[1], "making version 2 champion failed")
        stack.mlflow.start()
        stack.mlflow.wait()
        assert Registry(CONFIG).load_champion().version == "1"
        self.tuesday_wins(models)
        assert state()[1] == ["1", "2"]

    @contextmanager
    def mlflow_dying_before(self, step, stack):
        real = getattr(registration, step)

        def die_first(*arguments):
            stack.mlflow.stop(0)
            return real(*arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(registration, step, die_first)
            yield

    def test_postgresql_is_restarted(self, stack, models):
        """MLflow's pooled connections are dead; nobody notices."""
        stack.database.stop()
        self.check_recovery(stack.database, models)

    def test_postgresql_is_down(self, stack, models):
        stack.database.stop(0)
        self.check_refusal(models[1], "connecting failed")
        self.check_recovery(stack.database, models)
