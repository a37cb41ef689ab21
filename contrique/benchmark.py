"""The paper's table: an encoder on public sets, own set and across sets, beside baselines and published figures.

    contrique benchmark --data tid2013:PATH --data koniq10k:PATH --encoder ENCODER.safetensors --out DIR

A linear head is fitted to each set's human scores and judged by the protocol of spec section 5, out of fold; then
fitted on the whole of one set and judged on another; and, given a synthesized set, fitted to weak labels that nobody
gave. Contents that two sets share are left out of the fit. Features are kept by the content of encoder and picture, so
that a second run, or one with another set, computes what is new.
"""

import hashlib
import json
import math
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib import metadata
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from contrique import benchmark_tables, dataset, evaluation, leaks, public_sets
from contrique.benchmark_tables import WEAK
from contrique.config import Config
from contrique.errors import ContriqueError
from contrique.evaluation import Judgement, Learner
from contrique.images import Picture, content_hash
from contrique.metrics import EvaluationError
from contrique.regressor import RegressorError
from contrique.storage import write_aside

if TYPE_CHECKING:
    from contrique.encoder import Encoder

RESULT: Final = "benchmark.json"
MARKDOWN: Final = "benchmark.md"
PAGE: Final = "benchmark.html"
BASELINES: Final = ("untrained", "brisque")
UNTRAINED_SEEDS: Final = (1000, 1001, 1002)
MAX_SCENE_PAIRS: Final = 5000  # of contents compared by key points, some 10 ms each; more are compared by hashes alone
_CHUNK: Final = 256  # pictures whose features are written at once
_FORMAT: Final = 1

# SRCC/PLCC as published, trained and tested on the same set (spec section 5), by method and in the order of these sets
_PUBLISHED_SETS: Final = ("live", "csiq", "tid2013", "kadid10k", "koniq10k", "clive", "flive", "spaq")
_PUBLISHED: Final = {
    "CONTRIQUE-FR, paper, full-reference": ".966 .956 .909 .946 - - - -",
    "CONTRIQUE, paper": ".960/.961 .942/.955 .843/.857 .934/.937 .894/.906 .845/.857 .580/.641 .914/.919",
    "CONTRIQUE, re-run by QualiCLIP's authors": "- - - - .874 .806 .596 .910",
    "Re-IQA": ".970/.971 .947/.960 .804/.861 .872/.885 .914/.923 .840/.854 .645/.733 .918/.925",
    "ARNIQA": ".966/.970 .962/.973 .880/.901 .908/.912 .864/.876 .791/.830 .595/.671 .905/.910",
    "BRISQUE": ".939 .746 .604 .528 .665 .313 .237 .526",
}

Features = NDArray[Any]
Describe = Callable[[Iterable[Picture]], Features]


class BenchmarkError(ContriqueError):
    """A set, a picture or a baseline with which no table can be made; the message names it."""


# -------------------------------------------------------------------------------------------------------- sets


@dataclass(frozen=True)
class JudgedSet:
    """Pictures to fit a head on or to be judged on.

    Attributes:
        name: in tables of two sets, and what published figures are looked up by.
        title: as in papers.
        folder: of the pictures.
        rows: manifest rows with a label; no two contents share a picture.
        seen: manifest rows by which its contents are compared with another set's: of a synthesized set its photographs.
        label: column of `rows` that holds it, `mos` or `weak_label`.
        official: part of each row where the set comes in a split of its own, else empty.
        references: file of each row's reference picture, relative to `folder`; empty where there are none.
        perfect: declared label of an undistorted picture.
        notes: what a reader of its figures should know.
    """

    name: str
    title: str
    folder: Path
    rows: pd.DataFrame
    seen: pd.DataFrame
    label: str = "mos"
    official: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    perfect: float = math.nan
    notes: tuple[str, ...] = ()

    @property
    def contents(self) -> list[str]:
        """Of each row."""
        return list(self.rows["reference"])

    @property
    def labels(self) -> NDArray[np.float64]:
        """Of each row, higher is better. Shape (N,)."""
        return np.asarray(self.rows[self.label], dtype=np.float64)

    @cached_property
    def scenes(self) -> dict[str, leaks.KeyPoints]:
        """Key points of the best picture of each content."""
        best = self.seen.sort_values(self.label, kind="stable").drop_duplicates("reference", keep="last")
        bar = tqdm(dataset.rows_of(best), f"{self.name}: scenes", delay=2, unit="content", disable=None)
        return {str(row.reference): leaks.key_points(dataset.picture(self.folder, row)) for row in bar}


def open_set(data: str, *, bits: int) -> JudgedSet:
    """Read a judged set where it lies.

    Args:
        data: NAME:PATH or PATH; the path of a public set as distributed (then NAME is one of `public_sets.SETS`), of a
            folder with `labels.csv`, or of a picture set. Without NAME it is called as its folder.
        bits: by which near-duplicates differ at most; contents that share one are taken as one.
    Raises:
        BenchmarkError: no such folder, neither of the three, no human scores.
        DatasetError, PublicSetError: it cannot be read.
    """
    name, colon, path = data.partition(":")
    if not colon or Path(data).exists():
        name, path = Path(data).resolve().name, data
    folder, notes = Path(path), []
    official: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    public = public_sets.SETS.get(name)
    if not folder.is_dir():
        raise BenchmarkError(
            f"{data}: no folder {path or '.'!r}; give NAME:PATH or PATH of a judged set on this machine"
        )
    if (folder / dataset.MANIFEST).is_file():
        rows = dataset.read_manifest(folder)
    elif (folder / dataset.LABELS).is_file():
        rows = dataset.import_folder(dataset.Source(folder, "labelled"))
        rows["reference"] = name + ":" + rows["reference"].str.partition(":")[2]
    elif public:
        rows = public_sets.read(name, folder)
        official = tuple(rows["split"]) if public.official_split else ()
        references = tuple(public_sets.reference_pictures(rows))
    else:
        raise BenchmarkError(
            f"{data}: neither a labels.csv nor a manifest.parquet in it; name the public set that it is, one of "
            f"{', '.join(public_sets.SETS)}, as NAME:PATH"
        )
    if not official:
        rows = rows[rows["mos"].notna() & (rows["split"] != "pretrain")].reset_index(drop=True)
    if rows.empty:
        raise BenchmarkError(f"{data}: no human scores in it; a benchmark needs them")
    if public and len(rows) != public.pictures:
        notes.append(f"{len(rows)} of the {public.pictures} pictures of {public.title}; published figures are of all")
    merged = leaks.merge_contents(rows, bits=bits, loader=lambda row: dataset.picture(folder, row))
    fewer = rows["reference"].nunique() - merged.nunique()
    if fewer:
        notes.append(f"{fewer} contents share a picture with another and are taken as one with it")
    parts = pd.Series(official).groupby(merged.to_numpy()).nunique() if official else pd.Series()
    if (parts > 1).any():
        notes.append(f"{int((parts > 1).sum())} contents are in more than one part of its official split")
    rows = rows.assign(reference=merged)
    return JudgedSet(
        name,
        public.title if public else name,
        folder,
        rows,
        rows,
        official=official,
        references=references if all(references) else (),
        perfect=public.high if public else math.nan,
        notes=tuple(notes),
    )


def open_weak(folder: Path, count: int, seed: int) -> JudgedSet:
    """A random sample of the weak-labelled pictures of a synthesized set, to fit an opinion-unaware head on.

    Args:
        folder: picture set of `contrique synthesize` or of a run; pictures of judged parts are left out.
        count: pictures at most.
        seed: of the sample.
    Raises:
        BenchmarkError: no weak labels of two photographs or more.
        DatasetError: no picture set.
    """
    manifest = dataset.read_manifest(folder)
    rows = dataset.pretrain_rows(manifest)
    if rows["reference"].nunique() < 2:
        raise BenchmarkError(
            f"{folder}: weak labels of {rows['reference'].nunique()} photographs in part `pretrain`; "
            "give the distorted set of a run, or make one with `contrique synthesize`"
        )
    rows = rows.sample(min(len(rows), count), random_state=seed).sort_index().reset_index(drop=True)
    seen = manifest[(manifest["distortion"] == "") & manifest["reference"].isin(rows["reference"])]
    note = f"{len(rows)} synthesized pictures of {rows['reference'].nunique()} photographs"
    return JudgedSet(WEAK, WEAK, folder, rows, seen, "weak_label", notes=(note,))


def shared_contents(a: JudgedSet, b: JudgedSet, *, bits: int) -> tuple[set[tuple[str, str]], bool]:
    """Contents that two sets have in common: by name, file, perceptual hash and, if they are few, key points.

    Args:
        a, b: the sets.
        bits: by which near-duplicates differ at most.
    Returns:
        pairs (content of a, content of b), and whether key points were compared: only they see a crop.
    """
    seen = [one.seen.assign(folder=str(one.folder)) for one in (a, b)]
    pairs = leaks.shared_contents(*seen, bits=bits, loader=lambda row: dataset.picture(Path(row.folder), row))
    few = int(a.seen["reference"].nunique()) * int(b.seen["reference"].nunique()) <= MAX_SCENE_PAIRS
    if few:
        pairs |= leaks.same_scenes(a.scenes, b.scenes, f"{a.name}, {b.name}: same scenes")
    return pairs, few


# ----------------------------------------------------------------------------------------------------- methods


@dataclass(frozen=True)
class Method:
    """What is compared: features of a picture, and how a head on them is learned.

    Attributes:
        name: in the tables.
        key: of its cached features; another key wherever they could differ.
        describe: from pictures to features, row by row.
        learner: from features to the predictions of every candidate.
        candidates: what its candidates are called.
        full_reference: whether it is judged as a full-reference method too, where a set has reference pictures.
    """

    name: str
    key: str
    describe: Describe
    learner: Learner
    candidates: Sequence[float]
    full_reference: bool = False


def encoder_hash(encoder: "Encoder") -> str:
    """SHA-256 of an encoder's architecture and weights, in hex, wherever they came from."""
    digest = hashlib.sha256(encoder.arch.encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def methods(encoder: "Encoder", name: str, baselines: Sequence[str], config: Config) -> list[Method]:
    """The encoder with a ridge, and the baselines asked for.

    Args:
        encoder: in eval mode.
        name: of it, in the tables.
        baselines: any of BASELINES: `untrained`, the same network with random weights of each of UNTRAINED_SEEDS, and
            `brisque`, with a support vector regressor.
        config: alphas, and the precision of the features.
    Raises:
        BenchmarkError: an unknown baseline.
    """
    import torch

    from contrique.baselines import COSTS, brisque_features, svr_learner
    from contrique.encoder import Encoder
    from contrique.features import extract

    for baseline in baselines:
        if baseline not in BASELINES:
            raise BenchmarkError(f"unknown baseline '{baseline}'; choose one of {', '.join(BASELINES)}")
    alphas, precision = sorted(config.regressor.alphas), config.features.precision

    def of_encoder(name: str, net: Encoder) -> Method:
        key = f"{net.arch}-{precision}-{encoder_hash(net)[:16]}"
        return Method(
            name, key, lambda pictures: extract(pictures, net, precision), evaluation.ridge_learner(alphas), alphas
        )

    chosen = [replace(of_encoder(name, encoder), full_reference=True)]
    if "untrained" in baselines:
        device = next(encoder.parameters()).device
        for seed in UNTRAINED_SEEDS:
            net = Encoder(encoder.arch, seed=seed).eval().requires_grad_(False)
            net = net.to(device).to(memory_format=torch.channels_last)
            chosen.append(of_encoder(f"{encoder.arch}, untrained, seed {seed}", net))
    if "brisque" in baselines:
        chosen.append(
            Method(
                "BRISQUE + SVR",
                f"brisque-piq-{metadata.version('piq')}",
                brisque_features,
                svr_learner(),
                COSTS,
            )
        )
    return chosen


def describe(judged: JudgedSet, method: Method, cache: Path) -> Features:
    """Features of every picture of a set, computed where the cache lacks them.

    Args:
        judged: the set.
        method: whose features.
        cache: folder of features by `method.key` and the SHA-256 of the picture's file.
    Returns:
        shape (N, D).
    Raises:
        BenchmarkError: a picture without features (too small, or flat); damaged cache.
    """
    rows = dataset.rows_of(judged.rows)
    hashes = [row.sha256 or content_hash(dataset.picture_bytes(judged.folder, row)) for row in rows]
    known = dict(_cached(cache / method.key))
    missing = list({sha: row for sha, row in zip(hashes, rows, strict=True) if sha not in known}.items())
    with tqdm(total=len(missing), desc=f"{method.name}: {judged.name}", unit="img", delay=1, disable=None) as bar:
        for start in range(0, len(missing), _CHUNK):
            names, chunk = zip(*missing[start : start + _CHUNK], strict=True)
            values = _described(judged.folder, chunk, method, bar)
            _keep(cache / method.key, names, values)
            known |= dict(zip(names, values, strict=True))
    return np.stack([known[sha] for sha in hashes])


def _described(folder: Path, rows: Sequence[Any], method: Method, bar: "tqdm[Any]") -> Features:
    from contrique.baselines import BaselineError
    from contrique.features import ImageTooSmall

    at = ""

    def pictures() -> Iterator[Picture]:
        nonlocal at
        for row in rows:
            at = str(row.image)
            yield dataset.picture(folder, row)
            bar.update()

    try:
        return method.describe(pictures())
    except (BaselineError, ImageTooSmall) as error:  # they know the picture, not its name
        raise BenchmarkError(f"{folder / at}: no features for {method.name}: {error}") from error


def _cached(folder: Path) -> Iterator[tuple[str, Features]]:
    for path in sorted(folder.glob("*.npz")):
        try:
            with np.load(path, allow_pickle=False) as file:
                yield from zip(file["sha256"].tolist(), file["features"], strict=True)
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise BenchmarkError(f"{path}: damaged cache of features ({error}); delete it and run again") from error


def _keep(folder: Path, hashes: Sequence[str], values: Features) -> None:
    name = content_hash("".join(hashes).encode())[:16]
    with write_aside(folder / f"{name}.npz") as aside, aside.open("wb") as file:
        np.savez(file, sha256=np.asarray(hashes, dtype=str), features=values)


# ----------------------------------------------------------------------------------------------------- results


@dataclass(frozen=True)
class Cell:
    """A head fitted on one set and judged on another.

    Attributes:
        judgement: None where it cannot be judged.
        left_out: contents of the fitted set that the judged one shows too; they were not fitted to.
        crops_seen: whether contents were compared by key points, which see other crops of a photograph.
        reason: why there is no judgement.
    """

    judgement: Judgement | None
    left_out: int
    crops_seen: bool
    reason: str = ""


@dataclass(frozen=True)
class MethodResult:
    """All figures of one method.

    Attributes:
        own: out of fold, by set.
        full_reference: likewise, of the anchored full-reference variant, by set with reference pictures.
        across: fitted on (a set, or WEAK), judged on.
    """

    own: dict[str, Judgement]
    full_reference: dict[str, Judgement]
    across: dict[str, dict[str, Cell]]


@dataclass(frozen=True)
class Benchmark:
    """What `benchmark.json` holds.

    Attributes:
        encoder: name, arch, sha256 of its weights, precision of the features.
        seed, resamples, confidence: of splits and bootstrap.
        sets: by name: title, pictures, contents, lowest and highest label, notes.
        methods: by name, the encoder first.
        published: SRCC and PLCC of other people's methods on the whole of the sets judged here, by method and set.
    """

    encoder: dict[str, str]
    seed: int
    resamples: int
    confidence: float
    sets: dict[str, dict[str, Any]]
    methods: dict[str, MethodResult]
    published: dict[str, dict[str, tuple[float, float | None]]]
    format: int = _FORMAT

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values, as in `benchmark.json`."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self), allow_nan=False))
        return plain


def run(
    data: Sequence[str],
    encoder: "Encoder",
    out: Path,
    *,
    config: Config,
    name: str = "CONTRIQUE, this encoder",
    distorted: Path | None = None,
    weak_pictures: int = 2000,
    baselines: Sequence[str] = (),
    cache: Path | None = None,
    seed: int = 0,
) -> Benchmark:
    """Judge an encoder on some sets and write the table.

    Args:
        data: sets as `open_set` takes them.
        encoder: in eval mode.
        out: folder to write `benchmark.json`, `benchmark.md` and `benchmark.html` to.
        config: protocol and bootstrap, alphas, precision.
        name: of the encoder, in the tables.
        distorted: synthesized set whose weak labels an opinion-unaware head is fitted to; None for no such row.
        weak_pictures: how many of them.
        baselines: any of BASELINES.
        cache: folder of features to keep and use; `out/features` by default.
        seed: of splits, bootstrap and the sample of weak-labelled pictures.
    Returns:
        what was written.
    Raises:
        BenchmarkError: a set that cannot be judged, two of one name.
    """
    bits = config.evaluation.near_duplicate_bits
    chosen = methods(encoder, name, baselines, config)
    judged = [open_set(one, bits=bits) for one in data]
    names = [one.name for one in judged]
    if len(set(names)) < len(names) or WEAK in names:
        raise BenchmarkError(f"the sets are called {', '.join(names)}; give each a name of its own, as NAME:PATH")
    fitted = judged + ([open_weak(distorted, weak_pictures, seed)] if distorted else [])
    shared = _shared(fitted, bits)
    cache = cache or out / "features"
    made = {method.name: _judge(method, judged, fitted, shared, cache, config, seed) for method in chosen}
    told = Benchmark(
        encoder={
            "name": name,
            "arch": encoder.arch,
            "sha256": encoder_hash(encoder),
            "precision": config.features.precision,
        },
        seed=seed,
        resamples=config.evaluation.resamples,
        confidence=config.evaluation.confidence,
        sets={one.name: _facts(one) for one in fitted},
        methods=made,
        published=_published(names),
    )
    _write(told.as_dict(), out)
    return told


def _shared(sets: Sequence[JudgedSet], bits: int) -> dict[tuple[str, str], tuple[set[str], bool]]:
    """Contents of one set that another has too, by the names of both, and whether key points were compared."""
    found = {}
    for a, b in combinations(sets, 2):
        pairs, few = shared_contents(a, b, bits=bits)
        found[a.name, b.name] = {content for content, _ in pairs}, few
        found[b.name, a.name] = {content for _, content in pairs}, few
    return found


def _published(names: Sequence[str]) -> dict[str, dict[str, tuple[float, float | None]]]:
    """Published SRCC and PLCC of some sets, by method."""
    figures: dict[str, dict[str, tuple[float, float | None]]] = {}
    for method, text in _PUBLISHED.items():
        for name, cell in zip(_PUBLISHED_SETS, text.split(), strict=True):
            if name in names and cell != "-":
                srcc, _, plcc = cell.partition("/")
                figures.setdefault(method, {})[name] = float(srcc), float(plcc) if plcc else None
    return figures


def _facts(one: JudgedSet) -> dict[str, Any]:
    return {
        "title": one.title,
        "pictures": len(one.rows),
        "contents": int(one.rows["reference"].nunique()),
        "low": float(one.labels.min()),
        "high": float(one.labels.max()),
        "notes": list(one.notes),
    }


def _judge(
    method: Method,
    judged: Sequence[JudgedSet],
    fitted: Sequence[JudgedSet],
    shared: Mapping[tuple[str, str], tuple[set[str], bool]],
    cache: Path,
    config: Config,
    seed: int,
) -> MethodResult:
    features = {one.name: describe(one, method, cache) for one in fitted}
    alphas = sorted(config.regressor.alphas)
    own, full_reference = {}, {}
    for one in judged:
        values = features[one.name]
        own[one.name] = _own(method.name, one, values, method.learner, method.candidates, config, seed)
        if method.full_reference and one.references:
            files, each = np.unique(one.references, return_inverse=True)
            values = np.abs(describe(_pictures_of(one, files), method, cache)[each] - values)
            learner = evaluation.full_reference_learner(alphas, one.perfect)
            full_reference[one.name] = _own(method.name, one, values, learner, alphas, config, seed)
    across = {
        a.name: {
            b.name: _across(method, a, b, features, *shared[a.name, b.name], config, seed)
            for b in judged
            if a.name != b.name
        }
        for a in fitted
    }
    return MethodResult(own, full_reference, across)


def _pictures_of(one: JudgedSet, references: Iterable[str]) -> JudgedSet:
    """The reference pictures of a set, as a set of their own."""
    rows = dataset.as_manifest([{"image": str(path)} for path in references])
    return replace(one, name=f"{one.name}, references", rows=rows)


def _own(
    name: str,
    one: JudgedSet,
    values: Features,
    learner: Learner,
    candidates: Sequence[float],
    config: Config,
    seed: int,
) -> Judgement:
    try:
        return evaluation.cross_validate(
            values,
            one.labels,
            one.contents,
            list(one.rows["distortion"]),
            learner,
            candidates,
            config=config.evaluation,
            seed=seed,
            official=one.official,
        )
    except (EvaluationError, RegressorError) as error:
        raise BenchmarkError(f"{one.name}: {name} cannot be judged on it: {error}") from error


def _across(
    method: Method,
    fitted: JudgedSet,
    judged: JudgedSet,
    features: Mapping[str, Features],
    shared: set[str],
    crops_seen: bool,
    config: Config,
    seed: int,
) -> Cell:
    rows = np.flatnonzero(~fitted.rows["reference"].isin(shared))
    contents = np.asarray(fitted.contents, dtype=str)[rows]
    try:
        judgement = evaluation.transfer(
            features[fitted.name][rows],
            fitted.labels[rows],
            list(contents),
            features[judged.name],
            judged.labels,
            judged.contents,
            list(judged.rows["distortion"]),
            method.learner,
            method.candidates,
            config=config.evaluation,
            seed=seed,
            protocol=evaluation.OPINION_UNAWARE if fitted.name == WEAK else evaluation.CROSS_SET,
        )
    except (EvaluationError, RegressorError) as error:
        return Cell(None, len(shared), crops_seen, str(error))
    return Cell(judgement, len(shared), crops_seen)


def read(path: Path) -> dict[str, Any]:
    """A `benchmark.json`, for `benchmark_tables`.

    Raises:
        BenchmarkError: missing, damaged or of another format.
    """
    try:
        told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        known = told["format"] == _FORMAT
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BenchmarkError(f"{path}: not a readable benchmark ({error}); run `contrique benchmark` again") from error
    if not known:
        raise BenchmarkError(f"{path}: another format than {_FORMAT}; run `contrique benchmark` again")
    return told


def _write(told: Mapping[str, Any], out: Path) -> None:
    files = {
        RESULT: json.dumps(told, indent=2, allow_nan=False) + "\n",
        MARKDOWN: benchmark_tables.markdown(told),
        PAGE: benchmark_tables.page(told),
    }
    for name, content in files.items():
        with write_aside(out / name) as aside:
            aside.write_text(content, encoding="utf-8")
