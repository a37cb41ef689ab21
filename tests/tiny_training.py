"""Pretraining, small: picture sets to train on, a recipe of seconds, and what torchrun starts in the tests.

torchrun --nproc_per_node=2 tests/tiny_training.py gradients DATASET DISTORTED OUT '{"steps": 6}'
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.ndimage
import torch
from torch.distributed import distributed_c10d

from contrique import images
from contrique.config import PretrainConfig
from contrique.data.manifest import write_manifest
from contrique.pretraining import distributed
from contrique.pretraining.batches import Views
from contrique.pretraining.pretrain import build_pool, pretrain
from contrique.pretraining.trainer import Trainer

CONFIG = PretrainConfig(
    arch="resnet18", crop=32, images=10, authentic_share=0.2, sampler="balanced", contents_per_class=2,
    optimizer="adamw", lr=2e-4, lr_views=20, steps=6, precision="float32", threads=1, workers=0, checkpoint_every=2,
    log_every=1, probe_every=0,
)  # fmt: skip


def picture_sets(dataset: Path, distorted: Path, judged: int = 1) -> tuple[Path, Path]:
    """Three contents in three kinds of damage, three authentic pictures, and contents that are never trained on."""
    rng = np.random.default_rng(0)

    def write(folder: Path, name: str, picture: np.ndarray) -> str:
        (folder / name).write_bytes(images.encode_png(images.as_uint8(np.clip(picture, 0, 1))))
        return name

    rows, originals = [], []
    for content in range(3 + judged):
        clean = scipy.ndimage.gaussian_filter(rng.random((96, 96, 3)), (2, 2, 0))
        clean = (clean - clean.min()) / np.ptp(clean)
        split = "pretrain" if content < 3 else "validation"
        versions = {
            ("", 0): clean,
            ("gaussian_blur", 4): scipy.ndimage.gaussian_filter(clean, (2, 2, 0)),
            ("gaussian_blur", 5): scipy.ndimage.gaussian_filter(clean, (5, 5, 0)),
            ("white_noise", 5): clean + 0.3 * rng.standard_normal(clean.shape),
        }
        for (name, level), picture in versions.items():
            file = write(distorted, f"{content}{name}{level}.png", picture)
            row = {"image": file, "reference": f"c{content}", "distortion": name, "level": level, "split": split}
            rows.append(row | {"kind": "distorted" if name else "pristine"})
        if content < 3:
            file = write(dataset, f"a{content}.png", rng.random((96, 96, 3)))
            originals.append({"image": file, "reference": f"a{content}", "kind": "authentic", "split": "pretrain"})
    write_manifest(pd.DataFrame(rows), distorted)
    write_manifest(pd.DataFrame(originals), dataset)
    return dataset, distorted


def views(sets: tuple[Path, Path], config: PretrainConfig, world: distributed.World) -> Views:
    """What `pretrain` trains on, with seed 3."""
    return Views(build_pool(*sets)[0], config, seed=3, rank=world.rank, ranks=world.size)


def gradients(sets: tuple[Path, Path], config: PretrainConfig) -> dict[str, torch.Tensor]:
    """What the first update of a run leaves: its loss, every gradient, every statistic of batch norm; in float64.

    In float32 the gradient of an untrained encoder is rounding from its third digit on, whatever the number of
    processes: its vectors are all alike, and batch norm divides what little they differ by as little.
    """
    assert config.temperature < 1 / 40, "or the loss would be computed in float32"
    with distributed.process_group() as world:
        trainer = Trainer(config, 3, world)
        trainer.model.double()
        trainer.encoder.conv1.register_forward_pre_hook(lambda conv, inputs: (inputs[0].double(),))
        update = trainer.update(views(sets, config, world)[0], lr=0.0)
        tensors = {f"gradient of {name}": p.grad.contiguous() for name, p in trainer.model.named_parameters()}
        tensors |= {name: buffer.double() for name, buffer in trainer.model.named_buffers()}
        return tensors | {"loss": update.loss, "grad_norm": update.grad_norm}


def wait_for_a_late_one() -> None:
    """Rank 0 comes to the barrier after what any other collective would wait."""
    with distributed.process_group() as world:
        distributed_c10d._get_default_timeout = lambda backend: timedelta(seconds=1)
        if world.is_main:
            time.sleep(4)
        distributed.wait_for_all()


def command(mode: str, sets: tuple[Path, Path], out: Path, config: PretrainConfig, ranks: int = 0) -> list[str]:
    """Run this file by torchrun, or with 0 ranks by itself."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks else []
    return [sys.executable, *torchrun, __file__, mode, *map(str, sets), str(out), json.dumps(asdict(config))]


def start(words: list[str], **environment: str) -> subprocess.Popen[str]:
    """Start it at the head of a process group of its own; its standard error is a pipe."""
    variables = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=variables, start_new_session=True)


def kill_at_a_random_step(
    words: list[str], is_saved: Callable[[], bool], within: float = 1, **environment: str
) -> None:
    """SIGKILL to the command and all that it started, at most `within` seconds after its first checkpoint."""
    child = start(words, **environment)
    deadline = time.monotonic() + 240
    while not is_saved():
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(random.uniform(0, within))
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate()


def main(mode: str, dataset: str, distorted: str, out: str, settings: str) -> None:
    """What a rank does."""
    sets = (Path(dataset), Path(distorted))
    values: Mapping[str, Any] = json.loads(settings)
    config = replace(CONFIG, **values)
    torch.set_num_threads(1)
    if mode == "late":
        wait_for_a_late_one()
    elif mode == "gradients":
        from safetensors.torch import save_file

        tensors = gradients(sets, config)
        save_file(tensors, Path(out) / f"{os.environ['RANK']}.safetensors")
    else:
        pretrain(*sets, Path(out), config=config, seed=3)


if __name__ == "__main__":
    main(*sys.argv[1:])
