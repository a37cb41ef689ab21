"""A model that the gate promoted becomes a version, is proven, and becomes champion."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from contrique.artifacts import ENCODER, MODEL_CARD, REGRESSOR
from contrique.config import RegistryConfig
from contrique.integrity import HASHES, MODEL_HASH
from contrique.registry.candidate import Candidate, Facts, read_facts
from contrique.registry.promotion import Registered, check_champion, move_alias
from contrique.registry.proof import PROOF, input_example, prove, read_known_pictures, score_example
from contrique.registry.versions import COMPLETE, STATE, Registry
from contrique.text import escape_markdown
from contrique.tracking.revision import read_code_revision
from contrique.tracking.runs import DESCRIPTION_TAG, PIPELINE_RUN, Run, current_pipeline_run
from contrique.tracking.store import STORE_REMEDY, RegistryError, create_once

__all__ = ["Candidate", "register"]
_REQUIREMENTS = (
    "imagecodecs",
    "numpy",
    "opencv-python-headless",
    "pandas",
    "pillow",
    "safetensors",
    "scipy",
    "simplejpeg",
    "torch",
    "torchvision",
    "tqdm",
)  # of scoring alone; MLflow adds itself


def register(candidate: Candidate, *, config: RegistryConfig, run: str = "", page: Path | None = None) -> Registered:
    """Register a model that the gate promoted, and make it champion.

    First every other backend that is installed is compared with PyTorch: tags `backend.NAME.PRECISION` of the version
    say how near it comes, or that it is refused. A model goes on with backends refused: PyTorch scores it.

    The version is logged with signature, input example and tags. Then the real server, `mlflow models serve`, loads it
    from the registry and is asked to score the input example and pictures of the test part: it must answer as the
    evaluation did, to SERVED_TOLERANCE points of 100. Only then does the alias move. If anything fails before, the
    version is deleted and the champion stays. Run again (a retried step), it goes on from what is there: it returns
    the version that won, moves the alias to one that was complete, deletes one that was not.

    Args:
        candidate: its files; the verdict says promote.
        config: names.
        run: the pipeline run, as `Runs.open` takes it; default: the one that this process is a step of.
        page: Markdown file to write, that says where the MLflow run is.
    Returns:
        the version, which holds the alias.
    Raises:
        ChampionMoved: another version became champion in the meantime.
        RegistryError: the verdict does not say promote, MLflow fails, or the logged model, as served, does not score
            as it was judged.
    """
    facts = read_facts(candidate)
    registry = Registry(config)
    run = run or current_pipeline_run()
    mlrun = registry.runs.open(run)
    if page:
        page.write_text(registry.runs.describe(run))
    facts.tags.update({PIPELINE_RUN: run, "code.revision": read_code_revision()})

    version = registry.champion()
    if not version or not _is_of_run(registry, version, mlrun, facts):
        check_champion(registry, facts.expected_champion)
        for file in (candidate.evaluation, candidate.verdict, candidate.lineage):
            mlrun.log_file(file, "judgement")
        mlrun.log_dataset(facts.lineage, "training")
        mlrun.log_dataset(facts.lineage, "evaluation")
        version = _find_complete(registry, mlrun, facts) or _create_complete(registry, mlrun, candidate, facts)
        with _withdrawn_on_failure(registry, mlrun, version):
            move_alias(registry, version, facts.expected_champion, "register", facts.reason)
    mlrun.set_tags(facts.tags | {"registered_version": version, DESCRIPTION_TAG: _describe(candidate, facts)})
    mlrun.close()
    return Registered(config.model, version, config.alias)


def _is_of_run(registry: Registry, version: str, mlrun: Run, facts: Facts) -> bool:
    """Whether a version is this candidate, registered by an earlier try of this run."""
    own = registry.find_version(version)
    return bool(own.run_id == mlrun.id and own.tags.get(MODEL_HASH) == facts.tags[MODEL_HASH])


def _find_complete(registry: Registry, mlrun: Run, facts: Facts) -> str:
    """The version of this candidate that an earlier try of this run completed; those that it did not are deleted."""
    complete = ""
    client, model = registry.store.client, registry.config.model
    with registry.store.translate_errors("reading the registry"):
        for version in client.search_model_versions(f"name='{model}' and run_id='{mlrun.id}'"):
            if version.tags.get(STATE) != COMPLETE:
                client.delete_model_version(model, version.version)
            elif version.tags.get(MODEL_HASH) == facts.tags[MODEL_HASH]:
                complete = str(version.version)
    return complete


def _create_complete(registry: Registry, mlrun: Run, candidate: Candidate, facts: Facts) -> str:
    """A new version that has scored pictures as the candidate was judged; it holds no alias yet."""
    from contrique.scoring.scorer import Scorer

    scorer = Scorer(candidate.encoder, candidate.regressor)
    examples = [score_example(scorer, str(candidate.encoder)), *read_known_pictures(candidate)]
    parity = {f"backend.{name}": agreement for name, agreement in scorer.parity().items()}
    facts.tags.update(parity)
    version = _log_version(registry, mlrun, candidate, facts)
    with _withdrawn_on_failure(registry, mlrun, version):
        proof = prove(registry, version, examples)
        with registry.store.translate_errors(f"completing version {version}"):
            client, model = registry.store.client, registry.config.model
            client.set_model_version_tag(model, version, PROOF, proof)
            client.set_model_version_tag(model, version, STATE, COMPLETE)
    return version


@contextmanager
def _withdrawn_on_failure(registry: Registry, mlrun: Run, version: str) -> Iterator[None]:
    """Delete a version if the block fails, unless it has become champion."""
    try:
        yield
    except BaseException as error:
        try:
            _withdraw(registry, mlrun, version)
        except RegistryError as second:  # the first error is the cause; without its tag the version is never used
            error.add_note(str(second))
        raise


def _withdraw(registry: Registry, mlrun: Run, version: str) -> None:
    if registry.champion() != version:
        with registry.store.translate_errors(f"deleting version {version}"):
            registry.store.client.delete_model_version(registry.config.model, version)
        mlrun.set_tags({"verdict": "promote", "registration": f"failed, version {version} deleted"})


def _describe(candidate: Candidate, facts: Facts) -> str:
    """What MLflow shows of a version and its run; it renders Markdown."""
    return candidate.description or escape_markdown(facts.reason)


def _log_version(registry: Registry, mlrun: Run, candidate: Candidate, facts: Facts) -> str:
    """Log the model to the run and make a version of it, without alias and not yet complete."""
    client, model, tags = registry.store.client, registry.config.model, facts.tags
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
    with tempfile.TemporaryDirectory() as staging, registry.store.translate_errors("logging the model", STORE_REMEDY):
        code = Path(staging) / "code" / package.name  # less the bundled model: each version would carry it
        shutil.copytree(package, code, ignore=shutil.ignore_patterns("bundled", "__pycache__"))
        parts = {"encoder": Path(staging) / ENCODER, "regressor": Path(staging) / REGRESSOR}
        shutil.copyfile(candidate.encoder, parts["encoder"])
        shutil.copytree(candidate.regressor, parts["regressor"])
        if candidate.card:
            parts["card"] = Path(staging) / MODEL_CARD
            parts["card"].write_text(candidate.card, encoding="utf-8")
        with mlflow.start_run(run_id=mlrun.id):
            logged = mlflow.pyfunc.log_model(
                name="quality_model",
                python_model=str(package / "serving" / "mlflow_model.py"),
                artifacts={name: str(path) for name, path in parts.items()},
                code_paths=[str(code)],
                signature=signature,
                input_example=input_example(),
                model_config={name: tags[name] for name in HASHES if name in tags},  # by which it proves its files
                pip_requirements=[f"{name}=={metadata.version(name)}" for name in _REQUIREMENTS],
            )
        mlrun.log_metrics(facts.figures, model=logged.model_id, dataset=facts.lineage)
        create_once(client.create_registered_model, model)
        version = client.create_model_version(
            model,
            logged.model_uri,
            mlrun.id,
            tags=tags,
            description=_describe(candidate, facts),
            model_id=logged.model_id,
        )
    return str(version.version)
