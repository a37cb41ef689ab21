"""Which pictures are asked about: spread, urgent first, no near-duplicates; what cannot be shown is left out."""

import dataclasses

import numpy as np
import pytest
import tiny_ratings
from PIL import Image

from contrique.config import RatingConfig, ServingLimits
from contrique.rating import start
from contrique.rating.candidates import Candidate, RatingError
from contrique.rating.selection import choose, name_contents
from contrique.walk import Skipped

CONFIG = RatingConfig()


def candidates(n=50, seed=0, scores=None):
    """Pictures of hashes so far apart that none are near-duplicates, and features."""
    rng = np.random.default_rng(seed)
    scores = rng.uniform(0, 100, n) if scores is None else scores
    pictures = [
        Candidate(f"{i}.png", str(i), f"{rng.integers(2**63):016x}", 96, 80, float(scores[i])) for i in range(n)
    ]
    return pictures, rng.normal(size=(n, 30))


def choose_slowly(features, turns):
    """The unknown ones of a ridge, by inverting its matrix each time; every other picture is given by `turns`."""
    x = features - features.mean(axis=0)
    x = x / np.sqrt(np.square(x).sum(axis=1).mean())
    order = []
    for i in turns:
        basis = x[order]
        kernel = x @ x.T - x @ basis.T @ np.linalg.inv(basis @ basis.T + 0.1 * np.eye(len(order))) @ basis @ x.T
        rest = [j for j in range(len(x)) if j not in order]
        order.append(max(rest, key=lambda j: kernel[j, j]) if len(order) % 2 == 0 else i)
    return order


def test_every_other_picture_is_the_least_known_and_the_rest_spread():
    pictures, features = candidates()
    order = choose(pictures, features, 20, by="model", seed=0, config=CONFIG)
    assert sorted(order) == list(range(50))
    assert order[:20] == choose_slowly(features, order[:20])
    ranks = np.argsort(np.argsort([picture.score for picture in pictures]))
    assert len({rank // 10 for rank in ranks[order[1:10:2]]}) == 5


def test_one_unlike_all_others_comes_first():
    pictures, features = candidates()
    features[7] += 50
    assert choose(pictures, features, 5, by="model", seed=3, config=CONFIG)[0] == 7


def test_chance_is_seeded():
    pictures, features = candidates()
    for by in ("model", "random"):
        first = choose(pictures, features, 20, by=by, seed=1, config=CONFIG)
        assert first == choose(pictures, features, 20, by=by, seed=1, config=CONFIG)
        assert first != choose(pictures, features, 20, by=by, seed=2, config=CONFIG)


@pytest.mark.parametrize("count", [2, 6])
def test_of_near_duplicates_as_good_as_each_other_one_is_asked(count):
    pictures, features = candidates(6, scores=[50.0, 52, 80, 10, 20, 30])
    close = f"{int(pictures[0].phash, 16) ^ 0b111:016x}"
    pictures[1] = dataclasses.replace(pictures[1], phash=close)
    pictures[2] = dataclasses.replace(pictures[2], phash=close)  # a far better version is worth asking
    order = choose(pictures, features, count, by="model", seed=0, config=CONFIG)
    assert len(order) == 5
    assert 2 in order
    assert len({0, 1} & set(order)) == 1
    contents = name_contents([picture.phash for picture in pictures], [picture.image for picture in pictures], 6)
    assert contents == ["0.png", "0.png", "0.png", "3.png", "4.png", "5.png"]


def test_pictures_that_are_all_alike_to_the_model_can_be_chosen():
    pictures, features = candidates(8, scores=np.full(8, 50.0))
    assert sorted(choose(pictures, np.zeros_like(features), 8, by="model", seed=0, config=CONFIG)) == list(range(8))


def begin(folder, skipped, **options):
    values = {"method": "acr", "seed": 0, "choice": "random", "config": CONFIG, "limits": ServingLimits(decoders=1)}
    return start.begin(folder, load_scorer=None, skipped=skipped, **values | options)


def test_what_cannot_be_shown_is_skipped_and_counted(tmp_path):
    folder = tmp_path / "pictures"
    tiny_ratings.write(folder, 8)
    (folder / "sub").mkdir()
    Image.fromarray(tiny_ratings.draw(50, 0)).save(folder / "sub/<b>ü & so<b>.png")
    Image.fromarray(tiny_ratings.draw(51, 0)).save(folder / "a\x1bb\n.png")
    Image.fromarray(tiny_ratings.draw(52, 0)).save(folder / "back\\slash.png")
    Image.fromarray(tiny_ratings.draw(53, 0)).save(folder / " blank.png")
    Image.fromarray(tiny_ratings.draw(54, 0)[:40, :40]).save(folder / "small.png")
    (folder / "torn.png").write_bytes((folder / "000.png").read_bytes()[:500])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "notes.txt").write_text("x")
    skipped: list[Skipped] = []
    session = begin(folder, skipped)
    names = {picture.image for picture in session.pictures}
    assert "sub/<b>ü & so<b>.png" in names
    assert len(names) == 9
    reasons = {str(item.path.name): item.reason for item in skipped}
    assert len(reasons) == 7
    assert "damaged" in reasons["torn.png"]
    assert "empty" in reasons["empty.jpg"]
    assert "under 64 pixels" in reasons["small.png"]
    assert "control characters" in reasons["a\x1bb\n.png"]
    assert "backslash" in reasons["back\\slash.png"]


def test_few_pictures_and_no_folder_are_one_clear_error(tmp_path):
    tiny_ratings.write(tmp_path / "few", 4)
    with pytest.raises(RatingError, match="4 different pictures can be shown; give at least 5"):
        begin(tmp_path / "few", [])
    with pytest.raises(RatingError, match="no folder"):
        begin(tmp_path / "none", [])


def test_training_is_apart_from_what_counts_where_there_are_enough(tmp_path):
    tiny_ratings.write(tmp_path / "p", 14)
    session = begin(tmp_path / "p", [], config=RatingConfig(count=8))
    assert len(session.asked) == 8
    assert len(session.training) == 5
    assert not set(session.asked) & set(session.training)
    assert set(session.golden) <= set(session.asked)
    whole = begin(tmp_path / "p", [])
    assert set(whole.training) <= set(whole.asked)
