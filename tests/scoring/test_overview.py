"""A folder at a glance: what is noted of each picture, copies, tables, and a folder that fills while it is watched."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import browser as chromium
import numpy as np
import pandas as pd
import pytest
import tiny_model
from PIL import Image

from contrique import images
from contrique.cli.main import main
from contrique.reports import overview as page
from contrique.scoring.inputs import find_images
from contrique.scoring.overview import COLUMNS, Observation, group_copies, observe, write_table
from contrique.scoring.results import Failure, Score
from contrique.scoring.scorer import Scorer
from contrique.scoring.watch import watch_images

NAMES = ("sea.png", "wood/fern.jpg", "wood/<b>moss.png", "copy.webp", "small.png", "broken.jpg")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    parts = tiny_model.build(tmp_path_factory.mktemp("overview") / "model")
    folder = parts.encoder.parent
    return folder


@pytest.fixture
def folder(tmp_path):
    """Four pictures, two of them alike, one too small and one damaged."""
    root = tmp_path / "holiday"
    (root / "wood").mkdir(parents=True)
    for seed, name in enumerate(NAMES[:3]):
        Image.fromarray(tiny_model.picture(seed, 128, 160)).save(root / name)
    Image.fromarray(tiny_model.picture(0, 128, 160)).save(root / "copy.webp", quality=95)
    Image.fromarray(tiny_model.picture(9, 30, 40)).save(root / "small.png")
    (root / "broken.jpg").write_bytes((root / "wood/fern.jpg").read_bytes()[:900])
    return root


def score_of(path: str, value: float) -> Score:
    return Score(path, value, value, "7", "human", (value - 5, value + 5), 0.5, "")


def observation(path: str, value: float, phash: str = "", fault: str = "jpeg", day: str = "2024-05-01") -> Observation:
    return Observation(score_of(path, value), fault, phash, day)


def test_scores_are_those_of_score_and_failures_keep_their_place(model, folder):
    scorer = Scorer(model / "encoder.safetensors", model / "regressor")
    plain = list(scorer.score_paths([folder]))
    items = list(observe(scorer, find_images([folder])))
    assert [item.score if isinstance(item, Observation) else item for item in items] == plain
    assert sum(isinstance(item, Failure) for item in items) == 2
    for item in items:
        if isinstance(item, Observation):
            assert item.phash == images.perceptual_hash(images.read(item.score.path))
            assert item.day == datetime.fromtimestamp(Path(item.score.path).stat().st_mtime).date().isoformat()
            assert item.fault == ""  # the tiny model has no diagnosis


def test_the_day_is_exifs_and_damaged_exif_says_nothing(tmp_path):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = "2021:07:04 12:00:00"
    Image.fromarray(tiny_model.picture(0)).save(tmp_path / "a.jpg", exif=exif)
    assert images.read_day(tmp_path / "a.jpg") == "2021-07-04"
    for number, text in enumerate(("2021:13:45 99:00:00", "yesterday", "", "٢٠٢١:07:04")):
        odd = Image.Exif()
        odd.get_ifd(0x8769)[0x9003] = text
        Image.fromarray(tiny_model.picture(0)).save(tmp_path / f"{number}.jpg", exif=odd)
    days = [images.read_day(tmp_path / f"{number}.jpg") for number in range(4)]
    assert days[:3] == ["", "", ""]
    data = (tmp_path / "a.jpg").read_bytes()
    at = data.index(b"Exif")
    (tmp_path / "torn.jpg").write_bytes(data[: at + 8] + b"\xff" * 20 + data[at + 28 :])
    assert images.read_day(tmp_path / "torn.jpg") == ""
    with pytest.raises(images.BadImage):
        images.read_day(tmp_path / "none.jpg")


def test_copies_against_every_pair():
    """Groups are the connected components of near-duplicates, as a slow search finds them."""
    rng = np.random.default_rng(0)
    base = [int(value) for value in rng.integers(0, 2**63, 12)]
    codes = [base[i % 12] ^ (1 << int(rng.integers(64))) for i in range(30)] + [int(rng.integers(2**63))]
    items = [observation(f"{i}.png", float(i), f"{code:016x}") for i, code in enumerate(codes)]
    groups = group_copies(items, 4)
    parent = list(range(len(codes)))
    for a in range(len(codes)):
        for b in range(len(codes)):
            if (codes[a] ^ codes[b]).bit_count() <= 4:
                old, new = parent[b], parent[a]
                parent = [new if value == old else value for value in parent]
    expected = {}
    for i, root in enumerate(parent):
        expected.setdefault(root, set()).add(f"{i}.png")
    assert {frozenset(item.score.path for item in group) for group in groups} == {
        frozenset(group) for group in expected.values() if len(group) > 1
    }
    for group in groups:
        assert group[0].score.score == max(item.score.score for item in group)
    assert group_copies(items[:1], 4) == group_copies([], 4) == []


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".json"])
def test_a_table_holds_every_result(tmp_path, suffix):
    results = [observation("=a,\n.png", 12.5), Failure("b.png", "b.png: damaged"), observation("c.png", 50.0, fault="")]
    out = tmp_path / f"table{suffix}"
    write_table(results, out)
    reader = {".parquet": pd.read_parquet, ".csv": pd.read_csv, ".json": pd.read_json}[suffix]
    table = reader(out)
    assert list(table.columns) == list(COLUMNS)
    assert table["score"].fillna(-1).tolist() == [12.5, -1, 50.0]
    assert table["error"].fillna("").tolist() == ["", "b.png: damaged", ""]
    first = table["path"][0]
    assert first == ("'=a,\\n.png" if suffix == ".csv" else "=a,\n.png")
    write_table([], out)
    assert list((pd.DataFrame(json.loads(out.read_text())) if suffix == ".json" else reader(out)).index) == []


def test_bars_and_groups_by_hand():
    items = [observation(f"{i}.png", value) for i, value in enumerate([0, 4.99, 5, 99.9, 100])]
    assert page.count_bars(items) == [2, 1, *[0] * 16, 0, 2]
    pairs = [("b", items[0]), ("a", items[1]), ("b", items[4])]
    assert [(group.name, group.count, group.median) for group in page.group_by(pairs)] == [
        ("b", 2, 50.0),
        ("a", 1, 4.99),
    ]
    assert [group.name for group in page.group_by(pairs, by_name=True)] == ["a", "b"]
    assert page.group_by(pairs[:1]) == []


def test_the_page_in_a_browser(model, folder, tmp_path, capsys):
    out, table = tmp_path / "holiday.html", tmp_path / "holiday.parquet"
    command = ["score", str(folder), "--model", str(model), "--backend", "torch"]
    assert main([*command, "--report", str(out), "--out", str(table)]) == 1
    plain = capsys.readouterr().out
    assert main(command) == 1
    assert capsys.readouterr().out == plain
    text = out.read_text()
    assert "4 pictures at a glance" in text
    assert "wood/&lt;b&gt;moss.png" in text
    assert "1 picture is nearly the same as another one, in 1 group." in text
    assert "damaged or truncated" in text
    assert len(pd.read_parquet(table)) == 6
    assert chromium.inspect(out) == []


def test_a_page_of_nothing_but_failures(tmp_path):
    out = tmp_path / "page.html"
    page.write_overview(out, [Failure("a.png", "a.png: no such file")], "2 files skipped")
    assert "a.png: no such file" in out.read_text()
    assert chromium.inspect(out) == []


def test_relative_and_absolute_names_and_one_that_is_no_unicode(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = [observation("a.jpg", 10.0), observation(f"{tmp_path}/sub/b\udcff.jpg", 20.0)]
    page.write_overview(tmp_path / "page.html", results)
    assert "2 pictures at a glance" in (tmp_path / "page.html").read_text()
    for suffix in (".parquet", ".csv", ".json"):
        write_table(results, tmp_path / f"table{suffix}")
    assert pd.read_parquet(tmp_path / "table.parquet")["path"][1].endswith("b\\udcff.jpg")


def test_a_wrong_suffix_is_said_before_anything_is_scored(tmp_path, capsys):
    assert main(["score", "x.png", "--out", str(tmp_path / "x.txt")]) == 2
    assert "expected a name that ends in .parquet, .csv, .json" in capsys.readouterr().err


class TestWatching:
    def test_a_picture_comes_when_it_is_whole_and_again_when_it_changes(self, folder):
        copy = folder / "new.png"
        content = (folder / "sea.png").read_bytes()
        steps = iter(
            [
                lambda: None,
                lambda: copy.write_bytes(content[:100]),
                lambda: copy.write_bytes(content[:200]),
                lambda: copy.write_bytes(content),
                lambda: None,
                lambda: None,
                lambda: os.utime(folder / "sea.png", ns=(1, 1)),
                lambda: None,
            ]
        )
        looks = []

        def wait(_: float) -> bool:
            looks.append(1)
            next(steps)()
            return False

        batches = watch_images([folder], 1.0, wait)
        first = next(batches)
        assert len(looks) == 1
        assert sorted(path.relative_to(folder).as_posix() for path in first) == sorted(NAMES)
        assert next(batches) == [copy]
        assert len(looks) == 5
        assert next(batches) == [folder / "sea.png"]

    def test_a_folder_that_is_empty_is_told_once(self, tmp_path):
        empty = tmp_path / "camera"
        empty.mkdir()
        steps = iter([lambda: None, lambda: shutil.copy(__file__, empty / "notes.txt"), lambda: None])

        def wait(_: float) -> bool:
            step = next(steps, None)
            if step:
                step()
            return step is None

        ((fault,),) = watch_images([empty], 1.0, wait)
        assert fault.error.startswith(f"{empty}: no image files")

    @pytest.mark.slow
    def test_the_command_keeps_its_files_up_to_date_until_it_is_ended(self, model, folder, tmp_path):
        out, table = tmp_path / "today.html", tmp_path / "today.csv"
        arguments = ["score", str(folder), "--model", str(model), "--backend", "torch", "--watch"]
        arguments += ["--report", str(out), "--out", str(table)]
        process = subprocess.Popen(
            [sys.executable, "-m", "contrique.cli", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            wait_for(lambda: out.is_file() and "4 pictures" in out.read_text())
            shutil.copy(folder / "sea.png", folder / "later.png")
            wait_for(lambda: "5 pictures" in out.read_text() and table.read_text().count("later.png") == 1)
            process.send_signal(signal.SIGINT)
            stdout, stderr = process.communicate(timeout=120)
        finally:
            process.kill()
        assert process.returncode == 1  # two pictures could not be scored
        assert "later.png" in stdout
        assert "5 scored, 2 failed" in stdout
        assert "Traceback" not in stderr


def wait_for(condition) -> None:
    end = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.2)
