"""Components as plain functions, and as what they compile to."""

import importlib
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from kfp import dsl

from components import IMAGE
from contrique import images
from contrique.artifacts import EVALUATION, MANIFEST, TEST_SCORES
from contrique.errors import ContriqueError
from contrique.registry.promotion import read_history
from contrique.registry.versions import Registry
from contrique.tracking.runs import Runs, current_pipeline_run
from contrique.tracking.store import RegistryError, Store
from pipelines.cluster.resources import STAGES

SETTINGS = {"profile": "demo", "overrides": {}}


def component(name: str) -> dsl.base_component.BaseComponent:
    return getattr(importlib.import_module(f"components.{name}"), name)


def artifact(kind: type[dsl.Artifact], path: Path) -> dsl.Artifact:
    return kind(name=path.name, uri=str(path))


@pytest.mark.parametrize("name", STAGES)
def test_runs_in_the_image_as_it_is(name):
    container = component(name).component_spec.implementation.container
    assert container.image == IMAGE
    assert "pip" not in " ".join(container.command[:3])


@pytest.mark.parametrize("name", STAGES)
def test_is_described_with_every_input(name):
    spec = component(name).component_spec
    assert spec.description
    assert not [key for key, parameter in (spec.inputs or {}).items() if not parameter.description]


def folder_of_pictures(folder: Path, seeds: range) -> str:
    folder.mkdir()
    for seed in seeds:
        pixels = np.random.default_rng(seed).integers(0, 256, (80, 96, 3), np.uint8)
        (folder / f"{seed}.png").write_bytes(images.encode_png(pixels))
    return str(folder)


@pytest.fixture
def dataset(tmp_path):
    """Ten rated pictures, each a scene of its own, and two to pretrain on."""
    pictures = artifact(dsl.Dataset, tmp_path / "out" / "dataset")
    rated, clean = (
        folder_of_pictures(tmp_path / "rated", range(10)),
        folder_of_pictures(tmp_path / "clean", range(10, 12)),
    )
    labels = pd.DataFrame({"image": [f"{number}.png" for number in range(10)], "mos": np.arange(10.0)})
    labels.to_csv(Path(rated, "labels.csv"), index=False)
    component("fetch_data").python_func(
        data=rated, revision="", pristine=[clean], authentic=[], pin="", dataset=pictures
    )
    return pictures


def test_fetch_data_records_the_lineage(dataset):
    lineage = json.loads(Path(dataset.path, "lineage.json").read_text())
    assert sum(lineage["counts"].values()) == sum(lineage["licences"].values()) == lineage["rows"] == 12
    assert (dataset.metadata["hash"], dataset.metadata["counts.pretrain/pristine"]) == (lineage["hash"], 2)


def run_validation(dataset: dsl.Artifact, tmp_path: Path, overrides: dict) -> dict[str, dsl.Artifact]:
    """What validate_data made."""
    kinds = {"report": dsl.HTML, "summary": dsl.Metrics, "findings": dsl.Artifact}
    outputs = {name: artifact(kind, tmp_path / name) for name, kind in kinds.items()}
    component("validate_data").python_func(dataset=dataset, start="", profile="demo", overrides=overrides, **outputs)
    return outputs


def test_validate_data_reports_and_counts(dataset, tmp_path):
    outputs = run_validation(dataset, tmp_path, {"pretrain.authentic_share": 0.0})
    assert "<html" in Path(outputs["report"].path).read_text()
    assert outputs["summary"].metadata["rows"] == 12
    json.dumps(outputs["summary"].metadata, allow_nan=False)
    component("accept_data").python_func(findings=outputs["findings"])


def test_bad_data_have_a_report_before_they_are_refused(dataset, tmp_path):
    """With the overrides that it was given: numbers come as floats from a cluster."""
    outputs = run_validation(dataset, tmp_path, {"validation.min_side": 90.0})
    assert "expectations failed" in Path(outputs["report"].path).read_text()
    with pytest.raises(ContriqueError, match=r"0\.png[^$]*\n.*report of the stage validate_data$"):
        component("accept_data").python_func(findings=outputs["findings"])


def test_pictures_that_training_would_miss_are_missed_before_it(dataset, tmp_path):
    outputs = run_validation(dataset, tmp_path, {})
    with pytest.raises(ContriqueError, match="no authentic pictures"):
        component("accept_data").python_func(findings=outputs["findings"])


@pytest.fixture
def evaluation(tmp_path):
    """The test part of an evaluation whose challenger ranks as the labels do."""
    folder = tmp_path / "evaluation"
    folder.mkdir()
    labels = np.arange(12.0)
    rows = {"image": labels.astype(str), "reference": [f"scene {i % 3}" for i in range(12)], "distortion": "jpeg"}
    scores = pd.DataFrame(rows | {"label": labels, "challenger": labels**3, "champion": np.nan})
    scores.to_parquet(folder / TEST_SCORES)
    facts = {"has_champion": False, "champion_version": "", "resamples": 20, "confidence": 0.95, "seed": 0}
    (folder / EVALUATION).write_text(json.dumps(facts))
    return artifact(dsl.Artifact, folder)


@pytest.mark.parametrize(("floor", "answer"), [(1, "promote"), (1.01, "hold")])
def test_decide_promotion_answers_in_one_word(evaluation, floor, answer, tmp_path):
    verdict = artifact(dsl.Artifact, tmp_path / "verdict")
    decision = component("decide_promotion").python_func(
        evaluation=evaluation, verdict=verdict, profile="demo", overrides={"gate.floor": floor}
    )
    assert decision == answer
    assert json.loads(Path(verdict.path).read_text())["promote"] is (answer == "promote")


def test_keep_champion_leaves_the_registry_alone(dataset, evaluation, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("CONTRIQUE_RUN", "a-run")
    verdict, overrides = artifact(dsl.Artifact, tmp_path / "verdict"), {"gate.floor": 2}
    component("decide_promotion").python_func(
        evaluation=evaluation, verdict=verdict, profile="demo", overrides=overrides
    )
    tracking = artifact(dsl.Markdown, tmp_path / "tracking")
    outputs = component("keep_champion").python_func(
        extract=dataset, verdict=verdict, profile="demo", overrides=overrides, tracking=tracking
    )
    assert outputs == {}
    assert re.match(r"MLflow run `[0-9a-f]{32}` in `sqlite:///", Path(tracking.path).read_text())
    from contrique.config import RegistryConfig

    assert Registry(RegistryConfig()).list_versions() == []
    (event,) = read_history(Registry(RegistryConfig()))
    assert (event.action, event.run, event.data_hash) == ("hold", "a-run", dataset.metadata["hash"])


STATES = {  # how a pipeline ended, as close_run is told -> what becomes of a run that is open
    "COMPLETE": "RUNNING",
    "CACHED": "RUNNING",
    "SUCCEEDED": "RUNNING",
    "FAILED": "FAILED",
    "RUNNING": "KILLED",
    "CANCELED": "KILLED",
}


@pytest.mark.parametrize("state", STATES)
def test_close_run_leaves_a_finished_run_alone(state, tmp_path, monkeypatch):
    """A cluster says RUNNING at the end of some runs that succeeded, and FAILED where the report alone did not come."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("CONTRIQUE_RUN", "a-run")
    from contrique.config import RegistryConfig

    run = Runs(RegistryConfig()).open("a-run")
    run.close()
    final_status = dsl.PipelineTaskFinalStatus(state, "job", "training", 1, "")
    component("close_run").python_func(status=final_status, **SETTINGS)
    record = Store(RegistryConfig()).client.get_run(run.id)
    assert (record.info.status, "pipeline.state" in record.data.tags) == ("FINISHED", False)


@pytest.mark.parametrize(("state", "status"), STATES.items())
def test_close_run_closes_what_was_left_open(state, status, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("CONTRIQUE_RUN", "a-run")
    final_status = dsl.PipelineTaskFinalStatus(state, "job", "training", 1, "")
    component("close_run").python_func(status=final_status, **SETTINGS)
    assert not (tmp_path / "mlruns").exists(), "nothing was open, and nothing is made"
    from contrique.config import RegistryConfig

    run = Runs(RegistryConfig()).open("a-run")
    component("close_run").python_func(status=final_status, **SETTINGS)
    assert Store(RegistryConfig()).client.get_run(run.id).info.status == status


def test_a_step_without_its_run_says_so(monkeypatch):
    monkeypatch.delenv("CONTRIQUE_RUN", raising=False)
    with pytest.raises(RegistryError, match="CONTRIQUE_RUN"):
        current_pipeline_run()


def test_dataset_forms_are_those_that_components_name():
    """File names that stand in component bodies, which cannot import them from here."""
    from contrique.artifacts import ENCODER, EVALUATION, HISTORY, LINEAGE

    assert ENCODER == "encoder.safetensors"
    assert HISTORY == "history.jsonl"
    assert LINEAGE == "lineage.json"
    assert EVALUATION == "evaluation.json"
    assert MANIFEST == "manifest.parquet"
