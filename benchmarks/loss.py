"""How much faster and smaller is the blockwise loss than the official way, and how exact?

    python benchmarks/loss.py                                     # two threads
    taskset -c 0 python benchmarks/loss.py --threads 1            # where the machine is shared

Forward and backward pass over N vectors of d = 128 in classes of 8. "Official" is the way of the paper's public code,
in float32: similarities, exponentials, and a mask of positives and one of others, each an N x N matrix made anew at
each step. All run in turn in this process, the fastest of the rounds counts. Errors are against float64: of the value
relative, of the gradient the norm of the difference over the norm. Memory is the peak that the pass allocates, the
gradient included. CUDA is measured too where there is one.
"""

import argparse
import os
import time
from collections.abc import Callable

import torch
from torch import Tensor

from contrique.pretraining.loss import contrastive_loss

TEMPERATURE = 0.1
Loss = Callable[[Tensor, Tensor], Tensor]


def official(z: Tensor, labels: Tensor) -> Tensor:
    """The loss as its definition reads, with matrices."""
    z = torch.nn.functional.normalize(z, dim=1)
    others = 1 - torch.eye(len(z), dtype=z.dtype, device=z.device)
    positives = (labels[:, None] == labels[None]).to(z.dtype) * others
    similarity = z @ z.T / TEMPERATURE
    log_share = similarity - (similarity.exp() * others).sum(1, keepdim=True).log()
    return -((log_share * positives).sum(1) / positives.sum(1)).mean()


def blockwise(z: Tensor, labels: Tensor) -> Tensor:
    return contrastive_loss(z, labels, TEMPERATURE)


def blockwise_bfloat16(z: Tensor, labels: Tensor) -> Tensor:
    return contrastive_loss(z, labels, TEMPERATURE, precision="bfloat16")


WAYS: dict[str, Loss] = {"official": official, "float32": blockwise, "bfloat16": blockwise_bfloat16}


def step(loss: Loss, z: Tensor, labels: Tensor) -> tuple[float, Tensor]:
    z = z.clone().requires_grad_()
    value = loss(z, labels)
    (grad,) = torch.autograd.grad(value, z)
    return value.item(), grad


def peak(loss: Loss, z: Tensor, labels: Tensor) -> float:
    """MB allocated at most, beside the inputs."""
    z = z.clone().requires_grad_()
    with torch.profiler.profile(profile_memory=True) as profile:
        torch.autograd.grad(loss(z, labels), z)
    memory = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]" and event.device_type().name.lower() == z.device.type:
            memory += event.nbytes()
            most = max(most, memory)
    return most / 1e6


def seconds(loss: Loss, z: Tensor, labels: Tensor) -> tuple[float, float]:
    """Wall-clock and CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    step(loss, z, labels)  # `.item()` waits for the device
    if z.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu


def vectors(n: int, device: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) // 8
    centres = torch.randn(n // 8 + 1, 128, generator=generator)
    return (torch.randn(n, 128, generator=generator) + 0.7 * centres[labels]).to(device), labels.to(device)


def measure(n: int, rounds: int, device: str) -> None:
    z, labels = vectors(n, device)
    value, grad = step(official, z.double(), labels)
    best = dict.fromkeys(WAYS, (float("inf"), float("inf")))
    for _ in range(rounds + 1):
        for name, loss in WAYS.items():
            wall, cpu = seconds(loss, z, labels)
            best[name] = min(best[name][0], wall), min(best[name][1], cpu)
    print(f"\n{device}, N = {n}\n")
    print("| | ms | CPU ms | times official, wall / CPU | error of value | of gradient | MB |")
    print("|---|---|---|---|---|---|---|")
    for name, loss in WAYS.items():
        actual, actual_grad = step(loss, z, labels)
        wall, cpu = best[name]
        faster = best["official"][0] / wall, best["official"][1] / cpu
        off = abs(actual / value - 1), float((actual_grad - grad).norm() / grad.norm())
        print(
            f"| {name} | {1000 * wall:.1f} | {1000 * cpu:.0f} | {faster[0]:.1f} / {faster[1]:.1f} "
            f"| {off[0]:.0e} | {off[1]:.0e} | {peak(loss, z, labels):.0f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--vectors", type=int, nargs="+", default=[2048, 4096, 8192])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads")
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        for n in options.vectors:
            measure(n, options.rounds, device)


if __name__ == "__main__":
    main()
