"""The report: complete, self-contained, honest about its labels, the same bytes each time."""

import base64
import dataclasses
import html.parser
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from contrique import dataset, images, report
from contrique.config import EvaluationConfig, GateConfig, resolve
from contrique.evaluation import decide_set, evaluate_set
from contrique.features import FEATURES, save_features
from contrique.regressor import fit_set

CONFIG = EvaluationConfig(resamples=50)
NAMES = ("jpeg", "white_noise")
VOID = {"meta", "img", "br", "link", "input", "hr"}


def judged(folder: Path, column: str, champion: bool = False) -> Path:
    """An evaluation and a verdict on random features of five contents, from the real stages."""
    rng = np.random.default_rng(0)
    rows = [
        {"image": f"{content}{name}{level}", "reference": f"scene {content}", "distortion": name, "level": level}
        | {"split": "test" if content > 2 else ("validation" if content == 2 else "train"), "kind": "distorted"}
        | {column: float(level + rng.normal(scale=0.3))}
        for content in range(5)
        for name in NAMES
        for level in (1, 2, 3, 4)
    ]
    manifest = dataset.as_manifest(rows)
    values = rng.normal(size=(len(rows), 8)).astype(np.float32)
    values[:, 0] += manifest[column].to_numpy()
    dataset.write_manifest(manifest, folder / "features")
    save_features(values, list(manifest["image"]), folder / "features" / FEATURES)
    fit_set(folder / "features", folder / "regressor", config=resolve("demo").regressor)
    rival = (lambda rows: rows[column] + rng.normal(scale=2, size=len(rows))) if champion else None
    evaluate_set(
        folder / "features",
        folder / "regressor",
        folder / "evaluation",
        config=CONFIG,
        seed=0,
        champion=rival,
        champion_version="7" if champion else "",
    )
    decide_set(folder / "evaluation", folder / "verdict.json", config=GateConfig(min_slice=4))
    return folder


def distorted_set(folder: Path) -> Path:
    """One photograph, two distortions, three levels, wider than a thumbnail."""
    folder.mkdir(parents=True)
    rows = []
    for number, name in enumerate(NAMES):
        for level in (3, 1, 2):
            path = folder / f"{name}{level}.png"
            pixels = np.random.default_rng(10 * number + level).integers(0, 256, (100, 240, 3), np.uint8)
            path.write_bytes(images.encode_png(images.fit_within(pixels, 240)))
            row = {"image": path.name, "reference": "scene", "distortion": name, "level": level, "kind": "distorted"}
            rows.append(row | {"split": "pretrain"} | dataset.describe(path))
    dataset.write_manifest(dataset.as_manifest(rows), folder)
    return folder


def arguments(folder: Path, column: str = "weak_label", champion: bool = False) -> dict[str, Any]:
    judged(folder, column, champion)
    distorted_set(folder / "distorted")
    (folder / "dataset").mkdir()
    lineage = {
        "source": "<script>alert(1)</script>",
        "revision": "",
        "hash": "abc.dir",
        "files": 3,
        "bytes": 12_000_000,
    }
    lineage |= {"rows": 2, "counts": {"train/pristine": 2}, "sources": {}}
    (folder / "dataset" / "lineage.json").write_text(json.dumps(lineage))
    (folder / "encoder").mkdir()
    history = [{"step": step, "loss": 5.0 - step / 100, "lr": step / 1000} for step in range(1, 30)]
    (folder / "encoder" / "history.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in history))
    return {
        "dataset": folder / "dataset",
        "distorted": folder / "distorted",
        "encoder": folder / "encoder",
        "evaluation": folder / "evaluation",
        "verdict": folder / "verdict.json",
        "validation": {"expectations": 12.0, "rows": 2.0},
        "outcome": {"name": "contrique", "version": "3", "alias": "champion"},
        "config": resolve("demo", {"pretrain.steps": 29}),
        "profile": "demo",
        "seed": 5,
    }


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return arguments(tmp_path_factory.mktemp("weak"))


@pytest.fixture(scope="module")
def page(given, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("out") / "report.html"
    report.write(out, **given)
    return out.read_text()


class Structure(html.parser.HTMLParser):
    """Checks that tags nest, and collects what would be loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.loaded += [str(value) for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [str(value) for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_is_one_file_that_loads_nothing(page):
    structure = Structure()
    structure.feed(page)
    assert not structure.open
    assert structure.loaded
    assert all(one.startswith(("data:", "#")) for one in structure.loaded)
    assert "@import" not in page
    assert "<script" not in page


def test_fits_a_phone(page):
    assert 'name="viewport" content="width=device-width' in page
    assert not re.search(r"[^-]width:\s*\d{3,}px", page)


def test_gives_every_figure_with_its_interval(page, given):
    evaluation = json.loads((given["evaluation"] / "evaluation.json").read_text())
    for judgement in (evaluation["protocol"], evaluation["challenger"]):
        for estimate in judgement["metrics"].values():
            row = f'{estimate["value"]:.3f}</td><td class="number">[{estimate["low"]:.3f}, {estimate["high"]:.3f}]'
            assert row in page
    assert "leave-one-content-out" in page
    verdict = json.loads(given["verdict"].read_text())
    assert verdict["reason"].partition(": ")[2] in page


def test_says_weak_labels_and_never_mos_of_them(page):
    assert "weak labels" in page
    assert "Judged against weak labels" in page
    assert not re.search(r">\s*MOS\s*<", page)
    assert "Judged against human" not in page


def test_says_human_scores_of_human_scores(tmp_path):
    report.write(tmp_path / "report.html", **arguments(tmp_path, "mos"))
    text = (tmp_path / "report.html").read_text()
    assert "Agreement with human opinion scores" in text
    assert "Judged against weak labels" not in text


def test_compares_with_the_champion(tmp_path):
    given = arguments(tmp_path, champion=True)
    report.write(tmp_path / "report.html", **given)
    text = (tmp_path / "report.html").read_text()
    numbers = json.loads(given["verdict"].read_text())["numbers"]
    assert "champion (version 7)" in text
    assert f"challenger minus champion {numbers['difference']:.3f}" in text
    assert all(f"{name} ({numbers['slices'][name]['n']} pictures)" in text for name in NAMES)


def test_text_from_outside_is_escaped(page):
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_configuration_and_registry(page):
    assert "&#34;steps&#34;: 29" in page
    assert "contrique version 3" in page
    assert "seed 5" in page


def test_same_run_same_bytes(page, given, tmp_path):
    report.write(tmp_path / "again.html", **given)
    assert (tmp_path / "again.html").read_text() == page


def test_contact_sheet_shows_the_pictures_by_rising_level(given):
    sheet = report.contact_sheet(given["distorted"])
    assert {name: [level for level, _ in pictures] for name, pictures in sheet.items()} == {n: [1, 2, 3] for n in NAMES}
    for name, pictures in sheet.items():
        for level, uri in pictures:
            shown = np.array(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))
            assert max(shown.shape) == report.THUMBNAIL
            likeness = {
                path.stem: np.corrcoef(*(p.mean(axis=2).ravel() for p in (shown, thumbnail(path))))[0, 1]
                for path in given["distorted"].glob("*.png")
            }
            assert max(likeness, key=lambda key: likeness[key]) == f"{name}{level}"


def thumbnail(path: Path) -> images.Picture:
    return images.fit_within(images.read(path), report.THUMBNAIL)


def test_contact_sheet_of_photographs_alone_is_empty(given, tmp_path):
    manifest = dataset.read_manifest(given["distorted"])
    dataset.write_manifest(manifest.assign(distortion="", level=0), tmp_path)
    assert report.contact_sheet(tmp_path) == {}


def test_scatter_draws_the_logistic_of_its_points():
    from contrique import metrics

    x = np.linspace(0, 1, 40)
    scores = pd.DataFrame({"challenger": x, "label": metrics.logistic(x, [5, 1, 0.5, 0.1])})
    (line,) = report.score_scatter(scores, "human").axes[0].lines
    assert np.allclose(line.get_ydata(), metrics.logistic(line.get_xdata(), [5, 1, 0.5, 0.1]), atol=1e-3)


def test_scatter_says_why_there_is_no_logistic():
    scores = pd.DataFrame({"challenger": [1.0, 2.0, 3.0], "label": [1.0, 2.0, 4.0]})
    axes = report.score_scatter(scores, "weak").axes[0]
    assert not axes.lines
    assert "too few" in axes.get_xlabel()


def test_slices_are_ordered_and_undefined_ones_have_no_bar():
    estimate = {"value": 0.5, "low": 0.1, "high": 0.8}
    slices = {
        "jpeg": {"n": 4, "srcc": estimate},
        "jitter": {"n": 2, "srcc": None},
        "contrast": {"n": 9, "srcc": estimate | {"value": -0.2}},
    }
    axes = report.slice_bars(slices).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["jitter (2)", "contrast (9)", "jpeg (4)"]
    assert [bar.get_width() for bar in axes.patches] == [-0.2, 0.5]


def test_a_hold_without_a_champion(given, tmp_path):
    verdict = json.loads(given["verdict"].read_text()) | {"promote": False, "reason": "hold: no"}
    verdict["numbers"] = {"n": 4, "contents": 2}  # the challenger could not be judged
    (tmp_path / "verdict.json").write_text(json.dumps(verdict))
    report.write(tmp_path / "report.html", **(given | {"verdict": tmp_path / "verdict.json", "outcome": {}}))
    text = (tmp_path / "report.html").read_text()
    assert "There is no champion yet" in text
    assert "undefined" in text


@pytest.mark.parametrize(
    ("name", "file"),
    [("encoder", "history.jsonl"), ("dataset", "lineage.json"), ("evaluation", "evaluation.json")],
)
def test_a_missing_file_is_named(given, name, file, tmp_path):
    with pytest.raises(report.ReportError, match=file):
        report.write(tmp_path / "report.html", **(given | {name: tmp_path}))
    assert not (tmp_path / "report.html").exists()


def test_every_metric_has_a_name(given):
    evaluation = json.loads((given["evaluation"] / "evaluation.json").read_text())
    assert set(evaluation["protocol"]["metrics"]) <= report.METRICS.keys()
    assert dataclasses.is_dataclass(given["config"])
