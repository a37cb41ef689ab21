"""Stage 2, its end: bad data stop the run, after the report is written."""

from kfp import dsl

from components import component


@component
def accept_data(findings: dsl.Input[dsl.Artifact]) -> None:
    """Fail if an expectation on the data is not met.

    Args:
        findings: JSON file of validate_data.
    """
    from pathlib import Path

    from contrique.data.validation import accept

    accept(Path(findings.path), "the report of the stage validate_data")
