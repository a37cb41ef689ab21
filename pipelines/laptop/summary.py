"""What a finished local run comes to, in plain text."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from contrique.artifacts import EVALUATION, LINEAGE, SCORES, SUMMARY
from contrique.reports.facts import LABELS, METRICS
from contrique.text import count_noun, escape_control, mask_secrets
from contrique.tracking.address import DEFAULT_URI
from pipelines.laptop.runner import Run


def summary(run: Run) -> str:
    """What came of a training or of a scoring."""
    text = _of_scoring(run) if "score_pictures" in run.artifacts else _of_training(run)
    return escape_control(text, keep="\n")


def _of_scoring(run: Run) -> str:
    scores = run.artifacts["score_pictures"]["scores"]
    scored = json.loads((scores / SUMMARY).read_text())
    verdict = json.loads(run.artifacts["detect_drift"]["verdict"].read_text())
    report = run.root / "drift.html"
    shutil.copyfile(run.artifacts["detect_drift"]["report"], report)
    lines = [
        "",
        f"Scored    {scored['scored']} pictures by version {scored['model']}, {scored['failed']} failed",
        f"Drift     {verdict['reason']}",
        f"Scores    {scores / SCORES}",
        f"Report    {report}",
    ]
    return "\n".join(lines)


def _of_training(run: Run) -> str:
    """Data, training, figures with n and interval, verdict, registry, report, and what to do next."""
    lineage = json.loads((run.artifacts["fetch_data"]["dataset"] / LINEAGE).read_text())
    trained = json.loads((run.artifacts["pretrain_encoder"]["encoder"] / SUMMARY).read_text())
    evaluation = json.loads((run.artifacts["evaluate_model"]["result"] / EVALUATION).read_text())
    verdict = json.loads(run.artifacts["decide_promotion"]["verdict"].read_text())
    outcome = run.returned[run.branch]
    counts = ", ".join(f"{count} {part}" for part, count in lineage["counts"].items())
    if outcome:
        model = f"{outcome['name']} version {outcome['version']}, alias {outcome['alias']}"
        registry = model if run.branch == "register_model" else f"nothing registered; the champion stays: {model}"
    else:
        registry = "nothing registered; there is no champion yet"
    report = run.root / "report.html"  # KFP's artifact has no suffix, and a browser would show its source
    shutil.copyfile(run.artifacts["write_report"]["report"], report)
    lines = [
        "",
        f"Data      {lineage['hash']}: {lineage['rows']} pictures ({counts})",
        f"Encoder   {_name_start(trained)}",
        f"Labels    {LABELS[evaluation['labels']]}",
        *_figures(evaluation["protocol"]),
        *_figures(evaluation["opinion_unaware"]),
        *_figures(evaluation["challenger"]),
        f"Verdict   {verdict['reason']}",
        f"Registry  {registry}",
        f"Report    {report}",
        "",
        "Next",
        *(f"  {what:<24}{command}" for what, command in _next_steps()),
    ]
    return "\n".join(lines)


def _name_start(trained: dict[str, Any]) -> str:
    """Whose the encoder is, and what was done with it."""
    if trained["frozen"]:
        return f"{trained['start_name']}, as it is; nothing was pretrained"
    steps = f"{trained['steps']} steps, loss {trained['loss_first']:.3f} first, {trained['loss_last']:.3f} last"
    return f"{steps}, on from {trained['start_name']}" if trained["start"] else f"{steps}, from random weights"


def _figures(judgement: dict[str, Any] | None) -> list[str]:
    if judgement is None:
        return []
    against = {"human": "human scores", "weak": "weak labels"}[judgement["labels"]]
    lines = [
        f"Scores    {judgement['protocol']}, on {against}: "
        f"n = {judgement['n']} pictures of {count_noun(judgement['contents'], 'content')}, "
        f"{count_noun(judgement['splits'], 'split')}"
    ]
    for name, estimate in judgement["metrics"].items():
        if name != "rmse_logistic" or "rmse" not in judgement["metrics"]:
            interval = f"[{estimate['low']:.3f}, {estimate['high']:.3f}]"
            lines.append(f"            {METRICS[name]:<24} {estimate['value']:6.3f}  {interval}  n = {estimate['n']}")
    return lines


def _next_steps() -> list[tuple[str, str]]:
    programs = Path(sys.executable).parent
    if programs.is_relative_to(Path.cwd()):
        programs = programs.relative_to(Path.cwd())
    store = mask_secrets(os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI)
    ui = f"{programs}/mlflow ui --backend-store-uri {store}" if store.startswith("sqlite:") else f"open {store}"
    return [
        ("see runs and models", ui),
        ("score your own picture", f"{programs}/contrique score PICTURE"),
        ("by the bundled model", f"{programs}/contrique score PICTURE --model bundled"),
        ("compile for Kubeflow", f"{programs}/python -m pipelines compile --out training.yaml"),
    ]
