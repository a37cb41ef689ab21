"""Each fault of a picture set stops it with a message of its own; sound sets pass."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import browser as chromium
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from contrique import images
from contrique.config import ValidationConfig
from contrique.data.manifest import DatasetError, as_manifest, inspect_file, read_manifest, write_manifest
from contrique.data.validation import ValidationFailed, validate


@pytest.fixture(scope="module")
def small(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample photographs at 256 pixels."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "images").mkdir()
    rows = read_manifest(photographs).to_dict("records")
    for row in rows:
        pixels = images.fit_within(images.read(photographs / row["image"]), 256)
        (folder / row["image"]).write_bytes(images.encode_png(pixels))
        row.update(inspect_file(folder / row["image"]))
    write_manifest(as_manifest(rows), folder)
    return folder


@pytest.fixture
def sample(small: Path, tmp_path: Path) -> Path:
    return shutil.copytree(small, tmp_path / "set")


@pytest.fixture
def rated(sample: Path) -> Path:
    """The sample as if people had rated its judged part, which is larger."""
    change(sample, _rate)
    return sample


def _rate(rows: pd.DataFrame) -> pd.DataFrame:
    more = dict.fromkeys(("coffee", "brick", "gravel"), "test")
    more |= dict.fromkeys(("motorcycle_left", "china"), "validation")
    rows["split"] = [more.get(name, split) for name, split in zip(rows["reference"], rows["split"], strict=True)]
    return rows.assign(mos=[np.nan if s == "pretrain" else 1.0 + i for i, s in enumerate(rows["split"])])


def change(folder: Path, edit: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    write_manifest(edit(read_manifest(folder)), folder)


def put(folder: Path, photograph: str, /, **values: object) -> None:
    """Set values in the row of one photograph."""

    def edit(rows: pd.DataFrame) -> pd.DataFrame:
        for column, value in values.items():
            rows.loc[rows["image"].str.startswith(f"images/{photograph}."), column] = value
        return rows

    change(folder, edit)


def replace(folder: Path, photograph: str, data: bytes) -> None:
    """Put another picture in the place of one, with a manifest that agrees."""
    path = folder / "images" / f"{photograph}.png"
    path.write_bytes(data)
    put(folder, photograph, **inspect_file(path))


def failures(folder: Path, tmp_path: Path, config: ValidationConfig | None = None) -> list[str]:
    with pytest.raises(ValidationFailed) as error:
        validate(folder, tmp_path / "report.html", config)
    *lines, last = str(error.value).split("\n")
    assert lines == "\n".join(error.value.failures).split("\n")
    assert last == f"all that was checked and seen: {tmp_path / 'report.html'}"
    assert json.loads((tmp_path / "report.json").read_text())["failures"] == error.value.failures
    return error.value.failures


def only(folder: Path, tmp_path: Path, *words: str, config: ValidationConfig | None = None) -> None:
    (message,) = failures(folder, tmp_path, config)
    for word in words:
        assert word in message


def test_the_sample_is_sound_and_its_labels_are_called_weak(sample, tmp_path):
    summary = validate(sample, tmp_path / "report.html")
    assert (summary.rows, summary.judged_contents, summary.labels, summary.mos) == (20, 6, "weak", ())
    assert summary.counts["pretrain/authentic"] == 7
    assert "weak labels" in (tmp_path / "report.html").read_text()


def test_a_rated_set_is_sound_and_its_range_is_told(rated, tmp_path):
    summary = validate(rated, tmp_path / "report.html")
    assert (summary.labels, summary.mos) == ("human", (1.0, 20.0))


def test_a_set_for_pretraining_alone_is_sound(sample, tmp_path):
    change(sample, lambda rows: rows[rows["split"] == "pretrain"])
    summary = validate(sample, tmp_path / "report.html")
    assert (summary.labels, summary.judged_contents, summary.rows) == ("none", 0, 14)


def test_a_truncated_jpeg_is_named(sample, tmp_path):
    path = sample / "images" / "coffee.jpg"
    Image.open(sample / "images" / "coffee.png").save(path)
    put(sample, "coffee", image="images/coffee.jpg", **inspect_file(path))
    validate(sample, tmp_path / "report.html")
    path.write_bytes(path.read_bytes()[:-2000])
    only(
        sample,
        tmp_path,
        "pictures that cannot be decoded (1)",
        "images/coffee.jpg",
        "truncated",
        "fetch the file again",
    )


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda path: path.unlink(), "cannot be read"),
        (lambda path: path.write_bytes(b""), "empty"),
        (lambda path: path.write_text("<html>"), "not an image"),
    ],
)
def test_a_picture_that_is_none_is_named(sample, tmp_path, spoil, word):
    spoil(sample / "images" / "moon.png")
    only(sample, tmp_path, "pictures that cannot be decoded (1): images/moon.png", word)


def test_a_nan_score_is_named(rated, tmp_path):
    put(rated, "flower", mos=np.nan)
    only(rated, tmp_path, "judged pictures without a score (NaN) (1): images/flower.png;", "remove the row")


def test_pictures_that_nobody_can_label_need_a_score(sample, tmp_path):
    put(sample, "flower", kind="distorted")
    only(sample, tmp_path, "judged pictures without a score (NaN) (1): images/flower.png;")
    put(sample, "flower", weak_label=0.5)
    validate(sample, tmp_path / "report.html")


@pytest.mark.parametrize("other", ["coffee", "chelsea", "grace_hopper"])
def test_a_reference_on_both_sides_of_a_split_is_named(sample, tmp_path, other):
    split = dict(read_manifest(sample)[["reference", "split"]].itertuples(index=False))[other]
    put(sample, "flower", reference=other)
    sides = " and ".join(sorted(["train", split]))
    only(
        sample,
        tmp_path,
        "pictures whose reference is on both sides of a split (2)",
        f"images/flower.png ('{other}' is in {sides})",
        f"images/{other}.png",
    )


def test_a_changed_file_is_named(sample, tmp_path):
    path = sample / "images" / "moon.png"
    pixels = images.read(path)
    pixels[0, 0, 0] ^= 1
    path.write_bytes(images.encode_png(pixels))
    only(sample, tmp_path, "not those of the manifest, by SHA-256 (1): images/moon.png;", "dvc pull")


def test_a_wrong_size_in_the_manifest_is_named(sample, tmp_path):
    put(sample, "moon", width=511)
    only(sample, tmp_path, "another size than the manifest says (1): images/moon.png (256x256x3, not 511x256x3)")


def test_pictures_outside_the_size_limits_are_named(sample, tmp_path):
    only(sample, tmp_path, "height outside 99 to 16384", "images/text.png (98)", config=ValidationConfig(min_side=99))
    wide = ValidationConfig(max_side=255)
    messages = failures(sample, tmp_path, wide)
    assert [re.match(r"pictures with a (\w+) outside 64 to 255", message)[1] for message in messages] == [
        "width",
        "height",
    ]
    assert re.search(r"and \d+ more, named in the log; resize", messages[0])


def test_the_same_file_twice_is_named(sample, tmp_path):
    replace(sample, "page", (sample / "images" / "moon.png").read_bytes())
    only(sample, tmp_path, "pictures that are the same file (2): images/moon.png, images/page.png;")


@pytest.mark.parametrize("mos", [1001.0, -1001.0, float("inf")])
def test_a_score_outside_the_range_is_named(rated, tmp_path, mos):
    put(rated, "flower", mos=mos)
    only(rated, tmp_path, f"scores outside -1000 to 1000 (1): images/flower.png ({mos:g});")


def test_a_weak_label_outside_the_range_is_named(sample, tmp_path):
    put(sample, "flower", weak_label=1.5)
    only(sample, tmp_path, "weak labels outside 0 to 1 (1): images/flower.png (1.5);")


def test_unknown_splits_and_kinds_are_named(sample, tmp_path):
    put(sample, "moon", split="holdout", kind="blurry")
    split, kind = failures(sample, tmp_path)
    assert "unknown split (1): images/moon.png ('holdout'); use one of pretrain, train, validation, test" in split
    assert "unknown kind (1): images/moon.png ('blurry'); use one of pristine, authentic, distorted" in kind


FLIPS = {
    "mirrored": Image.Transpose.FLIP_LEFT_RIGHT,
    "upside down": Image.Transpose.FLIP_TOP_BOTTOM,
    "turned": Image.Transpose.ROTATE_180,
}


def near(pixels: images.Picture, change: str) -> bytes:
    picture = Image.fromarray(pixels)
    if change in FLIPS:
        picture = picture.transpose(FLIPS[change])
    if change == "resized":
        picture = picture.resize((picture.width * 3 // 4, picture.height * 3 // 4))
    if change == "brighter":
        picture = picture.point(lambda value: min(255, value + 20))
    return images.encode_png(np.array(picture))


@pytest.mark.parametrize("change", [*FLIPS, "resized", "brighter"])
@pytest.mark.parametrize("name", ["chelsea", "astronaut", "grace_hopper"])
def test_a_judged_picture_in_the_pretraining_part_is_named(sample, tmp_path, change, name):
    replace(sample, "moon", near(images.read(sample / "images" / f"{name}.png"), change))
    only(
        sample,
        tmp_path,
        "in another part or content too, as they are or flipped, by perceptual hash (1)",
        f"images/{name}.png (as images/moon.png in pretrain)",
    )


@pytest.mark.parametrize("change", ["mirrored", "resized"])
def test_a_picture_in_two_judged_parts_is_named_on_both_sides(sample, tmp_path, change):
    replace(sample, "rocket", near(images.read(sample / "images" / "astronaut.png"), change))
    only(
        sample,
        tmp_path,
        "by perceptual hash (2)",
        "images/astronaut.png (as images/rocket.png in test)",
        "images/rocket.png (as images/astronaut.png in train)",
    )


def test_near_duplicates_within_one_part_are_allowed(sample, tmp_path):
    replace(sample, "moon", near(images.read(sample / "images" / "coffee.png"), "mirrored"))
    validate(sample, tmp_path / "report.html")


def test_too_few_contents_and_an_empty_split_are_told(sample, tmp_path):
    change(sample, lambda rows: rows[(rows["split"] == "train") | (rows["reference"] == "coffee")])
    pretrain, split = failures(sample, tmp_path)
    assert "too few contents to pretrain on (1); add folders of pristine or authentic pictures" in pretrain
    assert "no pictures in the split validation and the split test" in split
    config = ValidationConfig(min_pretrain_contents=1, min_judged_contents=4)
    assert "too few contents to judge with (3)" in failures(sample, tmp_path, config)[0]


def test_an_empty_set_has_too_little_to_pretrain_on(sample, tmp_path):
    change(sample, lambda rows: rows.iloc[:0])
    only(sample, tmp_path, "too few contents to pretrain on (0)")


def test_each_of_several_faults_has_its_line(rated, tmp_path):
    (rated / "images" / "moon.png").write_bytes(b"")
    put(rated, "flower", mos=np.nan)
    put(rated, "rocket", reference="astronaut")
    messages = failures(rated, tmp_path)
    faults = [message.split(" (")[0] for message in messages]
    assert faults == [
        "pictures that cannot be decoded",
        "pictures whose reference is on both sides of a split",
        "judged pictures without a score",
    ]
    page = (tmp_path / "report.html").read_text()
    assert "3 of 19 expectations failed" in page
    assert "images/flower.png" in page
    assert chromium.inspect(tmp_path / "report.html") == []


def test_pictures_in_shards_are_looked_at_too(sample, tmp_path):
    rows = read_manifest(sample)
    contents = [(sample / name).read_bytes() for name in rows["image"]]
    sizes = np.array([len(content) for content in contents])
    change(sample, lambda rows: rows.assign(shard="one.tar", size=sizes, offset=np.cumsum(sizes) - sizes))
    shutil.rmtree(sample / "images")
    (sample / "one.tar").write_bytes(b"".join(contents))
    validate(sample, tmp_path / "report.html")
    (sample / "one.tar").write_bytes(b"".join(contents)[:-10])
    only(sample, tmp_path, "pictures that cannot be decoded (1): one.tar: ends before images/rocket.png")


def test_the_report_needs_nothing_from_the_network_and_runs_nothing(sample, tmp_path):
    (sample / "images" / "moon.png").rename(sample / "images" / "<script>alert(1)<b>.png")
    put(sample, "moon", width=1, image="images/<script>alert(1)<b>.png")
    failures(sample, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!#)""", page)
    assert not re.search(r"@import|url\(", page)
    assert "default-src 'none'" in page.split("<body>")[0]
    assert "&lt;script&gt;alert(1)" in page
    assert "http:" not in page
    assert "https:" not in page


def test_a_folder_without_a_manifest_is_an_error(tmp_path):
    with pytest.raises(DatasetError, match="no manifest there"):
        validate(tmp_path, tmp_path / "report.html")


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda rows: rows.assign(mos=rows["mos"].where(rows["mos"].isna(), 3.0)), "all 5 of test are 3"),
        (lambda rows: rows.assign(mos=rows["mos"].mask(rows["split"] == "train", 2.0)), "all 3 of train are 2"),
        (lambda rows: rows[rows["reference"] != "china"], "validation has 2, and needs 3 at least"),
        (lambda rows: rows[rows["reference"] != "coffee"], "test has 4, and needs 5 at least"),
    ],
)
def test_what_later_stages_need_of_the_scores_is_asked_for_first(rated, tmp_path, edit, words):
    change(rated, edit)
    only(rated, tmp_path, "parts with too few or constant scores", words, "column `split`")


def test_judged_contents_that_share_a_picture_are_named(rated, tmp_path):
    """The protocol leaves out one content after another, and would be judged on what it was fitted to."""
    replace(rated, "chelsea", near(images.read(rated / "images" / "rocket.png"), "mirrored"))
    only(
        rated, tmp_path, "in another part or content too", "images/chelsea.png (as images/rocket.png of content rocket)"
    )


def test_a_set_without_pristine_pictures_is_refused_before_any_are_distorted(sample, tmp_path):
    change(sample, lambda rows: rows[rows["kind"] != "pristine"])
    only(sample, tmp_path, "no pristine pictures", "--pristine")


def test_authentic_pictures_that_training_needs_are_missed_before_any_are_distorted(sample, tmp_path):
    """Hours later, pretraining would."""
    change(sample, lambda rows: rows[rows["kind"] != "authentic"])
    validate(sample, tmp_path / "report.html")
    needed = ValidationConfig(needs_authentic=True)
    only(sample, tmp_path, "no authentic pictures", "--authentic", "pretrain.authentic_share=0", config=needed)


@pytest.mark.parametrize(
    "name", ["<img src=x onerror=alert(1)>.png", "price $\\frac{$column.png", "a\x1b[2J\n.png", "&lt;b&gt;.png"]
)
def test_names_are_shown_in_the_report_and_never_obeyed(sample, tmp_path, name):
    (sample / "images" / "moon.png").write_bytes(b"no picture")
    put(sample, "moon", reference=name, split=f"odd {name}")
    put(sample, "page", kind=name)
    messages = failures(sample, tmp_path)
    assert all("\n" not in message and "\x1b" not in message for message in messages)
    page = (tmp_path / "report.html").read_text()
    assert "<img" not in page
    assert "\x1b" not in page
    assert "&lt;" in page or "<" not in name
