"""What runs the encoder: PyTorch, ONNX Runtime or OpenVINO. Each turns pictures into conv5 maps.

PyTorch is the reference. The other two are optional (the extras `onnx` and `openvino`), read
one ONNX file that is exported once for each encoder and kept under its hash, and are refused if they do not agree with
PyTorch.
"""

import functools
import os
import tempfile
import warnings
from collections.abc import Callable
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from contrique.errors import ContriqueError
from contrique.files import write_aside

if TYPE_CHECKING:
    from contrique.encoder.network import Encoder
    from contrique.encoder.weights import EncoderFile


Name = Literal["torch", "onnx", "openvino"]
Precision = Literal["float32", "bfloat16"]
Maps = NDArray[np.float32]
Pictures = NDArray[np.uint8]
# from RGB of one size (N, H, W, 3) uint8 to conv5 (N, width, ceil(H / 32), ceil(W / 32)) float32
Backend = Callable[[Pictures], Maps]
NAMES: Final[tuple[Name, ...]] = ("torch", "onnx", "openvino")
PACKAGES: Final[dict[str, tuple[str, ...]]] = {
    "torch": ("torch",),
    "onnx": ("onnx", "onnxruntime"),
    "openvino": ("onnx", "openvino"),
}
PRECISIONS: Final = {"torch": ("float32", "bfloat16"), "onnx": ("float32",), "openvino": ("float32", "bfloat16")}
REFERENCE: Final = ("torch", "float32")
EXPORT_VERSION: Final = "1"  # of the exported graph; another number makes old files stale
_OPSET: Final = 18


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
        batch = (
            torch.from_numpy(np.require(pictures, requirements=("C", "W")))
            .to(device)
            .permute(0, 3, 1, 2)
            .float()
            .div_(255)
        )
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


def list_installed() -> list[Name]:
    """The backends whose packages are installed."""
    return [name for name in NAMES if all(util.find_spec(package) for package in PACKAGES[name])]


def cache_folder() -> Path:
    """Where exported graphs are kept: CONTRIQUE_CACHE, or `contrique` in the user's cache folder.

    For a user without a home, as containers have, until the end of this process.
    """
    if folder := os.environ.get("CONTRIQUE_CACHE"):
        return Path(folder)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "contrique"
    except RuntimeError:
        return Path(_scratch().name)


@functools.cache
def _scratch() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="contrique-")


def count_threads() -> int:
    """Threads of ONNX Runtime and OpenVINO: OMP_NUM_THREADS, or one for each core that this process may use."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return int(limit) if limit.isdecimal() and int(limit) > 0 else len(os.sched_getaffinity(0))


def graph_path(digest: str, folder: Path | None = None) -> Path:
    """Where the exported graph of an encoder is kept; records of it stand beside it, with the same stem.

    Args:
        digest: SHA-256 of the encoder's file.
        folder: default: `cache_folder()`.
    """
    return (folder or cache_folder()) / f"{digest[:32]}-{EXPORT_VERSION}.onnx"


def export(file: "EncoderFile", folder: Path | None = None) -> Path:
    """The encoder as an ONNX file, from RGB pictures to conv5; exported once and kept.

    Args:
        file: of the encoder; not loaded if the graph is there.
        folder: where it is kept; default: `cache_folder()`.
    Returns:
        a file with the input `pictures` (N, H, W, 3) uint8 and the output `maps`; N, H and W are free.
    """
    path = graph_path(file.digest, folder)
    if not path.is_file():
        import copy

        import torch

        class Graph(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.encoder = copy.deepcopy(file.encoder).cpu()

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


def create_backend(name: str, file: "EncoderFile", precision: str, folder: Path | None = None) -> Backend:
    """A backend, unchecked. Arguments as `parity.load_backend`; `folder` as `export`."""
    if name == "torch":
        return Torch(file.encoder, precision)
    graph, threads = export(file, folder), count_threads()
    return _Onnx(graph, threads) if name == "onnx" else _OpenVino(graph, threads, precision)


def has_gpu() -> bool:
    """Whether PyTorch can use a GPU; PyTorch is imported only where there is a device to ask about."""
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        return False
    import torch

    return torch.cuda.is_available()
