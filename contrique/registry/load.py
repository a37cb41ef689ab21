"""A model by its name: where the command line, the Python interface and the components get their scorer."""

from pathlib import Path
from typing import TYPE_CHECKING

from contrique.artifacts import ENCODER, FULL_REFERENCE, REGRESSOR
from contrique.config import RegistryConfig

if TYPE_CHECKING:
    from contrique.regressor.full_reference import FullReference
    from contrique.scoring.scorer import Scorer


def load_model(name: str, config: RegistryConfig) -> "Scorer":
    """A model that is ready to score.

    Args:
        name: a folder with `encoder.safetensors` and `regressor/` (MLflow need not be installed), a version of the
            registry, an alias such as `champion` or `previous`, or `bundled`, the model that comes with the package.
            Empty for the champion and, where the registry has none, the bundled model.
        config: names in MLflow.
    Raises:
        RegistryError: there is no such model, or it cannot be fetched.
        BundleError: the bundled model was damaged or exchanged.
        EncoderError, RegressorError, ScorerError: its files are missing or damaged, or do not belong together.
    """
    from contrique.scoring import bundled

    if name == bundled.NAME:
        return bundled.load_bundled()
    if not name:
        from contrique.registry.versions import Registry

        return Registry(config).load_champion() or bundled.load_bundled()
    if _is_model_folder(folder := Path(name)):
        from contrique.scoring.scorer import Scorer

        return Scorer(folder / ENCODER, folder / REGRESSOR, version=str(folder))
    return _load_registered(name, config)


def load_comparer(name: str, config: RegistryConfig) -> "tuple[Scorer, FullReference]":
    """A model with its full-reference head, to compare pictures with their reference.

    Args:
        name: a folder with `encoder.safetensors`, `regressor/` and `full_reference.npz`; empty or `bundled` for the
            bundled model.
        config: names in MLflow.
    Raises:
        RegistryError: the model has no full-reference head.
        ContriqueError: as `load_model`.
    """
    from contrique.regressor.full_reference import FullReference
    from contrique.scoring import bundled

    if name in ("", bundled.NAME):
        return bundled.load_bundled(), bundled.load_full_reference()
    head = Path(name) / FULL_REFERENCE
    if not head.is_file():
        from contrique.tracking.store import RegistryError

        raise RegistryError(f"model '{name}' has no full-reference head ({head} is missing); use --model bundled")
    return load_model(name, config), FullReference.load(head)


def _is_model_folder(folder: Path) -> bool:
    return (folder / ENCODER).is_file()


def _load_registered(name: str, config: RegistryConfig) -> "Scorer":
    from contrique.registry.versions import Registry
    from contrique.tracking.store import RegistryError

    if "/" in name or name in (".", ".."):  # no alias can be called so
        raise RegistryError(f"{name}: no model there; give a folder with {ENCODER} and {REGRESSOR}/, or a version")
    registry = Registry(config)
    if not registry.store.exists:
        raise RegistryError(
            f"model '{name}': no folder with {ENCODER}, and {registry.store.uri} holds no registry with versions; give "
            "such a folder, run the pipeline first, or set MLFLOW_TRACKING_URI"
        )
    return registry.load(name)
