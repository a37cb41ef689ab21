"""What people read of a run: one self-contained HTML page."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contrique.artifacts import TEST_SCORES
from contrique.files import write_aside
from contrique.reports.card import render_card
from contrique.reports.facts import Trained, collect_facts, read_json, read_text
from contrique.reports.render import render
from contrique.reports.tiles import contact_sheet, data_uri, disagreements, extremes

if TYPE_CHECKING:
    import pandas as pd

    from contrique.reports import figures


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

    from contrique.evaluation.disagreement import TOLERANCE
    from contrique.evaluation.extract import FEATURE_SAMPLE, SHEET, TEST_PICTURES

    facts = collect_facts(trained)
    card = render_card(facts)
    scores = pd.read_parquet(trained.evaluation / TEST_SCORES)
    html = render(
        "report.html",
        facts
        | {
            "validation": read_json(findings)["summary"],
            "outcome": outcome,
            "card": card,
            "card_uri": data_uri(card.encode(), "text/markdown"),
            "cross_set": read_text(cross_set) if cross_set else "",
            "sheet": contact_sheet(trained.extract / SHEET),
            "extremes": extremes(scores, trained.extract / TEST_PICTURES),
            "disagreements": disagreements(scores, trained.extract / TEST_PICTURES),
            "tolerance": TOLERANCE,
        }
        | _draw_figures(facts, scores, trained.extract / FEATURE_SAMPLE),
    )
    with write_aside(out) as aside:
        aside.write_text(html, encoding="utf-8")


def publish(out: Path, trained: Trained, *, findings: Path, outcome: Mapping[str, Any]) -> None:
    """`write` the page of a pipeline run, and keep it with its MLflow run as `report/report.html`.

    Raises:
        ReportError: as `write`.
        RegistryError: MLflow cannot be reached; the page is written.
    """
    from contrique.tracking.runs import Runs

    write(out, trained, findings=findings, outcome=outcome)
    Runs(trained.config.registry).open(trained.run).log_page(out, "report/report.html")


def _draw_figures(facts: Mapping[str, Any], scores: "pd.DataFrame", features: Path) -> dict[str, str | list[Any]]:
    """Every figure of the page by its name in the template; empty where there is nothing to draw."""
    from contrique.reports import figures

    history, slices = facts["history"], facts["evaluation"]["protocol"]["slices"]
    probes = figures.probe_curve(history)
    feature_map, legend = _draw_feature_map(features, facts["seed"])
    training = "Contrastive loss and learning rate against the training step"
    against = f"Predicted score against {facts['label']} of {len(scores)} test pictures"
    by_slice = "Bars: SRCC of each distortion with its interval"
    return {
        "training": figures.svg(figures.training_curve(history), "training", training) if history else "",
        "probes": figures.svg(probes, "probes", "Accuracy of the linear probes against the step") if probes else "",
        "scatter": figures.svg(figures.score_scatter(scores, facts["label"]), "scatter", against),
        "slices": figures.svg(figures.slice_bars(slices), "slices", by_slice) if slices else "",
        "feature_map": feature_map,
        "legend": legend,
    }


def _draw_feature_map(features: Path, seed: int) -> "tuple[str, list[tuple[str, list[figures.Key]]]]":
    """The t-SNE figure and its legend by family; empty with too few pictures."""
    from itertools import groupby

    from contrique.encoder.feature_set import load_set
    from contrique.reports import figures

    manifest, values = load_set(features)
    if len(values) < 5:
        return "", []
    distortions = list(manifest["distortion"])
    figure = figures.feature_map(figures.embed(values, seed), distortions)
    text = f"Scatter of the features of {len(values)} pictures in the plane (t-SNE), marked by distortion"
    legend = [(family, list(own)) for family, own in groupby(figures.keys(distortions), lambda key: key.family)]
    return figures.svg(figure, "features", text), legend
