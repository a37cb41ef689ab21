import base64
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import mlflow
import pytest
import tiny_model
import yaml

from contrique import images, registry, regressor
from contrique.config import RegistryConfig, resolve
from contrique.encoder import EncoderError
from contrique.registry import ChampionMoved, Registered, RegistryError
from contrique.scorer import Scorer

CONFIG = RegistryConfig()
SOURCE = Path(registry.__file__).parent.parent


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


def register(parts, run, expected=None):
    return registry.register(
        parts.encoder,
        parts.regressor,
        parts.evaluation,
        parts.verdict,
        parts.lineage,
        config=CONFIG,
        run=run,
        expected_champion=expected,
    )


def state():
    """Aliases and versions as MLflow itself tells them."""
    client = mlflow.MlflowClient()
    aliases = client.get_registered_model("contrique").aliases
    versions = [v.version for v in client.search_model_versions("name='contrique'")]
    return {name: str(version) for name, version in aliases.items()}, sorted(map(str, versions))


def sql(store, statement):
    with sqlite3.connect(store / "mlruns" / "mlflow.db") as connection:
        connection.execute(statement)


def test_the_installed_mlflow_is_not_shadowed_by_the_folder():
    assert mlflow.__version__ == "3.17.2"
    assert not (SOURCE / "mlflow" / "__init__.py").exists()


def test_the_walk(store, models):
    """Register, register again, roll back, promote; each with what it leaves behind."""
    assert registry.load_champion(CONFIG) is None
    assert register(models[0], "monday", expected="") == Registered("contrique", "1", "champion")
    assert state() == ({"champion": "1"}, ["1"])

    champion = registry.load_champion(CONFIG)
    assert champion.version == "1"
    pictures = [tiny_model.picture(i) for i in range(3)]
    assert list(champion.raw(pictures)) == list(Scorer(models[0].encoder, models[0].regressor).raw(pictures))

    tags = mlflow.MlflowClient().get_model_version("contrique", "1").tags
    assert tags["data.hash"] == "data0.dir"
    assert tags["labels"] == "human"
    assert (tags["srcc"], tags["srcc.interval"], tags["srcc.n"]) == ("0.8000", "0.7000 to 0.9000", "40")
    assert tags["verdict"] == "promote"
    assert json.loads(tags["verdict.json"]) == json.loads(models[0].verdict.read_text())
    assert tags["code.revision"] == registry.code_revision()

    assert register(models[0], "monday", expected="").version == "1"  # the step, tried again
    assert state()[1] == ["1"]

    assert register(models[1], "tuesday", expected="1").version == "2"
    assert state() == ({"champion": "2", "previous": "1"}, ["1", "2"])
    assert registry.load_model("previous", CONFIG).version == "1"
    assert [(item.version, item.aliases) for item in registry.models(CONFIG)] == [
        ("2", ("champion",)),
        ("1", ("previous",)),
    ]

    assert registry.rollback(CONFIG, "drifts").version == "1"
    assert state()[0] == {"champion": "1", "previous": "2"}
    assert registry.promote("2", CONFIG, "better after all").version == "2"
    assert registry.promote("2", CONFIG).version == "2"  # it is already: nothing moves
    assert state()[0] == {"champion": "2", "previous": "1"}

    told = [(e.action, e.replaced, e.version, e.reason, e.data_hash, e.run) for e in registry.history(CONFIG)]
    assert told == [
        ("register", "", "1", "promote: meets the floor", "data0.dir", "monday"),
        ("register", "1", "2", "promote: meets the floor", "data1.dir", "tuesday"),
        ("rollback", "2", "1", "drifts", "data0.dir", "monday"),
        ("promote", "1", "2", "better after all", "data1.dir", "tuesday"),
    ]
    assert all(event.who and event.time for event in registry.history(CONFIG))


def test_the_version_is_complete_and_without_pickles(store, models):
    register(models[0], "monday", expected="")
    (folder,) = (store / "mlruns" / "artifacts" / "models").glob("*/artifacts")
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert {"encoder.safetensors", "ridge.npz", "regressor.json", "quality_model.py", "scorer.py"} <= names
    assert not any(name.endswith((".pkl", ".pickle", ".pyc", ".pt", ".joblib")) for name in names)
    described = yaml.safe_load((folder / "MLmodel").read_text())
    assert json.loads(described["signature"]["inputs"]) == [{"type": "string", "name": "image", "required": True}]
    assert [c["name"] for c in json.loads(described["signature"]["outputs"])] == [
        "score",
        "raw",
        "low",
        "high",
        "direction",
        "model",
        "labels",
        "error",
    ]
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
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": f"sqlite:///{store}/mlruns/mlflow.db",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "3.png")],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["code"].startswith(str(store / "mlruns"))
    expected = Scorer(models[0].encoder, models[0].regressor).judge(picture, "3.png")
    good = [answer["rows"][i] for i in (0, 1, 4)]
    assert [row["score"] for row in good] == pytest.approx([expected.score] * 3, abs=1e-3)
    assert all(row["error"] is None and row["model"] == "1" and row["labels"] == "human" for row in good)
    assert all((row["low"], row["high"], row["direction"]) == (0, 100, "higher is better") for row in good)
    assert "not base64" in answer["rows"][2]["error"]
    assert "neither base64 nor bytes" in answer["rows"][3]["error"]
    assert [answer["rows"][i]["score"] for i in (2, 3)] == [None, None]


def test_on_hold_the_registry_stays_as_it_is(store, models, tmp_path):
    register(models[0], "monday", expected="")
    before = state()
    verdict = tmp_path / "hold.json"
    verdict.write_text(json.dumps({"promote": False, "reason": "hold: below the floor"}))
    kept = registry.keep_champion(verdict, models[1].lineage, config=CONFIG, run="tuesday")
    assert kept == Registered("contrique", "1", "champion")
    assert state() == before
    held = registry.history(CONFIG)[-1]
    assert (held.action, held.version, held.reason) == ("hold", "1", "hold: below the floor")
    assert (held.data_hash, held.run) == ("data1.dir", "tuesday")
    with pytest.raises(RegistryError, match="does not say promote"):
        registry.register(
            models[1].encoder,
            models[1].regressor,
            models[1].evaluation,
            verdict,
            models[1].lineage,
            config=CONFIG,
            run="tuesday",
            expected_champion="1",
        )
    assert state() == before


def test_hold_without_any_champion(store, models, tmp_path):
    verdict = tmp_path / "hold.json"
    verdict.write_text(json.dumps({"promote": False, "reason": "hold: below the floor"}))
    assert registry.keep_champion(verdict, models[0].lineage, config=CONFIG, run="monday") is None
    assert registry.models(CONFIG) == []
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


RACER = """
import sys, time
from pathlib import Path
import torch; torch.set_num_threads(1)
import mlflow, contrique.regressor, contrique.encoder, contrique.scorer
from contrique import registry
from contrique.config import RegistryConfig
folder, gate, me = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
names = ("encoder.safetensors", "regressor", "evaluation.json", "verdict.json", "lineage.json")
parts = [folder / name for name in names]
def prove(*arguments, real=registry._prove):
    real(*arguments)
    (gate / me).touch()  # both are past the first comparison before either moves the alias
    while len(list(gate.iterdir())) < 2:
        time.sleep(0.01)
registry._prove = prove
print(registry.register(*parts, config=RegistryConfig(), run=me, expected_champion=""))
"""


@pytest.mark.slow
def test_two_runs_racing_for_the_alias(store, models, tmp_path):
    """Two processes, both judged against no champion, both with a complete version: one wins."""
    gate = tmp_path / "gate"
    gate.mkdir()
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(parts.encoder.parent), str(gate), f"racer{i}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i, parts in enumerate(models)
    ]
    ends = [(*racer.communicate(timeout=300), racer.returncode) for racer in racers]
    won, lost = sorted(ends, key=lambda end: end[2])
    assert (won[2], lost[2]) == (0, 1), ends
    assert "ChampionMoved" in lost[1]
    registry.tracking(CONFIG)
    aliases, versions = state()
    assert versions == [aliases["champion"]]  # the loser's version is gone
    assert set(aliases) == {"champion"}
    assert f"version='{aliases['champion']}'" in won[0]
    assert registry.load_champion(CONFIG).version == aliases["champion"]


def test_of_many_moves_from_one_champion_one_succeeds(store):
    client = registry.tracking(CONFIG)
    client.create_registered_model("contrique")
    for _ in range(6):
        client.create_model_version("contrique", "runs:/0/x", tags={registry.STATE: registry.COMPLETE})

    def move(version):
        try:
            registry._move(client, CONFIG, str(version), "", "register", "race")
        except ChampionMoved as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(6) as pool:
        ends = list(pool.map(move, range(1, 7)))
    assert ends.count("") == 1
    winner = ends.index("") + 1
    assert state()[0] == {"champion": str(winner)}
    assert all(f"version {winner} of 'contrique' is champion" in end for end in ends if end)
    assert len(registry.history(CONFIG)) == 1
    assert [model.name for model in client.search_registered_models()] == ["contrique"]  # the lock is gone


def test_a_lock_whose_holder_died_is_broken(store, monkeypatch, capsys):
    client = registry.tracking(CONFIG)
    client.create_registered_model("contrique")
    client.create_model_version("contrique", "runs:/0/x", tags={registry.STATE: registry.COMPLETE})
    client.create_registered_model("contrique.lock")
    monkeypatch.setattr(registry, "LOCK_SECONDS", 0.3)
    assert registry.promote("1", CONFIG).version == "1"
    assert "breaking contrique.lock" in capsys.readouterr().err
    assert [model.name for model in client.search_registered_models()] == ["contrique"]


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
    assert registry.load_champion(CONFIG).version == "1"
    assert [item.version for item in registry.models(CONFIG)] == ["1"]
    for event in ("INSERT", "UPDATE"):
        sql(store, f"DROP TRIGGER fail_{event}")
    assert register(models[1], "tuesday", expected="1").version == "3"
    assert registry.load_champion(CONFIG).version == "3"


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


def test_a_broken_model_is_not_registered(store, models, tmp_path):
    cut = tmp_path / "encoder.safetensors"
    cut.write_bytes(models[0].encoder.read_bytes()[:-1000])
    with pytest.raises(EncoderError, match="not a readable safetensors file"):
        register(tiny_model.Parts(**{**vars(models[0]), "encoder": cut}), "monday", expected="")
    assert mlflow.MlflowClient().search_registered_models() == []


def test_a_version_that_scores_otherwise_than_it_was_judged_is_deleted(store, models, monkeypatch):
    """The artifact store damages the regressor between logging and loading back."""

    def log_and_spoil(*arguments, real=registry._log_version):
        version = real(*arguments)
        (stored,) = (store / "mlruns" / "artifacts" / "models").glob("*/artifacts/artifacts/regressor")
        ridge, summary = regressor.load(stored)
        regressor.save(regressor.Ridge(ridge.coef, ridge.intercept + 1, ridge.alpha), summary, stored)
        return version

    monkeypatch.setattr(registry, "_log_version", log_and_spoil)
    with pytest.raises(RegistryError, match="version 1 of 'contrique', loaded back, scores the input example"):
        register(models[0], "monday", expected="")
    assert state() == ({}, [])
    assert registry.load_champion(CONFIG) is None


def test_a_version_that_was_never_completed_is_no_champion(store, models):
    """A version made by others, or left half by a crash, cannot be promoted."""
    client = registry.tracking(CONFIG)
    client.create_registered_model("contrique")
    client.create_model_version("contrique", "runs:/0/x")
    with pytest.raises(RegistryError, match="version 1 of 'contrique' was never completed"):
        registry.promote("1", CONFIG)
    for version in ("9", "0", "nine"):
        with pytest.raises(RegistryError, match=f"no version '{version}'"):
            registry.promote(version, CONFIG)
    with pytest.raises(RegistryError, match="no version 'best'"):
        registry.load_model("best", CONFIG)
    with pytest.raises(RegistryError, match="no previous champion"):
        registry.rollback(CONFIG)
    assert registry.models(CONFIG) == []


def test_lost_artifacts_are_named(store, models):
    register(models[0], "monday", expected="")
    shutil.rmtree(store / "mlruns" / "artifacts" / "models")
    with pytest.raises(RegistryError, match=r"fetching version 1 failed .* check the artifact store"):
        registry.load_champion(CONFIG)


def test_reading_makes_no_store(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert registry.load_champion(CONFIG) is None
    assert registry.models(CONFIG) == []
    assert registry.history(CONFIG) == []
    for command in (lambda: registry.promote("1", CONFIG), lambda: registry.load_model("1", CONFIG)):
        with pytest.raises(RegistryError, match="no registry there"):
            command()
    with pytest.raises(RegistryError, match="no previous champion"):
        registry.rollback(CONFIG)
    assert list(tmp_path.iterdir()) == []


def test_a_step_finds_the_run_of_its_pipeline(store):
    with ThreadPoolExecutor(6) as pool:
        ids = list(pool.map(lambda _: registry.open_run("monday", CONFIG).id, range(6)))
    assert len(set(ids)) == 1
    assert registry.open_run("tuesday", CONFIG).id not in ids
    assert registry.open_run("monday", CONFIG).id == ids[0]
    with pytest.raises(RegistryError, match="needs a name"):
        registry.open_run("", CONFIG)


def test_what_a_run_keeps(store, tmp_path):
    config = resolve("demo", {"pretrain.steps": 7})
    run = registry.open_run("monday", CONFIG)
    run.log_config(config)
    run.log_config(config)  # the step, tried again
    for step, loss in enumerate([3.0, 2.5, 2.0]):
        run.track({"loss": loss, "lr": 0.1}, step)
    run.log_metrics({"srcc": 0.75})
    run.set_tags({"verdict": "hold"})
    (tmp_path / "page.html").write_text("hello")
    run.log_file(tmp_path / "page.html", "report")
    run.close("FAILED")

    client = mlflow.MlflowClient()
    kept = client.get_run(run.id)
    assert kept.info.status == "FAILED"
    assert kept.data.params["pretrain.steps"] == "7"
    assert kept.data.params["registry.alias"] == "champion"
    assert kept.data.metrics["srcc"] == 0.75
    assert kept.data.tags["verdict"] == "hold"
    assert [(m.step, m.value) for m in client.get_metric_history(run.id, "loss")] == [(0, 3.0), (1, 2.5), (2, 2.0)]
    logged = json.loads(Path(client.download_artifacts(run.id, "config.json")).read_text())
    assert logged["pretrain"]["steps"] == 7
    assert Path(client.download_artifacts(run.id, "report/page.html")).read_text() == "hello"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_server_that_is_not_there(monkeypatch, models):
    address = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for ask in (lambda: registry.load_champion(CONFIG), lambda: register(models[0], "monday", expected="")):
        with pytest.raises(RegistryError, match=rf"MLflow at {address}: connecting failed .*MLFLOW_TRACKING_URI"):
            ask()


def test_a_database_that_is_none(store):
    (store / "mlruns" / "mlflow.db").write_text("this is no database " * 100)
    with pytest.raises(RegistryError, match=r"mlflow\.db: connecting failed"):
        registry.load_champion(CONFIG)


def test_a_deleted_experiment_is_named(store):
    client = registry.tracking(CONFIG)
    client.delete_experiment(client.get_experiment_by_name("contrique").experiment_id)
    with pytest.raises(RegistryError, match="experiment 'contrique' was deleted; restore it"):
        registry.open_run("monday", CONFIG)


@contextmanager
def serving(command, address, log):
    """A server process and all its children, up until the block ends."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # mlflow starts uvicorn by its name
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "OMP_NUM_THREADS": "1",
    }
    with log.open("w") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *command],
            cwd=log.parent,
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + 180
            while True:
                assert server.poll() is None, log.read_text()[-3000:]
                assert time.monotonic() < deadline, log.read_text()[-3000:]
                try:
                    urllib.request.urlopen(address, timeout=5).close()
                    break
                except (urllib.error.URLError, OSError):
                    time.sleep(0.2)
            yield
        finally:
            os.killpg(server.pid, signal.SIGKILL)  # at its own pace it takes half a minute
            server.wait()


@pytest.mark.slow
def test_mlflow_serves_the_champion(store, models, tmp_path, monkeypatch):
    register(models[0], "monday", expected="")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}/mlruns/mlflow.db")
    port = free_port()
    command = ["models", "serve", "-m", "models:/contrique@champion", "--env-manager", "local", "-p", str(port)]
    pictures = [images.encode_png(tiny_model.picture(i)) for i in range(3)]
    rows = [[base64.b64encode(data).decode()] for data in pictures]
    rows.insert(1, [base64.b64encode(b"no image").decode()])
    body = json.dumps({"dataframe_split": {"columns": ["image"], "data": rows}}).encode()
    with serving([*command, "--workers", "1"], f"http://127.0.0.1:{port}/ping", tmp_path / "serve.log"):
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations", body, {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            text = answer.read().decode()
    assert "NaN" not in text
    answers = json.loads(text)["predictions"]
    scorer = Scorer(models[0].encoder, models[0].regressor)
    expected = [scorer.judge(data, "x").score for data in pictures]
    assert [answers[i]["score"] for i in (0, 2, 3)] == pytest.approx(expected, abs=1e-3)
    assert all(answers[i]["model"] == "1" for i in (0, 2, 3))
    assert answers[1]["score"] is None
    assert "not an image in a known format" in answers[1]["error"]


@pytest.mark.slow
def test_a_tracking_server(models, tmp_path, monkeypatch):
    """The same walk against MLflow's server, artifacts through it; each client a stranger to its files."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = ["server", "--backend-store-uri", f"sqlite:///{tmp_path}/s.db", "--port", str(port), "--workers", "1"]
    with serving([*command, "--artifacts-destination", str(tmp_path / "kept")], f"{address}/health", tmp_path / "log"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        monkeypatch.chdir(tmp_path)
        assert registry.load_champion(CONFIG) is None
        assert register(models[0], "monday", expected="").version == "1"
        assert register(models[1], "tuesday", expected="1").version == "2"
        with pytest.raises(ChampionMoved):
            register(models[0], "wednesday", expected="1")
        assert registry.rollback(CONFIG).version == "1"
        champion = registry.load_champion(CONFIG)
        assert [event.action for event in registry.history(CONFIG)] == ["register", "register", "rollback"]
    picture = tiny_model.picture(1)
    assert list(champion.raw([picture])) == list(Scorer(models[0].encoder, models[0].regressor).raw([picture]))
    assert not (tmp_path / "mlruns").exists()
