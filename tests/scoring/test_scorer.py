import csv
import dataclasses
import io
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_model
import torch
from PIL import Image

from contrique import images
from contrique.data.manifest import write_manifest
from contrique.encoder.features import extract
from contrique.encoder.weights import load_encoder
from contrique.regressor.head import DIRECTION, RANGE, Head
from contrique.regressor.reliability import fit_novelty
from contrique.regressor.ridge import RegressorError, Ridge
from contrique.scoring.inputs import AHEAD, BATCH_PIXELS, find_images
from contrique.scoring.rescore import Rescore
from contrique.scoring.results import CSV_COLUMNS, Failure, Score, write_results
from contrique.scoring.scorer import TOLERANCE, Scorer, ScorerError
from contrique.sources.folders import Source, import_folder


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return tiny_model.build(tmp_path_factory.mktemp("model") / "parts")


@pytest.fixture(scope="module")
def scorer(parts):
    return Scorer(parts.encoder, parts.regressor, version="7")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of different sizes, some in sub-folders, beside files that are none."""
    root = tmp_path_factory.mktemp("pictures")
    for i, name in enumerate(["b.png", "a.PNG", "sub/c.png", "sub/deeper/d.bmp"]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tiny_model.picture(i, 70 + 13 * i, 101 - 9 * i)).save(root / name)
    (root / "notes.txt").write_text("no picture")
    return root


def by_hand(picture, parts):
    """The raw score from the definition, in float64: two scales, pooled, normalised, weighted."""
    encoder = load_encoder(parts.encoder).double()
    ridge = Head.load(parts.regressor).ridge
    height, width = picture.shape[:2]
    half = np.asarray(Image.fromarray(picture).resize((width // 2, height // 2), Image.Resampling.BICUBIC))
    features = []
    for scale in (picture, half):
        x = torch.from_numpy(scale.transpose(2, 0, 1)[None] / 255.0)
        with torch.no_grad():
            means = encoder.maps(x)[0].mean(dim=(1, 2)).numpy()
        features.append(means / np.linalg.norm(means))
    return float(np.concatenate(features) @ ridge.coef + ridge.intercept)


def test_raw_and_score_follow_the_definition(scorer, parts):
    pictures = [tiny_model.picture(i, 64 + i, 90) for i in range(8)]
    raw = scorer.raw(pictures)
    np.testing.assert_allclose(raw, [by_hand(picture, parts) for picture in pictures], atol=0.02)
    expected = np.clip(100 * (raw + 20) / 140, 0, 100)
    np.testing.assert_allclose(scorer.score(pictures), expected, rtol=1e-12)
    assert np.ptp(raw) > 10  # the model tells pictures apart, else the rest would prove nothing


def test_scores_stay_in_their_range(parts, tmp_path):
    head = Head.load(parts.regressor)
    for intercept, score in ((1e6, RANGE[1]), (-1e6, RANGE[0])):
        Head(Ridge(head.ridge.coef, intercept, 1.0), head.summary).save(tmp_path / str(intercept))
        scorer = Scorer(parts.encoder, tmp_path / str(intercept))
        assert list(scorer.score([tiny_model.picture(0)])) == [score]
        assert abs(scorer.raw([tiny_model.picture(0)])[0] - intercept) < 1000


def test_a_score_does_not_depend_on_its_neighbours(scorer, folder):
    paths = [str(path) for path in find_images([folder])]
    together = {item.path: item.score for item in scorer.score_paths(paths)}
    backwards = {item.path: item.score for item in scorer.score_paths(reversed(paths))}
    alone = {path: next(scorer.score_paths([path])).score for path in paths}
    assert together == backwards == alone
    assert len(set(together.values())) == 4


def test_the_contract_comes_with_the_score(scorer, folder):
    item = next(scorer.score_paths([folder / "b.png"]))
    assert item == Score(
        path=str(folder / "b.png"),
        score=float(scorer.score([images.read(folder / "b.png")])[0]),
        raw=float(scorer.raw([images.read(folder / "b.png")])[0]),
        model="7",
        labels="human",
        range=RANGE,
        direction=DIRECTION,
    )


def test_files_folders_and_globs(folder, monkeypatch):
    def names(*inputs):
        return [file.relative_to(folder).as_posix() for file in find_images(inputs)]

    everything = ["a.PNG", "b.png", "sub/c.png", "sub/deeper/d.bmp"]
    assert names(folder) == everything
    assert names(folder / "sub" / "c.png", folder / "b.png") == ["sub/c.png", "b.png"]
    assert names(f"{folder}/*.png") == ["b.png"]
    assert names(f"{folder}/**/*.[pb][nm]*") == ["b.png", "sub/c.png", "sub/deeper/d.bmp"]
    monkeypatch.chdir(folder)
    assert [str(path) for path in find_images(["sub", "*.PNG"])] == ["sub/c.png", "sub/deeper/d.bmp", "a.PNG"]


def test_a_name_with_glob_characters_is_a_file_first(tmp_path):
    path = tmp_path / "a[1].png"
    path.write_bytes(b"x")
    (tmp_path / "a1.png").write_bytes(b"x")
    assert list(find_images([path])) == [path]


def test_bad_paths_fail_alone(scorer, folder, tmp_path):
    good = folder / "b.png"
    jpeg = io.BytesIO()
    Image.fromarray(tiny_model.picture(0)).save(jpeg, "JPEG")
    bad = {
        "cut.jpg": (jpeg.getvalue()[:-300], "damaged or truncated"),
        "empty.png": (b"", "the file is empty"),
        "text.png": (b"hello", "not an image in a known format"),
        "tiny.png": (images.encode_png(tiny_model.picture(0, 63, 200)), "under 64 pixels a side"),
    }
    for name, (data, _) in bad.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "nothing").mkdir()
    expected = {str(tmp_path / name): reason for name, (_, reason) in bad.items()} | {
        str(tmp_path / "absent.png"): "no such file",
        str(tmp_path / "*.tif"): "matches no file",
        str(tmp_path / "nothing"): "no image files below it",
        str(tmp_path / ("long" * 100)): "cannot be read",
        str(good / "below.png"): "no such file",
    }
    mixed = itertools.chain.from_iterable((path, good) for path in expected)
    results = list(scorer.score_paths(mixed))
    assert [item.path for item in results[0::2]] == list(expected)
    for item in results[0::2]:
        assert isinstance(item, Failure)
        assert expected[item.path] in item.error
        assert item.error.startswith(item.path)
        assert "\n" not in item.error
    assert len({item.score for item in results[1::2]}) == 1
    assert len(results) == 2 * len(expected)


def test_an_unreadable_folder_is_named(tmp_path):
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "closed").chmod(0)
    items = list(find_images([tmp_path]))
    if os.geteuid() == 0:  # nothing is closed to root
        assert items == [tmp_path / "a.png"]
    else:
        assert items[0] == tmp_path / "a.png"
        assert items[1].path == str(tmp_path / "closed")
    (tmp_path / "closed").chmod(0o700)


def test_paths_are_taken_a_few_ahead(scorer, folder):
    numbers = []

    def endless():
        for number in itertools.count():
            numbers.append(number)
            yield folder / "b.png"

    first = list(itertools.islice(scorer.score_paths(endless()), 3))
    assert len(first) == 3
    pixels = 70 * 101
    assert len(numbers) <= 3 + AHEAD + 2 * BATCH_PIXELS["cpu"] // pixels


def test_parts_that_do_not_belong_together(parts, tmp_path):
    head = Head.load(parts.regressor)
    short = dataclasses.replace(head.summary, features_dim=100)
    Head(Ridge(head.ridge.coef[:100], 0.0, 1.0), short).save(tmp_path / "short")
    with pytest.raises(ScorerError, match=r"fitted on 100 features, but .* gives 1024"):
        Scorer(parts.encoder, tmp_path / "short")
    with pytest.raises(RegressorError, match="absent"):
        Scorer(parts.encoder, tmp_path / "absent")


@pytest.fixture(scope="module")
def results(scorer, folder, tmp_path_factory):
    odd = tmp_path_factory.mktemp("odd") / 'comma, "quote" é.png'
    odd.write_bytes((folder / "b.png").read_bytes())
    return list(scorer.score_paths([folder / "b.png", "absent.png", odd]))


def test_json_is_a_list_of_objects(results):
    file = io.StringIO()
    assert write_results(results, file, "json") == 1
    items = json.loads(file.getvalue())
    assert [item["path"] for item in items] == [item.path for item in results]
    assert set(items[1]) == {"path", "error"}
    assert set(items[0]) == {
        *("path", "score", "raw", "range", "direction", "model", "labels", "interval", "distance", "warning")
    }
    assert items[0]["score"] == results[0].score
    assert items[0]["range"] == [0, 100]
    assert items[0]["direction"] == "higher is better"


@pytest.mark.parametrize("count", [0, 1])
def test_json_is_whole_for_few_results(results, count):
    file = io.StringIO()
    write_results(results[:count], file, "json")
    assert len(json.loads(file.getvalue())) == count


def test_csv_has_the_same_columns_for_all(results):
    file = io.StringIO()
    assert write_results(results, file, "csv") == 1
    rows = list(csv.DictReader(io.StringIO(file.getvalue())))
    assert [row["path"] for row in rows] == [item.path for item in results]
    assert all(tuple(row) == CSV_COLUMNS for row in rows)
    assert float(rows[0]["score"]) == results[0].score
    assert (rows[0]["low"], rows[0]["high"], rows[0]["error"]) == ("0.0", "100.0", "")
    assert rows[1]["score"] == ""
    assert "no such file" in rows[1]["error"]


def test_the_table_says_how_to_read_it(results):
    file = io.StringIO()
    assert write_results(results, file) == 1
    lines = file.getvalue().splitlines()
    assert lines[1] == f"{results[0].score:6.1f}       unknown  {results[0].path}"
    assert "absent.png: no such file" in lines[2]
    assert lines[-1] == ("2 scored, 1 failed | scale 0 to 100, higher is better | model 7, learned from human labels")


def test_results_are_written_as_they_come(results):
    for form in ("table", "json", "csv"):
        file = io.StringIO()
        sizes = []

        def items(file=file, sizes=sizes):
            for item in results:
                sizes.append(len(file.getvalue()))
                yield item

        write_results(items(), file, form)
        assert sizes[0] < sizes[1] < sizes[2] < len(file.getvalue())


@pytest.fixture
def sets(tmp_path):
    """Two picture sets whose pictures differ but whose file names are the same."""
    folders = [tmp_path / "given", tmp_path / "made"]
    for i, root in enumerate(folders):
        root.mkdir()
        for j in range(3):
            Image.fromarray(tiny_model.picture(10 * i + j)).save(root / f"{j}.png")
        write_manifest(import_folder(Source(root, "pristine")), root)
    return folders


def test_rescore_finds_each_rows_picture(scorer, sets):
    manifests = [pd.read_parquet(root / "manifest.parquet") for root in sets]
    rows = pd.concat(manifests).iloc[[4, 0, 5, 2]]
    expected = [sets[1] / "1.png", sets[0] / "0.png", sets[1] / "2.png", sets[0] / "2.png"]
    champion = Rescore(scorer, sets)
    assert champion.version == "7"
    np.testing.assert_array_equal(champion(rows), scorer.raw(images.read(path) for path in expected))


def test_rescore_refuses_rows_it_cannot_find(scorer, sets):
    rows = pd.read_parquet(sets[1] / "manifest.parquet")
    with pytest.raises(ScorerError, match=r"3 pictures to rescore are in none .* first 0.png"):
        Rescore(scorer, [sets[0]])(rows)
    (sets[0] / "1.png").unlink()
    with pytest.raises(images.BadImage, match=r"1\.png"):
        Rescore(scorer, [Path(sets[0])])(pd.read_parquet(sets[0] / "manifest.parquet"))


@pytest.fixture(scope="module")
def contract_scorer(parts, tmp_path_factory):
    """The same model with an interval of 7 points of its scale and a bank of pictures like those of tiny_model."""
    head = Head.load(parts.regressor)
    pictures = [tiny_model.picture(i) for i in range(100, 140)]
    features = extract(pictures, load_encoder(parts.encoder))
    novelty = fit_novelty(features[:30], [str(i) for i in range(30)], features[30:], ["o"] * 10)
    folder = tmp_path_factory.mktemp("contracted") / "regressor"
    summary = dataclasses.replace(head.summary, interval=0.07 * 140, interval_n=99)
    Head(head.ridge, summary, novelty).save(folder)
    return Scorer(parts.encoder, folder, version="8")


def test_the_interval_is_around_the_score_and_inside_the_range(contract_scorer):
    widths = []
    for i in range(12):
        item = contract_scorer.judge(images.encode_png(tiny_model.picture(i)), "x")
        centre = 100 * (item.raw + 20) / 140
        assert item.interval == pytest.approx((np.clip(centre - 7, 0, 100), np.clip(centre + 7, 0, 100)))
        assert item.interval[0] <= item.score <= item.interval[1]
        widths.append(item.interval[1] - item.interval[0])
    assert max(widths) == pytest.approx(14)


def test_a_picture_unlike_the_training_ones_is_warned_of(contract_scorer):
    alike = [contract_scorer.judge(images.encode_png(tiny_model.picture(i)), "x") for i in range(200, 230)]
    assert np.mean([item.warning == "" for item in alike]) > 0.8
    assert all((item.distance > 1) == bool(item.warning) for item in alike)
    stripes = np.tile(((np.arange(96) // 2 % 2) * 255).astype(np.uint8)[None, :, None], (80, 1, 3))
    for stranger in (np.zeros((80, 96, 3), np.uint8), stripes):
        item = contract_scorer.judge(images.encode_png(stranger), "x")
        assert item.distance > 1
        assert item.warning.startswith(f"unlike the training pictures ({item.distance:.1f} times as far")


def test_the_whole_contract_in_every_form(contract_scorer, tmp_path):
    for name, picture in (("like", tiny_model.picture(0)), ("unlike", np.zeros((80, 96, 3), np.uint8))):
        (tmp_path / f"{name}.png").write_bytes(images.encode_png(picture))
    like, unlike = items = list(contract_scorer.score_paths([tmp_path / "like.png", tmp_path / "unlike.png"]))
    text = {}
    for form in ("json", "csv", "table"):
        file = io.StringIO()
        assert write_results(items, file, form) == 0
        text[form] = file.getvalue()
    entries = json.loads(text["json"])
    assert entries[0]["interval"] == list(like.interval)
    assert (entries[0]["distance"], entries[1]["warning"]) == (like.distance, unlike.warning)
    rows = list(csv.DictReader(io.StringIO(text["csv"])))
    assert (float(rows[0]["interval_low"]), float(rows[0]["interval_high"])) == like.interval
    assert (rows[0]["warning"], rows[1]["warning"]) == (like.warning, unlike.warning)
    lines = text["table"].splitlines()
    assert f"{like.interval[0]:.1f} - {like.interval[1]:.1f}  {like.path}" in lines[1]
    assert lines[2].endswith(f"{unlike.path} | {unlike.warning}")


def test_same_score_alone_in_any_batch_and_by_any_number_of_threads(scorer, tmp_path, monkeypatch):
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(images.encode_png(tiny_model.picture(i, 64, 64)))
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    alone = [next(scorer.score_paths([path])) for path in paths]
    assert [item.score for item in alone] == list(scorer.score([images.read(path) for path in paths]))
    sizes = []
    backend = scorer._backend
    monkeypatch.setattr(scorer, "_backend", lambda pictures: sizes.append(len(pictures)) or backend(pictures))
    for budget, largest in ((64 * 64, 1), (3 * 64 * 64, 3), (2**20, 6)):
        monkeypatch.setitem(BATCH_PIXELS, "cpu", budget)
        sizes.clear()
        for threads in (1, 2):
            torch.set_num_threads(threads)
            try:
                items = list(scorer.score_paths(paths))
            finally:
                torch.set_num_threads(1)
            assert max(sizes) == largest
            np.testing.assert_allclose(
                [item.score for item in items], [item.score for item in alone], rtol=0, atol=TOLERANCE
            )


def test_a_large_picture_is_decoded_in_its_turn(scorer, folder, monkeypatch):
    paths = [folder / "b.png", folder / "sub/c.png"]
    expected = [item.score for item in scorer.score_paths(paths)]
    monkeypatch.setattr("contrique.scoring.inputs._decode.__defaults__", (10,))
    reads = []
    monkeypatch.setattr(images, "read_bytes", lambda path, real=images.read_bytes: reads.append(path) or real(path))
    assert [item.score for item in scorer.score_paths(paths)] == expected
    assert sorted(reads) == sorted(2 * paths)  # once for its size, once for good


@pytest.mark.parametrize("name", ["=1+1.png", "+x.png", "-x.png", "@sum.png", " =x.png", "\t=x.png", 'a",b.png'])
def test_no_cell_of_csv_is_a_formula(name):
    file = io.StringIO()
    write_results([Failure(name, f"{name}: no such file")], file, "csv")
    header, line = file.getvalue().splitlines()
    assert header.startswith('"path","score"')
    (row,) = csv.DictReader(io.StringIO(file.getvalue()))
    assert row["path"].lstrip()[0] not in "=+-@"
    assert line.startswith('"')


@pytest.mark.parametrize("form", ["csv", "table"])
def test_names_cannot_forge_lines(form):
    file = io.StringIO()
    name = "a.png\n 99.9  90.0 - 99.9  b.png\x1b[2J\r"
    write_results([Failure(name, f"{name}: no such file")], file, form)
    assert file.getvalue().count("\n") == 2 + (form == "table")
    assert "\x1b" not in file.getvalue()
    assert "\r" not in file.getvalue()
