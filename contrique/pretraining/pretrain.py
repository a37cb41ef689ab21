"""Contrastive pretraining in one process or several, resumable to the bit (spec sections 2 to 4)."""

import dataclasses
import json
import math
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from contrique.artifacts import CHECKPOINTS, ENCODER, HISTORY, SUMMARY
from contrique.config import PretrainConfig, SynthesisConfig
from contrique.encoder.weights import load_encoder, read_metadata, save_encoder
from contrique.files import sha256, write_aside
from contrique.metadata import Facts
from contrique.pretraining import distributed
from contrique.pretraining.batches import OnTheFly, Views
from contrique.pretraining.cache import PictureCache, measure_room
from contrique.pretraining.checkpoints import Checkpoints
from contrique.pretraining.loader import PREFETCH, load_batches, use_threads
from contrique.pretraining.loop import Track, TrainingRun, run_training, write_history
from contrique.pretraining.probe import Probe, split_probe_rows
from contrique.pretraining.trainer import Trainer

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class PretrainSummary(Facts):
    """Summary of a pretraining run.

    Attributes:
        steps: optimizer steps, those of resumed runs included.
        crops: views, likewise.
        loss_first: mean loss of the first logged steps.
        loss_last: mean loss of the last logged steps.
        minutes: wall time of this run.
        wait_share: fraction of the time after the first batch that was spent waiting for the loader.
        start: SHA-256 of the encoder that training went on from, or that was used as it is; empty if training began
            with random weights.
        start_name: whose encoder that was, as `contrique.pretraining.start.Start` names it.
        frozen: whether it was used as it is; steps and crops are then those of its own training.
    """

    steps: int
    crops: int
    loss_first: float
    loss_last: float
    minutes: float
    wait_share: float
    start: str = ""
    start_name: str = ""
    frozen: bool = False

    @classmethod
    def load(cls, out: Path) -> "PretrainSummary":
        """Read `summary.json` of a run's folder."""
        return cls(**json.loads((out / SUMMARY).read_text()))

    def save(self, out: Path) -> None:
        """Write `summary.json` into a run's folder."""
        with write_aside(out / SUMMARY) as aside:
            aside.write_text(json.dumps(dataclasses.asdict(self)))


def build_pool(
    dataset: Path, distorted: Path, merge_identity: bool = True, on_the_fly: bool = False
) -> "tuple[pd.DataFrame, pd.DataFrame]":
    """The pictures to pretrain on, and those to probe the encoder with.

    Args:
        dataset: the picture set that holds authentic pictures and pristine photographs.
        distorted: the picture set synthesized from its pristine ones.
        merge_identity: as `contrique.distortions.class_id`.
        on_the_fly: take the photographs instead of their distorted versions; `distorted` is not read.
    Returns:
        rows of the split `pretrain`, synthetic and authentic, and rows of all other synthetic pictures: manifest rows
        with `folder` and `label` (-1 for authentic ones).
    Raises:
        DatasetError: pictures to pretrain on cannot be read, by what the manifests say.
    """
    import pandas as pd

    from contrique.data.manifest import DatasetError, read_manifest
    from contrique.distortions import class_id

    manifest = read_manifest(dataset)
    synthetic = manifest[manifest["kind"] == "pristine"] if on_the_fly else read_manifest(distorted)
    kinds = zip(synthetic.distortion, synthetic.level, strict=True)
    labels = [class_id(name, level, merge_identity) for name, level in kinds]
    synthetic = synthetic.assign(folder=str(dataset if on_the_fly else distorted), label=labels)
    authentic = manifest[(manifest["split"] == "pretrain") & (manifest["kind"] == "authentic")]
    pretraining = synthetic["split"] == "pretrain"
    train = pd.concat([synthetic[pretraining], authentic.assign(folder=str(dataset), label=-1)], ignore_index=True)
    damaged = train[train["error"].fillna("") != ""]
    if len(damaged):
        raise DatasetError(
            f"{dataset}: {len(damaged)} pictures to pretrain on cannot be read ({', '.join(damaged['error'][:3])}); "
            "mend or remove them"
        )
    return train, synthetic[~pretraining].reset_index(drop=True)


def pretrain(
    dataset: Path,
    distorted: Path,
    out: Path,
    *,
    config: PretrainConfig | None = None,
    seed: int = 0,
    track: Track | None = None,
    synthesis: SynthesisConfig | None = None,
    start: Path | None = None,
) -> PretrainSummary:
    """Train an encoder and write `out/encoder.safetensors` and `out/history.jsonl`.

    Under torchrun the processes share each step's pictures and compute the same result as a single process; the first
    one writes. An interrupted run goes on from its last whole checkpoint (`config.checkpoints`), with any number of
    processes; on CPUs with the same number of processes and threads its weights equal those of an uninterrupted run
    bit for bit (not with `minutes`, where the clock decides).

    Args:
        dataset: picture set with the authentic pictures.
        distorted: picture set of synthesized pictures; rows of the split `pretrain` are used.
        out: folder of the run.
        config: the recipe.
        seed: of weights, order, crops and colour spaces, and of distortions on the fly.
        track: called with metrics and the step: `loss`, `lr`, `grad_norm`, `positive_similarity` and
            `negative_similarity` (means over pairs, divided by the temperature), `crops_per_s` and `wait_share` every
            `log_every` steps, `probe_type` and `probe_level` every `probe_every` steps and at the end.
        synthesis: the distorted versions of each photograph if `config.synthesis` is `on_the_fly`.
        start: an encoder file to train on from, instead of random weights; projector and optimizer begin anew.
    Returns:
        the summary of the run.
    Raises:
        EncoderError: `start` cannot be loaded, or is of another architecture than `config.arch`.
        Diverged: loss or gradient is not finite; the step's pictures are named on stderr.
        DatasetError: pictures are missing, or do not divide by the number of processes.
        BadImage: a picture went bad after its manifest was made; the last checkpoint stays.
        StorageError: checkpoints cannot be listed, or the last one cannot be stored.
    """
    config = config or PretrainConfig()
    tuned = torch.backends.cudnn.flags(enabled=True, benchmark=True)  # every step has the same shapes
    with distributed.process_group() as world, use_threads(config.threads, world.local), tuned:
        views, probe = _open_data(dataset, distorted, config, synthesis or SynthesisConfig(), seed, world)
        total = config.steps or math.ceil(config.epochs * views.steps_per_epoch)
        trainer = Trainer(config, seed, world, views.pictures.fingerprint(), start)
        run = TrainingRun(trainer, Checkpoints(config.checkpoints or str(out / CHECKPOINTS)), probe, track)
        run.resume()
        start_time = time.monotonic()
        waited = run_training(run, views, total)
        minutes = (time.monotonic() - start_time) / 60
        past = run.past
        trainer.calibrate(load_batches(views, past.step, past.step + config.calibration, config.workers))
        if world.is_main:
            write_history(out / HISTORY, past.history)
            recipe = dataclasses.asdict(config)
            del recipe["cache"]  # a place, which does not change what is trained
            metadata = {"config": recipe, "seed": seed, "steps": past.step, "crops": past.crops}
            save_encoder(trainer.encoder, out / ENCODER, metadata | trainer.provenance)
    losses = [entry["loss"] for entry in past.history]
    tail = max(1, len(losses) // 20)
    return PretrainSummary(
        steps=past.step,
        crops=past.crops,
        loss_first=sum(losses[:tail]) / tail,
        loss_last=sum(losses[-tail:]) / tail,
        minutes=minutes,
        wait_share=waited,
        start=trainer.provenance.get("start", ""),
    )


def adopt_encoder(start: Path, out: Path) -> PretrainSummary:
    """Use an encoder as it is, frozen: write the same bytes, and a history without entries.

    Args:
        start: an encoder file.
        out: folder of the run; gets `encoder.safetensors` and `history.jsonl`.
    Returns:
        the summary of the training that the file names; `start` is the SHA-256 of the file.
    Raises:
        EncoderError: it is missing, damaged, or no encoder of this project.
    """
    metadata = read_metadata(start)
    load_encoder(start)
    with write_aside(out / ENCODER) as aside:
        shutil.copyfile(start, aside)
    write_history(out / HISTORY, [])
    return PretrainSummary(
        steps=int(metadata.get("steps", 0)),
        crops=int(metadata.get("crops", 0)),
        loss_first=0.0,
        loss_last=0.0,
        minutes=0.0,
        wait_share=0.0,
        start=sha256(start),
        frozen=True,
    )


def _open_data(
    dataset: Path,
    distorted: Path,
    config: PretrainConfig,
    synthesis: SynthesisConfig,
    seed: int,
    world: distributed.World,
) -> tuple[Views, Probe | None]:
    """Views to train on, and a probe if there are photographs for it; the two share no content."""
    import pandas as pd

    on_the_fly = _plan_versions(config, synthesis, seed) if config.synthesis == "on_the_fly" else None
    pool, others = build_pool(dataset, distorted, config.merge_identity, on_the_fly=on_the_fly is not None)
    probe = None
    if config.probe_every:
        synthetic = pool["label"] >= 0
        train, probe_rows = split_probe_rows(pd.concat([pool[synthetic], others]))
        pool = pd.concat([train, pool[~synthetic]], ignore_index=True)
        if len(probe_rows) and world.is_main:
            probe = Probe(probe_rows, config.crop, on_the_fly)
        elif world.is_main:
            print("too few photographs to hold some out: no probe of the encoder", file=sys.stderr)
    views = Views(pool, config, seed=seed, on_the_fly=on_the_fly, rank=world.rank, ranks=world.size)
    if config.cache:
        batch = 6 * config.crop**2 * config.images // world.size  # bytes: two views in RGB of each picture
        room = measure_room(config.cache, config.workers * PREFETCH * batch, world.local)
        views.cache = PictureCache(views.pictures, config.cache, room)
    return views, probe


def _plan_versions(config: PretrainConfig, synthesis: SynthesisConfig, seed: int) -> OnTheFly:
    from contrique.data.synthesis import versions
    from contrique.distortions import class_id

    plan = tuple(versions(synthesis))
    labels = tuple(class_id(*version, config.merge_identity) for version in plan)
    return OnTheFly(plan, labels, synthesis.max_side, seed)
