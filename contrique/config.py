"""Defaults and ranges of all options of all stages: the only place where they stand.

`resolve("demo")` gives the laptop profile, `resolve("paper")` the published recipe; overrides are dotted names:

    resolve("demo", {"pretrain.steps": 100, "gate.floor": 0.5})

The resolved configuration is logged as JSON with each run (`as_dict`).
"""

import dataclasses
import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt, MinLen

from contrique.errors import ContriqueError

_LARGEST = 2**53  # integers beyond it are not exact in JSON
Count = Annotated[int, Ge(0), Le(_LARGEST)]
Positive = Annotated[int, Ge(1), Le(_LARGEST)]
Bits = Annotated[int, Ge(0), Le(64)]
Level = Annotated[int, Ge(1), Le(5)]
Share = Annotated[float, Ge(0), Le(1)]
Probability = Annotated[float, Gt(0), Lt(1)]
NotNegative = Annotated[float, Ge(0)]
Above0 = Annotated[float, Gt(0)]
Name = Annotated[str, MinLen(1)]
ColourSpace = Literal["gray", "lab", "hsv", "ms", "rgb"]


class ConfigError(ContriqueError):
    """An unknown profile or option, or a value of a wrong type or out of range."""


@dataclass(frozen=True)
class ValidationConfig:
    """What a picture set must hold to be trained on and judged with."""

    min_side: Positive = 64
    max_side: Positive = 16_384
    mos_range: tuple[float, float] = (-1000.0, 1000.0)
    near_duplicate_bits: Bits = 6  # of 64: re-encoded and resized copies differ by fewer
    min_pretrain_contents: Count = 2
    needs_authentic: bool = False  # a pipeline says so itself, by pretrain.authentic_share
    min_judged_contents: Count = 3  # one each to train, validate and test with; none at all is a pretraining set

    def __post_init__(self) -> None:
        if self.min_side > self.max_side:
            raise ConfigError(f"validation.min_side={self.min_side} is above validation.max_side={self.max_side}")
        if self.mos_range[0] >= self.mos_range[1]:
            raise ConfigError(
                f"validation.mos_range: {list(self.mos_range)} should be the lowest and the highest score"
            )


@dataclass(frozen=True)
class SynthesisConfig:
    """Distorted pictures made from pristine photographs (spec sections 1 and 6)."""

    distortions: tuple[str, ...] = ()  # empty: all 25
    levels: Annotated[tuple[Level, ...], MinLen(1)] = (1, 2, 3, 4, 5)
    max_side: Count = 512
    photographs_per_shard: Positive = 1
    weak_labels_per_photograph: Count = 126  # how many of its versions get full-reference scores
    workers: Count = 0  # 0: one per core


@dataclass(frozen=True)
class PretrainConfig:
    """Contrastive pretraining (spec sections 2 to 4)."""

    arch: Literal["resnet18", "resnet50"] = "resnet50"
    projection: Positive = 128
    crop: Annotated[int, Ge(32), Le(_LARGEST)] = 256
    pool: Positive = 2  # local vectors per side of a view
    images: Positive = 512  # a step
    authentic_share: Share = 0.5  # of them
    sampler: Literal["uniform", "balanced"] = "uniform"
    contents_per_class: Positive = 3  # of the balanced sampler
    synthesis: Literal["stored", "on_the_fly"] = "stored"  # distorted pictures: read, or made as they are needed
    # batches of RGB views for the final batch-norm statistics; 0: the running ones, as published, or those of the
    # encoder that training goes on from
    calibration: Count = 0
    colour_spaces: Annotated[tuple[ColourSpace, ...], MinLen(1)] = (
        "gray",
        "lab",
        "hsv",
        "ms",
        "rgb",
    )  # one is drawn for each view
    merge_identity: bool = True  # nearly-identity classes count as pristine (spec section 6)
    temperature: Annotated[float, Ge(1 / 300)] = 0.1
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: Above0 = 0.6  # for `lr_views` views a step, scaled linearly
    lr_views: Positive = 1024
    weight_decay: NotNegative = 1e-4
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    warmup: Annotated[float, Ge(0), Lt(1)] = 0.1  # fraction of the steps
    epochs: Above0 = 25.0
    steps: Count = 0  # if set, instead of epochs
    minutes: NotNegative = (
        0.0  # if set, instead of either: the schedule follows the clock, from the end of the first step
    )
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    channels_last: bool = True
    compile: bool = False  # torch.compile of the encoder: a slow first step, a third more crops/s on a GPU
    threads: Count = 0  # torch threads; 0: one per core
    workers: Count = 1  # loader processes
    cache: str = ""  # a folder for decoded pictures, 1.25 times their pixels; /dev/shm is memory; empty: none are kept
    checkpoint_every: Positive = 500  # steps
    checkpoints: str = ""  # a folder or s3://bucket/prefix; empty: `checkpoints` in the run's folder
    log_every: Positive = 10
    probe_every: Count = 1000  # steps between linear probes of distortion type and level; 0: never

    @property
    def authentic_images(self) -> int:
        """Pictures of a step that are authentic, by `authentic_share`."""
        return round(self.images * self.authentic_share)


@dataclass(frozen=True)
class FeaturesConfig:
    """Frozen two-scale features (spec section 5)."""

    precision: Literal["float32", "bfloat16"] = "float32"
    backend: Literal["torch", "auto", "onnx", "openvino"] = "torch"  # auto: the fastest that agrees, measured once


@dataclass(frozen=True)
class RegressorConfig:
    """Ridge regression from features to scores."""

    alphas: Annotated[tuple[Above0, ...], MinLen(1)] = tuple(10.0 ** (k / 2) for k in range(-6, 5))
    # whose scores are one more feature of the ridge, where the encoder is the bundled one or was trained on from it:
    # those of the bundled head, or nobody's, as in the paper
    prior: Literal["bundled", "none"] = "bundled"


@dataclass(frozen=True)
class EvaluationConfig:
    """The protocol: random splits by content, or leave-one-content-out when contents are few."""

    splits: Positive = 10
    fractions: tuple[Share, Share, Share] = (0.7, 0.1, 0.2)
    few_contents: Count = 10  # below this, leave-one-content-out
    resamples: Positive = 1000
    confidence: Probability = 0.95
    near_duplicate_bits: Bits = ValidationConfig.near_duplicate_bits
    gaming_pictures: Count = 12  # of the test part, on which attacks try to raise the score; 0: none
    gaming_side: Annotated[int, Ge(64), Le(_LARGEST)] = 96  # pixels to which the middle of each is cut
    gaming_gradient: bool = True  # whether an attack through the network's gradient is one of them

    def __post_init__(self) -> None:
        if abs(sum(self.fractions) - 1) > 1e-6 or self.fractions[0] == 0:
            raise ConfigError(
                f"evaluation.fractions: {list(self.fractions)} should be the shares of training, validation and test, "
                "which add up to 1"
            )


@dataclass(frozen=True)
class GateConfig:
    """When a challenger becomes champion."""

    floor: float = 0.6  # SRCC on the test part
    margin: float = 0.02  # SRCC by which the lower bound of the paired difference may fall short
    slice_margin: float = 0.15  # SRCC by which any one distortion may fall
    min_slice: Count = 10  # pictures below which a distortion slice is not judged
    gaming_margin: float = 5.0  # points of 100 by which an attack may raise it more than the champion


@dataclass(frozen=True)
class RegistryConfig:
    """Names in MLflow, and the last proof before a model becomes champion.

    Attributes:
        serve_seconds: within which MLflow's server must come up with the candidate and answer; 0 to load the candidate
            in this process instead.
    """

    experiment: Name = "contrique"
    model: Name = "contrique"
    alias: Name = "champion"
    serve_seconds: NotNegative = 180.0


@dataclass(frozen=True)
class ServingLimits:
    """Limits of a served model. MLflow's server has those of images and decoders; `contrique serve` has them all.

    An image over one of the first three, or over the seconds or bytes of a decoder, is answered with an error for that
    image alone, all else for the whole request.
    """

    max_images: Positive = 64  # a request
    max_bytes: Positive = 32_000_000  # of an image file
    max_pixels: Positive = 50_000_000  # of an image
    decoders: Positive = 2  # processes that decode images, one each at a time
    decode_seconds: Above0 = 10.0  # of a processor, for one image; under four megapixels a fifth, at least 1
    decode_bytes: Positive = 3_000_000_000  # of a decoder's address space
    max_request_bytes: Positive = 64_000_000  # of a request's body; base64 is a third longer than the file
    max_requests: Positive = 32  # under way at once
    max_held_bytes: Positive = 256_000_000  # of the bodies of all requests under way
    max_connections: Positive = 256  # open at once, half of them by one address; at most half the descriptors there are
    header_seconds: Above0 = 10.0  # from a connection, or the last answer on it, to the end of a request's headers
    seconds: Above0 = 300.0  # from the end of a request's headers to its answer; 50 megapixels take a minute or two
    heat_side: Positive = 800  # pixels of the longer side, to which a heat map is drawn


@dataclass(frozen=True)
class DriftConfig:
    """When pictures count as unlike those that the model was evaluated on."""

    psi: Above0 = 0.25  # population stability index from which on a distribution has changed (Siddiqi 2006)
    significance: Probability = 0.001  # of a change that chance alone would make
    bins: Annotated[int, Ge(2), Le(_LARGEST)] = 10  # quantiles of the reference
    min_pictures: Positive = 20  # below which nothing can be said


@dataclass(frozen=True)
class RatingConfig:
    """How people rate pictures, and when a rater is left out."""

    count: Positive = 100  # pictures that each rater judges; fewer if the folder holds fewer
    training: Count = 5  # pictures, or pairs, before those that count
    repeats: Share = 0.1  # of the questions, asked a second time
    golden: Count = 3  # pictures that are also shown badly damaged
    rounds: Positive = 6  # of pairs: in each, a picture is compared once
    break_every: Positive = 60  # questions
    grey_seconds: NotNegative = 0.3  # between two pictures
    near_duplicate_bits: Bits = ValidationConfig.near_duplicate_bits
    alike: NotNegative = 5.0  # points of the model's score within which near-duplicates are as good as each other
    correlation: Share = 0.75  # of a rater with the mean of all raters, below which the rater is left out
    significance: Probability = 0.01  # of a rater of pairs agreeing with the others by chance alone


@dataclass(frozen=True)
class Config:
    """All stages."""

    validation: ValidationConfig = field(default_factory=ValidationConfig)
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    regressor: RegressorConfig = field(default_factory=RegressorConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    registry: RegistryConfig = field(default_factory=RegistryConfig)
    serving: ServingLimits = field(default_factory=ServingLimits)
    drift: DriftConfig = field(default_factory=DriftConfig)
    rating: RatingConfig = field(default_factory=RatingConfig)


# gpu: a quarter of an hour on one GPU with 16 cores.
#
#     contrique pretrain --profile gpu --pristine photographs/ --authentic phone/ --out run/
#
# On 2,800 photographs and 1,663 authentic pictures the loss went from 7.8 to 3.29 in 9,177 steps; the probe then named
# .605 of the types and .446 of the levels.
#
# demo: minutes of training on two laptop cores.
PROFILES: dict[str, Config] = {
    "paper": Config(pretrain=PretrainConfig(workers=10)),  # what a GPU needs and the stage's CPU request has
    "gpu": Config(
        pretrain=PretrainConfig(
            arch="resnet50",
            crop=192,
            images=288,
            authentic_share=1 / 3,
            sampler="balanced",
            colour_spaces=("rgb",),
            optimizer="adamw",
            lr=8e-4,
            lr_views=576,
            weight_decay=0.05,
            warmup=0.05,
            compile=True,
            calibration=20,
            workers=14,
            cache="/dev/shm",  # else 14 cores are too few to feed it
            minutes=16.1,
            checkpoint_every=3000,
            log_every=50,
            probe_every=1500,
        ),
    ),
    "demo": Config(
        synthesis=SynthesisConfig(weak_labels_per_photograph=51),
        pretrain=PretrainConfig(
            arch="resnet18",
            crop=64,
            images=60,
            authentic_share=0.2,
            sampler="balanced",
            optimizer="adamw",
            lr=5e-4,
            lr_views=120,
            colour_spaces=("rgb",),  # as features are taken: the best of the recipes in docs/experiments.md
            steps=300,
            calibration=20,
            threads=1,  # at 64 pixels two hinder each other and the loader
            checkpoint_every=100,
            probe_every=100,
        ),
        gate=GateConfig(floor=0.1),  # minutes of training, judged on two contents: more than chance, no quality to ship
    ),
}


def resolve(profile: str, overrides: Mapping[str, Any] | None = None) -> Config:
    """A profile with some values replaced.

    Args:
        profile: a key of PROFILES.
        overrides: dotted option names (`pretrain.steps`) to values, as `parse_value` takes them.
    Returns:
        the resolved configuration.
    Raises:
        ConfigError: unknown profile, unknown option, or a value of a wrong type or out of range.
    """
    if profile not in PROFILES:
        raise ConfigError(f"unknown profile '{profile}'; choose one of {', '.join(sorted(PROFILES))}")
    config = PROFILES[profile]
    changes: dict[str, dict[str, Any]] = {}
    for name, value in (overrides or {}).items():
        stage, _, option = name.partition(".")
        changes.setdefault(stage, {})[option] = parse_value(name, value, _find_type(name))
    stages: dict[str, Any] = {
        stage: dataclasses.replace(getattr(config, stage), **values) for stage, values in changes.items()
    }
    return dataclasses.replace(config, **stages)


def parse_overrides(settings: Iterable[str]) -> dict[str, Any]:
    """Overrides for `resolve` from `NAME=VALUE` texts, as a command line gives them.

    Returns:
        option names to plain values, which JSON can hold. The last setting of a name wins.
    Raises:
        ConfigError: no `=`, unknown option, or a value of a wrong type or out of range.
    """
    overrides = {}
    for text in settings:
        name, value = split_setting(text)
        parsed = parse_value(name, value, _find_type(name))
        overrides[name] = list(parsed) if isinstance(parsed, tuple) else parsed
    return overrides


def split_setting(text: str) -> tuple[str, str]:
    """Name and value of `NAME=VALUE`."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set {text}: expected NAME=VALUE, such as pretrain.steps=100")
    return name, value


def _find_type(name: str) -> Any:
    """The annotated type of an option."""
    stages = get_type_hints(Config)
    options = {
        f"{stage}.{option}": kind
        for stage, section in stages.items()
        for option, kind in get_type_hints(section, include_extras=True).items()
    }
    if name not in options:
        close = difflib.get_close_matches(name, options, 1)
        hint = f"did you mean '{close[0]}'?" if close else "options look like 'pretrain.steps'"
        raise ConfigError(f"unknown option '{name}'; {hint} (see contrique/config.py)")
    return options[name]


def parse_value(name: str, value: Any, kind: Any) -> Any:
    """A value of a type, from text or from plain JSON values.

    Text becomes a number, a list or true and false by JSON where the type is no text; a name stays as it is, also one
    that looks like a number. Floats without a fraction count as integers: pipeline parameters arrive so.

    Args:
        name: for the message.
        value: text, number, bool or list.
        kind: type, with its range.
    Raises:
        ConfigError: wrong type or out of range.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    adapter = TypeAdapter[Any](kind, config=ConfigDict(strict=True, allow_inf_nan=False))
    error = None
    for reading in _list_readings(value):
        try:
            return adapter.validate_json(json.dumps(reading))
        except ValidationError as failure:
            error = failure.errors()[0]
    if error is None:
        raise ConfigError(f"{name}: {_shorten(value)} is nested too deeply")
    is_word = isinstance(value, str) and not value.startswith("[")
    if is_word and get_origin(_strip(kind)) is tuple:
        raise ConfigError(f"{name}: {_shorten(value)} is one value; give a list, such as '[{json.dumps(value)}]'")
    place = "".join(f"[{index}]" for index in error["loc"])
    message = "is not UTF-8" if error["type"] == "json_invalid" else error["msg"].removeprefix("Input ")
    raise ConfigError(f"{name}{place}: {_shorten(error['input'])} {message[0].lower()}{message[1:]}")


def _list_readings(value: Any) -> list[Any]:
    """What a value may mean, likeliest first: text as it is and as JSON, a number as it is and as text."""
    try:
        if isinstance(value, str):
            text = value.lower() if value.lower() in ("true", "false") else value
            try:
                parsed = _to_integers(json.loads(text))
            except ValueError:
                return [value]
            return [parsed, value] if isinstance(parsed, str) else [value, parsed]
        plain = _to_integers(value)
    except RecursionError:
        return []
    if isinstance(plain, int) and not isinstance(plain, bool) and abs(plain) <= _LARGEST:
        return [str(plain), plain]
    return [plain]


def _to_integers(value: Any) -> Any:
    """Floats without a fraction as integers, in lists too."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return [_to_integers(item) for item in value] if isinstance(value, list | tuple) else value


def _strip(kind: Any) -> Any:
    """A type without its range."""
    return kind.__origin__ if get_origin(kind) is Annotated else kind


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def as_dict(config: Config) -> dict[str, Any]:
    """The configuration as nested plain values, ready for JSON."""
    return dataclasses.asdict(config)
