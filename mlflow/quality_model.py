"""The registered model: base64 images in, scores with their contract out (an MLflow models-from-code script).

`contrique.registry.register` logs this file with the encoder, the regressor and the package's code, so that
`mlflow models serve -m models:/contrique@champion --env-manager local` needs nothing else but the virtual environment's
`bin` on PATH (MLflow starts uvicorn by its name). MLflow's loaders put the model's copy of the code before any other.

The folder must never hold an `__init__.py`: it would shadow the installed package `mlflow`.
"""

import base64
import binascii
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import yaml

from contrique.scorer import CSV_COLUMNS, Failure, Score, Scorer, flat


class QualityModel(mlflow.pyfunc.PythonModel):
    """Scores a DataFrame of images, row by row."""

    def load_context(self, context: Any) -> None:
        encoder, regressor = Path(context.artifacts["encoder"]), Path(context.artifacts["regressor"])
        self._scorer = Scorer(encoder, regressor, _version(regressor))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Score images.

        Args:
            context: unused, the model is loaded.
            model_input: a column `image` of encoded image files, as base64 strings or bytes.
            params: unused.
        Returns:
            one row per input row, in order: the columns `score`, `raw`, `low`, `high`, `direction`, `model`, `labels`
            and `error`. A bad image has an `error` and no `score`; its neighbours are scored.
        """
        if "image" not in model_input:
            raise ValueError(f"the input needs a column 'image' of base64 strings, has {list(model_input.columns)}")
        rows = [flat(self._judge(value, f"image {index}")) for index, value in enumerate(model_input["image"])]
        # of objects, so that what is missing is None and not NaN, which is no JSON
        return pd.DataFrame(rows, columns=CSV_COLUMNS, dtype=object).drop(columns="path")

    def _judge(self, value: Any, name: str) -> Score | Failure:
        if isinstance(value, str):
            try:
                value = base64.b64decode("".join(value.split()), validate=True)
            except (binascii.Error, ValueError):
                return Failure(name, f"{name}: not base64; send the image file's bytes in base64")
        if not isinstance(value, bytes | bytearray):
            return Failure(name, f"{name}: neither base64 nor bytes; send the image file's bytes in base64")
        return self._scorer.judge(bytes(value), name)


def _version(artifact: Path) -> str:
    """Version in the registry, which MLflow writes beside a model that it fetched from there; else empty."""
    note = artifact.parent.parent / "registered_model_meta"
    return str(yaml.safe_load(note.read_text())["model_version"]) if note.is_file() else ""


mlflow.models.set_model(QualityModel())
