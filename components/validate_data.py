"""Stage 2: stop here if the data is not what it should be."""

from kfp import dsl

from components import component


@component
def validate_data(
    dataset: dsl.Input[dsl.Dataset],
    profile: str,
    overrides: dict,
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Metrics],
) -> None:
    """Hold the pictures and their manifest against the expectations; the run stops at the first one that fails.

    Args:
        dataset: picture set.
        profile: demo or paper.
        overrides: options that differ from the profile.
        report: every expectation and what was observed.
        summary: counts of what was checked.
    """
    from pathlib import Path

    from contrique.config import resolve
    from contrique.data.validation import validate

    checked = validate(Path(dataset.path), Path(report.path), resolve(profile, overrides).validation)
    summary.metadata.update(vars(checked))
