"""What a GPU gives, in one command of at most ten minutes and without a network; see gpu.sh, which calls this.

    python benchmarks/gpu.py --data PHOTOGRAPHS --out runs/gpu --minutes 9
    python benchmarks/gpu.py --join runs/gpu --out encoder.safetensors

In turn: agreement with the CPU, measured ceilings, the training step, the bank, NCCL, and for the rest of the time a
training run by the profile `gpu`, with the fraction of it that the GPU was busy. Writes results.json after each of
them, then history.jsonl and the encoder's parts. Without a CUDA device all of it runs on the CPU, small, so that it is
known to work before a GPU is paid for.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from contrique import distortions
from contrique.artifacts import ENCODER, HISTORY
from contrique.config import PretrainConfig, SynthesisConfig, parse_overrides, resolve
from contrique.data.manifest import read_manifest, write_manifest
from contrique.data.synthesis import synthesize
from contrique.distortions import batch as bank
from contrique.encoder.backends import Torch
from contrique.encoder.features import extract_batch
from contrique.encoder.network import Encoder
from contrique.encoder.weights import load_encoder, read_metadata, save_encoder
from contrique.pretraining.batches import Batch
from contrique.pretraining.colour import COLOUR_SPACES
from contrique.pretraining.distributed import World
from contrique.pretraining.loss import contrastive_loss
from contrique.pretraining.pretrain import pretrain
from contrique.pretraining.trainer import Trainer
from contrique.sources.folders import Source, import_folder

CUDA = torch.cuda.is_available()
PARTS = ("agreement", "step", "bank", "torchrun")  # before the training, which comes last
DEVICE = torch.device("cuda" if CUDA else "cpu")
FOLDERS = {"pristine": "pristine", "pristine_more": "pristine", "authentic": "authentic"}  # of photographs -> role
PART = 15 * 2**20  # bytes of a part of the encoder
STARTING = 2.5  # minutes to build the probe, start the loader, compile, calibrate and split the encoder, with room
TRAINING_VIEW = 31.7e9  # floating-point operations of a 256 x 256 view through ResNet-50, forward and backward
MODEL = {"arch": "resnet50", "crop": 256} if CUDA else {"arch": "resnet18", "crop": 64}
IMAGES = 128 if CUDA else 4  # a step that is measured; float32 too fits in 80 GB
WAYS = ["float32", "float32, channels_last", "bfloat16", "bfloat16, channels_last"]
WAYS += ["bfloat16, channels_last, tuned", "bfloat16, channels_last, tuned, compiled"] if CUDA else []
WARM = 2 if CUDA else 1  # calls before those that count


def seconds(call: Callable[[], Any], rounds: int) -> float:
    """Median time of a call, the device idle before and after."""
    times = []
    for _ in range(rounds + WARM):
        wait()
        start = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - start)
    return float(np.median(times[WARM:]))


def wait() -> None:
    if CUDA:
        torch.cuda.synchronize()


def far(outcome: torch.Tensor, expected: torch.Tensor) -> float:
    """Distance, relative to the length of what is expected."""
    outcome, expected = outcome.double().cpu(), expected.double().cpu()
    return float((outcome - expected).norm() / expected.norm())


class ReplayDraws(bank.Draws):
    """Numbers drawn on the CPU, so that every device gets the same."""

    def normal(self, shape: tuple[int, ...]) -> torch.Tensor:
        return super().normal(shape).to(DEVICE)

    def uniform(self, shape: tuple[int, ...]) -> torch.Tensor:
        return super().uniform(shape).to(DEVICE)


def photographs(count: int, height: int, width: int) -> torch.Tensor:
    """Smooth random colours with edges. Shape (count, 3, height, width), in [0, 1]."""
    rough = torch.rand(count, 3, height // 16, width // 16, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(rough, (height, width), mode="bicubic").clamp_(0, 1)
    return torch.where(smooth > 0.8, 1 - smooth, smooth)


def agreement() -> dict[str, Any]:
    """Relative differences between this device and the CPU: loss and gradient, features, every distortion."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(1024, 128, generator=generator)
    labels = torch.randint(0, 126, (1024,), generator=generator)
    outcome: dict[str, Any] = {}
    expected: list[torch.Tensor] = []
    ways = [("cpu", "cpu", "float32"), ("float32", DEVICE, "float32"), ("bfloat16", DEVICE, "bfloat16")]
    for name, device, precision in ways:
        leaf = z.to(device, copy=True).requires_grad_()
        loss = contrastive_loss(leaf, labels.to(device), precision=precision)
        loss.backward()
        assert leaf.grad is not None
        if name == "cpu":
            expected = [loss.detach(), leaf.grad]
        else:
            outcome[f"loss {name}"], outcome[f"gradient {name}"] = (
                far(loss.detach(), expected[0]),
                far(leaf.grad, expected[1]),
            )
    pictures = photographs(*((4, 256, 320) if CUDA else (2, 96, 128)))
    encoder = Encoder("resnet50" if CUDA else "resnet18", seed=0).eval()
    inputs = (pictures * 255).round().byte().permute(0, 2, 3, 1).numpy()
    plain = torch.from_numpy(extract_batch(inputs, Torch(encoder)))
    encoder.to(DEVICE)
    for precision in ("float32", "bfloat16"):
        features = torch.from_numpy(extract_batch(inputs, Torch(encoder, precision)))
        outcome[f"features {precision}"] = far(features, plain)
    worst: dict[str, float] = {}
    for name, kernel in bank.BATCHED.items():
        for level in (1, 3, 5):
            value = distortions.parameter(name, level)
            by_cpu = kernel(pictures, value, bank.Draws(torch.Generator().manual_seed(level)))
            by_device = kernel(pictures.to(DEVICE), value, ReplayDraws(torch.Generator().manual_seed(level)))
            worst[name] = max(
                worst.get(name, 0.0), float((by_cpu.clamp(0, 1) - by_device.cpu().clamp(0, 1)).abs().max())
            )
    outcome["distort_batch, largest difference of a pixel"] = worst
    return outcome


def ceilings() -> dict[str, float]:
    """Rates measured with plain calls: a large matrix product and a large copy."""
    side = 8192 if CUDA else 1024
    a, b = (torch.randn(side, side, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    target = torch.empty((2**30 if CUDA else 2**24), dtype=torch.uint8, device=DEVICE)
    source = torch.randint_like(target, 255)
    return {
        "bfloat16 matrix product, FLOP/s": 2 * side**3 / seconds(lambda: a @ b, 10),
        "copy, bytes read and written per s": 2 * target.numel() / seconds(lambda: target.copy_(source), 10),
    }


def a_batch(config: PretrainConfig) -> Batch:
    """Random views in page-locked memory, as the loader hands them over."""
    generator = torch.Generator().manual_seed(0)
    shape = (config.images, 3, config.crop, config.crop)
    views = [torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8) for _ in range(2)]
    first, second = (view.pin_memory() if CUDA else view for view in views)
    colours = torch.randint(0, len(COLOUR_SPACES), (2, config.images), generator=generator)
    return Batch((first, second), colours, torch.arange(config.images) // 4, torch.arange(config.images))


def training_step(peak: float) -> dict[str, dict[str, float]]:
    """Crops per second, share of the matrix rate and memory of one optimizer step, in each way it can be run."""
    outcome = {}
    for way in WAYS:
        values = {"precision": "bfloat16" if "bfloat16" in way else "float32"}
        values |= {"channels_last": "channels_last" in way, "compile": "compiled" in way}
        config = dataclasses.replace(PretrainConfig(**MODEL, images=IMAGES), **values)  # type: ignore[arg-type]
        trainer = Trainer(config, 0, World(DEVICE))
        torch.backends.cudnn.benchmark = "tuned" in way
        inputs = a_batch(config)
        if CUDA:
            torch.cuda.reset_peak_memory_stats()
        duration = seconds(lambda trainer=trainer, inputs=inputs: trainer.update(inputs, 1e-3), 8 if CUDA else 1)  # type: ignore[misc]
        crops = 2 * config.images / duration
        outcome[way] = {"crops per s": crops, "s per step": duration}
        if CUDA:
            outcome[way] |= {"share of the matrix rate": crops * TRAINING_VIEW / peak}
            outcome[way] |= {"memory, GB": torch.cuda.max_memory_allocated() / 1e9}
        del trainer
        print(f"  {way:40} {crops:8.1f} crops/s", flush=True)
    return outcome


def bank_speed() -> dict[str, float]:
    """Images per second of `distort_batch` at 512 x 384, one distortion at a time and all mixed."""
    count = 32 if CUDA else 2
    pictures = photographs(count, *((384, 512) if CUDA else (96, 128))).to(DEVICE)
    generator = torch.Generator(DEVICE).manual_seed(0)
    outcome = {}
    for name in [*distortions.NAMES, "mixed"]:
        names = [name] * count if name != "mixed" else [distortions.NAMES[i % 25] for i in range(count)]
        levels = [1 + i % 5 for i in range(count)]
        duration = seconds(
            lambda names=names, levels=levels: bank.distort_batch(pictures, names, levels, generator), 1 + CUDA
        )  # type: ignore[misc]
        outcome[name] = count / duration
    return outcome


def prepare(photos: Path | None, folder: Path, config: SynthesisConfig) -> tuple[Path, Path]:
    """A picture set of the photographs, and their distorted versions: for a few hundred, seconds on 16 cores.

    Returns:
        folders of the two; what an earlier call made stays.
    """
    source, distorted = folder / "dataset", folder / "distorted"
    frames = []
    for name, role in FOLDERS.items():
        if photos and (photos / name).is_dir():
            frames.append(import_folder(Source((photos / name).resolve(), role)))  # type: ignore[arg-type]
            (source / "images").mkdir(parents=True, exist_ok=True)
            link = source / "images" / name
            if not link.is_symlink():  # there already where an interrupted run goes on
                link.symlink_to((photos / name).resolve(), target_is_directory=True)
            frames[-1]["image"] = f"images/{name}/" + frames[-1]["image"]
    if frames:
        write_manifest(pd.concat(frames), source)
    else:
        from contrique.sources.sample import write

        write(source)
    summary = synthesize(source, distorted, seed=0, config=config)
    print(f"  {summary.pictures} pictures of {summary.photographs} photographs", flush=True)
    return source, distorted


def several(source: Path, distorted: Path, out: Path) -> str:
    """Two steps under torchrun with one process: NCCL, or gloo on a CPU, is set up and used. Returns what was said."""
    code = (
        "import sys, json; from pathlib import Path\n"
        "from contrique.config import PretrainConfig; from contrique.pretraining.pretrain import pretrain\n"
        "import torch.distributed as dist; from contrique.pretraining import distributed\n"
        "with distributed.process_group() as world:\n"
        "    values = json.loads(sys.argv[4])\n"
        "    pretrain(*map(Path, sys.argv[1:4]), config=PretrainConfig(**values))\n"
        "    print('two steps by', world.size, 'process over', dist.get_backend(), 'on', world.device)\n"
    )
    script = out / "ranks.py"
    script.write_text(code)
    values = {**MODEL, "images": 8, "steps": 2, "authentic_share": 0, "probe_every": 0, "workers": 0}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1", str(script)]
    words = [sys.executable, *torchrun, str(source), str(distorted), str(out / "ranks"), json.dumps(values)]
    process = subprocess.run(words, capture_output=True, text=True, timeout=180)
    script.unlink()
    return process.stdout.strip() if not process.returncode else f"FAILED: {process.stderr[-2000:]}"


def choose_recipe(minutes: float, settings: list[str], start: Path | None) -> PretrainConfig:
    """The profile `gpu` for as long as there is time, which `settings` change; on a CPU small."""
    config = resolve("gpu", parse_overrides(settings) if settings else None).pretrain
    workers = max(1, min(config.workers, (os.cpu_count() or 2) - 2))
    config = dataclasses.replace(config, minutes=minutes, workers=workers, checkpoint_every=10**9)
    small = {"images": 2 * IMAGES, "compile": False, "calibration": 1, "log_every": 1, "probe_every": 500}
    if start:
        small["arch"] = load_encoder(start).arch
    return config if CUDA else dataclasses.replace(config, **MODEL | small)  # type: ignore[arg-type]


@contextlib.contextmanager
def sample_utilisation(samples: list[tuple[float, float]]) -> Iterator[None]:
    """Append the time and the GPU's utilisation to `samples` twice a second while the block lasts.

    It is the driver's (`nvidia-smi`): the fraction of the time since its last sample in which a kernel ran.
    """
    if not CUDA:
        yield
        return
    command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--loop-ms=500"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        lines = driver.stdout or ()

        def read() -> None:
            samples.extend((time.monotonic(), float(line) / 100) for line in lines)

        threading.Thread(target=read, daemon=True).start()
        try:
            yield
        finally:
            driver.terminate()


class Log:
    """Times and steps of a training's log entries, and what the GPU did between them."""

    def __init__(self, views: int) -> None:
        self.views = views  # a step
        self.begin = time.monotonic()
        self.entries: list[tuple[float, int]] = []
        self.samples: list[tuple[float, float]] = []

    def track(self, entry: dict[str, float], step: int) -> None:
        """What `pretrain` calls; prints every tenth entry."""
        if "loss" not in entry:
            print(f"  type {entry['probe_type']:.3f}, level {entry['probe_level']:.3f}", flush=True)
            return
        self.entries.append((time.monotonic(), step))
        if len(self.entries) % 10 == 1:
            rates = self.measure(-11)
            print(
                f"  {time.monotonic() - self.begin:.0f} s: step {step}, loss {entry['loss']:.3f}, "
                f"{rates['crops per s']:.0f} crops/s, busy {rates['busy']:.0%}, waiting {entry['wait_share']:.1%}, "
                f"load {os.getloadavg()[0]:.1f}",
                flush=True,
            )

    def measure(self, first: int) -> dict[str, float]:
        """Rates from an entry, counted from the end if it is negative, to the last one."""
        (begin, early), (end, late) = self.entries[max(first, -len(self.entries))], self.entries[-1]
        shares = [share for when, share in self.samples if begin <= when <= end]
        return {
            "crops per s": self.views * (late - early) / max(1e-9, end - begin),
            "busy": sum(shares) / max(1, len(shares)),
            "samples": len(shares),
        }


def train(source: Path, distorted: Path, out: Path, config: PretrainConfig, start: Path | None) -> dict[str, Any]:
    """A run by a recipe. Its rates leave out the first third of the log, in which pictures are decoded."""
    if not (read_manifest(source)["kind"] == "authentic").any():
        config = dataclasses.replace(config, authentic_share=0.0)
    log = Log(2 * config.images)
    with sample_utilisation(log.samples):
        summary = pretrain(source, distorted, out / "run", config=config, seed=0, track=log.track, start=start)
    print(f"  {time.monotonic() - log.begin:.0f} s: trained", flush=True)
    return {
        "recipe": dataclasses.asdict(config),
        **dataclasses.asdict(summary),
        "s to the first log": log.entries[0][0] - log.begin,
        **log.measure(len(log.entries) // 3),
        "last": json.loads((out / "run" / HISTORY).read_text().splitlines()[-1]),
    }


def part(encoder: Path, out: Path) -> list[str]:
    """Write the encoder in float16 as files of at most PART bytes."""
    net = load_encoder(encoder)
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):  # batch norm keeps its range
            module.half()
    whole = encoder.with_name("half.safetensors")
    save_encoder(net, whole, read_metadata(encoder))
    data = whole.read_bytes()
    names = []
    for old in out.glob("encoder.part*"):
        old.unlink()
    for number, start in enumerate(range(0, len(data), PART)):
        names.append(f"encoder.part{number}")
        (out / names[-1]).write_bytes(data[start : start + PART])
    return names


def join(folder: Path, out: Path) -> None:
    """Put the parts together again, in float32."""
    paths = sorted(folder.glob("encoder.part*"), key=lambda path: int(path.name.removeprefix("encoder.part")))
    whole = out.with_name(f"{out.name}.half")
    whole.write_bytes(b"".join(path.read_bytes() for path in paths))
    save_encoder(load_encoder(whole).float(), out, read_metadata(whole))
    whole.unlink()
    print(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help=f"folder with some of {', '.join(FOLDERS)}; default: the sample data")
    parser.add_argument("--out", type=Path, required=True, help="folder for results; with --join, the file to write")
    parser.add_argument("--work", type=Path, help="folder for pictures and checkpoints; default: OUT/work")
    parser.add_argument("--encoder", type=Path, help="to train on from; default: from scratch")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="options of the profile `gpu`")
    parser.add_argument("--minutes", type=float, default=9, help="of the whole command; default: 9")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS, help="default: all")
    parser.add_argument("--join", type=Path, metavar="FOLDER", help="put the encoder's parts in FOLDER together")
    arguments = parser.parse_args()
    if arguments.join:
        join(arguments.join, arguments.out)
        return
    started = time.monotonic()
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    name = torch.cuda.get_device_name() if CUDA else "no CUDA device: CPU smoke"
    results: dict[str, Any] = {"device": name, "torch": torch.__version__, "cores": os.cpu_count()}
    print(name, flush=True)

    def keep(title: str, figures: Any) -> Any:
        results[title] = figures
        (out / "results.json").write_text(json.dumps(results, indent=1))
        print(f"{title} ({time.monotonic() - started:.0f} s)\n{json.dumps(figures, indent=1)}", flush=True)
        return figures

    if "agreement" in arguments.parts:
        keep("agreement with the CPU", agreement())
    if "step" in arguments.parts:
        peak = keep("ceilings", ceilings())["bfloat16 matrix product, FLOP/s"]
        keep("training step", training_step(peak))
    if "bank" in arguments.parts:
        keep("distort_batch, images per s", bank_speed())
    work = arguments.work or out / "work"
    synthesis = SynthesisConfig(weak_labels_per_photograph=0)
    if not CUDA:
        synthesis = dataclasses.replace(synthesis, distortions=("gaussian_blur", "jpeg", "white_noise"), max_side=160)
    source, distorted = prepare(arguments.data, work, synthesis)
    if "torchrun" in arguments.parts:
        keep("torchrun", several(source, distorted, work))
    minutes = arguments.minutes - (time.monotonic() - started) / 60 - STARTING
    config = choose_recipe(max(0.1, minutes) if CUDA else 0.1, arguments.set, arguments.encoder)
    keep("training", train(source, distorted, work, config, arguments.encoder))
    (out / HISTORY).write_bytes((work / "run" / HISTORY).read_bytes())
    keep("encoder", part(work / "run" / ENCODER, out))


if __name__ == "__main__":
    main()
