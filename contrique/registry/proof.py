"""A version is asked to score pictures whose scores are known, before anybody relies on it."""

import base64
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from contrique.artifacts import TEST_SCORES
from contrique.integrity import MODEL_HASH
from contrique.registry.candidate import Candidate
from contrique.registry.versions import COMPLETE, STATE, Registry
from contrique.tracking.address import database_of
from contrique.tracking.store import STORE_REMEDY, RegistryError, current_time, current_user, find_or_none

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities.model_registry import ModelVersion

    from contrique.scoring.scorer import Scorer


PROOF = "proof"  # tag of a version: how it was asked, and how near its answers were
SERVED_TOLERANCE = 0.5  # points of 0-100: the evaluation may have run on other hardware, or in bfloat16
LOADED_TOLERANCE = 0.01  # the same, of what this process computed from the same files
_PICKLES = "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"


@dataclass(frozen=True)
class ScoredPicture:
    """A picture whose score by the model is known before the model is registered.

    Attributes:
        data: a PNG.
        raw: its score on the scale of the training labels.
        tolerance: on that scale.
    """

    data: bytes
    raw: float
    tolerance: float


def verify(registry: Registry, name: str) -> str:
    """Prove a version now: by its hash, and by asking it as served. One that came past the pipeline is completed by it.

    Such a version is made when a person promotes a logged model on MLflow's page, or registers it by MLflow's client:
    what was judged of it stands in the tags of its run, which the gate must have promoted.

    Args:
        registry: of the model.
        name: a number, or an alias such as `champion`.
    Returns:
        the proof, in words.
    Raises:
        RegistryError: there is no such version, the gate never promoted its run, its files cannot be fetched, or it
            does not answer as its files do.
        ModelChanged: its files are not those that were judged.
    """
    from contrique.scoring.scorer import Scorer

    version = registry.find_version(name, proven=False)
    client, model, number = registry.store.client, registry.config.model, str(version.version)
    judged = MODEL_HASH in version.tags and version.tags.get("verdict") == "promote"
    tags = dict(version.tags) if judged else _read_judgement(registry, version)
    with registry.fetch(number, expected=tags) as files:
        examples = [score_example(Scorer(files.encoder, files.regressor), f"version {number} of '{model}'")]
    missing = tags.keys() - version.tags.keys()
    with registry.store.translate_errors(f"proving version {number}"):
        for tag in sorted(missing):
            client.set_model_version_tag(model, number, tag, tags[tag])
    try:
        proof = f"{prove(registry, number, examples)}; verified {current_time()} by {current_user()}"
    except BaseException as error:
        try:
            with registry.store.translate_errors(f"taking tags from version {number}"):
                for tag in sorted(missing):  # lest MLflow's server take it for one of ours
                    client.delete_model_version_tag(model, number, tag)
        except RegistryError as second:  # the first error is the cause; without STATE the version is never used
            error.add_note(str(second))
        raise
    with registry.store.translate_errors(f"completing version {number}"):
        client.set_model_version_tag(model, number, PROOF, proof)
        client.set_model_version_tag(model, number, STATE, COMPLETE)
    return proof


def _read_judgement(registry: Registry, version: "ModelVersion") -> dict[str, str]:
    """Tags of the run that a version comes from, as `register` left them there."""
    model, number = registry.config.model, version.version
    with registry.store.translate_errors(f"reading the run of version {number}"):
        run = find_or_none(registry.store.client.get_run, version.run_id) if version.run_id else None
    tags = {name: value for name, value in run.data.tags.items() if not name.startswith("mlflow.")} if run else {}
    if tags.get("verdict") != "promote" or MODEL_HASH not in tags:
        raise RegistryError(
            f"version {number} of '{model}' comes from no run that the gate promoted, so nothing vouches for it; "
            "delete it, and run the pipeline"
        )
    return tags


def input_example() -> "pd.DataFrame":
    """The input example: one small picture in base64, the same every time. Shape (1, 1), column `image`."""
    import numpy as np
    import pandas as pd

    from contrique.images import encode_png

    y, x = np.mgrid[0:96, 0:128]
    picture = np.stack([x * 2, y * 2, (x * y) // 64 % 256], axis=-1).astype(np.uint8)
    return pd.DataFrame({"image": [base64.b64encode(encode_png(picture)).decode()]})


def score_example(scorer: "Scorer", model: str) -> ScoredPicture:
    """The input example, scored from files; errors call them `model`."""
    from contrique.scoring.results import Failure

    data = base64.b64decode(input_example()["image"][0])
    result = scorer.judge(data, "the input example")
    if isinstance(result, Failure):
        raise RegistryError(f"{model}: the model cannot score a picture ({result.error}); train it again")
    return ScoredPicture(data, result.raw, LOADED_TOLERANCE * scorer.head.point)


def read_known_pictures(candidate: Candidate) -> list[ScoredPicture]:
    """Pictures of the test part, from worst to best, with the scores that the evaluation wrote down."""
    if not candidate.sets:
        return []
    import pandas as pd

    from contrique.data.manifest import read_manifest, read_picture
    from contrique.evaluation.extract import pick_known_pictures
    from contrique.images import encode_png
    from contrique.regressor.head import Head

    tolerance = SERVED_TOLERANCE * Head.load(candidate.regressor).point
    places_of = {
        (row.image, row.reference, row.distortion): (folder, row)
        for folder in candidate.sets
        for row in read_manifest(folder).itertuples()
    }
    examples = []
    for row in pick_known_pictures(pd.read_parquet(candidate.evaluation.with_name(TEST_SCORES))).itertuples():
        place = places_of.get((row.image, row.reference, row.distortion))
        if place is None:
            raise RegistryError(
                f"{row.image}: judged by {candidate.evaluation}, but in none of the picture sets; give its set"
            )
        examples.append(ScoredPicture(encode_png(read_picture(*place)), float(row.challenger), tolerance))
    return examples


def prove(registry: Registry, version: str, examples: Sequence[ScoredPicture]) -> str:
    """Have a version score pictures, pickles forbidden, and compare with their known scores.

    Returns:
        how the version was asked and how near it came, in words.
    Raises:
        RegistryError: a score differs by more than its tolerance, or there is none.
    """
    from contrique.registry.model_server import ask_server

    config = registry.config
    pictures = [item.data for item in examples]
    with _openable(registry, f"models:/{config.model}/{version}") as model:
        if config.serve_seconds > 0:
            how = "served by MLflow"
            answers = ask_server(model, pictures, store=registry.store.uri, seconds=config.serve_seconds)
        else:
            how, answers = "loaded back", _ask_loaded(registry, model, pictures)
    for number, (answer, item) in enumerate(zip(answers, examples, strict=True)):
        right = not answer["error"] and abs(answer["raw"] - item.raw) <= item.tolerance
        if not right or answer["model"] != version:
            what = f"known picture {number} of {len(examples) - 1}" if number else "the input example"
            raise RegistryError(
                f"version {version} of '{config.model}', {how}, scores {what} {answer['raw']} "
                f"({answer['error'] or 'no error'}, version {answer['model']}) and not {item.raw} "
                f"within {item.tolerance:.2g}; check the artifact store and run the pipeline again"
            )
    furthest = max(abs(answer["raw"] - item.raw) for answer, item in zip(answers, examples, strict=True))
    return f"{how}: {len(examples)} pictures within {furthest:.2g} of their known raw scores"


@contextmanager
def _openable(registry: Registry, model: str) -> Iterator[str]:
    """Address at which MLflow can open a model: of a copy if it lies below a path with a %, which MLflow unquotes."""
    database = database_of(registry.store.uri)
    if not database or "%" not in str(database):
        yield model
        return
    from mlflow.artifacts import download_artifacts

    with TemporaryDirectory() as scratch:
        with registry.store.translate_errors(f"fetching {model}", STORE_REMEDY):
            address = str(download_artifacts(artifact_uri=model, dst_path=scratch))
        yield address


def _ask_loaded(registry: Registry, model: str, pictures: Sequence[bytes]) -> list[dict[str, Any]]:
    """Answers of a version that this process loads from the registry."""
    import mlflow
    import pandas as pd

    path, pickles = sys.path.copy(), os.environ.get(_PICKLES)
    os.environ[_PICKLES] = "false"
    try:
        with TemporaryDirectory() as scratch, registry.store.translate_errors(f"loading {model} back", STORE_REMEDY):
            scorer = mlflow.pyfunc.load_model(model, dst_path=scratch)  # MLflow would leave a folder of its own behind
            answers = scorer.predict(pd.DataFrame({"image": pictures}))
    finally:
        sys.path[:] = path  # MLflow puts the model's copy of the code in front
        if pickles is None:
            del os.environ[_PICKLES]
        else:
            os.environ[_PICKLES] = pickles
    return [dict(row) for row in answers.to_dict("records")]
