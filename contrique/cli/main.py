"""The command line. Each command is one function here; what it needs is imported inside it, so that help is instant."""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contrique import __version__
from contrique.artifacts import ENCODER, REGRESSOR
from contrique.config import PROFILES, Config, resolve
from contrique.errors import ContriqueError

if TYPE_CHECKING:
    from contrique.images import Picture
    from contrique.scoring.scorer import Scorer


SOME_FAILED = 1
REFUSED = 2  # as argparse exits on a usage error


class UsageError(ContriqueError):
    """An argument that makes no sense; the message names it and what was expected."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the command line without the program's name; that of the process by default.
    Returns:
        exit status: 0; 1 if some pictures could not be scored; 2 for a failure that the user can mend, told in one
        line on stderr.
    """
    options = _parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):  # a file name need not be valid UTF-8
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        status: int = options.command(options) or 0
        sys.stdout.flush()
        return status
    except ContriqueError as error:
        print(f"contrique: {' '.join(str(error).split())}", file=sys.stderr)
        return REFUSED
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13
    except KeyboardInterrupt:
        print("contrique: interrupted", file=sys.stderr)
        return 128 + 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="contrique",
        description="No-reference image quality: score pictures with the champion, look after the registry of models,\n"
        "and run single stages by hand. The whole training pipeline: python -m pipelines --help",
        epilog="The registry is mlruns/mlflow.db under the working directory, or where MLFLOW_TRACKING_URI points.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"contrique {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Any, text: str, example: str) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(command=command)
        return added

    def add_settings(command: argparse.ArgumentParser) -> None:
        command.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="K=V",
            help="an option of contrique/config.py, such as pretrain.steps=100; repeatable",
        )

    def add_model(command: argparse.ArgumentParser) -> None:
        command.add_argument(
            "--model", default="champion", help="registry version, alias, or a folder of `adapt`; default: champion"
        )
        command.add_argument(
            "--backend",
            choices=("auto", "torch", "onnx", "openvino"),
            default="torch",
            help="what runs the encoder; auto: the fastest one, measured once; default: torch",
        )
        command.add_argument(
            "--precision",
            choices=("float32", "bfloat16"),
            default="float32",
            help="bfloat16 is faster and may move a score by up to 2 points; default: float32",
        )

    def add_seed(command: argparse.ArgumentParser, of: str = "") -> None:
        command.add_argument("--seed", type=int, default=0, help=f"{of}default: 0")

    score = add(
        "score",
        _score,
        "score pictures, 0 to 100, higher is better",
        "contrique score photo.jpg holiday/ 'scans/*.tif' --format json\n\n"
        "exit status: 0 if every picture was scored, 1 if some were not, 2 if there is no model or the usage is wrong",
    )
    score.add_argument("paths", nargs="+", metavar="PATH", help="file, folder (all below it) or quoted glob")
    score.add_argument("--format", choices=("table", "json", "csv"), default="table", help="default: table")
    add_model(score)
    add_settings(score)

    explain = add(
        "explain",
        _explain,
        "draw where a picture's quality is lost, and name the likeliest distortion",
        "contrique explain photo.jpg --out heat.png",
    )
    explain.add_argument("image", type=Path, metavar="IMAGE")
    explain.add_argument("--out", type=Path, required=True, help="PNG to write: red is bad, blue is good")
    explain.add_argument("--format", choices=("text", "json"), default="text", help="default: text")
    explain.add_argument("--model", default="champion", help="as of `score`; default: champion")
    add_settings(explain)

    serve = add(
        "serve",
        _serve,
        "open a page to drop pictures on, and answer programs in JSON",
        "contrique serve\n"
        "  contrique serve --model 3 --port 9000 --set serving.max_images=8\n\n"
        "The schema of the JSON is at /openapi.json. Limits are `serving` in contrique/config.py.",
    )
    serve.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; default: 127.0.0.1, for this machine alone"
    )
    serve.add_argument("--port", type=int, default=8080, help="0 for a free one; default: 8080")
    add_model(serve)
    add_settings(serve)

    features = add(
        "features",
        _features,
        "write the frozen two-scale features of pictures",
        "contrique features a.png b.png --encoder runs/x/encoder.safetensors --out features.npz",
    )
    features.add_argument("images", nargs="+", metavar="IMAGE", help="file, folder (all below it) or quoted glob")
    features.add_argument("--encoder", type=Path, required=True, help="a .safetensors file of a pretraining run")
    features.add_argument(
        "--out", type=Path, required=True, help="npz with the arrays `features` (N, 2 x width) and `images` (N,)"
    )

    models = add("models", _models, "list the registered versions, newest first", "contrique models --format json")
    history = add("history", _history, "list every promotion, rollback and hold: who, when, why", "contrique history")
    for listing in (models, history):
        listing.add_argument("--format", choices=("table", "json"), default="table", help="default: table")
        add_settings(listing)

    promote = add(
        "promote",
        _promote,
        "make a registered version champion; the one before stays reachable as `previous`",
        "contrique promote 3 --reason 'better on our scans'",
    )
    promote.add_argument("version", metavar="VERSION", help="a number from `contrique models`")
    rollback = add(
        "rollback",
        _rollback,
        "give the alias back to the champion before this one",
        "contrique rollback --reason 'scores drift on night shots'",
    )
    for moving in (promote, rollback):
        moving.add_argument("--reason", default="", help="for the history")
        add_settings(moving)

    distort = add(
        "distort",
        _distort,
        "distort one picture, or draw a sheet of all distortions and levels",
        "contrique distort photo.png --name jpeg --level 3 --seed 0 --out distorted.png\n"
        "  contrique distort photo.png --sheet sheet.png",
    )
    distort.add_argument("image", type=Path, metavar="IMAGE")
    distort.add_argument("--name", help="one of the 25; a wrong name lists them")
    distort.add_argument("--level", type=int, help="1 to 5")
    add_seed(distort)
    distort.add_argument("--out", type=Path, help="PNG to write")
    distort.add_argument("--sheet", type=Path, help="PNG of all 25 x 5 to write, labelled")

    synthesize = add(
        "synthesize",
        _synthesize,
        "make the distorted set of pristine photographs",
        "contrique synthesize photographs/ --out distorted/ --workers 2 --seed 0",
    )
    synthesize.add_argument("path", type=Path, metavar="PATH", help="folder of photographs, or a picture set")
    synthesize.add_argument("--out", type=Path, required=True, help="folder of the set; an interrupted one goes on")
    synthesize.add_argument("--workers", type=int, help="processes; default: one per core")
    add_seed(synthesize)
    add_settings(synthesize)

    validate = add(
        "validate",
        _validate,
        "check pictures, labels and splits as the pipeline does, and write a report",
        "contrique validate data/ --report validation.html\n"
        "  contrique validate scans/ --pristine photographs/ --authentic phone/ --report validation.html",
    )
    validate.add_argument("path", metavar="PATH", help="picture set (manifest.parquet), or folder with labels.csv")
    validate.add_argument("--pristine", action="append", default=[], help="folder to pretrain on; repeatable")
    validate.add_argument("--authentic", action="append", default=[], help="folder to pretrain on; repeatable")
    validate.add_argument("--report", type=Path, required=True, help="HTML page to write, with its JSON beside it")
    add_settings(validate)

    pretrain = add(
        "pretrain",
        _pretrain,
        "train an encoder on pictures without labels",
        "contrique pretrain --pristine photographs/ --authentic phone/ --out run/ --set pretrain.steps=200\n"
        "  torchrun --nproc_per_node=8 -m contrique.cli pretrain --profile paper --pristine photographs/ ...",
    )
    pretrain.add_argument("--pristine", action="append", default=[], help="folder to distort; repeatable")
    pretrain.add_argument("--authentic", action="append", default=[], help="folder used as it is; repeatable")
    pretrain.add_argument("--dataset", help="picture set instead of such folders; it, too, may be an s3:// prefix")
    pretrain.add_argument("--distorted", help="what `synthesize` made of it; default: it is made here")
    pretrain.add_argument("--out", type=Path, required=True, help="folder of the run; an interrupted one goes on")
    pretrain.add_argument("--checkpoints", help="their folder or s3:// prefix, if pretrain.checkpoints names none")
    pretrain.add_argument("--publish", help="s3:// prefix that gets encoder, history and summary too")
    pretrain.add_argument("--profile", choices=sorted(PROFILES), default="demo", help="default: demo")
    pretrain.add_argument("--minutes", type=float, help="to train for, instead of the profile's steps")
    add_seed(pretrain)
    add_settings(pretrain)

    adapt = add(
        "adapt",
        _adapt,
        "fit a new head to 50 to 500 scores of your own, on the encoder of a model",
        "contrique adapt --labels scans/my.csv --out adapted/ && contrique score new.png --model adapted/",
    )
    adapt.add_argument(
        "--labels",
        type=Path,
        required=True,
        help="CSV with the columns image (relative to it), mos or dmos, and reference where pictures share a content",
    )
    adapt.add_argument("--model", default="champion", help="registry version or alias; default: champion")
    adapt.add_argument("--out", type=Path, default=Path("adapted"), help="folder to make; default: adapted")
    add_seed(adapt)
    add_settings(adapt)

    benchmark = add(
        "benchmark",
        _benchmark,
        "judge an encoder on rated sets, own set and across sets, beside baselines and published figures",
        "contrique benchmark --data tid2013:tid2013/ --data koniq10k:koniq/ --encoder encoder.safetensors "
        "--baseline brisque --out benchmark/",
    )
    benchmark.add_argument(
        "--data",
        action="append",
        required=True,
        metavar="NAME:PATH",
        help="a public set as distributed, or any name for a folder with labels.csv or a picture set; repeatable",
    )
    which = benchmark.add_mutually_exclusive_group(required=True)
    which.add_argument("--encoder", type=Path, help="a .safetensors file of a pretraining run")
    which.add_argument("--model", help="registry version, alias, or a folder of `adapt`, for its encoder")
    benchmark.add_argument(
        "--baseline",
        action="append",
        default=[],
        choices=("untrained", "brisque"),
        help="untrained: the same network with random weights, three seeds; brisque: with an SVR; repeatable",
    )
    benchmark.add_argument(
        "--distorted", type=Path, help="set of `contrique synthesize` or a run, to fit an opinion-unaware head on too"
    )
    benchmark.add_argument("--weak-pictures", type=int, default=2000, help="how many of it; default: 2000")
    benchmark.add_argument("--out", type=Path, required=True, help="folder for benchmark.md, .json and .html")
    benchmark.add_argument("--cache", type=Path, help="folder of features to keep and use; default: features in --out")
    add_seed(benchmark, "of splits and intervals; ")
    add_settings(benchmark)

    checkpoint = add(
        "import-checkpoint",
        _import_checkpoint,
        "turn a checkpoint of the original CONTRIQUE into an encoder file; any other file is refused",
        "contrique import-checkpoint CONTRIQUE_checkpoint25.tar --out encoder.safetensors",
    )
    checkpoint.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="file written by torch.save")
    checkpoint.add_argument("--out", type=Path, required=True, help=".safetensors file to write")
    return parser


def _config(options: argparse.Namespace) -> Config:
    overrides = {}
    for text in options.set:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set {text}: expected NAME=VALUE, such as pretrain.steps=100")
        try:
            overrides[name] = json.loads(value)
        except ValueError:  # a bare word, such as resnet18
            overrides[name] = value
    return resolve(getattr(options, "profile", "demo"), overrides)


def _score(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from contrique.scoring.results import write_results

    model = _backed(options)
    results = model.score_paths(options.paths)
    hidden = True if sys.stdout.isatty() else None  # on a terminal the results themselves show the progress
    bar = tqdm(results, desc="score", unit="img", file=sys.stderr, disable=hidden)
    return SOME_FAILED if write_results(bar, sys.stdout, options.format) else 0


def _explain(options: argparse.Namespace) -> None:
    from contrique import images
    from contrique.files import write_aside
    from contrique.scoring import explain
    from contrique.scoring.explain import explanation_as_dict, overlay
    from contrique.scoring.results import write_results

    picture = _read(str(options.image))
    model = _model(options)
    told = explain.explain(model, picture, str(options.image))
    with write_aside(options.out) as aside:
        aside.write_bytes(images.encode_png(overlay(picture, told.heat)))
    if options.format == "json":
        print(json.dumps(explanation_as_dict(told), indent=2, ensure_ascii=False))
        return
    write_results([told.score], sys.stdout)
    print(f"{options.out}: local scores {told.heat.min():.1f} to {told.heat.max():.1f}, red is low, blue is high")
    if told.suspects is None:
        print("this model was fitted without synthesized pictures: it cannot name distortions")
        return
    for suspect in told.suspects[:3]:
        level = f", level {suspect.level}" if suspect.level else ""
        print(f"{suspect.probability:6.1%}  {suspect.distortion}{level}")


def _serve(options: argparse.Namespace) -> None:
    from importlib.util import find_spec

    if missing := [package for package in ("fastapi", "uvicorn") if not find_spec(package)]:
        raise UsageError(f"serve needs {', '.join(missing)}; run: pip install -e '.[serve]'")
    from contrique.serving import app
    from contrique.serving.app import listen

    limits = _config(options).serving
    with listen(options.host, options.port) as listener:  # before the model: a wrong address is told at once
        app.serve(_backed(options), listener, limits, options.host)


def _backed(options: argparse.Namespace) -> "Scorer":
    """The model that --model names, run by --backend in --precision."""
    model = _model(options)
    backend = model.use(options.backend, options.precision)
    if options.backend == "auto":
        print(f"backend: {backend}", file=sys.stderr)
    return model


def _model(options: argparse.Namespace) -> "Scorer":
    """The version, alias or folder of `contrique adapt` that --model names."""
    from contrique.registry.versions import load_champion, load_model
    from contrique.scoring.scorer import Scorer
    from contrique.tracking.client import RegistryError

    folder = Path(options.model)
    if (folder / ENCODER).is_file():
        return Scorer(folder / ENCODER, folder / REGRESSOR, version=str(folder))
    config = _config(options).registry
    if options.model != config.alias:
        return load_model(options.model, config)
    model = load_champion(config)
    if model is None:
        raise RegistryError(
            f"model '{config.model}' has no {config.alias} yet; run the pipeline first, or set MLFLOW_TRACKING_URI"
        )
    return model


def _features(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from contrique.encoder.feature_set import save_features
    from contrique.encoder.features import extract
    from contrique.encoder.weights import load_encoder

    encoder = load_encoder(options.encoder)
    names = _found(options.images)
    bar = tqdm(names, desc="features", unit="img", file=sys.stderr, disable=None)
    values = extract((_read(name) for name in bar), encoder)
    save_features(values, names, options.out)
    print(f"{options.out}: {len(names)} pictures x {values.shape[1]} features")


def _found(paths: Iterable[str]) -> list[str]:
    from contrique.scoring.inputs import find_images
    from contrique.scoring.results import Failure

    names = []
    for found in find_images(paths):
        if isinstance(found, Failure):
            raise UsageError(found.error)
        names.append(str(found))
    return names


def _read(path: str) -> "Picture":
    """A picture large enough for the encoder; the error names its file."""
    from contrique.encoder.network import MIN_SIDE
    from contrique.images import read

    picture = read(path)
    if min(picture.shape[:2]) < MIN_SIDE:
        raise UsageError(
            f"{path}: {picture.shape[1]}x{picture.shape[0]} is under {MIN_SIDE} pixels a side; leave it out"
        )
    return picture


def _models(options: argparse.Namespace) -> None:
    from contrique.registry.versions import list_models

    found = list_models(_config(options).registry)
    columns = {
        "version": "version",
        "aliases": "alias",
        "srcc": "SRCC",
        "interval": "interval",
        "labels": "labels",
        "created": "created",
        "data_hash": "data",
        "run": "run",
    }
    _print(found, columns, options.format, "no model is registered yet; run the pipeline: python -m pipelines run")


def _history(options: argparse.Namespace) -> None:
    from contrique.registry.promotion import read_history

    columns = {
        "time": "time (UTC)",
        "action": "action",
        "replaced": "from",
        "version": "to",
        "who": "who",
        "data_hash": "data",
        "reason": "why",
    }
    _print(read_history(_config(options).registry), columns, options.format, "nothing has happened yet")


def _print(rows: Sequence[Any], columns: dict[str, str], form: str, empty: str) -> None:
    if form == "json":
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=2, ensure_ascii=False))
    elif not rows:
        print(empty)
    else:
        table = [list(columns.values())] + [[_cell(getattr(row, name)) for name in columns] for row in rows]
        widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
        for line in table:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _cell(value: Any) -> str:
    return (", ".join(value) if isinstance(value, tuple) else str(value)) or "-"


def _promote(options: argparse.Namespace) -> None:
    from contrique.registry import promotion

    config = _config(options).registry
    made = promotion.promote(options.version, config, options.reason)
    print(f"version {made.version} of '{made.name}' is {made.alias}")


def _rollback(options: argparse.Namespace) -> None:
    from contrique.registry import promotion

    made = promotion.rollback(_config(options).registry, options.reason)
    print(f"version {made.version} of '{made.name}' is {made.alias} again")


def _distort(options: argparse.Namespace) -> None:
    if not options.sheet and None in (options.name, options.level, options.out):
        raise UsageError("give --name, --level and --out for one distortion, or --sheet for all of them")
    from contrique import distortions, images
    from contrique.files import write_aside

    data = _bytes(options.image)
    picture = images.decode(data, str(options.image)).pixels
    made: dict[Path, Picture] = {}
    if None not in (options.name, options.level, options.out):
        generator = distortions.generator(images.content_hash(data), options.name, options.level, options.seed)
        made[options.out] = images.as_uint8(
            distortions.distort(images.as_float(picture), options.name, options.level, generator)
        )
    if options.sheet:
        made[options.sheet] = distortions.contact_sheet(picture, options.seed)
    for path, pixels in made.items():
        with write_aside(path) as aside:
            aside.write_bytes(images.encode_png(pixels))
        print(path)


def _bytes(path: Path) -> bytes:
    from contrique.images import BadImage

    try:
        return path.read_bytes()
    except OSError as error:
        raise BadImage(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error


def _synthesize(options: argparse.Namespace) -> None:
    from contrique.data import synthesis

    config = _config(options).synthesis
    if options.workers is not None:
        config = dataclasses.replace(config, workers=options.workers)
    with _pristine_set(options.path) as source:
        made = synthesis.synthesize(source, options.out, seed=options.seed, config=config)
    print(
        f"{options.out}: {made.pictures} pictures of {made.photographs} photographs in {made.shards} shards, "
        f"{made.bytes / 1e6:.0f} MB"
    )


@contextmanager
def _pristine_set(path: Path) -> Iterator[Path]:
    """`path` if it is a picture set; of a folder of photographs a passing one, which leaves them where they are."""
    import tempfile

    from contrique.artifacts import MANIFEST
    from contrique.data.manifest import write_manifest
    from contrique.sources.folders import Source, import_folder

    if (path / MANIFEST).is_file():
        yield path
        return
    manifest = import_folder(Source(path, "pristine"))
    with tempfile.TemporaryDirectory(prefix="contrique-") as folder:
        passing = Path(folder)
        (passing / "images").symlink_to(path.resolve(), target_is_directory=True)
        write_manifest(manifest.assign(image="images/" + manifest["image"]), passing)
        yield passing


def _validate(options: argparse.Namespace) -> None:
    import tempfile

    from contrique.artifacts import MANIFEST
    from contrique.data import validation
    from contrique.sources.fetch import fetch

    config = _config(options).validation
    with tempfile.TemporaryDirectory(prefix="contrique-") as folder:
        dataset = Path(options.path)
        if options.pristine or options.authentic or not (dataset / MANIFEST).is_file():
            dataset = Path(folder) / "dataset"
            fetch(dataset, data=options.path, pristine=options.pristine, authentic=options.authentic)
        made = validation.validate(dataset, options.report, config)
    counts = ", ".join(f"{count} {part}" for part, count in sorted(made.counts.items()))
    print(f"{options.path}: valid, {made.rows} pictures ({counts}); report in {options.report}")


def _pretrain(options: argparse.Namespace) -> None:
    from contrique import s3
    from contrique.artifacts import ENCODER, HISTORY, SUMMARY
    from contrique.data import synthesis
    from contrique.files import write_aside
    from contrique.pretraining import distributed, pretrain
    from contrique.sources.fetch import fetch
    from contrique.tracking.runs import open_current_run

    if options.publish and not s3.is_s3(options.publish):  # before the days of training, not after
        raise UsageError(f"--publish {options.publish}: expected s3://BUCKET/PREFIX")
    if bool(options.dataset) == bool(options.pristine or options.authentic):
        raise UsageError("give --pristine and --authentic folders of photographs, or else a --dataset")
    if not options.dataset and not (options.pristine and options.authentic and not options.distorted):
        raise UsageError("give both --pristine and --authentic; --distorted goes with --dataset")
    config = _config(options)
    if options.minutes is not None:
        if not 0 < options.minutes < float("inf"):
            raise UsageError(f"--minutes {options.minutes:g}: give more than 0")
        config = dataclasses.replace(config, pretrain=dataclasses.replace(config.pretrain, minutes=options.minutes))
    dataset, distorted = (
        options.out / name if not given or s3.is_s3(given) else Path(given)
        for name, given in (("dataset", options.dataset), ("distorted", options.distorted))
    )
    with distributed.process_group() as world:
        if world.is_local_main:
            for given, folder in ((options.dataset, dataset), (options.distorted, distorted)):
                if given and s3.is_s3(given):
                    s3.download(given, folder)
            if not options.dataset:
                fetch(dataset, pristine=options.pristine, authentic=options.authentic)
            if config.pretrain.synthesis == "stored" and not options.distorted:
                synthesis.synthesize(dataset, distorted, seed=options.seed, config=config.synthesis)
        distributed.wait_for_all()
        track = open_current_run(config).track if world.is_main and "CONTRIQUE_RUN" in os.environ else None
        # no part of the configuration: an MLflow run takes but one, and the other tasks of the pipeline log theirs
        checkpoints = config.pretrain.checkpoints or options.checkpoints or ""
        made = pretrain.pretrain(
            dataset,
            distorted,
            options.out,
            config=dataclasses.replace(config.pretrain, checkpoints=checkpoints),
            seed=options.seed,
            track=track,
            synthesis=config.synthesis,
        )
        if world.is_main and options.publish:
            with write_aside(options.out / SUMMARY) as aside:
                aside.write_text(json.dumps(dataclasses.asdict(made)))
            for name in (ENCODER, HISTORY, SUMMARY):
                s3.upload(options.out / name, options.publish)
    if world.is_main:
        print(
            f"{options.out / ENCODER}: {made.steps} steps, {made.crops} crops, "
            f"loss {made.loss_first:.3f} to {made.loss_last:.3f} in {made.minutes:.1f} minutes"
        )


def _adapt(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from contrique.encoder.features import extract
    from contrique.encoder.weights import save_encoder
    from contrique.files import write_aside
    from contrique.regressor import adapt
    from contrique.regressor.head import Head
    from contrique.sources.folders import read_labels

    if options.out.exists():
        raise UsageError(f"{options.out}: is there already; remove it, or give another --out")
    rows = read_labels(options.labels)
    model = _model(options)
    bar = tqdm(rows, desc="features", unit="img", file=sys.stderr, disable=None)
    features = extract((_read(str(options.labels.parent / row["image"])) for row in bar), model.encoder)
    made = adapt.adapt(
        features,
        [row["mos"] for row in rows],
        [row["reference"] for row in rows],
        config=_config(options).regressor,
        seed=options.seed,
    )
    with write_aside(options.out) as aside:
        aside.mkdir()
        save_encoder(model.encoder, aside / ENCODER, {"adapted_from": model.version})
        Head(made.ridge, made.summary, made.novelty, model.head.diagnosis).save(aside / REGRESSOR)
    print(
        f"{options.out}: {made.summary.n} pictures of {made.summary.contents} contents, alpha {made.summary.alpha:g}; "
        f"SRCC out of fold {made.srcc:.3f} [{made.low:.3f}, {made.high:.3f}]"
    )


def _benchmark(options: argparse.Namespace) -> None:
    import torch

    from contrique.benchmark.benchmark import MARKDOWN, run
    from contrique.encoder.weights import load_encoder

    if options.encoder:
        encoder = load_encoder(options.encoder).to("cuda" if torch.cuda.is_available() else "cpu")
    else:
        encoder = _model(options).encoder
    made = run(
        options.data,
        encoder,
        options.out,
        config=_config(options),
        distorted=options.distorted,
        weak_pictures=options.weak_pictures,
        baselines=options.baseline,
        cache=options.cache,
        seed=options.seed,
    )
    for method, result in made.methods.items():
        for name, judged in result.own.items():
            srcc = judged.metrics["srcc"]
            print(f"{name}: {method}: SRCC {srcc.value:.3f} [{srcc.low:.3f}, {srcc.high:.3f}], {judged.n} pictures")
    print(f"{options.out / MARKDOWN}: all figures, also as JSON and HTML")


def _import_checkpoint(options: argparse.Namespace) -> None:
    from contrique.encoder.network import WIDTHS
    from contrique.encoder.original import import_checkpoint

    arch = import_checkpoint(options.checkpoint, options.out)
    print(f"{options.out}: {arch}, {WIDTHS[arch]} channels, from {options.checkpoint}")
