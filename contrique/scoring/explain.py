"""Why a picture scores as it does: where its quality is lost, and which distortion it looks like."""

import base64
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from contrique.encoder.features import STRIDE, interpolate
from contrique.files import write_aside
from contrique.images import Picture, encode_png, fit_within
from contrique.regressor.diagnosis import Floats, Suspect

if TYPE_CHECKING:
    from contrique.scoring.results import Score
    from contrique.scoring.scorer import Scorer


@dataclass(frozen=True)
class Explanation:
    """Where a picture's quality is lost, and what it looks like.

    Attributes:
        score: of the whole picture, with its contract.
        heat: score of each patch on the model's scale, 0 to 100, higher is better. Shape (ceil(H / 32),
            ceil(W / 32)), float32.
        suspects: distortions, likeliest first; None if the model has no head for them.
        picture: what was explained. RGB, shape (H, W, 3), uint8.
    """

    score: "Score"
    heat: Floats
    suspects: list[Suspect] | None
    picture: Picture = field(repr=False, compare=False)

    def save(self, path: Path | str) -> None:
        """Write the heat map over the picture as PNG: red where quality is low, blue where it is high.

        Raises:
            OSError: the file cannot be written.
        """
        with write_aside(Path(path)) as aside:
            aside.write_bytes(encode_png(overlay(self.picture, self.heat)))

    def _repr_html_(self) -> str:
        """For notebooks: the score above the heat map."""
        data = base64.b64encode(encode_png(overlay(self.picture, self.heat, max_side=800))).decode()
        return f'{self.score._repr_html_()}<img alt="heat map" src="data:image/png;base64,{data}">'


def explanation_as_dict(explanation: Explanation) -> dict[str, Any]:
    """An explanation as plain values for JSON; `heat` row by row."""
    suspects = explanation.suspects
    return asdict(explanation.score) | {
        "heat": np.round(explanation.heat, 2).tolist(),
        "suspects": None if suspects is None else [asdict(suspect) for suspect in suspects],
    }


def explain(scorer: "Scorer", picture: Picture, name: str = "image") -> Explanation:
    """Score the patches of a picture, and name the likeliest distortion.

    A cell of conv5 is what the encoder sees of some hundred pixels around it. Normalised as h is, it goes through the
    ridge like the features of a whole picture, at both scales; the mean of the patches is the picture's score.

    Args:
        scorer: the model.
        picture: RGB. Shape (H, W, 3), uint8, H and W at least 64.
        name: what the score calls it.
    Raises:
        ImageTooSmall: a side is under 64 pixels.
    """
    features, local = scorer.local(picture)
    diagnosis = scorer.head.diagnosis
    heat = scorer.head.to_points(local).astype(np.float32)
    suspects = diagnosis.suspects(features) if diagnosis else None
    return Explanation(scorer.contract(name, features), heat, suspects, picture)


def overlay(picture: Picture, heat: Floats, strength: float = 0.6, max_side: int = 2048) -> Picture:
    """The heat map over the picture, red where quality is low, blue where it is high.

    Args:
        picture: RGB. Shape (H, W, 3), uint8.
        heat: scores, 0 to 100. Shape (h, w).
        strength: share of the colour, 0 to 1.
        max_side: a larger picture is drawn smaller.
    Returns:
        RGB, of the shape drawn, uint8.
    """
    import cv2

    reduced = fit_within(picture, max_side)
    step = STRIDE * reduced.shape[0] / picture.shape[0]
    colours = _map_colours(np.clip(interpolate(heat, reduced.shape[:2], step), 0, 100) / 100)
    grey = cv2.cvtColor(reduced, cv2.COLOR_RGB2GRAY)[..., None]
    return np.asarray(np.rint(strength * colours + (1 - strength) * grey), np.uint8)


def _map_colours(values: Floats) -> NDArray[np.float32]:
    """A diverging map that people with red-green blindness can read too (ColorBrewer's RdYlBu). Shape (..., 3)."""
    stops = np.array([[165, 0, 38], [244, 109, 67], [254, 224, 144], [171, 217, 233], [49, 54, 149]], np.float32)
    at = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(values, at, stops[:, c]) for c in range(3)], axis=-1).astype(np.float32)
