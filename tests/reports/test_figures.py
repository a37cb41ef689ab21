"""Figures of the report: they draw what they are given, and the page's colours are theirs."""

import re

import numpy as np
import pandas as pd
import pytest

from contrique import distortions
from contrique.reports import figures


def test_scatter_draws_the_logistic_of_its_points():
    from contrique import metrics

    x = np.linspace(0, 1, 40)
    scores = pd.DataFrame({"challenger": x, "label": metrics.logistic(x, [5, 1, 0.5, 0.1])})
    axes = figures.score_scatter(scores, "MOS").axes[0]
    (line,) = axes.lines
    assert np.allclose(line.get_ydata(), metrics.logistic(line.get_xdata(), [5, 1, 0.5, 0.1]), atol=1e-3)
    assert np.allclose(axes.collections[0].get_offsets(), scores)
    assert axes.get_ylabel() == "MOS"


def test_scatter_says_why_there_is_no_logistic():
    scores = pd.DataFrame({"challenger": [1.0, 2.0, 3.0], "label": [1.0, 2.0, 4.0]})
    axes = figures.score_scatter(scores, "weak label").axes[0]
    assert not axes.lines
    assert "too few" in axes.get_xlabel()


def test_slices_are_ordered_and_undefined_ones_have_no_bar():
    estimate = {"value": 0.5, "low": 0.1, "high": 0.8}
    slices = {
        "jpeg": {"n": 4, "srcc": estimate},
        "jitter": {"n": 2, "srcc": None},
        "color_shift": {"n": 9, "srcc": estimate | {"value": -0.2, "low": -0.5}},
    }
    axes = figures.slice_bars(slices).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["jitter (2)", "color shift (9)", "jpeg (4)"]
    assert [bar.get_width() for bar in axes.patches] == [-0.2, 0.5]
    assert [list(line.get_xdata()) for line in axes.lines[:2]] == [[-0.5, 0.8], [0.1, 0.8]]
    colour, grey = axes.patches[1].get_facecolor(), axes.patches[0].get_facecolor()
    assert colour != grey, "an interval that reaches zero shows nothing, and is grey"


def test_training_curve_draws_loss_and_rate():
    history = [{"step": step, "loss": 1 / step, "lr": step / 10} for step in (1, 2, 5)]
    loss, rate = figures.training_curve(history).axes
    assert list(loss.lines[0].get_ydata()) == [1, 0.5, 0.2]
    assert list(rate.lines[0].get_ydata()) == [0.1, 0.2, 0.5]


def test_probes_are_drawn_where_they_were_taken():
    history = [
        {"step": 1, "loss": 1.0},
        {"step": 2, "probe_type": 0.1, "probe_level": 0.3},
        {"step": 4, "probe_type": 1},
    ]
    curves = {line.get_label(): line for line in figures.probe_curve(history).axes[0].lines}
    assert list(curves["type of distortion"].get_xdata()) == [2, 4]
    assert list(curves["level"].get_ydata()) == [0.3]


def test_no_probe_no_figure():
    assert figures.probe_curve([{"step": 1, "loss": 1.0}]) is None


class TestKeys:
    def test_the_families_are_the_whole_bank(self):
        names = [name for family in figures.FAMILIES.values() for name in family]
        assert sorted(names) == sorted(distortions.NAMES)

    def test_no_two_look_alike(self):
        legend = figures.keys([*distortions.NAMES, "", "packet_loss"])
        assert len({(key.css, key.sign) for key in legend}) == len(legend) == len(distortions.NAMES) + 2

    def test_name_what_is_there_alone(self):
        assert [key.name for key in figures.keys(["jpeg", "jpeg", "white_noise"])] == ["jpeg", "white_noise"]

    def test_others_than_the_bank_have_their_own(self):
        *_, other, none = figures.keys(["jpeg", "packet_loss", ""])
        assert (other.name, other.family) == ("packet_loss", "other")
        assert none.family == "no distortion"

    def test_colours_are_never_a_stand_in(self):
        assert not [key for key in figures.keys(["", "x", "jpeg"]) if key.css in figures._THEME]


def test_every_picture_is_on_the_map_once():
    names = ["jpeg", "", "white_noise", "jpeg", "fading"]
    places = np.arange(10.0, dtype=np.float32).reshape(5, 2)
    axes = figures.feature_map(places, names).axes[0]
    points = np.concatenate([marks.get_offsets() for marks in axes.collections])
    assert sorted(map(tuple, points)) == sorted(map(tuple, places))


@pytest.fixture(scope="module")
def features():
    """Two kinds of pictures, far apart in eight dimensions."""
    rng = np.random.default_rng(0)
    return (rng.normal(size=(40, 8)) + 20 * (np.arange(40) % 2)[:, None]).astype(np.float32)


class TestEmbed:
    def test_keeps_apart_what_is_apart(self, features):
        from sklearn.neighbors import NearestNeighbors

        places = figures.embed(features, 0)
        near = NearestNeighbors(n_neighbors=4).fit(places).kneighbors(return_distance=False)
        assert ((near % 2) == (np.arange(40) % 2)[:, None]).all()

    def test_is_the_same_on_any_number_of_cores(self, features):
        from threadpoolctl import threadpool_limits

        results = []
        for threads in (1, 2):
            with threadpool_limits(threads):
                results.append(figures.embed(features, 3))
        assert np.array_equal(*results)

    def test_takes_as_few_as_five(self, features):
        assert np.isfinite(figures.embed(features[:5], 0)).all()


def test_svg_is_described_escaped_and_the_same_each_time():
    history = [{"step": 1, "loss": 1.0, "lr": 0.1}, {"step": 2, "loss": 0.5, "lr": 0.1}]
    texts = [figures.svg(figures.training_curve(history), "a", 'loss "<b>"') for _ in range(2)]
    assert texts[0] == texts[1]
    assert texts[0].startswith('<svg role="img" aria-label="loss &quot;&lt;b&gt;&quot;"')
    assert ">contrastive loss</text>" in texts[0], "text stays text"
    assert set(re.findall(r"#[0-9a-f]{6}", texts[0])) == set(), "every colour is the page's"
