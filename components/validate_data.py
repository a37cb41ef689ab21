"""Stage 2: are the data what they should be?"""

from kfp import dsl

from components import component


@component
def validate_data(
    dataset: dsl.Input[dsl.Dataset],
    start: str,
    profile: str,
    overrides: dict,
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Metrics],
    findings: dsl.Output[dsl.Artifact],
) -> None:
    """Hold the pictures and their manifest against the expectations; `accept_data` stops the run if one fails.

    Args:
        dataset: picture set.
        start: encoder that training starts from; if it is used as it is, no pictures to pretrain on are needed.
        profile: demo, gpu or paper.
        overrides: options that differ from the profile.
        report: every expectation and what was observed.
        summary: counts of what was checked, as the run page shows them.
        findings: JSON file with failures and counts.
    """
    from pathlib import Path

    from contrique.data.validation import examine
    from contrique.pretraining.start import limit_data

    limits = limit_data(profile, overrides, start)
    summary.metadata.update(examine(Path(dataset.path), Path(report.path), Path(findings.path), limits).describe())
