"""Walking through folders as they are found on disks, cameras and NAS servers."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contrique.walk import SUFFIXES, Skipped, summarize_skipped, walk_pictures


def build(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def walk(folder: Path) -> tuple[list[str], dict[str, str]]:
    """Names of the pictures, and the reason of everything else."""
    entries = list(walk_pictures(folder))
    pictures = [entry.relative_to(folder).as_posix() for entry in entries if isinstance(entry, Path)]
    skipped = {e.path.relative_to(folder).as_posix(): e.reason for e in entries if isinstance(e, Skipped)}
    return pictures, skipped


def test_every_readable_suffix_is_taken_files_before_folders_sorted(tmp_path):
    build(tmp_path, "b/a.png", *(f"x{suffix}" for suffix in SUFFIXES), "Y.JPEG", "a/z.JFIF")
    pictures, skipped = walk(tmp_path)
    assert pictures == ["Y.JPEG", *sorted(f"x{suffix}" for suffix in SUFFIXES), "a/z.JFIF", "b/a.png"]
    assert not skipped


@pytest.mark.parametrize("name", ["IMG_1.heic", "IMG_2.AVIF", "raw.CR2"])
def test_pictures_in_other_formats_are_lost_and_said_to_be_unsupported(tmp_path, name):
    build(tmp_path, name)
    (entry,) = walk_pictures(tmp_path)
    assert isinstance(entry, Skipped)
    assert entry.lost
    assert "not supported" in entry.reason


@pytest.mark.parametrize(
    "name", ["._a.png", "@eaDir/a.jpg", "__MACOSX/a.png", ".DS_Store", "Thumbs.db", ".@__thumb/b.jpg"]
)
def test_what_systems_put_beside_pictures_is_left_out(tmp_path, name):
    build(tmp_path, name, "a.png")
    pictures, skipped = walk(tmp_path)
    assert pictures == ["a.png"]
    assert list(skipped.values()) == ["put there by a system (thumbnails, metadata)"]


def test_links_are_followed_and_circles_end(tmp_path):
    build(tmp_path / "other", "deep/a.png")
    build(tmp_path / "in", "own.png", "real/b.png")
    (tmp_path / "other" / "back").symlink_to(tmp_path / "other")
    (tmp_path / "in" / "year").symlink_to("../other")
    (tmp_path / "in" / "again").symlink_to("real")
    (tmp_path / "in" / "up").symlink_to("..")
    (tmp_path / "in" / "self").symlink_to(".")
    (tmp_path / "in" / "photo.png").symlink_to("../other/deep/a.png")
    pictures, skipped = walk(tmp_path / "in")
    assert pictures == ["own.png", "photo.png", "real/b.png", "year/deep/a.png"]
    assert set(skipped) == {"again", "up", "self", "year/back"}


def test_lost_links_pipes_and_loops_are_named(tmp_path):
    (tmp_path / "a.png").symlink_to("nowhere")
    (tmp_path / "b.png").symlink_to("b.png")
    os.mkfifo(tmp_path / "c.png")
    (tmp_path / "d.png").mkdir()
    entries = list(walk_pictures(tmp_path))
    assert [(entry.path.name, entry.lost) for entry in entries] == [("a.png", True), ("b.png", True), ("c.png", True)]


def test_names_that_are_not_utf8_are_walked_and_can_be_shown(tmp_path):
    raw = os.fsdecode("café.txt".encode("latin-1"))
    (tmp_path / raw).touch()
    (entry,) = walk_pictures(tmp_path)
    assert "caf\\udce9.txt" in summarize_skipped([entry])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_entered_is_named(tmp_path):
    build(tmp_path, "sub/a.png")
    (tmp_path / "sub").chmod(0)
    (entry,) = walk_pictures(tmp_path)
    assert (entry.path.name, entry.lost) == ("sub", True)


def test_the_summary_counts_and_names_an_example_lost_ones_first(tmp_path):
    build(tmp_path, "a.txt", "b.txt", "c.heic", "d.png")
    skipped = [entry for entry in walk_pictures(tmp_path) if isinstance(entry, Skipped)]
    summary = summarize_skipped(skipped)
    assert summary.index("c.heic") < summary.index("2 not pictures by their suffix, such as")
    assert summarize_skipped([]) == ""


NAME = st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=8).filter(
    lambda name: name not in (".", "..")
)
PATH = st.lists(NAME, min_size=1, max_size=3).map("/".join)
KIND = st.sampled_from(["file", "folder", "link", "pipe"])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(PATH, KIND, st.sampled_from(sorted(SUFFIXES | {"", ".txt"})), PATH), max_size=8))
def test_any_folder_is_walked_to_its_end(tmp_path_factory, entries):
    folder = tmp_path_factory.mktemp("any")
    for path, kind, suffix, target in entries:
        place = folder / f"{path}{suffix}"
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            if kind == "link":
                place.symlink_to(folder / target)
            elif kind == "folder":
                place.mkdir()
            elif kind == "pipe":
                os.mkfifo(place)
            else:
                place.touch()
        except OSError:  # something stands there already, or the name is too long
            continue
    results = list(walk_pictures(folder))
    places = [entry.path if isinstance(entry, Skipped) else entry for entry in results]
    assert len(places) == len(set(places))
    assert all(path.is_file() for path in results if isinstance(path, Path))
    assert "\n" not in summarize_skipped(e for e in results if isinstance(e, Skipped))
