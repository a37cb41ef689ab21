"""Two processes, started by torchrun, compute what one does."""

from dataclasses import replace
from pathlib import Path

import pytest
import tiny_training
import torch
from safetensors.torch import load_file

from contrique.artifacts import CHECKPOINTS, ENCODER
from contrique.config import PretrainConfig
from contrique.encoder.weights import read_metadata
from contrique.pretraining import distributed
from contrique.pretraining.pretrain import pretrain

CONFIG = replace(tiny_training.CONFIG, images=12, authentic_share=0.25, optimizer="sgd", lr=1e-3)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tiny_training.picture_sets(tmp_path_factory.mktemp("dataset"), tmp_path_factory.mktemp("distorted"))


def run(mode: str, sets: tuple[Path, Path], out: Path, config: PretrainConfig, ranks: int = 2) -> None:
    out.mkdir(exist_ok=True)
    child = tiny_training.start(tiny_training.command(mode, sets, out, config, ranks))
    _, output = child.communicate(timeout=500)
    assert child.returncode == 0, output


def far(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Distance, relative to the length of what is expected."""
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_one(sets: tuple[Path, Path], tmp_path: Path) -> None:
    config = replace(CONFIG, crop=64, temperature=0.02)
    alone = tiny_training.gradients(sets, config)
    run("gradients", sets, tmp_path, config)
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    assert first.keys() == second.keys() == alone.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    whole = [torch.cat([tensors[n].flatten() for n in alone if n.startswith("gradient")]) for tensors in (first, alone)]
    assert far(*whole) < 1e-9
    assert max(far(first[name], alone[name]) for name in alone) < 1e-5


@pytest.mark.slow
def test_killed_processes_go_on_to_the_same_weights(sets: tuple[Path, Path], tmp_path: Path) -> None:
    config = replace(CONFIG, steps=8)
    run("pretrain", sets, tmp_path / "whole", config)
    command = tiny_training.command("pretrain", sets, tmp_path / "killed", config, ranks=2)
    checkpoints = tmp_path / "killed" / CHECKPOINTS
    tiny_training.kill_at_a_random_step(command, lambda: any(checkpoints.glob("step-*")), within=2)
    run("pretrain", sets, tmp_path / "killed", config)
    assert (tmp_path / "killed" / ENCODER).read_bytes() == (tmp_path / "whole" / ENCODER).read_bytes()


@pytest.mark.slow
def test_one_process_goes_on_where_two_stopped(sets: tuple[Path, Path], tmp_path: Path) -> None:
    run("pretrain", sets, tmp_path, replace(CONFIG, minutes=0.05))
    before = read_metadata(tmp_path / ENCODER)["steps"]
    summary = pretrain(*sets, tmp_path, config=replace(CONFIG, minutes=0.2), seed=3)
    assert summary.steps > before > 0
    assert summary.crops == summary.steps * 24


@pytest.mark.slow
def test_others_wait_for_one_that_prepares_for_long(sets: tuple[Path, Path], tmp_path: Path) -> None:
    run("late", sets, tmp_path, CONFIG)


def test_without_torchrun_a_world_of_one() -> None:
    with distributed.process_group() as world:
        assert (world.rank, world.size, world.is_main) == (0, 1, True)
        assert not distributed.is_in_group()
    tensor = torch.ones(3, requires_grad=True)
    assert distributed.gather(tensor) is tensor
    assert distributed.broadcast(0.25) == 0.25
