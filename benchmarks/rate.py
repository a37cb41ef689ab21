"""How many ratings make a head better, and does it matter who chooses the pictures: the model, or chance?

    python benchmarks/rate.py --data TID2013 --cache features.npz

Each of the larger contents is held out in turn. Of the pictures of the others so many are rated (their MOS stands for
the answers), a head is fitted to these as `contrique adapt` fits one, and its SRCC is taken on all pictures of the
content that is held out: none of them is rated, and nothing of their scene is. Ten minutes on one core, six of them for
the features, which are kept in --cache.

The folder holds `labels.csv` with the columns image, reference and mos.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import KFold
from tqdm import tqdm

from contrique import images
from contrique.config import RatingConfig, RegressorConfig
from contrique.metrics import EvaluationError, srcc
from contrique.rating.candidates import Candidate
from contrique.rating.selection import choose
from contrique.regressor.cross_validation import choose_candidate
from contrique.regressor.ridge import predict_tasks
from contrique.scoring.bundled import load_bundled
from contrique.sources.labels import read_labels

SIZES: Final = (25, 50, 100, 200)
LARGE: Final = 40  # pictures of a content, from which on it is held out
FOLDS: Final = 5
CONFIG: Final = RatingConfig(alike=0.0, near_duplicate_bits=0)  # distorted versions of a scene are all asked about
Array = NDArray[np.float64]
Chooser = Callable[[NDArray[np.intp], int, int], NDArray[np.intp]]


def measure(folder: Path, rows: list[dict[str, Any]], cache: Path) -> tuple[NDArray[np.float32], NDArray[np.str_]]:
    """Features and perceptual hashes of the pictures, from the cache if they are in it."""
    names = np.array([row["image"] for row in rows])
    if cache.exists():
        with np.load(cache) as held:
            if np.array_equal(held["names"], names):
                return held["features"], held["hashes"]
    scorer = load_bundled()
    features, hashes = [], []
    for name in tqdm(names, desc="features", unit="img"):
        pixels = images.read(folder / str(name))
        features.append(scorer.features(pixels))
        hashes.append(images.perceptual_hash(pixels))
    np.savez(cache, names=names, features=np.stack(features), hashes=np.array(hashes))
    return np.stack(features), np.array(hashes)


def choosers(candidates: list[Candidate], features: NDArray[np.float32]) -> dict[str, Chooser]:
    """Ways to pick `count` of the rows `pool`, with a seed."""

    def by(name: Any) -> Chooser:
        def pick(pool: NDArray[np.intp], count: int, seed: int) -> NDArray[np.intp]:
            return pool[choose([candidates[i] for i in pool], count, by=name, seed=seed, config=CONFIG)]

        return pick

    def spread(pool: NDArray[np.intp], count: int, seed: int) -> NDArray[np.intp]:
        plain = [Candidate(c.image, c.sha256, c.phash, 0, 0, c.score) for c in (candidates[i] for i in pool)]
        return pool[choose(plain, count, by="model", seed=seed, config=CONFIG)]

    def variance(pool: NDArray[np.intp], count: int, seed: int) -> NDArray[np.intp]:
        """Each time the picture of which a ridge on those before it knows least (largest predictive variance)."""
        x = np.asarray(features[pool], np.float64)
        x = (x - x.mean(axis=0)) * np.sqrt(len(x) / np.square(x - x.mean(axis=0)).sum())
        kernel = x @ x.T
        left = np.ones(len(pool), bool)
        chosen = [int(np.random.default_rng(seed).integers(len(pool)))]
        for _ in range(count - 1):
            left[chosen[-1]] = False
            column = kernel[:, chosen[-1]].copy()
            kernel -= np.outer(column, column) / (column[chosen[-1]] + 0.1)
            chosen.append(int(np.argmax(np.where(left, np.diag(kernel), -np.inf))))
        return pool[chosen]

    return {"random": by("random"), "spread over the scores": spread, "model": by("model"), "variance": variance}


def judge(
    features: NDArray[np.float32], mos: Array, rated: NDArray[np.intp], test: NDArray[np.intp], seed: int
) -> float:
    """SRCC on pictures of a content that is not rated, of a head whose alpha the rated ones chose."""
    alphas = sorted(RegressorConfig().alphas)
    folds = [(rated[a], rated[b]) for a, b in KFold(FOLDS, shuffle=True, random_state=seed).split(rated)]
    predictions = predict_tasks(features, mos, [*folds, (rated, test)], alphas)
    inner = np.concatenate(predictions[:-1], axis=1)
    try:
        alpha = choose_candidate(inner, mos[np.concatenate([b for _, b in folds])])
        return srcc(predictions[-1][alpha], mos[test])
    except EvaluationError:  # a head that says the same of every picture
        return 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="rated folder with labels.csv")
    parser.add_argument("--cache", type=Path, required=True, help="npz of the features; written if it is not there")
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args()
    rows = read_labels(options.data / "labels.csv")
    mos, content = np.array([row["mos"] for row in rows]), np.array([row["reference"] for row in rows])
    features, hashes = measure(options.data, rows, options.cache)
    head = load_bundled().head
    raw = head.predict(features)
    distances = head.novelty.distance(features) if head.novelty else np.zeros(len(rows))
    candidates = []
    for row, phash, value, distance in zip(rows, hashes, raw, distances, strict=True):
        low, high = head.interval(float(value)) or (0.0, 0.0)
        points = float(head.to_points(value))
        candidates.append(Candidate(row["image"], "", str(phash), 0, 0, points, high - low, float(distance)))
    names, counts = np.unique(content, return_counts=True)
    held_out = [str(name) for name, count in zip(names, counts, strict=True) if count >= LARGE]
    ways = choosers(candidates, features)
    pools = {name: np.flatnonzero(content != name) for name in held_out}
    print(
        f"{len(rows)} pictures; held out in turn: {', '.join(f'{n} ({len(rows) - len(pools[n])})' for n in held_out)}"
    )
    before = {name: srcc(raw[content == name], mos[content == name]) for name in held_out}
    told = ", ".join(f"{name} {value:.3f}" for name, value in before.items())
    print(f"the bundled head as it is: {np.mean(list(before.values())):.3f} ({told})\n")
    print("| ratings | " + " | ".join(ways) + " | pool |\n|---|" + "---|" * (len(ways) + 1))
    for size in SIZES:
        cells = []
        for pick in ways.values():
            figures = np.array(
                [
                    [
                        judge(
                            features, mos, pick(pool, min(size, len(pool)), seed), np.flatnonzero(content == name), seed
                        )
                        for name, pool in pools.items()
                    ]
                    for seed in range(options.seeds)
                ]
            )
            means = figures.mean(axis=1)
            parts = " ".join(f"{value:.3f}" for value in figures.mean(axis=0))
            cells.append(f"{means.mean():.3f} ± {means.std(ddof=1):.3f} ({parts})")
        sizes = " ".join(str(min(size, len(pool))) for pool in pools.values())
        print(f"| {size} | " + " | ".join(cells) + f" | {sizes} |", flush=True)


if __name__ == "__main__":
    main()
