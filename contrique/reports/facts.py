"""What page and card both say of a run, read from its files."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from contrique.config import Config, as_dict, resolve
from contrique.errors import ContriqueError
from contrique.files import sha256

if TYPE_CHECKING:
    from contrique.regressor.head import Head


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


def collect_facts(trained: Trained) -> dict[str, Any]:
    """What page and card both say."""
    from contrique.artifacts import ENCODER, HISTORY
    from contrique.encoder.weights import read_metadata
    from contrique.evaluation.judgement import TEST_PART
    from contrique.registry.candidate import read_start
    from contrique.regressor.head import Head

    weights = trained.encoder / ENCODER
    try:
        recipe, start, head = read_metadata(weights), read_start(weights), Head.load(trained.regressor)
    except ContriqueError as error:
        raise ReportError(str(error)) from error
    judged, verdict = read_json(trained.evaluation / "evaluation.json"), read_json(trained.verdict)
    return {
        "lineage": read_json(trained.extract / "lineage.json"),
        "start": start,
        "history": list(read_json_lines(trained.encoder / HISTORY)),
        "recipe": recipe,
        "encoder_hash": sha256(weights),
        "regressor": asdict(head.summary),
        "conformal": describe_interval(head),
        "evaluation": judged,
        "judgements": list(list_judgements(judged)),
        "gaming": list_gaming(judged),
        "test_part": TEST_PART,
        "labels": LABELS[judged["labels"]],
        "label": LABEL[judged["labels"]],
        "weak": judged["labels"] == "weak",
        "metrics": METRICS,
        "verdict": verdict,
        "reason": verdict["reason"].partition(": ")[2] or verdict["reason"],
        "rules": list(list_rules(verdict)),
        "config": json.dumps(as_dict(trained.config), indent=2),
        "changed": list_changes(trained.config, trained.profile),
        "model": trained.config.registry.model,
        "profile": trained.profile,
        "seed": judged["seed"],
        "run": trained.run,
        "code": trained.code,
    }


def describe_interval(head: "Head") -> str:
    """The interval that comes with a score, in words; empty for a regressor without."""
    from contrique.regressor.reliability import COVERAGE

    if head.half_width is None:
        return ""
    residuals = head.summary.interval_n
    return f"{COVERAGE:.0%} conformal, ± {head.half_width:.1f} points, from {residuals} residuals out of fold"


def list_judgements(evaluation: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield f"Cross-validated: {evaluation['protocol']['protocol']}", evaluation["protocol"]
    if evaluation["opinion_unaware"]:
        yield "Opinion-unaware: fitted on weak labels, judged on human scores", evaluation["opinion_unaware"]
    yield "Fixed test part: challenger", evaluation["challenger"]
    if evaluation["champion"]:
        version = evaluation["champion_version"]
        yield f"Fixed test part: champion{f' (version {version})' if version else ''}", evaluation["champion"]


def list_rules(verdict: dict[str, Any]) -> Iterator[Rule]:
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
    for name, part in numbers.get("gaming", {}).items():
        low, bound = part["difference_low"], thresholds["gaming_margin"]
        met = low is not None and low <= bound
        yield Rule(f"rise by {name} beyond the champion's, lower bound (points)", low, f"≤ {bound:.1f}", met)


def list_gaming(evaluation: dict[str, Any]) -> list[tuple[str, dict[str, Any], dict[str, Any] | None]]:
    """Each attack with its rise for the challenger and, if there is one, the champion; none in older evaluations."""
    gaming = evaluation.get("gaming")
    if not gaming:
        return []
    return [(name, rise, (gaming["champion"] or {}).get(name)) for name, rise in gaming["challenger"].items()]


def list_changes(config: Config, profile: str) -> dict[str, Any]:
    """Options that differ from the profile's, by dotted name."""
    start = as_dict(resolve(profile))
    return {
        f"{stage}.{name}": value
        for stage, section in as_dict(config).items()
        for name, value in section.items()
        if value != start[stage][name]
    }


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ReportError(f"{path}: cannot be read ({error.strerror}); run the stage that writes it again") from error


def read_json(path: Path) -> dict[str, Any]:
    return _parse(read_text(path), path)


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    return (_parse(line, path) for line in read_text(path).splitlines())


def _parse(text: str, path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise ReportError(f"{path}: not valid JSON ({error}); run the stage that writes it again") from error
    return content
