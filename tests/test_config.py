import dataclasses
import json
import typing
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contrique.config import PROFILES, Config, ConfigError, as_dict, parse_overrides, parse_value, resolve

T = typing.TypeVar("T")
OPTIONS = [
    f"{stage.name}.{option.name}" for stage in dataclasses.fields(Config) for option in dataclasses.fields(stage.type)
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_every_profile_is_plain_json(profile: str) -> None:
    assert json.loads(json.dumps(as_dict(resolve(profile))))["pretrain"]["arch"].startswith("resnet")


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_every_profile_is_within_the_ranges(profile: str) -> None:
    """Also after it went through JSON as KFP sends it, with floats for integers."""
    values = {
        f"{stage}.{option}": [float(item) if type(item) is int else item for item in value]
        if isinstance(value, tuple)
        else float(value)
        if type(value) is int
        else value
        for stage, options in as_dict(PROFILES[profile]).items()
        for option, value in options.items()
    }
    assert resolve(profile, json.loads(json.dumps(values))) == PROFILES[profile]


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
        ({"pretrain.step": 1}, "unknown option 'pretrain.step'; did you mean 'pretrain.steps'?"),
        ({"steps": 1}, "unknown option 'steps'"),
        ({"pretrain.steps": 1.5}, "pretrain.steps: 1.5 should be a valid integer"),
        ({"pretrain.steps": True}, "pretrain.steps: True should be a valid integer"),
        ({"pretrain.steps": -1}, "pretrain.steps: -1 should be greater than or equal to 0"),
        ({"pretrain.steps": float("inf")}, "pretrain.steps: inf should be a valid integer"),
        ({"pretrain.arch": "vgg"}, "'vgg' should be 'resnet18' or 'resnet50'"),
        ({"evaluation.fractions": [0.5, 0.5]}, "evaluation.fractions"),
        ({"evaluation.fractions": [0.5, 0.2, 0.2]}, "add up to 1"),
        ({"evaluation.fractions": [1.5, -0.5, 0]}, "evaluation.fractions[0]: 1.5 should be less than or equal to 1"),
        ({"validation.min_side": 20_000}, "validation.min_side=20000 is above validation.max_side=16384"),
        ({"validation.mos_range": [5, 1]}, "the lowest and the highest score"),
        ({"pretrain.channels_last": 3}, "3 should be a valid boolean"),
        ({"pretrain.colour_spaces": ["cmyk"]}, "pretrain.colour_spaces[0]: 'cmyk' should be 'gray', 'lab'"),
        ({"pretrain.colour_spaces": "rgb"}, """'rgb' is one value; give a list, such as '["rgb"]'"""),
        ({"regressor.alphas": [1, 0]}, "regressor.alphas[1]: 0 should be greater than 0"),
        ({"registry.serve_seconds": -1}, "should be greater than or equal to 0"),
        ({"gate.floor": float("nan")}, "gate.floor: nan should be a finite number"),
        ({"registry.model": ["a"]}, "registry.model: ['a'] should be a valid string"),
        ({"registry.model": True}, "registry.model: True should be a valid string"),
        ({"registry.model": ""}, "at least 1 character"),
    ],
)
def test_wrong_overrides_are_named(overrides: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        resolve("demo", overrides)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("registry.model=2024", "2024"),
        ("registry.model=007", "007"),
        ("registry.model=1e3", "1e3"),
        ("registry.model=true", "true"),
        ('registry.model="quoted"', "quoted"),
        ("registry.model=a=b", "a=b"),
        ("pretrain.steps=100.0", 100),
        ("pretrain.steps=1e2", 100),
        ("pretrain.lr=1", 1.0),
        ("pretrain.compile=True", True),
        ('synthesis.distortions=["jpeg"]', ["jpeg"]),
        ("pretrain.checkpoints=s3://bucket/run", "s3://bucket/run"),
    ],
)
def test_a_setting_comes_out_as_it_went_in(setting: str, value: object) -> None:
    """Also from a pipeline, which sends it as JSON."""
    (name,) = overrides = parse_overrides([setting])
    assert overrides == {name: value}
    stage, _, option = name.partition(".")
    config = resolve("demo", json.loads(json.dumps(overrides)))
    actual = getattr(getattr(config, stage), option)
    assert (list(actual) if isinstance(actual, tuple) else actual) == value


@pytest.mark.parametrize(
    "setting",
    [
        *("pretrain.steps=1e400", "pretrain.lr=1e400", "pretrain.lr=nan", "pretrain.steps=" + "9" * 5000),
        *(
            "synthesis.levels=" + "[" * 100_000,
            "synthesis.levels=[]",
            "registry.model=\udcff",
            "pretrain.steps",
            "=1",
            "",
        ),
    ],
)
def test_an_odd_setting_is_one_short_line(setting: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_overrides([setting])
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(("number", "name"), [(2024, "2024"), (2024.0, "2024")])
def test_a_name_that_a_pipeline_sends_as_a_number(number: float, name: str) -> None:
    assert resolve("demo", {"registry.model": number}).registry.model == name


def attempt(call: Callable[[], T]) -> tuple[T | None, str]:
    """The result, or the message of a ConfigError."""
    try:
        return call(), ""
    except ConfigError as error:
        return None, str(error)


@given(st.sampled_from(OPTIONS), JSON)
def test_any_value_is_in_range_or_one_line(name: str, value: object) -> None:
    config, message = attempt(lambda: resolve("demo", {name: value}))
    if config is None:
        assert name in message
        assert "\n" not in message
        return
    stage, _, option = name.partition(".")
    actual = getattr(getattr(config, stage), option)
    assert type(actual) is type(getattr(getattr(resolve("demo"), stage), option))
    assert resolve("demo", json.loads(json.dumps({name: actual}))) == config


@given(st.sampled_from(OPTIONS), st.text())
def test_any_text_is_a_value_or_one_line(name: str, text: str) -> None:
    overrides, message = attempt(lambda: parse_overrides([f"{name}={text}"]))
    assert "\n" not in message
    if overrides is None:
        return
    assert resolve("demo", json.loads(json.dumps(overrides))) == resolve("demo", overrides)


@given(st.integers(0, 2**53))
def test_integers_survive_as_floats(number: int) -> None:
    assert parse_value("x", float(number), int) == number
    assert parse_value("x", str(number), int) == number
    assert parse_value("x", str(number), str) == str(number)


def test_every_option_has_a_type_of_its_own() -> None:
    """A new option without a range is a decision; a new one without a type is a mistake."""
    stages = [stage.type for stage in dataclasses.fields(Config)]
    hints = {name: hint for stage in stages for name, hint in typing.get_type_hints(stage).items()}
    assert typing.Any not in hints.values()


def test_unknown_profile_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="choose one of demo, gpu, paper"):
        resolve("laptop")


def test_profiles_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        resolve("demo").pretrain.steps = 3  # type: ignore[misc]
