"""A folder of pictures whose quality is known, and sessions about it that need no model."""

from pathlib import Path

import numpy as np
from PIL import Image

from contrique import distortions, images
from contrique.config import RatingConfig, ServingLimits
from contrique.rating import start
from contrique.rating.session import Session
from contrique.walk import Skipped

LEVELS = 6


def draw(seed: int, level: int, height: int = 80, width: int = 96) -> images.Picture:
    """A texture of its own, blurred: 0 is sharp, 5 the worst. Shape (height, width, 3)."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(40, 216, (8, 10, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float64)
    pixels = np.clip(smooth + rng.normal(0, 25, smooth.shape), 0, 255).astype(np.uint8)
    if not level:
        return pixels
    return images.as_uint8(distortions.distort(images.as_float(pixels), "gaussian_blur", level, rng))


def write(folder: Path, count: int) -> dict[str, int]:
    """Pictures in turn of each level; the level of each name."""
    folder.mkdir(parents=True)
    levels = {f"{seed:03}.png": seed % LEVELS for seed in range(count)}
    for seed, (name, level) in enumerate(levels.items()):
        Image.fromarray(draw(seed, level)).save(folder / name)
    return levels


def begin(folder: Path, place: Path, method: str = "acr", seed: int = 0, **config: float) -> Session:
    """A session about a folder, chosen by chance, on disk."""
    skipped: list[Skipped] = []
    session = start.begin(
        folder,
        method=method,
        seed=seed,
        choice="random",
        config=RatingConfig(**config),
        limits=ServingLimits(decoders=1),
        load_scorer=None,
        skipped=skipped,
    )
    session.save(place)
    return session
