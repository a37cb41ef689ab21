"""Decoded pictures that all loader processes share: never another picture than a decoder gives."""

import itertools
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contrique import images
from contrique.config import PretrainConfig
from contrique.data.manifest import as_manifest
from contrique.errors import ContriqueError
from contrique.pretraining.batches import Pictures, Views
from contrique.pretraining.cache import PictureCache, measure_room
from contrique.pretraining.loader import load_batches

SIZES = [(80, 80), (61, 97), (97, 61), (40, 33), (65, 64), (128, 66)]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Two contents and two authentic pictures of every size, even and odd, above a crop and below it."""
    folder, rows = tmp_path_factory.mktemp("pictures"), []
    for number, (size, content, label) in enumerate(itertools.product(SIZES, "ab", (0, -1))):
        name = f"{number}.png"
        pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
        (folder / name).write_bytes(images.encode_png(pixels))
        rows.append({"image": name, "reference": content, "label": label, "folder": str(folder)})
    frame = pd.DataFrame(rows)
    return as_manifest(frame).assign(folder=frame["folder"], label=frame["label"])


def views(pool: pd.DataFrame, crop: int = 48, rank: int = 0, ranks: int = 1) -> Views:
    config = PretrainConfig(images=6, authentic_share=0.5, crop=crop, sampler="balanced", contents_per_class=2)
    return Views(pool, config, seed=0, rank=rank, ranks=ranks)


def assert_same(source: Views, other: Views, steps: list[int]) -> None:
    for step in steps:
        expected, batch = source[step], other[step]
        assert torch.equal(batch.labels, expected.labels)
        assert all(torch.equal(a, b) for a, b in zip(batch.views, expected.views, strict=True))


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    crop=st.integers(32, 100),
    room=st.sampled_from([0, 10_000, 100_000, 10**9]),
    ranks=st.sampled_from([1, 2, 3]),
    steps=st.lists(st.integers(0, 50), min_size=1, max_size=6),
)
def test_crops_are_those_without_a_cache(
    pool: pd.DataFrame, tmp_path: Path, crop: int, room: int, ranks: int, steps: list[int]
) -> None:
    """Whatever the crop, the room, the rank and the order of the steps."""
    rank = crop % ranks
    with_cache = views(pool, crop, rank, ranks)
    with_cache.cache = PictureCache(with_cache.pictures, str(tmp_path), room)
    assert_same(views(pool, crop, rank, ranks), with_cache, steps)
    copy = pickle.loads(pickle.dumps(with_cache))  # as a loader process gets it
    assert_same(views(pool, crop, rank, ranks), copy, steps)


def test_a_picture_is_decoded_once_for_all(pool: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = Pictures(pool)
    expected = [pictures[row] for row in range(len(pictures))]
    cache = PictureCache(pictures, str(tmp_path), 10**9)
    other = pickle.loads(pickle.dumps(cache))
    assert all((other[row][0] == expected[row]).all() for row in range(len(pictures)))
    monkeypatch.setattr(Pictures, "__getitem__", lambda pictures, row: pytest.fail("decoded again"))
    for row in range(len(pictures)):
        full, half = cache[row]
        assert half is not None
        assert (full == expected[row]).all()
        assert (half == images.half_scale(expected[row])).all()
        with pytest.raises(ValueError, match="read-only"):
            full[0] = 0
    assert not list(tmp_path.iterdir()), "the file has no name"


def test_a_picture_that_does_not_fit_is_decoded_each_time(pool: pd.DataFrame, tmp_path: Path) -> None:
    pictures = Pictures(pool)
    cache = PictureCache(pictures, str(tmp_path), 0)
    cache.room = int(cache.ends[1])
    assert [cache[row][1] is None for row in range(4)] == [False, False, True, True]


def test_a_picture_of_another_size_than_its_manifest_says_is_not_kept(pool: pd.DataFrame, tmp_path: Path) -> None:
    wrong = pool.assign(height=[size[0] for size, _ in itertools.product(SIZES, range(4))], width=77)
    cache = PictureCache(Pictures(wrong), str(tmp_path), 10**9)
    for row in range(len(wrong)):
        full, half = cache[row]
        assert (full == Pictures(pool)[row]).all()
        assert half is None


def test_loader_processes_share_it(pool: pd.DataFrame, tmp_path: Path) -> None:
    with_cache = views(pool)
    with_cache.cache = PictureCache(with_cache.pictures, str(tmp_path), 10**9)
    batches = list(load_batches(with_cache, 0, 12, workers=2))
    source = views(pool)
    for step, batch in enumerate(batches):
        assert all(torch.equal(a, b) for a, b in zip(batch.views, source[step].views, strict=True))
    assert with_cache.cache._bytes is None, "this process decoded nothing"
    flags = np.memmap(with_cache.cache.path, np.uint8, "r")[: len(pool)]
    assert flags[np.unique(np.concatenate([source.rows(step) for step in range(12)]))].all()


def test_room_leaves_space_for_batches_and_other_processes(tmp_path: Path) -> None:
    alone, shared = (measure_room(str(tmp_path), 0, sharing) for sharing in (1, 4))
    assert 0 < shared < alone / 2
    assert measure_room(str(tmp_path), 10**18, 1) == 0


@pytest.mark.parametrize("name", ["none", "file"])
def test_a_folder_that_cannot_hold_it_is_one_clear_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / name
    with pytest.raises(
        ContriqueError, match=f"pretrain.cache={folder}: no folder that can be written to; name another"
    ):
        measure_room(str(folder), 0, 1)
