"""How many ratings make a head better, and does it matter who chooses the pictures: the model, or chance?

    python benchmarks/rate.py --data TID2013 --cache features.npz

Each of the larger contents is held out in turn. Of the pictures of the others so many are rated (their MOS stands for
the answers), a head is fitted to these as `contrique adapt` fits one, and its SRCC is taken on all pictures of the
content that is held out: none of them is rated, and nothing of their scene is. Each figure is the mean over the
contents, then over the seeds, with its standard deviation over the seeds. Seven minutes on one core, five of them for
the features, which are kept in --cache.

The folder holds `labels.csv` with the columns image, reference and mos.
"""

import argparse
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata
from sklearn.model_selection import KFold
from tqdm import tqdm

from contrique import images
from contrique.config import RatingConfig, RegressorConfig
from contrique.metrics import EvaluationError, srcc
from contrique.rating.candidates import Candidate
from contrique.rating.selection import BINS, choose
from contrique.regressor.cross_validation import choose_candidate
from contrique.regressor.prior import Prior
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
        with np.load(cache) as archive:
            if np.array_equal(archive["names"], names):
                return archive["features"], archive["hashes"]
    scorer = load_bundled()
    features, hashes = [], []
    for name in tqdm(names, desc="features", unit="img"):
        pixels = images.read(folder / str(name))
        features.append(scorer.features(pixels))
        hashes.append(images.perceptual_hash(pixels))
    np.savez(cache, names=names, features=np.stack(features), hashes=np.array(hashes))
    return np.stack(features), np.array(hashes)


def choosers(
    candidates: list[Candidate], features: NDArray[np.float32], widths: Array, distances: Array
) -> dict[str, Chooser]:
    """Ways to pick `count` of the rows `pool`, with a seed: the product's two, and the model's parts alone."""

    def by(name: Any) -> Chooser:
        def pick(pool: NDArray[np.intp], count: int, seed: int) -> NDArray[np.intp]:
            some = [candidates[i] for i in pool]
            return pool[choose(some, features[pool], count, by=name, seed=seed, config=CONFIG)[:count]]

        return pick

    def spread(pool: NDArray[np.intp], count: int, seed: int) -> NDArray[np.intp]:
        """One picture of each fifth of the model's scores after another, by chance within each."""
        rng = np.random.default_rng(seed)
        parts = np.array_split(sorted(pool, key=lambda i: candidates[i].score or 0), BINS)
        rounds = zip_longest(*(rng.permutation(part) for part in parts))
        return np.array([i for each in rounds for i in each if i is not None], np.intp)[:count]

    def variance(pool: NDArray[np.intp], count: int, seed: int) -> NDArray[np.intp]:
        """Always the picture of which a ridge on those before it knows least; the first by chance."""
        x = features[pool] - features[pool].mean(axis=0)
        kernel = np.asarray(x @ x.T, np.float64) / np.square(x).sum(axis=1).mean()
        picks = [int(np.random.default_rng(seed).integers(len(pool)))]
        while len(picks) < count:
            column = kernel[:, picks[-1]].copy()
            kernel -= np.outer(column, column) / (column[picks[-1]] + 0.1)
            variances = np.diag(kernel).copy()
            variances[picks] = -np.inf
            picks.append(int(np.argmax(variances)))
        return pool[picks]

    def unlike(pool: NDArray[np.intp], count: int, seed: int) -> NDArray[np.intp]:
        """In each fifth of the model's scores those of the widest interval, and farthest from what it learned from."""
        urgency = rankdata(widths[pool]) + rankdata(distances[pool]) + np.random.default_rng(seed).random(len(pool))
        ranking = pool[np.argsort([candidates[i].score or 0 for i in pool])]
        urgent = dict(zip(pool.tolist(), urgency, strict=True))
        parts = [sorted(part.tolist(), key=lambda i: -urgent[i]) for part in np.array_split(ranking, BINS)]
        return np.array([i for each in zip_longest(*parts) for i in each if i is not None], np.intp)[:count]

    return {
        "chance": by("random"),
        "the model": by("model"),
        "variance alone": variance,
        "spread over its scores alone": spread,
        "its interval and distance": unlike,
    }


def judge(inputs: ArrayLike, mos: Array, rated: NDArray[np.intp], test: NDArray[np.intp], seed: int) -> float:
    """SRCC on pictures of a content that is not rated, of a head whose alpha the rated ones chose."""
    alphas = sorted(RegressorConfig().alphas)
    folds = [(rated[a], rated[b]) for a, b in KFold(FOLDS, shuffle=True, random_state=seed).split(rated)]
    predictions = predict_tasks(inputs, mos, [*folds, (rated, test)], alphas)
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
    parser.add_argument(
        "--no-prior", dest="prior", action="store_false", help="without the bundled head's scores as a feature"
    )
    options = parser.parse_args()
    rows = read_labels(options.data / "labels.csv")
    mos, content = np.array([row["mos"] for row in rows]), np.array([row["reference"] for row in rows])
    features, hashes = measure(options.data, rows, options.cache)
    head = load_bundled().head
    inputs = Prior.of(head, "bundled").extend(features) if options.prior else features
    raw = head.predict(features)
    assert head.novelty
    distances, points = head.novelty.distance(features), head.to_points(raw)
    ends = np.array([head.interval(float(value)) for value in raw])
    candidates = [
        Candidate(row["image"], "", str(phash), 0, 0, float(score))
        for row, phash, score in zip(rows, hashes, points, strict=True)
    ]
    names, counts = np.unique(content, return_counts=True)
    held_out = [str(name) for name, count in zip(names, counts, strict=True) if count >= LARGE]
    ways = choosers(candidates, features, ends[:, 1] - ends[:, 0], distances)
    pools = {name: np.flatnonzero(content != name) for name in held_out}
    print(
        f"{len(rows)} pictures; held out in turn: {', '.join(f'{n} ({len(rows) - len(pools[n])})' for n in held_out)}"
    )
    before = {name: srcc(raw[content == name], mos[content == name]) for name in held_out}
    summary = ", ".join(f"{name} {value:.3f}" for name, value in before.items())
    print(f"the bundled head as it is: {np.mean(list(before.values())):.3f} ({summary})\n")

    def judge_all(pick: Chooser, size: int, seed: int) -> list[float]:
        return [
            judge(inputs, mos, pick(pool, min(size, len(pool)), seed), np.flatnonzero(content == name), seed)
            for name, pool in pools.items()
        ]

    print("| ratings | " + " | ".join(ways) + " | model less chance |\n|---|" + "---|" * (len(ways) + 1))
    for size in SIZES:
        means = {}
        for name, pick in ways.items():
            bar = tqdm(range(options.seeds), desc=f"{size}, {name}", delay=2, leave=False)
            means[name] = np.array([np.mean(judge_all(pick, size, seed)) for seed in bar])
        cells = [f"{values.mean():.3f} ± {values.std(ddof=1):.3f}" for values in means.values()]
        gain = means["the model"] - means["chance"]
        margin = 1.96 * gain.std(ddof=1) / np.sqrt(len(gain))
        actual = sorted({min(size, len(pool)) for pool in pools.values()})
        label = str(size) if actual == [size] else f"{size} ({', '.join(map(str, actual))})"
        print(f"| {label} | " + " | ".join(cells) + f" | {gain.mean():+.3f} ± {margin:.3f} |", flush=True)


if __name__ == "__main__":
    main()
