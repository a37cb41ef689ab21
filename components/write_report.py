"""Stage 10: one page that a person reads."""

from kfp import dsl

from components import component


@component
def write_report(
    findings: dsl.Input[dsl.Artifact],
    extract: dsl.Input[dsl.Dataset],
    encoder: dsl.Input[dsl.Model],
    regressor: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    verdict: dsl.Input[dsl.Artifact],
    outcome: dict,
    profile: str,
    overrides: dict,
    report: dsl.Output[dsl.HTML],
) -> None:
    """Draw the run as one self-contained HTML page, and keep it with the MLflow run, too.

    Args:
        findings: JSON file of validate_data.
        extract: folder with lineage.json and the few pictures and features that are shown.
        encoder: folder with encoder.safetensors and history.jsonl.
        regressor: folder with regressor.json.
        evaluation: folder with evaluation.json and test_scores.parquet.
        verdict: JSON file of the gate.
        outcome: name, version and alias of the registered model, or of the champion that stayed.
        profile: demo, gpu or paper.
        overrides: options that differ from the profile.
        report: the page.
    """
    from pathlib import Path

    from contrique.reports.facts import trained_here
    from contrique.reports.report import publish

    publish(
        Path(report.path),
        trained_here(extract, encoder, regressor, evaluation, verdict, profile=profile, overrides=overrides),
        findings=Path(findings.path),
        outcome=outcome,
    )
