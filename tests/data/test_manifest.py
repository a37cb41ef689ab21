"""Manifests, folders of images and their labels, and splits by content."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contrique import images
from contrique.artifacts import MANIFEST
from contrique.data import leaks
from contrique.data.manifest import (
    COLUMNS,
    DatasetError,
    as_manifest,
    inspect_file,
    read_manifest,
    read_picture,
    write_manifest,
)
from contrique.data.splits import assign_splits, judged_rows
from contrique.sources.folders import Source, import_folder


def picture(path, seed=0, shape=(64, 70)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
    path.write_bytes(images.encode_png(pixels))
    return pixels


def write_labelled(folder, **columns):
    names = [f"{letter}.png" for letter in "abcdef"]
    for seed, name in enumerate(names):
        picture(folder / name, seed)
    pd.DataFrame({"image": names} | columns).to_csv(folder / "labels.csv", index=False)
    return Source(folder, "labelled")


SCORES = [1.0, 2.0, 3.0, 4.0, 5.0, 7.0]


def test_a_manifest_comes_back_with_every_column_typed(tmp_path):
    rows = [{"image": "ä.png", "mos": 3, "level": 2.0}, {"image": "b.png", "reference": "b"}]
    write_manifest(as_manifest(rows), tmp_path)
    frame = read_manifest(tmp_path)
    assert {name: str(kind) for name, kind in frame.dtypes.items()} == COLUMNS
    assert list(frame["image"]) == ["ä.png", "b.png"]
    assert list(frame["reference"]) == ["", "b"]
    assert list(frame["level"]) == [2, 0]
    assert frame["mos"][0] == 3
    assert np.isnan(frame["mos"][1])
    pd.testing.assert_frame_equal(as_manifest(frame), frame)


def test_the_same_rows_give_the_same_bytes(tmp_path):
    rows = [{"image": f"{i}.png", "mos": i / 7} for i in range(50)]
    for name in "ab":
        write_manifest(as_manifest(rows), tmp_path / name)
    assert (tmp_path / "a" / MANIFEST).read_bytes() == (tmp_path / "b" / MANIFEST).read_bytes()


def test_an_empty_manifest_is_one_too(tmp_path):
    write_manifest(as_manifest([]), tmp_path)
    assert read_manifest(tmp_path).empty


def test_columns_of_another_type_are_named():
    with pytest.raises(DatasetError, match="manifest column 'level' must be int64"):
        as_manifest([{"image": "a", "level": "high"}])
    with pytest.raises(DatasetError, match="manifest column 'mos' must be float64"):
        as_manifest([{"image": "a", "mos": "good"}])


def test_manifests_that_cannot_be_read_say_why(tmp_path):
    with pytest.raises(DatasetError, match="no manifest there"):
        read_manifest(tmp_path)
    (tmp_path / MANIFEST).write_bytes(b"PAR1 not really")
    with pytest.raises(DatasetError, match="damaged manifest"):
        read_manifest(tmp_path)
    pd.DataFrame({"image": ["a"], "kind": ["pristine"]}).to_parquet(tmp_path / MANIFEST)
    with pytest.raises(DatasetError, match=r"columns \['sha256', 'reference', 'split'\] are missing"):
        read_manifest(tmp_path)


def test_pictures_are_read_from_files_and_from_shards(tmp_path):
    first, second = picture(tmp_path / "a.png", 1), picture(tmp_path / "b.png", 2)
    data = [(tmp_path / name).read_bytes() for name in ("a.png", "b.png")]
    (tmp_path / "s.tar").write_bytes(b"head" + data[0] + data[1])
    shard = {"shard": "s.tar"}
    rows = [
        {"image": "a.png"},
        {"image": "x", "offset": 4, "size": len(data[0])} | shard,
        {"image": "y", "offset": 4 + len(data[0]), "size": len(data[1])} | shard,
        {"image": "z", "offset": 5 + len(data[0]), "size": len(data[1])} | shard,
        {"image": "absent.png"},
        {"image": "w", "shard": "absent.tar"},
    ]
    *good, beyond, no_file, no_shard = as_manifest(rows).itertuples()
    for row, expected in zip(good, (first, first, second), strict=True):
        np.testing.assert_array_equal(read_picture(tmp_path, row), expected)
    with pytest.raises(images.BadImage, match=r"s\.tar: ends before z"):
        read_picture(tmp_path, beyond)
    with pytest.raises(images.BadImage, match=r"absent\.png: cannot be read"):
        read_picture(tmp_path, no_file)
    with pytest.raises(images.BadImage, match=r"absent\.tar: cannot be read"):
        read_picture(tmp_path, no_shard)


def test_a_picture_is_described_and_a_bad_one_carries_its_reason(tmp_path):
    pixels = picture(tmp_path / "a.png", shape=(64, 70))
    row = inspect_file(tmp_path / "a.png")
    assert (row["width"], row["height"], row["channels"]) == (70, 64, 3)
    assert row["phash"] == images.perceptual_hash(pixels)
    (tmp_path / "bad.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    bad = inspect_file(tmp_path / "bad.png")
    assert "truncated" in bad["error"]
    assert len(bad["sha256"]) == 64


def test_a_labelled_folder_is_imported(tmp_path):
    source = write_labelled(
        tmp_path / "set",
        mos=SCORES,
        reference=["r1", "r1", "r2", "r2", "r3", None],
        distortion=["jpeg", "blur", "jpeg", "", None, "jpeg"],
        level=[1, 2, 3, None, 5, 1],
    )
    frame = import_folder(source)
    assert list(frame["mos"]) == SCORES
    assert list(frame["reference"]) == ["set:r1", "set:r1", "set:r2", "set:r2", "set:r3", "set:f.png"]
    assert list(frame["kind"]) == ["distorted", "distorted", "distorted", "authentic", "authentic", "distorted"]
    assert list(frame["distortion"]) == ["jpeg", "blur", "jpeg", "", "", "jpeg"]
    assert list(frame["level"]) == [1, 2, 3, 0, 5, 1]
    assert set(frame["dataset"]) == {"set"}
    assert set(frame["split"]) == {"train", "validation", "test"}
    assert frame.groupby("reference")["split"].nunique().max() == 1
    for row in frame.itertuples():
        assert images.content_hash((tmp_path / "set" / row.image).read_bytes()) == row.sha256


def test_dmos_is_mirrored_so_that_higher_is_better(tmp_path):
    frame = import_folder(write_labelled(tmp_path / "set", dmos=SCORES))
    assert list(frame["mos"]) == [7, 6, 5, 4, 3, 1]


def test_without_references_each_image_is_a_content(tmp_path):
    frame = import_folder(write_labelled(tmp_path / "set", mos=SCORES))
    assert frame["reference"].nunique() == 6


def test_given_splits_are_kept(tmp_path):
    splits = ["train", "train", "validation", "test", "test", "train"]
    assert list(import_folder(write_labelled(tmp_path / "set", mos=SCORES, split=splits))["split"]) == splits


def test_a_score_that_is_missing_stays_for_validation_to_name(tmp_path):
    frame = import_folder(write_labelled(tmp_path / "set", mos=["1", "n/a", "NaN", "4", "", "6"]))
    assert list(frame["mos"].isna()) == [False, True, True, False, True, False]


def test_names_that_look_like_numbers_stay_names(tmp_path):
    for seed, name in enumerate(("001", "002", "010")):
        picture(tmp_path / "set" / name, seed)
    (tmp_path / "set" / "labels.csv").write_text("image,mos,reference\n001,1,07\n002,2,007\n010,3,7\n")
    frame = import_folder(Source(tmp_path / "set", "labelled"))
    assert list(frame["image"]) == ["001", "002", "010"]
    assert frame["reference"].nunique() == 3


def test_unlabelled_folders_take_every_image_below_them(tmp_path):
    for name in ("b.png", "sub/a.PNG", "sub/deeper/c.png"):
        picture(tmp_path / "set" / name, len(name))
    (tmp_path / "set" / "notes.txt").write_text("x")
    for role in ("pristine", "authentic"):
        frame = import_folder(Source(tmp_path / "set", role))
        assert list(frame["image"]) == ["b.png", "sub/a.PNG", "sub/deeper/c.png"]
        assert set(frame["kind"]) == {role}
        assert set(frame["split"]) == {"pretrain"}
        assert frame["mos"].isna().all()


def test_folders_that_cannot_be_imported_say_why(tmp_path):
    def check_refusal(role, words):
        with pytest.raises(DatasetError, match=words) as error:
            import_folder(Source(tmp_path / "set", role))
        assert str(tmp_path / "set") in str(error.value)

    check_refusal("labelled", "no such folder")
    picture(tmp_path / "set" / "a.png")
    check_refusal("labelled", r"labels\.csv: not found")
    labels = tmp_path / "set" / "labels.csv"
    for text, words in {
        "": "not a readable CSV",
        "image,score\na.png,1\n": r"needs the columns image and mos \(or dmos\), has \['image', 'score'\]",
        "name,mos\na.png,1\n": "needs the columns image and mos",
        "image,mos\na.png,1\nb.png,2\n": r"1 images are not in the folder, first \['b.png'\]",
        'image,mos\n"a.png,1\n': "not a readable CSV",
    }.items():
        labels.write_text(text)
        check_refusal("labelled", words)
    labels.write_bytes(b"image,mos\n\x81,1\n")
    check_refusal("labelled", "line 2 is neither UTF-8 nor Latin-1")
    (tmp_path / "set" / "a.png").unlink()
    check_refusal("pristine", "no image files below it")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=5), min_size=3, max_size=40, unique=True), st.randoms())
def test_splits_are_by_content_and_do_not_depend_on_the_order(contents, random):
    references = pd.Series([content for content in contents for _ in range(3)])
    splits = assign_splits(references)
    assert set(splits) == {"train", "validation", "test"}
    part = dict(zip(references, splits, strict=True))
    assert all(part[reference] == split for reference, split in zip(references, splits, strict=True))
    permutation = list(references)
    random.shuffle(permutation)
    assert dict(zip(permutation, assign_splits(pd.Series(permutation)), strict=True)) == part


def test_splits_have_about_the_sizes_asked_for():
    counts = assign_splits(pd.Series([str(i) for i in range(4000)])).value_counts()
    for name, share in {"train": 0.7, "validation": 0.1, "test": 0.2}.items():
        assert abs(counts[name] - 4000 * share) < 4 * np.sqrt(4000 * share * (1 - share))
    with pytest.raises(DatasetError, match="2 contents cannot be split"):
        assign_splits(pd.Series(["a", "b", "a"]))


def test_no_part_of_few_contents_is_tiny():
    sizes = [2, 60, 60, 60, 60, 60]  # whatever part the content of two pictures falls into
    for trial in range(50):
        counts = assign_splits(pd.Series(np.repeat([f"{trial} {i}" for i in range(6)], sizes))).value_counts()
        assert counts["test"] >= 30
        assert counts["validation"] >= 15


@pytest.mark.parametrize("count", [10, 11, 15, 20, 24, 25])
def test_few_pictures_are_shared_so_that_each_part_can_be_used(count):
    for trial in range(60):
        counts = assign_splits(pd.Series([f"{trial} {i}" for i in range(count)])).value_counts()
        assert counts["test"] >= 5
        assert counts["validation"] >= 3
        assert counts["train"] >= 2


def test_a_set_may_grow_and_no_content_moves():
    names = [f"content {i}" for i in range(400)]
    part = dict(zip(names, assign_splits(pd.Series(names)), strict=True))
    for count in (40, 41, 100, 250):
        assert list(assign_splits(pd.Series(names[:count]))) == [part[name] for name in names[:count]]


def test_judged_rows_are_those_with_human_scores_or_failing_any_weak_labels():
    rows = as_manifest(
        [
            {"image": "p", "split": "pretrain", "mos": 1.0, "weak_label": 0.1},
            {"image": "h", "split": "train", "mos": 2.0},
            {"image": "w", "split": "test", "weak_label": 0.5},
            {"image": "n", "split": "test"},
        ]
    )
    assert list(judged_rows(rows)["image"]) == ["h"]
    assert list(judged_rows(rows[rows["image"] != "h"])["image"]) == ["w"]


def test_class_ids_number_strings_in_sorted_order():
    ids = leaks.class_ids(["b", "a", "b", "c"])
    assert ids.dtype == np.int64
    assert list(ids) == [1, 0, 1, 2]


hashes = st.lists(st.integers(0, 2**64 - 1).map(lambda value: f"{value:016x}"), max_size=12)


@given(hashes, hashes, st.integers(0, 40))
def test_near_duplicates_are_what_comparing_each_pair_finds(a, b, bits):
    a = [*a, "", *b[:2]]
    expected = [(i, j) for i, x in enumerate(a) for j, y in enumerate(b) if x and y and images.hamming(x, y) <= bits]
    assert leaks.near_duplicates(a, b, bits) == expected


@pytest.mark.parametrize(("flip", "axes"), [("", ()), ("horizontal", (1,)), ("vertical", (0,)), ("both", (0, 1))])
def test_a_flipped_photograph_is_found_by_its_hash_alone(photographs, flip, axes):
    manifest = read_manifest(photographs)
    mirrors = [
        images.perceptual_hash(np.ascontiguousarray(np.flip(images.read(photographs / name), axes))) if axes else code
        for name, code in zip(manifest["image"], manifest["phash"], strict=True)
    ]
    pairs = leaks.near_duplicates(list(manifest["phash"]), mirrors, 12, flip=flip)
    assert pairs == [(i, i) for i in range(len(manifest))]


def refusal(folder: Path, rows: list[dict]) -> str:
    write_manifest(as_manifest(rows), folder)
    with pytest.raises(DatasetError) as error:
        read_manifest(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["/etc/passwd", "../a.png", "a/../../b.png", "", "C:\\a.png", "a\\b.png", "a\0.png"])
@pytest.mark.parametrize("column", ["image", "shard"])
def test_names_that_lead_out_of_the_folder_are_refused(tmp_path, name, column):
    if column == "shard" and not name:  # not in a shard
        return
    rows = [{"image": "good.png"}, {"image": "other.png"} | {column: name}]
    assert f"row 1, column {column}: the name" in refusal(tmp_path, rows)


def test_a_file_that_claims_too_much_is_refused_before_it_is_unpacked(tmp_path):
    base = {"image": "a.png", "sha256": "", "reference": "r", "kind": "pristine", "split": "train"}
    pd.DataFrame([base]).loc[[0] * 3_000_000].to_parquet(tmp_path / MANIFEST, compression="zstd")
    with pytest.raises(DatasetError, match="are no manifest"):
        read_manifest(tmp_path)
    long = pd.DataFrame([base | {"reference": "r" * 1_000_000}]).astype({"reference": "category"})
    long.loc[[0] * 50_000].to_parquet(tmp_path / MANIFEST, compression="zstd")
    with pytest.raises(DatasetError, match="column reference holds texts of over"):
        read_manifest(tmp_path)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / MANIFEST)
    with pytest.raises(DatasetError, match="not a regular file"):
        read_manifest(tmp_path)
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "s.tar").symlink_to("/dev/zero")
    for row in as_manifest([{"image": "a.png"}, {"image": "b", "shard": "s.tar", "size": 10}]).itertuples():
        with pytest.raises(images.BadImage, match="not a regular file"):
            read_picture(tmp_path, row)
    with pytest.raises(images.BadImage, match="not a regular file"):
        inspect_file(tmp_path / "a.png")
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(10**13)
    with pytest.raises(images.BadImage, match="10 TB is over 2 GB"):
        inspect_file(tmp_path / "sparse.png")


@pytest.mark.parametrize("place", [{"offset": -1, "size": 4}, {"offset": 0, "size": -4}, {"offset": 0, "size": 10**15}])
def test_a_place_in_a_shard_that_cannot_be_is_refused(tmp_path, place):
    (tmp_path / "s.tar").write_bytes(b"data")
    (row,) = as_manifest([{"image": "a", "shard": "s.tar"} | place]).itertuples()
    with pytest.raises(images.BadImage, match="cannot have"):
        read_picture(tmp_path, row)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {"image": st.text(max_size=9), "sha256": st.text(max_size=2), "level": st.integers(), "split": st.text()}
        ),
        max_size=4,
    )
)
def test_any_manifest_is_one_or_one_clear_line(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("any")
    frame = pd.DataFrame(rows or [{"image": "a"}]).assign(reference="r", kind="pristine")
    try:
        frame.to_parquet(folder / MANIFEST)
    except (ValueError, OverflowError):  # half a surrogate pair, a number of more than 64 bits
        return
    try:
        names = list(read_manifest(folder)["image"])
    except DatasetError as error:
        names, message = [], str(error)
        assert message.startswith(str(folder / MANIFEST)) or message.startswith("manifest column")
    root = Path("/root/folder")
    assert all(Path(os.path.normpath(root / name)).is_relative_to(root) for name in names)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_manifest_with_bytes_changed_is_one_or_one_clear_line(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("changed")
    write_manifest(as_manifest([{"image": f"{i}.png", "sha256": "ab" * 32} for i in range(3)]), folder)
    content = bytearray((folder / MANIFEST).read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / MANIFEST).write_bytes(content)
    try:
        read_manifest(folder)
    except DatasetError as error:
        message = str(error)
        assert "\n" not in message
