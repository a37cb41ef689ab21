"""Scoring, stage 3: drift fails the run, after the report is written."""

from kfp import dsl

from components import component


@component
def raise_alarm(verdict: dsl.Input[dsl.Artifact], fail_on_drift: bool) -> None:
    """Fail if the pictures have drifted.

    Args:
        verdict: JSON file of detect_drift.
        fail_on_drift: False to leave it at the report.
    """
    from pathlib import Path

    from contrique.monitoring import alarm

    alarm(Path(verdict.path), fail=fail_on_drift)
