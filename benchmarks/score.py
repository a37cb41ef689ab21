"""How fast is scoring, how exact, and what does it cost? Files to scores, decoding included.

    python benchmarks/score.py speed PICTURES --encoder ENCODER --regressor REGRESSOR --out speed.json
    python benchmarks/score.py agreement --judged TID2013 --encoder ENCODER --regressor REGRESSOR --out agreement.json
    python benchmarks/score.py memory PICTURES --encoder ENCODER --regressor REGRESSOR --out memory.json
    python benchmarks/score.py coverage --judged TID2013 --encoder ENCODER --out coverage.json

`speed`: each backend on JPEGs of 512x384 and 1024x768 made of PICTURES, beside the original's way (one picture at a
time, fp32, eager, NCHW, decoded in between) and beside the bare encoder on decoded pictures; the ways take turns, round
by round, so that a busy machine is fair to all, and each ratio is the median over rounds. By `--clock cpu` the seconds
are those of all threads, which a busy machine disturbs least; use it with `--threads 1`. `agreement`: features, scores
and SRCC of each backend against PyTorch in float32. `memory`: resident memory at its peak, for many pictures and for
one of 100 megapixels, and the start-up time. `coverage`: how often the 90 % interval covers human scores of pictures
that did not set it, of new contents and of known ones.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from tqdm import tqdm

from contrique import images
from contrique.config import RegressorConfig
from contrique.data.manifest import read_picture, rows_of, write_manifest
from contrique.encoder.backends import BackendError, Torch, create_backend
from contrique.encoder.feature_set import save_features
from contrique.encoder.features import extract_batch
from contrique.encoder.network import Encoder
from contrique.encoder.weights import EncoderFile, load_encoder
from contrique.metrics import srcc
from contrique.regressor.fit import fit_set
from contrique.regressor.head import Head
from contrique.regressor.reliability import COVERAGE
from contrique.regressor.ridge import Ridge
from contrique.scoring.inputs import find_images
from contrique.scoring.results import Failure
from contrique.scoring.scorer import Scorer
from contrique.sources.folders import Source, import_folder

SIZES = ((512, 384), (1024, 768))
WAYS = (
    ("torch", "float32"),
    ("onnx", "float32"),
    ("openvino", "float32"),
    ("torch", "bfloat16"),
    ("openvino", "bfloat16"),
)


def jpegs(sources: list[Path], size: tuple[int, int], count: int, folder: Path) -> list[Path]:
    """Photographs cropped to one shape and size, as JPEG of quality 92."""
    files = []
    for number, source in zip(range(count), itertools.cycle(sources), strict=False):
        picture = Image.fromarray(images.read(source))
        scale = max(size[0] / picture.width, size[1] / picture.height)
        picture = picture.resize((round(picture.width * scale), round(picture.height * scale)))
        files.append(folder / f"{size[0]}_{number}.jpg")
        picture.crop((0, 0, *size)).save(files[-1], quality=92)
    return files


def original(paths: list[Path], encoder: Encoder, ridge: Ridge) -> list[float]:
    """One file after the other, as the published demo: Pillow, NCHW float32, eager, both scales, then the ridge."""
    scores = []
    for path in paths:
        picture = Image.open(path).convert("RGB")
        halves = (picture, picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BICUBIC))
        with torch.no_grad():
            parts = [
                encoder(torch.from_numpy(np.asarray(scale, np.float32).transpose(2, 0, 1)[None] / 255))[0]
                for scale in halves
            ]
        scores.append(float(ridge.predict(torch.cat(parts).numpy()[None])[0]))
    return scores


def taking_turns(ways: dict[str, Callable[[], Any]], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of each way in each round, after a warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in tqdm(range(rounds + 1), desc="rounds"):
        for name, way in ways.items():
            start = clock()
            way()
            if number:
                seconds[name].append(clock() - start)
    return seconds


def speed(arguments: argparse.Namespace) -> dict[str, Any]:
    sources = [path for path in find_images([arguments.pictures]) if isinstance(path, Path)]
    ridge = Head.load(arguments.regressor).ridge
    contiguous = load_encoder(arguments.encoder).to(memory_format=torch.contiguous_format)
    report: dict[str, Any] = {
        "threads": arguments.threads,
        "clock": arguments.clock,
        "arch": contiguous.arch,
        "rounds": arguments.rounds,
    }
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            count = max(1, arguments.count * SIZES[0][0] * SIZES[0][1] // (size[0] * size[1]))
            paths = jpegs(sources, size, count, Path(folder))
            pictures = [images.read(path)[None] for path in paths]
            ways: dict[str, Callable[[], Any]] = {"original": lambda p=paths: original(p, contiguous, ridge)}
            for name, precision in WAYS:
                scorer = Scorer(arguments.encoder, arguments.regressor)
                try:
                    scorer.use(name, precision)
                except BackendError as error:
                    print(error)
                    continue
                way = f"{name} {precision}"
                ways[way] = lambda s=scorer, p=paths: [item for item in s.score_paths(p) if isinstance(item, Failure)]
                ways[f"{way}, bare"] = lambda s=scorer, d=pictures: [
                    s._backend(scale) for picture in d for scale in (picture, images.half_scale(picture[0])[None])
                ]
            clock = {"wall": time.perf_counter, "cpu": time.process_time}[arguments.clock]
            seconds = taking_turns(ways, arguments.rounds, clock)
            report[f"{size[0]}x{size[1]}"] = {
                name: {
                    "images_per_second": count / float(np.median(durations)),
                    "times_original": ratio(seconds["original"], durations),
                    "share_of_bare": ratio(seconds[f"{name}, bare"], durations) if f"{name}, bare" in seconds else None,
                }
                for name, durations in seconds.items()
            }
            print(json.dumps(report, indent=1), flush=True)
    return report


def ratio(a: list[float], b: list[float]) -> float:
    """Median over rounds of a / b."""
    return float(np.median(np.array(a) / np.array(b)))


def agreement(arguments: argparse.Namespace) -> dict[str, Any]:
    report: dict[str, Any] = {}
    head = Head.load(arguments.regressor)
    ridge, summary = head.ridge, head.summary
    for folder in arguments.judged:
        manifest = import_folder(Source(folder, "labelled"))
        pictures = [read_picture(folder, row) for row in rows_of(manifest)]
        outputs: dict[str, np.ndarray] = {}
        for name, precision in WAYS:
            backend = create_backend(name, EncoderFile(arguments.encoder), precision)
            bar = tqdm(pictures, desc=f"{folder.name}: {name} {precision}", mininterval=5)
            outputs[f"{name} {precision}"] = np.stack([extract_batch(picture[None], backend)[0] for picture in bar])
        reference = outputs["torch float32"]
        scale = 100 / (summary.label_high - summary.label_low)
        mos = manifest["mos"].to_numpy()
        report[folder.name] = {
            way: {
                "features_max_abs": float(np.abs(values - reference).max()),
                "points_max": float(scale * np.abs(ridge.predict(values) - ridge.predict(reference)).max()),
                "srcc_with_float32": srcc(ridge.predict(values), ridge.predict(reference)),
                "srcc_difference": srcc(ridge.predict(values), mos) - srcc(ridge.predict(reference), mos),
            }
            for way, values in outputs.items()
        }
    return report


def memory(arguments: argparse.Namespace) -> dict[str, Any]:
    sources = [path for path in find_images([arguments.pictures]) if isinstance(path, Path)]
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        small = jpegs(sources, (128, 96), 50, Path(folder))
        links = Path(folder) / "many"
        links.mkdir()
        for number in range(arguments.count):
            (links / f"{number:06}.jpg").symlink_to(small[number % len(small)])
        few = Path(folder) / "few"
        few.mkdir()
        for path in small[:10]:
            (few / path.name).symlink_to(path)
        large = Path(folder) / "large.jpg"
        tile = images.fit_within(images.read(sources[0]), 512)
        repeats = (-(-10_000 // tile.shape[0]), -(-10_000 // tile.shape[1]), 1)
        Image.fromarray(np.tile(tile, repeats)[:10_000, :10_000]).save(large, quality=90)
        for name, path in (
            ("10 pictures", few),
            (f"{arguments.count} pictures", links),
            ("one of 100 megapixels", large),
        ):
            report[name] = child("score", path, arguments)
        report["start-up, one picture"] = child("score", small[0], arguments)
    return report


def child(what: str, path: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """A process of its own, which tells the seconds it took and its largest resident memory."""
    command = [sys.executable, __file__, what, str(path), "--encoder", str(arguments.encoder)]
    command += ["--regressor", str(arguments.regressor), "--threads", str(arguments.threads)]
    start = time.perf_counter()
    process = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    return {"seconds": time.perf_counter() - start, **json.loads(process.stdout.splitlines()[-1])}


def score(arguments: argparse.Namespace) -> dict[str, Any]:
    scorer = Scorer(arguments.encoder, arguments.regressor)
    scorer.use(arguments.backend)
    start = time.perf_counter()
    kinds = [isinstance(item, Failure) for item in scorer.score_paths([arguments.pictures])]
    seconds = time.perf_counter() - start
    status = Path("/proc/self/status").read_text()  # getrusage would count what the parent held when it forked
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
    return {"scored": len(kinds) - sum(kinds), "scoring_seconds": seconds, "peak_mib": peak}


def coverage(arguments: argparse.Namespace) -> dict[str, Any]:
    """Each content is the test part once; and, as pictures like those that set the interval, a fifth of them at random.

    The promise of 90 % is for pictures like those that set the interval: for new contents it holds as far as these are
    like the old ones.
    """
    folder = arguments.judged[0]
    manifest = import_folder(Source(folder, "labelled"))
    backend = Torch(load_encoder(arguments.encoder), "bfloat16")
    pictures = tqdm((read_picture(folder, row) for row in rows_of(manifest)), total=len(manifest), desc="features")
    values = np.stack([extract_batch(picture[None], backend)[0] for picture in pictures])
    report: dict[str, Any] = {"nominal": COVERAGE}
    apart = manifest.assign(reference=[f"picture {row}" for row in range(len(manifest))])
    generator = np.random.default_rng(0)
    parts = np.resize(["train", "train", "train", "validation", "test"], len(manifest))
    for name, of, splits in (
        ("new contents", manifest, [(test, split) for test, (_, split) in splits_of(manifest["reference"].to_numpy())]),
        ("new pictures", apart, [((f"random split {k}",), generator.permutation(parts)) for k in range(20)]),
    ):
        outputs = [measure_coverage(of.assign(split=split), values) | {"test": list(test)} for test, split in splits]
        counts, shares = (np.array([item[key] for item in outputs]) for key in ("n", "covered"))
        covered_share = float((shares * counts).sum() / counts.sum())
        report[name] = {"covered": covered_share, "n": int(counts.sum()), "splits": outputs}
        report[name]["standard error"] = float(shares.std(ddof=1) / len(shares) ** 0.5)
    return report


def measure_coverage(manifest: pd.DataFrame, values: np.ndarray) -> dict[str, Any]:
    """Fit, set the interval and count the pictures of the test part that it covers."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        write_manifest(manifest, root)
        save_features(values, list(manifest["image"]), root / "features.npz")
        summary = fit_set(root, root / "out", config=RegressorConfig())
        ridge = Head.load(root / "out").ridge
    rows = np.flatnonzero(manifest["split"] == "test")
    residuals = manifest["mos"].to_numpy()[rows] - ridge.predict(values[rows])
    assert summary.interval is not None
    return {
        "n": len(rows),
        "covered": float((np.abs(residuals) <= summary.interval).mean()),
        "set_by": summary.interval_n,
        "half_width": summary.interval,
        "label_range": summary.label_high - summary.label_low,
    }


def splits_of(contents: np.ndarray) -> Iterator[tuple[tuple[str, ...], tuple[int, np.ndarray]]]:
    """Leave each content out; of the others the one with the fewest pictures above nine validates."""
    names, counts = np.unique(contents, return_counts=True)
    for name, count in zip(names, counts, strict=True):
        if count < 9:
            continue
        others = [(c, other) for c, other in zip(counts, names, strict=True) if other != name and c >= 9]
        validation = min(others)[1]
        split = np.where(contents == name, "test", np.where(contents == validation, "validation", "train"))
        yield (str(name),), (int((split == "train").sum()), split)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "agreement", "memory", "coverage", "score"))
    parser.add_argument("pictures", type=Path, nargs="?", help="folder of photographs")
    parser.add_argument("--encoder", type=Path, required=True)
    parser.add_argument("--regressor", type=Path)
    parser.add_argument("--judged", type=Path, action="append", default=[], help="folder with labels.csv; repeatable")
    parser.add_argument("--count", type=int, default=16, help="pictures a round, of 512x384; default: 16")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="of `speed`; default: wall")
    parser.add_argument("--backend", default="torch", help="of `score`; default: torch")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    report = globals()[arguments.what](arguments)
    text = json.dumps(report, indent=None if arguments.what == "score" else 1)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
