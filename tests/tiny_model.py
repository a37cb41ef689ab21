"""A real model, small: a ResNet-18 with random weights and a ridge whose scores spread over the whole scale."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from contrique.encoder.features import extract
from contrique.encoder.network import Encoder
from contrique.encoder.weights import save_encoder
from contrique.images import Picture
from contrique.registry.candidate import Candidate
from contrique.regressor.head import Head, RegressorSummary
from contrique.regressor.ridge import Ridge


@dataclass(frozen=True)
class Parts:
    """Paths of what the stages hand to the registry."""

    encoder: Path
    regressor: Path
    evaluation: Path
    verdict: Path
    lineage: Path


def picture(seed: int, height: int = 80, width: int = 96) -> Picture:
    """Smooth colours under noise of a strength of its own. Shape (height, width, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / 100
    waves = np.stack([np.sin(x * rng.uniform(1, 9) + y * rng.uniform(1, 9)) for _ in range(3)], axis=-1)
    return np.clip(127 + 90 * waves + rng.normal(0, rng.uniform(0, 60), waves.shape), 0, 255).astype(np.uint8)


def build(folder: Path, seed: int = 0, labels: str = "human") -> Parts:
    """Write a model and the files of its judgement."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True)
    parts = Parts(
        folder / "encoder.safetensors",
        folder / "regressor",
        folder / "evaluation.json",
        folder / "verdict.json",
        folder / "lineage.json",
    )
    encoder = Encoder("resnet18", seed=seed).eval()
    save_encoder(encoder, parts.encoder)
    coef = np.random.default_rng(seed).normal(size=2 * encoder.width)
    features = extract([picture(i) for i in range(6)], encoder)
    coef = 40 * coef / np.std(features @ coef)
    intercept = 50 - float(np.mean(features @ coef))
    summary = RegressorSummary(
        labels=labels,
        label_low=-20.0,
        label_high=120.0,
        alpha=1.0,
        n=10,
        contents=4,
        validation_n=5,
        validation_srcc=0.5,
        features_dim=2 * encoder.width,
    )
    Head(Ridge(coef, intercept, 1.0), summary).save(parts.regressor)
    srcc = {"value": 0.8, "low": 0.7, "high": 0.9, "n": 40, "contents": 4, "splits": 1, "unit": "contents"}
    parts.evaluation.write_text(json.dumps({"labels": labels, "challenger": {"metrics": {"srcc": srcc}}}))
    parts.verdict.write_text(json.dumps({"promote": True, "reason": "promote: meets the floor"}))
    lineage = {
        "source": "s3://bucket/pictures",
        "revision": "abc",
        "hash": f"data{seed}.dir",
        "sources": {"s3://bucket/pictures": f"data{seed}.dir"},
        "files": 41,
        "bytes": 1000,
        "rows": 40,
        "counts": {"train/authentic": 24, "validation/authentic": 6, "test/authentic": 10},
        "licences": {"CC0-1.0": 40},
    }
    parts.lineage.write_text(json.dumps(lineage))
    return parts


def candidate(parts: Parts, expected: str | None = None, sets: Sequence[Path] = ()) -> Candidate:
    """A model as the registry takes it; the gate judged it against version `expected`, if that is said."""
    verdict = parts.verdict
    if expected is not None:
        verdict = verdict.with_name(f"verdict-{expected}.json")
        verdict.write_text(json.dumps(json.loads(parts.verdict.read_text()) | {"champion_version": expected}))
    return Candidate(parts.encoder, parts.regressor, parts.evaluation, verdict, parts.lineage, sets)
