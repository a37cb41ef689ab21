"""What people see, and do, on MLflow's own pages: inputs, figures, descriptions, and promotions past this project."""

import json
import re
import shutil

import mlflow
import pytest
import tiny_model
import tiny_run
from mlflow.exceptions import MlflowException

from contrique.artifacts import ENCODER
from contrique.cli.main import main
from contrique.config import RegistryConfig
from contrique.integrity import MODEL_HASH, ModelChanged
from contrique.registry import registration
from contrique.registry.load import load_model
from contrique.registry.promotion import keep_champion, promote
from contrique.registry.versions import PROVEN, UNPROVEN, Registry
from contrique.reports.card import describe_version
from contrique.tracking.datasets import read_lineage
from contrique.tracking.runs import Runs
from contrique.tracking.store import RegistryError, Store

CONFIG = RegistryConfig(serve_seconds=0)
UNSERVED = ["--set", "registry.serve_seconds=0"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [tiny_model.build(folder / str(seed), seed) for seed in range(2)]


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def register(parts, run, expected):
    return registration.register(tiny_model.candidate(parts, expected), config=CONFIG, run=run).version


def promote_on_the_page(number: str) -> str:
    """As "Promote model" of MLflow's page: the logged model of a version becomes another one, and gets the alias."""
    client = mlflow.MlflowClient()
    source = client.get_model_version("contrique", number)
    version = client.create_model_version("contrique", source.source, source.run_id, model_id=source.model_id)
    client.set_registered_model_alias("contrique", "champion", version.version)
    return str(version.version)


class TestAPromotionByAPerson:
    def test_is_noticed_refused_and_proven(self, store, models, capsys):
        register(models[0], "monday", "")
        number = promote_on_the_page("1")
        assert number == "2"
        registry = Registry(CONFIG)
        assert [(row.version, row.proof) for row in registry.list_versions()] == [("2", UNPROVEN), ("1", PROVEN)]
        for load in (lambda: load_model("", CONFIG), lambda: load_model("2", CONFIG)):
            with pytest.raises(RegistryError, match=r"was never proven: .* `contrique verify 2`"):
                load()
        with pytest.raises(RegistryError, match="never proven"):
            promote(registry, "2")
        assert main(["models"]) == 0
        out, err = capsys.readouterr()
        assert "never proven" in out
        assert "version 2 is champion and was never proven: `contrique verify 2`" in err
        assert "version 2 became champion past this project" in err
        assert main(["score", "x.png"]) == 2
        assert "which holds 'champion', was never proven" in capsys.readouterr().err

        assert main(["verify", *UNSERVED]) == 0
        assert "version 2 of 'contrique' is proven, loaded back: 1 pictures within" in capsys.readouterr().out
        first, second = (mlflow.MlflowClient().get_model_version("contrique", number).tags for number in "12")
        assert second[MODEL_HASH] == first[MODEL_HASH]
        assert second["srcc"] == first["srcc"]
        assert load_model("", CONFIG).version == "2"
        assert main(["models"]) == 0
        assert "never proven" not in capsys.readouterr().out

    def test_of_a_version_that_was_proven_is_noticed(self, store, models, capsys):
        register(models[0], "monday", "")
        register(models[1], "tuesday", "1")
        mlflow.MlflowClient().set_registered_model_alias("contrique", "champion", "1")
        assert main(["models"]) == 0
        err = capsys.readouterr().err
        assert "version 1 became champion past this project" in err
        assert "never proven" not in err
        assert load_model("", CONFIG).version == "1"

    def test_of_what_the_gate_never_saw_stays_unproven(self, store, models):
        Runs(CONFIG).open("sunday")
        client = mlflow.MlflowClient()
        client.create_registered_model("contrique")
        client.create_model_version("contrique", "runs:/0/x", Runs(CONFIG).open("sunday").id)
        client.create_model_version("contrique", "runs:/0/x")
        for number in "12":
            client.set_registered_model_alias("contrique", "champion", number)
            assert main(["verify", *UNSERVED]) == 2
            tags = client.get_model_version("contrique", number).tags
            assert tags == {}
        with pytest.raises(RegistryError, match="never proven"):
            load_model("", CONFIG)

    def test_of_a_swapped_file_is_refused_and_leaves_no_trace(self, store, models):
        register(models[0], "monday", "")
        promote_on_the_page("1")
        (folder,) = (store / "mlruns" / "artifacts" / "models").glob("*/artifacts/artifacts")
        shutil.copy(models[1].encoder, folder / ENCODER)
        with pytest.raises(ModelChanged, match="version 2 of 'contrique'"):
            main_or_raise("2")
        assert mlflow.MlflowClient().get_model_version("contrique", "2").tags == {}

    def test_that_does_not_answer_as_its_files_do_leaves_no_trace(self, store, models, monkeypatch):
        from contrique.registry import proof

        register(models[0], "monday", "")
        promote_on_the_page("1")
        wrong = [{"raw": 1e3, "error": None, "model": "2"}]
        monkeypatch.setattr(proof, "_ask_loaded", lambda *_: wrong)
        with pytest.raises(RegistryError, match="scores the input example 1000"):
            main_or_raise("2")
        assert mlflow.MlflowClient().get_model_version("contrique", "2").tags == {}

    def test_whose_traces_cannot_be_taken_back_says_both(self, store, models, monkeypatch, capsys):
        from contrique.registry import proof

        register(models[0], "monday", "")
        promote_on_the_page("1")
        monkeypatch.setattr(proof, "_ask_loaded", lambda *_: [{"raw": 1e3, "error": None, "model": "2"}])

        def fail(*_: object) -> None:
            raise MlflowException("the database is locked")

        monkeypatch.setattr(mlflow.MlflowClient, "delete_model_version_tag", fail)
        assert main(["verify", *UNSERVED]) == 2
        assert re.search(
            "scores the input example 1000.*; MLflow .*: taking tags from version 2 failed", capsys.readouterr().err
        )
        with pytest.raises(RegistryError, match="never proven"):
            load_model("2", CONFIG)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not readable"),
        ("[1]", "nothing usable of source"),
        ('{"source": "x", "hash": "y", "counts": null}', "of counts, revision, sources"),
    ],
)
def test_a_lineage_made_by_hand_is_one_clear_error(tmp_path, text, message):
    (tmp_path / "lineage.json").write_text(text)
    with pytest.raises(RegistryError, match=message):
        read_lineage(tmp_path)


def main_or_raise(number: str) -> str:
    from contrique.registry.proof import verify

    return verify(Registry(CONFIG), number)


class TestARun:
    def test_lists_its_datasets_its_author_and_its_figures_by_model(self, store, models):
        number = register(models[0], "monday", "")
        client = mlflow.MlflowClient()
        run = client.get_run(Runs(CONFIG).open("monday").id)
        inputs = {entry.dataset.name: (entry.dataset, entry.tags[0].value) for entry in run.inputs.dataset_inputs}
        assert {name: context for name, (_, context) in inputs.items()} == {
            "pictures": "training",
            "pictures, test part": "evaluation",
        }
        dataset, _ = inputs["pictures, test part"]
        assert dataset.digest == json.loads(models[0].lineage.read_text())["hash"]
        assert json.loads(dataset.profile)["num_rows"] == 10
        assert json.loads(dataset.source)["uri"] == "s3://bucket/pictures"
        assert all(run.data.tags[tag] for tag in ("mlflow.user", "mlflow.source.name", "mlflow.note.content"))
        assert run.data.metrics["test.srcc"] == 0.8
        model = client.get_logged_model(client.get_model_version("contrique", number).source.rpartition("/")[2])
        (srcc,) = [metric for metric in model.metrics if metric.key == "test.srcc"]
        assert (srcc.dataset_name, srcc.value) == ("pictures, test part", 0.8)

    def test_that_was_held_has_them_too(self, store, models, tmp_path):
        verdict = tmp_path / "verdict.json"
        numbers = {"challenger_srcc": 0.5, "champion_srcc": None, "difference_low": -0.1}
        verdict.write_text(json.dumps({"promote": False, "reason": "hold: *low*", "numbers": numbers}))
        keep_champion(verdict, models[0].lineage, config=CONFIG, run="tuesday")
        run = mlflow.MlflowClient().get_run(Runs(CONFIG).open("tuesday").id)
        assert len(run.inputs.dataset_inputs) == 2
        assert run.data.metrics == {"test.srcc": 0.5, "difference.low": -0.1}
        assert run.data.tags["mlflow.note.content"] == r"hold: \*low\*"

    def test_shows_the_load_of_the_machine(self, store, monkeypatch):
        monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
        run = Runs(CONFIG).open("monday")
        client = mlflow.MlflowClient()
        with run.monitor_system():
            while "system/cpu_utilization_percentage" not in client.get_run(run.id).data.metrics:
                pass


def test_the_experiment_is_of_model_training_also_one_that_was_there(store):
    name, client = CONFIG.experiment, Store(CONFIG).client
    experiment = client.get_experiment_by_name(name)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    client.set_experiment_tag(experiment.experiment_id, "mlflow.experimentKind", "genai_development_inferred")
    client.set_experiment_tag(experiment.experiment_id, "mlflow.note.content", "ours")
    tags = Store(CONFIG).client.get_experiment_by_name(name).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert tags["mlflow.note.content"] == "ours"
    client.set_experiment_tag(experiment.experiment_id, "mlflow.experimentKind", "genai_development")
    assert Store(CONFIG).client.get_experiment_by_name(name).tags["mlflow.experimentKind"] == "genai_development"


@pytest.mark.parametrize("champion", [True, False])
def test_the_description_of_a_version_is_the_card_in_short(tmp_path, champion):
    trained = tiny_run.build(tmp_path / "run", champion=champion)["trained"]
    text = describe_version(trained)
    judgement = json.loads((trained.evaluation / "evaluation.json").read_text())["challenger"]
    assert f"SRCC {judgement['metrics']['srcc']['value']:.3f}" in text
    assert ("champion (version 7)" in text) is champion
    assert "<script" not in text
    assert "    contrique score photo.jpg --model N\n" in text
    assert len(text) <= 5000
