"""How much faster is a training step than the official way, and how far is it from what the processor can do?

    python benchmarks/step.py                                              # two threads, both recipes: three minutes
    taskset -c 0 python benchmarks/step.py --threads 1 --recipes demo      # where the machine is shared

The step is the trainer's own: colour spaces, encoder, projector, loss, gradient, optimizer, on pictures in memory.
"Official" is the way of the paper's public code: float32, NCHW, the views in turn, a loss of N x N matrices, SGD.
Both run in turn in this process, the fastest of the rounds counts. The floor is the time of the convolutions' and
linear layers' operations alone, forward and backward, at the rate of a large bfloat16 matrix product, measured in the
same run; padding counts as work, so that a step that skips it can pass below.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from contrique.config import PretrainConfig, resolve
from contrique.encoder.architectures import WIDTHS
from contrique.encoder.network import Projector
from contrique.pretraining.batches import Batch
from contrique.pretraining.colour import convert_views
from contrique.pretraining.distributed import World
from contrique.pretraining.trainer import Trainer

sys.path.insert(0, str(Path(__file__).parent))
import loss as losses

RECIPES = {
    "resnet50": PretrainConfig(images=8),
    "demo": resolve("demo").pretrain,
}


class OfficialStep:
    """The step as the paper's public code makes it."""

    def __init__(self, config: PretrainConfig) -> None:
        net = getattr(torchvision.models, config.arch)()
        self.encoder = nn.Sequential(*list(net.children())[:-2], nn.AdaptiveAvgPool2d(2))
        self.model = nn.ModuleDict({"encoder": self.encoder, "projector": Projector(WIDTHS[config.arch])}).train()
        self.optimizer = torch.optim.SGD(self.model.parameters(), 1e-3, momentum=0.9, weight_decay=1e-4)

    def update(self, batch: Batch) -> float:
        vectors = []
        for view, colours in zip(batch.views, batch.colours, strict=True):
            local = nn.functional.normalize(self.encoder(convert_views(view, colours)), dim=1)
            vectors.append(self.model["projector"](local.permute(0, 2, 3, 1).flatten(0, 2)))
        labels = batch.labels.repeat_interleave(4).repeat(2)
        loss: Tensor = losses.official(torch.cat(vectors), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


def random_batch(config: PretrainConfig) -> Batch:
    generator = torch.Generator().manual_seed(0)
    n, side = config.images, config.crop
    first, second = torch.randint(0, 256, (2, n, 3, side, side), dtype=torch.uint8, generator=generator)
    colours = torch.randint(0, 5, (2, n), generator=generator)
    return Batch((first, second), colours, torch.arange(n) // 2, torch.arange(n))


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Wall-clock and CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(name: str, config: PretrainConfig, rounds: int) -> None:
    batch = random_batch(config)
    ours, official = Trainer(config, 0, World(torch.device("cpu"))), OfficialStep(config)
    with FlopCounterMode(display=False) as counter:
        official.update(batch)
    operations = counter.get_total_flops()
    square = torch.randn(2048, 2048).bfloat16()
    ways: dict[str, Callable[[], object]] = {
        "official": lambda: official.update(batch),
        "ours": lambda: ours.update(batch, 1e-4),
        "product": lambda: square @ square,
    }
    best = dict.fromkeys(ways, (float("inf"), float("inf")))
    for _ in range(rounds + 1):
        for way, work in ways.items():
            repeats = 5 if way == "product" else 1
            for wall, cpu in (seconds(work) for _ in range(repeats)):
                best[way] = min(best[way][0], wall), min(best[way][1], cpu)
    views = 2 * config.images
    floor = [operations / (2 * 2048**3) * best["product"][clock] for clock in (0, 1)]
    print(f"\n{name}: {config.arch}, {config.images} images x 2 views of {config.crop}, {operations / 1e9:.0f} GFLOP\n")
    print("| | s | CPU s | views/s | times official, wall / CPU | share of the floor, wall / CPU |")
    print("|---|---|---|---|---|---|")
    for way in ("official", "ours"):
        wall, cpu = best[way]
        times = f"{best['official'][0] / wall:.2f} / {best['official'][1] / cpu:.2f}"
        share = f"{floor[0] / wall:.0%} / {floor[1] / cpu:.0%}"
        print(f"| {way} | {wall:.3f} | {cpu:.2f} | {views / wall:.1f} | {times} | {share} |")
    print(f"| bfloat16 floor | {floor[0]:.3f} | {floor[1]:.2f} | {views / floor[0]:.1f} | | |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads")
    for name in options.recipes:
        measure(name, replace(RECIPES[name], threads=options.threads), options.rounds)


if __name__ == "__main__":
    main()
