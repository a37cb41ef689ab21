"""Fetching is cached by what the data are, by KFP's local cache, which like the backend's keys on inputs."""

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

import pytest
from kfp import dsl, local
from test_run import photograph, picture_set

from components.fetch_data import fetch_data
from components.pin_data import pin_data
from components.synthesize_distortions import synthesize_distortions
from contrique import images
from contrique.sources.dvc_pin import publish
from pipelines.cluster.resources import equipped

pytestmark = pytest.mark.slow
SMALL = {
    "synthesis.distortions": ["gaussian_blur"],
    "synthesis.levels": [5],
    "synthesis.weak_labels_per_photograph": 0,
    "synthesis.workers": 1,
}
SETTINGS: dict[str, Any] = {"profile": "demo", "overrides": SMALL, "seed": 0}
ALL = {"pin-data", "fetch-data", "synthesize-distortions"}


@dsl.pipeline(name="fetching")
def fetching(data: str) -> None:
    """The first stages of the training, without validation: its Metrics have no file, and the local cache wants one."""
    sources = {"data": data, "revision": "", "pristine": [], "authentic": []}
    pin = equipped(pin_data(**sources))
    fetch = equipped(fetch_data(pin=pin.output, **sources))
    equipped(synthesize_distortions(dataset=fetch.outputs["dataset"], **SETTINGS))


@pytest.fixture
def run_pipeline(tmp_path):
    """Run the pipeline on a folder: the tasks that really ran."""

    def start(data: Path) -> set[str]:
        root = tmp_path / f"run-{len(list(tmp_path.glob('run-*')))}"
        runner = local.SubprocessRunner(use_venv=False)
        local.init(runner, pipeline_root=str(root), enable_caching=True, cache_root=str(tmp_path / "cache"))
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of resource settings that have no meaning here
            fetching(data=str(data))
        return {path.parent.name for path in root.glob("*/*/executor_output.json")}

    return start


def test_the_same_pin_is_fetched_once_and_another_one_again(tmp_path, run_pipeline):
    project = tmp_path / "project"
    (project / ".dvc").mkdir(parents=True)
    config = "[core]\n    remote = store\n    analytics = false\n    no_scm = true\n['remote \"store\"']\n"
    (project / ".dvc" / "config").write_text(f"{config}    url = {tmp_path / 'store'}\n")
    pictures = picture_set(tmp_path / "built")
    (project / "data.dvc").write_text(publish(pictures, project))
    assert run_pipeline(project) == ALL
    assert run_pipeline(project) == {"pin-data"}
    (pictures / "images" / "extra.png").write_bytes(images.encode_png(photograph(99)))
    (project / "data.dvc").write_text(publish(pictures, project))
    assert run_pipeline(project) == ALL


def test_a_folder_that_nothing_vouches_for_is_fetched_each_time(tmp_path, run_pipeline):
    pictures = picture_set(tmp_path / "built")
    assert run_pipeline(pictures) == run_pipeline(pictures) == ALL
