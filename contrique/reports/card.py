"""The model card, in Markdown."""

import json
from collections.abc import Mapping
from importlib import metadata
from typing import Any, Final

from contrique.reports.facts import Artifact, Trained, collect_facts, trained_here
from contrique.reports.render import render
from contrique.text import shorten

_DESCRIPTION_CHARS: Final = 5000  # that MLflow's databases keep of a description


def model_card(trained: Trained) -> str:
    """The model card (Mitchell et al., FAT* 2019) as Markdown, from the model's own files and nothing else.

    Raises:
        ReportError: a file is missing or damaged.
    """
    return render_card(collect_facts(trained))


def describe_version(trained: Trained) -> str:
    """What MLflow's page of a version says of the model, in Markdown: the card in short.

    Raises:
        ReportError: a file is missing or damaged.
    """
    facts = collect_facts(trained)
    facts["srcc"] = facts["evaluation"]["challenger"]["metrics"].get("srcc")
    return shorten(render("version.md", facts | _collect_card_facts(facts)), _DESCRIPTION_CHARS)


def texts_here(*artifacts: Artifact, profile: str, overrides: Mapping[str, Any]) -> dict[str, str]:
    """`card` and `description` of a candidate: `model_card` and `describe_version` of this pipeline run.

    Arguments and errors as `trained_here`.
    """
    trained = trained_here(*artifacts, profile=profile, overrides=overrides)
    return {"card": model_card(trained), "description": describe_version(trained)}


def render_card(facts: dict[str, Any]) -> str:
    return render("model_card.md", facts | _collect_card_facts(facts))


def _collect_card_facts(facts: dict[str, Any]) -> dict[str, Any]:
    """What the card alone says: limits that follow from the figures, licences, the command that made the model."""
    from contrique.distortions import NAMES
    from contrique.encoder.architectures import MIN_SIDE
    from contrique.images import MAX_PIXELS
    from contrique.regressor.head import DIRECTION, RANGE

    slices = facts["evaluation"]["protocol"]["slices"]
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
        "licences": facts["lineage"]["licences"],
        "licence": metadata.metadata("contrique")["License-Expression"],
        "command": _write_command(facts),
    }


def _write_command(facts: dict[str, Any]) -> str:
    import shlex

    from contrique.pretraining.start import has_length

    lineage = facts["lineage"]
    words = ["python", "-m", "pipelines", "run", "--data", lineage["source"], "--profile", facts["profile"]]
    words += ["--revision", lineage["revision"]] if lineage["revision"] else []
    words += ["--seed", str(facts["seed"])]
    changed, start = facts["changed"], facts["start"]
    if start:
        words += ["--encoder", start["start_name"]]
        if not start["frozen"] and not has_length(changed):  # as long as the profile says, and yet to be said
            changed = changed | {"pretrain.steps": start["steps"]}
    for name, value in changed.items():
        words += ["--set", f"{name}={json.dumps(value)}"]
    return shlex.join(words)
