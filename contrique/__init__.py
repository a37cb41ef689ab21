"""CONTRIQUE: no-reference image quality from contrastive learning (Madhusudana et al., IEEE TIP 2022).

    import contrique

    model = contrique.load()  # the champion; or a folder, a version, an alias
    score = model.score("photo.jpg")
    score.value, score.interval, score.warning, score.model
    model.explain("photo.jpg").save("heat.png")
    contrique.distort(array, "jpeg", level=3, seed=0)

Everything is imported when it is first used; the reports of libraries are forbidden at once (`telemetry`).
"""

import importlib
from typing import TYPE_CHECKING, Any

from contrique.telemetry import disable_telemetry

if TYPE_CHECKING:
    from contrique.api import distort as distort
    from contrique.api import explain as explain
    from contrique.api import load as load
    from contrique.api import score as score
    from contrique.scoring.explain import Explanation as Explanation
    from contrique.scoring.model import Model as Model
    from contrique.scoring.results import Failure as Failure
    from contrique.scoring.results import Score as Score

__version__ = "0.1.0"
_PLACES = {
    "distort": "contrique.api",
    "explain": "contrique.api",
    "load": "contrique.api",
    "score": "contrique.api",
    "Explanation": "contrique.scoring.explain",
    "Failure": "contrique.scoring.results",
    "Model": "contrique.scoring.model",
    "Score": "contrique.scoring.results",
}
__all__ = ["Explanation", "Failure", "Model", "Score", "distort", "explain", "load", "score"]
disable_telemetry()


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'contrique' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
