"""What `import contrique` offers: a model by its name, scores, heat maps and distortions in one line each."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from contrique.scoring.explain import Explanation
from contrique.scoring.model import Model, decode_any, name_of
from contrique.scoring.results import Score

if TYPE_CHECKING:
    from contrique.scoring.model import PictureLike
    from contrique.scoring.scorer import Scorer


def load(
    name: str | Path = "",
    *,
    backend: str = "auto",
    precision: str = "float32",
) -> Model:
    """A model, ready to score.

    Args:
        name: a folder with `encoder.safetensors` and `regressor/` (MLflow need not be installed for it), a version of
            the registry such as `3`, or an alias such as `champion`; empty for the champion. The registry is the one
            that MLFLOW_TRACKING_URI names, or `mlruns` here.
        backend: what runs the encoder: `torch`, `onnx`, `openvino`, or `auto` for the fastest one here that agrees with
            PyTorch. It is measured once a machine; then PyTorch is not imported unless it is the fastest.
        precision: `float32`, or `bfloat16` where the backend has it: faster, and near-equals may change places.
    Raises:
        RegistryError: there is no such model, or it cannot be fetched.
        EncoderError, RegressorError, ScorerError: its files are missing or damaged, or do not belong together.
        BackendError: the backend is not installed, or does not agree with PyTorch.
    """
    scorer = _load_scorer(str(name))
    scorer.use(backend, precision)
    return Model(scorer)


def _load_scorer(name: str) -> "Scorer":
    from contrique.config import RegistryConfig
    from contrique.registry.load import load_model

    return load_model(name, RegistryConfig())


@functools.cache
def _default_model() -> Model:
    return load()


def score(picture: "PictureLike", *, model: Model | None = None) -> Score:
    """Score a picture. Argument, result and errors as `Model.score`.

    Args:
        picture: path, bytes, PIL image or array.
        model: of `load`; by default the champion, which is loaded once a process.
    """
    return (model or _default_model()).score(picture)


def explain(picture: "PictureLike", *, model: Model | None = None) -> Explanation:
    """Where a picture's quality is lost. Arguments as `score`, result and errors as `Model.explain`."""
    return (model or _default_model()).explain(picture)


def distort(picture: "PictureLike", name: str, level: int, seed: int = 0) -> NDArray[np.uint8]:
    """Distort a picture as `contrique distort` does: the same content, name, level and seed give the same pixels.

    Args:
        picture: path, bytes, PIL image or array: RGB, shape (H, W, 3), uint8. The content of a file is its bytes, of
            an image or array its shape and pixels.
        name: one of the 25 of `contrique.distortions.NAMES`, such as `jpeg` or `gaussian_blur`.
        level: 1 (weakest) to 5.
        seed: of those that are random.
    Returns:
        RGB, of the shape of the picture, uint8; the picture itself is not changed.
    Raises:
        BadImage: it cannot be read.
        DistortionError: no such distortion or level.
    """
    from contrique import distortions, images

    data = images.read_bytes(picture) if isinstance(picture, str | Path) else picture
    pixels = decode_any(data, name_of(picture))
    content = data if isinstance(data, bytes) else str(pixels.shape).encode() + pixels.tobytes()
    generator = distortions.generator(images.content_hash(content), name, level, seed)
    return images.as_uint8(distortions.distort(images.as_float(pixels), name, level, generator))
