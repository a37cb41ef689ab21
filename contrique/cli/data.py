"""distort, synthesize, validate: pictures before anything is trained on them."""

import argparse
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contrique.cli.options import (
    UsageError,
    add_command,
    add_output,
    add_seed,
    add_settings,
    parse_integer,
    parse_path,
    parse_place,
    print_line,
    resolve_config,
)

if TYPE_CHECKING:
    from contrique.images import Picture


def add_parsers(commands: Any) -> None:
    """Add the commands of this module."""
    command = add_command(
        commands,
        "distort",
        distort,
        "distort one picture, or draw a sheet of all distortions and levels",
        "contrique distort photo.png --name jpeg --level 3 --seed 0 --out distorted.png\n"
        "  contrique distort photo.png --sheet sheet.png",
    )
    command.add_argument("image", type=parse_path, metavar="IMAGE")
    command.add_argument("--name", help="one of the 25; a wrong name lists them")
    command.add_argument("--level", type=parse_integer(1, 5), help="1 to 5")
    add_seed(command)
    add_output(command, "--out", help="PNG to write")
    add_output(command, "--sheet", help="PNG of all 25 x 5 to write, labelled")

    command = add_command(
        commands,
        "synthesize",
        synthesize,
        "make the distorted set of pristine photographs",
        "contrique synthesize photographs/ --out distorted/ --workers 2 --seed 0",
    )
    command.add_argument("path", type=parse_path, metavar="PATH", help="folder of photographs, or a picture set")
    add_output(command, "--out", folder=True, required=True, help="folder of the set; an interrupted one goes on")
    command.add_argument("--workers", type=parse_integer(1, 1024), help="processes; default: one per core")
    add_seed(command)
    add_settings(command)

    command = add_command(
        commands,
        "validate",
        validate,
        "check pictures, labels and splits as the pipeline does, and write a report",
        "contrique validate data/ --report validation.html\n"
        "  contrique validate scans/ --pristine photographs/ --authentic phone/ --report validation.html",
    )
    command.add_argument(
        "path", type=parse_place, metavar="PATH", help="picture set (manifest.parquet), or folder with labels.csv"
    )
    command.add_argument(
        "--pristine", type=parse_place, action="append", default=[], help="folder to pretrain on; repeatable"
    )
    command.add_argument(
        "--authentic", type=parse_place, action="append", default=[], help="folder to pretrain on; repeatable"
    )
    add_output(command, "--report", required=True, help="HTML page to write, with its JSON beside it")
    add_settings(command)


def distort(options: argparse.Namespace) -> None:
    """Write a distorted picture, a sheet of all distortions, or both."""
    if not options.sheet and None in (options.name, options.level, options.out):
        raise UsageError("give --name, --level and --out for one distortion, or --sheet for all of them")
    from contrique import distortions, images
    from contrique.files import write_aside

    data = images.read_bytes(options.image)
    picture = images.decode(data, str(options.image)).pixels
    outputs: dict[Path, Picture] = {}
    if None not in (options.name, options.level, options.out):
        generator = distortions.generator(images.content_hash(data), options.name, options.level, options.seed)
        outputs[options.out] = images.as_uint8(
            distortions.distort(images.as_float(picture), options.name, options.level, generator)
        )
    if options.sheet:
        outputs[options.sheet] = distortions.contact_sheet(picture, options.seed)
    for path, pixels in outputs.items():
        with write_aside(path) as aside:
            aside.write_bytes(images.encode_png(pixels))
        print_line(str(path))


def synthesize(options: argparse.Namespace) -> None:
    """Write the distorted versions of all photographs."""
    from contrique.data import synthesis

    config = resolve_config(options).synthesis
    if options.workers is not None:
        config = dataclasses.replace(config, workers=options.workers)
    with _open_pristine_set(options.path) as source:
        summary = synthesis.synthesize(source, options.out, seed=options.seed, config=config)
    print_line(
        f"{options.out}: {summary.pictures} pictures of {summary.photographs} photographs in {summary.shards} shards, "
        f"{summary.bytes / 1e6:.0f} MB"
    )


@contextmanager
def _open_pristine_set(path: Path) -> Iterator[Path]:
    """`path` if it is a picture set; for a folder of photographs a temporary set that links to them."""
    import tempfile

    from contrique.artifacts import MANIFEST
    from contrique.data.manifest import write_manifest
    from contrique.sources.folders import Source, import_folder

    if (path / MANIFEST).is_file():
        yield path
        return
    manifest = import_folder(Source(path, "pristine"))
    with tempfile.TemporaryDirectory(prefix="contrique-") as name:
        folder = Path(name)
        (folder / "images").symlink_to(path.resolve(), target_is_directory=True)
        write_manifest(manifest.assign(image="images/" + manifest["image"]), folder)
        yield folder


def validate(options: argparse.Namespace) -> None:
    """Check a picture set and write the report."""
    import tempfile

    from contrique.artifacts import MANIFEST
    from contrique.data import validation
    from contrique.sources.fetch import fetch

    config = resolve_config(options).validation
    with tempfile.TemporaryDirectory(prefix="contrique-") as folder:
        dataset = Path(options.path)
        if options.pristine or options.authentic or not (dataset / MANIFEST).is_file():
            dataset = Path(folder) / "dataset"
            fetch(dataset, data=options.path, pristine=options.pristine, authentic=options.authentic)
        result = validation.validate(dataset, options.report, config)
    counts = ", ".join(f"{count} {part}" for part, count in sorted(result.counts.items()))
    print_line(f"{options.path}: valid, {result.rows} pictures ({counts}); report in {options.report}")
