"""Who is champion: moved, rolled back, kept, and the history of it."""

import json
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from contrique.config import RegistryConfig
from contrique.registry.versions import champion_version, complete_version, model_tags, read_aliases, read_json
from contrique.tracking.client import (
    RegistryError,
    connect,
    connect_existing,
    current_time,
    current_user,
    hold_lock,
    store_exists,
    store_uri,
    translate_errors,
)
from contrique.tracking.runs import (
    PIPELINE_RUN,
    current_pipeline_run,
    describe_run,
    experiment_id,
    open_run,
    search_tags,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient


PREVIOUS = "previous"  # alias of the champion before this one
_EVENT = "contrique.event."  # prefix of the tags of the registered model that are its history


class ChampionMoved(RegistryError):
    """Another run became champion after this one was judged."""


@dataclass(frozen=True)
class Registered:
    """A version in the registry; `alias` is empty if it holds none."""

    name: str
    version: str
    alias: str


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


def keep_champion(
    verdict: Path, lineage: Path, *, config: RegistryConfig, run: str = "", page: Path | None = None
) -> Registered | None:
    """Record on the run that its model was held, and why. The registry is not touched.

    Args:
        verdict: JSON of a Verdict.
        lineage: `lineage.json` of the training data.
        config: names.
        run: the pipeline run, as `open_run` takes it; default: the one that this process is a step of.
        page: Markdown file to write, that says where the MLflow run is.
    Returns:
        the champion that stays, None if there is none.
    """
    decision, origin = read_json(verdict), read_json(lineage)
    run = run or current_pipeline_run()
    mlrun = open_run(run, config)
    client = connect(config)
    current = champion_version(client, config)
    mlrun.log_file(verdict, "judgement")
    mlrun.log_file(lineage, "judgement")
    mlrun.set_tags(
        {
            "verdict": "hold",
            "verdict.reason": decision.get("reason", ""),
            "verdict.time": current_time(),
            "verdict.who": current_user(),
            "data.hash": origin.get("hash", ""),
            "champion": current,
        }
    )
    mlrun.close()
    if page:
        page.write_text(describe_run(run, config))
    return Registered(config.model, current, config.alias) if current else None


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
    previous = read_aliases(connect(config), config).get(PREVIOUS) if store_exists(store_uri()) else None
    if not previous:
        raise RegistryError(f"model '{config.model}' has no previous champion to go back to; see `contrique models`")
    return _set_champion(previous, config, "rollback", reason or "by hand")


def read_history(config: RegistryConfig) -> list[Event]:
    """Every promotion, rollback and hold, oldest first; empty if there is no registry yet."""
    if not store_exists(store_uri()):
        return []
    client = connect(config)
    with translate_errors("reading the history"):
        tags = model_tags(client, config)
        held = search_tags(client, experiment_id(client, config), "tags.verdict = 'hold'")
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


def check_champion(current: str, expected: str, config: RegistryConfig) -> None:
    if current != expected:
        now, then = (f"version {v}" if v else "no version" for v in (current, expected))
        raise ChampionMoved(
            f"{now} of '{config.model}' is champion, but the gate judged against {then}: another run was faster; "
            "run the pipeline again to be judged against it"
        )


def _set_champion(version: str, config: RegistryConfig, action: str, reason: str) -> Registered:
    client = connect_existing(config)
    current = champion_version(client, config)
    complete_version(client, config, version)
    if version != current:
        move_alias(client, config, version, current, action, reason)
    return Registered(config.model, version, config.alias)


def move_alias(
    client: "MlflowClient", config: RegistryConfig, version: str, expected: str, action: str, reason: str
) -> None:
    """Compare and set: move the alias to `version` if it is still at `expected`."""
    with translate_errors(f"making version {version} champion"), hold_lock(client, config.model):
        check_champion(champion_version(client, config), expected, config)
        tags = client.get_model_version(config.model, version).tags
        event = {
            "time": current_time(),
            "action": action,
            "version": version,
            "replaced": expected,
            "who": current_user(),
            "reason": reason[:2000],
            "data_hash": tags.get("data.hash", ""),
            "run": tags.get(PIPELINE_RUN, ""),
        }
        if expected:
            client.set_registered_model_alias(config.model, PREVIOUS, expected)
        client.set_registered_model_alias(config.model, config.alias, version)
        client.set_registered_model_tag(config.model, _EVENT + uuid.uuid4().hex, json.dumps(event))
