"""Pretraining recipes side by side, each for the same cost: which reads distortion types and levels best.

    python benchmarks/recipes.py --data PHOTOGRAPHS --crops 105600 --at-once 2 --out runs/recipes

PHOTOGRAPHS holds the folders `pristine` and `authentic`; what is made of them stays in OUT/distorted, for other runs
and for `contrique benchmark --distorted`. Every recipe is the demo's with a few options changed (`RECIPES`), and gets
as many steps as make it cost what `--crops` views of 64 pixels through ResNet-18 do, by floating-point operations.
Compared by the linear probe on photographs that were held out, at 224 pixels for every recipe, for at 64 it tells none
from another (ResNet-50 brings four times the features to it): no human score is looked at. Runs on a GPU where there is
one. Writes OUT/results.jsonl, an encoder and a history in OUT/NAME, and prints a table.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from gpu import DEVICE, prepare

from contrique.artifacts import ENCODER, HISTORY
from contrique.config import SynthesisConfig, resolve
from contrique.encoder.network import Encoder, ViewNorm
from contrique.encoder.weights import load_encoder
from contrique.pretraining.colour import COLOUR_SPACES
from contrique.pretraining.pretrain import build_pool, pretrain
from contrique.pretraining.probe import Probe, split_probe_rows

PROBE_SIDE = 224  # pixels
RANDOM = "untrained, seed "
FIVE: dict[str, Any] = {"colour_spaces": COLOUR_SPACES, "lr": 2e-4}  # the paper's spaces; the profile before
RECIPES: dict[str, dict[str, Any]] = {
    "demo": {},
    "demo, seed 1": {"seed": 1},
    "demo, seed 2": {"seed": 2},
    "lr 2e-4": {"lr": 2e-4},
    "lr 1e-3": {"lr": 1e-3},
    "SGD, lr 0.07 (the paper's, scaled)": {"optimizer": "sgd", "lr": 0.6, "lr_views": 1024},
    "crops of 96, 27 images": {"crop": 96, "images": 27, "lr_views": 54},
    "crops of 128, 15 images": {"crop": 128, "images": 15, "lr_views": 30},
    "ResNet-50": {"arch": "resnet50"},
    "no batch norm": {"calibration": 0, "normalised": False},
    "no calibration": {"calibration": 0},
    "30 images a step": {"images": 30, "lr_views": 60},
    "120 images a step": {"images": 120, "lr_views": 240},
    "uniform sampler": {"sampler": "uniform"},
    "2 contents a class": {"contents_per_class": 2},
    "6 contents a class": {"contents_per_class": 6},
    "no authentic pictures": {"authentic_share": 0.0},
    "half authentic pictures": {"authentic_share": 0.5},
    "temperature 0.2": {"temperature": 0.2},
    "one local vector": {"pool": 1},
    "identity classes apart": {"merge_identity": False},
    "gray, MS and RGB": {"colour_spaces": ("gray", "ms", "rgb")},
    "five spaces": FIVE,
    "five spaces, seed 1": FIVE | {"seed": 1},
    "five spaces, seed 2": FIVE | {"seed": 2},
    "five spaces, lr 5e-5": FIVE | {"lr": 5e-5},
    "five spaces, lr 5e-4": FIVE | {"lr": 5e-4},
    "five spaces, lr 1e-3": FIVE | {"lr": 1e-3},
    "five spaces, SGD, lr 0.07 (the paper's, scaled)": FIVE | {"optimizer": "sgd", "lr": 0.6, "lr_views": 1024},
    "five spaces, SGD, lr 0.01": FIVE | {"optimizer": "sgd", "lr": 0.01},
    "five spaces, uniform sampler": FIVE | {"sampler": "uniform"},
    "five spaces, 2 contents a class": FIVE | {"contents_per_class": 2},
    "five spaces, 6 contents a class": FIVE | {"contents_per_class": 6},
    "five spaces, 120 images a step": FIVE | {"images": 120},
}
NAMES = [*RECIPES, *(f"{RANDOM}{seed}" for seed in range(3))]


def run_recipe(name: str, dataset: Path, distorted: Path, out: Path, crops: int, workers: int) -> dict[str, Any]:
    """Train by one recipe. Returns what is known of it afterwards."""
    if name.startswith(RANDOM):
        encoder = Encoder("resnet18", int(name.removeprefix(RANDOM)))
        return {
            "name": name,
            "steps": 0,
            "crops": 0,
            "minutes": 0.0,
            "last": measure_probe(dataset, distorted, encoder),
        }
    overrides = dict(RECIPES[name])
    seed = overrides.pop("seed", 0)
    if not overrides.pop("normalised", True):
        ViewNorm.train = _never_train  # type: ignore[method-assign]
    config = dataclasses.replace(resolve("demo").pretrain, **overrides)
    cost = (config.crop / 64) ** 2 * (2.25 if config.arch == "resnet50" else 1.0)
    steps = max(1, round(crops / (2 * config.images * cost)))
    still = {"steps": steps, "workers": workers, "checkpoint_every": 10**9, "probe_every": 10**9}
    summary = pretrain(dataset, distorted, out, config=dataclasses.replace(config, **still), seed=seed)
    last = json.loads((out / HISTORY).read_text().splitlines()[-1])
    last |= measure_probe(dataset, distorted, load_encoder(out / ENCODER))
    return {"name": name, "steps": steps, "crops": summary.crops, "minutes": summary.minutes, "last": last}


def _never_train(norm: ViewNorm, mode: bool = True) -> ViewNorm:
    """The statistics stay those of an untrained encoder, mean 0 and variance 1: scale and shift alone are learned."""
    norm.training = False
    return norm


def measure_probe(dataset: Path, distorted: Path, encoder: Encoder) -> dict[str, float]:
    """The probe at PROBE_SIDE pixels, whatever crops the encoder was trained on; nothing if photographs are too few."""
    pool, others = build_pool(dataset, distorted)
    _, rows = split_probe_rows(pd.concat([pool[pool["label"] >= 0], others]))
    if not len(rows):
        return {}
    encoder.to(DEVICE).eval()

    def embed(pixels: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return encoder(pixels.to(DEVICE).float() / 255)

    return Probe(rows, PROBE_SIDE).measure(embed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with `pristine` and `authentic`; default: the sample data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--crops", type=int, default=105_600, help="views of 64 pixels that a recipe may cost")
    parser.add_argument("--weak-labels", type=int, default=20, help="a photograph; default: 20; 0 where piq is missing")
    parser.add_argument("--at-once", type=int, default=1, help="recipes trained at the same time")
    parser.add_argument("--minutes", type=float, default=0, help="after which no further recipe is begun")
    parser.add_argument("--only", nargs="*", choices=NAMES, default=NAMES, metavar="NAME")
    parser.add_argument("--recipe", choices=NAMES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    dataset, distorted = out / "dataset", out / "distorted"
    workers = max(1, (os.cpu_count() or 2) // arguments.at_once)
    if arguments.recipe:
        folder = out / arguments.recipe.replace(" ", "_").replace("/", "-")
        print(json.dumps(run_recipe(arguments.recipe, dataset, distorted, folder, arguments.crops, workers)))
        return
    started = time.monotonic()
    if not (distorted / "manifest.parquet").exists():
        prepare(arguments.data, out, SynthesisConfig(weak_labels_per_photograph=arguments.weak_labels))

    def run(name: str) -> None:
        if arguments.minutes and time.monotonic() - started > 60 * arguments.minutes:
            return
        words = [sys.executable, __file__, "--out", str(out), "--crops", str(arguments.crops), "--recipe", name]
        words += ["--at-once", str(arguments.at_once)]
        process = subprocess.run(words, capture_output=True, text=True)
        if process.returncode:
            sys.exit(f"{name}: {process.stderr[-2000:]}")
        figures = json.loads(process.stdout.splitlines()[-1])
        with (out / "results.jsonl").open("a") as file:
            file.write(json.dumps(figures) + "\n")
        last = figures["last"]
        probes = f"type {last['probe_type']:.3f}  level {last['probe_level']:.3f}" if "probe_type" in last else ""
        words = [f"{name:36}", f"{figures['steps']:6} steps", f"{figures['crops']:8} crops"]
        words.append(f"{figures['minutes']:6.2f} min")
        print(*words, f"loss {last['loss']:.3f}" if "loss" in last else "", probes, flush=True)

    with ThreadPoolExecutor(arguments.at_once) as pool:
        list(pool.map(run, arguments.only))


if __name__ == "__main__":
    main()
