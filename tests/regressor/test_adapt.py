"""A new head on somebody's own scores: against a slow obvious reference, on planted and on empty data, by command."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_model
import torch
from PIL import Image
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold

from contrique.cli.main import main
from contrique.config import RegistryConfig, RegressorConfig
from contrique.encoder.features import extract
from contrique.encoder.weights import load_encoder
from contrique.metrics import EvaluationError, srcc
from contrique.registry.registration import register
from contrique.regressor.adapt import ADAPT_FOLDS, Adaptation, adapt
from contrique.regressor.head import Head
from contrique.regressor.ridge import RegressorError
from contrique.scoring.scorer import Scorer

ALPHAS = (0.1, 1.0, 10.0, 100.0)
CONFIG = RegressorConfig(alphas=ALPHAS)


def draw_sample(n: int = 60, noise: float = 0.3, seed: int = 0) -> tuple[Any, Any, list[str]]:
    """Scores that follow the features, two pictures a content."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 12))
    y = 3 + x @ rng.normal(size=12) + rng.normal(0, noise, n)
    return x, y, [f"c{i // 2:03}" for i in range(n)]


def slow(x: Any, y: Any, contents: list[str], seed: int) -> tuple[float, float]:
    """Alpha and out-of-fold SRCC by nested loops over scikit-learn's Ridge."""
    group = np.empty(len(y), int)
    splitter = GroupKFold(ADAPT_FOLDS, shuffle=True, random_state=seed)
    for k, (_, test) in enumerate(splitter.split(x, groups=contents)):
        group[test] = k

    def cross(rows: Any, alpha: float) -> Any:
        predictions = np.full(len(y), np.nan)
        for k in sorted(set(group[rows])):
            train, test = rows[group[rows] != k], rows[group[rows] == k]
            predictions[test] = Ridge(alpha=alpha).fit(x[train], y[train]).predict(x[test])
        return predictions[rows]

    def best(rows: Any) -> float:
        values = {alpha: srcc(cross(rows, alpha), y[rows]) for alpha in ALPHAS}
        return max(alpha for alpha in ALPHAS if values[alpha] == max(values.values()))

    scores = np.empty(len(y))
    for k in range(ADAPT_FOLDS):
        train, test = np.flatnonzero(group != k), np.flatnonzero(group == k)
        scores[test] = Ridge(alpha=best(train)).fit(x[train], y[train]).predict(x[test])
    return best(np.arange(len(y))), srcc(scores, y)


@pytest.mark.parametrize("seed", [0, 3])
def test_equals_the_slow_nested_loops(seed: int) -> None:
    x, y, contents = draw_sample(noise=2.0, seed=seed)
    result = adapt(x, y, contents, config=CONFIG, seed=seed)
    alpha, value = slow(x, y, contents, seed)
    assert result.ridge.alpha == result.summary.alpha == alpha
    assert result.srcc == pytest.approx(value, abs=1e-12)
    expected = Ridge(alpha=alpha).fit(x, y)
    np.testing.assert_allclose(result.ridge.predict(x), expected.predict(x), atol=1e-8)
    assert result.low <= result.srcc <= result.high
    assert (result.summary.n, result.summary.contents, result.summary.features_dim) == (60, 30, 12)
    assert (result.summary.label_low, result.summary.label_high) == (y.min(), y.max())
    assert same(result, adapt(x, y, contents, config=CONFIG, seed=seed))


def same(a: Adaptation, b: Adaptation) -> bool:
    return (a.srcc, a.low, a.high, a.summary) == (b.srcc, b.low, b.high, b.summary) and np.array_equal(
        a.ridge.coef, b.ridge.coef
    )


def test_ranks_what_can_be_ranked_and_claims_nothing_otherwise() -> None:
    x, y, contents = draw_sample()
    assert adapt(x, y, contents, config=CONFIG).low > 0.9
    rng = np.random.default_rng(1)
    wide = rng.normal(size=(60, 400))  # fits any 60 scores exactly, and knows nothing of them
    result = adapt(wide, rng.permutation(y), contents, config=CONFIG)
    assert result.srcc < 0.4
    assert result.low < 0 < result.high or result.high < 0.4


def test_the_gain_is_that_of_the_same_resamples() -> None:
    x, y, contents = draw_sample(n=80, noise=1.0)
    rng = np.random.default_rng(5)
    poor, perfect = rng.normal(size=80), 7 * y - 3
    gain = adapt(x, y, contents, config=CONFIG, before=poor).gain
    assert gain is not None
    assert gain.is_proven
    assert gain.before == pytest.approx(srcc(poor, y))
    assert gain.before_low < gain.before < gain.before_high
    assert gain.low < gain.value < gain.high
    worse = adapt(x, y, contents, config=CONFIG, before=perfect)
    assert worse.gain is not None
    assert (worse.gain.before, worse.gain.is_proven) == (1.0, False)
    assert worse.gain.value == pytest.approx(worse.srcc - 1)
    assert worse.gain.high < 0
    same = adapt(x, y, contents, config=CONFIG, before=Ridge(alpha=1.0).fit(x, y).predict(x))
    assert same.gain is not None
    assert not same.gain.is_proven
    assert adapt(x, y, contents, config=CONFIG, before=np.ones(80)).gain is None
    assert adapt(x, y, contents, config=CONFIG).gain is None


def test_pictures_of_one_content_stay_together() -> None:
    """Features that tell contents apart and nothing else: known contents would be ranked, new ones cannot be."""
    rng = np.random.default_rng(0)
    contents = np.repeat(np.arange(15), 6)
    x = np.eye(15)[contents] + rng.normal(0, 0.01, (90, 15))
    y = rng.normal(size=15)[contents] + rng.normal(0, 0.1, 90)
    apart = adapt(x, y, [f"p{i}" for i in range(90)], config=CONFIG)
    together = adapt(x, y, [f"c{i}" for i in contents], config=CONFIG)
    assert apart.srcc > 0.9
    assert together.srcc < 0.5
    assert together.high - together.low > apart.high - apart.low


def test_refusals() -> None:
    x, y, contents = draw_sample()
    with pytest.raises(RegressorError, match="19 scored pictures of 10 contents are too few"):
        adapt(x[:19], y[:19], contents[:19], config=CONFIG)
    with pytest.raises(RegressorError, match="60 scored pictures of 6 contents are too few"):
        adapt(x, y, [f"c{i % 6}" for i in range(60)], config=CONFIG)
    holed = y.copy()
    holed[4] = np.nan
    with pytest.raises(RegressorError, match="1 scores are missing or no numbers, first that of picture 5"):
        adapt(x, holed, contents, config=CONFIG)
    with pytest.raises((RegressorError, EvaluationError), match=r"nothing to learn|constant"):
        adapt(x, np.ones(60), contents, config=CONFIG)
    with pytest.raises(RegressorError, match="do not fit"):
        adapt(x[:50], y, contents, config=CONFIG)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a champion and 40 scored pictures, noisier ones worse."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("house")
    parts = tiny_model.build(folder / "parts")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(folder)
        register(tiny_model.candidate(parts, ""), config=RegistryConfig(serve_seconds=0), run="monday")
    (folder / "scans").mkdir()
    lines = ["image,dmos"]
    for i in range(40):
        rng = np.random.default_rng(i)
        smooth = np.add.outer(np.linspace(0, 200, 64), np.linspace(0, 50, 72))[..., None] + rng.normal(size=3)
        pixels = np.clip(smooth + rng.normal(0, 2 * i, (64, 72, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"scans/{i}.png")
        lines.append(f"{i}.png,{20 + i}")
    (folder / "scans/my.csv").write_text("\n".join(lines))
    return folder


@pytest.mark.slow
def test_the_command_makes_a_model_that_scores(
    house: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(house)
    assert main(["adapt", "--labels", "scans/my.csv", "--out", "mine", "--set", "regressor.alphas=[0.01, 1]"]) == 0
    output = capsys.readouterr().out
    assert output.startswith("mine: 40 pictures of 40 contents, alpha ")
    assert "SRCC out of fold 0.9" in output
    assert "model 1 as it is: SRCC " in output
    assert "worth it" in output
    encoder = load_encoder(house / "parts/encoder.safetensors")
    pictures = [np.array(Image.open(house / f"scans/{i}.png")) for i in range(40)]
    result = adapt(
        extract(pictures, encoder),
        [59.0 - i for i in range(40)],  # the DMOS above, mirrored
        [f"{i}.png" for i in range(40)],
        config=RegressorConfig(alphas=(0.01, 1.0)),
    )
    head = Head.load(house / "mine/regressor")
    assert head.summary == result.summary
    np.testing.assert_array_equal(head.ridge.coef, result.ridge.coef)
    scorer = Scorer(house / "mine/encoder.safetensors", house / "mine/regressor")
    np.testing.assert_allclose(scorer.raw(pictures), result.ridge.predict(extract(pictures, encoder)), atol=1e-5)
    assert main(["score", "scans/0.png", "scans/39.png", "--model", "mine", "--format", "json"]) == 0
    best, worst = json.loads(capsys.readouterr().out)
    assert best["score"] > 90 > 10 > worst["score"]
    assert (best["model"], best["labels"]) == ("mine", "human")


@pytest.mark.slow
def test_the_command_finds_images_elsewhere_and_names_pictures_that_look_alike(
    house: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(house)
    scans = tmp_path / "scans"
    scans.mkdir()
    lines = ["image,mos,reference"]
    for i in range(24):
        pixels = np.random.default_rng(i // 2).integers(0, 255, (8, 9, 3), dtype=np.uint8)
        large = Image.fromarray(pixels).resize((90, 80), Image.Resampling.BICUBIC)
        large.save(scans / f"{i}.jpg", quality=95 if i % 2 else 40)
        lines.append(f"{i}.jpg,{i},{'alone' if i == 0 else i // 2}")
    labels = tmp_path / "elsewhere.csv"
    labels.write_text("\n".join(lines))
    command = ["adapt", "--labels", str(labels), "--images", str(scans), "--out", str(tmp_path / "mine")]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert "24 pictures of 13 contents" in out
    assert "1 pairs of pictures look alike under different references, such as 0.jpg and 1.jpg" in err
    assert "not worth it" in out
    assert "50 pictures or more are advised" in out


@pytest.mark.slow
def test_the_command_refuses(
    house: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(house)

    def catch_error(*arguments: str) -> str:
        assert main(["adapt", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.splitlines()[-1].startswith("contrique: ")
        return error

    assert "parts: is there already" in catch_error("--labels", "scans/my.csv", "--out", "parts")
    assert "none.csv: not found" in catch_error("--labels", "scans/none.csv", "--out", str(tmp_path / "x"))
    assert "no version '7'" in catch_error("--labels", "scans/my.csv", "--model", "7", "--out", str(tmp_path / "x"))
    few = house / "scans/few.csv"
    few.write_text("\n".join((house / "scans/my.csv").read_text().splitlines()[:6]))
    assert "5 scored pictures of 5 contents are too few" in catch_error(
        "--labels", str(few), "--out", str(tmp_path / "x")
    )
    assert not list(tmp_path.iterdir())
