"""Last, whatever happened: no MLflow run stays open."""

from kfp import dsl

from components import component


@component
def close_run(status: dsl.PipelineTaskFinalStatus, profile: str, overrides: dict) -> None:
    """Close the MLflow run of a pipeline run that failed or was ended from outside.

    Args:
        status: how the pipeline ended.
        profile: demo, gpu or paper.
        overrides: options that differ from the profile.
    """
    from contrique import config
    from contrique.tracking.runs import Runs, current_pipeline_run

    Runs(config.resolve(profile, overrides).registry).close_failed(current_pipeline_run(), status.state)
