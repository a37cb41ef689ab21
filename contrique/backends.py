"""What runs the encoder: PyTorch, ONNX Runtime or OpenVINO. Each turns pictures into conv5 maps.

PyTorch is the reference. The other two are optional (the extras `onnx` and `openvino`), read
one ONNX file that is exported once for each encoder and kept under its hash, and are refused if they do not agree with
PyTorch.
"""

import functools
import json
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from contrique.errors import ContriqueError
from contrique.storage import write_aside

if TYPE_CHECKING:
    from contrique.encoder import Encoder

Name = Literal["torch", "onnx", "openvino"]
Precision = Literal["float32", "bfloat16"]
Maps = NDArray[np.float32]
Pictures = NDArray[np.uint8]
# from RGB of one size (N, H, W, 3) uint8 to conv5 (N, width, ceil(H / 32), ceil(W / 32)) float32
Backend = Callable[[Pictures], Maps]
Regressor = Callable[[NDArray[np.float32]], NDArray[np.float64]]

NAMES: Final[tuple[Name, ...]] = ("torch", "onnx", "openvino")
PACKAGES: Final = {"torch": ("torch",), "onnx": ("onnx", "onnxruntime"), "openvino": ("onnx", "openvino")}
PRECISIONS: Final = {"torch": ("float32", "bfloat16"), "onnx": ("float32",), "openvino": ("float32", "bfloat16")}
REFERENCE: Final = ("torch", "float32")
FEATURE_BOUND: Final = 5e-6  # between two backends in float32, on features whose halves have norm 1
SCORE_BOUND: Final = 0.01  # points of 100, likewise
LOW_PRECISION_BOUND: Final = 2.0  # points of 100, of bfloat16: opt-in, it ranks near-equals otherwise
_EXPORT: Final = "1"  # of the exported graph; another number makes old files stale
_OPSET: Final = 18


_log = logging.getLogger(__name__)


class BackendError(ContriqueError):
    """A backend that is not installed, or does not compute what PyTorch does."""


class Torch:
    """The encoder as it is, on its device.

    Args:
        encoder: in eval mode; its parameters are not touched.
        precision: `float32`, or `bfloat16` for autocast. On a GPU float32 is float32: PyTorch's own default there is
            TF32 in convolutions, which moves features by 5e-4.
    """

    def __init__(self, encoder: "Encoder", precision: str = "float32") -> None:
        self._encoder = encoder
        self._low = precision == "bfloat16"

    def __call__(self, pictures: Pictures) -> Maps:
        import torch

        device = next(self._encoder.parameters()).device
        # (N, H, W, 3) viewed as (N, 3, H, W) is channels_last already, the layout the convolutions are fastest in
        batch = torch.from_numpy(np.ascontiguousarray(pictures)).to(device).permute(0, 3, 1, 2).float().div_(255)
        # the switch is the process's own: one thread at a time
        full = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        with torch.inference_mode(), full, torch.autocast(device.type, torch.bfloat16, enabled=self._low):
            maps: Maps = self._encoder.maps(batch).float().cpu().numpy()
        return maps


class _Onnx:
    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, pictures: Pictures) -> Maps:
        maps: Maps = self._session.run(None, {"pictures": pictures})[0]
        return maps


@functools.cache
def _core() -> Any:
    """One for the life of the process.

    Each brings a signal stack to the thread that compiles with it. Of two that go in the order in which they came, the
    second puts the first one's back, which is freed by then; the next signal (Ctrl-C, the end of a child process) would
    be a segmentation fault.
    """
    import openvino

    return openvino.Core()


class _OpenVino:
    def __init__(self, path: Path, threads: int, precision: str) -> None:
        settings = {
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
        }
        core = _core()
        self._request = core.compile_model(core.read_model(path), "CPU", settings).create_infer_request()

    def __call__(self, pictures: Pictures) -> Maps:
        # a copy: the request's own memory is written again by the next picture
        return np.array(self._request.infer([np.ascontiguousarray(pictures)])[0], np.float32)


def installed() -> list[Name]:
    """The backends whose packages are installed."""
    return [name for name in NAMES if all(util.find_spec(package) for package in PACKAGES[name])]


def cache_folder() -> Path:
    """Where exported graphs are kept: CONTRIQUE_CACHE, or `contrique` in the user's cache folder."""
    named = os.environ.get("CONTRIQUE_CACHE")
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(named) if named else user / "contrique"


def export(encoder: "Encoder", digest: str, folder: Path | None = None) -> Path:
    """The encoder as an ONNX file, from RGB pictures to conv5; made once and kept.

    Args:
        encoder: on any device; its parameters are not touched.
        digest: `storage.sha256` of its file.
        folder: where it is kept; default: `cache_folder()`.
    Returns:
        a file with the input `pictures` (N, H, W, 3) uint8 and the output `maps`; N, H and W are free.
    """
    path = (folder or cache_folder()) / f"{digest[:32]}-{_EXPORT}.onnx"
    if not path.is_file():
        import copy

        import torch

        class Graph(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.encoder = copy.deepcopy(encoder).cpu()

            def forward(self, pictures: torch.Tensor) -> torch.Tensor:
                return self.encoder.maps(pictures.permute(0, 3, 1, 2).float() / 255)

        with write_aside(path) as aside, warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the exporter of TorchScript; the other needs more
            torch.onnx.export(
                Graph().eval(),
                (torch.zeros((1, 64, 96, 3), dtype=torch.uint8),),
                str(aside),
                input_names=["pictures"],
                output_names=["maps"],
                dynamic_axes={"pictures": {0: "n", 1: "height", 2: "width"}, "maps": {0: "n", 2: "rows", 3: "columns"}},
                opset_version=_OPSET,
                dynamo=False,
            )
    return path


def load(name: str, encoder: "Encoder", digest: str, precision: str, score: Regressor) -> tuple[str, Backend]:
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
        name = _fastest(encoder, digest, precision, score)
    if name not in NAMES:
        raise BackendError(f"unknown backend '{name}'; choose one of auto, {', '.join(NAMES)}")
    if precision not in PRECISIONS[name]:
        raise BackendError(f"backend {name} has no {precision}; it has {', '.join(PRECISIONS[name])}")
    if name not in installed():
        missing = [package for package in PACKAGES[name] if not util.find_spec(package)]
        raise BackendError(f"backend {name} needs {', '.join(missing)}; run: pip install -e '.[{name}]'")
    backend = _make(name, encoder, digest, precision)
    if (name, precision) != REFERENCE:
        check(backend, Torch(encoder), score, f"backend {name} in {precision}", exact=precision == "float32")
    return name, backend


def parity(encoder: "Encoder", digest: str, score: Regressor) -> dict[str, str]:
    """How near every other installed backend and precision comes to PyTorch in float32, before anyone relies on it.

    Args:
        encoder, digest, score: as `load` takes them. Nothing is kept in the cache.
    Returns:
        `NAME.PRECISION` -> `within X points of 100`, or `refused: ` and why `load` would refuse it.
    """
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in installed():
            for precision in PRECISIONS[name]:
                if (name, precision) == REFERENCE:
                    continue
                what = f"backend {name} in {precision}"
                try:
                    backend = _make(name, encoder, digest, precision, Path(folder))
                    points = check(backend, Torch(encoder), score, what, exact=precision == "float32")
                    found[f"{name}.{precision}"] = f"within {points:.2g} points of 100"
                except BackendError as error:
                    found[f"{name}.{precision}"] = f"refused: {error}"
                except Exception as error:  # a broken package of an optional backend must not stop a model that works
                    line = (str(error).splitlines() or [""])[0]
                    found[f"{name}.{precision}"] = f"refused: {what} cannot be made: {type(error).__name__}: {line}"
    return found


def _make(name: str, encoder: "Encoder", digest: str, precision: str, folder: Path | None = None) -> Backend:
    import torch

    if name == "torch":
        return Torch(encoder, precision)
    graph, threads = export(encoder, digest, folder), torch.get_num_threads()
    return _Onnx(graph, threads) if name == "onnx" else _OpenVino(graph, threads, precision)


def check(
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
    from contrique.features import describe

    ours, theirs = ([describe(picture[None], run) for picture in probes()] for run in (backend, reference))
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


def probes() -> list[Pictures]:
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


def _fastest(encoder: "Encoder", digest: str, precision: str, score: Regressor) -> str:
    names = [name for name in installed() if precision in PRECISIONS[name]]
    if next(encoder.parameters()).device.type == "cuda" or len(names) == 1:
        return "torch"
    setting = _setting(names, precision)
    kept = cache_folder() / f"{digest[:32]}-{_EXPORT}-choice.json"
    if kept.is_file():
        choice = json.loads(kept.read_text())
        if choice["setting"] == setting:
            return str(choice["backend"])
    seconds = measure({name: _make(name, encoder, digest, precision) for name in names})
    for name in sorted(seconds, key=lambda key: seconds[key]):
        try:
            load(name, encoder, digest, precision, score)
        except BackendError as error:
            _log.warning("%s; trying the next fastest", error)
            continue
        with write_aside(kept) as aside:
            aside.write_text(json.dumps({"setting": setting, "backend": name, "seconds": seconds}, indent=2) + "\n")
        return name
    raise BackendError(f"no installed backend agrees with PyTorch in {precision}; use --precision float32")


def measure(backends: dict[str, Backend], shape: tuple[int, int] = (384, 512), repeats: int = 5) -> dict[str, float]:
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


def _setting(names: list[Name], precision: str) -> dict[str, Any]:
    """What a measured choice depends on."""
    import platform

    import torch

    packages = {package: metadata.version(package) for name in names for package in PACKAGES[name]}
    return packages | {"precision": precision, "threads": torch.get_num_threads(), "machine": platform.machine()}
