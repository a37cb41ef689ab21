"""Stage 2: are the data what they should be?"""

from kfp import dsl

from components import component


@component
def validate_data(
    dataset: dsl.Input[dsl.Dataset],
    profile: str,
    overrides: dict,
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Metrics],
    findings: dsl.Output[dsl.Artifact],
) -> None:
    """Hold the pictures and their manifest against the expectations; `accept_data` stops the run if one fails.

    Args:
        dataset: picture set.
        profile: demo or paper.
        overrides: options that differ from the profile.
        report: every expectation and what was observed.
        summary: counts of what was checked, as the run page shows them.
        findings: JSON file with failures and counts.
    """
    from pathlib import Path

    from contrique.config import resolve
    from contrique.data.validation import examine

    limits = resolve(profile, overrides).validation
    summary.metadata.update(examine(Path(dataset.path), Path(report.path), Path(findings.path), limits).describe())
