import numpy as np
import pandas as pd
import pytest
import torch

from contrique import images
from contrique.data.manifest import as_manifest
from contrique.pretraining.probe import CONTENTS, FEWEST, RESERVE, Probe, _is_predicted, split_probe_rows


def rows(**contents: int) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"reference": f"{split}{number}", "split": split, "image": f"{split}{number}-{version}"}
            for split, count in contents.items()
            for number in range(count)
            for version in range(3)
        ]
    )


def test_judged_contents_serve_where_there_are_enough() -> None:
    frame = rows(pretrain=60, train=3, validation=1, test=9)
    train, probe_rows = split_probe_rows(frame)
    assert set(train["split"]) == {"pretrain"}
    assert len(train) == 180
    assert probe_rows["reference"].nunique() == CONTENTS
    assert not set(probe_rows["split"]) & {"pretrain"}


def test_else_a_few_are_withheld_from_training_if_there_are_many() -> None:
    frame = rows(pretrain=RESERVE * FEWEST, test=FEWEST - 1)
    train, probe_rows = split_probe_rows(frame)
    assert probe_rows["reference"].nunique() == CONTENTS
    assert not set(probe_rows["reference"]) & set(train["reference"])
    assert len(train) + len(probe_rows) == 3 * RESERVE * FEWEST
    permutation = split_probe_rows(frame.sample(frac=1, random_state=0))[1]
    assert set(permutation["reference"]) == set(probe_rows["reference"]), "whatever the order of the rows"
    train, probe_rows = split_probe_rows(rows(pretrain=RESERVE * FEWEST - 1, test=FEWEST - 1))
    assert len(probe_rows) == 0
    assert len(train) == 3 * (RESERVE * FEWEST - 1)


@pytest.fixture
def pool(tmp_path) -> pd.DataFrame:
    """Six contents; the red of a picture says its distortion, the green its level."""
    table = []
    for content in range(6):
        for number, name in enumerate(["", "jpeg", "lens_blur", "gaussian_blur"]):
            for level in range(1, 6) if name else [0]:
                pixels = np.full((40, 50, 3), 100 + content, np.uint8)
                pixels[..., 0], pixels[..., 1] = 60 * number, 40 * level
                file = f"{content}{name}{level}.png"
                (tmp_path / file).write_bytes(images.encode_png(pixels))
                table.append({"image": file, "reference": f"c{content}", "distortion": name, "level": level})
    frame = pd.DataFrame(table)
    return as_manifest(frame).assign(folder=str(tmp_path), label=0)


def mean_colour(crops: torch.Tensor) -> torch.Tensor:
    colours = crops.float().mean((2, 3))
    return torch.cat(
        [torch.nn.functional.one_hot((colours[:, c] / s).round().long(), 8) for c, s in ((0, 60), (1, 40))], 1
    )


def test_what_the_features_tell_is_found(pool: pd.DataFrame) -> None:
    probe = Probe(pool, crop=16)
    assert len(probe.types) == 6 * (5 + 5 + 4), "pristine and gaussian_blur at level 1, which equals it, are left out"
    assert probe.crops.shape == (2 * len(probe.types), 3, 16, 16)
    assert probe.measure(mean_colour) == {"probe_type": 1.0, "probe_level": 1.0}
    assert probe.measure(lambda crops: mean_colour(crops)[:, :8])["probe_level"] < 0.5, "the type alone"


def test_nothing_is_found_in_noise(pool: pd.DataFrame) -> None:
    probe = Probe(pool, crop=16)
    accuracies = []
    for seed in range(8):
        noise = torch.randn(len(probe.crops), 20, generator=torch.Generator().manual_seed(seed)).split(64)
        parts = iter(noise)
        accuracies.append(probe.measure(lambda crops, parts=parts: next(parts))["probe_type"])
    assert np.mean(accuracies) < 0.45, "a little over a third is chance"


def test_each_content_is_judged_by_what_others_taught(pool: pd.DataFrame) -> None:
    """Features that say everything, but of each content in other words."""
    probe = Probe(pool, crop=16)
    _, content = np.unique(probe.contents, return_inverse=True)
    _, kind = np.unique(probe.types, return_inverse=True)
    words = torch.eye(18)[3 * content + kind].repeat_interleave(2, 0)
    parts = iter(words.split(64))
    assert probe.measure(lambda crops: next(parts))["probe_type"] <= 0.4, "a little over a third is chance"


def test_classifier_equals_scikit_learns_ridge() -> None:
    from sklearn.linear_model import RidgeClassifier

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 90)
    features = rng.standard_normal((90, 30)) + np.eye(30)[labels] * 1.5
    train = np.arange(90) < 60
    features -= features[train].mean(0)
    other = RidgeClassifier(alpha=0.1 * 30, fit_intercept=False).fit(features[train], labels[train])
    same = (other.predict(features) == labels) == _is_predicted(features, labels, train)
    assert same.mean() > 0.95  # one-hot targets here, plus and minus one there
