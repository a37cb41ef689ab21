"""The model that comes with the package: it scores without a registry, and proves its files."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from contrique import distortions, images
from contrique.artifacts import COEFFICIENTS, ENCODER, FULL_REFERENCE, REGRESSOR
from contrique.config import RegistryConfig
from contrique.registry.load import load_model
from contrique.scoring import bundled
from contrique.scoring.bundled import BundleError, bundled_folder, load_bundled, load_full_reference
from contrique.scoring.compare import Comparison, compare
from contrique.scoring.results import Score
from contrique.scoring.scorer import Scorer


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return load_bundled()


def test_without_a_registry_the_bundled_model_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert load_model("", RegistryConfig()).version == "bundled" == load_model("bundled", RegistryConfig()).version
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_command_line_says_which_model_answers(photographs: Path, tmp_path: Path) -> None:
    paths = sorted(map(str, (photographs / "images").iterdir()))[:3]
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, "-m", "contrique.cli", "score", "--format", "json", *paths]
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    results = json.loads(process.stdout)
    assert [item["model"] for item in results] == ["bundled"] * 3
    assert all(0 < item["score"] < 100 and item["interval"] for item in results)


def test_worse_pictures_score_lower(scorer: Scorer, photographs: Path) -> None:
    """Of each distortion at its strongest, less than the photograph; levels of three are in order."""
    picture = images.fit_within(images.read(str(photographs / "images" / "coffee.png")), 384)
    clean = images.as_float(picture)

    def score(name: str, level: int) -> float:
        distorted = distortions.distort(clean, name, level, np.random.default_rng(0))
        return float(scorer.score([images.as_uint8(distorted)])[0])

    whole = float(scorer.score([picture])[0])
    for name in ("jpeg", "gaussian_blur", "white_noise"):
        scores = [score(name, level) for level in (2, 4, 5)]
        assert scores == sorted(scores, reverse=True), name
        assert scores[-1] < whole - 10, name


def test_the_likeliest_distortion_is_named(scorer: Scorer, photographs: Path) -> None:
    clean = images.as_float(images.fit_within(images.read(str(photographs / "images" / "rocket.png")), 384))
    assert scorer.head.diagnosis is not None
    for name in ("jpeg", "pixelate", "impulse_noise"):
        distorted = images.as_uint8(distortions.distort(clean, name, 5, np.random.default_rng(0)))
        assert name in [item.distortion for item in scorer.head.diagnosis.suspects(scorer.features(distorted))[:2]]


def test_beside_its_reference_an_identical_picture_is_perfect(
    scorer: Scorer, photographs: Path, tmp_path: Path
) -> None:
    path = photographs / "images" / "coffee.png"
    blur = distortions.distort(images.as_float(images.read(str(path))), "gaussian_blur", 4, np.random.default_rng(0))
    (tmp_path / "blurred.png").write_bytes(images.encode_png(images.as_uint8(blur)))
    same, worse = compare(scorer, load_full_reference(), path, [path, tmp_path / "blurred.png"])
    assert isinstance(same, Comparison)
    assert isinstance(worse, Comparison)
    assert same.score == 100.0
    assert worse.score < 95


@pytest.mark.parametrize("name", [ENCODER, FULL_REFERENCE, f"{REGRESSOR}/{COEFFICIENTS}"])
@pytest.mark.parametrize("fault", ["changed", "missing"])
def test_a_file_that_is_not_the_published_one_never_scores(
    name: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bundled"
    shutil.copytree(bundled_folder(), folder, copy_function=os.link)
    content = bytearray((folder / name).read_bytes())
    (folder / name).unlink()
    if fault == "changed":
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)
    monkeypatch.setattr(bundled, "bundled_folder", lambda: folder)
    with pytest.raises(BundleError, match=rf"{Path(name).name}: .* install the package again"):
        load_bundled()


def test_scores_carry_everything(scorer: Scorer, photographs: Path) -> None:
    (result,) = scorer.score_paths([photographs / "images" / "chelsea.png"])
    assert isinstance(result, Score)
    assert result.interval is not None
    assert result.interval[0] < result.score < result.interval[1]
    assert result.model == "bundled"
    assert result.distance is not None
    assert bool(result.warning) == (result.distance > 1)
