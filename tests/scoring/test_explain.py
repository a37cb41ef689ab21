"""The heat map and the head of distortions, on the real encoder with random weights and on made features."""

import dataclasses
import json

import numpy as np
import pytest
import tiny_model
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from contrique import images
from contrique.cli.main import main
from contrique.encoder.features import ImageTooSmall
from contrique.regressor.diagnosis import ANY, MIN_CONTENTS, PRISTINE, SHRINKAGE, Diagnosis, fit_diagnosis
from contrique.regressor.head import Head
from contrique.scoring.explain import explain, explanation_as_dict, overlay
from contrique.scoring.scorer import Scorer


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return tiny_model.build(tmp_path_factory.mktemp("model") / "parts")


@pytest.fixture(scope="module")
def scorer(parts):
    return Scorer(parts.encoder, parts.regressor)


def draw_features(photographs=20, width=40, seed=0):
    """Features in which each distortion has a direction of its own, and each level its length."""
    rng = np.random.default_rng(seed)
    directions = dict(zip(("jpeg", "white_noise", "gaussian_blur"), np.eye(width), strict=False))
    rows = []
    for i in range(photographs):
        base = 1 + 0.3 * rng.normal(size=width)
        for name, level in [("", 0), *((name, level) for name in directions for level in range(1, 6))]:
            point = base + (level and 1 + level) * directions.get(name, 0) + 0.1 * rng.normal(size=width)
            rows.append((point, name, level, f"photo{i}"))
    x, names, levels, contents = zip(*rows, strict=True)
    return np.array(x, np.float32), list(names), list(levels), list(contents)


def test_the_head_names_distortions_and_levels_of_photographs_it_never_saw():
    head, accuracy = fit_diagnosis(*draw_features())
    x, names, levels, _ = draw_features(seed=1)
    answers = [head.suspects(row)[0] for row in x]
    truth = [
        (PRISTINE, 0) if not n or (n, k) == ("gaussian_blur", 1) else (n, k) for n, k in zip(names, levels, strict=True)
    ]
    assert accuracy > 0.85
    assert np.mean([item.distortion == name for item, (name, _) in zip(answers, truth, strict=True)]) > 0.85
    right = [(item.level, level) for item, (name, level) in zip(answers, truth, strict=True) if item.distortion == name]
    assert np.mean([abs(a - b) for a, b in right]) < 0.6
    for row in x[:20]:
        suspects = head.suspects(row)
        assert sum(item.probability for item in suspects) == pytest.approx(1)
        assert [item.probability for item in suspects] == sorted((s.probability for s in suspects), reverse=True)
        assert sorted(item.distortion for item in suspects) == ["gaussian_blur", "jpeg", PRISTINE, "white_noise"]


def test_with_levels_of_one_it_is_scikit_learns_discriminant():
    """One level a distortion: the covariance is then that of the classes, as scikit-learn has it."""
    x, names, levels, contents = draw_features()
    indices = [i for i, (name, level) in enumerate(zip(names, levels, strict=True)) if level == 3 or not name]
    x, names, contents = (
        x[indices].astype(np.float64),
        [names[i] or PRISTINE for i in indices],
        [contents[i] for i in indices],
    )
    head, _ = fit_diagnosis(
        x, ["" if n == PRISTINE else n for n in names], [3 * (n != PRISTINE) for n in names], contents
    )
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=SHRINKAGE, priors=[0.25] * 4).fit(x, names)
    ours = {item.distortion: item.probability for item in head.suspects(x[7])}
    theirs = dict(zip(reference.classes_, reference.predict_proba(x[7:8])[0], strict=True))
    assert ours == pytest.approx(theirs, abs=1e-3)


def test_too_few_photographs_give_no_head():
    assert fit_diagnosis(*draw_features(MIN_CONTENTS - 1)) == (None, None)
    x, _, _, contents = draw_features()
    assert fit_diagnosis(x, [""] * len(x), [0] * len(x), contents) == (None, None)


@pytest.mark.parametrize("shape", [(64, 64), (96, 160), (150, 97)])
def test_the_mean_of_the_patches_is_the_pictures_score(scorer, shape):
    picture = tiny_model.picture(1, *shape)
    features, local = scorer.local(picture)
    assert local.shape == (-(-shape[0] // 32), -(-shape[1] // 32))
    assert local.mean() == pytest.approx(scorer.raw([picture])[0], abs=1e-9)
    assert features.shape == (2 * scorer.encoder.width,)


def test_each_patch_is_its_own_vector_through_the_ridge(scorer, parts):
    """By hand, at a cell of full scale that lies on one of half scale."""
    picture = tiny_model.picture(2, 192, 256)
    ridge = Head.load(parts.regressor).ridge
    vectors = []
    for scale, (row, column) in ((picture, (2, 4)), (images.half_scale(picture), (1, 2))):
        batch = torch.from_numpy(scale).permute(2, 0, 1)[None].float() / 255
        cell = scorer.encoder.maps(batch)[0, :, row, column].numpy()
        vectors.append(cell / np.linalg.norm(cell))
    _, local = scorer.local(picture)
    other = np.concatenate(vectors) @ ridge.coef
    vectors = []
    for scale, (row, column) in ((picture, (4, 0)), (images.half_scale(picture), (2, 0))):
        batch = torch.from_numpy(scale).permute(2, 0, 1)[None].float() / 255
        cell = scorer.encoder.maps(batch)[0, :, row, column].numpy()
        vectors.append(cell / np.linalg.norm(cell))
    assert local[2, 4] - local[4, 0] == pytest.approx(other - np.concatenate(vectors) @ ridge.coef, abs=0.02)


def test_an_explanation_holds_the_score_and_needs_no_head(scorer):
    picture = tiny_model.picture(3, 96, 130)
    explanation = explain(scorer, picture, "mine")
    assert explanation.score.path == "mine"
    assert explanation.score.score == scorer.score([picture])[0]
    assert explanation.suspects is None
    assert (explanation.heat >= 0).all()
    assert (explanation.heat <= 100).all()
    plain = json.loads(json.dumps(explanation_as_dict(explanation), allow_nan=False))
    assert np.shape(plain["heat"]) == explanation.heat.shape
    assert plain["suspects"] is None
    with pytest.raises(ImageTooSmall):
        explain(scorer, tiny_model.picture(0, 63, 99))


def test_the_overlay_is_red_where_it_is_bad_and_blue_where_it_is_good():
    picture = np.full((128, 192, 3), 120, np.uint8)
    heat = np.zeros((4, 6), np.float32)
    heat[:, 3:] = 100
    pixels = overlay(picture, heat).astype(int)
    assert pixels.shape == picture.shape
    assert (pixels[:, :60, 0] > pixels[:, :60, 2] + 50).all()
    assert (pixels[:, 100:, 2] > pixels[:, 100:, 0] + 50).all()
    np.testing.assert_array_equal(overlay(picture, heat, 0.0), picture)
    smaller = overlay(picture, heat, max_side=96).astype(int)
    assert smaller.shape == (64, 96, 3)
    np.testing.assert_allclose(smaller, pixels[::2, ::2], atol=12)


def test_the_command(parts, tmp_path, capsys):
    head, _ = fit_diagnosis(*draw_features(width=2 * 512))
    model = tmp_path / "model"
    dataclasses.replace(Head.load(parts.regressor), diagnosis=head).save(model / "regressor")
    (model / "encoder.safetensors").write_bytes(parts.encoder.read_bytes())
    picture = tiny_model.picture(5, 100, 140)
    (tmp_path / "in.png").write_bytes(images.encode_png(picture))
    arguments = ["explain", str(tmp_path / "in.png"), "--out", str(tmp_path / "heat.png"), "--model", str(model)]
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert images.read(tmp_path / "heat.png").shape == picture.shape
    assert "in.png" in output
    assert output.count("%") >= 3
    assert main([*arguments, "--format", "json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert {item["distortion"] for item in answer["suspects"]} == {"gaussian_blur", "jpeg", PRISTINE, "white_noise"}
    assert answer["score"] == Scorer(model / "encoder.safetensors", model / "regressor").score([picture])[0]
    (tmp_path / "in.png").write_bytes(b"")
    assert main(arguments) == 2
    assert "in.png: the file is empty" in capsys.readouterr().err


def test_rows_that_do_not_fit_together_are_refused():
    head, _ = fit_diagnosis(*draw_features())
    assert ANY in head.levels
    with pytest.raises(ValueError):
        Diagnosis(head.coef, head.intercept[:-1], head.distortions, head.levels)
