from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from contrique import images
from contrique.artifacts import FEATURES
from contrique.data.manifest import DatasetError, write_manifest
from contrique.encoder import features
from contrique.encoder.backends import Torch
from contrique.encoder.feature_set import extract_set, join_sets, load_set, save_features
from contrique.encoder.features import (
    HALO,
    STRIDE,
    ImageTooSmall,
    compute_maps,
    extract,
    extract_batch,
    extract_one,
    interpolate,
)
from contrique.encoder.network import Encoder
from contrique.encoder.weights import load_encoder, save_encoder


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.set_num_threads(1)
    return Encoder("resnet18", 0).eval().requires_grad_(False)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_equals_the_definition(encoder: Encoder) -> None:
    picture = noise(97, 131)
    half = np.array(Image.fromarray(picture).resize((131 // 2, 97 // 2), Image.Resampling.BICUBIC))
    parts = []
    for scale in (picture, half):
        maps = encoder.maps(torch.tensor(scale / 255.0, dtype=torch.float32).permute(2, 0, 1)[None])
        h = maps.mean((2, 3))[0]
        parts.append(h / h.norm())
    actual = extract_one(picture, encoder)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, torch.cat(parts).numpy(), atol=2e-6)


def test_same_picture_same_features_in_any_company(encoder: Encoder) -> None:
    a, b = noise(80, 96, 1), noise(128, 64, 2)
    np.testing.assert_array_equal(extract([a, b, a], encoder), extract([a, a, b], encoder)[[0, 2, 1]])
    assert extract([], encoder).shape == (0, 1024)


def test_too_small(encoder: Encoder) -> None:
    extract_one(noise(64, 64), encoder)
    with pytest.raises(ImageTooSmall, match="100x63 is under 64 pixels"):
        extract_one(noise(63, 100), encoder)


def test_bfloat16_agrees_loosely(encoder: Encoder) -> None:
    picture = noise(96, 96)
    full, low = extract_one(picture, encoder), extract_one(picture, encoder, "bfloat16")
    assert 0.99 < float(full @ low) / 2 < 1.01


def test_feature_set_holds_judged_and_weak_labelled_rows(encoder: Encoder, tmp_path: Path) -> None:
    save_encoder(encoder, tmp_path / "e.safetensors")
    rows = {"mos": [("a", "test", 3.0), ("b", "train", float("nan")), ("c", "pretrain", 2.0)]}
    rows["weak_label"] = [("d", "pretrain", 0.5), ("e", "pretrain", float("nan"))]
    for label, entries in rows.items():
        folder = tmp_path / label
        folder.mkdir()
        for i, (name, _, _) in enumerate(entries):
            (folder / f"{name}.png").write_bytes(images.encode_png(noise(64, 72, i)))
        table = [{"image": f"{n}.png", "split": s, "reference": n, label: v} for n, s, v in entries]
        write_manifest(pd.DataFrame(table), folder)
    count = extract_set(tmp_path / "mos", tmp_path / "weak_label", tmp_path / "e.safetensors", tmp_path / "out")
    manifest, values = load_set(tmp_path / "out")
    assert count == 2
    assert list(manifest["image"]) == ["a.png", "d.png"]
    copy = load_encoder(tmp_path / "e.safetensors")
    np.testing.assert_array_equal(values[0], extract_one(noise(64, 72, 0), copy))
    np.testing.assert_allclose(values[0], extract_one(noise(64, 72, 0), encoder), atol=2e-6)
    first = (tmp_path / "out" / FEATURES).read_bytes()
    extract_set(tmp_path / "mos", tmp_path / "weak_label", tmp_path / "e.safetensors", tmp_path / "out")
    assert (tmp_path / "out" / FEATURES).read_bytes() == first
    parts = [tmp_path / f"part{k}" for k in range(3)]  # one of them empty
    for k, part in enumerate(parts):
        inputs = (tmp_path / "mos", tmp_path / "weak_label", tmp_path / "e.safetensors")
        extract_set(*inputs, part, part=(k, 3))
    assert join_sets(parts, tmp_path / "gathered") == 2
    assert (tmp_path / "gathered" / FEATURES).read_bytes() == first
    pd.testing.assert_frame_equal(load_set(tmp_path / "gathered")[0], manifest)
    save_features(values, ["x", "y"], tmp_path / "out" / FEATURES)
    with pytest.raises(DatasetError, match="different images"):
        load_set(tmp_path / "out")
    (tmp_path / "out" / FEATURES).write_bytes(first[: len(first) // 2])
    with pytest.raises(DatasetError, match="not a readable feature file"):
        load_set(tmp_path / "out")


@pytest.mark.parametrize(("arch", "shape"), [("resnet18", (640, 64)), ("resnet50", (64, 576))])
def test_tiles_give_what_the_whole_picture_gives(
    arch: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small tiles of two cells each; in float64, so that a halo too small by one cell would show."""
    net = Encoder(arch, 0).eval().requires_grad_(False).double()

    def backend(pictures: np.ndarray) -> np.ndarray:
        return net.maps(torch.from_numpy(pictures.copy()).permute(0, 3, 1, 2).double() / 255).numpy()

    picture = noise(*shape)[None]
    whole = backend(picture)
    monkeypatch.setattr(features, "TILE", 2 * HALO + 2 * STRIDE)
    tiled = np.full_like(whole, np.nan)
    for row, column, cells in compute_maps(picture, backend):
        tiled[:, :, row : row + cells.shape[2], column : column + cells.shape[3]] = cells
    assert max(shape) > features.TILE
    np.testing.assert_allclose(tiled, whole, rtol=0, atol=1e-10 * np.abs(whole).max())


@pytest.mark.parametrize("shape", [(2305, 2304), (2304, 2304), (4700, 70), (64, 7001), (5000, 4321)])
def test_tiles_cover_each_cell_once_at_bounded_size(shape: tuple[int, int]) -> None:
    """An encoder whose cells are the sums of their own pixels."""
    sides = []

    def backend(pictures: np.ndarray) -> np.ndarray:
        sides.extend(pictures.shape[1:3])
        grey = pictures[..., 0].astype(np.float64)
        rows, columns = (range(0, size, STRIDE) for size in grey.shape[1:])
        return np.add.reduceat(np.add.reduceat(grey, rows, axis=1), columns, axis=2)[:, None]

    picture = np.random.default_rng(0).integers(0, 256, (1, *shape, 1), dtype=np.uint8)
    whole = backend(picture)
    sides.clear()
    counts = np.zeros_like(whole)
    for row, column, cells in compute_maps(picture, backend):
        place = np.s_[:, :, row : row + cells.shape[2], column : column + cells.shape[3]]
        counts[place] += 1
        np.testing.assert_array_equal(cells, whole[place])
    assert (counts == 1).all()
    assert max(sides) <= features.TILE


def test_describing_pictures_together_is_describing_each(encoder: Encoder) -> None:
    pictures = np.stack([noise(72, 80, seed) for seed in range(5)])
    together = extract_batch(pictures, Torch(encoder))
    alone = [extract_batch(picture[None], Torch(encoder))[0] for picture in pictures]
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-6)


def test_spread_is_linear_between_the_points() -> None:
    grid = np.array([[0.0, 10.0], [20.0, 30.0]])
    np.testing.assert_allclose(interpolate(grid, (3, 4), 2), [[0, 5, 10, 10], [10, 15, 20, 20], [20, 25, 30, 30]])
