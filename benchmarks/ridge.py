"""How much faster is ridge over alphas x splits with one shared factorisation than the scikit-learn loop?

    python benchmarks/ridge.py                                # small: about a minute on two cores
    python benchmarks/ridge.py --rows 10000 --features 4096   # the goal's size: some minutes

Features imitate the encoder's: two halves of norm one, contents that differ, a steep spectrum. Both sides run in this
process on the same splits, in turn, and both are measured in wall-clock and CPU seconds. The scikit-learn loop, whose
time does not depend on alpha, is timed on some alphas of one split and scaled up, since all of it takes minutes. The
error is the largest difference between the two on any held-out picture, in standard deviations of the predictions.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.linear_model import Ridge
from threadpoolctl import threadpool_info

from contrique.regressor.ridge import predict_tasks


def features(rows: int, width: int, contents: int, generator: np.random.Generator) -> tuple[Any, Any, Any]:
    """Features (rows, 2 x half width) float32, labels and contents."""
    ids = np.arange(rows) % contents
    halves = []
    for half in (width // 2, width - width // 2):
        spread = np.arange(1, half + 1) ** -0.8
        own = generator.normal(size=(contents, half))[ids] + 0.5 * generator.normal(size=(rows, half))
        values = np.abs(own) * generator.permutation(spread)
        halves.append(values / np.linalg.norm(values, axis=1, keepdims=True))
    x = np.concatenate(halves, axis=1).astype(np.float32)
    return x, 50 + 20 * (x @ generator.normal(size=width)) + generator.normal(size=rows), ids


def measure(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """Result, wall-clock and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--features", type=int, default=1024)
    parser.add_argument("--alphas", type=int, default=20, help="from 1e-3 to 1e6")
    parser.add_argument("--splits", type=int, default=10, help="70 %% of the contents train, 30 %% are held out")
    parser.add_argument("--contents", type=int, default=80)
    parser.add_argument("--reference-alphas", type=int, default=5, help="how many the scikit-learn loop is timed on")
    parser.add_argument("--repeats", type=int, default=3, help="the fastest of each side counts")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    generator = np.random.default_rng(options.seed)
    x, y, ids = features(options.rows, options.features, options.contents, generator)
    alphas = np.logspace(-3, 6, options.alphas)
    tasks = []
    for _ in range(options.splits):
        held_out_rows = np.isin(ids, generator.permutation(options.contents)[: round(0.3 * options.contents)])
        tasks.append((np.flatnonzero(~held_out_rows), np.flatnonzero(held_out_rows)))
    wide = x.astype(np.float64)

    train, held_out = tasks[0]
    indices = np.unique(np.linspace(0, len(alphas) - 1, options.reference_alphas).round().astype(int))
    scale = options.splits * len(alphas) / len(indices)

    def scikit_learn() -> list[Any]:
        return [Ridge(alpha=alphas[i]).fit(wide[train], y[train]).predict(wide[held_out]) for i in indices]

    ours_wall, ours_cpu, theirs_wall, theirs_cpu = [], [], [], []
    for _ in range(options.repeats):
        ours, wall, cpu = measure(lambda: predict_tasks(x, y, tasks, list(alphas)))
        ours_wall.append(wall)
        ours_cpu.append(cpu)
        reference, wall, cpu = measure(scikit_learn)
        theirs_wall.append(wall * scale)
        theirs_cpu.append(cpu * scale)
    error = max(
        float(np.abs(ours[0][i] - expected).max() / expected.std())
        for i, expected in zip(indices, reference, strict=True)
    )
    print(
        json.dumps(
            {
                **vars(options),
                "threads": sorted({pool["num_threads"] for pool in threadpool_info()}),
                "ours_wall_s": round(min(ours_wall), 3),
                "ours_cpu_s": round(min(ours_cpu), 3),
                "scikit_learn_wall_s": round(min(theirs_wall), 3),
                "scikit_learn_cpu_s": round(min(theirs_cpu), 3),
                "ratio_wall": round(min(theirs_wall) / min(ours_wall), 1),
                "ratio_cpu": round(min(theirs_cpu) / min(ours_cpu), 1),
                "error_in_standard_deviations": error,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
