"""Which backends agree with PyTorch, and which of them is fastest here."""

import json
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from contrique.arrays import read_arrays
from contrique.encoder.backends import (
    NAMES,
    PACKAGES,
    PRECISIONS,
    REFERENCE,
    Backend,
    BackendError,
    Pictures,
    count_threads,
    create_backend,
    graph_path,
    has_gpu,
    list_installed,
)
from contrique.errors import one_line
from contrique.files import sha256, write_aside

if TYPE_CHECKING:
    from contrique.encoder.weights import EncoderFile


Features = NDArray[np.float32]
Regressor = Callable[[Features], NDArray[np.float64]]
FEATURE_BOUND: Final = 5e-6  # between two backends in float32, on features whose halves have norm 1
SCORE_BOUND: Final = 0.01  # points of 100, likewise
LOW_PRECISION_BOUND: Final = 2.0  # points of 100, of bfloat16: opt-in, it ranks near-equals otherwise
_MAX_RECORD_BYTES: Final = 2**20
_log = logging.getLogger(__name__)


def load_backend(name: str, file: "EncoderFile", precision: str, score: Regressor) -> tuple[str, Backend]:
    """A backend that was seen to agree with PyTorch.

    `auto` measures every installed backend, interleaved, on a picture of 512 x 384, and takes the fastest one that
    agrees; its choice is kept beside the exported graph and holds until versions, threads or processor change. The
    features that backends and PyTorch gave for the probes are kept there too, with the graph's hash and the versions:
    another head is compared by them, and PyTorch is not imported again.

    Args:
        name: one of NAMES, or `auto`.
        file: of the encoder.
        precision: `float32` or `bfloat16`.
        score: the regressor, on the scale 0 to 100, not clipped; features of shape (N, D) to shape (N,).
    Returns:
        its name, and the backend.
    Raises:
        BackendError: unknown, not installed, without this precision, or out of bounds.
        EncoderError: the file is damaged.
    """
    if name == "auto":
        name = _choose_fastest(file, precision, score)
    if name not in NAMES:
        raise BackendError(f"unknown backend '{name}'; choose one of auto, {', '.join(NAMES)}")
    if precision not in PRECISIONS[name]:
        raise BackendError(f"backend {name} has no {precision}; it has {', '.join(PRECISIONS[name])}")
    if name not in list_installed():
        missing = [package for package in PACKAGES[name] if not util.find_spec(package)]
        raise BackendError(f"backend {name} needs {', '.join(missing)}; run: pip install -e '.[{name}]'")
    backend = create_backend(name, file, precision)
    if (name, precision) != REFERENCE:
        _compare(name, file, precision, score, backend)
    return name, backend


def measure_parity(file: "EncoderFile", score: Regressor) -> dict[str, str]:
    """How near every other installed backend and precision comes to PyTorch in float32, before anyone relies on it.

    Args:
        file, score: as `load_backend` takes them. Nothing is kept in the cache.
    Returns:
        `NAME.PRECISION` -> `within X points of 100`, or `refused: ` and why `load_backend` would refuse it.
    """
    agreement = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in list_installed():
            for precision in PRECISIONS[name]:
                if (name, precision) == REFERENCE:
                    continue
                key = f"{name}.{precision}"
                try:
                    backend = create_backend(name, file, precision, Path(folder))
                    points = _compare(name, file, precision, score, backend, Path(folder))
                    agreement[key] = f"within {points:.2g} points of 100"
                except BackendError as error:
                    agreement[key] = f"refused: {error}"
                except Exception as error:  # a broken package of an optional backend must not stop a model that works
                    reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
                    agreement[key] = f"refused: backend {name} in {precision} cannot be made: {reason}"
    return agreement


def _compare(
    name: str, file: "EncoderFile", precision: str, score: Regressor, backend: Backend, folder: Path | None = None
) -> float:
    """`check_features` of a backend against PyTorch in float32, on features computed now or recorded before."""
    features = _recorded_features(name, file, precision, lambda: backend, folder)
    base, exact = REFERENCE
    reference = _recorded_features(base, file, exact, lambda: create_backend(base, file, exact), folder)
    return check_features(features, reference, score, f"backend {name} in {precision}", exact=precision == "float32")


def _recorded_features(
    name: str, file: "EncoderFile", precision: str, create: Callable[[], Backend], folder: Path | None = None
) -> Features:
    """Features of the probes by a backend, as recorded on this machine by these versions, or else computed anew."""
    graph = graph_path(file.digest, folder)
    path = graph.with_name(f"{graph.stem}-{name}-{precision}.npz")
    setting = _describe_setting([name], precision) | {"encoder": file.digest}
    if name != "torch":
        setting["graph"] = sha256(graph)
    text = json.dumps(setting, sort_keys=True)
    if path.is_file():
        try:
            record = read_arrays(path, _MAX_RECORD_BYTES)
            if str(record["setting"]) == text and record["features"].shape == (len(draw_probes()), 2 * file.width):
                return np.asarray(record["features"], np.float32)
        except Exception as error:  # a damaged record is no more than a missing one
            _log.warning("%s: not a readable record (%s); comparing anew", path, one_line(error))
    features = compute_probes(create())
    with write_aside(path) as aside, aside.open("wb") as out:
        np.savez(out, setting=np.asarray(text), features=features)
    return features


def compute_probes(backend: Backend) -> Features:
    """Features of the probes. Shape (4, 2 * width), float32."""
    from contrique.encoder.features import extract_batch

    return np.concatenate([extract_batch(picture[None], backend) for picture in draw_probes()])


def check_features(features: Features, reference: Features, score: Regressor, what: str, *, exact: bool) -> float:
    """Refuse a backend that disagrees with the reference on four pictures of different kinds and sizes.

    Args:
        features, reference: of the probes, by `compute_probes`.
        score: as `load_backend`.
        what: what the error calls the backend.
        exact: whether features must agree too, to FEATURE_BOUND; if not, scores only, to LOW_PRECISION_BOUND.
    Returns:
        the largest difference of two scores, in points of 100.
    Raises:
        BackendError: naming the difference and the bound.
    """
    apart = float(np.abs(features - reference).max())
    points = float(np.abs(score(features) - score(reference)).max())
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
    probes = []
    for height, width, noise in ((192, 256, 0), (256, 192, 12), (129, 173, 40), (96, 96, 3)):
        y, x = np.mgrid[0:height, 0:width] / 32
        waves = np.stack([np.sin(x * (1 + c)) * np.cos(y * (3 - c)) for c in range(3)], axis=-1)
        edges = 60 * ((x + y) % 2 > 1)[..., None]
        probes.append(
            np.clip(100 + 70 * waves + edges + generator.normal(0, noise, waves.shape), 0, 255).astype(np.uint8)
        )
    return probes


def _choose_fastest(file: "EncoderFile", precision: str, score: Regressor) -> str:
    names = [name for name in list_installed() if precision in PRECISIONS[name]]
    if len(names) == 1 or has_gpu():
        return "torch"
    setting = _describe_setting(names, precision) | {"threads": count_threads()}
    graph = graph_path(file.digest)
    path = graph.with_name(f"{graph.stem}-{precision}-choice.json")
    try:
        choice = json.loads(path.read_text())
        if choice["setting"] == setting and choice["backend"] in names:
            return str(choice["backend"])
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.warning("%s: not a readable choice (%s); measuring anew", path, one_line(error))
    seconds = measure_speed({name: create_backend(name, file, precision) for name in names})
    for name in sorted(seconds, key=lambda key: seconds[key]):
        try:
            load_backend(name, file, precision, score)
        except BackendError as error:
            _log.warning("%s; trying the next fastest", error)
            continue
        with write_aside(path) as aside:
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


def _describe_setting(names: Sequence[str], precision: str) -> dict[str, Any]:
    """What features and speed depend on: versions, precision and processor."""
    packages = {package: metadata.version(package) for name in names for package in PACKAGES[name]}
    return packages | {"precision": precision, "processor": _describe_processor()}


def _describe_processor() -> str:
    import platform

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{platform.machine()} {model}".strip()
