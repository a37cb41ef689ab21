"""What people read of a run: one self-contained HTML page, and the model card that goes with the model."""

import base64
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from contrique import pages
from contrique.config import Config, as_dict, resolve
from contrique.errors import ContriqueError
from contrique.files import sha256, write_aside

if TYPE_CHECKING:
    import jinja2
    import pandas as pd

    from contrique import images
    from contrique.regressor.head import Head
    from contrique.reports import figures


LABELS = {
    "human": "human opinion scores",
    "weak": "weak labels (full-reference metrics, never rated by a person)",
}
LABEL = {"human": "MOS", "weak": "weak label"}  # one of them
METRICS = {
    "srcc": "SRCC",
    "plcc": "PLCC, raw scores",
    "plcc_logistic": "PLCC after the logistic",
    "krcc": "KRCC",
    "rmse": "RMSE, raw scores",
    "rmse_logistic": "RMSE after the logistic",
}
TILE = (192, 144)  # width and height, in pixels, of a tile of the contact sheet, at the picture's own scale
THUMBNAIL = 240  # pixels of the longer side


class ReportError(ContriqueError):
    """A file of the run that the report needs is missing or damaged; the message names it."""


@dataclass(frozen=True)
class Rule:
    """One line of the gate: what was observed, the bound, and whether it was met; observed None where undefined."""

    name: str
    observed: float | None
    bound: str
    met: bool


@dataclass(frozen=True)
class Sheet:
    """The contact sheet of one photograph.

    Attributes:
        photograph: data URI of the whole of it.
        rows: distortion to (level, data URI of the middle of the picture at its own scale), levels rising.
    """

    photograph: str
    rows: dict[str, list[tuple[int, str]]]


@dataclass(frozen=True)
class Shown:
    """A picture of the test part.

    Attributes:
        uri: data URI of a thumbnail.
        content: which photograph it shows.
        version: its distortion and level, or its kind.
        predicted, label: by the challenger and as given, both on the labels' scale.
    """

    uri: str
    content: str
    version: str
    predicted: float
    label: float


@dataclass(frozen=True)
class Trained:
    """A trained and judged model: where its files are, and how it was made.

    Attributes:
        extract: folder of `evaluation.extract.keep_extract`.
        encoder: folder with `encoder.safetensors` and `history.jsonl`.
        regressor: folder with `regressor.json`.
        evaluation: folder with `evaluation.json` and `test_scores.parquet`.
        verdict: JSON file of the gate.
        config: resolved configuration.
        profile: of the run, where the configuration started from.
        run: name of the pipeline run, which is the name of its MLflow run.
        code: git revision of the code.
    """

    extract: Path
    encoder: Path
    regressor: Path
    evaluation: Path
    verdict: Path
    config: Config
    profile: str
    run: str = ""
    code: str = ""


class Artifact(Protocol):
    """What a step of a pipeline is handed."""

    path: str


def trained_here(
    extract: Artifact,
    encoder: Artifact,
    regressor: Artifact,
    evaluation: Artifact,
    verdict: Artifact,
    *,
    profile: str,
    overrides: Mapping[str, Any],
) -> Trained:
    """The model of the pipeline run that this process is a step of, made by this code.

    Args:
        extract, encoder, regressor, evaluation, verdict: as in `Trained`.
        profile, overrides: as `config.resolve` takes them.
    Raises:
        RegistryError: this is no step of a pipeline run.
    """
    from contrique.tracking.revision import read_code_revision
    from contrique.tracking.runs import current_pipeline_run

    return Trained(
        Path(extract.path),
        Path(encoder.path),
        Path(regressor.path),
        Path(evaluation.path),
        Path(verdict.path),
        config=resolve(profile, overrides),
        profile=profile,
        run=current_pipeline_run(),
        code=read_code_revision(),
    )


def write(
    out: Path,
    trained: Trained,
    *,
    findings: Path,
    outcome: Mapping[str, Any],
    cross_set: Path | None = None,
) -> None:
    """Write the page; it loads nothing from outside itself, reads on a phone and follows light and dark mode.

    Args:
        out: the HTML file.
        trained: the model.
        findings: JSON file of `validation.examine`.
        outcome: name, version and alias of the registered model, or of the champion that stayed; empty if none.
        cross_set: HTML fragment with the cross-set matrix, if one was made; it is put in as it is.
    Raises:
        ReportError: a file is missing or damaged.
    """
    import pandas as pd

    from contrique.evaluation.extract import FEATURE_SAMPLE, SHEET, TEST_PICTURES

    told = _told(trained)
    card = _card(told, trained)
    scores = pd.read_parquet(trained.evaluation / "test_scores.parquet")
    html = _render(
        "report.html",
        told
        | {
            "validation": _json(findings)["summary"],
            "outcome": outcome,
            "card": card,
            "card_uri": _uri(card.encode(), "text/markdown"),
            "cross_set": _text(cross_set) if cross_set else "",
            "sheet": contact_sheet(trained.extract / SHEET),
            "extremes": extremes(scores, trained.extract / TEST_PICTURES),
        }
        | _figures(told, scores, trained.extract / FEATURE_SAMPLE),
    )
    with write_aside(out) as aside:
        aside.write_text(html, encoding="utf-8")


def model_card(trained: Trained) -> str:
    """The model card (Mitchell et al., FAT* 2019) as Markdown, from the model's own files and nothing else.

    Raises:
        ReportError: a file is missing or damaged.
    """
    return _card(_told(trained), trained)


def _card(told: dict[str, Any], trained: Trained) -> str:
    return _render("model_card.md", told | _card_facts(told))


def _told(trained: Trained) -> dict[str, Any]:
    """What page and card both say."""
    from contrique.artifacts import ENCODER, HISTORY
    from contrique.encoder.weights import read_metadata
    from contrique.evaluation.judgement import TEST_PART
    from contrique.regressor.head import Head

    weights = trained.encoder / ENCODER
    try:
        recipe, head = read_metadata(weights), Head.load(trained.regressor)
    except ContriqueError as error:
        raise ReportError(str(error)) from error
    judged, verdict = _json(trained.evaluation / "evaluation.json"), _json(trained.verdict)
    return {
        "lineage": _json(trained.extract / "lineage.json"),
        "history": list(_lines(trained.encoder / HISTORY)),
        "recipe": recipe,
        "encoder_hash": sha256(weights),
        "regressor": asdict(head.summary),
        "conformal": _conformal(head),
        "evaluation": judged,
        "judgements": list(_judgements(judged)),
        "test_part": TEST_PART,
        "labels": LABELS[judged["labels"]],
        "label": LABEL[judged["labels"]],
        "weak": judged["labels"] == "weak",
        "metrics": METRICS,
        "verdict": verdict,
        "reason": verdict["reason"].partition(": ")[2] or verdict["reason"],
        "rules": list(_rules(verdict)),
        "config": json.dumps(as_dict(trained.config), indent=2),
        "changed": _changed(trained.config, trained.profile),
        "model": trained.config.registry.model,
        "profile": trained.profile,
        "seed": judged["seed"],
        "run": trained.run,
        "code": trained.code,
    }


def _conformal(head: "Head") -> str:
    """The interval that comes with a score, in words; empty for a regressor without."""
    from contrique.regressor.reliability import COVERAGE

    if head.half_width is None:
        return ""
    residuals = head.summary.interval_n
    return f"{COVERAGE:.0%} conformal, ± {head.half_width:.1f} points, from {residuals} residuals out of fold"


def _judgements(evaluation: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield f"Cross-validated: {evaluation['protocol']['protocol']}", evaluation["protocol"]
    if evaluation["opinion_unaware"]:
        yield "Opinion-unaware: fitted on weak labels, judged on human scores", evaluation["opinion_unaware"]
    yield "Fixed test part: challenger", evaluation["challenger"]
    if evaluation["champion"]:
        version = evaluation["champion_version"]
        yield f"Fixed test part: champion{f' (version {version})' if version else ''}", evaluation["champion"]


def _rules(verdict: dict[str, Any]) -> Iterator[Rule]:
    """The rules of `gate.decide` that this verdict was made by."""
    numbers, thresholds = verdict["numbers"], verdict["thresholds"]

    def at_least(name: str, value: float | None, bound: float) -> Rule:
        return Rule(name, value, f"≥ {bound:.3f}", value is not None and value >= bound)

    yield at_least("SRCC of the challenger", numbers.get("challenger_srcc"), thresholds["floor"])
    if "difference_low" in numbers:
        name = "minus the champion's, lower bound"
        yield at_least(name, numbers["difference_low"], -thresholds["margin"])
    for name, part in numbers.get("slices", {}).items():
        if part["n"] >= thresholds["min_slice"] and part["champion"] is not None:
            fall, bound = part["fall"], thresholds["slice_margin"]
            met = fall is not None and fall <= bound
            yield Rule(f"fall of SRCC on {name} ({part['n']} pictures)", fall, f"≤ {bound:.3f}", met)


def _changed(config: Config, profile: str) -> dict[str, Any]:
    """Options that differ from the profile's, by dotted name."""
    start = as_dict(resolve(profile))
    return {
        f"{stage}.{name}": value
        for stage, section in as_dict(config).items()
        for name, value in section.items()
        if value != start[stage][name]
    }


def _card_facts(told: dict[str, Any]) -> dict[str, Any]:
    """What the card alone says: limits that follow from the figures, licences, the command that made the model."""
    from contrique.distortions import NAMES
    from contrique.encoder.architectures import MIN_SIDE
    from contrique.images import MAX_PIXELS
    from contrique.regressor.head import DIRECTION, RANGE

    slices = told["evaluation"]["protocol"]["slices"]
    defined = {name: part["srcc"] for name, part in slices.items() if part["srcc"]}
    return {
        "range": RANGE,
        "direction": DIRECTION,
        "min_side": MIN_SIDE,
        "max_megapixels": MAX_PIXELS // 10**6,
        "shown": sorted(name for name, srcc in defined.items() if srcc["low"] > 0),
        "not_shown": sorted(name for name, srcc in defined.items() if not srcc["low"] > 0),
        "undefined": sorted(slices.keys() - defined.keys()),
        "unjudged": [name for name in NAMES if name not in slices],
        "licences": told["lineage"]["licences"],
        "licence": metadata.metadata("contrique")["License-Expression"],
        "command": _command(told),
    }


def _command(told: dict[str, Any]) -> str:
    import shlex

    lineage = told["lineage"]
    words = ["python", "-m", "pipelines", "run", "--data", lineage["source"], "--profile", told["profile"]]
    words += ["--revision", lineage["revision"]] if lineage["revision"] else []
    words += ["--seed", str(told["seed"])]
    for name, value in told["changed"].items():
        words += ["--param", f"{name}={json.dumps(value)}"]
    return shlex.join(words)


def _figures(told: Mapping[str, Any], scores: "pd.DataFrame", features: Path) -> dict[str, str | list[Any]]:
    """Every figure of the page by its name in the template; empty where there is nothing to draw."""
    from contrique.reports import figures

    history, slices = told["history"], told["evaluation"]["protocol"]["slices"]
    probes = figures.probe_curve(history)
    feature_map, legend = _feature_map(features, told["seed"])
    training = "Contrastive loss and learning rate against the training step"
    against = f"Predicted score against {told['label']} of {len(scores)} test pictures"
    by_slice = "Bars: SRCC of each distortion with its interval"
    return {
        "training": figures.svg(figures.training_curve(history), "training", training) if history else "",
        "probes": figures.svg(probes, "probes", "Accuracy of the linear probes against the step") if probes else "",
        "scatter": figures.svg(figures.score_scatter(scores, told["label"]), "scatter", against),
        "slices": figures.svg(figures.slice_bars(slices), "slices", by_slice) if slices else "",
        "feature_map": feature_map,
        "legend": legend,
    }


def _feature_map(features: Path, seed: int) -> "tuple[str, list[tuple[str, list[figures.Key]]]]":
    """The t-SNE figure and its legend by family; empty with too few pictures."""
    from itertools import groupby

    from contrique.encoder.feature_set import load_set
    from contrique.reports import figures

    manifest, values = load_set(features)
    if len(values) < 5:
        return "", []
    distortions = list(manifest["distortion"])
    drawn = figures.feature_map(figures.embed(values, seed), distortions)
    text = f"Scatter of the features of {len(values)} pictures in the plane (t-SNE), marked by distortion"
    legend = [(family, list(own)) for family, own in groupby(figures.keys(distortions), lambda key: key.family)]
    return figures.svg(drawn, "features", text), legend


def contact_sheet(distorted: Path) -> Sheet | None:
    """Every distortion of one photograph at every level, as small JPEGs.

    Args:
        distorted: synthesized picture set.
    Returns:
        the sheet, of the first photograph in order of name; None if the set holds no distorted picture.
    """
    from contrique.data.manifest import read_manifest, read_picture
    from contrique.distortions import NAMES
    from contrique.evaluation.extract import pick_sheet

    manifest = pick_sheet(read_manifest(distorted))
    rows = manifest[manifest["distortion"].astype(bool)].sort_values("level")
    if rows.empty:
        return None
    sheet: dict[str, list[tuple[int, str]]] = {name: [] for name in NAMES if name in set(rows["distortion"])}
    for row in rows.itertuples():
        sheet[str(row.distortion)].append((int(row.level), _jpeg(_middle(read_picture(distorted, row)), 85)))
    whole = manifest[manifest["distortion"] == ""]
    photograph = next((_thumbnail(read_picture(distorted, row)) for row in whole.itertuples()), "")
    return Sheet(photograph, sheet)


def _middle(pixels: "images.Picture") -> "images.Picture":
    height, width = pixels.shape[:2]
    left, top = max(0, (width - TILE[0]) // 2), max(0, (height - TILE[1]) // 2)
    return pixels[top : top + TILE[1], left : left + TILE[0]]


def extremes(scores: "pd.DataFrame", *sets: Path) -> dict[str, list[Shown]]:
    """The test pictures that the challenger puts highest and lowest, and those it is most wrong about.

    Args:
        scores: columns image, reference, distortion, label, challenger.
        sets: the picture sets that hold them.
    Returns:
        heading to at most `extract.EXTREMES` pictures, the most extreme first.
    Raises:
        ReportError: a picture is in none of the sets.
    """
    from contrique.data.manifest import read_manifest, read_picture
    from contrique.evaluation.extract import pick_extremes

    found = {(row.image, row.reference): (folder, row) for folder in sets for row in read_manifest(folder).itertuples()}

    def shown(row: Any) -> Shown:
        if (row.image, row.reference) not in found:
            raise ReportError(f"{row.image}: judged, but in none of {list(map(str, sets))}; evaluate those sets again")
        folder, source = found[row.image, row.reference]
        name = f"{row.distortion or source.kind} {source.level or ''}".strip()
        uri = _thumbnail(read_picture(folder, source))
        return Shown(uri, row.reference, name, float(row.challenger), float(row.label))

    return {heading: [shown(row) for row in rows.itertuples()] for heading, rows in pick_extremes(scores).items()}


def _thumbnail(pixels: "images.Picture") -> str:
    from contrique.images import fit_within

    return _jpeg(fit_within(pixels, THUMBNAIL), 85)


def _jpeg(pixels: "images.Picture", quality: int) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "JPEG", quality=quality)
    return _uri(buffer.getvalue(), "image/jpeg")


def _uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _render(template: str, values: Mapping[str, Any]) -> str:
    return _environment().get_template(template).render(values)


def _environment() -> "jinja2.Environment":
    from contrique.reports.figures import readable

    page = pages.environment(trim_blocks=True, lstrip_blocks=True)
    page.filters |= {"number": _number, "readable": readable, "cell": _cell}
    return page


def _number(value: Any) -> str:
    return "undefined" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def _cell(value: Any) -> str:
    """A value inside a Markdown table: a bar or a line break would end its cell."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ReportError(f"{path}: cannot be read ({error.strerror}); run the stage that writes it again") from error


def _json(path: Path) -> dict[str, Any]:
    return _parsed(_text(path), path)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    return (_parsed(line, path) for line in _text(path).splitlines())


def _parsed(text: str, path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise ReportError(f"{path}: not valid JSON ({error}); run the stage that writes it again") from error
    return content
