"""pretrain, adapt, features, import-checkpoint: encoders and heads."""

import argparse
import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contrique.artifacts import ENCODER, REGRESSOR
from contrique.cli.options import (
    UsageError,
    add_command,
    add_minutes,
    add_output,
    add_seed,
    add_settings,
    load_scorer,
    parse_path,
    parse_place,
    parse_settings,
    print_line,
    read_picture,
    resolve_config,
)
from contrique.config import PROFILES, Config
from contrique.text import escape_control

if TYPE_CHECKING:
    from contrique.images import Picture
    from contrique.pretraining.distributed import World
    from contrique.pretraining.pretrain import PretrainSummary
    from contrique.regressor.adapt import Adaptation


def add_parsers(commands: Any) -> None:
    """Add the commands of this module."""
    command = add_command(
        commands,
        "pretrain",
        pretrain,
        "train an encoder on pictures without labels",
        "contrique pretrain --pristine photographs/ --authentic phone/ --out run/ --set pretrain.steps=200\n"
        "  torchrun --nproc_per_node=8 -m contrique.cli pretrain --profile paper --pristine photographs/ ...",
    )
    command.add_argument(
        "--pristine", type=parse_place, action="append", default=[], help="folder to distort; repeatable"
    )
    command.add_argument(
        "--authentic", type=parse_place, action="append", default=[], help="folder used as it is; repeatable"
    )
    command.add_argument(
        "--dataset", type=parse_place, help="picture set instead of such folders; it, too, may be an s3:// prefix"
    )
    command.add_argument("--distorted", type=parse_place, help="what `synthesize` made of it; default: it is made here")
    command.add_argument(
        "--encoder",
        default="",
        help="encoder to start from: bundled, a file or folder, s3://..., or a version of the registry; used as it is "
        "unless --minutes, pretrain.steps or pretrain.epochs is given too; default: random weights",
    )
    add_output(command, "--out", folder=True, required=True, help="folder of the run; an interrupted one goes on")
    command.add_argument(
        "--checkpoints", type=parse_place, help="their folder or s3:// prefix, if pretrain.checkpoints names none"
    )
    command.add_argument("--publish", type=parse_place, help="s3:// prefix that gets encoder, history and summary too")
    command.add_argument("--profile", choices=sorted(PROFILES), default="demo", help="default: demo")
    add_minutes(command)
    add_seed(command)
    add_settings(command)

    command = add_command(
        commands,
        "adapt",
        adapt,
        "fit a new head to 50 to 500 scores of your own, on the encoder of a model",
        "contrique adapt --labels scans/my.csv --out adapted/ && contrique score new.png --model adapted/",
    )
    command.add_argument(
        "--labels",
        type=parse_path,
        required=True,
        help="CSV with the columns image (relative to it), mos or dmos, and reference where pictures share a content",
    )
    command.add_argument(
        "--images", type=parse_path, help="folder that images are relative to; default: that of --labels"
    )
    command.add_argument("--model", default="", help="as of `score`; default: the champion, or bundled without one")
    add_output(command, "--out", folder=True, default=Path("adapted"), help="folder to make; default: adapted")
    add_seed(command)
    add_settings(command)

    command = add_command(
        commands,
        "features",
        features,
        "write the frozen two-scale features of pictures",
        "contrique features a.png b.png --encoder runs/x/encoder.safetensors --out features.npz",
    )
    command.add_argument(
        "images", type=parse_place, nargs="+", metavar="IMAGE", help="file, folder (all below it) or quoted glob"
    )
    command.add_argument("--encoder", type=parse_path, required=True, help="a .safetensors file of a pretraining run")
    add_output(command, "--out", required=True, help="npz with the arrays `features` (N, 2 x width) and `images` (N,)")

    command = add_command(
        commands,
        "import-checkpoint",
        import_checkpoint,
        "turn a checkpoint of the original CONTRIQUE into an encoder file; any other file is refused",
        "contrique import-checkpoint CONTRIQUE_checkpoint25.tar --out encoder.safetensors",
    )
    command.add_argument("checkpoint", type=parse_path, metavar="CHECKPOINT", help="file written by torch.save")
    add_output(command, "--out", required=True, help=".safetensors file to write")


def pretrain(options: argparse.Namespace) -> None:
    """Train an encoder, alone or as a process of torchrun."""
    from contrique import s3
    from contrique.artifacts import HISTORY, SUMMARY
    from contrique.config import resolve
    from contrique.pretraining import distributed
    from contrique.pretraining.start import train_or_adopt
    from contrique.registry.start import fetch_encoder

    _check_sources(options)
    overrides = parse_settings(options)
    with (
        fetch_encoder(options.encoder, resolve(options.profile, overrides).registry) as start,
        distributed.process_group() as world,
    ):

        def train(config: Config, _: dict[str, Any]) -> "PretrainSummary":
            return _train(options, config, start.file if start else None, world)

        summary = train_or_adopt(train, options.out, start, profile=options.profile, overrides=overrides)
        if world.is_main and options.publish:
            summary.save(options.out)
            for name in (ENCODER, HISTORY, SUMMARY):
                s3.upload(options.out / name, options.publish)
    if world.is_main and summary.frozen:
        print_line(
            f"{options.out / ENCODER}: {summary.start_name}, as it is; give --minutes or --set pretrain.steps=N to "
            "train on"
        )
    elif world.is_main:
        print_line(
            f"{options.out / ENCODER}: {summary.steps} steps, {summary.crops} crops, "
            f"loss {summary.loss_first:.3f} to {summary.loss_last:.3f} in {summary.minutes:.1f} minutes"
        )


def _train(options: argparse.Namespace, config: Config, start: Path | None, world: "World") -> "PretrainSummary":
    from contrique.pretraining import distributed, pretrain
    from contrique.tracking.runs import follow_training

    dataset, distorted = _prepare_sets(options, config, fetch_here=world.is_local_main)
    distributed.wait_for_all()
    # no part of the configuration: an MLflow run takes but one, and the other tasks of the pipeline log theirs
    checkpoints = config.pretrain.checkpoints or options.checkpoints or ""
    tracked = world.is_main and "CONTRIQUE_RUN" in os.environ
    with follow_training(config, dataset) if tracked else contextlib.nullcontext() as track:
        return pretrain.pretrain(
            dataset,
            distorted,
            options.out,
            config=dataclasses.replace(config.pretrain, checkpoints=checkpoints),
            seed=options.seed,
            track=track,
            synthesis=config.synthesis,
            start=start,
        )


def _check_sources(options: argparse.Namespace) -> None:
    from contrique import s3

    if options.publish and not s3.is_s3(options.publish):  # before the days of training, not after
        raise UsageError(f"--publish {options.publish}: expected s3://BUCKET/PREFIX")
    if bool(options.dataset) == bool(options.pristine or options.authentic):
        raise UsageError("give --pristine and --authentic folders of photographs, or else a --dataset")
    if not options.dataset and not (options.pristine and options.authentic and not options.distorted):
        raise UsageError("give both --pristine and --authentic; --distorted goes with --dataset")


def _prepare_sets(options: argparse.Namespace, config: Config, *, fetch_here: bool) -> tuple[Path, Path]:
    """Folders of the picture set and of its distorted versions; `fetch_here`: this process fetches or makes them."""
    from contrique import s3
    from contrique.data import synthesis
    from contrique.sources.fetch import fetch

    places = {"dataset": options.dataset, "distorted": options.distorted}
    folders = {
        name: options.out / name if not place or s3.is_s3(place) else Path(place) for name, place in places.items()
    }
    if fetch_here:
        for name, place in places.items():
            if place and s3.is_s3(place):
                s3.download(place, folders[name])
        if not options.dataset:
            fetch(folders["dataset"], pristine=options.pristine, authentic=options.authentic)
        if config.pretrain.synthesis == "stored" and not options.distorted:
            synthesis.synthesize(folders["dataset"], folders["distorted"], seed=options.seed, config=config.synthesis)
    return folders["dataset"], folders["distorted"]


def adapt(options: argparse.Namespace) -> None:
    """Fit a head to a person's scores."""
    from tqdm import tqdm

    from contrique.data.leaks import near_duplicates
    from contrique.encoder.features import extract
    from contrique.encoder.weights import save_encoder
    from contrique.files import write_aside
    from contrique.images import perceptual_hash
    from contrique.regressor import adapt
    from contrique.regressor.head import Head
    from contrique.scoring.bundled import find_prior
    from contrique.sources.labels import read_labels

    if options.out.exists():
        raise UsageError(f"{options.out}: is there already; remove it, or give another --out")
    folder = options.images or options.labels.parent
    rows = read_labels(options.labels, folder)
    model, config = load_scorer(options), resolve_config(options)
    hashes: list[str] = []

    def read_pictures() -> Iterator["Picture"]:
        for row in tqdm(rows, desc="features", unit="img", file=sys.stderr, disable=None):
            picture = read_picture(str(folder / row["image"]))
            hashes.append(perceptual_hash(picture))
            yield picture

    features = extract(read_pictures(), model.encoder)
    contents = [row["reference"] for row in rows]
    fit = adapt.adapt(
        features,
        [row["mos"] for row in rows],
        contents,
        config=config.regressor,
        prior=find_prior(model.encoder_file, config.regressor),
        before=model.head.predict(features),
        seed=options.seed,
    )
    alike = near_duplicates(hashes, hashes, config.validation.near_duplicate_bits, apart=(contents, contents))
    pairs = [(rows[a]["image"], rows[b]["image"]) for a, b in alike if a < b]
    if pairs:
        message = (
            f"{len(pairs)} pairs of pictures look alike under different references, such as {' and '.join(pairs[0])}; "
            "SRCC out of fold is too high if they are the same: give such pictures one reference"
        )
        print(f"contrique: warning: {escape_control(message)}", file=sys.stderr)
    with write_aside(options.out) as aside:
        aside.mkdir()
        save_encoder(
            model.encoder, aside / ENCODER, {"adapted_from": model.version, "origin": model.encoder_file.origin}
        )
        Head(fit.ridge, fit.summary, fit.novelty, model.head.diagnosis).save(aside / REGRESSOR)
    clause = f"with the scores of the {fit.summary.prior} head as a feature, " if fit.summary.prior else ""
    print_line(
        f"{options.out}: {fit.summary.n} pictures of {fit.summary.contents} contents, {clause}"
        f"alpha {fit.summary.alpha:g}; SRCC out of fold {fit.srcc:.3f} [{fit.low:.3f}, {fit.high:.3f}]"
    )
    print_line(_describe_gain(fit, model.version))


def _describe_gain(fit: "Adaptation", model: str) -> str:
    """Whether the new head is worth having, in one line."""
    from contrique.regressor.adapt import ADAPT_ADVISED

    name = f"model {model}" if model else "the unregistered model"
    if fit.gain is None:
        return f"{name} as it is gives all these pictures the same score"
    gain = fit.gain
    figures = (
        f"{name} as it is: SRCC {gain.before:.3f} [{gain.before_low:.3f}, {gain.before_high:.3f}] on these pictures; "
        f"gain {gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
    )
    if gain.is_proven:
        return f"{figures}: worth it"
    more = f"; {ADAPT_ADVISED} pictures or more are advised" if fit.summary.n < ADAPT_ADVISED else ""
    cause = "it ranks them worse" if gain.high < 0 else "the interval includes 0"
    return f"{figures}: not worth it ({cause}): rate more pictures, or stay with that model{more}"


def features(options: argparse.Namespace) -> None:
    """Write the features of pictures."""
    from tqdm import tqdm

    from contrique.encoder.feature_set import save_features
    from contrique.encoder.features import extract
    from contrique.encoder.weights import load_encoder

    encoder = load_encoder(options.encoder)
    names = _list_images(options.images)
    bar = tqdm(names, desc="features", unit="img", file=sys.stderr, disable=None)
    values = extract((read_picture(name) for name in bar), encoder)
    save_features(values, names, options.out)
    print_line(f"{options.out}: {len(names)} pictures x {values.shape[1]} features")


def _list_images(paths: Iterable[str]) -> list[str]:
    from contrique.scoring.inputs import find_images
    from contrique.scoring.results import Failure

    names = []
    for item in find_images(paths):
        if isinstance(item, Failure):
            raise UsageError(item.error)
        names.append(str(item))
    return names


def import_checkpoint(options: argparse.Namespace) -> None:
    """Write the encoder of an original checkpoint."""
    from contrique.encoder import original
    from contrique.encoder.architectures import WIDTHS

    arch = original.import_checkpoint(options.checkpoint, options.out)
    print_line(f"{options.out}: {arch}, {WIDTHS[arch]} channels, from {options.checkpoint}")
