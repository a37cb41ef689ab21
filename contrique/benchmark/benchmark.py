"""The paper's table: an encoder on public sets, own set and across sets, beside baselines and published figures.

    contrique benchmark --data tid2013:PATH --data koniq10k:PATH --encoder ENCODER.safetensors --out DIR

A linear head is fitted to each set's human scores and judged by the protocol of spec section 5, out of fold; then
fitted on the whole of one set and judged on another; and, given a synthesized set, fitted to weak labels that nobody
gave. Contents that two sets share are left out of the fit. Features are kept by the content of encoder and picture, so
that a second run, or one with another set, computes what is new.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from contrique.benchmark import tables
from contrique.benchmark.methods import Features, Method, compute_features, hash_encoder, list_methods
from contrique.benchmark.sets import BenchmarkError, JudgedSet, find_shared_contents, open_set, open_weak
from contrique.benchmark.tables import WEAK
from contrique.config import Config
from contrique.data.manifest import as_manifest
from contrique.evaluation.judgement import CROSS_SET, OPINION_UNAWARE, Judgement
from contrique.evaluation.protocol import cross_validate, transfer
from contrique.files import write_aside
from contrique.metrics import EvaluationError
from contrique.regressor.cross_validation import Learner, full_reference_learner
from contrique.regressor.ridge import RegressorError

if TYPE_CHECKING:
    from contrique.encoder.network import Encoder


RESULT: Final = "benchmark.json"
MARKDOWN: Final = "benchmark.md"
PAGE: Final = "benchmark.html"
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
    methods = list_methods(encoder, name, baselines, config)
    judged = [open_set(item, bits=bits) for item in data]
    names = [item.name for item in judged]
    if len(set(names)) < len(names) or WEAK in names:
        raise BenchmarkError(f"the sets are called {', '.join(names)}; give each a name of its own, as NAME:PATH")
    fitted = judged + ([open_weak(distorted, weak_pictures, seed)] if distorted else [])
    shared = _shared(fitted, bits)
    cache = cache or out / "features"
    results = {method.name: _judge(method, judged, fitted, shared, cache, config, seed) for method in methods}
    benchmark = Benchmark(
        encoder={
            "name": name,
            "arch": encoder.arch,
            "sha256": hash_encoder(encoder),
            "precision": config.features.precision,
        },
        seed=seed,
        resamples=config.evaluation.resamples,
        confidence=config.evaluation.confidence,
        sets={item.name: _facts(item) for item in fitted},
        methods=results,
        published=_published(names),
    )
    _write(benchmark.as_dict(), out)
    return benchmark


def _shared(sets: Sequence[JudgedSet], bits: int) -> dict[tuple[str, str], tuple[set[str], bool]]:
    """Contents of one set that another has too, by the names of both, and whether key points were compared."""
    pairs_of = {}
    for a, b in combinations(sets, 2):
        pairs, few = find_shared_contents(a, b, bits=bits)
        pairs_of[a.name, b.name] = {content for content, _ in pairs}, few
        pairs_of[b.name, a.name] = {content for _, content in pairs}, few
    return pairs_of


def _published(names: Sequence[str]) -> dict[str, dict[str, tuple[float, float | None]]]:
    """Published SRCC and PLCC of some sets, by method."""
    figures: dict[str, dict[str, tuple[float, float | None]]] = {}
    for method, text in _PUBLISHED.items():
        for name, cell in zip(_PUBLISHED_SETS, text.split(), strict=True):
            if name in names and cell != "-":
                srcc, _, plcc = cell.partition("/")
                figures.setdefault(method, {})[name] = float(srcc), float(plcc) if plcc else None
    return figures


def _facts(item: JudgedSet) -> dict[str, Any]:
    return {
        "title": item.title,
        "pictures": len(item.rows),
        "contents": int(item.rows["reference"].nunique()),
        "low": float(item.labels.min()),
        "high": float(item.labels.max()),
        "notes": list(item.notes),
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
    features = {item.name: compute_features(item, method, cache) for item in fitted}
    alphas = sorted(config.regressor.alphas)
    own, full_reference = {}, {}
    for item in judged:
        values = features[item.name]
        own[item.name] = _own(method.name, item, values, method.learner, config, seed)
        if method.full_reference and item.references:
            files, each = np.unique(item.references, return_inverse=True)
            values = np.abs(compute_features(_pictures_of(item, files), method, cache)[each] - values)
            learner = full_reference_learner(alphas, item.perfect)
            full_reference[item.name] = _own(method.name, item, values, learner, config, seed)
    across = {
        a.name: {
            b.name: _across(method, a, b, features, *shared[a.name, b.name], config, seed)
            for b in judged
            if a.name != b.name
        }
        for a in fitted
    }
    return MethodResult(own, full_reference, across)


def _pictures_of(item: JudgedSet, references: Iterable[str]) -> JudgedSet:
    """The reference pictures of a set, as a set of their own."""
    rows = as_manifest([{"image": str(path)} for path in references])
    return replace(item, name=f"{item.name}, references", rows=rows)


def _own(
    name: str,
    item: JudgedSet,
    values: Features,
    learner: Learner,
    config: Config,
    seed: int,
) -> Judgement:
    try:
        return cross_validate(
            values,
            item.rated(),
            learner,
            config=config.evaluation,
            seed=seed,
            official=item.official,
        )
    except (EvaluationError, RegressorError) as error:
        raise BenchmarkError(f"{item.name}: {name} cannot be judged on it: {error}") from error


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
    try:
        judgement = transfer(
            features[fitted.name][rows],
            fitted.rated(rows),
            features[judged.name],
            judged.rated(),
            method.learner,
            config=config.evaluation,
            seed=seed,
            protocol=OPINION_UNAWARE if fitted.name == WEAK else CROSS_SET,
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
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        is_current = content["format"] == _FORMAT
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BenchmarkError(f"{path}: not a readable benchmark ({error}); run `contrique benchmark` again") from error
    if not is_current:
        raise BenchmarkError(f"{path}: another format than {_FORMAT}; run `contrique benchmark` again")
    return content


def _write(content: Mapping[str, Any], out: Path) -> None:
    files = {
        RESULT: json.dumps(content, indent=2, allow_nan=False) + "\n",
        MARKDOWN: tables.render_markdown(content),
        PAGE: tables.render_page(content),
    }
    for name, text in files.items():
        with write_aside(out / name) as aside:
            aside.write_text(text, encoding="utf-8")
