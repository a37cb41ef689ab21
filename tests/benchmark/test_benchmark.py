"""The table against its parts called by hand, on small sets with real photographs; sharing, cache, files, refusals."""

import html
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import browser as chromium
import mistune
import numpy as np
import pandas as pd
import public_set_layouts
import pytest
import torch
from PIL import Image
from skimage import data as photographs

from contrique import images
from contrique.benchmark import methods
from contrique.benchmark import tables as tables_module
from contrique.benchmark.baselines import brisque_features, svr_learner
from contrique.benchmark.benchmark import _PUBLISHED_SETS, MARKDOWN, PAGE, RESULT, Benchmark, _published, read, run
from contrique.benchmark.methods import Method, compute_features, hash_encoder
from contrique.benchmark.sets import BenchmarkError, open_set
from contrique.benchmark.tables import WEAK
from contrique.cli.main import main
from contrique.config import Config, EvaluationConfig, RegressorConfig
from contrique.data.manifest import as_manifest, inspect_file, read_manifest, write_manifest
from contrique.encoder.features import extract
from contrique.encoder.network import Encoder
from contrique.encoder.weights import load_encoder, save_encoder
from contrique.evaluation.judgement import OPINION_UNAWARE, Judgement, Rated
from contrique.evaluation.protocol import cross_validate, transfer
from contrique.regressor.cross_validation import LEAVE_ONE_OUT, Learner, ridge_learner
from contrique.regressor.full_reference import fit_full_reference
from contrique.sources import public_sets
from contrique.sources.folders import Source, import_folder

CONFIG = Config(evaluation=EvaluationConfig(resamples=50), regressor=RegressorConfig(alphas=(0.1, 10.0)))
ALPHAS = [0.1, 10.0]
LEVELS = (0, 6, 14, 28, 50)


def photograph(name: str, top: int = 20, left: int = 30) -> Any:
    pixels = getattr(photographs, name)()
    pixels = pixels if pixels.ndim == 3 else np.stack([pixels] * 3, axis=-1)
    return np.ascontiguousarray(pixels[top : top + 150, left : left + 190])


def noisy(pixels: Any, strength: float, seed: int) -> Any:
    noise = np.random.default_rng(seed).normal(0, strength, pixels.shape)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


def rated(folder: Path, contents: dict[str, Any], score: str = "mos") -> Path:
    """A labelled folder: each content at five strengths of noise, in BMP or PNG."""
    folder.mkdir()
    lines = [f"image,reference,distortion,{score}"]
    for i, (name, pixels) in enumerate(contents.items()):
        for j, strength in enumerate(LEVELS):
            file = f"{name}{j}.png"
            Image.fromarray(noisy(pixels, strength + i, 10 * i + j)).save(folder / file)
            value = 90 - strength if score == "mos" else strength
            lines.append(f"{file},{name},{'noise' if j % 2 else 'grain'},{value}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def write_weak_set(folder: Path, names: list[str]) -> Path:
    """A picture set as `synthesize` makes it, with one photograph that a judged set shows too."""
    folder.mkdir()
    rows = []
    for i, name in enumerate(names):
        for j, strength in enumerate(LEVELS):
            file = f"{name}{j}.png"
            Image.fromarray(noisy(photograph(name), strength, 70 + 10 * i + j)).save(folder / file)
            row = {"image": file, "reference": f"photo:{name}", "split": "pretrain", "kind": "pristine"}
            if j:
                row |= {"kind": "distorted", "distortion": "white_noise", "level": j, "weak_label": 1 - strength / 60}
            description = inspect_file(folder / file)
            rows.append(row | description | ({"phash": ""} if j else {}))
    write_manifest(as_manifest(rows), folder)
    return folder


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.set_num_threads(1)
    return Encoder("resnet18", 3).eval().requires_grad_(False).to(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets that show other crops of one photograph, and a synthesized one that holds a photograph of the first."""
    folder = tmp_path_factory.mktemp("house")
    first = {name: photograph(name) for name in ("astronaut", "coffee", "rocket", "chelsea")}
    second = {name: photograph(name) for name in ("camera", "coins", "immunohistochemistry")}
    second["woman"] = photograph("astronaut", 50, 60)
    rated(folder / "first", first)
    rated(folder / "second", second, "dmos")
    write_weak_set(folder / "weak", ["coffee", "gravel", "hubble_deep_field"])
    return folder


@pytest.fixture(scope="module")
def benchmark(house: Path, encoder: Encoder) -> Benchmark:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods, "UNTRAINED_SEEDS", (1000,))  # one is enough here
        return run(
            [str(house / "first"), f"live:{house / 'second'}"],
            encoder,
            house / "out",
            config=CONFIG,
            distorted=house / "weak",
            baselines=["brisque", "untrained"],
        )


def by_hand(folder: Path, encoder: Encoder, score: str = "mos") -> tuple[Any, ...]:
    """Features, labels, contents, distortions of a set, in the order of its file of scores."""
    table = pd.read_csv(folder / "labels.csv")
    labels = table["mos"] if score == "mos" else table["dmos"].max() + table["dmos"].min() - table["dmos"]
    pictures = [np.array(Image.open(folder / name)) for name in table["image"]]
    return extract(pictures, encoder), labels.to_numpy(float), list(table["reference"]), list(table["distortion"])


def figures(judgement: Judgement) -> dict[str, Any]:
    return {name: (metric.value, metric.low, metric.high) for name, metric in judgement.metrics.items()}


def test_own_set_is_the_protocol(house: Path, benchmark: Benchmark, encoder: Encoder) -> None:
    ours = next(iter(benchmark.methods.values()))
    for name, folder, score in (("first", "first", "mos"), ("live", "second", "dmos")):
        features, labels, contents, kinds = by_hand(house / folder, encoder, score)
        learner = ridge_learner(ALPHAS)
        expected = cross_validate(
            features,
            Rated(labels, [f"{name}:{content}" for content in contents], kinds),
            learner,
            config=CONFIG.evaluation,
            seed=0,
        )
        assert ours.own[name] == expected
        assert expected.protocol == LEAVE_ONE_OUT
        assert set(expected.slices) == {"noise", "grain"}


def test_across_sets_what_both_show_is_left_out(house: Path, benchmark: Benchmark, encoder: Encoder) -> None:
    ours = next(iter(benchmark.methods.values()))
    features, labels, contents, _ = by_hand(house / "first", encoder)
    other, scores, names, kinds = by_hand(house / "second", encoder, "dmos")
    keep = np.array([content != "astronaut" for content in contents])
    learner = ridge_learner(ALPHAS)
    expected = transfer(
        features[keep],
        Rated(labels[keep], [c for c in contents if c != "astronaut"], [""] * sum(keep)),
        other,
        Rated(scores, names, kinds),
        learner,
        config=CONFIG.evaluation,
        seed=0,
    )
    cell = ours.across["first"]["live"]
    assert (cell.left_out, cell.crops_seen, cell.reason) == (1, True, "")
    assert figures(cell.judgement) == figures(expected)
    assert ours.across["live"]["first"].left_out == 1
    assert set(ours.across["first"]) == {"live"}


def test_weak_labels_of_a_judged_photograph_are_not_fitted_to(benchmark: Benchmark) -> None:
    ours = next(iter(benchmark.methods.values()))
    assert {name: cell.left_out for name, cell in ours.across[WEAK].items()} == {"first": 1, "live": 0}
    judgement = ours.across[WEAK]["live"].judgement
    assert judgement.protocol == OPINION_UNAWARE
    assert "rmse" not in judgement.metrics
    assert benchmark.sets[WEAK]["notes"] == ["12 synthesized pictures of 3 photographs"]


def test_baselines_are_judged_alike(house: Path, benchmark: Benchmark) -> None:
    assert [name.partition(",")[0] for name in benchmark.methods] == ["CONTRIQUE", "resnet18", "BRISQUE + SVR"]
    folder = house / "first"
    table = pd.read_csv(folder / "labels.csv")
    features = brisque_features(np.array(Image.open(folder / name)) for name in table["image"])
    expected = cross_validate(
        features,
        Rated(table["mos"], [f"first:{name}" for name in table["reference"]], list(table["distortion"])),
        svr_learner(),
        config=CONFIG.evaluation,
        seed=0,
    )
    assert benchmark.methods["BRISQUE + SVR"].own["first"] == expected
    values = [method.own["first"].metrics["plcc"].value for method in benchmark.methods.values()]
    assert len(set(values)) == len(values)


def test_files_hold_what_was_returned(house: Path, benchmark: Benchmark) -> None:
    out = house / "out"
    result = read(out / RESULT)
    assert result == benchmark.as_dict()
    text, page = ((out / name).read_text() for name in (MARKDOWN, PAGE))
    assert text == tables_module.render_markdown(result)
    assert tables_module.render_section(result) in page
    srcc = next(iter(benchmark.methods.values())).own["live"].metrics["srcc"]
    for document in (text, page):
        assert f"{srcc.value:.3f} [{srcc.low:.3f}, {srcc.high:.3f}]" in document
        assert "BRISQUE (published)" in document
        assert "20 of the 779 pictures of LIVE-IQA" in document
        assert "left out of the fit: 1 content that both show" in document
    assert not re.search(r"https?:|src=|href=|<script|@import|url\(", page)
    assert chromium.inspect(out / PAGE) == []


def test_every_row_of_a_table_is_as_wide_as_its_header(benchmark: Benchmark) -> None:
    tables = tables_module.build_tables(benchmark.as_dict())
    assert [table.title for table in tables[:2]] == ["first: own set", "LIVE-IQA: own set"]
    assert len(tables) == 2 + 3 + 2
    assert [len(table.published) for table in tables[:2]] == [0, 5]
    for table in tables:
        assert {len(row) for row in [*table.rows, *table.published]} == {len(table.header)}
    assert tables[1].published[1][1:5] == ["0.960", "", "0.961", ""]


def test_markup_in_a_name_stays_text(house: Path, encoder: Encoder, benchmark: Benchmark) -> None:
    result = json.loads(json.dumps(benchmark.as_dict()).replace("LIVE-IQA", "<script>x|y</script>"))
    assert "<script>" not in tables_module.render_section(result)
    for line in tables_module.render_markdown(result).splitlines():
        if "x" in line and line.startswith("|"):
            assert "x\\|y" in line


def test_published_figures_are_those_of_the_papers() -> None:
    every = _published(_PUBLISHED_SETS)
    assert {name: len(row) for name, row in every.items()} == {
        "CONTRIQUE-FR, paper, full-reference": 4,
        "CONTRIQUE, paper": 8,
        "CONTRIQUE, re-run by QualiCLIP's authors": 4,
        "Re-IQA": 8,
        "ARNIQA": 8,
        "BRISQUE": 8,
    }
    assert every["CONTRIQUE, paper"]["flive"] == (0.58, 0.641)
    assert every["Re-IQA"]["tid2013"] == (0.804, 0.861)
    assert every["BRISQUE"]["kadid10k"] == (0.528, None)
    assert every["CONTRIQUE, re-run by QualiCLIP's authors"]["clive"] == (0.806, None)
    assert _published(["mine"]) == {}


# -------------------------------------------------------------------------------------------------------- cache


def build_counter(key: str, counts: list[int]) -> Method:
    def describe(pictures: Any) -> Any:
        values = np.array([[picture.mean(), picture.std()] for picture in pictures])
        counts.append(len(values))
        return values

    return Method("mean and deviation", key, describe, ridge_learner(ALPHAS))


def test_a_second_run_computes_only_what_is_new(house: Path, tmp_path: Path) -> None:
    first, second = (open_set(str(house / name), bits=6) for name in ("first", "second"))
    counts: list[int] = []
    values = compute_features(first, build_counter("a", counts), tmp_path)
    np.testing.assert_array_equal(compute_features(first, build_counter("a", counts), tmp_path), values)
    assert counts == [20]
    assert values[3, 0] == images.read(first.folder / first.rows["image"][3]).mean()
    copy = Path(tmp_path / "copy")
    copy.mkdir()
    for i in (7, 2):
        (copy / f"{i}.png").write_bytes((first.folder / first.rows["image"][i]).read_bytes())
    (copy / "new.png").write_bytes((second.folder / second.rows["image"][0]).read_bytes())
    (copy / "labels.csv").write_text("image,mos\n7.png,1\nnew.png,2\n2.png,3\n")
    again = compute_features(open_set(str(copy), bits=0), build_counter("a", counts), tmp_path)
    assert counts == [20, 1]
    np.testing.assert_array_equal(again[[0, 2]], values[[7, 2]])
    compute_features(first, build_counter("b", counts), tmp_path)
    assert counts == [20, 1, 20]


def test_a_damaged_cache_is_named(house: Path, tmp_path: Path) -> None:
    first = open_set(str(house / "first"), bits=6)
    compute_features(first, build_counter("a", []), tmp_path)
    (path,) = (tmp_path / "a").iterdir()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BenchmarkError, match=rf"{path.name}: damaged cache .* delete it"):
        compute_features(first, build_counter("a", []), tmp_path)


def test_an_encoder_is_known_by_its_weights(encoder: Encoder, tmp_path: Path) -> None:
    save_encoder(encoder, tmp_path / "e.safetensors")
    copy = load_encoder(tmp_path / "e.safetensors")
    assert hash_encoder(copy) == hash_encoder(encoder)
    with torch.no_grad():
        next(copy.parameters())[0, 0, 0, 0] += 1e-3
    assert hash_encoder(copy) != hash_encoder(encoder)


def test_interrupted_extraction_keeps_what_it_has(house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "_CHUNK", 8)
    first = open_set(str(house / "first"), bits=6)
    counts: list[int] = []
    good = build_counter("a", counts)

    def failing(pictures: Any) -> Any:
        if len(counts) == 2:
            raise KeyboardInterrupt
        return good.describe(pictures)

    with pytest.raises(KeyboardInterrupt):
        compute_features(first, Method("x", "a", failing, good.learner), tmp_path)
    compute_features(first, good, tmp_path)
    assert counts == [8, 8, 4]


# --------------------------------------------------------------------------------------------------------- sets


def test_contents_that_share_a_picture_are_one(house: Path, tmp_path: Path) -> None:
    folder = rated(tmp_path / "twins", {name: photograph(name) for name in ("astronaut", "coffee", "rocket")})
    Image.fromarray(photograph("coffee")[:, ::-1]).save(folder / "z.png")
    with (folder / "labels.csv").open("a") as file:
        file.write("z.png,zebra,,50\n")
    dataset = open_set(str(folder), bits=6)
    assert sorted(set(dataset.contents)) == ["twins:astronaut", "twins:coffee", "twins:rocket"]
    assert dataset.notes == ("taken as one with another that shares a picture: 1 content",)


def test_a_picture_set_is_judged_by_its_human_scores(house: Path, tmp_path: Path) -> None:
    rows = import_folder(Source(house / "first", "labelled"))
    rows.loc[:4, "split"] = "pretrain"
    rows.loc[5, "mos"] = np.nan
    (tmp_path / "set").mkdir()
    for name in rows["image"]:
        (tmp_path / "set" / name).write_bytes((house / "first" / name).read_bytes())
    write_manifest(rows, tmp_path / "set")
    dataset = open_set(f"mine:{tmp_path / 'set'}", bits=6)
    assert (dataset.name, len(dataset.rows), dataset.official) == ("mine", 14, ())


@pytest.mark.parametrize("name", ["flive", "kadid10k"])
def test_a_public_set_is_read_as_distributed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build, pictures, contents = public_set_layouts.FIXTURES[name]
    build(tmp_path)
    with pytest.raises(public_sets.PublicSetError, match="has"):
        open_set(f"{name}:{tmp_path}", bits=0)
    public_set = replace(public_sets.SETS[name], pictures=pictures, contents=contents)
    monkeypatch.setitem(public_sets.SETS, name, public_set)
    dataset = open_set(f"{name}:{tmp_path}", bits=0)
    assert (dataset.title, len(dataset.rows)) == (public_set.title, pictures)
    assert set(dataset.official) == ({"train", "validation", "test"} if name == "flive" else set())
    spread = "in more than one part of its official split: 1 content"  # its pictures are one and the same here
    assert (spread in dataset.notes) == (name == "flive")


def test_where_there_are_references_the_anchored_variant_is_judged_too(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["astronaut", "coffee", "rocket"]
    folder = tmp_path / "download"
    (folder / "images").mkdir(parents=True)
    pictures, references, labels, contents, lines = [], [], [], [], ["dist_img,ref_img,dmos,var"]
    for i, name in enumerate(names, start=1):
        Image.fromarray(photograph(name)).save(folder / f"images/I{i:02}.png")
        for level in range(1, 6):
            file = f"I{i:02}_11_{level:02}.png"
            pictures.append(noisy(photograph(name), 9 * level, 10 * i + level))
            Image.fromarray(pictures[-1]).save(folder / "images" / file)
            references.append(photograph(name))
            labels.append(5 - 0.7 * level - 0.1 * i)
            contents.append(f"kadid10k:images/I{i:02}.png")
            lines.append(f"{file},I{i:02}.png,{labels[-1]},0.5")
    (folder / "dmos.csv").write_text("\n".join(lines))
    sets = public_sets.SETS
    monkeypatch.setitem(sets, "kadid10k", replace(sets["kadid10k"], pictures=15, contents=3))
    benchmark = run([f"kadid10k:{folder}"], encoder, tmp_path / "out", config=CONFIG)

    def learn(features: Any, y: Any, tasks: Any) -> Any:
        predictions = []
        for train, held_out in tasks:
            nothing = np.zeros_like(features)
            models = [
                fit_full_reference(features[train], nothing[train], y[train], alpha, perfect=5.0) for alpha in ALPHAS
            ]
            predictions.append(np.stack([model.predict(features[held_out], nothing[held_out]) for model in models]))
        return predictions

    distances = np.abs(extract(references, encoder) - extract(pictures, encoder))
    expected = cross_validate(
        distances,
        Rated(np.array(labels), contents, ["white_noise"] * 15),
        Learner(learn, tuple(ALPHAS)),
        config=CONFIG.evaluation,
        seed=0,
    )
    (method,) = benchmark.methods.values()
    actual = figures(method.full_reference["kadid10k"])
    np.testing.assert_allclose(list(actual.values()), list(figures(expected).values()), atol=1e-9)
    table = tables_module.build_tables(benchmark.as_dict())[0]
    assert [row[0] for row in table.rows] == ["CONTRIQUE, this encoder", "CONTRIQUE, this encoder, full-reference"]
    assert table.published[0][:2] == ["CONTRIQUE-FR, paper, full-reference (published)", "0.946"]
    assert method.across == {"kadid10k": {}}


def test_refusals(house: Path, encoder: Encoder, tmp_path: Path) -> None:
    def refusal(*data: str, **options: Any) -> str:
        with pytest.raises(BenchmarkError) as error:
            run(data, encoder, tmp_path / "out", config=CONFIG, **options)
        assert "\n" not in str(error.value)
        return str(error.value)

    first = str(house / "first")
    assert "live:none: no folder 'none'" in refusal("live:none")
    (tmp_path / "empty").mkdir()
    assert "neither a labels.csv nor a manifest.parquet" in refusal(str(tmp_path / "empty"))
    assert "no human scores in it; a benchmark needs them" in refusal(str(house / "weak"))
    assert "the sets are called first, first" in refusal(first, first)
    assert "unknown baseline 'niqe'; choose one of untrained, brisque" in refusal(first, baselines=["niqe"])
    assert "weak labels of 0 photographs" in refusal(first, distorted=_unlabelled(house / "weak", tmp_path / "w"))
    few = rated(tmp_path / "few", {name: photograph(name) for name in ("astronaut", "coffee", "rocket")})
    lines = (few / "labels.csv").read_text().splitlines()
    same = [line.replace(",coffee,", ",astronaut,") for line in lines]
    dataset_rows = [line + (",split" if i == 0 else ",train") for i, line in enumerate(same)]
    (few / "labels.csv").write_text("\n".join(dataset_rows))
    assert "few: CONTRIQUE, this encoder cannot be judged on it: 2 contents" in refusal(str(few))
    Image.fromarray(photograph("moon")[:40]).save(few / "coffee1.png")
    assert f"{few / 'coffee1.png'}: no features for CONTRIQUE, this encoder: 190x40 is under 64" in refusal(str(few))


def _unlabelled(source: Path, target: Path) -> Path:
    target.mkdir()
    rows = read_manifest(source)
    write_manifest(rows.assign(weak_label=np.nan), target)
    return target


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "benchmark.json"
    for content, message in (("{", "not a readable"), ("{}", "not a readable"), ('{"format": 99}', "another format")):
        path.write_text(content)
        with pytest.raises(BenchmarkError, match=message):
            read(path)


# ------------------------------------------------------------------------------------------------------ command


def test_the_command(house: Path, encoder: Encoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_encoder(encoder, tmp_path / "e.safetensors")
    options = ["--encoder", str(tmp_path / "e.safetensors"), "--out", str(tmp_path / "out")]
    settings = ["--set", "evaluation.resamples=20", "--cache", str(house / "out" / "features")]
    assert main(["benchmark", "--data", f"mine:{house / 'first'}", *options, *settings]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"mine: CONTRIQUE, this encoder: SRCC -?0\.\d{3} \[.*\], 20 pictures", lines[0])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "benchmark.md",
        "benchmark.json",
        "benchmark.html",
    }
    assert main(["benchmark", "--data", "nowhere", *options]) == 2
    assert capsys.readouterr().err.startswith("contrique: nowhere: no folder 'nowhere'")


@pytest.mark.parametrize(
    "name", ["# a <img src=x onerror=alert(1)>", "[a](https://evil.test) | b\n\n# c", "www.evil.test $x$"]
)
def test_names_are_no_markdown(benchmark: Benchmark, name: str) -> None:
    result = json.loads(json.dumps(benchmark.as_dict()).replace("LIVE-IQA", json.dumps(name)[1:-1]))
    text = tables_module.render_markdown(result)
    render = mistune.create_markdown(escape=False, plugins=["url", "table", "math"])
    tags = re.findall(r"<(\w+)", render(text))
    assert set(tags) <= {"h1", "h2", "p", "ul", "li", "table", "thead", "tbody", "tr", "th", "td", "em"}
    assert (tags.count("h1"), tags.count("h2")) == (1, len(tables_module.build_tables(result)))
    assert "evil" not in name or "evil.test" in html.unescape(render(text))
