"""Which head should the bundled model have? Candidates, left-out sets, and the files of the chosen one.

    python benchmarks/heads.py bank --encoder ENCODER.safetensors --out BANK PHOTOGRAPHS...

`bank` distorts pristine photographs in every way of the bank (25 x 5) and by random camera chains, takes frozen
features and full-reference metrics of all of them, and keeps the features of some: a GPU needs minutes, two CPU cores
hours (`--photographs 100 --versions 24` makes it less).

    python benchmarks/heads.py fit --encoder ENCODER.safetensors --bank BANK --out HEADS \
        --synthetic live=LIVE --synthetic tid=TID2013 --authentic rated=RATED --everyday FOLDER

`fit` (minutes on two cores) judges every candidate on sets that it was not fitted to, prints the table and writes
`regressor/` (the chosen head with interval, novelty and diagnosis; the full-reference head) and `candidates.json`.
A rated folder holds `images/`, `labels.csv` (`image`; `mos` or `dmos`; for synthetic sets `reference`) and, for the
full-reference table, `ref/REFERENCE.*`. FOLDER holds unrated pictures as cameras write them, for the novelty bank.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

CHAIN: Final = "chain"
# a picture's way through a camera; a chain takes at most one distortion of each stage, in this order
STAGES: Final = (
    ("gaussian_blur", "lens_blur", "motion_blur"),
    ("brighten", "darken", "contrast", "mean_shift"),
    ("white_noise", "color_noise", "multiplicative_noise", "denoise"),
    ("saturation_hsv", "saturation_lab", "sharpen"),
    ("jpeg", "jpeg2000", "pixelate"),
)
SEED: Final = 0
IN_FLIGHT: Final = 2  # photographs waiting for the encoder, for each worker
CHUNK: Final = 32  # pictures in one pass
BLOCK: Final = 1900  # rows in a file of features: 15 MiB

Array = NDArray[np.float64]


class Version(NamedTuple):
    """A picture to make of a photograph: one distortion of the bank, or ("", 0) for itself, or (CHAIN, number)."""

    distortion: str
    level: int


class Job(NamedTuple):
    """One photograph for a worker; versions are made in this order, `mask` says whose features are kept."""

    path: Path
    versions: tuple[Version, ...]
    mask: tuple[bool, ...]
    folder: str


# ---------------------------------------------------------------------------------------------- pictures


def plan(path: Path, versions: int, keep: int, chains: int, folder: str) -> Job:
    """What to make of a photograph: itself, `versions` of the bank's 125 (`keep` of them kept), and `chains`.

    The order is that of `synthesis.draw_weakly_labelled`: rounds over all distortions, each time at another level.
    """
    from contrique import images
    from contrique.config import SynthesisConfig
    from contrique.data import synthesis

    content = images.content_hash(path.read_bytes())

    def draw(count: int) -> set[Version]:
        config = SynthesisConfig(weak_labels_per_photograph=count + 1)
        return {Version(*version) for version in synthesis.draw_weakly_labelled(content, SEED, config)}

    sample, mask = sorted(draw(versions)), draw(keep)
    variants = (*sample, *(Version(CHAIN, number) for number in range(1, chains + 1)))
    return Job(path, variants, tuple(v.distortion == CHAIN or v in mask for v in variants), folder)


def chain(pixels: Any, content: str, number: int) -> tuple[Any, str]:
    """Two to four mild distortions one after another, as a camera adds them; the picture and what was done."""
    from contrique import distortions, images

    rng = distortions.generator(content, CHAIN, number, SEED)
    stages = np.sort(rng.permutation(len(STAGES))[: rng.integers(2, 5)])
    steps, image = [], images.as_float(pixels)
    for stage in stages:
        name = str(rng.choice(STAGES[stage]))
        level = int(rng.choice([1, 2, 3, 4], p=[0.3, 0.3, 0.25, 0.15]))
        image = distortions.distort(image, name, level, rng)
        steps.append(f"{name}-{level}")
    return images.as_uint8(image), " ".join(steps)


def make(job: Job) -> tuple[Job, str, list[str]]:
    """All versions of a photograph, full and half scale, in a file for `take` to read. Runs in a worker."""
    from contrique import distortions, images

    data = job.path.read_bytes()
    content = images.content_hash(data)
    pristine = images.fit_within(images.decode(data, str(job.path)).pixels, 512)
    pictures, steps = [], []
    for name, level in job.versions:
        step = ""
        if name == CHAIN:
            picture, step = chain(pristine, content, level)
        elif name:
            rng = distortions.generator(content, name, level, SEED)
            picture = images.as_uint8(distortions.distort(images.as_float(pristine), name, level, rng))
        else:
            picture = pristine
        pictures.append(picture)
        steps.append(step)
    halves = np.stack([images.half_scale(picture) for picture in pictures])
    path = f"{job.folder}/{content}.npz"
    with Path(path).open("wb") as file:
        np.savez(file, pictures=np.stack(pictures), halves=halves)
    return job, path, steps


def _start_worker() -> None:
    import cv2
    import torch

    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def stream(jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, Any, Any, list[str]]]:
    """Versions of one photograph after another, made `IN_FLIGHT` ahead: job, pictures, halves, steps of chains."""
    from collections import deque

    waiting: deque[Future[Any]] = deque()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        try:
            ahead = iter(jobs)
            for _ in jobs:
                while len(waiting) < IN_FLIGHT * workers and (job := next(ahead, None)) is not None:
                    waiting.append(pool.submit(make, job))
                job, path, steps = waiting.popleft().result()
                with np.load(path) as file:
                    pictures, halves = file["pictures"], file["halves"]
                Path(path).unlink()
                yield job, pictures, halves, steps
        finally:
            for future in waiting:
                future.cancel()


# ---------------------------------------------------------------------------------------------- metrics, features


def metrics() -> dict[str, Callable[[Any, Any], Any]]:
    """Full-reference metrics of `piq` that need no network's weights, all as higher is better. Shape (N,) each."""
    import piq

    return {
        "haarpsi": lambda x, y: piq.haarpsi(x, y, reduction="none"),
        "mdsi": lambda x, y: 1 - piq.mdsi(x, y, reduction="none"),
        "gmsd": lambda x, y: -piq.gmsd(x, y, reduction="none"),
        "ms_gmsd": lambda x, y: -piq.multi_scale_gmsd(x, y, chromatic=True, reduction="none"),
        "fsim": lambda x, y: piq.fsim(x, y, reduction="none"),
        "vsi": lambda x, y: piq.vsi(x, y, reduction="none"),
        "srsim": lambda x, y: piq.srsim(x, y, chromatic=True, reduction="none"),
        "dss": lambda x, y: piq.dss(x, y, reduction="none"),
        "ssim": lambda x, y: piq.ssim(x, y, reduction="none"),
        "ms_ssim": lambda x, y: piq.multi_scale_ssim(x, y, reduction="none"),
        "iw_ssim": lambda x, y: piq.information_weighted_ssim(x, y, reduction="none"),
        "vif": lambda x, y: piq.vif_p(x, y, reduction="none"),
        "psnr": lambda x, y: piq.psnr(x, y, reduction="none"),
    }


QUICK: Final = ("haarpsi", "mdsi")  # of all versions; the rest of those kept


def measure(pictures: Any, reference: Any, names: Sequence[str]) -> dict[str, Array]:
    """Metrics of the versions of a photograph; NaN where one cannot be had.

    Args:
        pictures: RGB in [0, 1]. Shape (N, 3, H, W).
        reference: the photograph itself. Shape (1, 3, H, W).
    Returns:
        for each name an array of shape (N,).
    """
    import torch

    results = {}
    for name, metric in ((name, metrics()[name]) for name in names):
        parts = []
        for x in pictures.split(CHUNK):
            try:
                parts.append(metric(x, reference.expand_as(x).contiguous()).double().reshape(-1))
            except (AssertionError, RuntimeError, ValueError) as error:
                print(f"{name}: {str(error).splitlines()[0][:100]}", flush=True)
                parts.append(torch.full((len(x),), torch.nan, dtype=torch.float64, device=x.device))
        results[name] = torch.cat(parts).cpu().numpy()
    return results


def describe(scales: Sequence[Any], encoder: Any) -> Any:
    """As `contrique.encoder.features.extract_batch`, of pictures on the device. Shape (N, 2 * width), float32."""
    import torch

    parts = []
    for scale in scales:
        maps = [encoder.maps(x.contiguous(memory_format=torch.channels_last)) for x in scale.split(CHUNK)]
        totals = torch.cat([cells.sum((2, 3), dtype=torch.float64) for cells in maps])
        parts.append(torch.nn.functional.normalize(totals, dim=1))
    return torch.cat(parts, dim=1).float()


# ---------------------------------------------------------------------------------------------- the bank


def make_bank(options: argparse.Namespace) -> None:
    """Write BANK: features-*.npy (kept rows, float16), manifest.parquet (all rows), and what needs all versions."""
    import torch

    from contrique import images
    from contrique.encoder.weights import load_encoder

    began = time.monotonic()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder = load_encoder(options.encoder).to(device).to(memory_format=torch.channels_last)
    torch.backends.cudnn.allow_tf32 = False
    paths = sorted(p for folder in options.folders for p in folder.rglob("*") if p.suffix.lower() in images.EXTENSIONS)
    order = np.random.default_rng(SEED).permutation(len(paths))[: options.photographs or None]
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    features = []
    shared = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=shared) as folder, torch.inference_mode():
        jobs = [plan(paths[i], options.versions, options.keep, options.chains, folder) for i in order]
        print(f"{len(jobs)} photographs planned, {time.monotonic() - began:.0f} s", flush=True)
        for number, (job, pictures, halves, steps) in enumerate(stream(jobs, options.workers), 1):
            full, half = (
                torch.from_numpy(scale).to(device).permute(0, 3, 1, 2).float().div_(255) for scale in (pictures, halves)
            )
            values = describe((full, half), encoder)
            reference = full[[job.versions.index(Version("", 0))]]
            scores = measure(full, reference, QUICK)
            mask = np.flatnonzero(job.mask)
            rest = measure(full[torch.from_numpy(mask).to(device)], reference, [n for n in metrics() if n not in QUICK])
            for name, part in rest.items():
                scores[name] = np.full(len(full), np.nan)
                scores[name][mask] = part
            features.append(values)
            content = job.path.stem
            rows += [
                {
                    "content": content,
                    "distortion": version.distortion,
                    "level": version.level,
                    "steps": step,
                    "kept": keep,
                    **{name: value[i] for name, value in scores.items()},
                }
                for i, (version, step, keep) in enumerate(zip(job.versions, steps, job.mask, strict=True))
            ]
            if number % 50 == 0 or number == len(jobs):
                print(f"{number} photographs, {len(rows)} pictures, {time.monotonic() - began:.0f} s", flush=True)
            if time.monotonic() - began > 60 * options.minutes:
                print(f"stopped after {number} photographs", flush=True)
                break
    manifest = pd.DataFrame(rows)
    x = torch.cat(features)
    manifest.to_parquet(options.out / "manifest.parquet")
    mask = np.flatnonzero(manifest["kept"])
    halves_ = x[torch.from_numpy(mask).to(device)].half().cpu().numpy()
    for block, start in enumerate(range(0, len(halves_), BLOCK)):
        np.save(options.out / f"features-{block:02d}.npy", halves_[start : start + BLOCK])
    print(f"kept {len(mask)} of {len(manifest)}, {time.monotonic() - began:.0f} s", flush=True)
    fit_everything(x, manifest, options.out)
    print(f"everything fitted, {time.monotonic() - began:.0f} s", flush=True)
    diagnose(x, manifest, options.out)
    print(f"done, {time.monotonic() - began:.0f} s", flush=True)


ALPHAS: Final = tuple(10.0 ** (k / 2) for k in range(-6, 5))


def solve(x: Any, y: Any, alphas: Sequence[float], *, intercept: bool = True) -> tuple[Any, Any]:
    """Ridge for every alpha on the device, in float64: coefficients (A, D) and intercepts (A,)."""
    import torch

    x_mean = x.mean(0, dtype=torch.float64) if intercept else torch.zeros(x.shape[1], dtype=torch.float64).to(x.device)
    y_mean = y.mean() if intercept else torch.zeros((), dtype=torch.float64).to(x.device)
    gram, target = 0, 0
    for rows, labels in zip(x.split(8192), y.split(8192), strict=True):
        centred = rows.double() - x_mean
        gram, target = gram + centred.T @ centred, target + centred.T @ (labels - y_mean)
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    factors = (torch.linalg.cholesky(gram + alpha * eye) for alpha in alphas)
    coefs = torch.stack([torch.cholesky_solve(target[:, None], factor)[:, 0] for factor in factors])
    return coefs, y_mean - coefs @ x_mean


def fit_everything(x: Any, manifest: pd.DataFrame, out: Path) -> None:
    """Does a head of all versions rank unseen photographs better than one of those kept? `everything.json` says.

    Also `everything.npz`: heads for HaarPSI + MDSI of all versions (no reference, and distance to the reference).
    """
    import torch

    from contrique.metrics import srcc

    label = ((manifest["haarpsi"] + manifest["mdsi"]) / 2).to_numpy()
    y = torch.tensor(label, device=x.device)
    contents = manifest["content"].to_numpy(str)
    names = np.unique(contents)
    held_out = np.isin(contents, np.random.default_rng(SEED).permutation(names)[: max(1, len(names) // 5)])
    chains = (manifest["distortion"] == CHAIN).to_numpy()
    own = {
        name: i
        for i, name in zip(
            np.flatnonzero(manifest["distortion"] == ""), contents[manifest["distortion"] == ""], strict=True
        )
    }
    reference = torch.from_numpy(np.array([own[name] for name in contents])).to(x.device)
    distance = (x - x[reference]).abs()
    mask = manifest["kept"].to_numpy()
    parts = {"all": ~chains, "kept": mask & ~chains, "all+chains": chains | ~chains, "kept+chains": mask | chains}
    report: dict[str, Any] = {}
    arrays = {}
    for name, part in parts.items():
        for kind, values in (("nr", x), ("fr", distance)):
            train = torch.from_numpy(np.flatnonzero(part & ~held_out)).to(x.device)
            target = y if kind == "nr" else 1 - y
            coefs, offsets = solve(values[train], target[train], ALPHAS, intercept=kind == "nr")
            scores = {}
            for test, rows in (("bank", held_out & ~chains), ("chains", held_out & chains)):
                index = torch.from_numpy(np.flatnonzero(rows)).to(x.device)
                if len(index) < 3:
                    continue
                predictions = (values[index].double() @ coefs.T + offsets).cpu().numpy().T
                sign = 1 if kind == "nr" else -1
                scores[test] = [srcc(sign * row, label[rows]) for row in predictions]
            report[f"{kind} {name}"] = scores
            print(
                kind,
                name,
                {k: f"{max(v):.4f} at {ALPHAS[int(np.argmax(v))]:.3g}" for k, v in scores.items()},
                flush=True,
            )
        if name in ("all", "all+chains"):
            every = torch.from_numpy(np.flatnonzero(part)).to(x.device)
            for kind, values, target in (("nr", x, y), ("fr", distance, 1 - y)):
                coefs, offsets = solve(values[every], target[every], ALPHAS, intercept=kind == "nr")
                arrays[f"{kind}_{name}_coef"] = coefs.float().cpu().numpy()
                arrays[f"{kind}_{name}_intercept"] = offsets.cpu().numpy()
    np.savez(out / "everything.npz", alphas=np.array(ALPHAS), **arrays)
    (out / "everything.json").write_text(json.dumps(report, indent=1))


def diagnose(x: Any, manifest: pd.DataFrame, out: Path) -> None:
    """The head of distortions on all versions of the bank, chains left out: `diagnosis.npz`."""
    from contrique.regressor.diagnosis import fit_diagnosis

    rows = np.flatnonzero(manifest["distortion"] != CHAIN)
    part = manifest.iloc[rows]
    head, accuracy = fit_diagnosis(
        x.cpu().numpy()[rows], list(part["distortion"]), list(part["level"]), list(part["content"]), seed=SEED
    )
    if head is None:
        return
    np.savez(
        out / "diagnosis.npz",
        coef=head.coef.astype(np.float16),
        intercept=head.intercept,
        accuracy=np.float64(accuracy or 0),
        distortions=np.array(head.distortions),
        levels=np.array(head.levels),
    )
    print(f"diagnosis: accuracy {accuracy:.4f} on held-out photographs", flush=True)


# ---------------------------------------------------------------------------------------------- candidates


@dataclass(frozen=True)
class RatedSet:
    """A set that people scored.

    Attributes:
        x: features. Shape (N, D).
        y: scores, higher is better. Shape (N,).
        contents: what the bootstrap draws: references, or pictures. Length N.
        synthetic: whether it has references.
        references: features of each picture's reference, NaN where there is none. Shape (N, D).
    """

    x: Array
    y: Array
    contents: NDArray[np.str_]
    synthetic: bool
    references: Array


BLENDS: Final = {
    "HaarPSI + MDSI": ("haarpsi", "mdsi"),
    "HaarPSI": ("haarpsi",),
    "four metrics": ("haarpsi", "mdsi", "ms_gmsd", "ms_ssim"),
    "twelve metrics": (
        "haarpsi",
        "mdsi",
        "gmsd",
        "ms_gmsd",
        "fsim",
        "vsi",
        "srsim",
        "dss",
        "ssim",
        "ms_ssim",
        "iw_ssim",
        "vif",
    ),
}
BLEND: Final = "four metrics"
ALPHA: Final = 1.0  # best on the validation photographs (`everything.json` and the table), for every blend within .003
WEIGHT: Final = 0.02  # of a whole rated set, the bank being 1
OWN_ALPHA: Final = 0.1  # of heads of a few hundred human scores alone
FOLDS: Final = 10
REPEATS: Final = 10  # of the deal into folds
NEW: Final = 300  # pictures of the bank in the novelty bank


def read_pictures(paths: Sequence[Path], encoder: Path, cache: Path) -> Array:
    """Features of picture files, kept in a cache. Shape (N, D)."""
    from contrique import images
    from contrique.encoder.features import extract_one
    from contrique.encoder.weights import load_encoder

    key = hashlib.sha256(
        "\n".join([images.content_hash(p.read_bytes()) for p in [encoder, *paths]]).encode()
    ).hexdigest()
    file = cache / f"{key[:16]}.npy"
    if not file.exists():
        net = load_encoder(encoder)
        cache.mkdir(parents=True, exist_ok=True)
        np.save(file, np.stack([extract_one(images.read(path), net) for path in paths]))
    return np.load(file).astype(np.float64)


def list_readable(folders: Sequence[Path]) -> list[Path]:
    """Picture files below folders, less those that cannot be decoded, which are named."""
    from contrique import images

    paths = sorted(path for folder in folders for path in folder.rglob("*") if path.suffix.lower() in _suffixes())
    readable = []
    for path in paths:
        try:
            images.read(path)
        except images.BadImage as error:
            print(f"left out: {error}", flush=True)
        else:
            readable.append(path)
    return readable


def read_rated_set(folder: Path, synthetic: bool, encoder: Path, cache: Path) -> RatedSet:
    """A rated folder with its features."""
    table = pd.read_csv(folder / "labels.csv")
    y = table["mos"].to_numpy(float) if "mos" in table else -table["dmos"].to_numpy(float)
    x = read_pictures([folder / name for name in table["image"]], encoder, cache)
    contents = table["reference" if synthetic else "image"].to_numpy(str)
    references = np.full_like(x, np.nan)
    if synthetic:
        files = sorted((folder / "ref").iterdir())
        for path, row in zip(files, read_pictures(files, encoder, cache), strict=True):
            references[contents == path.stem] = row
    return RatedSet(x, y, contents, synthetic, references)


def read_bank(folder: Path) -> tuple[pd.DataFrame, Array]:
    """The kept rows of a bank and their features, row by row alike."""
    manifest = pd.read_parquet(folder / "manifest.parquet")
    manifest = manifest[manifest["kept"]].reset_index(drop=True)
    x = np.concatenate([np.load(path) for path in sorted(folder.glob("features-*.npy"))]).astype(np.float64)
    if len(x) != len(manifest):
        raise SystemExit(f"{folder}: {len(x)} rows of features, {len(manifest)} kept rows in the manifest")
    return manifest, x


def standardise(values: Array) -> Array:
    """Mean 0, standard deviation 1. Of the shape given."""
    return (values - values.mean()) / values.std()


def blend(manifest: pd.DataFrame, names: Sequence[str]) -> Array:
    """Mean of the metrics' ranks among all rows: 0 to 1, higher is better. Shape (N,)."""
    from scipy.stats import rankdata

    return np.mean([rankdata(manifest[name]) / len(manifest) for name in names], axis=0)


class Ridges:
    """Ridge heads on one set of bank rows, some of them moved by human scores.

    The sum of squared errors on the bank, labels standardised, plus for each rated set WEIGHT x (rows of the bank) x
    its mean squared error, scores standardised and features centred within the set (an intercept of its own), plus
    ALPHA |w|^2. Equivalently: human scores move the weak-label head only where the bank's pictures do not pin it down.

    Args:
        x: features of the bank. Shape (N, D).
    """

    def __init__(self, x: Array) -> None:
        from scipy import linalg

        self.mean, self.count = x.mean(axis=0), len(x)
        self.x = x - self.mean
        self.factor = linalg.cho_factor(self.x.T @ self.x + ALPHA * np.eye(x.shape[1]), check_finite=False)
        self.memory: dict[int, tuple[RatedSet, Array]] = {}  # keeps each set, so that its id stays its own

    def solve(self, right: Array) -> Array:
        """(Gram + ALPHA) ^ -1 times columns."""
        from scipy import linalg

        return np.asarray(linalg.cho_solve(self.factor, right, check_finite=False))

    def weak(self, labels: Array) -> Array:
        """The weak-label head. Shape (D,)."""
        return self.solve(self.x.T @ standardise(labels))

    def move(self, w: Array, sets: Sequence[tuple[RatedSet, Any]], weight: float = WEIGHT) -> Array:
        """The head of the bank's labels (`w` alone) and of rows of rated sets. Shape (D,)."""
        from scipy import linalg

        if not sets:
            return w
        h, y, penalty, solved = [], [], [], []
        for rated_set, rows in sets:
            if id(rated_set) not in self.memory:
                self.memory[id(rated_set)] = (rated_set, self.solve(rated_set.x.T))
            columns = self.memory[id(rated_set)][1][:, rows]
            h.append(rated_set.x[rows] - rated_set.x[rows].mean(axis=0))
            solved.append(columns - columns.mean(axis=1, keepdims=True))
            y.append(standardise(rated_set.y[rows]))
            penalty += [len(rows) / (weight * self.count)] * len(rows)
        rows_, columns_ = np.concatenate(h), np.concatenate(solved, axis=1)
        left = rows_ @ columns_ + np.diag(penalty)
        return np.asarray(w + columns_ @ linalg.solve(left, np.concatenate(y) - rows_ @ w))


def judge(scores: Array, rated_set: RatedSet, rows: Any = slice(None)) -> dict[str, float]:
    """SRCC, its 95 % bootstrap interval over contents, and n."""
    from contrique.metrics import interval, resample, srcc, srcc_resampled

    y, contents = rated_set.y[rows], rated_set.contents[rows]
    counts, _ = resample(list(contents), 1000, np.random.default_rng(SEED))
    low, high = interval(srcc_resampled(scores, y, counts), 0.95)
    return {"srcc": srcc(scores, y), "low": low, "high": high, "n": len(y), "contents": len(np.unique(contents))}


def deal(rated_set: RatedSet, seed: int) -> NDArray[np.intp]:
    """A fold for each picture, by content."""
    names, ids = np.unique(rated_set.contents, return_inverse=True)
    return (np.random.default_rng(seed).permutation(len(names)) % min(FOLDS, len(names)))[ids]


def out_of_fold(rated_set: RatedSet, head: Callable[[Any], Array]) -> dict[str, float]:
    """Judge scores of pictures whose content the head did not see; the median deal of REPEATS, its range beside it.

    Args:
        head: from row numbers of the set to coefficients.
    """
    judgements = []
    for seed in range(REPEATS if len(np.unique(rated_set.contents)) > FOLDS else 1):
        fold, scores = deal(rated_set, seed), np.empty(len(rated_set.y))
        for k in np.unique(fold):
            rows = np.flatnonzero(fold != k)
            # centred on the training rows: without an intercept folds would not be comparable
            scores[fold == k] = (
                rated_set.x[fold == k] - rated_set.x[rows].mean(axis=0) * centring_weight(head)
            ) @ head(rows)
        judgements.append(judge(scores, rated_set))
    judgements.sort(key=lambda judgement: judgement["srcc"])
    return judgements[len(judgements) // 2] | {"lowest": judgements[0]["srcc"], "highest": judgements[-1]["srcc"]}


def centring_weight(head: Any) -> float:
    """1 for a head of its set alone, whose intercept follows its fold; 0 for one with the bank's intercept."""
    return float(getattr(head, "alone", False))


def human(sets: Sequence[tuple[RatedSet, Any]]) -> Array:
    """The head of human scores alone, each set standardised and with an intercept of its own. Shape (D,)."""
    x = np.concatenate([rated_set.x[rows] - rated_set.x[rows].mean(axis=0) for rated_set, rows in sets])
    y = np.concatenate([standardise(rated_set.y[rows]) for rated_set, rows in sets])
    return np.asarray(x.T @ np.linalg.solve(x @ x.T + OWN_ALPHA * np.eye(len(x)), y))


def compare(manifest: pd.DataFrame, x: Array, sets: dict[str, RatedSet]) -> tuple[dict[str, Any], Ridges]:
    """Judge each candidate on each set: `unseen` where it saw none of its scores, `out_of_fold` where it saw others."""
    from contrique.metrics import srcc

    chains = (manifest["distortion"] == CHAIN).to_numpy()
    contents = manifest["content"].to_numpy(str)
    names = np.unique(contents)
    held_out = np.isin(contents, np.random.default_rng(SEED).permutation(names)[: max(1, len(names) // 5)])
    parts = {"": ~chains, " and camera chains": np.ones(len(x), bool)}
    full = {part: Ridges(x[rows]) for part, rows in parts.items()}
    train = {part: Ridges(x[rows & ~held_out]) for part, rows in parts.items()}
    everything = {name: np.arange(len(data.y)) for name, data in sets.items()}
    table: dict[str, Any] = {}

    def judge_unseen(head: Callable[[str], Array]) -> dict[str, Any]:
        return {name: judge(data.x @ head(name), data) for name, data in sets.items()}

    def others(name: str) -> list[tuple[RatedSet, Any]]:
        return [(data, everything[other]) for other, data in sets.items() if other != name]

    today = ((manifest["haarpsi"] + manifest["mdsi"]) / 2).to_numpy()
    labels = {f"ranks of {name}": blend(manifest, metrics_) for name, metrics_ in BLENDS.items()}
    for part, rows in parts.items():
        for name, label in {"mean of HaarPSI and MDSI (until now)": today, **labels}.items():
            w = full[part].weak(label[rows])
            validation = srcc(
                x[held_out & ~chains] @ train[part].weak(label[rows & ~held_out]), label[held_out & ~chains]
            )
            table[f"weak: {name}{part}"] = {"unseen": judge_unseen(lambda _, w=w: w), "validation": validation}
    ridges = full[""]
    w = ridges.weak(labels[f"ranks of {BLEND}"][~chains])
    table["human scores of the other sets"] = {"unseen": judge_unseen(lambda name: human(others(name)))}
    for weight in (0.01, WEIGHT, 0.1):
        table[f"weak ({BLEND}) joined with the other sets' scores at {weight:g}"] = {
            "unseen": judge_unseen(lambda name, weight=weight: ridges.move(w, others(name), weight)),
            "out_of_fold": {
                name: out_of_fold(
                    data,
                    lambda rows, data=data, name=name, weight=weight: ridges.move(
                        w, [*others(name), (data, rows)], weight
                    ),
                )
                for name, data in sets.items()
            },
        }

    def average(name: str) -> Array:
        scale = np.std(x[~chains] @ w)
        other = human(others(name))
        return w / scale + other / np.std(x[~chains] @ other)

    table[f"average of weak ({BLEND}) and human scores of the other sets"] = {"unseen": judge_unseen(average)}
    authentic = {name: data for name, data in sets.items() if not data.synthetic}
    peers = {name: [(o, everything[n]) for n, o in authentic.items() if n != name] for name in sets}
    for weight in (0.005, 0.01, WEIGHT, 0.05, 0.1):
        table[f"weak ({BLEND}) joined with authentic scores at {weight:g}"] = {
            "unseen": judge_unseen(lambda name, weight=weight: ridges.move(w, peers[name], weight)),
            "out_of_fold": {
                name: out_of_fold(
                    data,
                    lambda rows, data=data, name=name, weight=weight: ridges.move(
                        w, [*peers[name], (data, rows)], weight
                    ),
                )
                for name, data in authentic.items()
            },
        }
    alone = {}
    for name, data in sets.items():

        def own(rows: Any, data: RatedSet = data) -> Array:
            return human([(data, rows)])

        own.alone = True  # type: ignore[attr-defined]
        alone[name] = out_of_fold(data, own)
    table["the set's own scores alone"] = {"out_of_fold": alone}
    return table, ridges


# ---------------------------------------------------------------------------------------------- full reference


def fit_distance(distance: Array, loss: Array, alpha: float, *, positive: bool = False) -> Array:
    """Ridge without intercept of a loss of quality on distances of features, `positive` with no negative weight."""
    from scipy import linalg, optimize

    gram, target = distance.T @ distance, distance.T @ loss
    if not positive:
        return np.asarray(linalg.solve(gram + alpha * np.eye(len(gram)), target, assume_a="pos"))
    size = np.sqrt(np.diag(gram) + alpha)
    gram, penalty, target = gram / size[:, None] / size, alpha / size**2, target / size

    def energy(w: Array) -> tuple[float, Array]:
        image = gram @ w + penalty * w
        return float(0.5 * w @ image - target @ w), image - target

    results = optimize.minimize(
        energy,
        np.zeros(len(target)),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0, None)] * len(target),
        options={"maxiter": 600, "maxfun": 900},
    )
    return np.asarray(results.x / size)


def compare_distances(manifest: pd.DataFrame, x: Array, sets: dict[str, RatedSet], label: Array) -> tuple[Any, Array]:
    """The full-reference table, and the coefficients of the chosen head for a loss of 0 to 100."""
    from contrique.metrics import srcc

    contents = manifest["content"].to_numpy(str)
    own = {contents[i]: i for i in np.flatnonzero(manifest["distortion"] == "")}
    distance = np.abs(x - x[[own[name] for name in contents]])
    loss = np.where(manifest["distortion"] == "", 0.0, 100 * (1 - label))
    names = np.unique(contents)
    held_out = np.isin(contents, np.random.default_rng(SEED).permutation(names)[: max(1, len(names) // 5)])
    chains = (manifest["distortion"] == CHAIN).to_numpy()
    distances = {
        name: (np.abs(data.x - data.references)[ok], ok)
        for name, data in sets.items()
        if data.synthetic and (ok := np.flatnonzero(np.isfinite(data.references[:, 0]))).size
    }
    table: dict[str, Any] = {}
    for part, rows in {"25 x 5": ~chains, "25 x 5 and camera chains": np.ones(len(x), bool)}.items():
        for positive in (False, True):
            for alpha in (ALPHA, 10.0):
                w = fit_distance(distance[rows & ~held_out], loss[rows & ~held_out], alpha, positive=positive)
                score = -distance @ w
                is_distorted = held_out & (label < 0.95)
                table[f"weak, {part}, alpha {alpha:g}{', no negative weight' if positive else ''}"] = {
                    **{name: judge(-d @ w, sets[name], ok) for name, (d, ok) in distances.items()},
                    "bank": srcc(score[held_out & ~chains], label[held_out & ~chains]),
                    "chains": srcc(score[held_out & chains], label[held_out & chains]),
                    "at the anchor though changed": float(np.mean(score[is_distorted] >= 0)),
                }
    own_scores = {}
    for name, (d, ok) in distances.items():
        data, scores = sets[name], np.empty(len(ok))
        y, groups = data.y[ok], data.contents[ok]
        for content in np.unique(groups):
            k = groups != content
            dual = np.linalg.solve(d[k] @ d[k].T + OWN_ALPHA * np.eye(int(k.sum())), y[k].max() - y[k])
            scores[~k] = -d[~k] @ (d[k].T @ dual)
        own_scores[name] = judge(scores, data, ok)
    table["own scores, leave one content out"] = own_scores
    return table, fit_distance(distance, loss, ALPHA)


# ---------------------------------------------------------------------------------------------- files


def fit_head(options: argparse.Namespace) -> None:
    """Judge the candidates, write the chosen heads."""
    cache = options.out / "features"
    manifest, x = read_bank(options.bank)
    places = [(item, True) for item in options.synthetic] + [(item, False) for item in options.authentic]
    sets = {
        item.partition("=")[0]: read_rated_set(Path(item.partition("=")[2]), synthetic, options.encoder, cache)
        for item, synthetic in places
    }
    print(f"bank {x.shape}, rated {', '.join(f'{name} {data.x.shape[0]}' for name, data in sets.items())}", flush=True)
    table, ridges = compare(manifest, x, sets)
    print("no reference: judged", flush=True)
    label = blend(manifest, BLENDS[BLEND])
    unit = (label - label.min()) / (label.max() - label.min())
    distances, losses = compare_distances(manifest, x, sets, unit)
    print("full reference: judged", flush=True)
    files = write_files(options, manifest, x, sets, ridges, label, losses)
    result = {"no_reference": table, "full_reference": distances, "files": files}
    (options.out / "candidates.json").write_text(json.dumps(result, indent=1, default=float) + "\n")
    show(table, distances, list(sets))
    print(json.dumps(files, indent=1, default=float))


def write_files(
    options: argparse.Namespace,
    manifest: pd.DataFrame,
    x: Array,
    sets: dict[str, RatedSet],
    ridges: Ridges,
    label: Array,
    losses: Array,
) -> dict[str, Any]:
    """Write `regressor/` and `full_reference.npz`; what is in them."""
    from contrique.metrics import srcc
    from contrique.regressor.diagnosis import Diagnosis
    from contrique.regressor.full_reference import FullReference
    from contrique.regressor.head import Head, RegressorSummary
    from contrique.regressor.reliability import Novelty, conformal_radius, fit_novelty
    from contrique.regressor.ridge import Ridge

    bank = (manifest["distortion"] != CHAIN).to_numpy()
    contents = manifest["content"].to_numpy(str)
    values, names, y = x[bank], contents[bank], label[bank]
    authentic = [(data, np.arange(len(data.y))) for data in sets.values() if not data.synthetic]
    spread, middle = y.std(), y.mean()
    w = spread * ridges.move(ridges.weak(y), authentic)
    ridge = Ridge(w, float(middle - ridges.mean @ w), ALPHA)
    scores = np.empty(len(y))
    unique, ids = np.unique(names, return_inverse=True)
    fold = (np.random.default_rng(SEED).permutation(len(unique)) % 5)[ids]
    for k in range(5):
        rows = fold != k
        part = Ridges(values[rows])
        v = y[rows].std() * part.move(part.weak(y[rows]), authentic)
        scores[~rows] = y[rows].mean() + (values[~rows] - part.mean) @ v
    low, high = float(np.quantile(scores, 0.002)), float(np.quantile(scores, 0.998))
    everyday = list_readable(options.everyday)
    unrated = (
        read_pictures(everyday, options.encoder, options.out / "features") if everyday else np.empty((0, x.shape[1]))
    )
    order = np.random.default_rng(SEED).permutation(len(values))
    train = np.concatenate([values[order[:NEW]], unrated])
    train_names = [*names[order[:NEW]], *(path.stem for path in everyday)]
    novelty = fit_novelty(train, train_names, values[order[NEW:][:1500]], list(names[order[NEW:][:1500]]), seed=SEED)
    half = Novelty(novelty.bank.astype(np.float16), novelty.threshold) if novelty else None
    with np.load(options.bank / "diagnosis.npz") as file:
        diagnosis = Diagnosis(
            file["coef"].astype(np.float16),
            file["intercept"].astype(np.float32),
            tuple(map(str, file["distortions"])),
            tuple(map(int, file["levels"])),
        )
        accuracy = float(file["accuracy"])
    radius = conformal_radius(y - scores)
    summary = RegressorSummary(
        labels="weak",
        label_low=low,
        label_high=high,
        alpha=ALPHA,
        n=len(y) + sum(len(r) for _, r in authentic),
        contents=len(unique),
        validation_n=len(y),
        validation_srcc=srcc(scores, y),
        features_dim=len(w),
        interval=radius,
        interval_n=len(y),
        diagnosis_accuracy=accuracy,
    )
    folder = options.out / "regressor"
    Head(ridge, summary, half, diagnosis).save(folder)
    FullReference(losses, 100.0, ALPHA).save(options.out / "full_reference.npz")

    def points(features: Array) -> Array:
        return np.clip(100 * (ridge.predict(features) - low) / (high - low), 0, 100)

    def spread_of(features: Array) -> list[float]:
        return [float(v) for v in np.quantile(points(features), [0.05, 0.25, 0.5, 0.75, 0.95])]

    wide = Novelty(half.bank.astype(np.float32), half.threshold) if half else None
    groups = {
        "bank": values,
        "pristine": values[(manifest["distortion"] == "").to_numpy()[bank]],
        "chains": x[~bank],
        "everyday": unrated,
        **{name: data.x for name, data in sets.items()},
    }
    groups = {name: group for name, group in groups.items() if len(group)}
    return {
        "interval, points": float(radius or 0) * 100 / (high - low),
        "quantiles (5 25 50 75 95 %), points": {name: spread_of(group) for name, group in groups.items()},
        "share called unlike": {n: float(np.mean(wide.distance(g) > 1)) for n, g in groups.items()} if wide else {},
        "novelty, largest error of float16": float(
            np.max(np.abs(wide.distance(values[::9]) - novelty.distance(values[::9])))
        )
        if wide and novelty
        else None,
        "bytes": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
        "summary": asdict(summary),
    }


def _suffixes() -> frozenset[str]:
    from contrique.images import EXTENSIONS

    return EXTENSIONS


def show(table: dict[str, Any], distances: dict[str, Any], names: Sequence[str]) -> None:
    """Both tables as Markdown."""

    def cell(judgement: dict[str, float] | None) -> str:
        return f"{judgement['srcc']:.3f} [{judgement['low']:.3f}, {judgement['high']:.3f}]" if judgement else "-"

    print(
        "| head | "
        + " | ".join(f"{name}, unseen" for name in names)
        + " | "
        + " | ".join(f"{name}, out of fold" for name in names)
        + " | bank |"
    )
    print("|---" * (2 * len(names) + 2) + "|")
    for head, row in table.items():
        cells = [cell(row.get(kind, {}).get(name)) for kind in ("unseen", "out_of_fold") for name in names]
        print(f"| {head} | " + " | ".join(cells) + f" | {row.get('validation', float('nan')):.3f} |")
    print("| full reference | " + " | ".join(names) + " | bank | chains | at the anchor though changed |")
    for head, row in distances.items():
        rest = [f"{row[key]:.3f}" if key in row else "-" for key in ("bank", "chains", "at the anchor though changed")]
        print(f"| {head} | " + " | ".join(cell(row.get(name)) for name in names) + " | " + " | ".join(rest) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    bank = commands.add_parser("bank", help="features and metrics of synthesized pictures")
    bank.add_argument("folders", type=Path, nargs="+", help="of pristine photographs")
    bank.add_argument("--encoder", type=Path, required=True)
    bank.add_argument("--out", type=Path, required=True)
    bank.add_argument("--photographs", type=int, default=0, help="at most; 0 for all")
    bank.add_argument("--versions", type=int, default=125, help="of the bank, of each photograph")
    bank.add_argument("--keep", type=int, default=24, help="of them with features and all metrics in the bank")
    bank.add_argument("--chains", type=int, default=8, help="camera chains of each photograph")
    bank.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    bank.add_argument("--minutes", type=float, default=1e9, help="stop making pictures after so many")
    bank.set_defaults(run=make_bank)
    fit = commands.add_parser("fit", help="judge the candidates and write the chosen heads")
    fit.add_argument("--encoder", type=Path, required=True)
    fit.add_argument("--bank", type=Path, required=True)
    fit.add_argument("--synthetic", action="append", default=[], metavar="NAME=FOLDER")
    fit.add_argument("--authentic", action="append", default=[], metavar="NAME=FOLDER")
    fit.add_argument("--everyday", type=Path, action="append", default=[], help="unrated pictures")
    fit.add_argument("--out", type=Path, required=True)
    fit.set_defaults(run=fit_head)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
