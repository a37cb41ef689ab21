"""Folders with anything in them: whatever they hold, they are a valid set or one clear line."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from contrique import images
from contrique.data.manifest import read_picture_bytes
from contrique.errors import ContriqueError
from contrique.sources.folders import Source, import_folder
from contrique.text import escape_control

PICTURE = images.encode_png(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
NAME = st.one_of(
    st.text(min_size=1, max_size=20).map(lambda text: text.encode(errors="surrogatepass")),
    st.binary(min_size=1, max_size=20),
    st.sampled_from([b"a", b".hidden", b"~", b"caf\xe9", "cafe\u0301".encode(), b"100%", b"a\nb", b"-n", b"C:\\x"]),
).filter(lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b".."))
SUFFIX = st.sampled_from([b".png", b".PNG", b".jpg", b".jfif", b".txt", b".heic", b"", b".png "])
KIND = st.sampled_from(["picture", "damaged", "empty", "folder", "link", "loop", "dangling", "pipe", "closed"])


def put(path: Path, kind: str, root: Path) -> None:
    if kind in ("picture", "damaged", "empty"):
        path.write_bytes({"picture": PICTURE, "damaged": PICTURE[:90], "empty": b""}[kind])
    elif kind == "folder":
        path.mkdir()
        (path / "inside.png").write_bytes(PICTURE)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "closed":
        path.write_bytes(PICTURE)
        path.chmod(0)
    else:
        path.symlink_to({"link": root / "real", "loop": root, "dangling": root / "gone"}[kind])


@pytest.mark.parametrize("role", ["pristine", "authentic"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(entries=st.lists(st.tuples(NAME, SUFFIX, KIND), max_size=6))
@example(entries=[(b"caf\xe9", b".png", "picture")])
@example(entries=[(b"a\\b", b".png", "picture"), (b"loop", b"", "loop")])
def test_any_folder_is_a_set_or_one_clear_line(tmp_path_factory, role, entries):
    place = tmp_path_factory.mktemp("any")
    (place / "real").mkdir()
    (place / "real" / "elsewhere.png").write_bytes(PICTURE)
    folder = place / "folder"
    folder.mkdir()
    for name, suffix, kind in entries:
        path = folder / os.fsdecode(name + suffix)
        if not os.path.lexists(path):
            put(path, kind, place)
    try:
        frame = import_folder(Source(folder, role))
    except ContriqueError as error:
        check_line(str(error))
    else:
        assert len(frame)
        for row in frame.itertuples():
            check_picture(folder, row)


def check_line(message: str) -> None:
    assert message
    assert message == escape_control(message), "one line, and nothing that a terminal obeys"
    message.encode()


def check_picture(folder: Path, row: Any) -> None:
    """A damaged one stays in the set, for `validate` to name."""
    try:
        assert images.decode(read_picture_bytes(folder, row), row.image).pixels.shape == (64, 64, 3)
    except images.BadImage as error:
        check_line(str(error))
