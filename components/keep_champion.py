"""Stage 9, on hold: nothing is registered, the champion stays."""

from kfp import dsl

from components import component


@component
def keep_champion(
    extract: dsl.Input[dsl.Dataset],
    verdict: dsl.Input[dsl.Artifact],
    profile: str,
    overrides: dict,
    tracking: dsl.Output[dsl.Markdown],
) -> dict:
    """Record the hold on the run and leave the registry as it is.

    Args:
        extract: folder with lineage.json.
        verdict: JSON file of the gate.
        profile: demo, gpu or paper.
        overrides: options that differ from the profile.
        tracking: where the MLflow run is.

    Returns:
        name, version and alias of the champion; empty if there is none.
    """
    from pathlib import Path

    from contrique.config import resolve
    from contrique.registry import promotion

    champion = promotion.keep_champion(
        Path(verdict.path),
        Path(extract.path, "lineage.json"),
        config=resolve(profile, overrides).registry,
        page=Path(tracking.path),
    )
    return vars(champion) if champion else {}
