"""Contrastive pretraining: one loop, checkpointed, resumable to the bit (spec sections 2 to 4)."""

import contextlib
import dataclasses
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from contrique.config import PretrainConfig
from contrique.encoder import Encoder, Projector, save_encoder
from contrique.errors import ContriqueError
from contrique.loss import contrastive_loss
from contrique.storage import write_aside
from contrique.views import Batch, Views, colour_views

if TYPE_CHECKING:
    import pandas as pd

ENCODER = "encoder.safetensors"
HISTORY = "history.jsonl"
CHECKPOINTS = "checkpoints"
_KEPT = 2

Track = Callable[[dict[str, float], int], None]


class Diverged(ContriqueError):
    """The loss is not finite; the message names the step and the pictures, the last checkpoint stays."""


@dataclass(frozen=True)
class PretrainSummary:
    """What a pretraining run did.

    Attributes:
        steps: optimizer steps made, earlier runs that were resumed included.
        crops: views seen, likewise.
        loss_first: mean loss of the first logged steps; `loss_last` of the last ones.
        minutes: wall time of this run.
        wait_share: share of it spent waiting for the loader.
    """

    steps: int
    crops: int
    loss_first: float
    loss_last: float
    minutes: float
    wait_share: float


def pool_of(dataset: Path, distorted: Path, merge_identity: bool = True) -> "pd.DataFrame":
    """The pictures to pretrain on: distorted ones of `pretrain` photographs, and authentic ones.

    Args:
        dataset: the picture set that holds authentic pictures.
        distorted: the picture set synthesized from its pristine ones.
        merge_identity: as `contrique.distortions.class_id`.
    Returns:
        manifest rows with `folder` and `label` (-1 for authentic ones).
    """
    import pandas as pd

    from contrique.dataset import read_manifest
    from contrique.distortions import class_id

    given, made = read_manifest(dataset), read_manifest(distorted)
    made = made[made["split"] == "pretrain"]
    authentic = given[(given["split"] == "pretrain") & (given["kind"] == "authentic")]
    labels = [class_id(name, level, merge_identity) for name, level in zip(made.distortion, made.level, strict=True)]
    return pd.concat(
        [made.assign(folder=str(distorted), label=labels), authentic.assign(folder=str(dataset), label=-1)],
        ignore_index=True,
    )


def pretrain(
    dataset: Path,
    distorted: Path,
    out: Path,
    *,
    config: PretrainConfig | None = None,
    seed: int = 0,
    track: Track | None = None,
) -> PretrainSummary:
    """Train an encoder and write `out/encoder.safetensors` and `out/history.jsonl`.

    An interrupted run goes on from its last whole checkpoint in `out/checkpoints`; on a CPU with the same number
    of threads its weights equal those of an uninterrupted run bit for bit (not under `minutes`: the clock rules there).

    Args:
        dataset: picture set with the authentic pictures.
        distorted: picture set of synthesized pictures; rows of the split `pretrain` are used.
        out: folder of the run.
        config: the recipe.
        seed: of weights, order, crops and colour spaces.
        track: called with metrics and the step every `log_every` steps: `loss`, `lr`, `grad_norm`, `crops_per_s`,
            `wait_share`.
    Returns:
        what was done.
    Raises:
        Diverged: the loss is not finite.
        DatasetError: pictures are missing.
    """
    config = config or PretrainConfig()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    views = Views(
        pool_of(dataset, distorted, config.merge_identity),
        images=config.images,
        authentic_share=config.authentic_share,
        crop=config.crop,
        balanced=config.sampler == "balanced",
        contents_per_class=config.contents_per_class,
        seed=seed,
    )
    total = config.steps or math.ceil(config.epochs * views.steps_per_epoch)
    with _threads(config.threads):
        trainer = _Trainer(config, seed, device)
        history, crops = trainer.resume(out)
        started = time.monotonic()
        history, crops, waited = _train(trainer, views, out, total, history, crops, track)
    minutes = (time.monotonic() - started) / 60
    metadata = {"config": dataclasses.asdict(config), "seed": seed, "steps": trainer.step, "crops": crops}
    save_encoder(trainer.encoder, out / ENCODER, metadata)
    losses = [entry["loss"] for entry in history]
    tail = max(1, len(losses) // 20)
    return PretrainSummary(
        steps=trainer.step,
        crops=crops,
        loss_first=sum(losses[:tail]) / tail,
        loss_last=sum(losses[-tail:]) / tail,
        minutes=minutes,
        wait_share=waited,
    )


def _train(
    trainer: "_Trainer",
    views: Views,
    out: Path,
    total: int,
    history: list[dict[str, float]],
    crops: int,
    track: Track | None,
) -> tuple[list[dict[str, float]], int, float]:
    """The loop. Returns the history, the views seen and the share of the time spent waiting for data."""
    from tqdm import tqdm

    config = trainer.config
    clock = 60 * config.minutes
    stop = total if not clock else sys.maxsize
    start = last = time.monotonic()
    waited = waited_before = 0.0
    seen = 0
    losses: list[float] = []
    bar = tqdm(total=None if clock else total, initial=trainer.step, desc="pretraining", unit="step", disable=None)
    for batch in _loader(views, trainer.step, stop, config.workers):
        waited += time.monotonic() - last
        elapsed = time.monotonic() - start
        progress = elapsed / clock if clock else trainer.step / total
        if progress >= 1:
            break
        lr = trainer.schedule(progress)
        loss, grad_norm = trainer.update(batch, lr)
        if not math.isfinite(loss):
            names = [views.records[row].image for row in batch.rows.tolist()]
            raise Diverged(
                f"the loss is {loss} at step {trainer.step}; lower pretrain.lr (now {config.lr}) or look at the "
                f"pictures of that step: {', '.join(names[:8])}, ... The last checkpoint stays in {out / CHECKPOINTS}"
            )
        trainer.step += 1
        crops += 2 * len(batch.rows)
        seen += 2 * len(batch.rows)
        losses.append(loss)
        bar.update()
        done = trainer.step >= stop
        if trainer.step % config.log_every == 0 or done:
            elapsed = time.monotonic() - start
            entry = {"step": trainer.step, "loss": sum(losses) / len(losses), "lr": lr, "grad_norm": grad_norm}
            history.append(entry)
            speed = {"crops_per_s": seen / elapsed, "wait_share": waited / elapsed}
            if track:
                track({name: value for name, value in (entry | speed).items() if name != "step"}, trainer.step)
            bar.set_postfix_str(f"loss {entry['loss']:.3f}, {speed['crops_per_s']:.0f} crops/s")
            losses = []
        if trainer.step % config.checkpoint_every == 0 or done:
            trainer.save(out, history, crops)
        last = time.monotonic()
        waited_before = waited
        if done:
            break
    bar.close()
    _write_history(out / HISTORY, history)
    return history, crops, waited_before / max(1e-9, time.monotonic() - start)


def _write_history(path: Path, history: list[dict[str, float]]) -> None:
    with write_aside(path) as aside:
        aside.write_text("".join(json.dumps(entry) + "\n" for entry in history))


class _Trainer:
    """Weights, optimizer and step: all the state there is, since data and views are functions of (seed, step)."""

    def __init__(self, config: PretrainConfig, seed: int, device: torch.device) -> None:
        self.config, self.seed, self.device, self.step = config, seed, device, 0
        self.encoder = Encoder(config.arch, seed).to(device)
        self.projector = Projector(self.encoder.width, config.projection, seed).to(device)
        if config.channels_last:
            self.encoder = self.encoder.to(memory_format=torch.channels_last)
        self.model = nn.ModuleDict({"encoder": self.encoder, "projector": self.projector}).train()
        self.optimizer = _optimizer(self.model, config)
        self.bfloat16 = config.precision == "bfloat16" or (config.precision == "auto" and _bfloat16_pays(device))

    def schedule(self, progress: float) -> float:
        """Linear warm-up, then cosine, per step. `progress` in [0, 1) -> learning rate."""
        peak = self.config.lr * 2 * self.config.images / self.config.lr_views
        if progress < self.config.warmup:
            return peak * max(progress, 1e-3) / self.config.warmup
        return peak * 0.5 * (1 + math.cos(math.pi * (progress - self.config.warmup) / (1 - self.config.warmup)))

    def update(self, batch: Batch, lr: float) -> tuple[float, float]:
        """One optimizer step. Returns the loss and the norm of the gradient; a loss not finite changes nothing."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        vectors = []
        for view, colours in zip(batch.views, batch.colours, strict=True):
            # the two views pass separately, so that batch-norm statistics are a view's own, as in the paper
            pixels = colour_views(view.to(self.device), colours.to(self.device))
            if self.config.channels_last:
                pixels = pixels.contiguous(memory_format=torch.channels_last)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
                local = self.encoder.local(pixels, self.config.pool)
            vectors.append(self.projector(local.flatten(0, 1).float()))
        labels = batch.labels.to(self.device).repeat_interleave(self.config.pool**2).repeat(2)
        loss: Tensor = contrastive_loss(torch.cat(vectors), labels, self.config.temperature)
        value = loss.item()
        if not math.isfinite(value):
            return value, math.nan
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        grad_norm = float(nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None]))
        self.optimizer.step()
        return value, grad_norm

    def save(self, out: Path, history: list[dict[str, float]], crops: int) -> None:
        """Write `out/checkpoints/step-N`, whole or not at all; older ones but one go."""
        from safetensors.torch import save_file

        folder = out / CHECKPOINTS / f"step-{self.step:08d}"
        with write_aside(folder) as aside:
            aside.mkdir()
            tensors = {name: t.detach().cpu().contiguous() for name, t in self.model.state_dict().items()}
            save_file(tensors, aside / "model.safetensors")
            state = self.optimizer.state_dict()["state"]
            flat = {f"{i}.{name}": t.detach().cpu().contiguous() for i, s in state.items() for name, t in s.items()}
            save_file(flat, aside / "optimizer.safetensors")
            (aside / "state.json").write_text(
                json.dumps({"step": self.step, "crops": crops, "recipe": self._recipe(), "history": history})
            )
        for old in sorted((out / CHECKPOINTS).glob("step-*"))[:-_KEPT]:
            shutil.rmtree(old)

    def resume(self, out: Path) -> tuple[list[dict[str, float]], int]:
        """Go on from the newest whole checkpoint in `out`, if there is one. Returns its history and crops."""
        for folder in sorted((out / CHECKPOINTS).glob("step-*"), reverse=True):
            try:
                return self._load(folder)
            except ContriqueError:
                raise
            except Exception as error:  # safetensors, JSON and torch each have their own for a damaged file
                print(f"checkpoint {folder} is damaged ({error}); trying the one before it", file=sys.stderr)
        return [], 0

    def _load(self, folder: Path) -> tuple[list[dict[str, float]], int]:
        from safetensors.torch import load_file

        state = json.loads((folder / "state.json").read_text())
        if state["recipe"] != self._recipe():
            raise ContriqueError(f"{folder}: of another recipe or seed; choose another folder or remove it")
        tensors = load_file(folder / "model.safetensors")
        flat = load_file(folder / "optimizer.safetensors")
        self.model.load_state_dict(tensors)
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in flat.items():
            index, _, name = key.partition(".")
            moments.setdefault(int(index), {})[name] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.step = int(state["step"])
        return state["history"], int(state["crops"])

    def _recipe(self) -> dict[str, Any]:
        """What must agree for a checkpoint to be gone on from: all but how fast and how often."""
        free = ("workers", "threads", "checkpoint_every", "log_every", "minutes")
        recipe = {k: v for k, v in dataclasses.asdict(self.config).items() if k not in free}
        return recipe | {"seed": self.seed}


def _optimizer(model: nn.Module, config: PretrainConfig) -> torch.optim.Optimizer:
    """SGD or AdamW; weight decay on matrices and kernels alone, not on batch norm or biases."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)


def _bfloat16_pays(device: torch.device) -> bool:
    """True where matrix units compute in bfloat16: CUDA, and CPUs with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu._is_avx512_bf16_supported())


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or os.cpu_count() or 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _one_thread(_: int) -> None:
    import cv2

    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def _loader(views: Views, start: int, stop: int, workers: int) -> Iterator[Batch]:
    """Batches of the steps from `start` on, in order, made ahead by `workers` processes."""
    if not workers:
        for step in range(start, stop):
            yield views[step]
        return
    yield from torch.utils.data.DataLoader(
        views,
        batch_size=None,
        sampler=range(start, stop),
        num_workers=workers,
        prefetch_factor=4,
        worker_init_fn=_one_thread,
        multiprocessing_context="forkserver",
        pin_memory=torch.cuda.is_available(),
    )
