"""The registered model: base64 images in, scores with their contract out (an MLflow models-from-code script).

`contrique.registry.registration` logs this file with the encoder, the regressor and the package's code, so that
`mlflow models serve -m models:/contrique@champion --env-manager local` needs nothing else but the `bin` of the virtual
environment on PATH (MLflow starts uvicorn by its name). MLflow's loaders put the model's copy of the code first.
"""

import logging
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import yaml
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from contrique.config import ServingLimits
from contrique.integrity import check_model
from contrique.scoring.results import CSV_COLUMNS, flatten
from contrique.scoring.scorer import Scorer
from contrique.serving.request import Turns
from contrique.text import mask_secrets
from contrique.tracking.store import limit_waiting


class QualityModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Scores a DataFrame of images, row by row, one at a time whatever the number of clients."""

    def load_context(self, context: Any) -> None:
        """Prove the model's files by the hashes that were logged with it and by those of the registry, and load them.

        Raises:
            ModelChanged: a file is not the one that was registered.
        """
        encoder, regressor = Path(context.artifacts["encoder"]), Path(context.artifacts["regressor"])
        name, version = _read_registered_name(regressor)
        model = f"version {version} of '{name}'" if version else "the model"
        check_model(encoder, regressor, context.model_config or {}, model, "MLmodel")
        if version and (tags := _read_registry_tags(name, version)) is not None:
            check_model(encoder, regressor, tags, model, "the registry")
        self._scorer = Scorer(encoder, regressor, version)
        self._scorer.use("torch")  # loads it: a damaged encoder fails here and not at the first picture
        self._turns = Turns(ServingLimits())

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Score images.

        Args:
            context: unused, the model is loaded.
            model_input: a column `image` of encoded image files, as base64 strings or bytes; at most
                `ServingLimits.max_images` rows, each of at most `max_bytes` and `max_pixels`.
            params: unused.
        Returns:
            one row per input row, in order: the columns of `scorer.CSV_COLUMNS` less `path`. An image that is bad, too
            large or one too many has an `error` and no `score`; its neighbours are scored.
        Raises:
            MlflowException: no column `image`. The server turns any other exception into an answer with its stack
                trace, so none leaves this method.
        """
        if "image" not in model_input:
            raise MlflowException(
                f"the input needs a column 'image' of base64 strings, has {list(model_input.columns)}",
                INVALID_PARAMETER_VALUE,
            )
        results = [
            self._turns.answer(value, index, self._scorer.judge_pixels)
            for index, value in enumerate(model_input["image"])
        ]
        rows = [flatten(result) for result in results]
        # of objects, so that what is missing is None and not NaN, which is no JSON
        return pd.DataFrame(rows, columns=CSV_COLUMNS, dtype=object).drop(columns="path")


def _read_registered_name(artifact: Path) -> tuple[str, str]:
    """Name and version in the registry, which MLflow writes beside a model that it fetched from there; else empty."""
    note = artifact.parent.parent / "registered_model_meta"
    if not note.is_file():
        return "", ""
    entry = yaml.safe_load(note.read_text())
    return str(entry["model_name"]), str(entry["model_version"])


def _read_registry_tags(name: str, version: str) -> dict[str, str] | None:
    """Tags of a version, None if no registry is named or it does not answer: the model may have been carried away."""
    if not mlflow.tracking.is_tracking_uri_set():
        return None
    limit_waiting()
    try:
        return dict(mlflow.MlflowClient().get_model_version(name, version).tags)
    except MlflowException as error:
        reason = mask_secrets(" ".join(str(error).split()))
        logging.getLogger(__name__).warning(
            "%s, version %s: not compared with the registry (%s)", name, version, reason
        )
        return None


mlflow.models.set_model(QualityModel())
