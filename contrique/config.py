"""Every default of every stage: the only place where one stands.

`resolve("demo")` gives the laptop profile, `resolve("paper")` the published recipe; overrides are dotted names:

    resolve("demo", {"pretrain.steps": 100, "gate.floor": 0.5})

The resolved configuration is logged as JSON with each run (`as_dict`).
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from contrique.errors import ContriqueError

ColourSpace = Literal["gray", "lab", "hsv", "ms", "rgb"]


class ConfigError(ContriqueError):
    """An unknown profile or option, or a value of the wrong type."""


@dataclass(frozen=True)
class ValidationConfig:
    """What a picture set must hold to be trained on and judged with."""

    min_side: int = 64
    max_side: int = 16_384
    mos_range: tuple[float, float] = (-1000.0, 1000.0)
    near_duplicate_bits: int = 6  # of 64: re-encoded and resized copies differ by fewer
    min_pretrain_contents: int = 2
    min_judged_contents: int = 3  # one each to train, validate and test with; none at all is a pretraining set


@dataclass(frozen=True)
class SynthesisConfig:
    """Distorted pictures made from pristine photographs (spec sections 1 and 6)."""

    distortions: tuple[str, ...] = ()  # empty: all 25
    levels: tuple[int, ...] = (1, 2, 3, 4, 5)
    max_side: int = 512
    photographs_per_shard: int = 1
    weak_labels_per_photograph: int = 126  # how many of its versions get full-reference scores
    workers: int = 0  # 0: one per core


@dataclass(frozen=True)
class PretrainConfig:
    """Contrastive pretraining (spec sections 2 to 4)."""

    arch: Literal["resnet18", "resnet50"] = "resnet50"
    projection: int = 128
    crop: int = 256
    pool: int = 2  # local vectors per side of a view
    images: int = 512  # a step
    authentic_share: float = 0.5  # of them
    sampler: Literal["uniform", "balanced"] = "uniform"
    contents_per_class: int = 3  # of the balanced sampler
    synthesis: Literal["stored", "on_the_fly"] = "stored"  # distorted pictures: read, or made as they are needed
    calibration: int = 0  # batches of RGB views for the final batch-norm statistics; 0: the running ones, as published
    colour_spaces: tuple[ColourSpace, ...] = ("gray", "lab", "hsv", "ms", "rgb")  # one is drawn for each view
    merge_identity: bool = True  # nearly-identity classes count as pristine (spec section 6)
    temperature: float = 0.1
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.6  # for `lr_views` views a step, scaled linearly
    lr_views: int = 1024
    weight_decay: float = 1e-4
    momentum: float = 0.9
    warmup: float = 0.1  # share of the steps
    epochs: float = 25.0
    steps: int = 0  # if set, instead of epochs
    minutes: float = 0.0  # if set, instead of either: the schedule follows the clock, from the end of the first step
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    channels_last: bool = True
    compile: bool = False  # torch.compile of the encoder: a slow first step, a third more crops/s on a GPU
    threads: int = 0  # torch threads; 0: one per core
    workers: int = 1  # loader processes
    checkpoint_every: int = 500  # steps
    checkpoints: str = ""  # a folder or s3://bucket/prefix; empty: `checkpoints` in the run's folder
    log_every: int = 10
    probe_every: int = 1000  # steps between linear probes of distortion type and level; 0: never


@dataclass(frozen=True)
class FeaturesConfig:
    """Frozen two-scale features (spec section 5)."""

    precision: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True)
class RegressorConfig:
    """Ridge regression from features to scores."""

    alphas: tuple[float, ...] = tuple(10.0 ** (k / 2) for k in range(-6, 5))


@dataclass(frozen=True)
class EvaluationConfig:
    """The protocol: random splits by content, or leave-one-content-out when contents are few."""

    splits: int = 10
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    few_contents: int = 10  # below this, leave-one-content-out
    resamples: int = 1000
    confidence: float = 0.95
    near_duplicate_bits: int = ValidationConfig.near_duplicate_bits


@dataclass(frozen=True)
class GateConfig:
    """When a challenger becomes champion."""

    floor: float = 0.6  # SRCC on the test part
    margin: float = 0.02  # SRCC by which the lower bound of the paired difference may fall short
    slice_margin: float = 0.15  # SRCC by which any one distortion may fall
    min_slice: int = 10  # pictures below which a distortion slice is not judged


@dataclass(frozen=True)
class RegistryConfig:
    """Names in MLflow, and the last proof before a model becomes champion.

    Attributes:
        serve_seconds: within which MLflow's server must come up with the candidate and answer; 0 to load the candidate
            in this process instead.
    """

    experiment: str = "contrique"
    model: str = "contrique"
    alias: str = "champion"
    serve_seconds: float = 180.0


@dataclass(frozen=True)
class ServingLimits:
    """Limits of a served model. MLflow's server has those of images and decoders; `contrique serve` has them all.

    An image over one of the first three, or over the seconds or bytes of a decoder, is answered with an error for that
    image alone, all else for the whole request.
    """

    max_images: int = 64  # a request
    max_bytes: int = 32_000_000  # of an image file
    max_pixels: int = 50_000_000  # of an image
    decoders: int = 2  # processes that decode images, one each at a time
    decode_seconds: float = 10.0  # of a processor, for one image; a fifth of it for one of under four megapixels
    decode_bytes: int = 3_000_000_000  # of a decoder's address space
    max_request_bytes: int = 64_000_000  # of a request's body; base64 is a third longer than the file
    max_requests: int = 32  # under way at once
    max_held_bytes: int = 256_000_000  # of the bodies of all requests under way
    max_connections: int = 256  # open at once, half of them by one address; at most half the descriptors there are
    header_seconds: float = 10.0  # from a connection, or the last answer on it, to the end of a request's headers
    seconds: float = 300.0  # from the end of a request's headers to its answer; 50 megapixels take a minute or two
    heat_side: int = 800  # pixels of the longer side, to which a heat map is drawn


@dataclass(frozen=True)
class DriftConfig:
    """When pictures count as unlike those that the model was judged on."""

    psi: float = 0.25  # population stability index from which on a distribution has changed (Siddiqi 2006)
    significance: float = 0.001  # of a change that chance alone would make
    bins: int = 10  # quantiles of the reference
    min_pictures: int = 20  # below which nothing can be said


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


# gpu: a quarter of an hour on one GPU with 16 cores.
#
#     contrique pretrain --profile gpu --pristine photographs/ --authentic phone/ --out run/
#
# On 2,800 photographs and 1,663 authentic pictures the loss went from 7.8 to 3.29 in 9,177 steps; the probe then named
# .605 of the types and .446 of the levels.
#
# demo: about three minutes of training on two laptop cores.
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
        overrides: dotted option names (`pretrain.steps`) to values; numbers may come as floats or strings, as
            pipeline parameters do, and are cast to the option's type.
    Returns:
        the resolved configuration.
    Raises:
        ConfigError: unknown profile, unknown option or a value that does not fit its type.
    """
    if profile not in PROFILES:
        raise ConfigError(f"unknown profile '{profile}'; choose one of {', '.join(sorted(PROFILES))}")
    config = PROFILES[profile]
    for name, value in (overrides or {}).items():
        stage, _, option = name.partition(".")
        section: Any = getattr(config, stage, None)
        hints = get_type_hints(type(section)) if dataclasses.is_dataclass(section) else {}
        if option not in hints:
            raise ConfigError(f"unknown option '{name}'; options look like 'pretrain.steps' (see contrique/config.py)")
        changed: dict[str, Any] = {option: _cast(name, value, hints[option])}
        stages: dict[str, Any] = {stage: dataclasses.replace(section, **changed)}
        config = dataclasses.replace(config, **stages)
    return config


def _cast(name: str, value: Any, kind: Any) -> Any:
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ConfigError(f"{name}: {value!r} is not one of {', '.join(map(repr, get_args(kind)))}")
        return value
    try:
        if get_origin(kind) is tuple:
            if isinstance(value, str):
                raise ConfigError(f"{name}: {value!r} is one value; give a list of them, such as '[\"{value}\"]'")
            members = get_args(kind)
            kinds = [members[0]] * len(value) if members[-1] is Ellipsis else members
            return tuple(_cast(name, item, member) for item, member in zip(value, kinds, strict=True))
        if kind is bool:
            return {"true": True, "false": False}[str(value).lower()]
        if kind is int and float(value) != int(float(value)):
            raise ValueError
        return kind(float(value)) if kind is int else kind(value)
    except (TypeError, ValueError, KeyError):
        expected = kind if isinstance(kind, UnionType) else getattr(kind, "__name__", kind)
        raise ConfigError(f"{name}: {value!r} does not fit {expected}") from None


def as_dict(config: Config) -> dict[str, Any]:
    """The configuration as nested plain values, ready for JSON."""
    return dataclasses.asdict(config)
