"""The alpha of a head, chosen by rank alone or within an error of the best rank: what each costs on a test part.

    contrique features LIVE/images --encoder contrique/bundled/encoder.safetensors --out live.npz
    python benchmarks/alphas.py LIVE live.npz

LIVE is a folder with labels.csv. Every way to choose a content to test and one to validate with is tried; where no two
pictures share a content, 20 random splits. Labels are scaled to 0 to 100. Coverage is the share of test pictures within
the conformal interval of 90 % that the head would have. Seconds.
"""

import argparse
from itertools import permutations
from pathlib import Path
from typing import Final

import numpy as np
from tabulate import tabulate

from contrique.config import RegressorConfig
from contrique.metrics import rmse, srcc
from contrique.regressor.cross_validation import MIN_JUDGED, choose_candidate, choose_within_error
from contrique.regressor.fit import predict_residuals
from contrique.regressor.prior import Prior, extend
from contrique.regressor.reliability import conformal_radius
from contrique.regressor.ridge import fit_path
from contrique.scoring.bundled import NAME, load_bundled
from contrique.sources.labels import read_labels

RULES: Final = {"by rank alone": choose_candidate, "within an error": choose_within_error}
SPLITS: Final = 20
PARTS: Final = (8, 4)  # pictures to test and to validate with, of a random split
REDUCTIONS: Final = (np.mean, np.mean, np.max, np.mean, np.mean)  # of the splits: SRCC, RMSE twice, interval, coverage


def list_splits(contents: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Contents to test with, and to validate with."""
    names, counts = np.unique(contents, return_counts=True)
    if counts.max() > 1:
        large = names[counts >= MIN_JUDGED]
        return [(np.array([test]), np.array([validation])) for test, validation in permutations(large, 2)]
    rng = np.random.default_rng(0)
    return [tuple(np.split(rng.permutation(names)[: sum(PARTS)], PARTS[:1])) for _ in range(SPLITS)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("features", type=Path)
    options = parser.parse_args()
    rows = [row for row in read_labels(options.folder / "labels.csv") if np.isfinite(row["mos"])]
    with np.load(options.features) as archive:
        place = {Path(str(name)).name: i for i, name in enumerate(archive["images"])}
        values = archive["features"][[place[Path(row["image"]).name] for row in rows]]
    contents = np.array([row["reference"] or row["image"] for row in rows])
    labels = np.array([row["mos"] for row in rows])
    labels = 100 * (labels - labels.min()) / np.ptp(labels)
    inputs = np.asarray(extend(values, Prior.of(load_bundled().head, NAME)))
    figures = {name: [] for name in RULES}
    splits = list_splits(contents)
    for test_contents, validation_contents in splits:
        test, validation = np.isin(contents, test_contents), np.isin(contents, validation_contents)
        train = ~(test | validation)
        models = fit_path(inputs[train], labels[train], sorted(RegressorConfig().alphas))
        candidates = np.stack([model.predict(inputs[validation]) for model in models])
        for name, choose in RULES.items():
            best = choose(candidates, labels[validation])
            inner = predict_residuals(inputs[train], labels[train], contents[train], models[best].alpha)
            interval = conformal_radius(np.r_[labels[validation] - candidates[best], inner])
            scores = models[best].predict(inputs[test])
            inside = np.mean(np.abs(scores - labels[test]) <= interval)
            error = rmse(scores, labels[test])
            figures[name].append((srcc(scores, labels[test]), error, error, interval, inside))
    table = [
        [name, *(reduce(column) for reduce, column in zip(REDUCTIONS, np.array(each).T, strict=True))]
        for name, each in figures.items()
    ]
    columns = ["alpha", "SRCC", "RMSE", "at most", "interval", "coverage"]
    print(f"{len(rows)} pictures, {len(splits)} splits")
    print(tabulate(table, columns, tablefmt="github", floatfmt=".3f"))


if __name__ == "__main__":
    main()
