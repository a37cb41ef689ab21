"""Ridge against scikit-learn in every regime, its files, and what cannot be fitted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge as SklearnRidge

from contrique.artifacts import COEFFICIENTS, DESCRIPTION, FEATURES
from contrique.config import RegressorConfig
from contrique.data.manifest import as_manifest, read_manifest, write_manifest
from contrique.encoder.feature_set import load_set, save_features
from contrique.metrics import EvaluationError, rmse, srcc
from contrique.regressor import ridge
from contrique.regressor.cross_validation import choose_candidate, choose_within_error
from contrique.regressor.fit import ENOUGH_CONTENTS, fit_set, predict_residuals
from contrique.regressor.full_reference import fit_full_reference
from contrique.regressor.head import Head
from contrique.regressor.ridge import RegressorError, fit_path, fit_ridge, predict_tasks

ALPHAS = [1e-3, 0.1, 10.0, 1e4]


def unit_halves(n, width, seed=0, contents=12):
    """Features like the encoder's (halves of norm one, contents that differ, a steep spectrum), labels, contents."""
    generator = np.random.default_rng(seed)
    ids = np.arange(n) % contents
    halves = []
    for _ in range(2):
        spread = np.arange(1, width + 1) ** -0.8
        half = np.abs(generator.normal(size=(contents, width))[ids] + 0.5 * generator.normal(size=(n, width))) * spread
        halves.append(half / np.linalg.norm(half, axis=1, keepdims=True))
    x = np.concatenate(halves, axis=1)
    y = 50 + 20 * (x @ generator.normal(size=2 * width)) + generator.normal(size=n)
    return x, y, ids


@pytest.mark.parametrize(("n", "width"), [(200, 16), (40, 16), (32, 16), (15, 64), (2, 8)])
@pytest.mark.parametrize("intercept", [True, False])
def test_path_equals_scikit_learn(n, width, intercept):
    x, y, _ = unit_halves(n, width)
    for model, alpha in zip(fit_path(x, y, ALPHAS, intercept=intercept), ALPHAS, strict=True):
        reference = SklearnRidge(alpha=alpha, fit_intercept=intercept).fit(x, y)
        np.testing.assert_allclose(model.predict(x), reference.predict(x), rtol=0, atol=1e-8 * y.std())
        np.testing.assert_allclose(model.coef, reference.coef_, rtol=0, atol=1e-8 * np.abs(reference.coef_).max())
        assert model.intercept == pytest.approx(reference.intercept_, abs=1e-8 * np.abs(y).max())
        assert model.alpha == alpha


def test_fit_is_the_path_at_one_alpha():
    x, y, _ = unit_halves(60, 16)
    np.testing.assert_allclose(fit_ridge(x, y, 0.1).coef, fit_path(x, y, ALPHAS)[1].coef, rtol=1e-12)


def random_tasks(ids, count, seed=0):
    generator = np.random.default_rng(seed)
    tasks = []
    for _ in range(count):
        is_test = np.isin(ids, generator.choice(np.unique(ids), 4, replace=False))
        tasks.append((np.flatnonzero(~is_test), np.flatnonzero(is_test)))
    return tasks


def worst_error(x, y, tasks, predictions):
    """Largest deviation from scikit-learn, in standard deviations of its predictions."""
    worst = 0.0
    for (train, held_out), prediction in zip(tasks, predictions, strict=True):
        assert prediction.shape == (len(ALPHAS), len(held_out))
        for alpha, scores in zip(ALPHAS, prediction, strict=True):
            reference = SklearnRidge(alpha=alpha).fit(x[train], y[train]).predict(x[held_out])
            worst = max(worst, np.abs(scores - reference).max() / reference.std())
    return worst


def test_tasks_by_the_shared_gram_equal_the_scikit_learn_loop():
    x, y, ids = unit_halves(600, 32)
    tasks = random_tasks(ids, 6)
    assert worst_error(x, y, tasks, predict_tasks(x, y, tasks, ALPHAS)) < 1e-4


def test_tasks_by_the_shared_kernel_equal_the_scikit_learn_loop():
    x, y, ids = unit_halves(60, 64)
    tasks = random_tasks(ids, 6)
    assert worst_error(x, y, tasks, predict_tasks(x, y, tasks, ALPHAS)) < 1e-8


def test_tasks_that_do_not_converge_are_solved_exactly(monkeypatch):
    x, y, ids = unit_halves(600, 32)
    tasks = random_tasks(ids, 3)
    monkeypatch.setattr(ridge, "MAX_STEPS", 2)
    monkeypatch.setattr(ridge, "MAX_REFINEMENTS", 1)
    assert worst_error(x, y, tasks, predict_tasks(x, y, tasks, ALPHAS)) < 1e-8


def test_tasks_with_a_training_part_much_smaller_than_the_whole():
    x, y, ids = unit_halves(600, 16)
    tasks = [(np.flatnonzero(ids == 0), np.flatnonzero(ids == 1)), (np.flatnonzero(ids < 2), np.flatnonzero(ids > 9))]
    assert worst_error(x, y, tasks, predict_tasks(x, y, tasks, ALPHAS)) < 1e-4


@pytest.mark.parametrize("width", [16, 256])
def test_labels_of_held_out_rows_are_never_read(width):
    x, y, ids = unit_halves(200, width)
    task = (np.flatnonzero(ids > 2), np.flatnonzero(ids <= 2))
    expected = predict_tasks(x, y, [task], ALPHAS)[0]
    y[task[1]] = np.nan
    np.testing.assert_array_equal(predict_tasks(x, y, [task], ALPHAS)[0], expected)


@pytest.mark.parametrize("width", [8, 256])
def test_float32_features_and_a_shifted_label_change_nothing_else(width):
    x, y, ids = unit_halves(100, width)
    x = x.astype(np.float32)
    task = (np.flatnonzero(ids > 2), np.flatnonzero(ids <= 2))
    plain = predict_tasks(x, y, [task], ALPHAS)[0]
    actual = predict_tasks(x.astype(np.float64) + 3, 2 * y + 1000, [task], ALPHAS)[0]
    np.testing.assert_allclose(actual, 2 * plain + 1000, atol=1e-4 * y.std())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x, y[:-1]), "do not fit"),
        (lambda x, y: (x[:, :0], y), "do not fit"),
        (lambda x, y: (x[0], y), "do not fit"),
        (lambda x, y: (x[:1], y[:1]), "give at least 2"),
        (lambda x, y: (x, np.full_like(y, 3)), "training labels are 3"),
        (lambda x, y: (np.ones_like(x), y), "same features"),
        (lambda x, y: (np.where(np.arange(len(x))[:, None] == 4, np.nan, x), y), "first row 4"),
        (lambda x, y: (x, np.where(np.arange(len(y)) == 7, np.inf, y)), "first row 7"),
    ],
)
def test_what_cannot_be_fitted_is_a_clear_error(change, message):
    x, y, _ = unit_halves(30, 8)
    with pytest.raises(RegressorError, match=message):
        fit_path(*change(x, y), ALPHAS)


@pytest.mark.parametrize("alphas", [[], [0.0], [-1.0], [np.nan], [np.inf]])
def test_alphas_must_be_positive_numbers(alphas):
    x, y, _ = unit_halves(30, 8)
    with pytest.raises(RegressorError, match="alphas must be positive"):
        fit_path(x, y, alphas)


def test_a_task_with_a_nan_training_label_is_refused():
    x, y, _ = unit_halves(60, 8)
    y[5] = np.nan
    with pytest.raises(RegressorError, match="labels are NaN"):
        predict_tasks(x, y, [(np.arange(50), np.arange(50, 60))], ALPHAS)


@pytest.mark.parametrize("wrong", [np.zeros((3, 15)), np.zeros(16), np.full((1, 16), np.nan)])
def test_predict_refuses_features_that_do_not_fit(wrong):
    x, y, _ = unit_halves(30, 8)
    with pytest.raises(RegressorError):
        fit_ridge(x, y, 1.0).predict(wrong)


def test_choose_takes_the_best_ranking_and_of_equals_the_last():
    labels = np.arange(6.0)
    assert choose_candidate(np.array([labels[::-1], labels * 2, labels + 1, np.ones(6)]), labels) == 2
    with pytest.raises(EvaluationError, match="no candidate"):
        choose_candidate(np.ones((3, 6)), labels)


def test_of_candidates_that_rank_alike_the_most_accurate_is_chosen():
    """Four pictures of one content: all of a penalty that draws the scores together rank as those of a weaker one."""
    labels = np.array([10.0, 40.0, 60.0, 90.0])
    swapped = np.array([12.0, 57.0, 55.0, 88.0])
    narrow = 50 + (labels - 50) / 100
    assert choose_candidate(np.array([labels, narrow]), labels) == 1
    assert choose_within_error(np.array([labels + 1, narrow, np.ones(4)]), labels) == 0
    assert choose_within_error(np.array([swapped, narrow]), labels) == 0  # of four pictures a rank of 1 says little
    backwards = 50 - (labels - 50) / 100
    assert choose_within_error(np.array([backwards, 1e3 * swapped]), labels) == 1  # whatever its error
    with pytest.raises(EvaluationError, match="no candidate"):
        choose_within_error(np.ones((3, 4)), labels)


@pytest.mark.parametrize(("count", "expected"), [(10, 0), (1000, 1)])
def test_a_better_ranking_wins_where_pictures_are_many_enough_to_tell(count, expected):
    rng = np.random.default_rng(0)
    labels = rng.normal(size=count)
    noise = rng.normal(size=count)
    accurate, ranking = labels + 0.5 * noise, 100 * (labels + 0.4 * noise)
    assert srcc(accurate, labels) < srcc(ranking, labels)
    assert choose_within_error(np.array([accurate, ranking]), labels) == expected


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(4, 40))
def test_what_is_chosen_ranks_within_an_error_of_the_best_and_none_such_is_nearer(seed, n):
    """Against the definition, a candidate at a time."""
    rng = np.random.default_rng(seed)
    labels = rng.normal(size=n)
    candidates = np.array(
        [labels * a + rng.normal(size=n) * b for a, b in zip(rng.random(8), rng.random(8), strict=True)]
    )
    agreement = [srcc(scores, labels) for scores in candidates]
    best = min(max(agreement), 1 - 6 / (n**3 - n))
    floor = np.tanh(np.arctanh(best) - np.sqrt((1 + best**2 / 2) / max(1, n - 3)))
    if best > 0:
        floor = max(floor, 1e-9)
    errors = {i: rmse(candidates[i], labels) for i, value in enumerate(agreement) if value >= floor - 1e-12}
    assert choose_within_error(candidates, labels) == min(errors, key=errors.__getitem__)


# ------------------------------------------------------------------------------------------------- full reference


def test_full_reference_is_anchored_at_perfect():
    x, _, _ = unit_halves(80, 16)
    generator = np.random.default_rng(1)
    severity = np.tile(np.linspace(0.1, 1, 8), 10)
    distorted = x + severity[:, None] * 0.1 * np.abs(generator.normal(size=32))
    labels = 100 - 60 * severity
    model = fit_full_reference(distorted, x, labels, 1e-3, perfect=100.0)
    assert (model.predict(x, x) == 100.0).all()
    scores = model.predict(distorted, x)
    assert (scores <= 100).all()
    assert srcc(scores, labels) > 0.9
    assert (np.diff([scores[severity == s].mean() for s in np.unique(severity)]) < 0).all()
    np.testing.assert_array_equal(model.predict(x, distorted), scores)  # a distance has no direction
    reference = SklearnRidge(alpha=1e-3, fit_intercept=False).fit(np.abs(distorted - x), 100 - labels)
    np.testing.assert_allclose(scores, np.minimum(100, 100 - np.abs(distorted - x) @ reference.coef_), atol=1e-7)


def test_full_reference_refuses_what_does_not_fit():
    x, y, _ = unit_halves(20, 8)
    with pytest.raises(RegressorError, match="above the score of a perfect picture"):
        fit_full_reference(x, x + 0.1, y, 1.0, perfect=float(y.max()) - 1)
    with pytest.raises(RegressorError, match="one reference a picture"):
        fit_full_reference(x, x[:-1], y, 1.0, perfect=1e9)
    with pytest.raises(RegressorError, match="same features"):
        fit_full_reference(x, x, y, 1.0, perfect=1e9)


# ---------------------------------------------------------------------------------------------------------- files


def feature_set(directory, kind="human", n=90, seed=0, labels=None):
    x, y, ids = unit_halves(n, 8, seed, contents=9)
    y = y if labels is None else labels
    rows = [
        {
            "image": f"{i}.png",
            "reference": f"c{ids[i]}",
            "split": "train" if ids[i] < 5 else "validation" if ids[i] < 7 else "test",
            "kind": "distorted",
            "mos": y[i] if kind == "human" else np.nan,
            "weak_label": (y[i] - y.min()) / np.ptp(y) if kind == "weak" else np.nan,
        }
        for i in range(n)
    ]
    write_manifest(as_manifest(rows), directory)
    save_features(x.astype(np.float32), [row["image"] for row in rows], directory / FEATURES)
    return x.astype(np.float32), y, ids


@pytest.mark.parametrize("kind", ["human", "weak"])
def test_fit_set_chooses_alpha_on_the_validation_part_only(tmp_path, kind):
    x, y, ids = feature_set(tmp_path / "features", kind)
    summary = fit_set(tmp_path / "features", tmp_path / "out", config=RegressorConfig(alphas=tuple(ALPHAS)))
    train, validation = ids < 5, (ids >= 5) & (ids < 7)
    target = y if kind == "human" else (y - y.min()) / np.ptp(y)
    models = [SklearnRidge(alpha=alpha).fit(x[train].astype(float), target[train]) for alpha in ALPHAS]
    scores = np.array([model.predict(x[validation].astype(float)) for model in models])
    best = choose_within_error(scores, target[validation])
    assert summary.alpha == ALPHAS[best]
    assert summary.validation_srcc == pytest.approx(srcc(scores[best], target[validation]), abs=1e-9)
    assert (summary.labels, summary.n, summary.contents, summary.features_dim) == (kind, train.sum(), 5, 16)
    declared = (0.0, 1.0) if kind == "weak" else (y[train].min(), y[train].max())
    assert (summary.label_low, summary.label_high) == declared
    head = Head.load(tmp_path / "out")
    assert head.summary == summary
    expected = models[best].predict(x.astype(float))
    np.testing.assert_allclose(head.predict(x), expected, atol=1e-8 * np.abs(target).max())


def test_fit_set_does_not_see_the_test_part(tmp_path):
    _, y, ids = feature_set(tmp_path / "a")
    y = np.where(ids >= 7, 1e6, y)
    feature_set(tmp_path / "b", labels=y)
    for name in ("a", "b"):
        fit_set(tmp_path / name, tmp_path / f"{name}-out", config=RegressorConfig())
    for file in (COEFFICIENTS, DESCRIPTION):
        assert (tmp_path / "a-out" / file).read_bytes() == (tmp_path / "b-out" / file).read_bytes()


def test_fit_set_without_a_part_names_it(tmp_path):
    feature_set(tmp_path / "features")
    manifest = read_manifest(tmp_path / "features")
    manifest["split"] = manifest["split"].replace("validation", "test")
    write_manifest(manifest, tmp_path / "features")
    with pytest.raises(RegressorError, match="validation part"):
        fit_set(tmp_path / "features", tmp_path / "out", config=RegressorConfig())


# ------------------------------------------------------------------------------------- the contract's other parts


def exchangeable_set(directory, contents, each=6, seed=0):
    """Contents drawn alike, labels with a part of each content's own and heavy tails; a fifth each held out."""
    rng = np.random.default_rng(seed)
    n = contents * each
    ids = np.arange(n) % contents
    x = rng.normal(size=(contents, 24))[ids] + rng.normal(size=(n, 24))
    y = 50 + 3 * x[:, :4].sum(axis=1) + rng.normal(size=contents)[ids] + 2 * rng.standard_t(3, size=n)
    part = np.array(["train", "train", "train", "validation", "test"])[ids % 5]
    rows = [
        {"image": f"{i}.png", "reference": f"c{ids[i]}", "split": part[i], "kind": "authentic", "mos": y[i]}
        for i in range(n)
    ]
    write_manifest(as_manifest(rows), directory)
    save_features(x.astype(np.float32), [row["image"] for row in rows], directory / FEATURES)
    return x, y, part


@pytest.mark.parametrize("contents", [400, 40])
def test_the_interval_covers_the_test_part_as_often_as_promised(tmp_path, contents):
    """With enough contents the validation part sets it alone, with fewer the training part joins out of fold."""
    hits, total = 0, 0
    for seed in range(4 if contents > 100 else 20):
        x, y, part = exchangeable_set(tmp_path / f"{seed}", contents, seed=seed)
        summary = fit_set(tmp_path / f"{seed}", tmp_path / f"out{seed}", config=RegressorConfig())
        alone = contents // 5 >= ENOUGH_CONTENTS
        assert summary.interval_n == (part == "validation").sum() + (0 if alone else (part == "train").sum())
        ridge = Head.load(tmp_path / f"out{seed}").ridge
        test = part == "test"
        hits += np.sum(np.abs(y[test] - ridge.predict(x[test])) <= summary.interval)
        total += test.sum()
    assert hits / total == pytest.approx(0.9, abs=4 * np.sqrt(0.09 / total))


def test_residuals_of_training_pictures_come_from_ridges_that_saw_none_of_their_content(tmp_path):
    """Two contents far apart, each constant but for noise: known to the ridge, a content would have no residual."""
    rng = np.random.default_rng(0)
    x, y = np.repeat(np.eye(4), 10, axis=0) + 1e-3 * rng.normal(size=(40, 4)), np.repeat([0.0, 10, 20, 30], 10)
    contents = np.repeat(list("abcd"), 10)
    assert np.abs(fit_ridge(x, y, 1e-6).predict(x) - y).max() < 1
    assert np.abs(predict_residuals(x, y, contents, 1e-6)).min() > 1
    assert len(predict_residuals(x, y, np.full(40, "a"), 1e-6)) == 0


def test_what_comes_with_a_score_is_fitted_to_the_right_pictures(tmp_path):
    """Human labels, and synthesized pictures of pretraining photographs beside them."""
    feature_set(tmp_path / "features")
    manifest, values = load_set(tmp_path / "features")
    entries = [
        {"image": f"m{i}.png", "reference": f"p{i % 8}", "split": "pretrain", "kind": "distorted", "level": 3}
        | {"distortion": ["jpeg", "white_noise"][i // 8 % 2], "weak_label": 0.5}
        for i in range(48)
    ]
    table = as_manifest([*manifest.to_dict("records"), *entries])
    far_values = np.random.default_rng(0).normal(size=(48, 16)) + 9 * (np.arange(48) // 8 % 2)[:, None]
    write_manifest(table, tmp_path / "features")
    values = np.concatenate([values, far_values.astype(np.float32)])
    save_features(values, list(table["image"]), tmp_path / "features" / FEATURES)
    summary = fit_set(tmp_path / "features", tmp_path / "out", config=RegressorConfig())
    assert summary.diagnosis_accuracy == 1.0
    head = Head.load(tmp_path / "out")
    assert head.diagnosis.suspects(far_values[0])[0].distortion == "jpeg"
    assert head.diagnosis.suspects(far_values[8])[0].distortion == "white_noise"
    assert head.novelty.distance(far_values).min() > 1
