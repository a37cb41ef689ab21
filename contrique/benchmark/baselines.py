"""BRISQUE features and a support vector regressor: the classical method beside which the encoder is reported.

Mittal, Moorthy, Bovik, *No-Reference Image Quality Assessment in the Spatial Domain*, IEEE TIP 2012. The features are
those of the library `piq`; the regressor is fitted on the same splits as ours (the published one was trained on LIVE,
so that judging it there would be judging it on its training set).
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from contrique.errors import ContriqueError
from contrique.images import Picture
from contrique.regressor.ridge import RegressorError

if TYPE_CHECKING:
    from contrique.regressor.cross_validation import Learner
    from contrique.regressor.ridge import Task


FEATURES: Final = 36
COSTS: Final = (1000.0, 100.0, 10.0, 1.0)  # candidates, weakest penalty first
MAX_ROWS: Final = 4000  # training rows of one fit: the kernel method's time grows with their square
_WINDOW: Final = 7
_SIGMA: Final = 7 / 6


class BaselineError(ContriqueError):
    """A picture for which BRISQUE's statistics do not exist."""


def brisque(picture: Picture) -> NDArray[np.float64]:
    """BRISQUE's 36 natural-scene statistics of one picture, at full and half scale.

    Of the luminance, locally normalised by a 7-tap Gaussian of sigma 7/6: shape and variance of a generalised Gaussian,
    and the four parameters of an asymmetric one for each of four directions of neighbours.

    Args:
        picture: RGB. Shape (H, W, 3), uint8, H and W at least 16.
    Returns:
        shape (36,), float64, not scaled.
    Raises:
        BaselineError: a side under 16 pixels, or a flat picture.
    """
    import torch
    from piq.brisque import _natural_scene_statistics  # the library has no public name for the features alone
    from piq.functional import imresize, rgb2yiq

    height, width = picture.shape[:2]
    if min(height, width) < 16:
        raise BaselineError(f"{width}x{height} is under 16 pixels a side; give a larger picture")
    with torch.inference_mode():
        colour = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].double()
        luminance = torch.round(rgb2yiq(colour)[:, :1])
        half = imresize(luminance, sizes=(height // 2, width // 2))
        try:
            parts = [_natural_scene_statistics(scale, _WINDOW, _SIGMA)[0].numpy() for scale in (luminance, half)]
        except AssertionError as error:
            raise BaselineError(f"the picture is (nearly) flat: {error}; leave it out") from error
    return np.concatenate(parts)


def brisque_features(pictures: Iterable[Picture]) -> NDArray[np.float64]:
    """`brisque` of each picture; they may differ in size. Shape (N, 36)."""
    rows = [brisque(picture) for picture in pictures]
    return np.stack(rows) if rows else np.empty((0, FEATURES))


def svr_learner(costs: Sequence[float] = COSTS, *, max_rows: int = MAX_ROWS, seed: int = 0) -> "Learner":
    """Epsilon-SVR with a radial kernel and each cost as a candidate, for `evaluation.cross_validate` and the like.

    Features and labels are standardised on the training rows; the kernel's width is scikit-learn's `scale`.

    Args:
        costs: C of each candidate, in the order of the candidates.
        max_rows: of larger training parts a random sample of this many rows is used.
        seed: of that sample.
    """

    from contrique.regressor.cross_validation import Learner

    def fit(features: ArrayLike, labels: ArrayLike, tasks: "Sequence[Task]") -> list[NDArray[np.float64]]:
        from sklearn.compose import TransformedTargetRegressor
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import SVR

        x, y = np.asarray(features, np.float64), np.asarray(labels, np.float64)
        if not np.isfinite(x).all():
            raise RegressorError("features hold NaN or infinite values; leave those pictures out")
        generator = np.random.default_rng(seed)
        predictions = []
        for train, held_out in tqdm(tasks, desc="SVR", unit="fit", delay=2, disable=None):
            rows = train if len(train) <= max_rows else np.sort(generator.choice(train, max_rows, replace=False))
            candidates = []
            for cost in costs:
                svr = make_pipeline(StandardScaler(), SVR(C=cost, gamma="scale", epsilon=0.1))
                model = TransformedTargetRegressor(svr, transformer=StandardScaler()).fit(x[rows], y[rows])
                candidates.append(model.predict(x[held_out]))
            predictions.append(np.stack(candidates))
        return predictions

    return Learner(fit, tuple(costs))
