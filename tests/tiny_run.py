"""A finished run, small: pictures and features made up, every judgement of them by the real stages."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tiny_model

from contrique import images
from contrique.artifacts import EVALUATION, FEATURES
from contrique.config import EvaluationConfig, GateConfig, resolve
from contrique.data.manifest import as_manifest, inspect_file, read_manifest, write_manifest
from contrique.encoder.feature_set import save_features
from contrique.encoder.network import Encoder
from contrique.encoder.weights import save_encoder
from contrique.evaluation.decision import decide_set
from contrique.evaluation.evaluate import Champion, evaluate_set
from contrique.evaluation.extract import keep_extract
from contrique.regressor.fit import fit_set
from contrique.regressor.head import Head
from contrique.reports.facts import Trained

NAMES = ("jpeg", "white_noise")
LEVELS = (3, 1, 4, 2)
SPLITS = ("train", "train", "validation", "test", "test")
STEPS = 29
SEED = 5


def picture_set(folder: Path, column: str = "") -> Path:
    """Five contents, two distortions at four levels and the photograph itself, with labels in `column` if given."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    for content, split in enumerate(SPLITS):
        for name, level in [("", 0), *((name, level) for name in NAMES for level in LEVELS)]:
            path = folder / f"{content}{NAMES.index(name) if name else ''}-{level}.png"  # a name need be no file's
            noise = rng.normal(scale=10 * level + 1, size=(100, 240, 3))
            path.write_bytes(images.encode_png(images.as_uint8((tiny_model.picture(content, 100, 240) + noise) / 255)))
            row = {"image": path.name, "reference": f"scene {content}", "distortion": name, "level": level}
            row |= {"kind": "distorted" if name else "pristine", "split": split, "licence": "CC0-1.0"}
            label = {column: -level + rng.normal(scale=0.3)} if column else {}
            rows.append(row | label | inspect_file(path))
    write_manifest(as_manifest(rows), folder)
    return folder


def judge(folder: Path, labelled: Path, column: str, champion: bool) -> None:
    """Features that tell the labels in part, and what the stages make of them."""
    rng = np.random.default_rng(0)
    manifest = read_manifest(labelled).assign(phash="")  # the pictures are more alike than photographs are
    values = rng.normal(size=(len(manifest), 8)).astype(np.float32)
    values[:, 0] += manifest[column].to_numpy()
    write_manifest(manifest, folder / "features")
    save_features(values, list(manifest["image"]), folder / "features" / FEATURES)
    fit_set(folder / "features", folder / "regressor", config=resolve("demo").regressor)

    def rescore(rows: pd.DataFrame) -> pd.Series:
        return rows[column] + rng.normal(scale=2, size=len(rows))

    evaluate_set(
        folder / "features",
        folder / "regressor",
        folder / "evaluation",
        config=EvaluationConfig(resamples=50),
        seed=SEED,
        champion=Champion(rescore, "7", Head.load(folder / "regressor")) if champion else None,
    )
    decide_set(folder / "evaluation", folder / "verdict.json", config=GateConfig(min_slice=4))


def build(folder: Path, column: str = "weak_label", champion: bool = False) -> dict[str, Any]:
    """Arguments of `report.write`, but for `out`; `distorted` beside them holds the pictures."""
    human = column == "mos"
    data = picture_set(folder / "dataset", column if human else "")
    distorted = picture_set(folder / "distorted", "" if human else column)
    judge(folder, data if human else distorted, column, champion)
    lineage = {"source": "<script>alert(1)</script>", "revision": "", "hash": "abc.dir", "files": 3}
    lineage |= {"bytes": 12_000_000, "rows": 2, "counts": {"train/pristine": 2}, "sources": {"here": "abc.dir"}}
    lineage |= {"licences": {"CC0-1.0": 45}}
    (data / "lineage.json").write_text(json.dumps(lineage))
    keep_extract(folder / "features", folder / "evaluation", [data, distorted], folder / "extract", seed=SEED)
    findings = {"summary": {"expectations": 12, "rows": 2, "mos": []}}
    (folder / "findings.json").write_text(json.dumps(findings))
    save_encoder(Encoder("resnet18"), folder / "encoder" / "encoder.safetensors", {"steps": STEPS, "crops": 3480})
    history = [{"step": step, "loss": 5.0 - step / 100, "lr": step / 1000} for step in range(1, STEPS + 1)]
    for entry in history[9::10]:
        entry |= {"probe_type": entry["step"] / 40, "probe_level": entry["step"] / 60}
    (folder / "encoder" / "history.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in history))
    trained = Trained(
        folder / "extract",
        folder / "encoder",
        folder / "regressor",
        folder / "evaluation",
        folder / "verdict.json",
        config=resolve("demo", {"pretrain.steps": STEPS}),
        profile="demo",
        run="a-run",
        code="c0de",
    )
    return {
        "trained": trained,
        "findings": folder / "findings.json",
        "outcome": {"name": "contrique", "version": "3", "alias": "champion"},
    }


def add_attacks(trained: Trained, folder: Path) -> Trained:
    """The run with attacks on both models in its evaluation, and the verdict on that."""
    shutil.copytree(trained.evaluation, folder / "evaluation")
    rise = {"n": 4, "mean": 12.5, "low": 10.0, "high": 15.0, "share": 0.75, "values": [10.0] * 4, "fidelity": None}
    void = rise | {"mean": None, "low": None, "high": None, "share": 0.0, "values": [None] * 4}
    attacks = {"black_border": rise, "gradient": void}
    champion = dict.fromkeys(attacks, rise | {"mean": -3.0, "values": [-3.0] * 4})
    gaming = {"contents": list("abcd"), "side": 128, "challenger": attacks, "champion": champion}
    path = folder / "evaluation" / EVALUATION
    path.write_text(json.dumps(json.loads(path.read_text()) | {"gaming": gaming}))
    decide_set(folder / "evaluation", folder / "verdict.json", config=GateConfig(min_slice=4))
    return dataclasses.replace(trained, evaluation=folder / "evaluation", verdict=folder / "verdict.json")
