"""Which pictures are asked about: spread, urgent first, no near-duplicates; what cannot be shown is left out."""

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


def candidates(n=50, seed=0, **facts):
    """Of hashes so far apart that none are near-duplicates."""
    rng = np.random.default_rng(seed)
    values = {"score": rng.uniform(0, 100, n), "spread": np.full(n, 30.0), "distance": rng.uniform(0, 2, n)} | facts
    return [
        Candidate(f"{i}.png", str(i), f"{rng.integers(2**63):016x}", 96, 80, *(float(v[i]) for v in values.values()))
        for i in range(n)
    ]


def test_the_model_spreads_and_prefers_the_unlike():
    pictures = candidates()
    chosen = choose(pictures, 15, by="model", seed=0, config=CONFIG)
    ranks = np.argsort(np.argsort([p.score for p in pictures]))
    assert sorted(np.bincount(ranks[chosen] // 10)) == [3] * 5
    for part in range(5):
        members = [i for i in range(50) if ranks[i] // 10 == part]
        farthest = sorted(members, key=lambda i: -pictures[i].distance)[:3]
        assert set(chosen) & set(members) == set(farthest)


def test_the_widest_interval_counts_as_well():
    spread = np.full(50, 30.0)
    spread[7] = 60.0
    distance = np.ones(50)
    pictures = candidates(spread=spread, distance=distance)
    assert 7 in choose(pictures, 5, by="model", seed=0, config=CONFIG)


def test_chance_is_seeded_and_settles_ties():
    pictures = candidates(distance=np.ones(50))
    for by in ("model", "random"):
        first = choose(pictures, 20, by=by, seed=1, config=CONFIG)
        assert first == choose(pictures, 20, by=by, seed=1, config=CONFIG)
        assert first != choose(pictures, 20, by=by, seed=2, config=CONFIG)


def test_of_near_duplicates_as_good_as_each_other_one_is_asked():
    pictures = candidates(6, score=np.array([50.0, 52, 80, 10, 20, 30]))
    twin = pictures[0].phash
    close = f"{int(twin, 16) ^ 0b111:016x}"
    pictures[1] = Candidate("1.png", "1", close, 96, 80, 52.0, 30.0, 1.0)
    pictures[2] = Candidate("2.png", "2", close, 96, 80, 80.0, 30.0, 1.0)  # a far better version is worth asking
    chosen = choose(pictures, 6, by="model", seed=0, config=CONFIG)
    assert len(chosen) == 5
    assert 2 in chosen
    assert len({0, 1} & set(chosen)) == 1
    assert name_contents([p.phash for p in pictures], [p.image for p in pictures], 6)[:4] == [
        "0.png",
        "0.png",
        "0.png",
        "3.png",
    ]


def test_without_a_model_nothing_is_known_and_nothing_fails():
    pictures = [Candidate(f"{i}.png", str(i), f"{i * 0x0F0F0F0F0F0F0F:016x}", 96, 80) for i in range(6)]
    assert len(choose(pictures, 4, by="model", seed=0, config=CONFIG)) == 4


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
