"""BRISQUE's statistics on photographs and as a learner under the same protocol as ours."""

import importlib

import numpy as np
import pytest
import torch
from skimage import data as photographs
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVR

from contrique.benchmark.baselines import COSTS, FEATURES, BaselineError, brisque, brisque_features, svr_learner
from contrique.config import EvaluationConfig
from contrique.evaluation.judgement import Rated
from contrique.evaluation.protocol import cross_validate
from contrique.regressor.ridge import RegressorError

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def photograph():
    return np.ascontiguousarray(photographs.chelsea()[:200, :260])


def test_features_are_those_that_the_librarys_score_is_made_of(photograph, monkeypatch):
    module = importlib.import_module("piq.brisque")  # the package's attribute of that name is the function
    calls = []
    monkeypatch.setattr(module, "_score_svr", lambda features: calls.append(features) or features[:, 0])
    monkeypatch.setattr(module, "_scale_features", lambda features: features)
    tensor = torch.from_numpy(photograph).permute(2, 0, 1)[None].double() / 255
    module.brisque(tensor)
    ours = brisque(photograph)
    assert ours.shape == (FEATURES,)
    # the library computes on pixels / 255 * 255: a rounding luminance may tip
    np.testing.assert_allclose(ours, calls[0][0].numpy(), atol=2e-3)


def test_noise_raises_the_variance_of_the_normalised_luminance_and_a_mirror_keeps_it(photograph):
    flat = np.clip(photograph / 4 + 90, 0, 255)
    noise = np.random.default_rng(0).normal(0, 12, photograph.shape[:2])[..., None]
    shapes = [brisque((flat + k * noise).astype(np.uint8))[1] for k in (0, 1)]
    plain, mirrored = brisque(photograph), brisque(np.ascontiguousarray(photograph[:, ::-1]))
    assert shapes[1] > 2 * shapes[0]  # variance of the normalised luminance
    np.testing.assert_allclose(mirrored[:2], plain[:2], rtol=1e-6)


def test_features_of_several_pictures_keep_their_order(photograph):
    pictures = [photograph, photograph[:64, :100]]
    both = brisque_features(pictures)
    for row, picture in zip(both, pictures, strict=True):
        np.testing.assert_array_equal(row, brisque(picture))
    assert brisque_features([]).shape == (0, FEATURES)


@pytest.mark.parametrize("picture", [np.full((64, 64, 3), 7, np.uint8), np.zeros((15, 64, 3), np.uint8)])
def test_pictures_without_statistics_are_a_clear_error(picture):
    with pytest.raises(BaselineError, match=r"flat|16 pixels"):
        brisque(picture)


def draw_sample(n=90):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(n, 6)) * [1, 10, 100, 1, 1, 1]
    y = 50 + 10 * np.sin(x[:, 0]) + 2 * x[:, 1]
    return x, y, [f"c{i % 6}" for i in range(n)]


def test_the_learner_is_a_standardised_svr():
    x, y, _ = draw_sample()
    train, held_out = np.arange(60), np.arange(60, 90)
    predictions = svr_learner([10.0, 1.0]).fit(x, y, [(train, held_out)])[0]
    scaler = StandardScaler().fit(x[train])
    for cost, scores in zip([10.0, 1.0], predictions, strict=True):
        model = SVR(C=cost, gamma="scale", epsilon=0.1)
        model.fit(scaler.transform(x[train]), (y[train] - y[train].mean()) / y[train].std())
        reference = model.predict(scaler.transform(x[held_out])) * y[train].std() + y[train].mean()
        np.testing.assert_allclose(scores, reference)


def test_large_training_parts_are_sampled_the_same_way_each_time():
    x, y, _ = draw_sample()
    tasks = [(np.arange(60), np.arange(60, 90))]
    few = svr_learner([1.0], max_rows=20).fit(x, y, tasks)[0]
    np.testing.assert_array_equal(few, svr_learner([1.0], max_rows=20).fit(x, y, tasks)[0])
    assert not np.allclose(few, svr_learner([1.0]).fit(x, y, tasks)[0])


def test_it_runs_under_the_protocol():
    x, y, contents = draw_sample()
    result = cross_validate(
        x,
        Rated(y, contents, [""] * len(y)),
        svr_learner(),
        config=EvaluationConfig(resamples=50),
        seed=0,
    )
    assert result.metrics["srcc"].value > 0.8
    assert set(result.alphas) <= set(COSTS)


def test_features_that_are_not_finite_are_refused():
    x, y, _ = draw_sample()
    x[3, 2] = np.nan
    with pytest.raises(RegressorError, match="NaN"):
        svr_learner().fit(x, y, [(np.arange(60), np.arange(60, 90))])
