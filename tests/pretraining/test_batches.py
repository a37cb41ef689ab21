from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import scipy.ndimage
import skimage.color
import torch

from contrique import images
from contrique.config import PretrainConfig
from contrique.data.manifest import DatasetError, as_manifest
from contrique.data.synthesis import Version
from contrique.distortions import class_id, distort, generator
from contrique.pretraining.batches import OnTheFly, Pictures, Views
from contrique.pretraining.colour import COLOUR_SPACES, convert_views
from contrique.pretraining.crops import _cut_half, choose_centre_cut, cut_views, draw_cut


def photograph(height: int = 120, width: int = 160, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).random((height, width, 3))
    smooth = scipy.ndimage.gaussian_filter(noise, (3, 3, 0))
    return images.as_uint8((smooth - smooth.min()) / np.ptp(smooth))


def in_colour(picture: np.ndarray, space: str) -> np.ndarray:
    batch = torch.from_numpy(picture).permute(2, 0, 1)[None]
    return convert_views(batch, torch.tensor([COLOUR_SPACES.index(space)]))[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    "picture", [photograph(), np.full((16, 16, 3), 128, np.uint8), np.zeros((16, 16, 3), np.uint8)]
)
def test_colour_spaces_equal_other_libraries(picture: np.ndarray) -> None:
    lab = skimage.color.rgb2lab(picture)
    expected = {
        "rgb": picture / 255,
        "hsv": skimage.color.rgb2hsv(picture),
        "lab": np.stack([lab[..., 0] / 100, (lab[..., 1] + 128) / 255, (lab[..., 2] + 128) / 255], 2),
        "gray": np.repeat(cv2.cvtColor(np.float32(picture / 255), cv2.COLOR_RGB2GRAY)[..., None], 3, 2),
    }
    blur = cv2.GaussianBlur(picture / 255, (7, 7), 7 / 6, borderType=cv2.BORDER_REFLECT_101)
    expected["ms"] = picture / 255 - blur
    for space, values in expected.items():
        np.testing.assert_allclose(in_colour(picture, space), values, atol=2e-5, err_msg=space)


def test_mixed_batch_converts_each_view_to_its_own_space() -> None:
    batch = torch.from_numpy(np.stack([photograph(seed=i) for i in range(5)])).permute(0, 3, 1, 2)
    mixed = convert_views(batch, torch.arange(5))
    for i in range(5):
        assert torch.equal(mixed[i], convert_views(batch[i : i + 1], torch.tensor([i]))[0])


@pytest.mark.parametrize("size", [(120, 160), (121, 160), (64, 64), (300, 200)])
def test_half_crop_is_cut_from_the_half_scale_picture(size: tuple[int, int]) -> None:
    picture = photograph(*size)
    half = images.half_scale(picture)
    for seed in range(20):
        crop = _cut_half(picture, 32, draw_cut(*size, 32, np.random.default_rng(seed)).half)
        windows = np.lib.stride_tricks.sliding_window_view(half, (32, 32, 3))[:, :, 0]
        assert (windows == crop).all((2, 3, 4)).any(), f"seed {seed}"


def test_small_pictures_are_reflected_not_padded_with_black() -> None:
    picture = np.maximum(photograph(40, 50), 30)
    for seed in range(10):
        for view in cut_views(picture, 64, draw_cut(40, 50, 64, np.random.default_rng(seed))):
            assert view.shape == (64, 64, 3)
            assert view.min() > 10


def test_both_scales_both_orders_and_flips_occur() -> None:
    fine = np.zeros((64, 64, 3), np.uint8)
    fine[::2] = 255  # stripes of one pixel: gone at half scale
    cuts = [draw_cut(64, 64, 32, np.random.default_rng(seed)) for seed in range(40)]
    assert 8 < sum(cut_views(fine, 32, cut)[0].std() > 60 for cut in cuts) < 32
    assert {cut.flips for cut in cuts} == {(a, b) for a in (False, True) for b in (False, True)}


@pytest.mark.parametrize("size", [(120, 160), (121, 161), (50, 40)])
def test_cuts_of_a_known_half_scale_are_the_same(size: tuple[int, int]) -> None:
    picture = photograph(*size)
    for seed in range(10):
        cut = draw_cut(*size, 48, np.random.default_rng(seed))
        expected, actual = cut_views(picture, 48, cut), cut_views(picture, 48, cut, images.half_scale(picture))
        assert all((a == b).all() for a, b in zip(expected, actual, strict=True))


def test_the_central_cut_is_the_middle_of_both_scales() -> None:
    picture = photograph(120, 160)
    full, half = cut_views(picture, 32, choose_centre_cut(120, 160, 32))
    assert (full == picture[44:76, 64:96]).all()
    assert (half == images.half_scale(picture)[14:46, 24:56]).all()


@pytest.fixture
def pool(tmp_path: Path) -> pd.DataFrame:
    rows = []
    for content in range(4):
        for label in range(6):
            for kind in ("distorted", "authentic"):
                name = f"{kind}{content}{label}.png"
                (tmp_path / name).write_bytes(images.encode_png(photograph(80, 80, seed=10 * content + label)))
                rows.append({
                    "image": name, "folder": str(tmp_path),
                    "reference": f"c{content}",
                    "label": label if kind == "distorted" else -1,
                })  # fmt: skip
    frame = pd.DataFrame(rows)
    return as_manifest(frame).assign(folder=frame["folder"], label=frame["label"])


CONFIG = PretrainConfig(images=10, authentic_share=0.2, crop=32, contents_per_class=2)


def views(pool: pd.DataFrame, seed: int = 0, config: PretrainConfig = CONFIG, **options: Any) -> Views:
    return Views(pool, config, seed=seed, **options)


def configure(balanced: bool, images: int = 10) -> PretrainConfig:
    return replace(CONFIG, sampler="balanced" if balanced else "uniform", images=images)


def test_colour_spaces_are_those_asked_for(pool: pd.DataFrame) -> None:
    sampler = views(pool, config=replace(CONFIG, colour_spaces=("rgb", "ms")))
    indices = {int(index) for step in range(20) for index in sampler[step].colours.ravel()}
    assert {COLOUR_SPACES[index] for index in indices} == {"rgb", "ms"}
    with pytest.raises(DatasetError, match=r"pretrain\.colour_spaces is empty"):
        views(pool, config=replace(CONFIG, colour_spaces=()))


@pytest.mark.parametrize("balanced", [False, True])
def test_a_step_depends_on_seed_and_step_alone(pool: pd.DataFrame, balanced: bool) -> None:
    config = configure(balanced)
    a, b = views(pool, config=config), views(pool, config=config)
    a[0], a[1]
    for step in (3, 0):
        first, second = a[step], b[step]
        assert all(torch.equal(x, y) for x, y in zip(first.views, second.views, strict=True))
        assert torch.equal(first.colours, second.colours)
        assert torch.equal(first.labels, second.labels)
    assert not torch.equal(a[0].rows, a[1].rows)
    assert not torch.equal(a[0].rows, views(pool, seed=1, config=config)[0].rows)


@pytest.mark.parametrize("same_size", [False, True])
@pytest.mark.parametrize("balanced", [False, True])
def test_ranks_share_the_batch_of_one(pool: pd.DataFrame, balanced: bool, same_size: bool) -> None:
    """Whether the manifest knows the sizes of the pictures that other ranks read, or not."""
    pool = pool.assign(height=80, width=80) if same_size else pool
    config = configure(balanced, 12)
    whole = views(pool, config=config)[5]
    for ranks in (2, 3):
        parts = [views(pool, config=config, rank=rank, ranks=ranks)[5] for rank in range(ranks)]
        for rank, part in enumerate(parts):
            share = slice(rank, None, ranks)
            assert all(torch.equal(a, b[share]) for a, b in zip(part.views, whole.views, strict=True))
            assert torch.equal(part.colours, whole.colours[:, share])
            assert torch.equal(part.labels, whole.labels[share])
            assert torch.equal(part.rows, whole.rows[share])


def test_pictures_that_ranks_cannot_share_are_refused(pool: pd.DataFrame) -> None:
    with pytest.raises(DatasetError, match=r"pretrain\.images=10 cannot be shared by 3 processes"):
        views(pool, rank=0, ranks=3)


def on_the_fly(pool: pd.DataFrame) -> tuple[pd.DataFrame, OnTheFly]:
    pool = pool.assign(kind=["pristine" if label >= 0 else "authentic" for label in pool["label"]])
    versions = (Version("", 0), Version("jpeg", 3), Version("white_noise", 5))
    return pool, OnTheFly(versions, tuple(class_id(*version) for version in versions), 50, seed=1)


def test_pictures_made_on_the_fly(pool: pd.DataFrame) -> None:
    pool, making = on_the_fly(pool)
    pictures = Pictures(pool, making)
    assert len(pictures) == 24 * 3 + 24
    for row in range(len(pictures)):
        label = pictures.label[row]
        assert label == (-1 if pictures.synthesized(row) is None else class_id(*pictures.version_of(row)))
        assert pictures.size(row) == pictures[row].shape[:2] == ((80, 80) if label < 0 else (50, 50))
    assert (np.bincount(pictures.label[pictures.label >= 0])[list(making.labels)] == 24).all()
    row = int(np.flatnonzero(pictures.label == class_id("white_noise", 5))[0])
    data = (pictures.folders[0] / pool["image"][0]).read_bytes()
    clean = images.as_float(images.fit_within(images.decode(data).pixels, 50))
    noisy = distort(clean, "white_noise", 5, generator(images.content_hash(data), "white_noise", 5, 1))
    assert (pictures[row] == images.as_uint8(noisy)).all()
    assert pictures.name(row) == f"{pool['image'][0]} as white_noise-5"


@pytest.mark.parametrize("balanced", [False, True])
def test_steps_made_on_the_fly_are_shared_alike(pool: pd.DataFrame, balanced: bool) -> None:
    pool, making = on_the_fly(pool)
    config = configure(balanced, 12)
    sampler = views(pool, config=config, on_the_fly=making)
    whole = sampler[2]
    part = views(pool.assign(height=80, width=80), config=config, on_the_fly=making, rank=1, ranks=2)[2]
    assert torch.equal(part.views[0], whole.views[0][1::2])
    assert set(whole.labels.tolist()) <= {*making.labels, *range(1_000_000, 1_000_000 + len(sampler.pictures))}


def test_an_authentic_picture_has_a_class_of_its_own_however_often_it_is_drawn(pool: pd.DataFrame) -> None:
    few = pool[(pool["label"] >= 0) | (pool.groupby("label").cumcount() < 3)]
    sampler = views(few, config=replace(CONFIG, images=16, authentic_share=0.5))
    for step in range(5):
        batch = sampler[step]
        own = batch.labels >= 1_000_000
        assert own.sum() == 8
        classes = dict(zip(batch.rows[own].tolist(), batch.labels[own].tolist(), strict=True))
        assert len(classes) == len(set(classes.values())) == 3


def test_uniform_sampler_visits_every_picture_once_an_epoch(pool: pd.DataFrame) -> None:
    sampler = views(pool)
    rows = np.concatenate([sampler.rows(step)[:8] for step in range(6)])
    assert sorted(rows[:24]) == sorted(sampler.synthetic)
    assert sorted(rows[24:]) == sorted(sampler.synthetic)
    assert list(rows[:24]) != list(rows[24:])
    assert sampler.steps_per_epoch == 3


def test_without_synthetic_pictures_an_epoch_is_one_of_the_authentic(pool: pd.DataFrame) -> None:
    sampler = views(pool[pool["label"] < 0], config=replace(CONFIG, images=8, authentic_share=1.0))
    assert sampler.steps_per_epoch == 3
    assert sorted(np.concatenate([sampler.rows(step) for step in range(3)])) == list(range(24))


def test_balanced_sampler_gives_each_class_different_contents(pool: pd.DataFrame) -> None:
    sampler = views(pool, config=configure(balanced=True))
    for step in range(10):
        rows = sampler.rows(step)[:8]
        table = pool.iloc[rows].groupby("label")["reference"]
        assert (table.size() == 2).all()
        assert (table.nunique() == 2).all()


def test_authentic_pictures_have_a_class_of_their_own(pool: pd.DataFrame) -> None:
    labels = views(pool)[0].labels
    assert len(set(labels[8:].tolist())) == 2
    assert not set(labels[8:].tolist()) & set(range(6))


def test_missing_kind_is_one_clear_error(pool: pd.DataFrame) -> None:
    with pytest.raises(DatasetError, match=r"no authentic pictures.*authentic_share to 0"):
        views(pool[pool["label"] >= 0])
    with pytest.raises(DatasetError, match=r"no synthetic pictures.*authentic_share to 1"):
        views(pool[pool["label"] < 0])
