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
    encoder: dsl.Output[dsl.Model],
) -> None:
    """Train the encoder to tell distortions apart; loss, similarities and probe go to MLflow as they come.

    Args:
        dataset: validated picture set; its authentic photographs are one half of each batch.
        distorted: synthesized picture set, the other half.
        profile: demo or paper.
        overrides: options that differ from the profile.
        seed: of the weights, the batches and the crops.
        encoder: folder with encoder.safetensors and history.jsonl.
    """
    from pathlib import Path

    from contrique import config, pretrain, registry

    settings = config.resolve(profile, overrides)
    encoder.metadata.update(
        vars(
            pretrain.pretrain(
                Path(dataset.path),
                Path(distorted.path),
                Path(encoder.path),
                config=settings.pretrain,
                seed=seed,
                track=registry.this_run(settings).track,
                synthesis=settings.synthesis,
            )
        )
    )
