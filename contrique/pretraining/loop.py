"""The training loop: steps, log, probe and checkpoints, resumable to the bit (spec sections 2 to 4)."""

import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from contrique.errors import ContriqueError
from contrique.files import write_aside
from contrique.pretraining import distributed
from contrique.pretraining.batches import Views
from contrique.pretraining.checkpoints import Checkpoints, DamagedCheckpoint
from contrique.pretraining.loader import load_batches
from contrique.pretraining.probe import Probe
from contrique.pretraining.trainer import Trainer, Update
from contrique.text import escape_control

Track = Callable[[dict[str, float], int], None]


class Diverged(ContriqueError):
    """Loss or gradient is not finite; the message names step and pictures, the last good checkpoint stays."""


def run_training(run: "TrainingRun", views: Views, total: int) -> float:
    """The training loop. Returns the fraction of the time spent waiting for data."""
    from tqdm import tqdm

    trainer, past = run.trainer, run.past
    config = trainer.config
    clock = 60 * config.minutes
    stop = sys.maxsize if clock else total
    start = ticking = last = time.monotonic()
    before = past.seconds
    update: Update | None = None
    bar = tqdm(
        total=None if clock else total,
        initial=past.step,
        desc="pretraining",
        unit="step",
        disable=None if trainer.world.is_main else True,
    )
    with ThreadPoolExecutor(1) as pool:  # the loader starts while the encoder is compiled
        future = pool.submit(load_batches, views, past.step, stop, config.workers)
        trainer.warm_up()
        batches = future.result()
    for batch in batches:
        now = time.monotonic()
        if update is None:
            start = now
        else:
            run.waited += now - last
            past.seconds = before + now - ticking
        progress = distributed.broadcast(past.seconds) / clock if clock else past.step / total
        if progress >= 1 and past.step:
            break
        lr = trainer.schedule(min(1.0, progress))
        first, update = update is None, trainer.update(batch, lr)
        if first:  # minutes are of training: starting the loader and compiling must not cost the warm-up
            ticking = time.monotonic()
        run.pending.append(torch.stack([update.loss.double(), update.grad_norm.double()]))
        past.step += 1
        past.crops += 2 * config.images
        bar.update()
        probing = bool(config.probe_every) and past.step % config.probe_every == 0
        logging = probing or past.step % config.log_every == 0
        saving = past.step % config.checkpoint_every == 0 and past.step < stop  # the last one is saved when logged
        if logging or saving:
            run.collect_losses(views)
        if logging:
            entry = run.log(update, lr, time.monotonic() - start)
            left = f", {(clock - past.seconds) / 60:.1f} minutes left" if clock else ""  # else the bar has an ETA
            bar.set_postfix_str(f"loss {entry['loss']:.3f}, {entry['crops_per_s']:.0f} crops/s{left}")
        if probing:
            run.run_probe()
        if saving:
            run.save()
        last = time.monotonic()
    bar.close()
    run.collect_losses(views)
    seconds = time.monotonic() - start
    if update:
        past.seconds = before + time.monotonic() - ticking
    if past.losses and update:
        run.log(update, lr, seconds)
    run.run_probe()
    run.save(last=True)
    return run.waited / max(1e-9, seconds)


def write_history(path: Path, history: list[dict[str, float]]) -> None:
    with write_aside(path) as aside:
        aside.write_text("".join(json.dumps(entry) + "\n" for entry in history))


@dataclass
class TrainingState:
    """Progress of a run, beside weights and optimizer.

    Attributes:
        step: number of optimizer steps.
        crops: number of views, over all ranks.
        seconds: time spent, up to the last step.
        losses: of the steps since the last entry of the history.
        history: logged metrics.
    """

    step: int = 0
    crops: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)


class TrainingRun:
    """A trainer with its progress, its checkpoints and its log."""

    def __init__(self, trainer: Trainer, checkpoints: Checkpoints, probe: Probe | None, track: Track | None) -> None:
        self.trainer, self.checkpoints, self.probe = trainer, checkpoints, probe
        self.track = track if trainer.world.is_main else None
        self.past = TrainingState()
        self.pending: list[Tensor] = []  # loss and gradient norm of each step since `collect_losses`, on the device
        self.grad_norm = 0.0
        self.first_crop = 0
        self.waited = 0.0

    def collect_losses(self, views: Views) -> None:
        """Read the losses of the steps since the last call. A GPU whose host reads every step's idles between steps.

        Raises:
            Diverged: a loss or a gradient is not finite.
        """
        from tqdm import tqdm

        values = torch.stack(self.pending).tolist() if self.pending else []
        self.pending.clear()
        for step, (loss, grad_norm) in enumerate(values, self.past.step - len(values)):
            if not math.isfinite(loss + grad_norm):
                names = [escape_control(views.pictures.name(row)) for row in views.rows(step)]
                tqdm.write(f"pictures of step {step}: {', '.join(names)}", file=sys.stderr)
                raise Diverged(
                    f"the loss is {loss} and its gradient's norm {grad_norm} at step {step}; look at the pictures of "
                    f"that step, {names[0]} to {names[-1]} (all are listed above), or begin again with a pretrain.lr "
                    f"below {self.trainer.config.lr} and another pretrain.checkpoints: the last good checkpoint stays "
                    f"in {self.checkpoints.location}"
                )
            self.past.losses.append(loss)
            self.grad_norm = grad_norm

    def log(self, update: Update, lr: float, seconds: float) -> dict[str, float]:
        """Add an entry to the history and track it; `seconds`: since this process began to train."""
        past = self.past
        positive, negative = _compute_similarities(update.z, update.labels, self.trainer.config.temperature)
        entry = {
            "loss": sum(past.losses) / len(past.losses),
            "lr": lr,
            "grad_norm": self.grad_norm,
            "positive_similarity": positive,
            "negative_similarity": negative,
            "crops_per_s": (past.crops - self.first_crop) / seconds,
            "wait_share": self.waited / seconds,
        }
        past.losses = []
        past.history.append({"step": past.step} | entry)
        if self.track:
            self.track(entry, past.step)
        return entry

    def run_probe(self) -> None:
        """Add the probe's accuracies to the last entry of the history, unless they are there."""
        past = self.past
        if self.probe is None or not past.history or "probe_type" in past.history[-1]:
            return
        accuracies = self.probe.measure(self.trainer.embed)
        past.history[-1] |= accuracies
        if self.track:
            self.track(accuracies, past.step)

    def save(self, *, last: bool = False) -> None:
        """Save a checkpoint of this step, on the main rank."""
        if self.trainer.world.is_main:
            state = dataclasses.asdict(self.past) | {"recipe": self.trainer.recipe()}
            self.checkpoints.save(self.past.step, self.trainer.tensors(), state, last=last)

    def resume(self) -> None:
        """Load the newest whole checkpoint, if any, on every rank."""
        resumed = -1
        if self.trainer.world.is_main:
            steps = self.checkpoints.steps()
            for step in steps:
                try:
                    self._load(step)
                    resumed = step
                    break
                except DamagedCheckpoint as error:
                    print(f"{error}; trying the one before it", file=sys.stderr)
            if steps and resumed < 0:
                print(f"{self.checkpoints.location}: no whole checkpoint; beginning anew", file=sys.stderr)
        resumed = int(distributed.broadcast(resumed))
        if resumed >= 0 and not self.trainer.world.is_main:
            if resumed not in self.checkpoints.steps():
                raise ContriqueError(
                    f"{self.checkpoints.name(resumed)}: cannot be seen by process {self.trainer.world.rank}; set "
                    "pretrain.checkpoints to a folder that all machines share, or to s3://BUCKET/PREFIX"
                )
            self._load(resumed)
        self.first_crop = self.past.crops

    def _load(self, step: int) -> None:
        tensors, state = self.checkpoints.load(step)
        if state.pop("recipe") != self.trainer.recipe():
            raise ContriqueError(
                f"{self.checkpoints.name(step)}: of another recipe, seed, data or start; choose another folder or "
                "remove it"
            )
        self.trainer.restore(tensors)
        self.past = TrainingState(**state)


def _compute_similarities(z: Tensor, labels: Tensor, temperature: float) -> tuple[float, float]:
    """Mean cosine over positive and over negative pairs, divided by the temperature, as in the loss; 0 for no pairs.

    Both follow from sums per class, without the matrix of all pairs.
    """
    z = nn.functional.normalize(z.float(), dim=1)
    _, inverse, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    per_class = z.new_zeros(len(counts), z.shape[1]).index_add_(0, inverse, z)
    selves = z.square().sum()
    positive, total = per_class.square().sum() - selves, z.sum(0).square().sum() - selves
    pairs = int((counts * (counts - 1)).sum())
    negatives = len(z) * (len(z) - 1) - pairs
    return float(positive) / max(1, pairs) / temperature, float(total - positive) / max(1, negatives) / temperature
