import json
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pandas as pd
import pytest
import tiny_training
import torch
from servers import S3
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from contrique import images
from contrique.artifacts import CHECKPOINTS, ENCODER, HISTORY
from contrique.config import SynthesisConfig
from contrique.data.manifest import DatasetError, read_manifest, write_manifest
from contrique.data.synthesis import synthesize
from contrique.distortions import class_id
from contrique.encoder.weights import load_encoder, read_metadata
from contrique.errors import ContriqueError
from contrique.pretraining import distributed, loop, trainer
from contrique.pretraining.batches import Batch
from contrique.pretraining.checkpoints import Checkpoints
from contrique.pretraining.colour import COLOUR_SPACES
from contrique.pretraining.loop import Diverged, _compute_similarities
from contrique.pretraining.pretrain import build_pool, pretrain
from contrique.sources.folders import Source, import_folder

TINY = tiny_training.CONFIG


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tiny_training.picture_sets(tmp_path_factory.mktemp("dataset"), tmp_path_factory.mktemp("distorted"))


@pytest.fixture(scope="module")
def probe_sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """With enough held-out photographs to probe the encoder."""
    return tiny_training.picture_sets(tmp_path_factory.mktemp("dataset"), tmp_path_factory.mktemp("distorted"), 6)


def weights(run: Path) -> bytes:
    return (run / ENCODER).read_bytes()


def same_weights(a: Path, b: Path) -> bool:
    """Whatever the files say of where their checkpoints went."""
    first, second = (load_encoder(run / ENCODER).state_dict() for run in (a, b))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def history(run: Path) -> list[dict[str, float]]:
    """Without what the clock says."""
    entries = [json.loads(line) for line in (run / HISTORY).read_text().splitlines()]
    return [{k: v for k, v in entry.items() if k not in ("crops_per_s", "wait_share")} for entry in entries]


def test_pool_leaves_judged_contents_out(sets: tuple[Path, Path]) -> None:
    pool, others = build_pool(*sets)
    assert set(pool["split"]) == {"pretrain"}
    classes = [class_id(*version) for version in (("gaussian_blur", 4), ("gaussian_blur", 5), ("white_noise", 5))]
    assert sorted(set(pool["label"])) == [-1, 0, *classes]
    assert (pool["label"] < 0).sum() == 3
    assert set(others["split"]) == {"validation"}
    assert not set(others["reference"]) & set(pool["reference"])


@pytest.mark.slow
def test_the_loss_falls(sets: tuple[Path, Path], tmp_path: Path) -> None:
    calls: list[tuple[int, dict[str, float]]] = []
    config = replace(TINY, steps=25, lr=5e-4)
    summary = pretrain(*sets, tmp_path, config=config, seed=0, track=lambda m, step: calls.append((step, m)))
    assert summary.steps == 25
    assert summary.crops == 25 * 20
    assert summary.loss_last < summary.loss_first - 0.2
    entries = [json.loads(line) for line in (tmp_path / HISTORY).read_text().splitlines()]
    assert [entry["step"] for entry in entries] == list(range(1, 26))
    assert [{"step": step} | values for step, values in calls] == entries
    similarities = {"positive_similarity", "negative_similarity"}
    assert set(calls[0][1]) == {"loss", "lr", "grad_norm", "crops_per_s", "wait_share"} | similarities
    assert max(entry["lr"] for entry in entries) == pytest.approx(5e-4, rel=0.02)
    assert entries[-1]["lr"] < 0.01 * 5e-4
    apart = [entry["positive_similarity"] - entry["negative_similarity"] for entry in entries]
    assert apart[-1] > apart[0]
    assert read_metadata(tmp_path / ENCODER)["crops"] == 500
    assert load_encoder(tmp_path / ENCODER).width == 512


def test_same_seed_same_bytes_whatever_the_workers(sets: tuple[Path, Path], tmp_path: Path) -> None:
    for name, config, seed in (("a", TINY, 1), ("b", replace(TINY, workers=1), 1), ("c", TINY, 2)):
        pretrain(*sets, tmp_path / name, config=config, seed=seed)
    assert same_weights(tmp_path / "a", tmp_path / "b")
    assert history(tmp_path / "a") == history(tmp_path / "b")
    assert weights(tmp_path / "a") != weights(tmp_path / "c")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_resumed_weights_equal_uninterrupted_ones(sets: tuple[Path, Path], tmp_path: Path, precision: str) -> None:
    config = replace(TINY, precision=precision, log_every=5)  # no divisor of checkpoint_every
    pretrain(*sets, tmp_path / "whole", config=config, seed=3)
    pretrain(*sets, tmp_path / "parts", config=config, seed=3)
    (tmp_path / "parts" / ENCODER).unlink()
    newest = sorted((tmp_path / "parts" / CHECKPOINTS).iterdir())[-1]
    (newest / "model.safetensors").write_bytes(b"damaged")
    pretrain(*sets, tmp_path / "parts", config=config, seed=3)  # from the checkpoint before it, aloud
    assert weights(tmp_path / "whole") == weights(tmp_path / "parts")
    assert history(tmp_path / "whole") == history(tmp_path / "parts")


def test_damaged_checkpoint_is_named(
    sets: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain(*sets, tmp_path, config=TINY)
    newest = sorted((tmp_path / CHECKPOINTS).iterdir())[-1]
    (newest / "optimizer.safetensors").write_bytes(b"")
    pretrain(*sets, tmp_path, config=TINY)
    error = capsys.readouterr().err
    assert f"checkpoint {newest} is damaged" in error
    assert "beginning anew" not in error
    for folder in (tmp_path / CHECKPOINTS).iterdir():
        (folder / "optimizer.safetensors").write_bytes(b"")
    pretrain(*sets, tmp_path, config=TINY)
    assert "no whole checkpoint; beginning anew" in capsys.readouterr().err


def test_a_picture_that_cannot_be_read_is_named_before_the_first_step(sets: tuple[Path, Path], tmp_path: Path) -> None:
    manifest = read_manifest(sets[0])
    authentic = manifest.index[(manifest["kind"] == "authentic") & (manifest["split"] == "pretrain")]
    manifest.loc[authentic[0], "error"] = "b.png: truncated"
    shutil.copytree(sets[0], tmp_path / "dataset")
    write_manifest(manifest, tmp_path / "dataset")
    with pytest.raises(DatasetError, match=r"1 pictures to pretrain on cannot be read \(b.png: truncated\)"):
        pretrain(tmp_path / "dataset", sets[1], tmp_path / "out", config=TINY)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_goes_bad_meanwhile_is_one_clear_error(
    sets: tuple[Path, Path], tmp_path: Path, workers: int
) -> None:
    shutil.copytree(sets[0], tmp_path / "dataset")
    whole = (sets[0] / "a0.png").read_bytes()
    (tmp_path / "dataset" / "a0.png").write_bytes(whole[:1000])
    with pytest.raises(images.BadImage) as error:
        pretrain(tmp_path / "dataset", sets[1], tmp_path / "out", config=replace(TINY, workers=workers))
    assert str(error.value).startswith("a0.png: ")
    assert "\n" not in str(error.value)


def test_checkpoint_of_another_recipe_is_refused(sets: tuple[Path, Path], tmp_path: Path) -> None:
    pretrain(*sets, tmp_path, config=TINY, seed=0)
    with pytest.raises(ContriqueError, match="of another recipe, seed, data or start"):
        pretrain(*sets, tmp_path, config=TINY, seed=1)


def test_checkpoint_of_other_data_is_refused(sets: tuple[Path, Path], tmp_path: Path) -> None:
    """Or a schedule with one place for its checkpoints would register last week's encoder for this week's data."""
    pretrain(*sets, tmp_path / "run", config=TINY)
    dataset = tmp_path / "dataset"
    shutil.copytree(sets[0], dataset)
    write_manifest(read_manifest(dataset).assign(sha256="0" * 64), dataset)
    pretrain(*sets, tmp_path / "run", config=TINY)
    with pytest.raises(ContriqueError, match="of another recipe, seed, data or start"):
        pretrain(dataset, sets[1], tmp_path / "run", config=TINY)


def test_interrupted_after_the_last_step_its_history_is_whole(sets: tuple[Path, Path], tmp_path: Path) -> None:
    def interrupt(_: dict[str, float], step: int) -> None:
        if step == config.steps:
            raise KeyboardInterrupt

    config = replace(TINY, log_every=4)  # the last entry is made after the last step
    pretrain(*sets, tmp_path / "whole", config=config, seed=3)
    with pytest.raises(KeyboardInterrupt):
        pretrain(*sets, tmp_path / "parts", config=config, seed=3, track=interrupt)
    pretrain(*sets, tmp_path / "parts", config=config, seed=3)
    assert history(tmp_path / "parts") == history(tmp_path / "whole")
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


@pytest.mark.slow
def test_killed_run_goes_on_to_the_same_weights(sets: tuple[Path, Path], tmp_path: Path) -> None:
    config = replace(TINY, steps=16, checkpoint_every=3)
    command = tiny_training.command("pretrain", sets, tmp_path / "killed", config)
    tiny_training.kill_at_a_random_step(command, lambda: any((tmp_path / "killed" / CHECKPOINTS).glob("step-*")))
    assert not (tmp_path / "killed" / ENCODER).exists()
    pretrain(*sets, tmp_path / "killed", config=config, seed=3)
    pretrain(*sets, tmp_path / "whole", config=config, seed=3)
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    assert history(tmp_path / "killed") == history(tmp_path / "whole")


@pytest.mark.slow
def test_killed_run_goes_on_elsewhere_from_s3(
    sets: tuple[Path, Path], tmp_path: Path, s3: S3, capsys: pytest.CaptureFixture[str]
) -> None:
    """And again after its newest checkpoint was damaged in the bucket."""
    config = replace(TINY, steps=12, optimizer="sgd", lr=1e-3, checkpoints=f"{s3.bucket}/killed")
    store = Checkpoints(config.checkpoints)
    command = tiny_training.command("pretrain", sets, tmp_path / "killed", config)
    tiny_training.kill_at_a_random_step(command, lambda: bool(store.steps()), **s3.environment, TMPDIR=str(tmp_path))
    pretrain(*sets, tmp_path / "elsewhere", config=config, seed=3)
    pretrain(*sets, tmp_path / "whole", config=replace(config, checkpoints=""), seed=3)
    assert not (tmp_path / "elsewhere" / CHECKPOINTS).exists()
    assert same_weights(tmp_path / "elsewhere", tmp_path / "whole")
    newest, before = store.steps()
    key = f"killed/step-{newest:08d}/optimizer.safetensors"
    boto3.client("s3").put_object(Bucket=s3.bucket.removeprefix("s3://"), Key=key, Body=b"damaged")
    capsys.readouterr()
    pretrain(*sets, tmp_path / "again", config=config, seed=3)
    assert f"checkpoint {store.name(newest)} is damaged" in capsys.readouterr().err
    assert before < newest == 12
    assert same_weights(tmp_path / "again", tmp_path / "whole")


def test_divergence_stops_with_the_step_and_the_pictures(
    sets: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(TINY, lr=1e30, warmup=0.01, optimizer="sgd", steps=20)
    with pytest.raises(Diverged, match=r"the loss is nan .* at step \d+; look at .*\.png .* pretrain\.lr below 1e\+30"):
        pretrain(*sets, tmp_path, config=config)
    assert not (tmp_path / ENCODER).exists()
    (names,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pictures of step ")]
    assert names.count(", ") == TINY.images - 1


def test_a_gradient_that_is_no_number_is_a_divergence_too(
    sets: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the next checkpoint would be of weights that are lost, and as whole as any."""
    finite, calls = trainer.contrastive_loss, []

    def late(z: Tensor, *arguments: Any, **options: Any) -> Tensor:
        calls.append(len(z))
        loss: Tensor = finite(z, *arguments, **options)
        return loss if len(calls) < 4 else loss + (0 * z).square().sum().sqrt()  # 0, and its gradient 0 / 0

    monkeypatch.setattr(trainer, "contrastive_loss", late)
    with pytest.raises(Diverged, match=r"its gradient's norm nan at step 3"):
        pretrain(*sets, tmp_path, config=replace(TINY, checkpoint_every=1))
    tensors, state = Checkpoints(str(tmp_path / CHECKPOINTS)).load(3)
    assert state["step"] == 3
    assert all(tensor.isfinite().all() for tensor in tensors["model"].values())


def test_a_divergence_between_log_entries_names_its_step_and_reaches_no_checkpoint(
    sets: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finite, calls = trainer.contrastive_loss, []

    def once(z: Tensor, *arguments: Any, **options: Any) -> Tensor:
        calls.append(len(z))
        loss: Tensor = finite(z, *arguments, **options)
        return loss * float("nan") if len(calls) == 4 else loss

    monkeypatch.setattr(trainer, "contrastive_loss", once)
    with pytest.raises(Diverged, match=r"the loss is nan .* at step 3"):
        pretrain(*sets, tmp_path, config=replace(TINY, log_every=6))
    store = Checkpoints(str(tmp_path / CHECKPOINTS))
    assert store.steps() == [2], "the next would be of step 4"
    assert len(calls) == 4


def test_minutes_rule_over_steps_and_finish_the_cosine(sets: tuple[Path, Path], tmp_path: Path) -> None:
    summary = pretrain(*sets, tmp_path, config=replace(TINY, steps=1, minutes=0.2))
    rates = [json.loads(line)["lr"] for line in (tmp_path / HISTORY).read_text().splitlines()]
    assert summary.steps == len(rates) > 1
    assert rates[-1] < max(rates)


def test_a_slow_start_costs_no_warm_up(
    sets: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the loader, or of a first step that compiles; else the first steps are made at the highest rate."""
    loader, update, slow = loop.load_batches, trainer.Trainer.update, []

    def late(*arguments: Any) -> Iterator[Batch]:
        time.sleep(3)
        yield from loader(*arguments)

    def compiling(own: Any, *arguments: Any) -> Any:
        if not slow:
            slow.append(time.sleep(3))
        return update(own, *arguments)

    monkeypatch.setattr(loop, "load_batches", late)
    monkeypatch.setattr(trainer.Trainer, "update", compiling)
    pretrain(*sets, tmp_path, config=replace(TINY, minutes=0.1, warmup=0.5))
    rates = [entry["lr"] for entry in history(tmp_path)]
    peak = max(rates)
    assert rates[0] == pytest.approx(TINY.lr * 1e-3 / 0.5)
    assert rates[1] < 0.5 * peak
    assert rates[-1] < 0.5 * peak


def test_a_compiled_encoder_learns_the_same(
    sets: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without code generation, which needs a compiler: what is captured is what is run."""
    pretrain(*sets, tmp_path / "plain", config=TINY, seed=3)
    compile_, functions = torch.compile, []

    def capture(function: Any) -> Any:
        functions.append(function)
        return compile_(function, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", capture)
    pretrain(*sets, tmp_path / "compiled", config=replace(TINY, compile=True), seed=3)
    assert len(functions) == 1
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ContriqueError, match=r"pretrain\.compile=true needs a compiler"):
        pretrain(*sets, tmp_path / "without", config=replace(TINY, compile=True), seed=3)
    first, second = (load_encoder(tmp_path / run / ENCODER).state_dict() for run in ("plain", "compiled"))
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-2, atol=1e-3)


def test_compiling_ahead_changes_no_weight_and_no_statistic(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compile_(function, backend="aot_eager"))
    first = trainer.Trainer(replace(TINY, compile=True), 3, distributed.World(torch.device("cpu")))
    before = {name: tensor.clone() for name, tensor in first.model.state_dict().items()}
    first.warm_up()
    assert all(torch.equal(before[name], tensor) for name, tensor in first.model.state_dict().items())
    assert all(parameter.grad is None for parameter in first.model.parameters())


def test_the_loader_starts_while_the_encoder_is_compiled(
    sets: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, loader = threading.Event(), loop.load_batches

    def load(*arguments: Any) -> Iterator[Batch]:
        started.set()
        return loader(*arguments)

    def compile_(own: trainer.Trainer) -> None:
        assert started.wait(60), "the loader waits for the compiler"

    monkeypatch.setattr(loop, "load_batches", load)
    monkeypatch.setattr(trainer.Trainer, "warm_up", compile_)
    assert pretrain(*sets, tmp_path, config=replace(TINY, steps=1)).steps == 1


class WaitCounter(TorchDispatchMode):
    """Records operations whose result a host takes from its device: it waits for all that is queued there."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket._qualified_op_name
        asks_a_number = name == "aten::_local_scalar_dense" and args[0].is_floating_point()
        if asks_a_number or "unique" in name or name == "aten::nonzero":
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_step_does_not_wait_for_the_device(sets: tuple[Path, Path], optimizer: Any) -> None:
    """Losses are read at log steps alone; a GPU whose host reads every one idles between steps."""
    config = replace(TINY, optimizer=optimizer)
    world = distributed.World(torch.device("cpu"))
    first = trainer.Trainer(config, 3, world)
    batch = tiny_training.views(sets, config, world)[0]
    batch = replace(batch, colours=torch.full_like(batch.colours, COLOUR_SPACES.index("rgb")))
    with WaitCounter() as waits:
        update = first.update(batch, 1e-3)
    assert not waits.names
    with WaitCounter() as waits:
        update.loss.item()
    assert waits.names, "or the test sees nothing"


def test_the_encoder_is_the_same_to_the_byte_with_a_cache(sets: tuple[Path, Path], tmp_path: Path) -> None:
    """And nothing is left of the cache."""
    (tmp_path / "cache").mkdir()
    pretrain(*sets, tmp_path / "plain", config=TINY, seed=3)
    config = replace(TINY, cache=str(tmp_path / "cache"))
    pretrain(*sets, tmp_path / "cached", config=config, seed=3)
    assert weights(tmp_path / "cached") == weights(tmp_path / "plain")
    pretrain(*sets, tmp_path / "loaded", config=replace(config, workers=2), seed=3)
    assert same_weights(tmp_path / "loaded", tmp_path / "plain")
    assert not list((tmp_path / "cache").iterdir())
    with pytest.raises(ContriqueError, match=r"pretrain\.cache=.*none: no folder"):
        pretrain(*sets, tmp_path / "plain", config=replace(TINY, cache=str(tmp_path / "none")), seed=3)


def test_resumed_run_goes_on_with_the_clock_it_had(sets: tuple[Path, Path], tmp_path: Path) -> None:
    config = replace(TINY, minutes=0.05)
    first = pretrain(*sets, tmp_path, config=config)
    started = time.monotonic()
    second = pretrain(*sets, tmp_path, config=config)
    assert second.steps == first.steps, "its minutes were spent"
    assert time.monotonic() - started < 60


def test_calibration_takes_the_statistics_of_rgb_views_and_nothing_else(
    sets: tuple[Path, Path], tmp_path: Path
) -> None:
    pretrain(*sets, tmp_path / "running", config=TINY, seed=3)
    for run in ("once", "twice"):
        pretrain(*sets, tmp_path / run, config=replace(TINY, calibration=2), seed=3)
    assert weights(tmp_path / "once") == weights(tmp_path / "twice")
    pretrain(*sets, tmp_path / "loaded", config=replace(TINY, calibration=2, workers=1), seed=3)
    assert same_weights(tmp_path / "loaded", tmp_path / "once")
    during, after = (load_encoder(tmp_path / run / ENCODER).state_dict() for run in ("running", "once"))
    names = {name for name in during if not torch.equal(during[name], after[name])}
    assert names == {name for name in during if ".running_" in name or "num_batches" in name}
    views = tiny_training.views(sets, TINY, distributed.World(torch.device("cpu")))
    first = [
        torch.nn.functional.conv2d(view.float() / 255, after["conv1.weight"], stride=2, padding=3)
        for step in (TINY.steps, TINY.steps + 1)
        for view in views[step].views
    ]
    for name, expected in (("mean", [x.mean((0, 2, 3)) for x in first]), ("var", [x.var((0, 2, 3)) for x in first])):
        torch.testing.assert_close(after[f"bn1.running_{name}"], torch.stack(expected).mean(0), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_similarities_equal_the_means_over_all_pairs(share: float) -> None:
    generator = torch.Generator().manual_seed(0)
    z, labels = torch.randn(40, 8, generator=generator), torch.randint(0, 5, (40,), generator=generator)
    z = z + 3 * share * torch.nn.functional.one_hot(labels, 8)
    unit = torch.nn.functional.normalize(z, dim=1)
    cosine, same = unit @ unit.T, labels[:, None] == labels
    others = ~torch.eye(40, dtype=torch.bool)
    expected = [float(cosine[same & others].mean() / 0.1), float(cosine[~same].mean() / 0.1)]
    assert _compute_similarities(z, labels, 0.1) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_probe_is_told_and_disturbs_nothing(probe_sets: tuple[Path, Path], tmp_path: Path) -> None:
    calls: list[tuple[int, dict[str, float]]] = []
    config = replace(TINY, log_every=4)
    for name, every in (("never", 0), ("often", 3)):
        pretrain(
            *probe_sets, tmp_path / name, config=replace(config, probe_every=every), seed=3,
            track=lambda m, step: calls.append((step, m)),
        )  # fmt: skip
    assert same_weights(tmp_path / "never", tmp_path / "often")
    entries = history(tmp_path / "often")
    assert [(entry["step"], "probe_type" in entry) for entry in entries] == [(3, True), (4, False), (6, True)]
    assert [(step, set(values)) for step, values in calls if "probe_type" in values] == [
        (step, {"probe_type", "probe_level"}) for step in (3, 6)
    ]
    assert all(
        0 <= entry[name] <= 1 for entry in entries if "probe_type" in entry for name in ("probe_type", "probe_level")
    )


def test_too_few_photographs_to_probe_with_are_told_of(
    sets: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain(*sets, tmp_path, config=replace(TINY, steps=1, probe_every=1))
    assert "no probe" in capsys.readouterr().err


def test_on_the_fly_equals_stored(tmp_path: Path) -> None:
    """The same pictures without a distorted set; they are larger than `max_side`, too."""
    rng = np.random.default_rng(0)
    frames = []
    for kind in ("pristine", "authentic"):
        folder = tmp_path / kind
        folder.mkdir()
        for number in range(3):
            pixels = images.as_uint8(rng.random((30, 40, 3)).repeat(4, 0).repeat(4, 1))
            (folder / f"{number}.png").write_bytes(images.encode_png(pixels))
        frames.append(import_folder(Source(folder, kind)).assign(image=lambda f, kind=kind: f"{kind}/" + f["image"]))
    write_manifest(pd.concat(frames), tmp_path)
    making = SynthesisConfig(
        distortions=("jpeg", "white_noise"), levels=(2, 5), max_side=100, weak_labels_per_photograph=0, workers=1
    )
    synthesize(tmp_path, tmp_path / "stored", seed=3, config=making)
    config = replace(TINY, steps=3)
    pretrain(tmp_path, tmp_path / "stored", tmp_path / "a", config=config, seed=3)
    for name, workers in (("b", 0), ("c", 2)):
        flying = replace(config, synthesis="on_the_fly", workers=workers)
        pretrain(tmp_path, tmp_path / "none", tmp_path / name, config=flying, seed=3, synthesis=making)
        assert same_weights(tmp_path / "a", tmp_path / name)
