"""One training loop, resumable to the bit (spec sections 2 to 4)."""

import dataclasses
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from contrique.config import PretrainConfig
from contrique.encoder.architectures import EncoderError
from contrique.encoder.network import Encoder, Projector, ViewNorm
from contrique.encoder.weights import load_encoder
from contrique.errors import ContriqueError
from contrique.files import sha256, write_aside
from contrique.pretraining import distributed
from contrique.pretraining.batches import Batch, Views
from contrique.pretraining.checkpoints import Checkpoints, DamagedCheckpoint
from contrique.pretraining.colour import COLOUR_SPACES, convert_views
from contrique.pretraining.loader import load_batches
from contrique.pretraining.loss import contrastive_loss
from contrique.pretraining.probe import Probe
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
    for batch in load_batches(views, past.step, stop, config.workers):
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
        saving = (
            past.step % config.checkpoint_every == 0 and past.step < stop
        )  # the last one is saved below, when logged
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
    spent = time.monotonic() - start
    if update:
        past.seconds = before + time.monotonic() - ticking
    if past.losses and update:
        run.log(update, lr, spent)
    run.run_probe()
    run.save(last=True)
    return run.waited / max(1e-9, spent)


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

    def __init__(self, trainer: "Trainer", checkpoints: Checkpoints, probe: Probe | None, track: Track | None) -> None:
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

    def log(self, update: "Update", lr: float, spent: float) -> dict[str, float]:
        """Add an entry to the history and track it; `spent`: seconds since this process began to train."""
        past = self.past
        positive, negative = _compute_similarities(update.z, update.labels, self.trainer.config.temperature)
        entry = {
            "loss": sum(past.losses) / len(past.losses),
            "lr": lr,
            "grad_norm": self.grad_norm,
            "positive_similarity": positive,
            "negative_similarity": negative,
            "crops_per_s": (past.crops - self.first_crop) / spent,
            "wait_share": self.waited / spent,
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
        measured = self.probe.measure(self.trainer.embed)
        past.history[-1] |= measured
        if self.track:
            self.track(measured, past.step)

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


@dataclass(frozen=True)
class Update:
    """Result of an optimizer step: loss and gradient norm of the whole batch, its vectors z and their labels."""

    loss: Tensor
    grad_norm: Tensor
    z: Tensor
    labels: Tensor


class Network(nn.Module):
    """Encoder and projector, from the two views of a rank's pictures to its vectors z."""

    def __init__(self, encoder: Encoder, projector: Projector, config: PretrainConfig, bfloat16: bool) -> None:
        super().__init__()
        self.encoder, self.projector = encoder, projector
        self.config, self.mixed = config, bfloat16

    def forward(self, views: tuple[Tensor, ...], colours: Tensor) -> Tensor:
        """uint8 views (n, 3, crop, crop) and their colour spaces -> (views * n * pool * pool, projection)."""
        n_joint, dtype = self.encoder.views, next(self.projector.parameters()).dtype
        if n_joint > 1:
            views, colours = (torch.cat(views),), colours.reshape(1, -1)
        vectors = []
        for view, spaces in zip(views, colours, strict=True):
            pixels = convert_views(view, spaces)
            layout = torch.channels_last if self.config.channels_last else torch.contiguous_format
            pixels = pixels.contiguous(memory_format=layout)
            with torch.autocast(view.device.type, torch.bfloat16, enabled=self.mixed):
                local = self.encoder.local(pixels, self.config.pool)
            vectors += [self.projector(part.flatten(0, 1).to(dtype)) for part in local.chunk(n_joint)]
        return torch.cat(vectors)


class Trainer:
    """Weights, optimizer and step: the whole state, since data and views are functions of (seed, step)."""

    def __init__(
        self, config: PretrainConfig, seed: int, world: distributed.World, data: str = "", start: Path | None = None
    ) -> None:
        self.config, self.seed, self.world, self.device, self.data = config, seed, world, world.device, data
        # batch-norm statistics are a view's own, as in the paper; one pass for both views is faster on a CPU alone
        n_joint = 2 if self.device.type == "cpu" and not distributed.is_in_group() else 1
        self.encoder = Encoder(config.arch, seed, n_joint).to(self.device)
        self.start = (
            {"start": _copy_weights(start, self.encoder)} if start else {}
        )  # nothing, so that no recipe changes
        projector = Projector(self.encoder.width, config.projection, seed).to(self.device)
        if config.channels_last:
            self.encoder = self.encoder.to(memory_format=torch.channels_last)
        if config.compile:
            _check_compiler(self.device)
            self.encoder.local = torch.compile(self.encoder.local)  # type: ignore[method-assign]
        self.bfloat16 = config.precision == "bfloat16" or (config.precision == "auto" and _bfloat16_pays(self.device))
        self.model = Network(self.encoder, projector, config, self.bfloat16).train()
        if distributed.is_in_group():
            distributed.synchronise_batch_norm(self.model, self.device)
        self.gradients = distributed.GradientSum(self.model)
        self.optimizer = _create_optimizer(self.model, config)

    def schedule(self, progress: float) -> float:
        """Linear warm-up, then cosine, per step. `progress` in [0, 1] -> learning rate."""
        peak = self.config.lr * 2 * self.config.images / self.config.lr_views
        if progress < self.config.warmup:
            return peak * max(progress, 1e-3) / self.config.warmup
        return peak * 0.5 * (1 + math.cos(math.pi * (progress - self.config.warmup) / (1 - self.config.warmup)))

    def update(self, batch: Batch, lr: float) -> Update:
        """One optimizer step; with a loss or a gradient that is not finite, the weights stay as they are."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        views = tuple(view.to(self.device, non_blocking=True) for view in batch.views)
        z = self.model(views, batch.colours)
        labels = batch.labels.to(self.device, non_blocking=True).repeat_interleave(self.config.pool**2).repeat(2)
        z, labels = distributed.gather(z), distributed.gather(labels)
        share = len(z) // self.world.size
        rows = slice(self.world.rank * share, (self.world.rank + 1) * share)
        loss: Tensor = contrastive_loss(z, labels, self.config.temperature, rows=rows)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.gradients.wait()
        grad_norm = nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        loss = distributed.sum_over_ranks(loss.detach())
        # fused optimizers skip the step where this is 1, so the host need not wait for the loss to decide
        self.optimizer.found_inf = 1 - (loss.isfinite() & grad_norm.isfinite()).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        return Update(loss, grad_norm, z.detach(), labels)

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Batch]) -> None:
        """Compute the encoder's batch-norm statistics anew over RGB views of `batches`; without batches they stay.

        The running ones are of the last few steps only and of every colour space, while features are taken in RGB;
        with small batches, two trainings that differ by rounding alone end with statistics half as large again.
        (Wu and Johnson 2021, Rethinking "Batch" in BatchNorm.)
        """
        norms = [layer for layer in self.encoder.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
        for norm in norms:
            if isinstance(norm, ViewNorm):
                norm.views = 1
        count = 0
        for batch in batches:
            for view in batch.views:
                count += 1
                for norm in norms:
                    norm.momentum = 1 / count  # the running mean is then the plain mean
                self._encode(view)

    @torch.no_grad()
    def embed(self, pixels: Tensor) -> Tensor:
        """Frozen features of the current encoder: RGB (N, 3, H, W) uint8 -> (N, width)."""
        self.encoder.eval()
        try:
            return self._encode(pixels)
        finally:
            self.encoder.train()

    def _encode(self, pixels: Tensor) -> Tensor:
        """Features of RGB (N, 3, H, W) uint8, with the encoder in its current mode."""
        rgb = torch.full((len(pixels),), COLOUR_SPACES.index("rgb"))
        colours = convert_views(pixels.to(self.device), rgb)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            features: Tensor = self.encoder(colours.contiguous(memory_format=torch.channels_last))
        return features

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Weights and optimizer, by file stem of a checkpoint."""
        state = self.optimizer.state_dict()["state"]
        moments = {f"{index}.{name}": tensor for index, slots in state.items() for name, tensor in slots.items()}
        return {"model": self.model.state_dict(), "optimizer": moments}

    def restore(self, tensors: dict[str, dict[str, Tensor]]) -> None:
        """Load the result of `tensors`."""
        self.model.load_state_dict(tensors["model"])
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors["optimizer"].items():
            index, _, name = key.partition(".")
            if tensor.ndim:  # fused optimizers take a moment to lie in memory as its parameter does
                tensor = torch.empty_like(parameters[int(index)], requires_grad=False).copy_(tensor)
            moments.setdefault(int(index), {})[name] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})

    def recipe(self) -> dict[str, Any]:
        """What must agree to resume from a checkpoint: configuration without speed and place; seed; data; start."""
        free = ("workers", "cache", "threads", "checkpoint_every", "checkpoints", "log_every", "minutes")
        recipe = {k: v for k, v in dataclasses.asdict(self.config).items() if k not in free}
        recipe |= {"seed": self.seed, "data": self.data} | self.start
        plain: dict[str, Any] = json.loads(json.dumps(recipe))  # as a checkpoint stores it
        return plain


def _copy_weights(start: Path, encoder: Encoder) -> str:
    """Give an encoder the weights of a file.

    Returns:
        the file's SHA-256.
    Raises:
        EncoderError: it cannot be loaded, or is of another architecture.
    """
    source = load_encoder(start)
    if source.arch != encoder.arch:
        raise EncoderError(
            f"{start}: a {source.arch}, but pretrain.arch is {encoder.arch}; set pretrain.arch={source.arch}, or give "
            "another encoder"
        )
    encoder.load_state_dict(source.state_dict())
    return sha256(start)


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


def _create_optimizer(model: nn.Module, config: PretrainConfig) -> torch.optim.Optimizer:
    """SGD or AdamW; weight decay on matrices and kernels alone, not on batch norm or biases."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, fused=True)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=True)


def _bfloat16_pays(device: torch.device) -> bool:
    """True where matrix units compute in bfloat16: CUDA, and CPUs with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu._is_avx512_bf16_supported())


def _check_compiler(device: torch.device) -> None:
    names = [os.environ.get("CC", ""), "gcc", "clang"] if device.type == "cuda" else [os.environ.get("CXX", ""), "g++"]
    if not any(shutil.which(name) for name in names if name):
        raise ContriqueError(
            f"pretrain.compile=true needs a compiler to build kernels with; install {names[1]}, or set it to false"
        )
