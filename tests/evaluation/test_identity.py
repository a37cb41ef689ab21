"""A rated set is known by its pictures: moved, renamed, copied or re-encoded, it gives the same model and champion."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from contrique import images
from contrique.artifacts import COEFFICIENTS, ENCODER, TEST_SCORES
from contrique.config import EvaluationConfig, GateConfig, RegressorConfig
from contrique.data.manifest import as_manifest, read_manifest, write_manifest
from contrique.encoder.feature_set import extract_set
from contrique.encoder.network import Encoder
from contrique.encoder.weights import save_encoder
from contrique.evaluation.decision import decide_set
from contrique.evaluation.evaluate import Champion, evaluate_set
from contrique.regressor.fit import fit_set
from contrique.scoring.rescore import Rescore
from contrique.scoring.scorer import TOLERANCE, Scorer
from contrique.sources.fetch import fetch


@pytest.fixture(scope="module")
def rated(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("first") / "rated"
    folder.mkdir()
    rows = ["image,mos"]
    for number in range(40):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(10, 0).repeat(10, 1)
        (folder / f"i{number:03d}.png").write_bytes(images.encode_png(pixels))
        rows.append(f"i{number:03d}.png,{number % 7}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("encoder") / ENCODER
    save_encoder(Encoder("resnet18", seed=0).eval(), path)
    return path


def train(data: Path, encoder: Path, out: Path, champion: Path | None = None) -> Path:
    """From a labelled folder to the verdict; the champion, a regressor beside the same encoder, is rescored."""
    fetch(out / "dataset", data=str(data))
    write_manifest(as_manifest([]), out / "distorted")
    extract_set(out / "dataset", out / "distorted", encoder, out / "features")
    fit_set(out / "features", out / "regressor", config=RegressorConfig())
    evaluate_set(
        out / "features",
        out / "regressor",
        out / "evaluation",
        config=EvaluationConfig(resamples=50),
        seed=0,
        champion=Champion(Rescore(Scorer(encoder, champion), [out / "dataset"]), "1") if champion else None,
    )
    decide_set(out / "evaluation", out / "verdict.json", config=GateConfig(floor=-1.0))
    return out


@pytest.fixture(scope="module")
def first(rated, encoder, tmp_path_factory) -> Path:
    return train(rated, encoder, tmp_path_factory.mktemp("run") / "out")


def rename(folder: Path, suffix: str) -> None:
    """Other names, and another lossless format, in the order of the names."""
    table = pd.read_csv(folder / "labels.csv")
    names = [f"deep/photo {number:04d}{suffix}" for number in range(len(table))]
    (folder / "deep").mkdir()
    for old, new in zip(table["image"], names, strict=True):
        Image.open(folder / old).save(folder / new)
        (folder / old).unlink()
    table.assign(image=names).to_csv(folder / "labels.csv", index=False)


@pytest.mark.parametrize("how", ["moved", "linked", ".png", ".tif"])
def test_a_set_elsewhere_is_the_same_set(how, rated, first, encoder, tmp_path):
    data = Path(shutil.copytree(rated, tmp_path / "elsewhere" / "rated_v2"))
    if how == "linked":
        (tmp_path / "link").symlink_to(data)
        data = tmp_path / "link"
    elif how != "moved":
        rename(data, how)
    second = train(data, encoder, tmp_path / "out", champion=first / "regressor")

    before, after = (pd.read_parquet(run / "evaluation" / TEST_SCORES) for run in (first, second))
    assert list(after["challenger"]) == list(before["challenger"])
    assert list(after["label"]) == list(before["label"])
    np.testing.assert_allclose(after["champion"], before["challenger"], atol=TOLERANCE * 7)
    assert (second / "regressor" / COEFFICIENTS).read_bytes() == (first / "regressor" / COEFFICIENTS).read_bytes()
    parts = [list(read_manifest(run / "dataset")["split"]) for run in (first, second)]
    assert parts[0] == parts[1]
    assert set(parts[0]) == {"train", "validation", "test"}
    verdict = json.loads((second / "verdict.json").read_text())
    assert verdict["numbers"]["difference"] == pytest.approx(0, abs=1e-9)
