"""benchmarks/recipes.py: a recipe trains, and is probed at one size whatever its crops."""

import sys
from pathlib import Path

import pytest
import tiny_training

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import recipes

from contrique.config import resolve


def test_every_recipe_is_one_of_the_demo_profile() -> None:
    for name, overrides in recipes.RECIPES.items():
        options = {f"pretrain.{key}": value for key, value in overrides.items() if key not in ("seed", "normalised")}
        assert resolve("demo", options), name


@pytest.mark.parametrize(("name", "steps"), [("demo", 2), ("crops of 96, 27 images", 2)])
def test_a_recipe_costs_what_it_may_and_is_probed(name: str, steps: int, tmp_path: Path) -> None:
    folders = tmp_path / "dataset", tmp_path / "distorted"
    for folder in folders:
        folder.mkdir()
    sets = tiny_training.picture_sets(*folders, judged=6)
    result = recipes.run_recipe(name, *sets, tmp_path / "out", crops=240, workers=0)
    assert result["steps"] == steps
    assert 0 <= result["last"]["probe_type"] <= 1


def test_untrained_encoders_are_probed_too(tmp_path: Path) -> None:
    folders = tmp_path / "dataset", tmp_path / "distorted"
    for folder in folders:
        folder.mkdir()
    result = recipes.run_recipe(
        "untrained, seed 1", *tiny_training.picture_sets(*folders, judged=6), tmp_path / "out", 240, 0
    )
    assert result["steps"] == 0
    assert 0 <= result["last"]["probe_type"] <= 1
