"""A model by its name: where the command line, the Python interface and the components get their scorer."""

from pathlib import Path
from typing import TYPE_CHECKING

from contrique.artifacts import ENCODER, REGRESSOR
from contrique.config import RegistryConfig

if TYPE_CHECKING:
    from contrique.scoring.scorer import Scorer


def load_model(name: str, config: RegistryConfig) -> "Scorer":
    """A model that is ready to score.

    Args:
        name: a folder with `encoder.safetensors` and `regressor/` (MLflow need not be installed), a version of the
            registry or an alias such as `champion` or `previous`; empty for the champion.
        config: names in MLflow.
    Raises:
        RegistryError: there is no such model, or it cannot be fetched.
        EncoderError, RegressorError, ScorerError: its files are missing or damaged, or do not belong together.
    """
    if name and _is_model_folder(folder := Path(name)):
        from contrique.scoring.scorer import Scorer

        return Scorer(folder / ENCODER, folder / REGRESSOR, version=str(folder))
    return _load_registered(name or config.alias, config)


def _is_model_folder(folder: Path) -> bool:
    return (folder / ENCODER).is_file()


def _load_registered(name: str, config: RegistryConfig) -> "Scorer":
    from contrique.registry.versions import Registry
    from contrique.tracking.store import RegistryError

    if "/" in name or name in (".", ".."):  # no alias can be called so
        raise RegistryError(f"{name}: no model there; give a folder with {ENCODER} and {REGRESSOR}/, or a version")
    return Registry(config).load(name)
