"""A candidate for the registry: the files that the stages wrote of it, and the facts in them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contrique.artifacts import DESCRIPTION, SUMMARY
from contrique.integrity import hash_model
from contrique.tracking.store import RegistryError


@dataclass(frozen=True)
class Candidate:
    """A model that was judged, as files.

    Attributes:
        encoder: `encoder.safetensors`, with `summary.json` of its pretraining beside it, if there is one.
        regressor: folder with `ridge.npz` and `regressor.json`.
        evaluation: `evaluation.json`, with `test_scores.parquet` beside it.
        verdict: JSON of a Verdict.
        lineage: `lineage.json` of the training data.
        sets: picture sets that hold the test part. Without them the input example alone proves the model.
        card: the model card, Markdown; empty for none.
        description: of the version, Markdown, as MLflow shows it; by default the verdict's reason.
    """

    encoder: Path
    regressor: Path
    evaluation: Path
    verdict: Path
    lineage: Path
    sets: Sequence[Path] = ()
    card: str = ""
    description: str = ""


@dataclass(frozen=True)
class Facts:
    """What the files of a candidate say.

    Attributes:
        expected_champion: version that the gate judged against; empty if there was none.
        reason: of the verdict, in words.
        tags: of the version, as text; SRCC is that of the test part.
        figures: of the challenger by name: `test.` on the test part, `cv.` cross-validated; SRCC with its interval.
        lineage: content of `lineage.json`.
    """

    expected_champion: str
    reason: str
    tags: dict[str, str]
    figures: dict[str, float]
    lineage: dict[str, Any]


def read_facts(candidate: Candidate) -> Facts:
    """The facts of a candidate that the gate promoted.

    Raises:
        RegistryError: the verdict does not say promote or against whom it was judged, or a file cannot be read.
    """
    evaluation, verdict, lineage = (
        read_json(path) for path in (candidate.evaluation, candidate.verdict, candidate.lineage)
    )
    summary = read_json(candidate.regressor / DESCRIPTION)
    if verdict.get("promote") is not True:
        raise RegistryError(
            f"{candidate.verdict}: does not say promote ({verdict.get('reason')}); call keep_champion instead"
        )
    judgement = verdict if "champion_version" in verdict else evaluation
    if "champion_version" not in judgement:
        raise RegistryError(f"{candidate.verdict}: has no champion_version; run the gate again")
    expected_champion, reason = str(judgement["champion_version"] or ""), str(verdict["reason"])
    srcc = evaluation["challenger"]["metrics"]["srcc"]
    tags = {
        "verdict": "promote",
        "verdict.reason": reason,
        "verdict.json": json.dumps(verdict),
        "judged_against": f"version {expected_champion}" if expected_champion else "no champion: this is the first",
        "data.hash": lineage["hash"],
        "data.revision": lineage["revision"],
        "labels": summary["labels"],
        "srcc": f"{srcc['value']:.4f}",
        "srcc.interval": f"{srcc['low']:.4f} to {srcc['high']:.4f}",
        "srcc.n": str(srcc["n"]),
    }
    tags |= {"regressor.prior": summary["prior"]} if summary.get("prior") else {}
    tags |= _describe_start(read_start(candidate.encoder))
    tags |= hash_model(candidate.encoder, candidate.regressor)
    return Facts(expected_champion, reason, tags, _list_figures(evaluation), lineage)


def _list_figures(evaluation: dict[str, Any]) -> dict[str, float]:
    figures = {}
    for part, judgement in (("test", evaluation["challenger"]), ("cv", evaluation.get("protocol") or {})):
        for name, figure in judgement.get("metrics", {}).items():
            if figure:  # None where undefined
                figures[f"{part}.{name}"] = figure["value"]
        if srcc := judgement.get("metrics", {}).get("srcc"):
            figures |= {f"{part}.srcc.low": srcc["low"], f"{part}.srcc.high": srcc["high"]}
    return figures


def read_start(encoder: Path) -> dict[str, Any]:
    """The `summary.json` beside an encoder, if it says that training started from another one.

    Returns:
        `start` (SHA-256), `start_name`, `frozen`, `steps` and more; empty for random weights, or without a summary.
    Raises:
        RegistryError: the summary is damaged.
    """
    path = encoder.with_name(SUMMARY)
    summary = read_json(path) if path.is_file() else {}
    return summary if summary.get("start") else {}


def _describe_start(start: dict[str, Any]) -> dict[str, str]:
    if not start:
        return {}
    use = "as it is" if start["frozen"] else f"trained on for {start['steps']} steps"
    return {"encoder.start": str(start["start_name"]), "encoder.start.hash": str(start["start"]), "encoder.use": use}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object that an earlier stage wrote.

    Raises:
        RegistryError: missing, or no JSON object.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RegistryError(f"{path}: not a readable JSON file ({error}); run its step again") from error
    if not isinstance(content, dict):
        raise RegistryError(f"{path}: not a JSON object; run its step again")
    return content
