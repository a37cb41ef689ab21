import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.ndimage
import torch

from contrique import images
from contrique.config import PretrainConfig
from contrique.dataset import write_manifest
from contrique.distortions import class_id
from contrique.encoder import load_encoder, read_metadata
from contrique.errors import ContriqueError
from contrique.pretrain import CHECKPOINTS, ENCODER, HISTORY, Diverged, pool_of, pretrain

TINY = PretrainConfig(
    arch="resnet18", crop=32, images=10, authentic_share=0.2, sampler="balanced", contents_per_class=2,
    optimizer="adamw", lr=2e-4, lr_views=20, steps=6, precision="float32", threads=1, workers=0, checkpoint_every=2,
    log_every=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Three contents in three kinds of damage, and three authentic pictures."""
    dataset, distorted = tmp_path_factory.mktemp("dataset"), tmp_path_factory.mktemp("distorted")
    rng = np.random.default_rng(0)

    def write(folder: Path, name: str, picture: np.ndarray) -> str:
        (folder / name).write_bytes(images.encode_png(images.as_uint8(np.clip(picture, 0, 1))))
        return name

    made, given = [], []
    for content in range(3):
        clean = scipy.ndimage.gaussian_filter(rng.random((96, 96, 3)), (2, 2, 0))
        clean = (clean - clean.min()) / np.ptp(clean)
        versions = {
            ("", 0): clean,
            ("gaussian_blur", 5): scipy.ndimage.gaussian_filter(clean, (5, 5, 0)),
            ("white_noise", 5): clean + 0.3 * rng.standard_normal(clean.shape),
        }
        for (name, level), picture in versions.items():
            file = write(distorted, f"{content}{name}.png", picture)
            row = {"image": file, "reference": f"c{content}", "distortion": name, "level": level, "split": "pretrain"}
            made.append(row | {"kind": "distorted"})
        made.append({**made[-1], "reference": "judged", "split": "test"})
        file = write(dataset, f"a{content}.png", rng.random((96, 96, 3)))
        given.append({"image": file, "reference": f"a{content}", "kind": "authentic", "split": "pretrain"})
    write_manifest(pd.DataFrame(made), distorted)
    write_manifest(pd.DataFrame(given), dataset)
    return dataset, distorted


def weights(run: Path) -> bytes:
    return (run / ENCODER).read_bytes()


def test_pool_leaves_judged_contents_out(sets: tuple[Path, Path]) -> None:
    pool = pool_of(*sets)
    assert set(pool["split"]) == {"pretrain"}
    assert sorted(set(pool["label"])) == [-1, 0, class_id("gaussian_blur", 5), class_id("white_noise", 5)]
    assert (pool["label"] < 0).sum() == 3


@pytest.mark.slow
def test_the_loss_falls(sets: tuple[Path, Path], tmp_path: Path) -> None:
    tracked: list[tuple[int, dict[str, float]]] = []
    config = replace(TINY, steps=25, lr=5e-4)
    summary = pretrain(*sets, tmp_path, config=config, seed=0, track=lambda m, step: tracked.append((step, m)))
    assert summary.steps == 25
    assert summary.crops == 25 * 20
    assert summary.loss_last < summary.loss_first - 0.2
    history = [json.loads(line) for line in (tmp_path / HISTORY).read_text().splitlines()]
    assert [entry["step"] for entry in history] == list(range(1, 26))
    assert set(tracked[0][1]) == {"loss", "lr", "grad_norm", "crops_per_s", "wait_share"}
    assert max(entry["lr"] for entry in history) == pytest.approx(5e-4, rel=0.02)
    assert history[-1]["lr"] < 0.01 * 5e-4
    assert read_metadata(tmp_path / ENCODER)["crops"] == 500
    assert load_encoder(tmp_path / ENCODER).width == 512


def test_same_seed_same_bytes_whatever_the_workers(sets: tuple[Path, Path], tmp_path: Path) -> None:
    for name, config, seed in (("a", TINY, 1), ("b", replace(TINY, workers=1), 1), ("c", TINY, 2)):
        pretrain(*sets, tmp_path / name, config=config, seed=seed)
    a, b = load_encoder(tmp_path / "a" / ENCODER), load_encoder(tmp_path / "b" / ENCODER)
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    assert (tmp_path / "a" / HISTORY).read_bytes() == (tmp_path / "b" / HISTORY).read_bytes()
    assert weights(tmp_path / "a") != weights(tmp_path / "c")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_resumed_weights_equal_uninterrupted_ones(sets: tuple[Path, Path], tmp_path: Path, precision: str) -> None:
    config = replace(TINY, precision=precision)
    pretrain(*sets, tmp_path / "whole", config=config, seed=3)
    pretrain(*sets, tmp_path / "parts", config=config, seed=3)
    (tmp_path / "parts" / ENCODER).unlink()
    newest = sorted((tmp_path / "parts" / CHECKPOINTS).iterdir())[-1]
    (newest / "model.safetensors").write_bytes(b"damaged")
    pretrain(*sets, tmp_path / "parts", config=config, seed=3)  # from the checkpoint before it, aloud
    assert weights(tmp_path / "whole") == weights(tmp_path / "parts")
    assert (tmp_path / "whole" / HISTORY).read_bytes() == (tmp_path / "parts" / HISTORY).read_bytes()


def test_damaged_checkpoint_is_named(
    sets: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain(*sets, tmp_path, config=TINY)
    newest = sorted((tmp_path / CHECKPOINTS).iterdir())[-1]
    (newest / "optimizer.safetensors").write_bytes(b"")
    pretrain(*sets, tmp_path, config=TINY)
    assert f"checkpoint {newest} is damaged" in capsys.readouterr().err


def test_checkpoint_of_another_recipe_is_refused(sets: tuple[Path, Path], tmp_path: Path) -> None:
    pretrain(*sets, tmp_path, config=TINY, seed=0)
    with pytest.raises(ContriqueError, match="of another recipe or seed"):
        pretrain(*sets, tmp_path, config=TINY, seed=1)


@pytest.mark.slow
def test_killed_run_goes_on_to_the_same_weights(sets: tuple[Path, Path], tmp_path: Path) -> None:
    config = replace(TINY, steps=30)
    script = (
        "import sys; from pathlib import Path; from dataclasses import replace\n"
        "from contrique.config import PretrainConfig; from contrique.pretrain import pretrain\n"
        f"pretrain(Path({str(sets[0])!r}), Path({str(sets[1])!r}), Path(sys.argv[1]), seed=5, config={config!r})\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "killed")], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed" / CHECKPOINTS).glob("step-*")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "killed" / ENCODER).exists()
    pretrain(*sets, tmp_path / "killed", config=config, seed=5)
    pretrain(*sets, tmp_path / "whole", config=config, seed=5)
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")


def test_divergence_stops_with_the_step_and_the_pictures(sets: tuple[Path, Path], tmp_path: Path) -> None:
    config = replace(TINY, lr=1e30, warmup=0.01, optimizer="sgd", steps=20)
    with pytest.raises(Diverged, match=r"the loss is nan at step \d+; lower pretrain\.lr .*\.png"):
        pretrain(*sets, tmp_path, config=config)
    assert not (tmp_path / ENCODER).exists()


def test_minutes_rule_over_steps_and_finish_the_cosine(sets: tuple[Path, Path], tmp_path: Path) -> None:
    summary = pretrain(*sets, tmp_path, config=replace(TINY, steps=1, minutes=0.2))
    rates = [json.loads(line)["lr"] for line in (tmp_path / HISTORY).read_text().splitlines()]
    assert summary.steps == len(rates) > 1
    assert rates[-1] < max(rates)
