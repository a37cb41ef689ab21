"""Weights, optimizer and step of a training (spec sections 2 to 4)."""

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from contrique.config import PretrainConfig
from contrique.encoder.architectures import EncoderError
from contrique.encoder.network import Encoder, Projector, ViewNorm
from contrique.encoder.weights import EncoderFile
from contrique.errors import ContriqueError
from contrique.pretraining import distributed
from contrique.pretraining.batches import Batch
from contrique.pretraining.colour import COLOUR_SPACES, convert_views
from contrique.pretraining.loss import contrastive_loss


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
        self.provenance = _copy_weights(start, self.encoder) if start else {}
        if start and not config.calibration:
            _keep_statistics(self.encoder)
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

    def warm_up(self) -> None:
        """Compile the encoder, if the recipe says so, on black views; weights and statistics stay as they are."""
        if not self.config.compile:
            return
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        count, side = self.config.images // self.world.size, self.config.crop
        views = tuple(torch.zeros(2, count, 3, side, side, dtype=torch.uint8, device=self.device))
        self.model(views, torch.full((2, count), COLOUR_SPACES.index("rgb"))).sum().backward()
        self.gradients.wait()
        self.model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, buffer in self.model.named_buffers():
                buffer.copy_(buffers[name])

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
        recipe |= {"seed": self.seed, "data": self.data}
        # without a start no key, and never the origin: recipes of older checkpoints must still agree
        recipe |= {"start": self.provenance["start"]} if self.provenance else {}
        plain: dict[str, Any] = json.loads(json.dumps(recipe))  # as a checkpoint stores it
        return plain


def _copy_weights(start: Path, encoder: Encoder) -> dict[str, str]:
    """Give an encoder the weights of a file.

    Returns:
        `start`, the file's SHA-256, and `origin`, that of the encoder that it goes back to.
    Raises:
        EncoderError: it cannot be loaded, or is of another architecture.
    """
    file = EncoderFile(start)
    source = file.load()
    if source.arch != encoder.arch:
        raise EncoderError(
            f"{start}: a {source.arch}, but pretrain.arch is {encoder.arch}; set pretrain.arch={source.arch}, or give "
            "another encoder"
        )
    encoder.load_state_dict(source.state_dict())
    return {"start": file.digest, "origin": file.origin}


def _keep_statistics(encoder: Encoder) -> None:
    """Let training leave the batch-norm statistics as they are: those of a few small batches are worse."""
    for layer in encoder.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.momentum = 0.0


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
