"""A ridge with another head's scores as a feature: against scikit-learn, by invariances, with few and many ratings."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kfp import dsl
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.model_selection import GroupKFold

from components.fit_regressor import fit_regressor
from contrique.artifacts import DESCRIPTION, ENCODER, FEATURES, REGRESSOR
from contrique.config import EvaluationConfig, RegressorConfig
from contrique.data.manifest import as_manifest, write_manifest
from contrique.encoder.feature_set import save_features
from contrique.encoder.network import Encoder
from contrique.encoder.weights import EncoderFile, load_encoder, save_encoder
from contrique.evaluation.evaluate import evaluate_set
from contrique.metrics import srcc
from contrique.pretraining.trainer import _copy_weights
from contrique.regressor.adapt import ADAPT_FOLDS, adapt
from contrique.regressor.fit import fit_set
from contrique.regressor.head import Head, RegressorSummary
from contrique.regressor.prior import Prior
from contrique.regressor.ridge import RegressorError, Ridge, fit_path, fit_ridge
from contrique.scoring.bundled import NAME, SHA256, bundled_folder, find_prior

ALPHAS = (0.01, 1.0, 100.0)
WIDTH = 40


def rated(n: int = 60, seed: int = 0, error: float = 0.3) -> tuple[Any, Any, Prior]:
    """Features, scores that follow them, and a prior that knows the scores but for an error in its weights."""
    rng = np.random.default_rng(seed)
    x, w = rng.normal(0, 0.1, size=(n, WIDTH)), rng.normal(size=WIDTH)  # each varies little, as those of an encoder do
    y = 50 + 50 * x @ w + rng.normal(0, 10, n)
    return x, y, Prior(Ridge((w + rng.normal(0, error, WIDTH)) / 2, 0.5, 1.0), "another")


def scores_of(prior: Prior, x: Any) -> Any:
    return x @ prior.scores.coef + prior.scores.intercept


def absorbed(x: Any, y: Any, prior: Prior, alpha: float) -> Ridge:
    return prior.absorb(fit_ridge(prior.extend(x), y, alpha))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_equals_scikit_learn_on_the_features_and_the_other_heads_scores(alpha):
    x, y, prior = rated()
    reference = SklearnRidge(alpha=alpha).fit(np.column_stack([x, scores_of(prior, x)]), y)
    other = np.random.default_rng(1).normal(0, 0.1, size=(20, WIDTH))
    expected = reference.predict(np.column_stack([other, scores_of(prior, other)]))
    np.testing.assert_allclose(absorbed(x, y, prior, alpha).predict(other), expected, atol=1e-8)


def test_a_head_that_says_the_same_of_every_picture_changes_nothing():
    x, y, _ = rated()
    constant = Prior(Ridge(np.zeros(WIDTH), 0.4, 1.0), "constant")
    np.testing.assert_allclose(absorbed(x, y, constant, 1.0).predict(x), fit_ridge(x, y, 1.0).predict(x), atol=1e-9)


def test_the_unit_of_the_ratings_and_that_of_the_other_head_make_no_difference():
    x, y, prior = rated()
    scores = absorbed(x, y, prior, 1.0).predict(x)
    np.testing.assert_allclose(absorbed(x, 3 * y - 7, prior, 1.0).predict(x), 3 * scores - 7, atol=1e-8)
    ridge = Ridge(prior.scores.coef * 80, prior.scores.intercept * 80 + 20, 1.0)
    summary = RegressorSummary("human", 20.0, 100.0, 1.0, 9, 9, 9, 0.9, WIDTH)
    same = Prior.of(Head(ridge, summary), "another")
    np.testing.assert_allclose(absorbed(x, y, same, 1.0).predict(x), scores, atol=1e-8)


def mean_srcc(n: int, error: float) -> Any:
    """SRCC after n ratings, mean over 20 seeds: of a ridge on the features, of the other head, and of both together."""
    figures = []
    for seed in range(20):
        x, y, prior = rated(500, seed, error)
        heads = [fit_ridge(x[:n], y[:n], 0.1), prior.scores, absorbed(x[:n], y[:n], prior, 0.1)]
        figures.append([srcc(head.predict(x[200:]), y[200:]) for head in heads])
    return np.mean(figures, axis=0)


@pytest.mark.parametrize("error", [0.5, 1.0])
def test_with_few_ratings_it_ranks_better_than_either_alone(error):
    alone, other, both = mean_srcc(20, error)
    assert both > max(alone + 0.03, other)


def test_with_many_ratings_it_ranks_as_they_do():
    alone, other, both = mean_srcc(200, 2.0)
    assert alone > other + 0.2
    assert both > alone - 0.01


def test_a_prior_that_knows_nothing_costs_little():
    losses = []
    for seed in range(20):
        x, y, _ = rated(300, seed)
        nothing = Prior(Ridge(np.random.default_rng([9, seed]).normal(size=WIDTH) / 2, 0.5, 1.0), "nothing")
        few, rest = slice(0, 60), slice(60, None)
        alone = srcc(fit_ridge(x[few], y[few], 0.1).predict(x[rest]), y[rest])
        losses.append(alone - srcc(absorbed(x[few], y[few], nothing, 0.1).predict(x[rest]), y[rest]))
    assert np.mean(losses) < 0.015


def test_features_of_another_encoder_are_refused():
    x, _, prior = rated()
    with pytest.raises(RegressorError, match="use the encoder it was fitted with"):
        prior.extend(x[:, 1:])


# ------------------------------------------------------------------------------------------------ in fits and figures


def write_set(folder: Path, x: Any, y: Any, contents: int) -> Any:
    """A feature set of human scores, nine contents to fit on and to choose on, the others to test on."""
    ids = np.arange(len(y)) % contents
    part = np.where(ids < 7, "train", np.where(ids < 9, "validation", "test"))
    rows = [
        {
            "image": f"{i}.png",
            "reference": f"c{ids[i]:02}",
            "split": part[i],
            "kind": "distorted",
            "mos": y[i],
            "sha256": f"{i:064x}",
        }
        for i in range(len(y))
    ]
    write_manifest(as_manifest(rows), folder)
    save_features(x.astype(np.float32), [row["image"] for row in rows], folder / FEATURES)
    return part


def test_a_set_is_fitted_and_judged_with_it(tmp_path):
    x, y, prior = rated(120)
    x = x.astype(np.float32).astype(np.float64)
    part = write_set(tmp_path / "features", x, y, 12)
    config = RegressorConfig(alphas=ALPHAS)
    summary = fit_set(tmp_path / "features", tmp_path / "fitted", config=config, prior=prior)
    assert (summary.prior, summary.features_dim) == ("another", WIDTH)
    train, validation = part == "train", part == "validation"
    models = [prior.absorb(model) for model in fit_path(prior.extend(x[train]), y[train], sorted(ALPHAS))]
    best = max(models, key=lambda model: (srcc(model.predict(x[validation]), y[validation]), model.alpha))
    head = Head.load(tmp_path / "fitted")
    assert head.summary == summary
    np.testing.assert_allclose(head.predict(x), best.predict(x), atol=1e-8)

    def judge(folder: str, prior: Prior | None) -> float:
        evaluation = evaluate_set(
            tmp_path / "features",
            tmp_path / "fitted",
            tmp_path / folder,
            config=EvaluationConfig(resamples=50, few_contents=13),
            seed=0,
            alphas=config,
            prior=prior,
        )
        return evaluation.protocol.metrics["rmse"].value

    contents = np.arange(len(y)) % 12
    scores = np.empty_like(y)
    for content in range(12):  # the slow way, with the alpha that the inner folds choose
        inner = {}
        for alpha in ALPHAS:
            predictions, rows = [], []
            for other in set(range(12)) - {content}:
                fit = ~np.isin(contents, (content, other))
                rows.append(np.flatnonzero(contents == other))
                predictions.append(absorbed(x[fit], y[fit], prior, alpha).predict(x[rows[-1]]))
            inner[alpha] = srcc(np.concatenate(predictions), y[np.concatenate(rows)])
        alpha = max(ALPHAS, key=lambda a: (inner[a], a))
        fit = contents != content
        scores[~fit] = absorbed(x[fit], y[fit], prior, alpha).predict(x[~fit])
    assert judge("with", prior) == pytest.approx(np.sqrt(np.mean((scores - y) ** 2)), abs=1e-6)
    assert judge("with", prior) != pytest.approx(judge("without", None), rel=1e-3)


def test_somebodys_own_scores_are_fitted_with_it():
    x, y, prior = rated(40, error=0.1)
    contents = [f"c{i:02}" for i in range(len(y))]
    config = RegressorConfig(alphas=ALPHAS)
    fit = adapt(x, y, contents, config=config, prior=prior)
    plain = adapt(x, y, contents, config=config)
    assert (fit.summary.prior, plain.summary.prior) == ("another", "")
    assert fit.srcc > plain.srcc
    np.testing.assert_allclose(fit.ridge.predict(x), absorbed(x, y, prior, fit.summary.alpha).predict(x), atol=1e-8)
    scores, splitter = np.empty_like(y), GroupKFold(ADAPT_FOLDS, shuffle=True, random_state=0)
    for train, test in splitter.split(x, groups=contents):
        scores[test] = absorbed(x[train], y[train], prior, fit.summary.alpha).predict(x[test])
    assert fit.summary.validation_srcc == pytest.approx(srcc(scores, y))


# ------------------------------------------------------------------------------------------------------ whose head


def test_the_bundled_head_goes_with_the_bundled_encoder_and_what_was_trained_on_from_it(tmp_path):
    config, encoder = RegressorConfig(), bundled_folder() / ENCODER
    prior = find_prior(EncoderFile(encoder), config)
    assert prior is not None
    assert prior.name == NAME
    head = Head.load(bundled_folder() / REGRESSOR)
    x = np.random.default_rng(0).normal(size=(5, head.summary.features_dim))
    np.testing.assert_allclose(100 * prior.scores.predict(x), head.to_points(head.predict(x), clip=False))
    assert find_prior(EncoderFile(encoder), RegressorConfig(prior="none")) is None

    def train_on(start: Path, name: str) -> Path:
        network = load_encoder(start)
        save_encoder(network, tmp_path / name, _copy_weights(start, network))
        return tmp_path / name

    child = train_on(encoder, "child")
    grandchild = train_on(child, "grandchild")
    assert len({EncoderFile(path).digest for path in (encoder, child, grandchild)}) == 3
    assert find_prior(EncoderFile(child), config) is not None
    assert find_prior(EncoderFile(grandchild), config) is not None


@pytest.mark.parametrize("start", [{"start": "0" * 64}, {"origin": 7}, {"origin": [SHA256[ENCODER]]}])
def test_an_encoder_from_elsewhere_has_no_prior(tmp_path, start):
    save_encoder(Encoder("resnet50"), tmp_path / "encoder", start)
    assert find_prior(EncoderFile(tmp_path / "encoder"), RegressorConfig()) is None


def test_an_encoder_that_cannot_come_from_where_it_says_has_no_prior(tmp_path):
    save_encoder(Encoder("resnet18"), tmp_path / "encoder", {"origin": SHA256[ENCODER]})
    assert find_prior(EncoderFile(tmp_path / "encoder"), RegressorConfig()) is None


def test_the_component_fits_with_it_unless_it_is_asked_not_to(tmp_path):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 4096)) / 64
    write_set(tmp_path / "features", features, rng.normal(size=60), 12)
    (tmp_path / "encoder").mkdir()
    shutil.copy(bundled_folder() / ENCODER, tmp_path / "encoder" / ENCODER)

    def fit(folder: str, overrides: dict[str, Any]) -> str:
        output = dsl.Model(name=folder, uri=str(tmp_path / folder))
        fit_regressor.python_func(
            features=dsl.Dataset(name="features", uri=str(tmp_path / "features")),
            encoder=dsl.Model(name="encoder", uri=str(tmp_path / "encoder")),
            profile="demo",
            overrides=overrides,
            regressor=output,
        )
        return json.loads(Path(output.path, DESCRIPTION).read_text())["prior"]

    assert fit("with", {}) == NAME
    assert fit("without", {"regressor.prior": "none"}) == ""


@pytest.mark.parametrize("name", [7, None, ["bundled"], "x" * 65, "a\nb"])
def test_a_name_that_no_fitted_head_has_is_refused(tmp_path, name):
    x, y, prior = rated(120)
    write_set(tmp_path / "features", x, y, 12)
    fit_set(tmp_path / "features", tmp_path / "fitted", config=RegressorConfig(alphas=ALPHAS), prior=prior)
    path = tmp_path / "fitted" / DESCRIPTION
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prior": name}))
    with pytest.raises(RegressorError, match="a prior called"):
        Head.load(tmp_path / "fitted")
