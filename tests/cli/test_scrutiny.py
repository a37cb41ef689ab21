"""What an average does not show of a model: `disagree` and `gaming`."""

import json
import re
import shutil

import pytest
import tiny_model
from PIL import Image

from contrique.cli.main import main
from contrique.evaluation.gaming import NAMES


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


def attack(model, *arguments):
    settings = ("--set", "evaluation.gaming_pictures=5", "--set", "evaluation.gaming_side=80")
    return call("gaming", "--model", model, "--backend", "torch", *settings, *arguments)


def test_gaming_prints_a_table_of_attacks(models, photographs, capsys):
    assert attack(models[0], photographs) == 0
    out = capsys.readouterr().out
    assert attack(models[0], photographs, "--format", "json") == 0
    result = json.loads(capsys.readouterr().out)
    assert tuple(result["rises"]) == NAMES
    assert (result["pictures"], result["side"]) == (5, 80)
    for name, rise in result["rises"].items():
        assert re.search(rf"^{re.escape(name)} +{re.escape(format(rise['mean'], '+.1f'))} ", out, re.M)
    assert "5 pictures, the middle of each of at most 80 pixels a side, 0 not read | points of 100" in out
    assert attack(models[0], photographs, "--set", "evaluation.gaming_gradient=false") == 0
    assert "gradient" not in capsys.readouterr().out


def test_gaming_counts_and_names_what_it_cannot_read(models, photographs, tmp_path, capsys):
    for path in sorted(photographs.iterdir())[:3]:
        shutil.copy(path, tmp_path)
    (tmp_path / "damaged.png").write_bytes(b"\x89PNG")
    Image.fromarray(tiny_model.picture(0)[:32]).save(tmp_path / "small.png")
    assert attack(models[0], tmp_path, "--set", "evaluation.gaming_gradient=false") == 1
    out = capsys.readouterr().out
    assert "3 pictures" in out
    assert "2 not read" in out
    for name in ("damaged.png", "small.png"):
        assert f"not attacked: {tmp_path / name}" in out


def test_gaming_needs_three_pictures(models, photographs, capsys):
    assert attack(models[0], photographs / "00.png") == 2
    assert "1 pictures to attack; give at least 3" in capsys.readouterr().err
