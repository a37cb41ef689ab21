"""One self-contained HTML page about a run: data, pictures, training, figures with intervals, and the verdict."""

import base64
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from contrique.config import Config, as_dict
from contrique.errors import ContriqueError
from contrique.storage import write_aside

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

LABELS = {
    "human": "human opinion scores",
    "weak": "weak labels (full-reference metrics, never rated by a person)",
}
METRICS = {
    "srcc": "SRCC",
    "plcc": "PLCC, raw scores",
    "plcc_logistic": "PLCC after the logistic",
    "krcc": "KRCC",
    "rmse": "RMSE, raw scores",
    "rmse_logistic": "RMSE after the logistic",
}
SHEET_ROWS = 6  # distortions shown, of one photograph, at every level
THUMBNAIL = 192  # pixels of the longer side
_BLUE, _GREY = "#2563a8", "#8a939d"


class ReportError(ContriqueError):
    """A file of the run that the report needs is missing or damaged; the message names it."""


def write(
    out: Path,
    *,
    dataset: Path,
    distorted: Path,
    encoder: Path,
    evaluation: Path,
    verdict: Path,
    validation: Mapping[str, Any],
    outcome: Mapping[str, Any],
    config: Config,
    profile: str,
    seed: int,
) -> None:
    """Write the page; it links to nothing outside itself and reads on a phone.

    Args:
        out: the HTML file.
        dataset: picture set with `lineage.json`.
        distorted: picture set synthesized from it.
        encoder: folder with `history.jsonl`.
        evaluation: folder with `evaluation.json` and `test_scores.parquet`.
        verdict: JSON file of the gate.
        validation: what `validation.validate` found.
        outcome: name, version and alias of the registered model, or of the champion that stayed; empty if none.
        config: resolved configuration.
        profile, seed: of the run.
    Raises:
        ReportError: a file is missing or damaged.
    """
    import jinja2
    import pandas as pd

    history = [json.loads(line) for line in _text(encoder / "history.jsonl").splitlines()]
    judged = _json(evaluation / "evaluation.json")
    scores = pd.read_parquet(evaluation / "test_scores.parquet")
    page = jinja2.Environment(
        loader=jinja2.PackageLoader("contrique"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page.filters["number"] = _number
    html = page.get_template("report.html").render(
        lineage=_json(dataset / "lineage.json"),
        validation=validation,
        outcome=outcome,
        verdict=_json(verdict),
        evaluation=judged,
        labels=LABELS[judged["labels"]],
        weak=judged["labels"] == "weak",
        judgements=list(_judgements(judged)),
        metrics=METRICS,
        sheet=contact_sheet(distorted),
        training=_svg(training_curve(history)) if history else "",
        first=history[0]["loss"] if history else None,
        last=history[-1]["loss"] if history else None,
        steps=history[-1]["step"] if history else 0,
        scatter=_svg(score_scatter(scores, judged["labels"])),
        slices=_svg(slice_bars(judged["protocol"]["slices"])) if judged["protocol"]["slices"] else "",
        config=json.dumps(as_dict(config), indent=2),
        profile=profile,
        seed=seed,
    )
    with write_aside(out) as aside:
        aside.write_text(html, encoding="utf-8")


def _judgements(evaluation: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield f"Cross-validated: {evaluation['protocol']['protocol']}", evaluation["protocol"]
    if evaluation["opinion_unaware"]:
        yield "Opinion-unaware: fitted on weak labels, judged on human scores", evaluation["opinion_unaware"]
    yield "Fixed test part: challenger", evaluation["challenger"]
    if evaluation["champion"]:
        version = evaluation["champion_version"]
        yield f"Fixed test part: champion{f' (version {version})' if version else ''}", evaluation["champion"]


def contact_sheet(distorted: Path) -> dict[str, list[tuple[int, str]]]:
    """A few distortions of one photograph at every level, as data URIs of small JPEGs.

    Args:
        distorted: synthesized picture set.
    Returns:
        distortion to (level, data URI), levels rising; empty if the set holds no distorted picture.
    """
    from PIL import Image

    from contrique.dataset import picture, read_manifest
    from contrique.images import fit_within

    manifest = read_manifest(distorted)
    rows = manifest[manifest["distortion"].astype(bool)]
    if rows.empty:
        return {}
    rows = rows[rows["reference"] == sorted(rows["reference"])[0]]
    names = sorted(set(rows["distortion"]))
    shown = [names[i] for i in sorted(set(np.linspace(0, len(names) - 1, SHEET_ROWS).round().astype(int)))]
    sheet: dict[str, list[tuple[int, str]]] = {name: [] for name in shown}
    for row in rows[rows["distortion"].isin(shown)].sort_values("level").itertuples():
        buffer = io.BytesIO()
        Image.fromarray(fit_within(picture(distorted, row), THUMBNAIL)).save(buffer, "JPEG", quality=90)
        uri = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
        sheet[str(row.distortion)].append((int(row.level), uri))
    return sheet


def training_curve(history: list[dict[str, float]]) -> "Figure":
    """Loss and learning rate against the step."""
    figure, axes = _figure(3.2)
    steps = [entry["step"] for entry in history]
    axes.plot(steps, [entry["loss"] for entry in history], color=_BLUE, marker=".", markersize=3)
    axes.set(xlabel="step", ylabel="contrastive loss")
    rate = axes.twinx()
    rate.plot(steps, [entry["lr"] for entry in history], color=_GREY, linestyle="--", linewidth=1)
    rate.set_ylabel("learning rate (dashed)")
    return figure


def score_scatter(scores: "pd.DataFrame", labels: str) -> "Figure":
    """Challenger's scores of the test part against their labels, with the 4-parameter logistic.

    Args:
        scores: columns challenger and label.
        labels: `human` or `weak`.
    """
    from contrique import metrics

    figure, axes = _figure(4.2)
    x, y = scores["challenger"].to_numpy(), scores["label"].to_numpy()
    axes.scatter(x, y, s=12, alpha=0.6, color=_BLUE, linewidths=0)
    try:
        line = np.linspace(x.min(), x.max(), 200)
        axes.plot(line, metrics.logistic(line, metrics.fit_logistic(x, y)), color="black", linewidth=1.2)
        caption = "score before the logistic (line)"
    except metrics.EvaluationError as error:
        caption = f"score (no logistic: {error})"
    axes.set(xlabel=caption, ylabel="MOS" if labels == "human" else "weak label")
    return figure


def slice_bars(slices: Mapping[str, Mapping[str, Any]]) -> "Figure":
    """SRCC of each distortion with its interval; where it is undefined, the name stands without a bar."""
    figure, axes = _figure(max(1.6, 0.28 * len(slices) + 0.8))
    order = sorted(slices, key=lambda name: slices[name]["srcc"]["value"] if slices[name]["srcc"] else -2.0)
    for place, name in enumerate(order):
        if estimate := slices[name]["srcc"]:
            axes.barh(place, estimate["value"], color=_BLUE, height=0.6)
            axes.plot([estimate["low"], estimate["high"]], [place, place], color="black", linewidth=1)
    axes.set_yticks(range(len(order)), [f"{name} ({slices[name]['n']})" for name in order])
    axes.set(xlabel="SRCC, with interval", xlim=(-1, 1), ylim=(-0.6, len(order) - 0.4))
    axes.axvline(0, color=_GREY, linewidth=0.8)
    return figure


def _figure(height: float) -> tuple["Figure", Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, height), layout="constrained")
    return figure, figure.add_subplot()


def _svg(figure: "Figure") -> str:
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "contrique", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ReportError(f"{path}: cannot be read ({error.strerror}); run the stage that writes it again") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(_text(path))
    except ValueError as error:
        raise ReportError(f"{path}: not valid JSON ({error}); run the stage that writes it again") from error
    return content
