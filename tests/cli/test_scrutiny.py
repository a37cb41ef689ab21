"""What an average does not show of a model: `disagree`."""

import json

import pytest
import tiny_model
from PIL import Image

from contrique.cli.main import main


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of two models, as `adapt` writes them."""
    folder = tmp_path_factory.mktemp("models")
    return [tiny_model.build(folder / name, seed).encoder.parent for seed, name in enumerate(("a", "b"))]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    for i in range(12):
        Image.fromarray(tiny_model.picture(i)).save(folder / f"{i:02}.png")
    return folder


def call(*arguments):
    return main([str(argument) for argument in arguments])


def test_disagree_prints_pairs_and_writes_a_page(models, photographs, tmp_path, capsys):
    page = tmp_path / "page.html"
    arguments = (*models, photographs, "--tolerance", 40, "--pairs", 2, "--backend", "torch")
    assert call("disagree", *arguments, "--report", page) == 0
    out = capsys.readouterr().out
    assert f"A  {models[0]}, learned from human labels" in out
    assert "A calls equal, within 40, and B tells apart" in out
    assert "12 pictures, 0 not scored | SRCC of A and B " in out
    assert call("disagree", *arguments, "--format", "json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["models"] == [str(model) for model in models]
    assert result["pairs"]
    for pair in result["pairs"]:
        assert f"{pair['gap']:5.1f}  {pair['worse']['path']} | {pair['better']['path']}" in out
        assert f"{pair['gap']:.1f} points above" in page.read_text()


def test_disagree_counts_and_names_what_it_cannot_score(models, photographs, tmp_path, capsys):
    (tmp_path / "damaged.png").write_bytes(b"\x89PNG")
    assert call("disagree", *models, photographs, tmp_path, "--backend", "torch") == 1
    out = capsys.readouterr().out
    assert "12 pictures, 1 not scored" in out
    assert f"not scored: {tmp_path / 'damaged.png'}" in out


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "many"])
def test_a_tolerance_that_is_none_is_one_line(models, photographs, value, capsys):
    assert call("disagree", *models, photographs, f"--tolerance={value}") == 2
    assert "--tolerance" in capsys.readouterr().err


def test_a_model_that_is_nowhere_is_one_line(models, photographs, capsys):
    assert call("disagree", models[0], "no/such/model", photographs) == 2
    assert "no/such/model" in capsys.readouterr().err
