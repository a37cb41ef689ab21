"""Pictures beside their reference: anchored at identical, one clear line for what cannot be compared."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_model

from contrique import distortions, images
from contrique.images import BadImage
from contrique.regressor.full_reference import FullReference, fit_full_reference
from contrique.regressor.ridge import RegressorError
from contrique.scoring.compare import Comparison, compare
from contrique.scoring.results import Failure
from contrique.scoring.scorer import Scorer


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    parts = tiny_model.build(tmp_path_factory.mktemp("models") / "tiny", 0)
    return Scorer(parts.encoder, parts.regressor, version="7")


@pytest.fixture(scope="module")
def head(scorer: Scorer) -> FullReference:
    originals, versions, labels = [], [], []
    for seed in range(4):
        picture = tiny_model.picture(seed)
        for level in range(1, 6):
            rng = np.random.default_rng(level)
            blur = distortions.distort(images.as_float(picture), "gaussian_blur", level, rng)
            originals.append(scorer.features(picture))
            versions.append(scorer.features(images.as_uint8(blur)))
            labels.append(1 - 0.15 * level)
    return fit_full_reference(np.stack(versions), np.stack(originals), labels, 0.1, perfect=1.0)


def write(picture: images.Picture, path: Path) -> Path:
    path.write_bytes(images.encode_png(picture))
    return path


def test_identical_pictures_score_the_best_exactly(scorer: Scorer, head: FullReference, tmp_path: Path) -> None:
    for seed in (10, 11):
        path = write(tiny_model.picture(seed), tmp_path / f"{seed}.png")
        (result,) = compare(scorer, head, path, [path])
        assert isinstance(result, Comparison)
        assert (result.score, result.raw, result.model, result.reference) == (100.0, 1.0, "7", str(path))


def test_no_picture_is_above_its_reference_and_quality_falls_with_blur(
    scorer: Scorer, head: FullReference, tmp_path: Path
) -> None:
    picture = tiny_model.picture(12)
    reference = write(picture, tmp_path / "reference.png")
    paths = []
    for level in range(1, 6):
        blur = distortions.distort(images.as_float(picture), "gaussian_blur", level, np.random.default_rng(0))
        paths.append(write(images.as_uint8(blur), tmp_path / f"{level}.png"))
    scores = [item.score for item in compare(scorer, head, reference, paths) if isinstance(item, Comparison)]
    assert len(scores) == 5
    assert max(scores) <= 100
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > scores[-1]


def test_what_cannot_be_compared_is_named_and_the_rest_goes_on(
    scorer: Scorer, head: FullReference, tmp_path: Path
) -> None:
    reference = write(tiny_model.picture(13), tmp_path / "reference.png")
    smaller = write(tiny_model.picture(13)[:70, :80], tmp_path / "smaller.png")
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    results = list(compare(scorer, head, reference, [smaller, tmp_path / "broken.jpg", tmp_path / "absent", reference]))
    assert [type(item) for item in results] == [Failure, Failure, Failure, Comparison]
    assert "smaller.png: is 80x70 and" in results[0].error
    with pytest.raises(BadImage, match="broken"):
        next(compare(scorer, head, tmp_path / "broken.jpg", [reference]))


def test_a_head_is_read_as_it_was_written(head: FullReference, tmp_path: Path) -> None:
    path = tmp_path / "head.npz"
    head.save(path)
    copy = FullReference.load(path)
    np.testing.assert_allclose(copy.coef, head.coef, rtol=1e-6)
    assert (copy.perfect, copy.alpha, copy.worst) == (head.perfect, head.alpha, head.worst)
    first = path.read_bytes()
    head.save(path)
    assert path.read_bytes() == first


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"coef": np.ones(3)},
        {"coef": np.array([1, np.nan]), "perfect": 1.0, "alpha": 1.0, "worst": 0.0},
        {"coef": np.ones((2, 2)), "perfect": 1.0, "alpha": 1.0, "worst": 0.0},
        {"coef": np.ones(2), "perfect": 0.0, "alpha": 1.0, "worst": 0.0},
        {"coef": np.ones(2), "perfect": np.inf, "alpha": 1.0, "worst": 0.0},
        {"coef": np.array(["a"]), "perfect": 1.0, "alpha": 1.0, "worst": 0.0},
    ],
)
def test_a_head_that_makes_no_sense_is_one_clear_error(arrays: dict[str, object], tmp_path: Path) -> None:
    np.savez(tmp_path / "head.npz", **arrays)
    with pytest.raises(RegressorError, match="full-reference head"):
        FullReference.load(tmp_path / "head.npz")


def test_the_command_line_compares(photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from contrique.cli.main import main

    original = photographs / "images" / "coffee.png"
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert main(["compare", str(original), str(original), str(tmp_path / "broken.png"), "--format", "json"]) == 1
    same, failure = json.loads(capsys.readouterr().out)
    assert (same["score"], same["model"]) == (100.0, "bundled")
    assert "broken.png" in failure["error"]
    assert main(["compare", str(original), str(original), "--model", str(tmp_path)]) == 2
    assert "has no full-reference head" in capsys.readouterr().err
