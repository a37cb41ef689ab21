"""The protocol's splits and choices, what is fitted on one set and judged on another, and the gate's files."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.linear_model import Ridge as SklearnRidge

from contrique import metrics
from contrique.artifacts import EVALUATION, FEATURES, TEST_SCORES
from contrique.config import EvaluationConfig, GateConfig, RegressorConfig
from contrique.data.leaks import LeakError
from contrique.data.manifest import as_manifest, read_manifest, write_manifest
from contrique.data.splits import assign_splits
from contrique.encoder.feature_set import save_features
from contrique.evaluation.decision import decide_set
from contrique.evaluation.evaluate import Champion, evaluate_set
from contrique.evaluation.judgement import CROSS_SET, OPINION_UNAWARE, TEST_PART, Rated, estimate_agreement
from contrique.evaluation.protocol import cross_validate, transfer
from contrique.metrics import EvaluationError
from contrique.regressor.cross_validation import (
    LEAVE_ONE_OUT,
    OFFICIAL,
    RANDOM,
    full_reference_learner,
    make_folds,
    predict_out_of_fold,
    ridge_learner,
)
from contrique.regressor.fit import fit_set
from contrique.regressor.full_reference import fit_full_reference
from contrique.regressor.head import Head

CONFIG = EvaluationConfig(resamples=100)
ALPHAS = [1e-2, 1.0, 100.0]
KINDS = ("blur", "jpeg", "noise")


def judged_features(contents, per_content=12, width=24, seed=0):
    """Features that hold quality and content, labels, contents, distortions."""
    generator = np.random.default_rng(seed)
    ids = np.repeat(np.arange(contents), per_content)
    quality = generator.uniform(0, 1, len(ids))
    x = np.outer(quality, generator.normal(size=width)) + generator.normal(size=(contents, width))[ids]
    x += 0.1 * generator.normal(size=x.shape)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x, 20 + 60 * quality, [f"c{i}" for i in ids], [KINDS[i % 3] for i in range(len(ids))]


# --------------------------------------------------------------------------------------------------------- splits


@settings(deadline=None)
@given(st.integers(3, 40), st.integers(1, 5), st.integers(0, 99))
def test_folds_split_whole_contents_and_use_every_row(contents, per_content, seed):
    names = np.array([f"c{i % contents}" for i in range(contents * per_content)])
    protocol, folds = make_folds(list(names), config=CONFIG, seed=seed)
    enough = round(0.1 * contents) * per_content >= 3 and round(0.2 * contents) * per_content >= 5
    assert protocol == (RANDOM if contents >= CONFIG.few_contents and enough else LEAVE_ONE_OUT)
    assert len(folds) == (contents if protocol == LEAVE_ONE_OUT else 10)
    for fold in folds:
        parts = [set(names[part]) for part in (fold.train, fold.validation, fold.test)]
        assert sum(len(part) for part in parts) == len(set().union(*parts)) == contents
        np.testing.assert_array_equal(np.sort(np.r_[fold.train, fold.validation, fold.test]), np.arange(len(names)))
        assert len(fold.train) > 0
        assert len(fold.test) > 0
    if protocol == LEAVE_ONE_OUT:
        assert {name for fold in folds for name in names[fold.test]} == set(names)


def test_random_splits_are_70_10_20_and_follow_the_seed():
    names = [f"c{i}" for i in range(100)]
    _, folds = make_folds(names, config=CONFIG, seed=1)
    assert {(len(f.train), len(f.validation), len(f.test)) for f in folds} == {(70, 10, 20)}
    _, same = make_folds(names, config=CONFIG, seed=1)
    _, other = make_folds(names, config=CONFIG, seed=2)
    assert all((a.test == b.test).all() for a, b in zip(folds, same, strict=True))
    assert not all((a.test == b.test).all() for a, b in zip(folds, other, strict=True))
    assert len({tuple(f.test) for f in folds}) == 10


@pytest.mark.parametrize(("contents", "protocol"), [(n, LEAVE_ONE_OUT) for n in (9, 10, 12, 20, 25)] + [(26, RANDOM)])
def test_contents_of_one_picture_are_judged_however_many(contents, protocol):
    generator = np.random.default_rng(contents)
    x, y = generator.normal(size=(contents, 8)), generator.normal(size=contents)
    rated = Rated(y, [f"c{i}" for i in range(contents)], [""] * contents)
    result = cross_validate(x, rated, ridge_learner([1.0]), config=CONFIG, seed=0)
    assert (result.protocol, result.splits) == (protocol, contents if protocol == LEAVE_ONE_OUT else 10)


@pytest.mark.parametrize("contents", [10, 12, 20, 25])
def test_a_set_of_single_pictures_is_fitted_evaluated_and_decided(tmp_path, contents):
    generator = np.random.default_rng(contents)
    x = generator.normal(size=(contents, 8)).astype(np.float32)
    names = pd.Series([f"c{i}" for i in range(contents)])
    rows = pd.DataFrame({"image": names + ".png", "reference": names, "split": assign_splits(names)})
    rows = rows.assign(kind="authentic", mos=x[:, 0] * 10, sha256=[f"{i:064x}" for i in range(contents)])
    write_manifest(as_manifest(rows.to_dict("records")), tmp_path / "features")
    save_features(x, list(rows["image"]), tmp_path / "features" / FEATURES)
    summary = fit_set(tmp_path / "features", tmp_path / "fitted", config=RegressorConfig())
    assert -1 <= summary.validation_srcc <= 1
    result = evaluate(tmp_path)
    assert result.protocol.n == contents
    assert result.challenger.n >= 5
    decide_set(tmp_path / "out", tmp_path / "verdict.json", config=GateConfig())


def test_two_contents_cannot_be_split():
    with pytest.raises(EvaluationError, match="2 contents"):
        make_folds(["a", "b"] * 5, config=CONFIG, seed=0)


def test_leave_one_content_out_equals_the_slow_nested_loop():
    x, y, contents, _ = judged_features(4)
    names = np.array(contents)
    _, folds = make_folds(contents, config=CONFIG, seed=0)
    scores, choices = predict_out_of_fold(x, y, contents, folds, ridge_learner(ALPHAS))
    for fold, actual, index in zip(folds, scores, choices, strict=True):
        inner = []
        for alpha in ALPHAS:
            predictions = np.full(len(y), np.nan)
            for content in set(names[fold.train]):
                rows = fold.train[names[fold.train] != content]
                held_out = fold.train[names[fold.train] == content]
                predictions[held_out] = SklearnRidge(alpha=alpha).fit(x[rows], y[rows]).predict(x[held_out])
            inner.append(metrics.srcc(predictions[fold.train], y[fold.train]))
        assert index == int(np.argmax(inner))
        reference = SklearnRidge(alpha=ALPHAS[index]).fit(x[fold.train], y[fold.train]).predict(x[fold.test])
        np.testing.assert_allclose(actual, reference, atol=1e-4 * y.std())


def test_random_splits_choose_on_validation_and_fit_on_train():
    x, y, contents, _ = judged_features(12)
    _, folds = make_folds(contents, config=CONFIG, seed=0)
    scores, choices = predict_out_of_fold(x, y, contents, folds, ridge_learner(ALPHAS))
    for fold, actual, index in zip(folds, scores, choices, strict=True):
        models = [SklearnRidge(alpha=alpha).fit(x[fold.train], y[fold.train]) for alpha in ALPHAS]
        agreement = [metrics.srcc(model.predict(x[fold.validation]), y[fold.validation]) for model in models]
        assert agreement[index] == max(agreement)
        np.testing.assert_allclose(actual, models[index].predict(x[fold.test]), atol=1e-4 * y.std())


@pytest.mark.parametrize("contents", [5, 12])
def test_labels_of_a_test_part_choose_nothing(contents):
    x, y, groups, _ = judged_features(contents)
    _, folds = make_folds(groups, config=CONFIG, seed=0)
    learner = ridge_learner(ALPHAS)
    for fold in folds[:3]:
        expected = predict_out_of_fold(x, y, groups, [fold], learner)
        labels = y.copy()
        labels[fold.test] = np.nan
        blind = predict_out_of_fold(x, labels, groups, [fold], learner)
        assert blind[1] == expected[1]
        np.testing.assert_array_equal(blind[0][0], expected[0][0])


# ------------------------------------------------------------------------------------------------------ judgement


@pytest.mark.parametrize(("contents", "protocol"), [(5, LEAVE_ONE_OUT), (15, RANDOM)])
def test_every_figure_has_n_contents_splits_and_an_interval(contents, protocol):
    x, y, groups, kinds = judged_features(contents)
    args = (x, Rated(y, groups, kinds), ridge_learner(ALPHAS))
    result = cross_validate(*args, config=CONFIG, seed=0)
    assert result.protocol == protocol
    assert result.splits == (5 if contents == 5 else 10)
    assert len(result.alphas) == result.splits
    assert set(result.metrics) == {"srcc", "plcc", "plcc_logistic", "krcc", "rmse", "rmse_logistic"}
    for estimate in (*result.metrics.values(), result.within_content):
        assert estimate.low <= estimate.high
        assert np.isfinite([estimate.value, estimate.low, estimate.high]).all()
        assert (estimate.splits, estimate.unit) == (result.splits, "contents")
        assert 0 < estimate.contents <= contents
        assert estimate.n == 12 * estimate.contents
    assert set(result.slices) == set(KINDS)
    assert all(part.srcc.n == part.n >= 3 for part in result.slices.values())
    assert result.metrics["srcc"].value > 0.5
    assert cross_validate(*args, config=CONFIG, seed=0) == result


def test_leave_one_content_out_judges_the_pooled_scores():
    x, y, groups, kinds = judged_features(4)
    _, folds = make_folds(groups, config=CONFIG, seed=0)
    scores, _ = predict_out_of_fold(x, y, groups, folds, ridge_learner(ALPHAS))
    out_of_fold = np.empty(len(y))
    for fold, values in zip(folds, scores, strict=True):
        out_of_fold[fold.test] = values
    learner = ridge_learner(ALPHAS)
    result = cross_validate(x, Rated(y, groups, kinds), learner, config=CONFIG, seed=0)
    for name, point in metrics.POINT.items():
        assert result.metrics[name].value == pytest.approx(point(out_of_fold, y), abs=1e-12)
    names = np.array(groups)
    inside = [metrics.srcc(out_of_fold[names == c], y[names == c]) for c in sorted(set(groups))]
    assert result.within_content.value == pytest.approx(np.mean(inside), abs=1e-12)
    for name, part in result.slices.items():
        rows = np.array(kinds) == name
        assert part.srcc.value == pytest.approx(metrics.srcc(out_of_fold[rows], y[rows]), abs=1e-12)


def test_random_splits_report_the_median_over_splits():
    x, y, groups, kinds = judged_features(12)
    learner = ridge_learner(ALPHAS)
    _, folds = make_folds(groups, config=CONFIG, seed=0)
    scores, _ = predict_out_of_fold(x, y, groups, folds, learner)
    result = cross_validate(x, Rated(y, groups, kinds), learner, config=CONFIG, seed=0)
    values = [metrics.krcc(s, y[fold.test]) for fold, s in zip(folds, scores, strict=True)]
    assert result.metrics["krcc"].value == pytest.approx(np.median(values), abs=1e-12)


def judge(scores, labels, contents, distortions):
    rows = [(np.arange(len(labels)), scores)]
    rated = Rated(labels, contents, distortions, "weak")
    return estimate_agreement(rows, rated, config=CONFIG, seed=0, protocol=TEST_PART)


def test_one_content_is_resampled_by_picture_and_says_so():
    y = np.arange(20.0)
    result = judge(y + np.random.default_rng(0).normal(size=20), y, ["a"] * 20, [""] * 20)
    assert result.metrics["srcc"].unit == "pictures within contents"
    assert result.metrics["srcc"].low < result.metrics["srcc"].high
    assert result.slices == {}


def test_a_slice_without_a_correlation_says_why_and_gives_no_number():
    y = np.arange(20.0)
    kinds = ["jpeg"] * 16 + ["blur"] * 2 + ["noise"] * 2
    scores = y + np.random.default_rng(0).normal(size=20)
    result = judge(scores, y, [f"c{i % 5}" for i in range(20)], kinds)
    assert result.slices["jpeg"].srcc is not None
    assert result.slices["blur"].srcc is None
    assert "too few" in result.slices["blur"].reason


def test_within_content_is_none_where_each_picture_is_a_content():
    y = np.arange(20.0)
    assert judge(y + np.sin(y), y, [str(i) for i in range(20)], [""] * 20).within_content is None


def test_within_content_ignores_an_offset_of_each_content_that_spoils_the_pooled_figure():
    generator = np.random.default_rng(0)
    ids = np.repeat(np.arange(6), 10)
    y = np.tile(np.arange(10.0), 6)
    result = judge(y + 30 * generator.normal(size=6)[ids], y, [str(i) for i in ids], [""] * 60)
    assert result.within_content.value == pytest.approx(1.0)
    assert result.metrics["srcc"].value < 0.6


@pytest.mark.parametrize("spoil", [lambda s: s * 0, lambda s: np.where(np.arange(len(s)) == 3, np.nan, s)])
def test_scores_that_mean_nothing_are_an_error(spoil):
    y = np.arange(20.0)
    with pytest.raises(EvaluationError):
        judge(spoil(y + np.sin(y)), y, [f"c{i % 5}" for i in range(20)], [""] * 20)


def test_opinion_unaware_is_fitted_and_chosen_on_weak_labels_only():
    x, y, groups, kinds = judged_features(20)
    old = np.arange(len(y)) < 180
    weak = (y[old] - 20) / 60
    learner = ridge_learner(ALPHAS)

    def run(labels):
        return transfer(
            x[old],
            Rated(weak, groups[:180], kinds[:180], "weak"),
            x[~old],
            Rated(labels, groups[180:], kinds[180:]),
            learner,
            config=CONFIG,
            seed=0,
            protocol=OPINION_UNAWARE,
        )

    result = run(y[~old])
    assert result.protocol == OPINION_UNAWARE
    assert result.n == 60
    assert result.metrics["srcc"].value > 0.3
    assert "rmse" not in result.metrics
    reversed_labels = run(100 - y[~old])
    assert reversed_labels.alphas == result.alphas
    assert reversed_labels.metrics["srcc"].value == pytest.approx(-result.metrics["srcc"].value)
    with pytest.raises(LeakError, match="c3"):
        transfer(
            x[old],
            Rated(weak, groups[:180], kinds[:180], "weak"),
            x[:40],
            Rated(y[:40], groups[36:76], kinds[:40]),
            learner,
            config=CONFIG,
            seed=0,
        )


def test_the_full_reference_learner_is_the_anchored_ridge_of_every_alpha():
    generator = np.random.default_rng(0)
    x, r = generator.normal(size=(2, 60, 8))
    r[40:45] = x[40:45]  # identical to their references
    y = 9 - np.abs(x - r) @ generator.uniform(0, 0.3, 8)
    train, held_out = np.arange(40), np.arange(40, 60)
    learner = full_reference_learner([100.0, 1e-2], 9.0)
    (scores,) = learner.fit(np.abs(x - r), y, [(train, held_out)])
    for alpha, actual in zip([1e-2, 100.0], scores, strict=True):
        expected = fit_full_reference(x[train], r[train], y[train], alpha, perfect=9.0)
        np.testing.assert_allclose(actual, expected.predict(x[held_out], r[held_out]), atol=1e-9)
        assert (actual[:5] == 9).all()


def slow_transfer(x, y, groups, x_test):
    """Alpha by scikit-learn's Ridge, leaving out each content of the fitted set in turn; then fitted on all of it."""
    groups = np.array(groups)
    best = {}
    for alpha in ALPHAS:
        scores = np.empty(len(y))
        for name in set(groups):
            model = SklearnRidge(alpha=alpha).fit(x[groups != name], y[groups != name])
            scores[groups == name] = model.predict(x[groups == name])
        best[alpha] = metrics.srcc(scores, y)
    alpha = max(a for a in ALPHAS if best[a] == max(best.values()))
    return alpha, SklearnRidge(alpha=alpha).fit(x, y).predict(x_test)


def test_across_sets_alpha_is_chosen_inside_the_fitted_set():
    x, y, groups, kinds = judged_features(9)
    first = np.array([name in ("c0", "c1", "c2", "c3") for name in groups])
    contents, other = [g for g, f in zip(groups, first, strict=True) if f], [g for g in groups if g > "c3"]
    result = transfer(
        x[first],
        Rated(y[first], contents, kinds[:48]),
        x[~first],
        Rated(y[~first] / 9, other, kinds[48:]),
        ridge_learner(ALPHAS),
        config=CONFIG,
        seed=0,
    )
    alpha, scores = slow_transfer(x[first], y[first], contents, x[~first])
    assert result.alphas == [alpha]
    assert result.metrics["srcc"].value == pytest.approx(metrics.srcc(scores, y[~first]), abs=1e-12)
    assert (result.protocol, result.n, result.contents) == (CROSS_SET, 60, 5)


def test_one_content_is_too_few_to_fit_on():
    x, y, groups, kinds = judged_features(4)
    with pytest.raises(EvaluationError, match="1 contents to fit on"):
        transfer(
            x[:12],
            Rated(y[:12], groups[:12], kinds[:12]),
            x[12:],
            Rated(y[12:], groups[12:], kinds[12:]),
            ridge_learner(ALPHAS),
            config=CONFIG,
            seed=0,
        )


def test_an_official_split_is_the_only_fold():
    x, y, groups, kinds = judged_features(12)
    parts = ["test" if g in ("c0", "c1", "c2") else "validation" if g == "c3" else "train" for g in groups]
    learner = ridge_learner(ALPHAS)
    result = cross_validate(x, Rated(y, groups, kinds), learner, config=CONFIG, seed=0, official=parts)
    assert (result.protocol, result.n, result.splits) == (OFFICIAL, 36, 1)
    train, validation, test = (np.array(parts) == name for name in ("train", "validation", "test"))
    models = [SklearnRidge(alpha=alpha).fit(x[train], y[train]) for alpha in ALPHAS]
    best = max(models, key=lambda model: metrics.srcc(model.predict(x[validation]), y[validation]))
    assert result.alphas == [best.alpha]
    assert result.metrics["plcc"].value == pytest.approx(metrics.plcc(best.predict(x[test]), y[test]), abs=1e-6)


# ---------------------------------------------------------------------------------------------------------- files


def write_set(directory, *, human=True, contents=9, pretrain=6, seed=0):
    """A feature set: judged contents in three parts and, beside human labels, weak-labelled pretraining pictures."""
    x, y, groups, kinds = judged_features(contents + pretrain, seed=seed)
    rows = []
    for i, (label, content, kind) in enumerate(zip(y, groups, kinds, strict=True)):
        number = int(content[1:])
        old = number >= contents
        split = "pretrain" if old else ("train", "train", "train", "validation", "test")[number % 5]
        rows.append(
            {
                "image": f"{i}.png",
                "reference": content,
                "split": split,
                "kind": "distorted",
                "distortion": kind,
                "mos": label if human and not old else np.nan,
                "weak_label": (label - 20) / 60 if old or not human else np.nan,
                "sha256": f"{i:064x}",
            }
        )
    write_manifest(as_manifest(rows), directory)
    save_features(x.astype(np.float32), [row["image"] for row in rows], directory / FEATURES)
    fit_set(directory, directory.parent / "fitted", config=RegressorConfig())
    return x, pd.DataFrame(rows)


def test_weak_labels_of_pretraining_pictures_are_fitted_and_not_judged(tmp_path):
    """Without human labels they join every fold's training rows: the same as a plain ridge fitted by hand."""
    x, rows = write_set(tmp_path / "features", human=False)
    head = Head.load(tmp_path / "fitted")
    ridge, summary = head.ridge, head.summary
    train = np.flatnonzero(rows["split"].isin(["train", "pretrain"]))
    assert summary.n == len(train)
    assert summary.contents == rows.loc[train, "reference"].nunique()
    model = SklearnRidge(summary.alpha).fit(x[train].astype(np.float32), rows.loc[train, "weak_label"])
    np.testing.assert_allclose(ridge.predict(x.astype(np.float32)), model.predict(x.astype(np.float32)), atol=1e-5)
    config = RegressorConfig(alphas=(0.1,))
    result = evaluate(tmp_path, alphas=config)
    indices = rows.index[rows["split"] != "pretrain"].to_numpy()
    scores = np.full(len(rows), np.nan)
    for content in set(rows.loc[indices, "reference"]):
        out = (rows["reference"] == content).to_numpy()
        scores[out] = SklearnRidge(0.1).fit(x[~out].astype(np.float32), rows["weak_label"][~out]).predict(x[out])
    expected = spearmanr(scores[indices], rows["weak_label"][indices]).statistic
    assert result.protocol.metrics["srcc"].value == pytest.approx(expected, abs=1e-3)
    assert result.protocol.n == len(indices)


def evaluate(folder, **options):
    return evaluate_set(folder / "features", folder / "fitted", folder / "out", config=CONFIG, seed=0, **options)


@pytest.mark.parametrize("human", [True, False])
def test_evaluate_set_writes_what_it_returns(tmp_path, human):
    _, rows = write_set(tmp_path / "features", human=human)
    result = evaluate(tmp_path)
    document = json.loads((tmp_path / "out" / EVALUATION).read_text())
    assert document.pop("has_champion") is False
    assert document == json.loads(json.dumps(result.as_dict()))
    assert result.labels == ("human" if human else "weak")
    assert result.protocol.n == 9 * 12
    assert (result.opinion_unaware is not None) == human
    assert result.champion is None
    table = pd.read_parquet(tmp_path / "out" / TEST_SCORES)
    columns = ["image", "reference", "distortion", "label", "challenger", "champion"]
    assert list(table.columns) == [*columns, "challenger_points", "champion_points"]
    assert list(table["image"]) == list(rows.loc[rows["split"] == "test", "image"])
    assert table["champion"].isna().all()
    assert table["champion_points"].isna().all()
    points = Head.load(tmp_path / "fitted").to_points(table["challenger"])
    np.testing.assert_array_equal(table["challenger_points"], points)
    assert result.challenger.metrics["srcc"].value == metrics.srcc(table["challenger"], table["label"])
    verdict = decide_set(tmp_path / "out", tmp_path / "verdict.json", config=GateConfig(floor=0.3))
    assert verdict.promote
    assert json.loads((tmp_path / "verdict.json").read_text())["promote"] is True
    hold = decide_set(tmp_path / "out", tmp_path / "verdict.json", config=GateConfig(floor=1.1))
    assert not hold.promote
    assert json.loads((tmp_path / "verdict.json").read_text())["reason"] == hold.reason


def test_the_champion_is_rescored_on_the_same_rows_and_named(tmp_path):
    x, rows = write_set(tmp_path / "features")
    pictures = []
    ridge = Head.load(tmp_path / "fitted").ridge

    def champion(table):
        pictures.extend(table["image"])
        return 7 * ridge.predict(x[[int(name.removesuffix(".png")) for name in table["image"]]].astype(np.float32)) - 3

    head = Head.load(tmp_path / "fitted")
    result = evaluate(tmp_path, champion=Champion(champion, "4", head))
    table = pd.read_parquet(tmp_path / "out" / TEST_SCORES)
    np.testing.assert_array_equal(table["champion_points"], head.to_points(table["champion"]))
    assert pictures == list(rows.loc[rows["split"] == "test", "image"])
    assert result.champion.metrics["srcc"] == result.challenger.metrics["srcc"]
    verdict = decide_set(tmp_path / "out", tmp_path / "v.json", config=GateConfig(floor=0.3))
    assert verdict.promote
    assert verdict.numbers["difference"] == 0
    assert json.loads((tmp_path / "v.json").read_text())["champion_version"] == "4"


def test_a_champion_that_cannot_score_makes_the_gate_hold(tmp_path):
    write_set(tmp_path / "features")
    result = evaluate(tmp_path, champion=Champion(lambda table: np.full(len(table), np.nan), "4"))
    assert result.champion is None
    assert "NaN" in result.champion_fault
    verdict = decide_set(tmp_path / "out", tmp_path / "v.json", config=GateConfig(floor=-1))
    assert not verdict.promote
    assert "champion cannot be compared" in verdict.reason


def test_a_champion_with_another_number_of_scores_is_an_error(tmp_path):
    write_set(tmp_path / "features")
    with pytest.raises(EvaluationError, match=r"champion gave \(3,\) scores"):
        evaluate(tmp_path, champion=Champion(lambda table: np.zeros(3), "4"))


def test_a_leaking_set_is_not_evaluated(tmp_path):
    write_set(tmp_path / "features")
    manifest = read_manifest(tmp_path / "features")
    manifest.loc[0, "sha256"] = manifest.loc[len(manifest) - 1, "sha256"]
    write_manifest(manifest, tmp_path / "features")
    with pytest.raises(LeakError, match="the same file"):
        evaluate(tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["missing", "json", "parquet"])
def test_deciding_from_a_damaged_evaluation_is_a_clear_error(tmp_path, damage):
    write_set(tmp_path / "features")
    evaluate(tmp_path)
    out = tmp_path / "out"
    if damage == "missing":
        (out / TEST_SCORES).unlink()
    elif damage == "json":
        (out / EVALUATION).write_text("{")
    else:
        (out / TEST_SCORES).write_bytes(b"PAR1")
    with pytest.raises(EvaluationError, match="evaluate again"):
        decide_set(out, tmp_path / "v.json", config=GateConfig())
