"""How good is an encoder? SRCC against human scores, two ways, beside untrained encoders and BRISQUE + SVR.

    python benchmarks/walk.py --dataset RUN/dataset --distorted RUN/distorted --encoder RUN/encoder.safetensors \
        --judged live=PATH --judged tid2013=PATH --cache RUN/features --out walk.json

(a) human labels, leave-one-content-out; (b) opinion-unaware: fitted on the weak labels of the synthesized pretraining
photographs, judged on human scores it never saw. Takes about a quarter of an hour per encoder on two cores.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from contrique import dataset, evaluation
from contrique.config import EvaluationConfig, RegressorConfig
from contrique.encoder import Encoder, load_encoder
from contrique.features import extract_one
from contrique.images import Picture

Describe = Callable[[Picture], np.ndarray]
UNTRAINED_SEEDS = (0, 1, 2)


def describe_all(folder: Path, rows: pd.DataFrame, describe: Describe, label: str) -> np.ndarray:
    pictures = (dataset.picture(folder, row) for row in dataset.rows_of(rows))
    return np.stack([describe(picture) for picture in tqdm(pictures, total=len(rows), desc=label, mininterval=10)])


def described(cache: Path, sets: dict[str, tuple[Path, pd.DataFrame]], describe: Describe) -> dict[str, np.ndarray]:
    """Features of each set, computed once: they are most of the time."""
    if not cache.is_file():
        cache.parent.mkdir(parents=True, exist_ok=True)
        np.savez(
            cache, **{name: describe_all(*chosen, describe, f"{cache.stem}: {name}") for name, chosen in sets.items()}
        )
    with np.load(cache) as file:
        return {name: file[name] for name in sets}


def of_encoder(encoder: Encoder) -> Describe:
    return lambda picture: extract_one(picture, encoder, "bfloat16")


def judge(
    features: dict[str, np.ndarray], learner: evaluation.Learner, candidates: Sequence[float],
    sets: dict[str, tuple[Path, pd.DataFrame]], label: str,
) -> dict[str, dict[str, dict[str, object]]]:  # fmt: skip
    config = EvaluationConfig()
    weak = sets["weak"][1]
    result: dict[str, dict[str, dict[str, object]]] = {}
    for name in (name for name in sets if name != "weak"):
        rows = sets[name][1]
        truth = (list(rows["mos"]), list(rows["reference"]), list(rows["distortion"]))
        a = evaluation.cross_validate(features[name], *truth, learner, candidates, config=config, seed=0)
        b = evaluation.opinion_unaware(
            features["weak"], list(weak["weak_label"]), list(weak["reference"]), features[name], *truth, learner,
            candidates, config=config, seed=0,
        )  # fmt: skip
        result[name] = {
            "leave-one-content-out": {
                **{metric: asdict(a.metrics[metric]) for metric in ("srcc", "plcc", "plcc_logistic", "krcc")},
                "within_content": a.within_content and asdict(a.within_content),
            },
            "opinion-unaware": {
                **{metric: asdict(b.metrics[metric]) for metric in ("srcc", "plcc_logistic", "krcc")},
                "within_content": b.within_content and asdict(b.within_content),
                "slices": {d: s.srcc.value for d, s in b.slices.items() if s.srcc},
            },
        }
        for way, told in result[name].items():
            srcc = told["srcc"]
            print(f"{label:14} {name:8} {way:22} SRCC {srcc['value']:.3f} [{srcc['low']:.3f}, {srcc['high']:.3f}]")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--distorted", type=Path, required=True)
    parser.add_argument("--encoder", type=Path, required=True)
    parser.add_argument("--judged", action="append", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True, help="folder for features; of one encoder and its sets")
    parser.add_argument("--only", nargs="*", default=["trained", "untrained", "brisque"])
    parser.add_argument("--weak-pictures", type=int, default=2000, help="weak-labelled pictures to fit (b) on")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    judged = {}
    for pair in arguments.judged:
        name, _, folder = pair.partition("=")
        judged[name] = (Path(folder), dataset.import_folder(dataset.Source(Path(folder), "labelled")))
    made = dataset.read_manifest(arguments.distorted)
    rows = made[made["weak_label"].notna() & (made["split"] == "pretrain")]
    rows = rows.sample(min(len(rows), arguments.weak_pictures), random_state=0).sort_index().reset_index(drop=True)
    sets = {"weak": (arguments.distorted, rows)} | judged
    alphas = sorted(RegressorConfig().alphas)
    ridge = evaluation.ridge_learner(alphas)

    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    encoders = {"trained": lambda: load_encoder(arguments.encoder)}
    encoders |= {f"untrained {seed}": lambda s=seed: _untrained(arguments.encoder, s) for seed in UNTRAINED_SEEDS}
    for label, make in encoders.items():
        if label.split()[0] in arguments.only:
            features = described(arguments.cache / f"{label}.npz", sets, of_encoder(make()))
            results[label] = judge(features, ridge, alphas, sets, label)
            arguments.out.write_text(json.dumps(results, indent=1))
    if "brisque" in arguments.only:
        from contrique import baselines

        features = described(arguments.cache / "brisque.npz", sets, baselines.brisque)
        results["brisque + svr"] = judge(features, baselines.svr_learner(), baselines.COSTS, sets, "brisque + svr")
        arguments.out.write_text(json.dumps(results, indent=1))


def _untrained(like: Path, seed: int) -> Encoder:
    encoder = Encoder(load_encoder(like).arch, seed=1000 + seed).eval().requires_grad_(False)
    return encoder.to(memory_format=torch.channels_last)


if __name__ == "__main__":
    main()
