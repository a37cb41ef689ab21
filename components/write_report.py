"""Stage 10: one page that a person reads."""

from kfp import dsl

from components import component


@component
def write_report(
    dataset: dsl.Input[dsl.Dataset],
    validation: dsl.Input[dsl.Metrics],
    distorted: dsl.Input[dsl.Dataset],
    encoder: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    verdict: dsl.Input[dsl.Artifact],
    outcome: dict,
    profile: str,
    overrides: dict,
    seed: int,
    report: dsl.Output[dsl.HTML],
) -> None:
    """Draw the run as one self-contained HTML page.

    Args:
        dataset: picture set with its lineage.
        validation: counts of what was checked.
        distorted: synthesized picture set, for the contact sheet.
        encoder: folder with history.jsonl.
        evaluation: folder with evaluation.json and test_scores.parquet.
        verdict: JSON file of the gate.
        outcome: name, version and alias of the registered model, or of the champion that stayed.
        profile: demo or paper.
        overrides: options that differ from the profile.
        seed: the run's.
        report: the page.
    """
    from pathlib import Path

    from contrique.config import resolve
    from contrique.report import write

    write(
        Path(report.path),
        dataset=Path(dataset.path),
        distorted=Path(distorted.path),
        encoder=Path(encoder.path),
        evaluation=Path(evaluation.path),
        verdict=Path(verdict.path),
        validation=validation.metadata,
        outcome=outcome,
        config=resolve(profile, overrides),
        profile=profile,
        seed=seed,
    )
