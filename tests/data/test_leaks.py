"""Leaks planted in many ways, each refused with both rows named; and what is no leak, let through."""

import io

import numpy as np
import pytest
from PIL import Image
from skimage import data as photographs

from contrique import images
from contrique.data import leaks
from contrique.data.leaks import LeakError
from contrique.data.manifest import as_manifest, inspect_file, read_picture


def encode(pixels, kind="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind, **options)
    return buffer.getvalue()


def resize(pixels, scale):
    size = (round(pixels.shape[1] * scale), round(pixels.shape[0] * scale))
    return np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def pictures():
    return {name: getattr(photographs, name)()[:300, :400] for name in ("astronaut", "chelsea", "coffee", "rocket")}


def picture_set(directory, files):
    """A picture set of (name, bytes, reference, split)."""
    rows = []
    for name, content, reference, split in files:
        (directory / name).write_bytes(content)
        rows.append({"image": name, "reference": reference, "split": split, "kind": "authentic"})
        rows[-1] |= inspect_file(directory / name)
    return as_manifest(rows)


def clean(pictures):
    parts = ("train", "validation", "test", "pretrain")
    return [(f"{name}.png", encode(p), name, part) for (name, p), part in zip(pictures.items(), parts, strict=True)]


def test_a_clean_set_passes(pictures, tmp_path):
    manifest = picture_set(tmp_path, clean(pictures))
    leaks.check_leaks(manifest, bits=6)
    leaks.check_leaks(manifest, bits=6, parts=manifest["reference"])
    leaks.check_leaks(manifest, bits=6, loader=lambda row: read_picture(tmp_path, row))


def test_versions_of_a_picture_within_one_part_pass(pictures, tmp_path):
    copy = ("copy.jpg", encode(pictures["astronaut"], "JPEG", quality=60), "astronaut", "train")
    same = ("same.png", encode(pictures["astronaut"]), "astronaut", "train")
    mirror = ("flipped.png", encode(pictures["astronaut"][:, ::-1]), "astronaut", "train")
    leaks.check_leaks(picture_set(tmp_path, [*clean(pictures), copy, same, mirror]), bits=6)


LEAKS = {
    "shared reference": (lambda p: encode(p["rocket"][::2]), "astronaut", "content 'astronaut' is in test and train"),
    "duplicated file": (lambda p: encode(p["astronaut"]), "new", "the same file"),
    "other format": (lambda p: encode(p["astronaut"], "BMP"), "new", "nearly the same picture"),
    "re-encoded as JPEG": (lambda p: encode(p["astronaut"], "JPEG", quality=30), "new", "nearly the same picture"),
    "half the size": (lambda p: encode(resize(p["astronaut"], 0.5)), "new", "nearly the same picture"),
    "larger and re-encoded": (
        lambda p: encode(resize(p["astronaut"], 1.7), "WEBP", quality=50),
        "new",
        "nearly the same picture",
    ),
    "grey": (
        lambda p: encode(np.array(Image.fromarray(p["astronaut"]).convert("L"))),
        "new",
        "nearly the same picture",
    ),
    "brighter": (
        lambda p: encode(np.clip(p["astronaut"] * 0.8 + 40, 0, 255).astype(np.uint8)),
        "new",
        "nearly the same picture",
    ),
    "mirrored": (lambda p: encode(p["astronaut"][:, ::-1]), "new", "flipped .horizontal"),
    "mirrored and re-encoded": (
        lambda p: encode(resize(p["astronaut"][:, ::-1], 0.6), "JPEG", quality=50),
        "new",
        "flipped .horizontal",
    ),
    "upside down": (lambda p: encode(p["astronaut"][::-1]), "new", "flipped .vertical"),
    "turned by 180 degrees": (lambda p: encode(p["astronaut"][::-1, ::-1]), "new", "flipped .both"),
}


# by hashes alone most flips are found, with the pixels all: this turned picture is one of those that need them
@pytest.mark.parametrize(
    ("leak", "with_pixels"),
    [(leak, pixels) for leak in LEAKS for pixels in (False, True) if pixels or leak != "turned by 180 degrees"],
)
def test_a_planted_leak_is_refused_and_names_both_rows(pictures, tmp_path, leak, with_pixels):
    make, reference, message = LEAKS[leak]
    leak_row = ("planted.png", make(pictures), reference, "test")
    manifest = picture_set(tmp_path, [*clean(pictures), leak_row])
    loader = (lambda row: read_picture(tmp_path, row)) if with_pixels else None
    with pytest.raises(LeakError, match=message) as error:
        leaks.check_leaks(manifest, bits=6, loader=loader)
    if leak != "shared reference":
        assert "planted.png (test)" in str(error.value)
        assert "astronaut.png (train)" in str(error.value)


def test_a_pretraining_picture_in_the_test_part_is_a_leak(pictures, tmp_path):
    row = ("planted.png", encode(resize(pictures["rocket"], 0.5)), "new", "test")
    with pytest.raises(LeakError, match=r"rocket.png \(pretrain\) and planted.png \(test\)"):
        leaks.check_leaks(picture_set(tmp_path, [*clean(pictures), row]), bits=6)


def test_two_contents_of_one_part_that_share_a_picture_leak_between_folds(pictures, tmp_path):
    row = ("planted.png", encode(pictures["astronaut"]), "new", "train")
    manifest = picture_set(tmp_path, [*clean(pictures), row])
    leaks.check_leaks(manifest, bits=6)
    with pytest.raises(LeakError, match="the same file"):
        leaks.check_leaks(manifest, bits=6, parts=manifest["reference"])


def test_near_duplicates_equal_the_slow_loop():
    generator = np.random.default_rng(0)
    hashes = [f"{value:016x}" for value in generator.integers(0, 2**63, 40)]
    hashes += [f"{int(h, 16) ^ (1 << int(generator.integers(63))):016x}" for h in hashes[:10]] + [""]
    groups = [str(i % 3) for i in range(len(hashes))]
    slow = [
        (i, j)
        for i, a in enumerate(hashes)
        for j, b in enumerate(hashes[:30])
        if a and b and images.hamming(a, b) <= 20
    ]
    assert leaks.near_duplicates(hashes, hashes[:30], 20) == slow
    apart = [(i, j) for i, j in slow if groups[i] != groups[j]]
    assert leaks.near_duplicates(hashes, hashes[:30], 20, apart=(groups, groups[:30])) == apart
    assert leaks.near_duplicates([], hashes, 64) == []


def test_contents_that_share_a_picture_become_one(pictures, tmp_path):
    more = [
        ("copy.png", encode(pictures["chelsea"]), "b", "train"),
        ("flipped.png", encode(pictures["chelsea"][:, ::-1]), "a", "test"),
        ("small.jpg", encode(resize(pictures["rocket"], 0.5), "JPEG"), "rocket2", "train"),
    ]
    manifest = picture_set(tmp_path, [*clean(pictures), *more])
    contents = leaks.merge_contents(manifest, bits=6)
    expected = ["astronaut", "a", "coffee", "rocket", "a", "a", "rocket"]
    assert list(contents) == expected
    leaks.check_leaks(manifest.assign(reference=contents), bits=6, parts=contents)
    assert list(leaks.merge_contents(manifest.iloc[:4], bits=6)) == list(manifest["reference"][:4])


def test_what_two_sets_share_is_told_by_content(pictures, tmp_path):
    manifest = picture_set(tmp_path, clean(pictures))
    others = [
        ("x.png", encode(pictures["coffee"]), "x", "test"),
        ("y.png", encode(resize(pictures["rocket"][:, ::-1], 0.7), "JPEG"), "y", "test"),
        ("z.png", encode(pictures["astronaut"][:200, ::-1] // 2), "chelsea", "test"),
    ]
    (tmp_path / "other").mkdir()
    other = picture_set(tmp_path / "other", others)
    shared = {("coffee", "x"), ("rocket", "y"), ("chelsea", "chelsea")}
    assert leaks.shared_contents(manifest, other, bits=6) == shared
    assert leaks.shared_contents(other, manifest, bits=6) == {(b, a) for a, b in shared}
    assert leaks.shared_contents(manifest[:2], other[:2], bits=6) == set()


CROPS = {
    "crop": lambda p: p[40:260, 90:370],
    "crop, resized and re-encoded": lambda p: decode(encode(resize(p[30:280, 20:330], 0.6), "JPEG", quality=40)),
    "crop with noise": lambda p: np.clip(
        p[60:300, 100:] + np.random.default_rng(0).normal(0, 12, (240, 300, 3)), 0, 255
    ),
    "crop, turned by 90 degrees": lambda p: np.rot90(p[40:260, 90:370]),
}


def decode(data):
    return images.decode(data).pixels


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("name", ["astronaut", "coffee"])
def test_a_crop_shows_the_same_scene(pictures, crop, name):
    part = np.ascontiguousarray(CROPS[crop](pictures[name]), dtype=np.uint8)
    points = {key: leaks.key_points(picture) for key, picture in pictures.items()}
    assert leaks.same_scenes(points, {"crop": leaks.key_points(part)}) == {(name, "crop")}


def test_different_photographs_and_flat_pictures_show_no_scene_in_common(pictures):
    points = {name: leaks.key_points(picture) for name, picture in pictures.items()}
    points["flat"] = leaks.key_points(np.full((200, 200, 3), 90, np.uint8))
    assert points["flat"][1].shape == (0, 128)
    assert leaks.same_scenes(points, points) == {(name, name) for name in pictures}
