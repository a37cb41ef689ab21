"""A model that the gate promoted becomes a version, is proven, and becomes champion."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contrique.artifacts import ENCODER, MODEL_CARD, REGRESSOR
from contrique.config import RegistryConfig
from contrique.registry.promotion import Registered, check_champion, move_alias
from contrique.registry.proof import PROOF, input_example, prove, read_known_pictures, score_example
from contrique.registry.versions import COMPLETE, STATE, champion_version, complete_version, read_json
from contrique.tracking.client import (
    STORE_REMEDY,
    RegistryError,
    connect,
    create_once,
    read_code_revision,
    translate_errors,
)
from contrique.tracking.runs import PIPELINE_RUN, Run, current_pipeline_run, describe_run, open_run

if TYPE_CHECKING:
    from mlflow import MlflowClient


_REQUIREMENTS = (
    "imagecodecs",
    "numpy",
    "opencv-python-headless",
    "pandas",
    "pillow",
    "safetensors",
    "scipy",
    "torch",
    "torchvision",
    "tqdm",
)  # of scoring alone; MLflow adds itself


def register(
    encoder: Path,
    regressor: Path,
    evaluation: Path,
    verdict: Path,
    lineage: Path,
    *,
    config: RegistryConfig,
    run: str = "",
    sets: Sequence[Path] = (),
    card: str = "",
    expected_champion: str | None = None,
    page: Path | None = None,
) -> Registered:
    """Register a model that the gate promoted, and make it champion.

    First every other backend that is installed is compared with PyTorch: tags `backend.NAME.PRECISION` of the version
    say how near it comes, or that it is refused. A model goes on with backends refused: PyTorch scores it.

    The version is logged with signature, input example and tags. Then the real server, `mlflow models serve`, loads it
    from the registry and is asked to score the input example and pictures of the test part: it must answer as the
    evaluation did, to SERVED_TOLERANCE points of 100. Only then does the alias move. If anything fails before, the
    version is deleted and the champion stays. Run again (a retried step), it goes on from what is there: it returns
    the version that won, moves the alias to one that was complete, deletes one that was not.

    Args:
        encoder: `encoder.safetensors`.
        regressor: folder with `ridge.npz` and `regressor.json`.
        evaluation: `evaluation.json`.
        verdict: JSON of a Verdict that says promote.
        lineage: `lineage.json` of the training data.
        config: names.
        run: the pipeline run, as `open_run` takes it; default: the one that this process is a step of.
        sets: picture sets that hold the test part. Without them the input example alone is asked for.
        card: the model card, Markdown, kept with the version as MODEL_CARD.
        expected_champion: version that the gate judged against, empty if there was none. None: the
            `champion_version` that the verdict, or else the evaluation, says.
        page: Markdown file to write, that says where the MLflow run is.
    Returns:
        the version, which holds the alias.
    Raises:
        ChampionMoved: another version became champion in the meantime.
        RegistryError: the verdict does not say promote, MLflow fails, or the logged model, as served, does not score
            as it was judged.
    """
    from contrique.scoring.scorer import Scorer

    judged, decision, origin = read_json(evaluation), read_json(verdict), read_json(lineage)
    if decision.get("promote") is not True:
        raise RegistryError(f"{verdict}: does not say promote ({decision.get('reason')}); call keep_champion instead")
    if expected_champion is None:
        expected_champion = _read_judged_against(judged, decision, verdict)
    client = connect(config)
    run = run or current_pipeline_run()
    mlrun = open_run(run, config)
    if page:
        page.write_text(describe_run(run, config))
    tags = _list_facts(judged, decision, origin, read_json(regressor / "regressor.json")) | {
        PIPELINE_RUN: run,
        "code.revision": read_code_revision(),
        "model.hash": _hash_files(encoder, regressor / "ridge.npz", regressor / "regressor.json"),
        "judged_against": expected_champion,
    }
    current = champion_version(client, config)
    if current:
        own = complete_version(client, config, current)
        if own.run_id == mlrun.id and own.tags.get("model.hash") == tags["model.hash"]:  # this step, tried again
            return _close_registered(mlrun, tags, current, config)
    check_champion(current, expected_champion, config)
    for file in (evaluation, verdict, lineage):
        mlrun.log_file(file, "judgement")

    scorer = Scorer(encoder, regressor)
    known = [score_example(scorer, encoder), *read_known_pictures(evaluation, regressor, sets)]
    version = _find_left_behind(client, mlrun, config, tags["model.hash"])
    proven = bool(version)
    if not version:
        parity = {f"backend.{name}": agreement for name, agreement in scorer.parity().items()}
        version = _log_version(client, mlrun, encoder, regressor, config, tags | parity, card)
    try:
        if not proven:
            proof = prove(version, known, config)
            with translate_errors(f"completing version {version}"):
                client.set_model_version_tag(config.model, version, PROOF, proof)
                client.set_model_version_tag(config.model, version, STATE, COMPLETE)
        move_alias(client, config, version, expected_champion, "register", str(decision.get("reason", "")))
    except BaseException as error:
        try:
            _withdraw(client, mlrun, config, version)
        except RegistryError as second:  # the first error is the cause; without its tag the version is never used
            error.add_note(str(second))
        raise
    return _close_registered(mlrun, tags, version, config)


def _close_registered(mlrun: Run, tags: dict[str, str], version: str, config: RegistryConfig) -> Registered:
    """Close the run of a version that became champion."""
    mlrun.set_tags(tags | {"registered_version": version})
    mlrun.close()
    return Registered(config.model, version, config.alias)


def _log_version(
    client: "MlflowClient",
    mlrun: Run,
    encoder: Path,
    regressor: Path,
    config: RegistryConfig,
    tags: dict[str, str],
    card: str,
) -> str:
    """Log the model to the run and make a version of it, without alias and not yet complete."""
    import mlflow

    import contrique
    from contrique.scoring.results import CSV_COLUMNS, TEXT_COLUMNS

    package = Path(contrique.__file__).parent
    outputs = [
        mlflow.types.ColSpec("string" if name in TEXT_COLUMNS else "double", name, required=False)
        for name in CSV_COLUMNS
        if name != "path"
    ]
    signature = mlflow.models.ModelSignature(
        inputs=mlflow.types.Schema([mlflow.types.ColSpec("string", "image")]), outputs=mlflow.types.Schema(outputs)
    )
    with tempfile.TemporaryDirectory() as staging, translate_errors("logging the model", STORE_REMEDY):
        parts = {"encoder": Path(staging) / ENCODER, "regressor": Path(staging) / REGRESSOR}
        shutil.copyfile(encoder, parts["encoder"])
        shutil.copytree(regressor, parts["regressor"])
        if card:
            parts["card"] = Path(staging) / MODEL_CARD
            parts["card"].write_text(card, encoding="utf-8")
        with mlflow.start_run(run_id=mlrun.id):
            logged = mlflow.pyfunc.log_model(
                name="quality_model",
                python_model=str(package / "serving" / "mlflow_model.py"),
                artifacts={name: str(path) for name, path in parts.items()},
                code_paths=[str(package)],
                signature=signature,
                input_example=input_example(),
                pip_requirements=[f"{name}=={metadata.version(name)}" for name in _REQUIREMENTS],
            )
        create_once(client.create_registered_model, config.model)
        made = client.create_model_version(
            config.model,
            logged.model_uri,
            mlrun.id,
            tags=tags,
            description=tags["verdict.reason"],
            model_id=logged.model_id,
        )
    return str(made.version)


def _find_left_behind(client: "MlflowClient", mlrun: Run, config: RegistryConfig, model_hash: str) -> str:
    """The version of this model that an earlier try of this run completed; those that it did not are deleted."""
    complete = ""
    with translate_errors("reading the registry"):
        for item in client.search_model_versions(f"name='{config.model}' and run_id='{mlrun.id}'"):
            if item.tags.get(STATE) != COMPLETE:
                client.delete_model_version(config.model, item.version)
            elif item.tags.get("model.hash") == model_hash:
                complete = str(item.version)
    return complete


def _withdraw(client: "MlflowClient", mlrun: Run, config: RegistryConfig, version: str) -> None:
    """Delete a version that did not become champion."""
    if champion_version(client, config) != version:
        with translate_errors(f"deleting version {version}"):
            client.delete_model_version(config.model, version)
        mlrun.set_tags({"verdict": "promote", "registration": f"failed, version {version} deleted"})


def _list_facts(
    judged: dict[str, Any], decision: dict[str, Any], origin: dict[str, Any], fitted: dict[str, Any]
) -> dict[str, str]:
    """What the tags of a version say of how it came to be, as text; SRCC is that of the test part."""
    srcc = judged["challenger"]["metrics"]["srcc"]
    return {
        "verdict": "promote",
        "verdict.reason": decision["reason"],
        "verdict.json": json.dumps(decision),
        "data.hash": origin["hash"],
        "data.revision": origin["revision"],
        "labels": fitted["labels"],
        "srcc": f"{srcc['value']:.4f}",
        "srcc.interval": f"{srcc['low']:.4f} to {srcc['high']:.4f}",
        "srcc.n": str(srcc["n"]),
    }


def _read_judged_against(judged: dict[str, Any], decision: dict[str, Any], verdict: Path) -> str:
    for said in (decision, judged):
        if "champion_version" in said:
            return str(said["champion_version"] or "")
    raise RegistryError(f"{verdict}: has no champion_version; pass expected_champion, empty if there was none")


def _hash_files(*files: Path) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
