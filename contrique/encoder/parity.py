"""Which backends agree with PyTorch, and which of them is fastest here."""

import json
import logging
import tempfile
import time
from collections.abc import Callable
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from contrique.encoder.backends import (
    EXPORT_VERSION,
    NAMES,
    PACKAGES,
    PRECISIONS,
    REFERENCE,
    Backend,
    BackendError,
    Name,
    Pictures,
    Torch,
    cache_folder,
    create_backend,
    list_installed,
)
from contrique.files import write_aside

if TYPE_CHECKING:
    from contrique.encoder.network import Encoder


Regressor = Callable[[NDArray[np.float32]], NDArray[np.float64]]
FEATURE_BOUND: Final = 5e-6  # between two backends in float32, on features whose halves have norm 1
SCORE_BOUND: Final = 0.01  # points of 100, likewise
LOW_PRECISION_BOUND: Final = 2.0  # points of 100, of bfloat16: opt-in, it ranks near-equals otherwise
_log = logging.getLogger(__name__)


def load_backend(name: str, encoder: "Encoder", digest: str, precision: str, score: Regressor) -> tuple[str, Backend]:
    """A backend that was seen to agree with PyTorch.

    `auto` measures every installed backend, interleaved, on a picture of 512 x 384, and takes the fastest one that
    agrees; its choice is kept beside the exported graph and holds until versions, threads or processor change.

    Args:
        name: one of NAMES, or `auto`.
        encoder: the reference.
        digest: `storage.sha256` of its file.
        precision: `float32` or `bfloat16`.
        score: the regressor, on the scale 0 to 100, not clipped; features of shape (N, D) to shape (N,).
    Returns:
        its name, and the backend.
    Raises:
        BackendError: unknown, not installed, without this precision, or out of bounds.
    """
    if name == "auto":
        name = _choose_fastest(encoder, digest, precision, score)
    if name not in NAMES:
        raise BackendError(f"unknown backend '{name}'; choose one of auto, {', '.join(NAMES)}")
    if precision not in PRECISIONS[name]:
        raise BackendError(f"backend {name} has no {precision}; it has {', '.join(PRECISIONS[name])}")
    if name not in list_installed():
        missing = [package for package in PACKAGES[name] if not util.find_spec(package)]
        raise BackendError(f"backend {name} needs {', '.join(missing)}; run: pip install -e '.[{name}]'")
    backend = create_backend(name, encoder, digest, precision)
    if (name, precision) != REFERENCE:
        check_backend(backend, Torch(encoder), score, f"backend {name} in {precision}", exact=precision == "float32")
    return name, backend


def measure_parity(encoder: "Encoder", digest: str, score: Regressor) -> dict[str, str]:
    """How near every other installed backend and precision comes to PyTorch in float32, before anyone relies on it.

    Args:
        encoder, digest, score: as `load` takes them. Nothing is kept in the cache.
    Returns:
        `NAME.PRECISION` -> `within X points of 100`, or `refused: ` and why `load` would refuse it.
    """
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in list_installed():
            for precision in PRECISIONS[name]:
                if (name, precision) == REFERENCE:
                    continue
                what = f"backend {name} in {precision}"
                try:
                    backend = create_backend(name, encoder, digest, precision, Path(folder))
                    points = check_backend(backend, Torch(encoder), score, what, exact=precision == "float32")
                    found[f"{name}.{precision}"] = f"within {points:.2g} points of 100"
                except BackendError as error:
                    found[f"{name}.{precision}"] = f"refused: {error}"
                except Exception as error:  # a broken package of an optional backend must not stop a model that works
                    line = (str(error).splitlines() or [""])[0]
                    found[f"{name}.{precision}"] = f"refused: {what} cannot be made: {type(error).__name__}: {line}"
    return found


def check_backend(
    backend: Backend,
    reference: Backend,
    score: Regressor,
    what: str,
    *,
    exact: bool,
) -> float:
    """Refuse a backend that disagrees with the reference on four pictures of different kinds and sizes.

    Args:
        backend, reference: to compare.
        score: as `load`.
        what: what the error calls the backend.
        exact: whether features must agree too, to FEATURE_BOUND; if not, scores only, to LOW_PRECISION_BOUND.
    Returns:
        the largest difference of two scores, in points of 100.
    Raises:
        BackendError: naming the difference and the bound.
    """
    from contrique.encoder.features import extract_batch

    ours, theirs = ([extract_batch(picture[None], run) for picture in draw_probes()] for run in (backend, reference))
    a, b = np.concatenate(ours), np.concatenate(theirs)
    apart = float(np.abs(a - b).max())
    points = float(np.abs(score(a) - score(b)).max())
    bound = SCORE_BOUND if exact else LOW_PRECISION_BOUND
    if not (points <= bound and (not exact or apart <= FEATURE_BOUND)):
        raise BackendError(
            f"{what} differs from PyTorch in float32 by {points:.2g} points of 100 (features by {apart:.1g}), "
            f"more than {bound:g} ({FEATURE_BOUND:g}); use --backend torch --precision float32"
        )
    return points


def draw_probes() -> list[Pictures]:
    """Pictures that backends are compared on: smooth, noisy, flat areas and edges. Each (H, W, 3), uint8."""
    generator = np.random.default_rng(0)
    made = []
    for height, width, noise in ((192, 256, 0), (256, 192, 12), (129, 173, 40), (96, 96, 3)):
        y, x = np.mgrid[0:height, 0:width] / 32
        waves = np.stack([np.sin(x * (1 + c)) * np.cos(y * (3 - c)) for c in range(3)], axis=-1)
        edges = 60 * ((x + y) % 2 > 1)[..., None]
        made.append(
            np.clip(100 + 70 * waves + edges + generator.normal(0, noise, waves.shape), 0, 255).astype(np.uint8)
        )
    return made


def _choose_fastest(encoder: "Encoder", digest: str, precision: str, score: Regressor) -> str:
    names = [name for name in list_installed() if precision in PRECISIONS[name]]
    if next(encoder.parameters()).device.type == "cuda" or len(names) == 1:
        return "torch"
    setting = _describe_setting(names, precision)
    kept = cache_folder() / f"{digest[:32]}-{EXPORT_VERSION}-choice.json"
    if kept.is_file():
        choice = json.loads(kept.read_text())
        if choice["setting"] == setting:
            return str(choice["backend"])
    seconds = measure_speed({name: create_backend(name, encoder, digest, precision) for name in names})
    for name in sorted(seconds, key=lambda key: seconds[key]):
        try:
            load_backend(name, encoder, digest, precision, score)
        except BackendError as error:
            _log.warning("%s; trying the next fastest", error)
            continue
        with write_aside(kept) as aside:
            aside.write_text(json.dumps({"setting": setting, "backend": name, "seconds": seconds}, indent=2) + "\n")
        return name
    raise BackendError(f"no installed backend agrees with PyTorch in {precision}; use --precision float32")


def measure_speed(
    backends: dict[str, Backend], shape: tuple[int, int] = (384, 512), repeats: int = 5
) -> dict[str, float]:
    """Fastest time of each backend on one picture, in seconds; interleaved, so that a busy machine is fair to all."""
    picture = np.random.default_rng(0).integers(0, 256, (1, *shape, 3), dtype=np.uint8)
    best = dict.fromkeys(backends, float("inf"))
    for repeat in range(repeats + 1):
        for name, backend in backends.items():
            start = time.perf_counter()
            backend(picture)
            if repeat:  # the first is a warm-up
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def _describe_setting(names: list[Name], precision: str) -> dict[str, Any]:
    """What a measured choice depends on."""
    import platform

    import torch

    packages = {package: metadata.version(package) for name in names for package in PACKAGES[name]}
    return packages | {"precision": precision, "threads": torch.get_num_threads(), "machine": platform.machine()}
