"""The walk: data -> validation -> distortions -> encoder -> features -> regressor -> evaluation -> gate -> registry."""

from kfp import dsl, kubernetes

from components.decide_promotion import decide_promotion
from components.evaluate_model import evaluate_model
from components.extract_features import extract_features
from components.fetch_data import fetch_data
from components.fit_regressor import fit_regressor
from components.keep_champion import keep_champion
from components.pretrain_encoder import pretrain_encoder
from components.register_model import register_model
from components.synthesize_distortions import synthesize_distortions
from components.validate_data import validate_data
from components.write_report import write_report
from pipelines import resources


def equipped(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """The task with the resources, caching, retries, credentials and title of its stage."""
    stage = resources.STAGES[task.component_spec.name.replace("-", "_")]
    task.set_display_name(stage.title).set_caching_options(stage.cache)
    task.set_cpu_request(stage.cpu).set_memory_request(stage.memory).set_memory_limit(stage.memory)
    kubernetes.set_timeout(task, stage.hours * 3600)
    if stage.retries:
        task.set_retry(stage.retries, **resources.BACKOFF)
    if stage.gpus:
        task.set_accelerator_type(resources.GPU).set_accelerator_limit(stage.gpus)
        kubernetes.add_toleration(task, key=resources.GPU, operator="Exists", effect="NoSchedule")
    if stage.shm:
        kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=stage.shm)
    if stage.s3 or stage.mlflow:  # MLflow's artifacts lie on S3 too
        kubernetes.use_secret_as_env(task, *resources.S3_SECRET)
        kubernetes.use_config_map_as_env(task, resources.ENDPOINTS, resources.S3_ENDPOINTS)
    if stage.mlflow:
        kubernetes.use_secret_as_env(task, *resources.MLFLOW_SECRET, optional=True)
        kubernetes.use_config_map_as_env(task, resources.ENDPOINTS, resources.MLFLOW_ENDPOINTS)
        # An environment variable and not a parameter: a parameter that changes with each run would defeat the cache.
        kubernetes.use_field_path_as_env(task, "CONTRIQUE_RUN", "metadata.labels['pipeline/runid']")
    return task


@dsl.pipeline(name="contrique-training", display_name="CONTRIQUE training")
def training(
    data: str,
    revision: str = "",
    pristine: list = [],  # noqa: B006 (KFP copies defaults into the compiled document)
    authentic: list = [],  # noqa: B006
    profile: str = "demo",
    overrides: dict = {},  # noqa: B006
    seed: int = 0,
) -> None:
    """Train, judge, gate and register a no-reference image-quality model.

    Args:
        data: Where the data is: a folder, git URL or s3:// prefix that holds data.dvc, a picture set, or images with
            labels.csv.
        revision: Git revision of data.dvc to train on; empty means what the folder holds now.
        pristine: Folders (or s3:// prefixes) of undistorted photographs without labels, to distort and train on.
        authentic: Folders (or s3:// prefixes) of camera photographs without labels, to train on.
        profile: Starting point of the configuration, demo (minutes on a laptop) or paper (the published recipe).
        overrides: Options that differ from the profile, by dotted name, as JSON, such as {"pretrain.steps" : 100}.
        seed: Of every random draw; the same seed on the same data gives the same weights on a CPU.
    """
    settings = {"profile": profile, "overrides": overrides}
    fetched = equipped(fetch_data(data=data, revision=revision, pristine=pristine, authentic=authentic))
    dataset = fetched.outputs["dataset"]
    validated = equipped(validate_data(dataset=dataset, **settings))
    synthesized = equipped(synthesize_distortions(dataset=dataset, seed=seed, **settings)).after(validated)
    pictures = {"dataset": dataset, "distorted": synthesized.outputs["distorted"]}
    pretrained = equipped(pretrain_encoder(seed=seed, **pictures, **settings))
    encoder = pretrained.outputs["encoder"]
    extracted = equipped(extract_features(encoder=encoder, **pictures, **settings))
    features = extracted.outputs["features"]
    regressor = equipped(fit_regressor(features=features, **settings)).outputs["regressor"]
    evaluated = equipped(evaluate_model(features=features, regressor=regressor, seed=seed, **pictures, **settings))
    evaluation = evaluated.outputs["result"]
    decided = equipped(decide_promotion(evaluation=evaluation, **settings))
    verdict = decided.outputs["verdict"]
    # If AND Else on a component's one returned value: KFP's local runner skips other forms and calls it success.
    with dsl.If(decided.outputs["Output"] == "promote", name="promote"):
        registered = equipped(
            register_model(
                dataset=dataset,
                encoder=encoder,
                regressor=regressor,
                evaluation=evaluation,
                verdict=verdict,
                **settings,
            )
        )
    with dsl.Else(name="hold"):
        kept = equipped(keep_champion(dataset=dataset, verdict=verdict, **settings))
    equipped(
        write_report(
            validation=validated.outputs["summary"],
            encoder=encoder,
            evaluation=evaluation,
            verdict=verdict,
            outcome=dsl.OneOf(registered.output, kept.output),
            seed=seed,
            **pictures,
            **settings,
        )
    )
