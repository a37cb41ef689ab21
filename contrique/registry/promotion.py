"""Who is champion: moved, rolled back, kept, and the history of it."""

import json
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from contrique.config import RegistryConfig
from contrique.registry.candidate import read_json
from contrique.registry.versions import Registry
from contrique.text import escape_control, escape_markdown
from contrique.tracking.runs import DESCRIPTION_TAG, PIPELINE_RUN, current_pipeline_run
from contrique.tracking.store import RegistryError, current_time, current_user

PREVIOUS = "previous"  # alias of the champion before this one
_EVENT = "contrique.event."  # prefix of the tags of the registered model that are its history
_REASON_CHARS = 2000  # kept of a reason: MLflow's tags have a limit


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
    """One decision: who, when, what and why. Control characters in its texts are escaped.

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
        run: the pipeline run, as `Runs.open` takes it; default: the one that this process is a step of.
        page: Markdown file to write, that says where the MLflow run is.
    Returns:
        the champion that stays, None if there is none.
    """
    decision, origin = read_json(verdict), read_json(lineage)
    run = run or current_pipeline_run()
    registry = Registry(config)
    mlrun = registry.runs.open(run)
    champion = registry.champion()
    mlrun.log_file(verdict, "judgement")
    mlrun.log_file(lineage, "judgement")
    mlrun.log_dataset(origin, "training")
    mlrun.log_dataset(origin, "evaluation")
    mlrun.log_metrics(_list_figures(decision.get("numbers", {})), dataset=origin)
    mlrun.set_tags(
        {
            DESCRIPTION_TAG: escape_markdown(decision.get("reason", "")),
            "verdict": "hold",
            "verdict.reason": decision.get("reason", ""),
            "verdict.time": current_time(),
            "verdict.who": current_user(),
            "data.hash": origin.get("hash", ""),
            "champion": champion,
        }
    )
    mlrun.close()
    if page:
        page.write_text(registry.runs.describe(run))
    return Registered(config.model, champion, config.alias) if champion else None


def _list_figures(numbers: dict[str, Any]) -> dict[str, float]:
    """Those of a verdict that are defined, by the names under which the registry logs them."""
    names = {
        "challenger_srcc": "test.srcc",
        "champion_srcc": "champion.srcc",
        "difference": "difference",
        "difference_low": "difference.low",
        "difference_high": "difference.high",
    }
    return {name: numbers[key] for key, name in names.items() if numbers.get(key) is not None}


def promote(registry: Registry, version: str, reason: str = "") -> Registered:
    """Make a version champion by hand. The one before stays reachable as alias `previous`.

    Args:
        registry: of the model.
        version: a number, or an alias.
        reason: for the history.
    Raises:
        RegistryError: there is no such version, or it was never complete.
        ChampionMoved: another version became champion meanwhile.
    """
    return _set_champion(registry, version, "promote", reason or "by hand")


def rollback(registry: Registry, reason: str = "") -> Registered:
    """Give the alias back to the champion before this one; twice gives it back again.

    Raises:
        RegistryError: there is no previous champion.
    """
    previous = registry.read_aliases().get(PREVIOUS) if registry.store.exists else None
    if not previous:
        model = registry.config.model
        raise RegistryError(f"model '{model}' has no previous champion to go back to; see `contrique models`")
    return _set_champion(registry, previous, "rollback", reason or "by hand")


def read_history(registry: Registry) -> list[Event]:
    """Every promotion, rollback and hold, oldest first; empty if there is no registry yet."""
    if not registry.store.exists:
        return []
    moves = [json.loads(value) for key, value in registry.read_tags().items() if key.startswith(_EVENT)]
    holds = [
        {
            "time": tags["verdict.time"],
            "action": "hold",
            "version": tags.get("champion", ""),
            "replaced": tags.get("champion", ""),
            "who": tags.get("verdict.who", ""),
            "reason": tags.get("verdict.reason", ""),
            "data_hash": tags.get("data.hash", ""),
            "run": tags.get(PIPELINE_RUN, ""),
        }
        for tags in registry.runs.search_tags("tags.verdict = 'hold'")
    ]
    return sorted((_as_event(entry) for entry in moves + holds), key=lambda event: event.time)


def find_unrecorded(registry: Registry) -> str:
    """The champion, if it became one past `register`, `promote` and `rollback`, as on MLflow's page; else empty."""
    champion = registry.champion() if registry.store.exists else ""
    moves = [event.version for event in read_history(registry) if event.action != "hold"]
    return champion if champion and moves[-1:] != [champion] else ""


def _as_event(entry: dict[str, Any]) -> Event:
    return Event(**{name: escape_control(str(text)) for name, text in entry.items()})  # type: ignore[arg-type]


def check_champion(registry: Registry, expected: str) -> None:
    """Raise ChampionMoved if another version than `expected` is champion; empty stands for none."""
    champion = registry.champion()
    if champion != expected:
        now, then = (f"version {version}" if version else "no version" for version in (champion, expected))
        raise ChampionMoved(
            f"{now} of '{registry.config.model}' is champion, but the gate judged against {then}: another run was "
            "faster; run the pipeline again to be judged against it"
        )


def _set_champion(registry: Registry, name: str, action: str, reason: str) -> Registered:
    registry.store.require()
    champion = registry.champion()
    version = str(registry.find_version(name).version)
    if version != champion:
        move_alias(registry, version, champion, action, reason)
    return Registered(registry.config.model, version, registry.config.alias)


def move_alias(registry: Registry, version: str, expected: str, action: str, reason: str) -> None:
    """Compare and set: move the champion's alias to `version` if it is still at `expected`.

    Raises:
        ChampionMoved: it is not.
    """
    client, model, alias = registry.store.client, registry.config.model, registry.config.alias
    with registry.store.translate_errors(f"making version {version} champion"), registry.store.hold_lock(model):
        check_champion(registry, expected)
        tags = client.get_model_version(model, version).tags
        event = {
            "time": current_time(),
            "action": action,
            "version": version,
            "replaced": expected,
            "who": current_user(),
            "reason": escape_control(reason)[:_REASON_CHARS],
            "data_hash": tags.get("data.hash", ""),
            "run": tags.get(PIPELINE_RUN, ""),
        }
        if expected:
            client.set_registered_model_alias(model, PREVIOUS, expected)
        client.set_registered_model_alias(model, alias, version)
        client.set_registered_model_tag(model, _EVENT + uuid.uuid4().hex, json.dumps(event))
