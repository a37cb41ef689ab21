"""Contrastive pretraining: one loop, in one process or several, resumable to the bit (spec sections 2 to 4)."""

import dataclasses
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from contrique.artifacts import CHECKPOINTS, ENCODER, HISTORY
from contrique.config import PretrainConfig, SynthesisConfig
from contrique.encoder.weights import save_encoder
from contrique.pretraining import distributed
from contrique.pretraining.batches import OnTheFly, Views
from contrique.pretraining.checkpoints import Checkpoints
from contrique.pretraining.loader import load_batches, use_threads
from contrique.pretraining.probe import Probe, split_probe_rows
from contrique.pretraining.trainer import Track, Trainer, TrainingRun, run_training, write_history

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class PretrainSummary:
    """What a pretraining run did.

    Attributes:
        steps: optimizer steps made, earlier runs that were resumed included.
        crops: views seen, likewise.
        loss_first: mean loss of the first logged steps; `loss_last` of the last ones.
        minutes: wall time of this run.
        wait_share: share of the time from the first batch on that was spent waiting for the loader; its start is not
            counted.
    """

    steps: int
    crops: int
    loss_first: float
    loss_last: float
    minutes: float
    wait_share: float


def build_pool(
    dataset: Path, distorted: Path, merge_identity: bool = True, on_the_fly: bool = False
) -> "tuple[pd.DataFrame, pd.DataFrame]":
    """The pictures to pretrain on, and those to probe the encoder with.

    Args:
        dataset: the picture set that holds authentic pictures and pristine photographs.
        distorted: the picture set synthesized from its pristine ones.
        merge_identity: as `contrique.distortions.class_id`.
        on_the_fly: take the photographs themselves, and not the pictures made of them; `distorted` is not read.
    Returns:
        rows of the split `pretrain`, synthetic and authentic, and rows of all other synthetic pictures: manifest rows
        with `folder` and `label` (-1 for authentic ones).
    Raises:
        DatasetError: pictures to pretrain on cannot be read, by what the manifests say.
    """
    import pandas as pd

    from contrique.data.manifest import DatasetError, read_manifest
    from contrique.distortions import class_id

    given = read_manifest(dataset)
    made = given[given["kind"] == "pristine"] if on_the_fly else read_manifest(distorted)
    labels = [class_id(name, level, merge_identity) for name, level in zip(made.distortion, made.level, strict=True)]
    made = made.assign(folder=str(dataset if on_the_fly else distorted), label=labels)
    authentic = given[(given["split"] == "pretrain") & (given["kind"] == "authentic")]
    pretraining = made["split"] == "pretrain"
    train = pd.concat([made[pretraining], authentic.assign(folder=str(dataset), label=-1)], ignore_index=True)
    damaged = train[train["error"].fillna("") != ""]
    if len(damaged):
        raise DatasetError(
            f"{dataset}: {len(damaged)} pictures to pretrain on cannot be read ({', '.join(damaged['error'][:3])}); "
            "mend or remove them"
        )
    return train, made[~pretraining].reset_index(drop=True)


def pretrain(
    dataset: Path,
    distorted: Path,
    out: Path,
    *,
    config: PretrainConfig | None = None,
    seed: int = 0,
    track: Track | None = None,
    synthesis: SynthesisConfig | None = None,
) -> PretrainSummary:
    """Train an encoder and write `out/encoder.safetensors` and `out/history.jsonl`.

    Started by torchrun, the processes share each step's pictures and compute what one process would; the first one
    writes. An interrupted run goes on from its last whole checkpoint (`config.checkpoints`), with any number of
    processes; on CPUs with the same number of processes and threads its weights equal those of an uninterrupted run
    bit for bit (not under `minutes`: the clock rules there).

    Args:
        dataset: picture set with the authentic pictures.
        distorted: picture set of synthesized pictures; rows of the split `pretrain` are used.
        out: folder of the run.
        config: the recipe.
        seed: of weights, order, crops and colour spaces, and of the distortions made on the fly.
        track: called with metrics and the step: `loss`, `lr`, `grad_norm`, `positive_similarity` and
            `negative_similarity` (means over pairs, divided by the temperature), `crops_per_s` and `wait_share` every
            `log_every` steps, `probe_type` and `probe_level` every `probe_every` steps and at the end.
        synthesis: what is made of each photograph where `config.synthesis` is `on_the_fly`.
    Returns:
        what was done.
    Raises:
        Diverged: loss or gradient is not finite; the step's pictures are named on stderr.
        DatasetError: pictures are missing, or do not divide by the number of processes.
        BadImage: a picture went bad after its manifest was made; what the last checkpoint holds stays.
        StorageError: checkpoints cannot be listed, or the last one not be stored.
    """
    config = config or PretrainConfig()
    tuned = torch.backends.cudnn.flags(enabled=True, benchmark=True)  # every step has the same shapes
    with distributed.process_group() as world, use_threads(config.threads, world.local), tuned:
        views, probe = _open_data(dataset, distorted, config, synthesis or SynthesisConfig(), seed, world)
        total = config.steps or math.ceil(config.epochs * views.steps_per_epoch)
        trainer = Trainer(config, seed, world, views.pictures.fingerprint())
        run = TrainingRun(trainer, Checkpoints(config.checkpoints or str(out / CHECKPOINTS)), probe, track)
        run.resume()
        started = time.monotonic()
        waited = run_training(run, views, total)
        minutes = (time.monotonic() - started) / 60
        past = run.past
        trainer.calibrate(load_batches(views, past.step, past.step + config.calibration, config.workers))
        if world.is_main:
            write_history(out / HISTORY, past.history)
            metadata = {"config": dataclasses.asdict(config), "seed": seed, "steps": past.step, "crops": past.crops}
            save_encoder(trainer.encoder, out / ENCODER, metadata)
    losses = [entry["loss"] for entry in past.history]
    tail = max(1, len(losses) // 20)
    return PretrainSummary(
        steps=past.step,
        crops=past.crops,
        loss_first=sum(losses[:tail]) / tail,
        loss_last=sum(losses[-tail:]) / tail,
        minutes=minutes,
        wait_share=waited,
    )


def _open_data(
    dataset: Path,
    distorted: Path,
    config: PretrainConfig,
    synthesis: SynthesisConfig,
    seed: int,
    world: distributed.World,
) -> tuple[Views, Probe | None]:
    """What to train on, and what to probe with if anything; the two share no content."""
    import pandas as pd

    making = _plan_versions(config, synthesis, seed) if config.synthesis == "on_the_fly" else None
    pool, others = build_pool(dataset, distorted, config.merge_identity, on_the_fly=making is not None)
    probe = None
    if config.probe_every:
        synthetic = pool["label"] >= 0
        kept, held = split_probe_rows(pd.concat([pool[synthetic], others]))
        pool = pd.concat([kept, pool[~synthetic]], ignore_index=True)
        if len(held) and world.is_main:
            probe = Probe(held, config.crop, making)
        elif world.is_main:
            print("too few photographs to hold some out: no probe of the encoder", file=sys.stderr)
    views = Views(
        pool,
        images=config.images,
        authentic_share=config.authentic_share,
        crop=config.crop,
        balanced=config.sampler == "balanced",
        contents_per_class=config.contents_per_class,
        seed=seed,
        colour_spaces=config.colour_spaces,
        on_the_fly=making,
        rank=world.rank,
        ranks=world.size,
    )
    return views, probe


def _plan_versions(config: PretrainConfig, synthesis: SynthesisConfig, seed: int) -> OnTheFly:
    from contrique.data.synthesis import versions
    from contrique.distortions import class_id

    made = tuple(versions(synthesis))
    return OnTheFly(made, tuple(class_id(*one, config.merge_identity) for one in made), synthesis.max_side, seed)
