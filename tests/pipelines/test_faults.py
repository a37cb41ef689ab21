"""Every part fails once: the real pipeline against the real S3, PostgreSQL and MLflow servers.

Three stories, each run once and looked at by many tests. `race_outcomes`: two runs at once. `killed_run`: a run that
ends with its pretraining killed. `rerun`: the rerun of that one, in which whatever a stage speaks to is gone when it
begins, or goes while it works, and comes back before it is tried again. A fault strikes when the run's own output says
how far it is, or when a checkpoint appears, never after a time.
"""

import contextlib
import functools
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest
import torch
from safetensors.torch import load_file
from test_run import TINY, picture_set

from contrique import s3 as s3_module
from contrique.config import RegistryConfig
from contrique.pretraining.checkpoints import Checkpoints
from contrique.registry.promotion import read_history
from contrique.registry.versions import Registry
from contrique.sources.dvc_pin import list_files
from contrique.tracking.runs import PIPELINE_RUN
from contrique.tracking.store import Store
from pipelines.__main__ import main
from pipelines.laptop import runner
from pipelines.laptop.stack import BUCKET, Service, Stack

pytestmark = [pytest.mark.slow, pytest.mark.pipeline, pytest.mark.timeout(3600)]

CONFIG = RegistryConfig()
DATA = f"s3://{BUCKET}/pictures"
CHECKPOINTS = f"s3://{BUCKET}/checkpoints/faults"
OPTIONS = TINY | {
    "gate.floor": -1.0,
    "pretrain.calibration": 2,
    "pretrain.checkpoint_every": 1,
    "pretrain.steps": 6,
    "registry.serve_seconds": 0,
}
MIB = 1 << 20
Event = tuple[str, *tuple[Callable[[], Any], ...]]


class Screen(io.StringIO):
    """Standard output of a run; a line that begins as the next event says brings about what it lists.

    The run waits meanwhile: no later stage, and no further try of this one, has begun.
    """

    def __init__(self, events: Sequence[Event]) -> None:
        super().__init__()
        self.events = list(events)

    def write(self, text: str) -> int:
        if self.events and text.startswith(self.events[0][0]):
            for action in self.events.pop(0)[1:]:
                action()
        return super().write(text)


@dataclass
class Outcome:
    """A run that ended.

    Attributes:
        status, out, err: of the command.
        root: its folder.
        failures: title and reason of each try of a stage that failed, in order.
        pending: events that did not come about.
        facts: what was looked at on the way.
    """

    status: int
    out: str
    err: str
    root: Path
    failures: list[tuple[str, str]]
    pending: list[str]
    facts: dict[str, Any] = field(default_factory=dict)

    def reason(self, title: str, attempt: int = 0) -> str:
        """Why a stage failed; one line that neither is nor has a traceback."""
        line = [reason for name, reason in self.failures if name == title][attempt]
        assert "\n" not in line
        assert "Traceback" not in line
        assert "unexpected failure" not in line
        return line


def arguments(**options: Any) -> list[str]:
    paths = {"--data": DATA} | {name: value for name, value in options.items() if name.startswith("--")}
    params = OPTIONS | {name: value for name, value in options.items() if not name.startswith("--")}
    flags = [f"{name}={value}" for name, value in paths.items()]
    return ["run", *flags, *(f"--param={name}={json.dumps(value)}" for name, value in params.items())]


def run(events: Sequence[Event], runs: Path, retries: int = 0, **options: Any) -> Outcome:
    """`python -m pipelines run`, with events on the way."""
    reasons: list[str] = []
    watch = runner.Terminal._watch
    screen, err = Screen(events), io.StringIO()

    def spy(terminal: runner.Terminal, *parameters: Any) -> int:
        """Has each failure explained, and so the last one told; a person, for whom nothing is retried, has but one."""
        before, terminal.reason = terminal.reason, ""
        code = watch(terminal, *parameters)
        if code:
            reasons.append(terminal.reason.partition(": ")[2])
        terminal.reason = terminal.reason or before
        return code

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner.Terminal, "_watch", spy)
        if retries:
            patch.setattr(runner, "with_retries", functools.partial(runner.with_retries, times=retries))
        with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(err):
            status = main(arguments(**options | {"--runs": runs}))
    out = screen.getvalue()
    titles = [line[2:].rpartition(" (")[0] for line in out.splitlines() if line.startswith("✗")]
    failures = list(zip(titles, reasons, strict=True))
    return Outcome(status, out, err.getvalue(), max(runs.iterdir()), failures, [event[0] for event in screen.events])


def race(gate: str, name: str, *command: str) -> int:
    """One of two runs: it waits for the other where both are judged and neither is registered."""

    def meet() -> None:
        Path(gate, name).touch()
        until(lambda: len(list(Path(gate).iterdir())) == 2)

    screen = Screen([("✓ Decide on promotion", meet)])
    with contextlib.redirect_stdout(screen):
        status = main(list(command))
    print(screen.getvalue())
    return status


def list_registered() -> tuple[dict[str, str], list[str]]:
    """Aliases, and every version there is, half-made ones too, as MLflow itself tells them."""
    assert Store(CONFIG).client
    client = mlflow.MlflowClient()
    aliases = client.get_registered_model(CONFIG.model).aliases
    versions = sorted(str(item.version) for item in client.search_model_versions(f"name='{CONFIG.model}'"))
    return {alias: str(version) for alias, version in aliases.items()}, versions


def restart(service: Service) -> None:
    service.start()
    service.wait()


def weights(root: Path) -> dict[str, torch.Tensor]:
    (path,) = root.glob("*/pretrain-encoder/encoder/encoder.safetensors")
    return load_file(path)


def whole() -> list[int]:
    """Steps of the checkpoints that were stored to the end, newest first."""
    store = Checkpoints(CHECKPOINTS)
    return [step for step in store.steps() if "SHA256SUMS" in s3_module.list_names(store.name(step))]


def until(true: Callable[[], Any], seconds: float = 900) -> Any:
    """What `true` returns, once it is true."""
    end = time.monotonic() + seconds
    while not (result := true()):
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)
    return result


def pretraining_tasks() -> list[psutil.Process]:
    processes = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if {"kfp.dsl.executor_main", "pretrain_encoder"} <= set(process.cmdline()):
                processes.append(process)
    return processes


def kill_the_training() -> None:
    """As soon as a checkpoint is whole; the last one is then still to be made."""
    (training,) = until(pretraining_tasks)
    until(whole)
    training.kill()


@dataclass
class Disk:
    """A file system of its own, as small as wanted, where mounting one is allowed."""

    path: Path
    mounted: bool

    def leave(self, free: int) -> None:
        """Let `free` bytes be left."""
        if self.mounted:
            size = shutil.disk_usage(self.path).used + free
            subprocess.run(["mount", "-o", f"remount,size={size}", str(self.path)], check=True)

    def needed(self) -> None:
        if not self.mounted:
            pytest.skip("mounting a small file system needs root")


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    path = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(path)]
    is_mounted = not subprocess.run(mount, capture_output=True, check=False).returncode
    yield Disk(path, is_mounted)
    if is_mounted:
        subprocess.run(["umount", str(path)], check=True)


@pytest.fixture(scope="module")
def place(whole_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory, the picture set in S3, and nothing but the addresses of the servers to know them by."""
    folder = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("AWS_", "MLFLOW_"))]:
            patch.delenv(name)
        for name, value in (whole_stack.environment | {"OMP_NUM_THREADS": "1"}).items():
            patch.setenv(name, value)
        patch.chdir(folder)
        s3_module.upload(picture_set(folder / "built"), DATA)
        yield folder
        assert not (folder / "mlruns").exists()


@pytest.fixture(scope="module")
def race_outcomes(place: Path) -> tuple[Outcome, Outcome]:
    """Two runs at once, judged against the same champion (none): the one that won, and the one that lost."""
    (place / "gate").mkdir()
    script = "import sys; sys.path[:0] = sys.argv.pop(1).split(':'); import test_faults; "
    script += "sys.exit(test_faults.race(*sys.argv[1:]))"
    paths = ":".join(str(Path(__file__).parents[up]) for up in (2, 0, 1))  # or tests/pipelines would shadow the package
    racers = []
    for name in ("one", "other"):
        command = arguments(**{"--runs": place / name})
        racers.append(
            subprocess.Popen(
                [sys.executable, "-c", script, paths, str(place / "gate"), name, *command],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
    try:
        ends = [(*racer.communicate(timeout=1800), racer.returncode) for racer in racers]
    finally:
        for racer in racers:  # one that waits for the other in vain, and its tasks
            with contextlib.suppress(ProcessLookupError):
                os.killpg(racer.pid, signal.SIGKILL)
            racer.wait()
    roots = [max((place / name).iterdir()) for name in ("one", "other")]
    outcomes = [Outcome(status, out, err, root, [], []) for (out, err, status), root in zip(ends, roots, strict=True)]
    winner, loser = sorted(outcomes, key=lambda outcome: outcome.status)
    winner.facts["registered"] = list_registered()
    return winner, loser


@pytest.fixture(scope="module")
def killed_run(place: Path, disk: Disk, race_outcomes: tuple[Outcome, Outcome]) -> Outcome:
    """Its pretraining finds no room for a checkpoint, is tried again, and is killed."""
    facts: dict[str, Any] = {}
    with ThreadPoolExecutor(1) as pool:

        def kill_soon() -> None:
            facts["kill"] = pool.submit(kill_the_training)

        def look() -> None:
            leftovers = (disk.path.rglob(pattern) for pattern in ("*.safetensors", "*.tmp", "contrique-checkpoint-*"))
            facts["left"] = [path for paths in leftovers for path in paths]
            facts["checkpoints"] = Checkpoints(CHECKPOINTS).steps()

        events: list[Event] = [("✓ Synthesize distortions", kill_soon)]
        if disk.mounted:
            events = [
                ("✓ Synthesize distortions", lambda: disk.leave(40 * MIB)),
                ("✗ Pretrain the encoder", look, lambda: disk.leave(1024 * MIB), kill_soon),
            ]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tempfile, "tempdir", str(disk.path))
            outcome = run(events, disk.path / "runs", len(events) - 1, **{"pretrain.checkpoints": CHECKPOINTS})
        facts["kill"].result()
    history = Checkpoints(CHECKPOINTS).load(whole()[0])[1]["history"]
    outcome.facts = facts | {"registered": list_registered(), "history": history}
    return outcome


@pytest.fixture(scope="module")
def refusal(place: Path, whole_stack: Stack, killed_run: Outcome) -> "subprocess.CompletedProcess[str]":
    """A run as a person starts it, of which the first stage finds no S3."""
    whole_stack.s3.stop(0)
    command = [sys.executable, "-m", "pipelines", *arguments(**{"--runs": place / "refused"})]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def rerun(place: Path, disk: Disk, whole_stack: Stack, refusal: Any) -> Outcome:
    """The rerun of `killed_run`, begun while S3 is still down."""
    s3, database, mlflow_server = whole_stack.s3, whole_stack.database, whole_stack.mlflow
    runs = disk.path / "runs"
    facts: dict[str, Any] = {}
    steps: list[int] = []

    def lose_s3_in_training() -> None:
        until(lambda: Checkpoints(CHECKPOINTS).steps() != steps)
        s3.stop(0)

    with ThreadPoolExecutor(1) as pool:

        def lose_s3_soon() -> None:
            steps.extend(Checkpoints(CHECKPOINTS).steps())
            facts["lost"] = pool.submit(lose_s3_in_training)

        def look_at(name: str) -> Callable[[], None]:
            return lambda: facts.update({name: list_registered()})

        def look_at_shards() -> None:
            facts["left"] = list(max(runs.iterdir()).glob("*/synthesize-distortions/distorted"))

        def lose(service: Service) -> Callable[[], None]:
            return lambda: service.stop(0)

        def mend(service: Service) -> Callable[[], None]:
            return lambda: restart(service)

        events: list[Event] = [
            ("✗ Pin the data", mend(s3)),
            ("✓ Pin the data", lose(s3)),
            ("✗ Fetch and prove the data", mend(s3)),
        ]
        if disk.mounted:
            events += [
                ("✓ Validate the data", lambda: disk.leave(400_000)),
                ("✗ Synthesize distortions", look_at_shards, lambda: disk.leave(1024 * MIB)),
            ]
        events += [
            ("✓ Synthesize distortions", lose(mlflow_server)),
            ("✗ Pretrain the encoder", mend(mlflow_server), lose(s3)),
            ("✗ Pretrain the encoder", mend(s3), lose_s3_soon),
            ("✗ Pretrain the encoder", mend(s3)),
            ("✓ Fit the regressor", lose(s3)),
            ("✗ Evaluate challenger and champion", mend(s3), database.stop, mend(database)),
            ("✓ Decide on promotion", lose(s3)),
            ("✗ Register the champion", mend(s3), look_at("without S3"), lose(mlflow_server)),
            ("✗ Register the champion", mend(mlflow_server), look_at("without MLflow")),
        ]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tempfile, "tempdir", str(disk.path))
            outcome = run(events, runs, retries=9, **{"pretrain.checkpoints": CHECKPOINTS})
        facts["lost"].result()
    outcome.facts = facts | {"registered": list_registered()}
    return outcome


class TestTwoRunsAtOnce:
    def test_one_wins_and_the_other_is_told(self, race_outcomes):
        winner, loser = race_outcomes
        assert (winner.status, winner.err) == (0, "")
        assert loser.status == 2
        champion = winner.facts["registered"][0]["champion"]
        assert loser.err.startswith(
            f"error: Register the champion: version {champion} of 'contrique' is champion, but the gate judged against "
            "no version: another run was faster; run the pipeline again to be judged against it\nThe whole log: "
        )
        assert "Traceback" not in loser.err

    def test_the_registry_has_the_winner_alone(self, race_outcomes):
        aliases, versions = race_outcomes[0].facts["registered"]
        assert aliases.keys() == {"champion"}
        assert versions == [aliases["champion"]]


class TestDiskFull:
    def test_in_a_checkpoint(self, killed_run, disk):
        disk.needed()
        assert (killed_run.status, killed_run.pending) == (2, [])
        reason = killed_run.reason("Pretrain the encoder")
        assert reason.startswith(f"{disk.path}/")
        assert reason.endswith(
            "/checkpoint: no space left (No space left on device (os error 28)); make room or choose another disk, "
            "and run again"
        )
        assert killed_run.facts["left"] == []
        assert killed_run.facts["checkpoints"] == []

    def test_in_the_distorted_set(self, rerun, disk):
        """Nothing is left for the next try, which a cluster starts in a fresh pod."""
        disk.needed()
        reason = rerun.reason("Synthesize distortions")
        assert reason.startswith(f"{rerun.root}/")
        assert reason.endswith(
            ": no space left (No space left on device); make room or choose another disk, and run again"
        )
        assert rerun.facts["left"] == []

    def test_in_the_log_itself(self, disk, capsys, monkeypatch):
        """Where no stage can be told to have failed."""
        disk.needed()
        monkeypatch.chdir("/")
        (disk.path / "ballast").write_bytes(b"x")  # a size of 0 would be no limit
        disk.leave(0)
        try:
            assert main(["run", f"--runs={disk.path / 'full'}", "--data=/nowhere"]) == 2
        finally:
            disk.leave(1024 * MIB)
        output = capsys.readouterr()
        (run,) = (disk.path / "full").iterdir()
        assert output.err == (
            f"error: {run}: no space left (No space left on device); make room or choose another disk, and run again\n"
        )
        assert output.out == ""


class TestATaskKilled:
    def test_the_message_names_the_signal(self, killed_run, disk):
        assert (killed_run.status, killed_run.pending) == (2, [])
        reason = killed_run.reason("Pretrain the encoder", attempt=int(disk.mounted))
        assert reason == "killed by signal 9 (9 usually means that the machine ran out of memory)"
        assert (
            killed_run.err == f"error: Pretrain the encoder: {reason}\nThe whole log: {killed_run.root / 'run.log'}\n"
        )

    def test_the_mlflow_run_is_closed_as_killed(self, killed_run):
        """A cluster says RUNNING of what was ended from outside."""
        client = Store(CONFIG).client
        experiment = client.get_experiment_by_name(CONFIG.experiment).experiment_id
        (record,) = client.search_runs([experiment], f"tags.`{PIPELINE_RUN}` = '{killed_run.root.name}'")
        assert (record.info.status, record.data.tags["pipeline.state"]) == ("KILLED", "RUNNING")

    def test_the_champion_stays(self, race_outcomes, killed_run):
        assert killed_run.facts["registered"] == race_outcomes[0].facts["registered"]

    def test_the_rerun_goes_on_from_its_checkpoint(self, killed_run, rerun):
        """The history, with its timings, is the one that the killed task began."""
        (history,) = rerun.root.glob("*/pretrain-encoder/encoder/history.jsonl")
        steps = [json.loads(line) for line in history.read_text().splitlines()]
        assert [entry["step"] for entry in steps] == [1, 2, 3, 4, 5, 6]
        count = len(killed_run.facts["history"])
        assert 0 < count < 6
        assert steps[:count] == killed_run.facts["history"]

    def test_and_ends_with_the_weights_of_an_uninterrupted_run(self, race_outcomes, rerun):
        expected, actual = weights(race_outcomes[0].root), weights(rerun.root)
        assert actual.keys() == expected.keys()
        assert all(torch.equal(actual[name], expected[name]) for name in expected)


class TestS3Down:
    def test_the_command_says_so_in_one_line(self, refusal):
        assert refusal.returncode == 2
        line, log = refusal.stderr.splitlines()
        assert line.startswith(f"error: Pin the data: {DATA}: Could not connect to the endpoint URL: ")
        assert os.environ["AWS_ENDPOINT_URL"] in line
        assert line.endswith("; check AWS_ENDPOINT_URL and that the server is up")
        assert log.startswith("The whole log: ")

    @pytest.mark.parametrize("title", ["Pin the data", "Fetch and prove the data"])
    def test_when_data_are_read(self, rerun, title):
        reason = rerun.reason(title)
        assert reason.startswith(f"{DATA}: Could not connect to the endpoint URL: ")
        assert os.environ["AWS_ENDPOINT_URL"] in reason
        assert reason.endswith("; check AWS_ENDPOINT_URL and that the server is up")

    def test_when_pretraining_begins(self, rerun):
        reason = rerun.reason("Pretrain the encoder", attempt=1)
        assert reason.startswith(f"MLflow at {os.environ['MLFLOW_TRACKING_URI']}: logging the configuration failed (")
        assert reason.endswith("; check the artifact store behind it and its credentials; its own log says more")

    def test_when_the_last_checkpoint_is_stored(self, rerun):
        reason = rerun.reason("Pretrain the encoder", attempt=2)
        assert reason.startswith(f"{CHECKPOINTS}/step-00000006: ")
        assert os.environ["AWS_ENDPOINT_URL"] in reason
        assert reason.endswith("; check AWS_ENDPOINT_URL and that the server is up")

    def test_when_the_champion_is_fetched(self, rerun):
        reason = rerun.reason("Evaluate challenger and champion")
        assert reason.startswith(f"MLflow at {os.environ['MLFLOW_TRACKING_URI']}: fetching version ")
        assert reason.endswith("; check the artifact store behind it and its credentials; its own log says more")

    def test_at_registration(self, race_outcomes, rerun):
        reason = rerun.reason("Register the champion")
        assert reason.startswith(f"MLflow at {os.environ['MLFLOW_TRACKING_URI']}: logging ")
        assert reason.endswith("; check the artifact store behind it and its credentials; its own log says more")
        assert rerun.facts["without S3"] == race_outcomes[0].facts["registered"]


class TestMLflowDown:
    @pytest.mark.parametrize(("title", "attempt"), [("Pretrain the encoder", 0), ("Register the champion", 1)])
    def test_names_the_address_and_the_remedy(self, rerun, title, attempt):
        reason = rerun.reason(title, attempt)
        assert reason.startswith(f"MLflow at {os.environ['MLFLOW_TRACKING_URI']}: connecting failed (")
        assert reason.endswith("; start the server, or correct or unset MLFLOW_TRACKING_URI")

    def test_no_version_is_left(self, race_outcomes, rerun):
        assert rerun.facts["without MLflow"] == race_outcomes[0].facts["registered"]


class TestAfterEveryFault:
    def test_the_run_succeeds(self, rerun):
        assert (rerun.status, rerun.err, rerun.pending) == (0, "", [])

    def test_nothing_else_failed(self, rerun, disk):
        """PostgreSQL's restart in the middle of the run is noticed by no stage."""
        assert [title for title, _ in rerun.failures] == [
            "Pin the data",
            "Fetch and prove the data",
            *["Synthesize distortions"] * disk.mounted,
            *["Pretrain the encoder"] * 3,
            "Evaluate challenger and champion",
            *["Register the champion"] * 2,
        ]

    def test_one_new_version_and_the_champion_before_it(self, race_outcomes, rerun):
        (before,) = race_outcomes[0].facts["registered"][1]
        aliases, versions = rerun.facts["registered"]
        assert aliases["previous"] == before
        assert versions == sorted([before, aliases["champion"]])
        assert [event.run for event in read_history(Registry(CONFIG))] == [race_outcomes[0].root.name, rerun.root.name]

    def test_the_distorted_set_is_that_of_a_run_without_faults(self, race_outcomes, rerun):
        first, second = (
            next(outcome.root.glob("*/synthesize-distortions/distorted")) for outcome in (race_outcomes[0], rerun)
        )
        assert list_files(first) == list_files(second)
