"""Stage 4: contrastive pretraining."""

from kfp import dsl

from components import component


@component
def pretrain_encoder(
    dataset: dsl.Input[dsl.Dataset],
    distorted: dsl.Input[dsl.Dataset],
    profile: str,
    overrides: dict,
    seed: int,
    start: str,
    pin: str,
    encoder: dsl.Output[dsl.Model],
    processes: int = 1,
    job: str = "",
    to: str = "",
) -> None:
    """Train the encoder to tell distortions apart, or take one that exists; loss and probe go to MLflow as they come.

    Args:
        dataset: validated picture set; its authentic photographs are one half of each batch.
        distorted: synthesized picture set, the other half.
        profile: demo, gpu or paper.
        overrides: options that differ from the profile.
        seed: of the weights, the batches and the crops.
        start: encoder that training starts from, as `pin_encoder` takes it; empty for random weights.
        pin: what `pin_encoder` said; another encoder than that is refused.
        encoder: folder with encoder.safetensors, history.jsonl and summary.json.
        processes: that train together in this task, each on a GPU of its own if there are any.
        job: TrainJob of Kubeflow Trainer, as JSON, to train on several machines while this task waits; empty without.
        to: s3:// prefix that such a job's data, checkpoints and results go below.
    """
    from pathlib import Path

    from contrique.config import resolve
    from contrique.pretraining.launch import pretrain
    from contrique.registry.start import fetch_encoder

    with fetch_encoder(start, resolve(profile, overrides).registry, pin) as source:
        summary = pretrain(
            Path(dataset.path),
            Path(distorted.path),
            Path(encoder.path),
            profile=profile,
            overrides=overrides,
            seed=seed,
            processes=processes,
            job=job,
            to=to,
            start=source,
        )
        encoder.metadata.update(summary.describe())
