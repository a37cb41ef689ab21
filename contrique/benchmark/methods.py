"""What is compared: features of pictures and the heads on them."""

import hashlib
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from contrique.benchmark.sets import BenchmarkError, JudgedSet
from contrique.config import Config
from contrique.data.manifest import read_picture, read_picture_bytes, rows_of
from contrique.files import write_aside
from contrique.images import Picture, content_hash
from contrique.regressor.cross_validation import Learner, ridge_learner

if TYPE_CHECKING:
    from contrique.encoder.network import Encoder


BASELINES: Final = ("untrained", "brisque")
UNTRAINED_SEEDS: Final = (1000, 1001, 1002)
_CHUNK: Final = 256  # pictures whose features are written at once
Features = NDArray[Any]
Describe = Callable[[Iterable[Picture]], Features]


@dataclass(frozen=True)
class Method:
    """What is compared: features of a picture, and how a head on them is learned.

    Attributes:
        name: in the tables.
        key: of its cached features; another key wherever they could differ.
        describe: from pictures to features, row by row.
        learner: what is fitted to the features.
        full_reference: whether it is judged as a full-reference method too, where a set has reference pictures.
    """

    name: str
    key: str
    describe: Describe
    learner: Learner
    full_reference: bool = False


def hash_encoder(encoder: "Encoder") -> str:
    """SHA-256 of an encoder's architecture and weights, in hex, wherever they came from."""
    digest = hashlib.sha256(encoder.arch.encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def list_methods(encoder: "Encoder", name: str, baselines: Sequence[str], config: Config) -> list[Method]:
    """The encoder with a ridge, and the baselines asked for.

    Args:
        encoder: in eval mode.
        name: of it, in the tables.
        baselines: any of BASELINES: `untrained`, the same network with random weights of each of UNTRAINED_SEEDS, and
            `brisque`, with a support vector regressor.
        config: alphas, and the precision of the features.
    Raises:
        BenchmarkError: an unknown baseline.
    """
    import torch

    from contrique.benchmark.baselines import brisque_features, svr_learner
    from contrique.encoder.features import extract
    from contrique.encoder.network import Encoder

    for baseline in baselines:
        if baseline not in BASELINES:
            raise BenchmarkError(f"unknown baseline '{baseline}'; choose one of {', '.join(BASELINES)}")
    alphas, precision = sorted(config.regressor.alphas), config.features.precision

    def of_encoder(name: str, net: Encoder) -> Method:
        key = f"{net.arch}-{precision}-{hash_encoder(net)[:16]}"
        return Method(name, key, lambda pictures: extract(pictures, net, precision), ridge_learner(alphas))

    methods = [replace(of_encoder(name, encoder), full_reference=True)]
    if "untrained" in baselines:
        device = next(encoder.parameters()).device
        for seed in UNTRAINED_SEEDS:
            net = Encoder(encoder.arch, seed=seed).eval().requires_grad_(False)
            net = net.to(device).to(memory_format=torch.channels_last)
            methods.append(of_encoder(f"{encoder.arch}, untrained, seed {seed}", net))
    if "brisque" in baselines:
        methods.append(
            Method(
                "BRISQUE + SVR",
                f"brisque-piq-{metadata.version('piq')}",
                brisque_features,
                svr_learner(),
            )
        )
    return methods


def compute_features(judged: JudgedSet, method: Method, cache: Path) -> Features:
    """Features of every picture of a set, computed where the cache lacks them.

    Args:
        judged: the set.
        method: whose features.
        cache: folder of features by `method.key` and the SHA-256 of the picture's file.
    Returns:
        shape (N, D).
    Raises:
        BenchmarkError: a picture without features (too small, or flat); damaged cache.
    """
    rows = rows_of(judged.rows)
    hashes = [row.sha256 or content_hash(read_picture_bytes(judged.folder, row)) for row in rows]
    cached = dict(_read_cache(cache / method.key))
    missing = list({sha: row for sha, row in zip(hashes, rows, strict=True) if sha not in cached}.items())
    with tqdm(total=len(missing), desc=f"{method.name}: {judged.name}", unit="img", delay=1, disable=None) as bar:
        for start in range(0, len(missing), _CHUNK):
            names, chunk = zip(*missing[start : start + _CHUNK], strict=True)
            values = _compute_chunk(judged.folder, chunk, method, bar)
            _write_cache(cache / method.key, names, values)
            cached |= dict(zip(names, values, strict=True))
    return np.stack([cached[sha] for sha in hashes])


def _compute_chunk(folder: Path, rows: Sequence[Any], method: Method, bar: "tqdm[Any]") -> Features:
    from contrique.benchmark.baselines import BaselineError
    from contrique.encoder.features import ImageTooSmall

    at = ""

    def pictures() -> Iterator[Picture]:
        nonlocal at
        for row in rows:
            at = str(row.image)
            yield read_picture(folder, row)
            bar.update()

    try:
        return method.describe(pictures())
    except (BaselineError, ImageTooSmall) as error:  # they know the picture, not its name
        raise BenchmarkError(f"{folder / at}: no features for {method.name}: {error}") from error


def _read_cache(folder: Path) -> Iterator[tuple[str, Features]]:
    for path in sorted(folder.glob("*.npz")):
        try:
            with np.load(path, allow_pickle=False) as file:
                yield from zip(file["sha256"].tolist(), file["features"], strict=True)
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise BenchmarkError(f"{path}: damaged cache of features ({error}); delete it and run again") from error


def _write_cache(folder: Path, hashes: Sequence[str], values: Features) -> None:
    name = content_hash("".join(hashes).encode())[:16]
    with write_aside(folder / f"{name}.npz") as aside, aside.open("wb") as file:
        np.savez(file, sha256=np.asarray(hashes, dtype=str), features=values)
