import dataclasses
import json

import pytest

from contrique.config import PROFILES, ConfigError, as_dict, resolve


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_every_profile_is_plain_json(profile: str) -> None:
    assert json.loads(json.dumps(as_dict(resolve(profile))))["pretrain"]["arch"].startswith("resnet")


def test_paper_profile_holds_the_published_recipe() -> None:
    recipe = resolve("paper").pretrain
    assert (recipe.arch, recipe.crop, recipe.temperature, recipe.epochs) == ("resnet50", 256, 0.1, 25)
    assert (recipe.optimizer, recipe.momentum, recipe.weight_decay) == ("sgd", 0.9, 1e-4)
    assert (recipe.lr, recipe.lr_views, recipe.warmup, recipe.authentic_share) == (0.6, 1024, 0.1, 0.5)
    assert 2 * recipe.images * recipe.pool**2 == 4096  # N


def test_values_are_cast_to_the_type_of_the_option() -> None:
    config = resolve(
        "demo",
        {
            "pretrain.steps": 20.0,
            "pretrain.lr": "1e-3",
            "pretrain.channels_last": "false",
            "synthesis.levels": [1.0, 5.0],
            "evaluation.fractions": [0.6, 0.2, 0.2],
            "synthesis.distortions": ["jpeg"],
        },
    )
    assert config.pretrain.steps == 20
    assert isinstance(config.pretrain.steps, int)
    assert config.pretrain.lr == 1e-3
    assert config.pretrain.channels_last is False
    assert config.synthesis.levels == (1, 5)
    assert config.synthesis.distortions == ("jpeg",)
    assert config.evaluation.fractions == (0.6, 0.2, 0.2)
    assert resolve("demo").pretrain.steps != 20


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"pretrain.step": 1}, "unknown option 'pretrain.step'"),
        ({"steps": 1}, "unknown option 'steps'"),
        ({"pretrain.steps": 1.5}, "pretrain.steps: 1.5 does not fit int"),
        ({"pretrain.arch": "vgg"}, "'vgg' is not one of 'resnet18', 'resnet50'"),
        ({"evaluation.fractions": [0.5, 0.5]}, "evaluation.fractions"),
        ({"pretrain.channels_last": 3}, "does not fit bool"),
        ({"pretrain.colour_spaces": ["cmyk"]}, "'cmyk' is not one of 'gray', 'lab', 'hsv', 'ms', 'rgb'"),
        ({"pretrain.colour_spaces": "rgb"}, """'rgb' is one value; give a list of them, such as '["rgb"]'"""),
    ],
)
def test_wrong_overrides_are_named(overrides: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        resolve("demo", overrides)
    assert says in str(error.value)


def test_unknown_profile_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="choose one of demo, gpu, paper"):
        resolve("laptop")


def test_profiles_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        resolve("demo").pretrain.steps = 3  # type: ignore[misc]
