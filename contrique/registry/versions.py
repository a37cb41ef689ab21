"""The versions of a model in MLflow's registry: listed, found, fetched and loaded."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contrique.artifacts import ENCODER, REGRESSOR
from contrique.config import RegistryConfig
from contrique.integrity import check_model
from contrique.tracking.runs import PIPELINE_RUN, Runs
from contrique.tracking.store import STORE_REMEDY, RegistryError, find_or_none

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from contrique.scoring.scorer import Scorer


STATE = "contrique.state"  # tag of a version: absent until it answered as it should
COMPLETE = "complete"
PROVEN, UNPROVEN = "proven", "never proven"


@dataclass(frozen=True)
class ModelInfo:
    """One version, for people. Figures are as the evaluation wrote them, empty where it did not.

    Attributes:
        proof: PROVEN if it has answered as it was judged; UNPROVEN if it came past the pipeline (as by "Promote model"
            of MLflow's page), or its registration broke off.
    """

    version: str
    aliases: tuple[str, ...]
    proof: str
    created: str
    srcc: str
    interval: str
    labels: str
    data_hash: str
    code_revision: str
    run: str


@dataclass(frozen=True)
class FetchedModel:
    """The files of a version on this machine.

    Attributes:
        encoder: `encoder.safetensors`.
        regressor: folder with `ridge.npz` and `regressor.json`.
        version: number in the registry.
    """

    encoder: Path
    regressor: Path
    version: str


class Registry:
    """The registered model that a configuration names. Reading makes no store where there is none.

    Args:
        config: names.

    Attributes:
        config: the same.
        runs: the MLflow runs that its versions come from.
        store: MLflow.
    """

    def __init__(self, config: RegistryConfig) -> None:
        self.config = config
        self.runs = Runs(config)
        self.store = self.runs.store

    def list_versions(self) -> list[ModelInfo]:
        """Every version, newest first; empty if there is no registry yet."""
        if not self.store.exists:
            return []
        aliases = self.read_aliases()
        with self.store.translate_errors("listing versions"):
            versions = self.store.client.search_model_versions(f"name='{self.config.model}'")
        return [
            _describe_version(version, aliases)
            for version in sorted(versions, key=lambda version: -int(version.version))
        ]

    def champion(self) -> str:
        """Number of the version that holds the champion's alias; empty if none does."""
        return self.read_aliases().get(self.config.alias, "")

    def read_aliases(self) -> dict[str, str]:
        """Alias to version; empty if there is no model yet."""
        model = self._read_model()
        return {alias: str(version) for alias, version in model.aliases.items()} if model else {}

    def read_tags(self) -> dict[str, str]:
        """Tags of the registered model; empty if there is none yet."""
        model = self._read_model()
        return dict(model.tags) if model else {}

    def find_version(self, name: str, *, proven: bool = True) -> "ModelVersion":
        """A version, as MLflow describes it.

        Args:
            name: a number, or an alias such as `champion` or `previous`.
            proven: refuse one that has never answered as it was judged. Anybody can move an alias on MLflow's page.
        Raises:
            RegistryError: there is no such version, or it was never proven.
        """
        self.store.require()
        model = self.config.model
        number = str(int(name)) if name.isdecimal() else self.read_aliases().get(name, "")
        if not number and name == self.config.alias:
            raise RegistryError(
                f"model '{model}' has no {name} yet; run the pipeline first, or set MLFLOW_TRACKING_URI"
            )
        with self.store.translate_errors("reading the registry"):
            version = find_or_none(self.store.client.get_model_version, model, number) if int(number or 0) else None
        if version is None:
            raise RegistryError(f"model '{model}' has no version '{name}'; see `contrique models`")
        if proven and not is_proven(version):
            holder = f", which holds '{self.config.alias}'," if self.champion() == number else ""
            raise RegistryError(
                f"version {number} of '{model}'{holder} was never proven: it came past the pipeline, or its "
                f"registration broke off; prove it with `contrique verify {number}`, or name a champion with "
                "`contrique promote`"
            )
        return version

    @contextmanager
    def fetch(self, name: str, expected: Mapping[str, str] | None = None) -> Iterator[FetchedModel]:
        """The files of a version, for as long as the block lasts.

        Args:
            name: a number, or an alias such as `champion` or `previous`.
            expected: hashes of its files, for one that was never proven; by default those in its tags.
        Raises:
            RegistryError: there is no such version, or its files cannot be fetched.
            ModelChanged: the files are not those that were registered.
        """
        version = self.find_version(name, proven=expected is None)
        from mlflow.artifacts import download_artifacts

        with tempfile.TemporaryDirectory() as scratch:
            with self.store.translate_errors(f"fetching version {version.version}", STORE_REMEDY):
                # the sub-folder alone: fetching a whole model makes MLflow write into a local store
                address = f"models:/{self.config.model}/{version.version}/artifacts"
                folder = Path(download_artifacts(artifact_uri=address, dst_path=scratch))
            model = FetchedModel(folder / ENCODER, folder / REGRESSOR, str(version.version))
            name = f"version {model.version} of '{self.config.model}'"
            check_model(model.encoder, model.regressor, expected or version.tags, name, "the registry")
            yield model

    def load(self, name: str) -> "Scorer":
        """A version, ready to score; nothing of it stays on disk. Arguments and errors as `fetch`."""
        from contrique.scoring.scorer import Scorer

        with self.fetch(name) as model:
            return Scorer(model.encoder, model.regressor, version=model.version)

    def load_champion(self) -> "Scorer | None":
        """The champion, ready to score; None if there is none yet. Errors as `fetch`."""
        version = self.champion() if self.store.exists else ""
        return self.load(version) if version else None

    def _read_model(self) -> Any:
        with self.store.translate_errors("reading the registry"):
            return find_or_none(self.store.client.get_registered_model, self.config.model)


def is_proven(version: "ModelVersion") -> bool:
    """Whether a version has answered as it was judged."""
    return bool(version.tags.get(STATE) == COMPLETE)


def _describe_version(version: "ModelVersion", aliases: dict[str, str]) -> ModelInfo:
    tags = version.tags
    return ModelInfo(
        version=str(version.version),
        aliases=tuple(sorted(alias for alias, number in aliases.items() if number == str(version.version))),
        proof=PROVEN if is_proven(version) else UNPROVEN,
        created=datetime.fromtimestamp(version.creation_timestamp / 1000, UTC).isoformat(timespec="seconds"),
        srcc=tags.get("srcc", ""),
        interval=tags.get("srcc.interval", ""),
        labels=tags.get("labels", ""),
        data_hash=tags.get("data.hash", ""),
        code_revision=tags.get("code.revision", ""),
        run=tags.get(PIPELINE_RUN, ""),
    )
