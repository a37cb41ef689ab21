"""Track, register, promote, roll back. The only importer of mlflow.

One MLflow run belongs to one pipeline run and is found again by its tag, so that every step of a pipeline, each a
process of its own, logs to the same place. A model becomes champion in this order: the version is made, served by
`mlflow models serve` and asked to score pictures whose scores are known; then alias `previous` goes to the old
champion; alias `champion` moves last.

What MLflow guarantees and what is added here. MLflow numbers versions and refuses a second model of one name
atomically, but an alias is simply overwritten: two runs that judged themselves against the same champion could both
win. So whoever moves the alias holds a lock, which is a registered model `<model>.lock` (its name is a unique key in
MLflow's database, on SQLite as on PostgreSQL), and under it compares the champion with the one that the gate judged
against. Limits: a person who sets the alias in MLflow's own pages does not take the lock; a lock whose holder died is
broken after LOCK_SECONDS, so a holder that sleeps longer than that in the middle of a move could overwrite a later
one; alias, tags and history are separate writes, and a crash between them leaves `previous` equal to the champion or
a move missing from the history, never a champion that does not load.
"""

import base64
import dataclasses
import getpass
import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from contrique.config import Config, RegistryConfig
from contrique.errors import ContriqueError

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from contrique.scorer import Scorer

DEFAULT_URI = "sqlite:///mlruns/mlflow.db"
PREVIOUS = "previous"  # alias of the champion before this one
PIPELINE_RUN = "contrique.pipeline_run"  # tag of an MLflow run
STATE = "contrique.state"  # tag of a version: absent until it answered as it should
COMPLETE = "complete"
PROOF = "proof"  # tag of a version: how it was asked, and how near its answers were
LOCK_SECONDS = 60.0
SERVED_TOLERANCE = 0.5  # points of 0-100: the evaluation may have run on other hardware, or in bfloat16
LOADED_TOLERANCE = 0.01  # the same, of what this process computed from the same files
_KNOWN_PICTURES = 4  # of the test part
_STORE = "check the artifact store behind it and its credentials; its own log says more"
_ENCODER, _REGRESSOR = "encoder.safetensors", "regressor"  # names among a version's artifacts
MODEL_CARD = "model_card.md"  # likewise
_REQUIREMENTS = (
    "imagecodecs",
    "numpy",
    "opencv-python-headless",
    "pandas",
    "pillow",
    "safetensors",
    "scipy",
    "torch",
    "torchvision",
    "tqdm",
)  # of scoring alone; MLflow adds itself
_STORES = ("boto3", "botocore", "mlflow", "requests", "sqlalchemy", "urllib3")  # whose exceptions are a store's
_PICKLES = "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"
_EVENT = "contrique.event."  # prefix of the tags of the registered model that are its history


class RegistryError(ContriqueError):
    """MLflow cannot be reached, or refuses; the message names the address or version and the remedy."""


class ChampionMoved(RegistryError):
    """Another run became champion after this one was judged."""


@dataclass(frozen=True)
class Registered:
    """A version in the registry; `alias` is empty if it holds none."""

    name: str
    version: str
    alias: str


@dataclass(frozen=True)
class ModelInfo:
    """One version, for people. Figures are as the evaluation wrote them, empty where it did not."""

    version: str
    aliases: tuple[str, ...]
    created: str
    srcc: str
    interval: str
    labels: str
    data_hash: str
    code_revision: str
    run: str


@dataclass(frozen=True)
class Known:
    """A picture whose score by the model is known before the model is registered.

    Attributes:
        data: a PNG.
        raw: its score on the scale of the training labels.
        tolerance: on that scale.
    """

    data: bytes
    raw: float
    tolerance: float


@dataclass(frozen=True)
class Event:
    """One decision: who, when, what and why.

    Attributes:
        time: UTC, ISO 8601.
        action: `register`, `promote` or `rollback` moved the alias; `hold` left it where it was.
        version: champion afterwards; empty if there was none.
        replaced: champion before; empty if there was none.
        who: user.
        reason: in words.
        data_hash: of the training data of `version`, or of the model that was held.
        run: pipeline run.
    """

    time: str
    action: Literal["register", "promote", "rollback", "hold"]
    version: str
    replaced: str
    who: str
    reason: str
    data_hash: str
    run: str


def tracking(config: RegistryConfig) -> "MlflowClient":
    """Point MLflow at the tracking store and prove that it answers.

    `MLFLOW_TRACKING_URI` wins; without it the store is `mlruns/mlflow.db` under the working directory. Telemetry is
    off. Calls to a server are bounded: 30 seconds and two retries, unless MLflow's own variables say otherwise.

    Args:
        config: names.
    Returns:
        a client of that store, the experiment made if it was missing.
    Raises:
        RegistryError: MLflow is not installed, or the store cannot be reached or read.
    """
    mlflow = _mlflow()
    uri = _uri()
    if database := _database(uri):
        database.parent.mkdir(parents=True, exist_ok=True)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    with _explained("connecting"):
        client: MlflowClient = mlflow.MlflowClient()
        experiment = client.get_experiment_by_name(config.experiment)
        if experiment is None:
            location = str(database.parent / "artifacts") if database else None
            _create_once(client.create_experiment, config.experiment, artifact_location=location)
        elif experiment.lifecycle_stage != "active":
            raise RegistryError(
                f"MLflow at {without_password(uri)}: experiment '{config.experiment}' was deleted; "
                "restore it with `mlflow experiments restore`, or set registry.experiment to another name"
            )
    return client


class Run:
    """The one MLflow run of a pipeline run. Make it with `open_run`.

    Attributes:
        id: of the MLflow run.
    """

    def __init__(self, client: "MlflowClient", run_id: str) -> None:
        self.id = run_id
        self._client = client

    def log_config(self, config: Config) -> None:
        """Log the resolved configuration: as `config.json` and, option by option, as parameters."""
        from mlflow.entities import Param

        values = dataclasses.asdict(config)
        options = {f"{stage}.{name}": value for stage, section in values.items() for name, value in section.items()}
        with _explained("logging the configuration", _STORE):
            self._client.log_dict(self.id, values, "config.json")
        with _explained("logging the configuration"):
            self._client.log_batch(self.id, params=[Param(name, str(value)) for name, value in options.items()])

    def log_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log numbers at a step."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        with _explained("logging metrics"):
            self._client.log_batch(
                self.id, metrics=[Metric(name, float(value), now, step) for name, value in values.items()]
            )

    def track(self, values: dict[str, float], step: int) -> None:
        """`log_metrics` in the form that `pretrain` calls."""
        self.log_metrics(values, step)

    def log_file(self, path: Path, folder: str = "") -> None:
        """Keep a file with the run."""
        with _explained(f"logging {path.name}", _STORE):
            self._client.log_artifact(self.id, str(path), folder or None)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags; values are written as text."""
        from mlflow.entities import RunTag

        with _explained("tagging the run"):
            self._client.log_batch(self.id, tags=[RunTag(name, str(value)[:5000]) for name, value in tags.items()])

    def close(self, status: Literal["FINISHED", "FAILED"] = "FINISHED") -> None:
        """Say that the pipeline run is over. Logging afterwards still works."""
        with _explained("closing the run"):
            self._client.set_terminated(self.id, status)


def open_run(pipeline_run: str, config: RegistryConfig) -> Run:
    """Find the MLflow run of a pipeline run, or make it.

    Args:
        pipeline_run: identifies the pipeline run (KFP's run id).
        config: names.
    Returns:
        the same run for every step that asks with the same name, also for steps that ask at the same time.
    Raises:
        RegistryError: MLflow cannot be reached, or `pipeline_run` is empty.
    """
    if not pipeline_run or "'" in pipeline_run:
        raise RegistryError(f"pipeline run {pipeline_run!r}: needs a name without quotes")
    client = tracking(config)
    with _explained("opening the run"):
        experiment = _experiment(client, config)
        run_id = _find_run(client, experiment, pipeline_run)
        if not run_id:
            with _lock(client, f"{config.experiment}.runs"):
                run_id = _find_run(client, experiment, pipeline_run)
                if not run_id:
                    tags = {PIPELINE_RUN: pipeline_run, "code.revision": code_revision()}
                    run_id = client.create_run(experiment, tags=tags, run_name=pipeline_run).info.run_id
        return Run(client, run_id)


def this_pipeline_run() -> str:
    """The pipeline run that this process is a step of, from `CONTRIQUE_RUN`.

    It is no parameter of a step, because one that changes with each run would defeat the orchestrator's cache.

    Raises:
        RegistryError: the variable is not set.
    """
    if not (run := os.environ.get("CONTRIQUE_RUN")):
        raise RegistryError("CONTRIQUE_RUN is not set; set it to a name of the pipeline run")
    return run


def this_run(config: Config) -> Run:
    """The MLflow run of `this_pipeline_run`, the resolved configuration logged to it."""
    run = open_run(this_pipeline_run(), config.registry)
    run.log_config(config)
    return run


def close_failed(run: str, *, config: RegistryConfig, state: str) -> None:
    """Close the MLflow run of a pipeline run that did not succeed; nothing to do if it did, or opened none.

    Args:
        run: the pipeline run, as given to `open_run`.
        config: names.
        state: how it ended, in KFP's words: SUCCEEDED, FAILED or CANCELLED.
    Raises:
        RegistryError: MLflow cannot be reached.
    """
    if state == "SUCCEEDED" or not _exists(_uri()):
        return
    client = tracking(config)
    with _explained("closing the run"):
        run_id = _find_run(client, _experiment(client, config), run)
    if run_id:
        failed = Run(client, run_id)
        failed.set_tags({"pipeline.state": state})
        failed.close("FAILED")


def run_page(run: str, config: RegistryConfig) -> str:
    """Where a person finds the MLflow run of a pipeline run, in Markdown.

    `CONTRIQUE_MLFLOW_UI` is the address for people, where it differs from the one for programs.

    Raises:
        RegistryError: as `open_run`.
    """
    mlrun = open_run(run, config)
    base = without_password(os.environ.get("CONTRIQUE_MLFLOW_UI") or _uri())
    if not base.startswith("http"):
        return f"MLflow run `{mlrun.id}` in `{base}`: `make ui` shows it.\n"
    with _explained("opening the run"):
        experiment = _experiment(tracking(config), config)
    return f"[MLflow run {mlrun.id}]({base.rstrip('/')}/#/experiments/{experiment}/runs/{mlrun.id})\n"


def _experiment(client: "MlflowClient", config: RegistryConfig) -> str:
    return str(client.get_experiment_by_name(config.experiment).experiment_id)


def _find_run(client: "MlflowClient", experiment: str, pipeline_run: str) -> str:
    found = client.search_runs([experiment], f"tags.`{PIPELINE_RUN}` = '{pipeline_run}'", order_by=["start_time ASC"])
    return found[0].info.run_id if found else ""


def register(
    encoder: Path,
    regressor: Path,
    evaluation: Path,
    verdict: Path,
    lineage: Path,
    *,
    config: RegistryConfig,
    run: str,
    sets: Sequence[Path] = (),
    card: str = "",
    expected_champion: str | None = None,
) -> Registered:
    """Register a model that the gate promoted, and make it champion.

    First every other backend that is installed is compared with PyTorch: tags `backend.NAME.PRECISION` of the version
    say how near it comes, or that it is refused. A model goes on with backends refused: PyTorch scores it.

    The version is logged with signature, input example and tags. Then the real server, `mlflow models serve`, loads it
    from the registry and is asked to score the input example and pictures of the test part: it must answer as the
    evaluation did, to SERVED_TOLERANCE points of 100. Only then does the alias move. If anything fails before, the
    version is deleted and the champion stays. Run again (a retried step), it goes on from what is there: it returns
    the version that won, moves the alias to one that was complete, deletes one that was not.

    Args:
        encoder: `encoder.safetensors`.
        regressor: folder with `ridge.npz` and `regressor.json`.
        evaluation: `evaluation.json`.
        verdict: JSON of a Verdict that says promote.
        lineage: `lineage.json` of the training data.
        config: names.
        run: the pipeline run, as given to `open_run`.
        sets: picture sets that hold the test part. Without them the input example alone is asked for.
        card: the model card, Markdown, kept with the version as MODEL_CARD.
        expected_champion: version that the gate judged against, empty if there was none. None: the
            `champion_version` that the verdict, or else the evaluation, says.
    Returns:
        the version, which holds the alias.
    Raises:
        ChampionMoved: another version became champion in the meantime.
        RegistryError: the verdict does not say promote, MLflow fails, or the logged model, as served, does not score
            as it was judged.
    """
    from contrique.scorer import Scorer

    judged, decision, origin = _read(evaluation), _read(verdict), _read(lineage)
    if decision.get("promote") is not True:
        raise RegistryError(f"{verdict}: does not say promote ({decision.get('reason')}); call keep_champion instead")
    if expected_champion is None:
        expected_champion = _judged_against(judged, decision, verdict)
    client = tracking(config)
    mlrun = open_run(run, config)
    tags = _facts(judged, decision, origin, _read(regressor / "regressor.json")) | {
        PIPELINE_RUN: run,
        "code.revision": code_revision(),
        "model.hash": _hash(encoder, regressor / "ridge.npz", regressor / "regressor.json"),
        "judged_against": expected_champion,
    }
    current = _champion(client, config)
    if current:
        own = _version(client, config, current)
        if own.run_id == mlrun.id and own.tags.get("model.hash") == tags["model.hash"]:  # this step, tried again
            return _registered(mlrun, tags, current, config)
    _compare(current, expected_champion, config)
    for file in (evaluation, verdict, lineage):
        mlrun.log_file(file, "judgement")

    scorer = Scorer(encoder, regressor)
    known = [_known_example(scorer, encoder, regressor), *_known_pictures(evaluation, regressor, sets)]
    version = _left_behind(client, mlrun, config, tags["model.hash"])
    proven = bool(version)
    if not version:
        parity = {f"backend.{name}": agreement for name, agreement in scorer.parity().items()}
        version = _log_version(client, mlrun, encoder, regressor, config, tags | parity, card)
    try:
        if not proven:
            proof = _prove(version, known, config)
            with _explained(f"completing version {version}"):
                client.set_model_version_tag(config.model, version, PROOF, proof)
                client.set_model_version_tag(config.model, version, STATE, COMPLETE)
        _move(client, config, version, expected_champion, "register", str(decision.get("reason", "")))
    except BaseException as error:
        try:
            _withdraw(client, mlrun, config, version)
        except RegistryError as second:  # the first error is the cause; without its tag the version is never used
            error.add_note(str(second))
        raise
    return _registered(mlrun, tags, version, config)


def _registered(mlrun: Run, tags: dict[str, str], version: str, config: RegistryConfig) -> Registered:
    """Close the run of a version that became champion."""
    mlrun.set_tags(tags | {"registered_version": version})
    mlrun.close()
    return Registered(config.model, version, config.alias)


def keep_champion(verdict: Path, lineage: Path, *, config: RegistryConfig, run: str) -> Registered | None:
    """Record on the run that its model was held, and why. The registry is not touched.

    Args:
        verdict: JSON of a Verdict.
        lineage: `lineage.json` of the training data.
        config: names.
        run: the pipeline run, as given to `open_run`.
    Returns:
        the champion that stays, None if there is none.
    """
    decision, origin = _read(verdict), _read(lineage)
    mlrun = open_run(run, config)
    client = tracking(config)
    current = _champion(client, config)
    mlrun.log_file(verdict, "judgement")
    mlrun.log_file(lineage, "judgement")
    mlrun.set_tags(
        {
            "verdict": "hold",
            "verdict.reason": decision.get("reason", ""),
            "verdict.time": _now(),
            "verdict.who": _who(),
            "data.hash": origin.get("hash", ""),
            "champion": current,
        }
    )
    mlrun.close()
    return Registered(config.model, current, config.alias) if current else None


def load_champion(config: RegistryConfig) -> "Scorer | None":
    """The champion, None if there is none. See `load_model`."""
    if not _exists(_uri()):
        return None
    current = _champion(tracking(config), config)
    return load_model(current, config) if current else None


def load_model(version: str, config: RegistryConfig) -> "Scorer":
    """A registered version, ready to score; nothing of it stays on disk.

    Args:
        version: a number, or an alias such as `champion` or `previous`.
        config: names.
    Raises:
        RegistryError: there is no such version, or its files cannot be fetched.
    """
    from contrique.scorer import Scorer

    with model_files(version, config) as (encoder, regressor, number):
        return Scorer(encoder, regressor, version=number)


@contextmanager
def model_files(version: str, config: RegistryConfig) -> Iterator[tuple[Path, Path, str]]:
    """The files of a registered version, for as long as the block lasts. Arguments and errors as `load_model`.

    Yields:
        the encoder, the regressor's folder and the version's number.
    """
    client = _made_before(config)
    number = str(int(version)) if version.isdecimal() else _aliases(client, config).get(version, "")
    if not number:
        raise RegistryError(f"model '{config.model}' has no version '{version}'; see `contrique models`")
    _version(client, config, number)
    from mlflow.artifacts import download_artifacts

    with tempfile.TemporaryDirectory() as fetched:
        with _explained(f"fetching version {number}", _STORE):
            # the sub-folder alone: fetching a whole model makes MLflow write into a local store
            address = f"models:/{config.model}/{number}/artifacts"
            folder = Path(download_artifacts(artifact_uri=address, dst_path=fetched))
        yield folder / _ENCODER, folder / _REGRESSOR, number


def promote(version: str, config: RegistryConfig, reason: str = "") -> Registered:
    """Make a version champion by hand. The one before stays reachable as alias `previous`.

    Args:
        version: a number.
        config: names.
        reason: for the history.
    Raises:
        RegistryError: there is no such version, or it was never complete.
        ChampionMoved: another version became champion meanwhile.
    """
    return _set_champion(version, config, "promote", reason or "by hand")


def rollback(config: RegistryConfig, reason: str = "") -> Registered:
    """Give the alias back to the champion before this one; twice gives it back again.

    Raises:
        RegistryError: there is no previous champion.
    """
    previous = _aliases(tracking(config), config).get(PREVIOUS) if _exists(_uri()) else None
    if not previous:
        raise RegistryError(f"model '{config.model}' has no previous champion to go back to; see `contrique models`")
    return _set_champion(previous, config, "rollback", reason or "by hand")


def models(config: RegistryConfig) -> list[ModelInfo]:
    """Every version, newest first; empty if there is no registry yet."""
    if not _exists(_uri()):
        return []
    client = tracking(config)
    aliases = _aliases(client, config)
    with _explained("listing versions"):
        found = client.search_model_versions(f"name='{config.model}'")
    return [
        ModelInfo(
            version=str(item.version),
            aliases=tuple(sorted(alias for alias, version in aliases.items() if version == str(item.version))),
            created=datetime.fromtimestamp(item.creation_timestamp / 1000, UTC).isoformat(timespec="seconds"),
            srcc=item.tags.get("srcc", ""),
            interval=item.tags.get("srcc.interval", ""),
            labels=item.tags.get("labels", ""),
            data_hash=item.tags.get("data.hash", ""),
            code_revision=item.tags.get("code.revision", ""),
            run=item.tags.get(PIPELINE_RUN, ""),
        )
        for item in sorted(found, key=lambda item: -int(item.version))
        if item.tags.get(STATE) == COMPLETE
    ]


def history(config: RegistryConfig) -> list[Event]:
    """Every promotion, rollback and hold, oldest first; empty if there is no registry yet."""
    if not _exists(_uri()):
        return []
    client = tracking(config)
    with _explained("reading the history"):
        tags = _model_tags(client, config)
        held = _all_runs(client, _experiment(client, config), "tags.verdict = 'hold'")
    events = [Event(**json.loads(value)) for key, value in tags.items() if key.startswith(_EVENT)]
    events += [
        Event(
            time=item["verdict.time"],
            action="hold",
            version=item.get("champion", ""),
            replaced=item.get("champion", ""),
            who=item.get("verdict.who", ""),
            reason=item.get("verdict.reason", ""),
            data_hash=item.get("data.hash", ""),
            run=item.get(PIPELINE_RUN, ""),
        )
        for item in held
    ]
    return sorted(events, key=lambda event: event.time)


def code_revision() -> str:
    """Git commit of the code, `+` appended if files differ from it; `CONTRIQUE_REVISION` wins; else `unknown`."""
    if named := os.environ.get("CONTRIQUE_REVISION"):
        return named
    root = Path(__file__).parent
    try:
        commit = _git("rev-parse", "HEAD", cwd=root)
        return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no", cwd=root) else "")
    except (OSError, subprocess.SubprocessError):  # no git, or not a clone: a container image
        return "unknown"


def _git(*arguments: str, cwd: Path) -> str:
    done = subprocess.run(["git", *arguments], cwd=cwd, capture_output=True, text=True, check=True, timeout=30)
    return done.stdout.strip()


def _mlflow() -> Any:
    quiet = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    }
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    import mlflow

    if not hasattr(mlflow, "MlflowClient"):  # the folder mlflow/ of this project, found as an empty namespace
        raise RegistryError("MLflow is not installed; run: pip install -e '.[platform]'")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    return mlflow


def _uri() -> str:
    """The tracking store; a SQLite file by its absolute path, for MLflow remembers stores by their address."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    database = _database(uri)
    return f"sqlite:///{database}{uri[uri.index('?') :] if '?' in uri else ''}" if database else uri


def without_password(text: str) -> str:
    """Text for logs and pages: the password of every address in it, `scheme://user:password@host`, becomes `***`."""
    return re.sub(r"(://[^/\s:@]*:)[^@\s]*@", r"\1***@", text)


def _database(uri: str) -> Path | None:
    """The file of a SQLite store."""
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]).absolute() if uri.startswith("sqlite:///") else None


def _exists(uri: str) -> bool:
    """Whether asking is worth it: a SQLite file that is not there would only be made, empty."""
    database = _database(uri)
    return database is None or database.is_file()


def _made_before(config: RegistryConfig) -> "MlflowClient":
    """A client of a store that must be there already."""
    if not _exists(_uri()):
        raise RegistryError(f"{_uri()}: no registry there; run the pipeline first, or set MLFLOW_TRACKING_URI")
    return tracking(config)


@contextmanager
def _explained(doing: str, remedy: str = "start the server, or correct or unset MLFLOW_TRACKING_URI") -> Iterator[None]:
    """Turn the failures of MLflow and its stores into one line that names the address and what was tried."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in _STORES and not isinstance(error, OSError):
            raise
        address = without_password(_uri())
        raise RegistryError(f"MLflow at {address}: {doing} failed ({_line(error)}); {remedy}") from error


def _line(error: BaseException) -> str:
    text = without_password(" ".join(str(error).split()))
    return text if len(text) <= 300 else text[:300] + " ..."


def _create_once(create: Any, name: str, **arguments: Any) -> bool:
    """Create something that has a unique name; False if it is there already."""
    from mlflow.exceptions import MlflowException

    try:
        create(name, **arguments)
    except MlflowException as error:
        # MLflow looks up what is there already, which may be gone again by then
        if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"):
            raise
        return False
    return True


@contextmanager
def _lock(client: "MlflowClient", name: str) -> Iterator[None]:
    """Hold `<name>.lock` in the tracking store; see the module's docstring for what it is and its limits."""
    lock = f"{name}.lock"
    seen, since = 0, time.monotonic()
    while not _create_once(client.create_registered_model, lock, description=f"held by {_who()}, since {_now()}"):
        holder = _lock_time(client, lock)
        if holder != seen:
            seen, since = holder, time.monotonic()
        elif time.monotonic() - since > LOCK_SECONDS:
            print(f"breaking {lock}: its holder is gone", file=sys.stderr)
            _found(client.delete_registered_model, lock)  # it may be gone by now: others wait, too
        time.sleep(0.1)
    mine = _lock_time(client, lock)
    try:
        yield
    finally:
        if mine and _lock_time(client, lock) == mine:  # else it was broken, and another may hold it
            _found(client.delete_registered_model, lock)


def _lock_time(client: "MlflowClient", lock: str) -> int:
    """When a lock was taken, in milliseconds; 0 if nobody holds it."""
    model = _found(client.get_registered_model, lock)
    return model.creation_timestamp if model else 0


def _found(get: Any, *arguments: Any) -> Any:
    """What `get` gives, None if there is no such thing."""
    from mlflow.exceptions import MlflowException

    try:
        return get(*arguments)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _model_tags(client: "MlflowClient", config: RegistryConfig) -> dict[str, str]:
    model = _model(client, config)
    return dict(model.tags) if model else {}


def _aliases(client: "MlflowClient", config: RegistryConfig) -> dict[str, str]:
    model = _model(client, config)
    return {alias: str(version) for alias, version in model.aliases.items()} if model else {}


def _model(client: "MlflowClient", config: RegistryConfig) -> Any:
    with _explained("reading the registry"):
        return _found(client.get_registered_model, config.model)


def _champion(client: "MlflowClient", config: RegistryConfig) -> str:
    return _aliases(client, config).get(config.alias, "")


def _version(client: "MlflowClient", config: RegistryConfig, version: str) -> "ModelVersion":
    number = version if version.isdecimal() else "0"  # MLflow counts from 1 and refuses what is no number
    with _explained("reading the registry"):
        found = _found(client.get_model_version, config.model, number)
    if found is None:
        raise RegistryError(f"model '{config.model}' has no version '{version}'; see `contrique models`")
    if found.tags.get(STATE) != COMPLETE:
        raise RegistryError(f"version {version} of '{config.model}' was never completed; delete it and train again")
    return found


def _compare(current: str, expected: str, config: RegistryConfig) -> None:
    if current != expected:
        now, then = (f"version {v}" if v else "no version" for v in (current, expected))
        raise ChampionMoved(
            f"{now} of '{config.model}' is champion, but the gate judged against {then}: another run was faster; "
            "run the pipeline again to be judged against it"
        )


def _set_champion(version: str, config: RegistryConfig, action: str, reason: str) -> Registered:
    client = _made_before(config)
    current = _champion(client, config)
    _version(client, config, version)
    if version != current:
        _move(client, config, version, current, action, reason)
    return Registered(config.model, version, config.alias)


def _move(
    client: "MlflowClient", config: RegistryConfig, version: str, expected: str, action: str, reason: str
) -> None:
    """Compare and set: move the alias to `version` if it is still at `expected`."""
    with _explained(f"making version {version} champion"), _lock(client, config.model):
        _compare(_champion(client, config), expected, config)
        tags = client.get_model_version(config.model, version).tags
        event = {
            "time": _now(),
            "action": action,
            "version": version,
            "replaced": expected,
            "who": _who(),
            "reason": reason[:2000],
            "data_hash": tags.get("data.hash", ""),
            "run": tags.get(PIPELINE_RUN, ""),
        }
        if expected:
            client.set_registered_model_alias(config.model, PREVIOUS, expected)
        client.set_registered_model_alias(config.model, config.alias, version)
        client.set_registered_model_tag(config.model, _EVENT + uuid.uuid4().hex, json.dumps(event))


def _log_version(
    client: "MlflowClient",
    mlrun: Run,
    encoder: Path,
    regressor: Path,
    config: RegistryConfig,
    tags: dict[str, str],
    card: str,
) -> str:
    """Log the model to the run and make a version of it, without alias and not yet complete."""
    import mlflow

    import contrique
    from contrique.scorer import CSV_COLUMNS, TEXT_COLUMNS

    package = Path(contrique.__file__).parent
    script = package.parent / "mlflow" / "quality_model.py"
    if not script.is_file():
        raise RegistryError(f"{script}: the model's script is missing; install the project from its source tree")
    outputs = [
        mlflow.types.ColSpec("string" if name in TEXT_COLUMNS else "double", name, required=False)
        for name in CSV_COLUMNS
        if name != "path"
    ]
    signature = mlflow.models.ModelSignature(
        inputs=mlflow.types.Schema([mlflow.types.ColSpec("string", "image")]), outputs=mlflow.types.Schema(outputs)
    )
    with tempfile.TemporaryDirectory() as staging, _explained("logging the model", _STORE):
        parts = {"encoder": Path(staging) / _ENCODER, "regressor": Path(staging) / _REGRESSOR}
        shutil.copyfile(encoder, parts["encoder"])
        shutil.copytree(regressor, parts["regressor"])
        if card:
            parts["card"] = Path(staging) / MODEL_CARD
            parts["card"].write_text(card, encoding="utf-8")
        with mlflow.start_run(run_id=mlrun.id):
            logged = mlflow.pyfunc.log_model(
                name="quality_model",
                python_model=str(script),
                artifacts={name: str(path) for name, path in parts.items()},
                code_paths=[str(package)],
                signature=signature,
                input_example=example(),
                pip_requirements=[f"{name}=={metadata.version(name)}" for name in _REQUIREMENTS],
            )
        _create_once(client.create_registered_model, config.model)
        made = client.create_model_version(
            config.model,
            logged.model_uri,
            mlrun.id,
            tags=tags,
            description=tags["verdict.reason"],
            model_id=logged.model_id,
        )
    return str(made.version)


def example() -> "pd.DataFrame":
    """The input example: one small picture in base64, the same every time. Shape (1, 1), column `image`."""
    import numpy as np
    import pandas as pd

    from contrique.images import encode_png

    y, x = np.mgrid[0:96, 0:128]
    picture = np.stack([x * 2, y * 2, (x * y) // 64 % 256], axis=-1).astype(np.uint8)
    return pd.DataFrame({"image": [base64.b64encode(encode_png(picture)).decode()]})


def _known_example(scorer: "Scorer", encoder: Path, regressor: Path) -> Known:
    """The input example, scored by the given files before anything of them is logged."""
    from contrique.scorer import Failure

    data = base64.b64decode(example()["image"][0])
    result = scorer.judge(data, "the input example")
    if isinstance(result, Failure):
        raise RegistryError(f"{encoder}: the model cannot score a picture ({result.error}); train it again")
    return Known(data, result.raw, LOADED_TOLERANCE * _point(regressor))


def _known_pictures(evaluation: Path, regressor: Path, sets: Sequence[Path]) -> list[Known]:
    """Pictures of the test part, from worst to best, with the scores that the evaluation wrote down."""
    if not sets:
        return []
    import numpy as np
    import pandas as pd

    from contrique.dataset import picture, read_manifest
    from contrique.evaluation import TEST_SCORES
    from contrique.images import encode_png

    scores = pd.read_parquet(evaluation.with_name(TEST_SCORES)).sort_values(["challenger", "image"])
    places = np.linspace(0, len(scores) - 1, min(_KNOWN_PICTURES, len(scores))).astype(int)
    found = {
        (row.image, row.reference, row.distortion): (folder, row)
        for folder in sets
        for row in read_manifest(folder).itertuples()
    }
    known = []
    for row in scores.iloc[places].itertuples():
        place = found.get((row.image, row.reference, row.distortion))
        if place is None:
            raise RegistryError(f"{row.image}: judged by {evaluation}, but in none of the picture sets; give its set")
        known.append(Known(encode_png(picture(*place)), float(row.challenger), SERVED_TOLERANCE * _point(regressor)))
    return known


def _point(regressor: Path) -> float:
    """One point of the 0-100 scale, on the scale of the training labels."""
    fitted = _read(regressor / "regressor.json")
    return float(fitted["label_high"] - fitted["label_low"]) / 100


def _prove(version: str, known: Sequence[Known], config: RegistryConfig) -> str:
    """Have a version score pictures, pickles forbidden, and compare with their known scores; says how near it came."""
    from contrique import serving

    model, images = f"models:/{config.model}/{version}", [item.data for item in known]
    if config.serve_seconds > 0:
        how, answers = "served by MLflow", serving.ask(model, images, store=_uri(), seconds=config.serve_seconds)
    else:
        how, answers = "loaded back", _ask_loaded(model, images)
    for number, (answer, item) in enumerate(zip(answers, known, strict=True)):
        right = not answer["error"] and abs(answer["raw"] - item.raw) <= item.tolerance
        if not right or answer["model"] != version:
            what = f"known picture {number} of {len(known) - 1}" if number else "the input example"
            raise RegistryError(
                f"version {version} of '{config.model}', {how}, scores {what} {answer['raw']} "
                f"({answer['error'] or 'no error'}, version {answer['model']}) and not {item.raw} "
                f"within {item.tolerance:.2g}; it was deleted, check the artifact store and run the pipeline again"
            )
    furthest = max(abs(answer["raw"] - item.raw) for answer, item in zip(answers, known, strict=True))
    return f"{how}: {len(known)} pictures within {furthest:.2g} of their known raw scores"


def _ask_loaded(model: str, images: Sequence[bytes]) -> list[dict[str, Any]]:
    """Answers of a version that this process loads from the registry."""
    import mlflow
    import pandas as pd

    path, pickles = sys.path.copy(), os.environ.get(_PICKLES)
    os.environ[_PICKLES] = "false"
    try:
        with _explained(f"loading {model} back", _STORE):
            answers = mlflow.pyfunc.load_model(model).predict(pd.DataFrame({"image": images}))
    finally:
        sys.path[:] = path  # MLflow puts the model's copy of the code in front
        if pickles is None:
            del os.environ[_PICKLES]
        else:
            os.environ[_PICKLES] = pickles
    return [dict(row) for row in answers.to_dict("records")]


def _left_behind(client: "MlflowClient", mlrun: Run, config: RegistryConfig, model_hash: str) -> str:
    """The version of this model that an earlier try of this run completed; those that it did not are deleted."""
    complete = ""
    with _explained("reading the registry"):
        for item in client.search_model_versions(f"name='{config.model}' and run_id='{mlrun.id}'"):
            if item.tags.get(STATE) != COMPLETE:
                client.delete_model_version(config.model, item.version)
            elif item.tags.get("model.hash") == model_hash:
                complete = str(item.version)
    return complete


def _withdraw(client: "MlflowClient", mlrun: Run, config: RegistryConfig, version: str) -> None:
    """Delete a version that did not become champion."""
    if _champion(client, config) != version:
        with _explained(f"deleting version {version}"):
            client.delete_model_version(config.model, version)
        mlrun.set_tags({"verdict": "promote", "registration": f"failed, version {version} deleted"})


def _facts(
    judged: dict[str, Any], decision: dict[str, Any], origin: dict[str, Any], fitted: dict[str, Any]
) -> dict[str, str]:
    """What the tags of a version say of how it came to be, as text; SRCC is that of the test part."""
    srcc = judged["challenger"]["metrics"]["srcc"]
    return {
        "verdict": "promote",
        "verdict.reason": decision["reason"],
        "verdict.json": json.dumps(decision),
        "data.hash": origin["hash"],
        "data.revision": origin["revision"],
        "labels": fitted["labels"],
        "srcc": f"{srcc['value']:.4f}",
        "srcc.interval": f"{srcc['low']:.4f} to {srcc['high']:.4f}",
        "srcc.n": str(srcc["n"]),
    }


def _judged_against(judged: dict[str, Any], decision: dict[str, Any], verdict: Path) -> str:
    for said in (decision, judged):
        if "champion_version" in said:
            return str(said["champion_version"] or "")
    raise RegistryError(f"{verdict}: has no champion_version; pass expected_champion, empty if there was none")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RegistryError(f"{path}: not a readable JSON file ({error}); run its step again") from error
    if not isinstance(content, dict):
        raise RegistryError(f"{path}: not a JSON object; run its step again")
    return content


def _hash(*files: Path) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"uid {os.getuid()}"


def _all_runs(client: "MlflowClient", experiment: str, query: str) -> list[dict[str, str]]:
    """Tags of every run that fits, page by page."""
    found, token = [], None
    while True:
        page = client.search_runs([experiment], query, max_results=1000, page_token=token)
        found += [dict(run.data.tags) for run in page]
        if not (token := page.token):
            return found
