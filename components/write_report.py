"""Stage 10: one page that a person reads."""

from kfp import dsl

from components import component


@component
def write_report(
    dataset: dsl.Input[dsl.Dataset],
    validation: dsl.Input[dsl.Metrics],
    distorted: dsl.Input[dsl.Dataset],
    encoder: dsl.Input[dsl.Model],
    features: dsl.Input[dsl.Dataset],
    regressor: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    verdict: dsl.Input[dsl.Artifact],
    outcome: dict,
    profile: str,
    overrides: dict,
    report: dsl.Output[dsl.HTML],
) -> None:
    """Draw the run as one self-contained HTML page.

    Args:
        dataset: picture set with its lineage.
        validation: counts of what was checked.
        distorted: synthesized picture set, for the contact sheet.
        encoder: folder with encoder.safetensors and history.jsonl.
        features: feature set, drawn in the plane.
        regressor: folder with regressor.json.
        evaluation: folder with evaluation.json and test_scores.parquet.
        verdict: JSON file of the gate.
        outcome: name, version and alias of the registered model, or of the champion that stayed.
        profile: demo or paper.
        overrides: options that differ from the profile.
        report: the page.
    """
    from pathlib import Path

    from contrique.reports.report import trained_here, write

    write(
        Path(report.path),
        trained_here(dataset, encoder, regressor, evaluation, verdict, profile=profile, overrides=overrides),
        distorted=Path(distorted.path),
        features=Path(features.path),
        validation=validation.metadata,
        outcome=outcome,
    )
