"""The real pipeline through KFP's local runner: to both verdicts, and to each way of failing with its own message."""

import builtins
import contextlib
import io
import itertools
import json
import logging
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
from kfp.local.logging_utils import indented_print, local_logger_context
from processes import VARIABLE, survivors

from contrique import images
from contrique.artifacts import ENCODER
from contrique.config import RegistryConfig
from contrique.data.manifest import as_manifest, inspect_file, read_manifest, write_manifest
from contrique.encoder.weights import read_metadata
from contrique.files import sha256
from contrique.registry.versions import Registry
from contrique.scoring import bundled
from contrique.sources.dvc_pin import list_files, publish, read_pin
from contrique.tracking.runs import PIPELINE_RUN
from contrique.tracking.store import Store
from pipelines.__main__ import main
from pipelines.laptop import runner

# Two whole runs can be one test's setup: two minutes on quiet cores, more than twenty on busy ones.
pytestmark = pytest.mark.timeout(3600)

# Ten photographs, two distortions at two levels, three steps: every stage is the real one, small.
SPLITS = ["pretrain", "pretrain", "pretrain", "train", "train", "validation", "test", "test"]
TINY = {
    "validation.near_duplicate_bits": 2,
    "evaluation.near_duplicate_bits": 2,
    "evaluation.resamples": 100,
    "pretrain.crop": 64,
    "pretrain.images": 8,
    "pretrain.log_every": 1,
    "pretrain.steps": 3,
    "pretrain.threads": 1,
    "pretrain.workers": 0,
    "registry.serve_seconds": 1200.0,
    "synthesis.distortions": ["gaussian_blur", "jpeg"],
    "synthesis.levels": [3, 5],
    "synthesis.workers": 1,
}
CONFIG = RegistryConfig()
ROOT = Path(__file__).parents[2]
# as Kubernetes Secrets would set them
SECRETS = ("AWS_SECRET_ACCESS_KEY", "CONTRIQUE_S3_SECRET_KEY", "MLFLOW_TRACKING_PASSWORD")
SECRET = "planted-6f1d2c"


def photograph(seed: int) -> images.Picture:
    """A smooth random picture: nothing like any other. Shape (96, 128, 3), uint8."""
    rough = scipy.ndimage.gaussian_filter(np.random.default_rng(seed).random((96, 128, 3)), (4, 4, 0))
    return images.as_uint8((rough - rough.min()) / np.ptp(rough))


def picture_set(folder: Path, **labels: list[float]) -> Path:
    """Photographs for pretraining, and judged ones: to be distorted, or with a `mos` if that is given."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for number, split in enumerate([*SPLITS, "pretrain", "pretrain"]):
        path = folder / "images" / f"{number}.png"
        path.write_bytes(images.encode_png(photograph(number)))
        kind = "authentic" if number >= len(SPLITS) else "pristine"
        row = {"image": f"images/{number}.png", "reference": f"scene {number}", "kind": kind, "split": split}
        if split != "pretrain" and labels:
            row |= {"kind": "authentic", "mos": labels["mos"][number - 3]}
        rows.append(row | inspect_file(path))
    write_manifest(as_manifest(rows), folder)
    return folder


def run(data: Path, *flags: str, **options: Any) -> tuple[int, str, str]:
    """`python -m pipelines run`: exit status, standard output, standard error."""
    params = [f"--param={name}={json.dumps(value)}" for name, value in (TINY | options).items()]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(["run", "--data", os.path.relpath(data), *flags, *params])
    return status, out.getvalue(), err.getvalue()


@pytest.fixture
def mark(monkeypatch) -> str:
    """In the environment of every process started by this test."""
    monkeypatch.setenv(VARIABLE, name := uuid.uuid4().hex)
    return name


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory with a registry of its own, and in it a DVC project with its remote."""
    folder = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("OMP_NUM_THREADS", "1")
        for name in SECRETS:
            patch.setenv(name, SECRET)
        project = folder / "project"
        (project / ".dvc").mkdir(parents=True)
        config = "[core]\n    remote = store\n    analytics = false\n    no_scm = true\n['remote \"store\"']\n"
        (project / ".dvc" / "config").write_text(config + "    url = ../../store\n    verify = true\n")
        (project / "data.dvc").write_text(publish(picture_set(folder / "built"), project))
        yield folder


@dataclass(frozen=True)
class Outcome:
    """A run that ended, and what the registry held then."""

    status: int
    out: str
    err: str
    root: Path
    champion: str
    versions: list[str]


def run_training(place: Path, *flags: str, **options: Any) -> Outcome:
    status, out, err = run(place / "project", *flags, **options)
    model = Registry(CONFIG).load_champion()
    versions = [model.version for model in Registry(CONFIG).list_versions()]
    return Outcome(status, out, err, max((place / "runs").iterdir()), model.version if model else "", versions)


@pytest.fixture(scope="module")
def promoted_run(place: Path) -> Outcome:
    return run_training(place, **{"gate.floor": -1.0})


@pytest.fixture(scope="module")
def held_run(place: Path, promoted_run: Outcome) -> Outcome:
    """Its encoder is the champion's, trained on for a step."""
    settings = {"gate.floor": 1.1, "pretrain.steps": 1}
    return run_training(place, "--shards", "2", "--encoder", "champion", **settings)


def list_tasks(run: Outcome) -> set[str]:
    return {path.parent.name for path in run.root.glob("*/*/executor_output.json")}


@pytest.mark.slow
@pytest.mark.pipeline
class TestPromote:
    def test_ends_with_a_summary(self, place, promoted_run):
        assert (promoted_run.status, promoted_run.err) == (0, "")
        lines = promoted_run.out.splitlines()
        assert re.search(r"Data      [0-9a-f]{32}\.dir: 10 pictures", promoted_run.out)
        assert re.search(
            r"Encoder   3 steps, loss \d+\.\d+ first, \d+\.\d+ last, from random weights", promoted_run.out
        )
        for metric in ("SRCC", "PLCC", "KRCC", "RMSE"):
            assert re.search(rf"{metric}.* -?\d\.\d+  \[-?\d\.\d+, -?\d\.\d+\]  n = \d+", promoted_run.out), metric
        assert [line for line in lines if line.startswith("Labels    weak labels")]
        assert "MOS" not in promoted_run.out
        assert [line for line in lines if line.startswith("Verdict   promote: ")]
        assert "Registry  contrique version 1, alias champion" in lines
        assert any(line.endswith("contrique score PICTURE --model bundled") for line in lines), (
            "the demo champion is for show"
        )
        assert all(command in promoted_run.out for command in ("mlflow ui", "contrique score", "pipelines compile"))

    def test_every_stage_ran_and_one_branch(self, promoted_run):
        assert "register-model" in list_tasks(promoted_run)
        assert "keep-champion" not in list_tasks(promoted_run)
        assert len(list_tasks(promoted_run)) == 14

    def test_the_run_page_links_to_mlflow(self, promoted_run):
        (page,) = promoted_run.root.glob("*/register-model/tracking")
        assert re.match(r"MLflow run `[0-9a-f]{32}` in `sqlite:///", page.read_text())

    def test_keeps_the_model_card_with_the_version(self, place, promoted_run):
        (card,) = place.rglob("artifacts/model_card.md")
        assert "weak labels" in card.read_text()

    def test_registers_the_champion(self, promoted_run):
        assert (promoted_run.champion, promoted_run.versions) == ("1", ["1"])

    def test_one_mlflow_run_with_loss_and_configuration(self, place, promoted_run):
        client = Store(CONFIG).client
        experiment = client.get_experiment_by_name(CONFIG.experiment).experiment_id
        (record,) = client.search_runs([experiment], f"tags.`{PIPELINE_RUN}` = '{promoted_run.root.name}'")
        assert {"loss", "lr"} <= record.data.metrics.keys()
        assert [point.step for point in client.get_metric_history(record.info.run_id, "loss")] == [1, 2, 3]
        assert record.data.params["pretrain.steps"] == "3"

    def test_the_lineage_is_the_pin(self, place, promoted_run):
        (lineage,) = promoted_run.root.glob("*/fetch-data/dataset/lineage.json")
        assert json.loads(lineage.read_text())["hash"] == read_pin(place / "project")

    def test_the_report_stands_alone(self, promoted_run):
        page = (promoted_run.root / "report.html").read_text()
        assert "weak labels" in page
        assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)

    def test_no_secret_is_left_anywhere(self, promoted_run):
        """Of the credentials that every task was given: in its log, artifacts, metadata, and on the screen."""
        files = [path for path in promoted_run.root.rglob("*") if path.is_file()]
        assert len(files) > 30
        assert not [path for path in files if SECRET.encode() in path.read_bytes()]
        assert SECRET not in promoted_run.out

    def test_everything_went_through_the_backend(self, promoted_run):
        """Metadata as ML Metadata gives them back; what each task would download stands in the log."""
        outputs = [json.loads(path.read_text()) for path in promoted_run.root.glob("*/*/executor_output.json")]
        artifacts = [
            artifact
            for output in outputs
            for each in output.get("artifacts", {}).values()
            for artifact in each["artifacts"]
        ]
        assert len(artifacts) > 12
        assert len({artifact["name"] for artifact in artifacts}) == len(artifacts), "the numbers of ML Metadata"
        for artifact in artifacts:
            assert {"display_name", "store_session_info"} <= artifact["metadata"].keys()
            assert {type(value) for value in artifact["metadata"].values()} <= {str, float}
        assert (promoted_run.root / "run.log").read_text().count("KFP carries to this task") == 14

    def test_no_artifact_holds_what_a_store_cannot(self, promoted_run):
        paths = [path for folder in promoted_run.root.glob("contrique-training-*/*") for path in folder.rglob("*")]
        assert not [path for path in paths if path.is_symlink()]
        assert not [path for path in paths if path.is_dir() and not any(path.iterdir())]

    def test_the_log_keeps_what_the_terminal_does_not_show(self, promoted_run):
        assert "executor_input" in (promoted_run.root / "run.log").read_text()
        assert "executor_input" not in promoted_run.out


@pytest.mark.slow
@pytest.mark.pipeline
class TestHold:
    def test_says_why(self, held_run):
        assert held_run.status == 0
        assert "is below the floor 1.100" in held_run.out
        assert "nothing registered; the champion stays: contrique version 1, alias champion" in held_run.out

    def test_no_new_version_and_the_champion_unchanged(self, promoted_run, held_run):
        assert (held_run.champion, held_run.versions) == (promoted_run.champion, promoted_run.versions)

    def test_the_other_branch_ran(self, held_run):
        assert "keep-champion" in list_tasks(held_run)
        assert "register-model" not in list_tasks(held_run)

    def test_it_trained_on_from_the_champion(self, promoted_run, held_run):
        assert re.search(r"Encoder   1 steps, .* on from version 1 of contrique", held_run.out)
        start, on = (next(each.root.glob("*/pretrain-encoder/encoder")) for each in (promoted_run, held_run))
        assert read_metadata(on / ENCODER)["start"] == sha256(start / ENCODER)

    def test_fanned_out_it_is_the_same_data(self, promoted_run, held_run):
        """This run made the distorted pictures in two parts, and the features too."""
        first, second = (
            next(each.root.glob(f"*/{task}/distorted"))
            for each, task in ((promoted_run, "synthesize-distortions"), (held_run, "gather-distortions"))
        )
        assert list_files(first) == list_files(second)
        assert "gather-features" in list_tasks(held_run)

    def test_the_champion_was_rescored_on_the_same_pictures(self, held_run):
        (result,) = held_run.root.glob("*/evaluate-model/result")
        evaluation = json.loads((result / "evaluation.json").read_text())
        assert evaluation["champion_version"] == "1"
        assert evaluation["champion"]["n"] == evaluation["challenger"]["n"]


@pytest.mark.slow
@pytest.mark.pipeline
class TestFrozen:
    """Rated pictures and an encoder that exists: nothing to pretrain on, and nothing pretrained."""

    def test_rated_pictures_alone_make_a_champion(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # MLflow sets it for this process
        rated = Path("rated")
        rated.mkdir()
        rows = ["image,reference,distortion,level,mos"]
        for scene, blur in itertools.product(range(10), range(4)):
            pixels = scipy.ndimage.gaussian_filter(photograph(scene), (blur, blur, 0))
            (rated / f"{scene}-{blur}.png").write_bytes(images.encode_png(pixels))
            name = f"gaussian_blur,{blur}" if blur else ","
            rows.append(f"{scene}-{blur}.png,scene {scene},{name},{5 - blur - scene / 100}")
        (rated / "labels.csv").write_text("\n".join(rows))
        out, err = io.StringIO(), io.StringIO()
        limits = [f"--set={name}={TINY[name]}" for name in TINY if name.startswith(("validation", "evaluation", "reg"))]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(["run", "--data", "rated", "--encoder", "bundled", *limits])
        assert (status, err.getvalue()) == (0, "")
        text = out.getvalue()
        assert "Encoder   bundled, as it is; nothing was pretrained" in text
        assert "Labels    human opinion scores" in text
        assert "Registry  contrique version 1, alias champion" in text
        assert float(re.search(r"SRCC +(\d\.\d+)", text)[1]) > 0.8
        tags = Registry(CONFIG).find_version("1").tags
        expected = ("bundled", bundled.SHA256[ENCODER], "as it is")
        assert tuple(tags[f"encoder.{name}"] for name in ("start", "start.hash", "use")) == expected


@pytest.fixture(scope="module")
def noise(place: Path, promoted_run: Outcome) -> Path:
    folder = place / "noise"
    folder.mkdir()
    for seed in range(12):
        pixels = np.random.default_rng(seed).integers(0, 256, (96, 96, 3), np.uint8)
        (folder / f"{seed}.png").write_bytes(images.encode_png(pixels))
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.mark.slow
@pytest.mark.pipeline
class TestScoring:
    """The second pipeline, with the champion of the first."""

    @staticmethod
    def score(folder: Path, **options: Any) -> tuple[int, str, str, Path]:
        limits = {"drift.min_pictures": 5, "drift.bins": 2, "drift.psi": 0.1, "drift.significance": 0.5}
        params = [f"--param={name}={json.dumps(value)}" for name, value in (limits | options).items()]
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(["run", "--pipeline", "scoring", "--data", str(folder), *params])
        return status, out.getvalue(), err.getvalue(), max(Path("runs").iterdir())

    def test_drift_ends_with_a_status_of_its_own_and_a_report(self, noise):
        status, out, err, root = self.score(noise)
        assert status == 3
        assert re.search(r"^error: Raise the alarm: 12 pictures are unlike those that version 1 was judged on", err)
        assert [line[0] for line in out.splitlines()] == ["✓", "✓", "✗"]
        (report,) = root.glob("*/detect-drift/report")
        assert "<h1>Drift</h1>" in report.read_text()

    def test_unless_told_not_to_fail(self, noise):
        status, out, _, root = self.score(noise, fail_on_drift=False)
        assert status == 0
        assert "Scored    12 pictures by version 1, 1 failed" in out
        assert re.search(r"Drift     \w+: PSI", out)
        assert (root / "drift.html").is_file()


@pytest.mark.slow
@pytest.mark.pipeline
class TestFailures:
    """Each stops the run, exits 2, and ends with one message that names what is wrong and where the log is."""

    def test_a_flipped_byte_in_the_remote(self, place):
        listing = list_files(place / "built")
        md5 = listing["images/4.png"]
        stored = place / "store" / "files" / "md5" / md5[:2] / md5[2:]
        good = stored.read_bytes()
        stored.chmod(0o644)
        stored.write_bytes(bytes([good[0] ^ 1]) + good[1:])
        try:
            status, out, err = run(place / "project")
        finally:
            stored.write_bytes(good)
        assert status == 2
        assert "images/4.png" in err
        marks = [line.split(" (")[0] for line in out.splitlines()]
        assert marks == ["✓ Pin the encoder", "✓ Pin the data", "✗ Fetch and prove the data", "✓ Close the MLflow run"]

    def test_a_truncated_jpeg(self, place, tmp_path):
        folder = picture_set(tmp_path / "set")
        manifest = read_manifest(folder)
        whole = io.BytesIO()
        images.Image.fromarray(photograph(1)).save(whole, "JPEG")
        path = folder / "images" / "1.jpg"
        path.write_bytes(whole.getvalue()[:900])
        facts = inspect_file(path)
        for column, value in ({"image": "images/1.jpg"} | facts).items():
            manifest.loc[1, column] = value
        write_manifest(manifest, folder)
        self.fails_in_validation(folder, r"images/1\.jpg.*truncated")

    def test_a_nan_score(self, place, tmp_path):
        folder = picture_set(tmp_path / "set", mos=[1.0, 2.0, float("nan"), 4.0, 5.0])
        self.fails_in_validation(folder, r"images/5\.png")

    def test_a_reference_on_both_sides(self, place, tmp_path):
        folder = picture_set(tmp_path / "set", mos=[1.0, 2.0, 3.0, 4.0, 5.0])
        manifest = read_manifest(folder)
        manifest.loc[3, "reference"] = manifest.loc[6, "reference"]
        write_manifest(manifest, folder)
        self.fails_in_validation(folder, r"scene 6")

    def test_after_the_mlflow_run_was_opened(self, place):
        """Then that run is closed as failed."""
        status, _, err = run(place / "project", **{"pretrain.lr": 1e30})
        assert status == 2
        assert err.startswith("error: Pretrain the encoder: the loss is ")
        client = Store(CONFIG).client
        experiment = client.get_experiment_by_name(CONFIG.experiment).experiment_id
        name = max((place / "runs").iterdir()).name
        (record,) = client.search_runs([experiment], f"tags.`{PIPELINE_RUN}` = '{name}'")
        assert (record.info.status, record.data.tags["pipeline.state"]) == ("FAILED", "FAILED")

    def test_told_to_end(self, place, mark):
        """As by Ctrl-C: the tasks end, the last one closes the MLflow run, and nobody is left behind."""
        params = [f"--param={name}={json.dumps(value)}" for name, value in (TINY | {"pretrain.steps": 10**6}).items()]
        command = [sys.executable, "-m", "pipelines", "run", "--data", "project", *params]
        before = set(Path("runs").iterdir())
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        client = Store(CONFIG).client
        experiment = client.get_experiment_by_name(CONFIG.experiment).experiment_id

        def search_runs() -> list[Any]:
            (name,) = {path.name for path in set(Path("runs").iterdir()) - before} or {"none yet"}
            return list(client.search_runs([experiment], f"tags.`{PIPELINE_RUN}` = '{name}' and metrics.loss > 0"))

        with subprocess.Popen(command, env=environment, **pipes) as process:
            until = time.monotonic() + 600
            while not search_runs():  # until it trains
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < until
                time.sleep(0.5)
            process.terminate()
            out, err = process.communicate(timeout=300)
        assert process.returncode == 128 + signal.SIGTERM
        (root,) = set(Path("runs").iterdir()) - before
        assert err == f"error: told to end by SIGTERM\nThe whole log: {root.resolve() / 'run.log'}\n"
        assert [line[0] for line in out.splitlines()] == ["✓"] * 6 + ["✗", "✓"]
        (record,) = search_runs()
        assert (record.info.status, record.data.tags["pipeline.state"]) == ("KILLED", "RUNNING")
        assert survivors(mark) == []

    @staticmethod
    def fails_in_validation(folder: Path, message: str) -> None:
        status, out, err = run(folder)
        assert status == 2
        assert re.search(message, err), err
        assert err.startswith("error: Accept the data: ")
        assert "Traceback" not in err
        assert "run.log" in err.splitlines()[-1]
        marks = [line[0] for line in out.splitlines()]
        assert marks == ["✓"] * 4 + ["✗", "✓"], "of later stages the last alone may run"
        (report,) = max(Path("runs").iterdir()).glob("*/validate-data/report")
        assert "expectations failed" in report.read_text(), "its outputs are kept, for it did not fail"


class TestArguments:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--data", "x", "--param", "pretrain.stepz=1"], "pretrain.stepz"),
            (["--data", "x", "--param", "pretrain.steps=many"], "many"),
            (["--data", "x", "--param", "steps"], "NAME=VALUE"),
            (["--data", "x", "--param", "steps=1"], "--set steps: neither an option"),
            (["--data", "x", "--profile", "large"], "large"),
            (["--data", "https://token@git.test/team/data"], "data on git.test holds credentials"),
            ([], "--data"),
        ],
    )
    def test_a_bad_one_is_found_before_anything_runs(self, arguments, message, capsys, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert main(["run", *arguments]) == 2
        assert message in capsys.readouterr().err
        assert not list(tmp_path.iterdir())


def task(code: str) -> list[str]:
    """A command as KFP makes them, for a stage that runs `code`."""
    executor_input = json.dumps({"outputs": {"outputFile": "/run/fit-regressor/executor_output.json"}})
    return [sys.executable, "-c", code, "--executor_input", executor_input]


class TestTerminal:
    """What a person sees of a task."""

    def test_progress_bars_reach_a_terminal(self, tmp_path):
        code = "from tqdm import tqdm\nfor _ in tqdm(range(3), desc='busy', disable=None): pass\nprint('a line')"
        main_end, screen_end = pty.openpty()
        with os.fdopen(screen_end, "w") as screen, (tmp_path / "log").open("w") as log:
            assert runner.Terminal(log, screen, {}).run_task(task(code)) == 0
            output = b""
            while not output.endswith(b"s)\r\n"):  # of the last line; a read gives what is there so far
                output += os.read(main_end, 100_000)
        os.close(main_end)
        assert "busy: 100%" in output.decode()
        assert "✓ Fit the regressor" in output.decode()
        assert "a line" not in output.decode()
        assert "a line" in (tmp_path / "log").read_text().splitlines()

    def test_without_a_terminal_there_is_one_line(self, tmp_path):
        screen = io.StringIO()
        code = "from tqdm import tqdm\nfor _ in tqdm(range(3), desc='busy', disable=None): pass"
        with (tmp_path / "log").open("w") as log:
            runner.Terminal(log, screen, {}).run_task(task(code))
        assert re.fullmatch(r"✓ Fit the regressor \(\d+\.\d s\)\n", screen.getvalue())

    @pytest.mark.parametrize(
        ("code", "reason"),
        [
            (
                "from contrique.images import BadImage\nraise BadImage('a.jpg: empty')",
                "Fit the regressor: a.jpg: empty",
            ),
            (
                "from contrique.images import BadImage\n"
                "try: {}['k']\nexcept KeyError as error: raise BadImage('two\\nlines') from error",
                "Fit the regressor: two\\nlines",
            ),
            ("import os; os.kill(os.getpid(), 9)", "Fit the regressor: killed by signal 9"),
            ("from contrique import nothing_such", "unexpected failure\nTraceback"),
        ],
    )
    def test_a_failure_is_explained(self, code, reason, tmp_path):
        with (tmp_path / "log").open("w") as log:
            terminal = runner.Terminal(log, io.StringIO(), {})
            assert terminal.run_task(["bash", "-c", '"$@"; exit $?', "-", *task(code)]) != 0
            assert terminal.run_task(task("raise OSError('what came after it')")) != 0
        assert reason in terminal.reason

    def test_a_task_that_is_killed_without_a_shell_around_it(self, tmp_path):
        with (tmp_path / "log").open("w") as log:
            terminal = runner.Terminal(log, io.StringIO(), {})
            assert terminal.run_task(task("import os; os.kill(os.getpid(), 9)")) == -9
        assert terminal.reason.startswith("Fit the regressor: killed by signal 9")

    def test_a_log_that_cannot_be_written_ends_the_task(self):
        code = "while True: print('a line', flush=True)"
        with pytest.raises(OSError, match="No space left"), Path("/dev/full").open("w") as log:
            runner.Terminal(log, io.StringIO(), {}).run_task(task(code))

    def test_a_character_that_comes_in_two_parts(self):
        terminal = runner.Terminal(io.StringIO(), io.StringIO(), {})
        assert list(terminal._lines([b"caf\xc3", b"\xa9\nend"])) == ["café", "end"]


class TestBranches:
    """The guard against KFP's local runner, which can skip a branch and report success."""

    @pytest.fixture
    def make_run(self, tmp_path):
        verdict = tmp_path / "verdict.json"
        verdict.write_text(json.dumps({"promote": True}))
        artifacts = {"decide_promotion": {"verdict": verdict}}
        return lambda *stages: runner.Run(tmp_path, artifacts, dict.fromkeys(stages))

    def test_the_verdicts_own_branch_is_accepted(self, make_run):
        runner.check_branches(make_run("decide_promotion", "register_model"))

    @pytest.mark.parametrize("stages", [[], ["keep_champion"], ["register_model", "keep_champion"]])
    def test_anything_else_is_refused(self, make_run, stages):
        with pytest.raises(runner.RunFailed, match="register_model"):
            runner.check_branches(make_run("decide_promotion", *stages))


@pytest.mark.parametrize("context", [local_logger_context, indented_print])
def test_nothing_that_a_loop_of_kfp_changes_is_left_behind(context):
    """KFP's own contexts, as two threads of a loop enter and leave them."""

    def state():
        return builtins.print, logging.getLogger().handlers[:]

    before = state()
    with runner._kfps_changes_undone():
        first, second = context(), context()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        second.__exit__(None, None, None)
        assert state() != before
    assert state() == before


def test_the_local_document_differs_in_retries_alone():
    """What is tested here is what runs on a cluster."""
    from pipelines.training import training

    whole, without = training.pipeline_spec, runner.with_retries(training).pipeline_spec
    (body,) = [component for component in whole.components.values() if "pretrain-encoder" in component.dag.tasks]
    assert body.dag.tasks["pretrain-encoder"].HasField("retry_policy")
    for spec in (whole, without):
        for component in (spec.root, *spec.components.values()):
            for step in component.dag.tasks.values():
                step.ClearField("retry_policy")
    assert whole.components == without.components
    assert whole.root == without.root
    assert whole.deployment_spec == without.deployment_spec


def test_a_folder_that_is_not_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["run", "--data", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "runs")
