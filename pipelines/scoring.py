"""The second walk: champion -> scores of new pictures -> drift report -> alarm."""

from kfp import dsl

from components.detect_drift import detect_drift
from components.raise_alarm import raise_alarm
from components.score_pictures import score_pictures
from pipelines.cluster.resources import equipped


@dsl.pipeline(name="contrique-scoring", display_name="CONTRIQUE scoring")
def scoring(
    data: str,
    model: str = "champion",
    fail_on_drift: bool = True,
    profile: str = "demo",
    overrides: dict = {},  # noqa: B006 (KFP copies defaults into the compiled document)
) -> None:
    """Score pictures with the champion, and fail if they are unlike those that it was judged on.

    Args:
        data: Where the pictures are: a folder or an s3:// prefix.
        model: Version in the registry, or an alias such as champion or previous.
        fail_on_drift: Whether drift fails the run, so that whoever watches it learns of it. The report comes anyway.
        profile: Starting point of the configuration, demo or paper.
        overrides: Options that differ from the profile, by dotted name, as JSON, such as {"drift.psi" : 0.5}.
    """
    settings = {"profile": profile, "overrides": overrides}
    scored = equipped(score_pictures(data=data, model=model, **settings))
    judged = equipped(detect_drift(scores=scored.outputs["scores"], **settings))
    equipped(raise_alarm(verdict=judged.outputs["verdict"], fail_on_drift=fail_on_drift))
