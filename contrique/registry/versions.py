"""The versions of a model in MLflow's registry."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contrique.artifacts import ENCODER, REGRESSOR
from contrique.config import RegistryConfig
from contrique.tracking.client import (
    STORE_REMEDY,
    RegistryError,
    connect,
    connect_existing,
    find_or_none,
    store_exists,
    store_uri,
    translate_errors,
)
from contrique.tracking.runs import PIPELINE_RUN

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from contrique.scoring.scorer import Scorer


STATE = "contrique.state"  # tag of a version: absent until it answered as it should
COMPLETE = "complete"


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


def load_champion(config: RegistryConfig) -> "Scorer | None":
    """The champion, None if there is none. See `load_model`."""
    if not store_exists(store_uri()):
        return None
    current = champion_version(connect(config), config)
    return load_model(current, config) if current else None


def load_model(version: str, config: RegistryConfig) -> "Scorer":
    """A registered version, ready to score; nothing of it stays on disk.

    Args:
        version: a number, or an alias such as `champion` or `previous`.
        config: names.
    Raises:
        RegistryError: there is no such version, or its files cannot be fetched.
    """
    from contrique.scoring.scorer import Scorer

    with fetch_files(version, config) as (encoder, regressor, number):
        return Scorer(encoder, regressor, version=number)


@contextmanager
def fetch_files(version: str, config: RegistryConfig) -> Iterator[tuple[Path, Path, str]]:
    """The files of a registered version, for as long as the block lasts. Arguments and errors as `load_model`.

    Yields:
        the encoder, the regressor's folder and the version's number.
    """
    client = connect_existing(config)
    number = str(int(version)) if version.isdecimal() else read_aliases(client, config).get(version, "")
    if not number:
        raise RegistryError(f"model '{config.model}' has no version '{version}'; see `contrique models`")
    complete_version(client, config, number)
    from mlflow.artifacts import download_artifacts

    with tempfile.TemporaryDirectory() as fetched:
        with translate_errors(f"fetching version {number}", STORE_REMEDY):
            # the sub-folder alone: fetching a whole model makes MLflow write into a local store
            address = f"models:/{config.model}/{number}/artifacts"
            folder = Path(download_artifacts(artifact_uri=address, dst_path=fetched))
        yield folder / ENCODER, folder / REGRESSOR, number


def list_models(config: RegistryConfig) -> list[ModelInfo]:
    """Every version, newest first; empty if there is no registry yet."""
    if not store_exists(store_uri()):
        return []
    client = connect(config)
    aliases = read_aliases(client, config)
    with translate_errors("listing versions"):
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


def model_tags(client: "MlflowClient", config: RegistryConfig) -> dict[str, str]:
    model = _read_model(client, config)
    return dict(model.tags) if model else {}


def read_aliases(client: "MlflowClient", config: RegistryConfig) -> dict[str, str]:
    model = _read_model(client, config)
    return {alias: str(version) for alias, version in model.aliases.items()} if model else {}


def _read_model(client: "MlflowClient", config: RegistryConfig) -> Any:
    with translate_errors("reading the registry"):
        return find_or_none(client.get_registered_model, config.model)


def champion_version(client: "MlflowClient", config: RegistryConfig) -> str:
    return read_aliases(client, config).get(config.alias, "")


def complete_version(client: "MlflowClient", config: RegistryConfig, version: str) -> "ModelVersion":
    number = version if version.isdecimal() else "0"  # MLflow counts from 1 and refuses what is no number
    with translate_errors("reading the registry"):
        found = find_or_none(client.get_model_version, config.model, number)
    if found is None:
        raise RegistryError(f"model '{config.model}' has no version '{version}'; see `contrique models`")
    if found.tags.get(STATE) != COMPLETE:
        raise RegistryError(f"version {version} of '{config.model}' was never completed; delete it and train again")
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object that an earlier stage wrote.

    Raises:
        RegistryError: missing, or no JSON object.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RegistryError(f"{path}: not a readable JSON file ({error}); run its step again") from error
    if not isinstance(content, dict):
        raise RegistryError(f"{path}: not a JSON object; run its step again")
    return content
