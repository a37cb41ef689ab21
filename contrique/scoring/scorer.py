"""Pictures to scores, each with its contract: value, range, direction, labels and model version."""

import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from contrique import images
from contrique.encoder.backends import Backend, create_backend, has_gpu
from contrique.encoder.features import extract_batch, interpolate, local_products
from contrique.encoder.weights import EncoderFile
from contrique.errors import ContriqueError
from contrique.regressor.head import Head
from contrique.regressor.reliability import UNLIKE
from contrique.scoring.inputs import BATCH_PIXELS, NamedPicture, batch_pictures, decode_ahead, find_images
from contrique.scoring.results import Failure, Score
from contrique.walk import Skipped

if TYPE_CHECKING:
    from contrique.encoder.network import Encoder


Scores = NDArray[np.float64]
TOLERANCE = 0.01  # of RANGE, in float32: the same picture alone or in a batch, by any number of threads, on any device


class ScorerError(ContriqueError):
    """A model whose parts do not belong together, or a picture that it cannot score."""


@functools.cache
def _thread_pools() -> Any:
    """The pools of the libraries that NumPy has loaded; to look for them takes milliseconds, to limit them none."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


class Scorer:
    """A frozen encoder and a head: the whole no-reference model.

    A picture's score does not depend on its neighbours, on the number of threads or on the device, beyond rounding:
    TOLERANCE. PyTorch runs the encoder unless `use` says otherwise; it is imported when it is first needed.

    Args:
        encoder: a `.safetensors` file; it is held open and may be deleted meanwhile.
        regressor: folder with `ridge.npz` and `regressor.json`.
        version: in the registry, if it comes from there.
    Attributes:
        head: from features to scores.
        version: as given.
    Raises:
        EncoderError, RegressorError: a file is missing or damaged.
        ScorerError: the regressor was fitted on features of another width.
    """

    def __init__(self, encoder: Path | str, regressor: Path | str, version: str = "") -> None:
        self.version = version
        self._file = EncoderFile(Path(encoder))
        self.head = Head.load(Path(regressor))
        self._backend: Backend | None = None
        width, expected = 2 * self._file.width, self.head.summary.features_dim
        if width != expected:
            raise ScorerError(
                f"{regressor}: fitted on {expected} features, but {encoder} gives {width}; "
                "give the regressor that was fitted on this encoder's features"
            )

    @property
    def encoder_file(self) -> EncoderFile:
        """The encoder's file."""
        return self._file

    @property
    def labels(self) -> str:
        """`human` or `weak`."""
        return self.head.summary.labels

    @property
    def encoder(self) -> "Encoder":
        """The frozen encoder in PyTorch, for other regressors on the same features.

        Raises:
            EncoderError: its file holds what no encoder has.
        """
        return self._file.encoder

    def use(self, backend: str = "torch", precision: str = "float32") -> str:
        """Run the encoder by another backend from now on.

        Args:
            backend: `torch`, `onnx`, `openvino`, or `auto` for the fastest one measured here that agrees with PyTorch.
            precision: `float32`, or `bfloat16` where the backend has it.
        Returns:
            the backend's name.
        Raises:
            BackendError: not installed, or its scores are farther from those of PyTorch in float32 than is allowed.
            EncoderError: the encoder's file holds what no encoder has.
        """
        from contrique.encoder.parity import load_backend

        name, self._backend = load_backend(backend, self._file, precision, self._points_of_features)
        return name

    def parity(self) -> dict[str, str]:
        """How near every other installed backend comes to PyTorch in float32: `parity.measure_parity`."""
        from contrique.encoder.parity import measure_parity

        return measure_parity(self._file, self._points_of_features)

    @property
    def backend(self) -> Backend:
        """What runs the encoder.

        Raises:
            EncoderError: the encoder's file holds what no encoder has.
        """
        if self._backend is None:
            self._backend = create_backend("torch", self._file, "float32")
        return self._backend

    def raw(self, pictures: Iterable[images.Picture]) -> Scores:
        """The regressor's output, on the scale of its training labels.

        Args:
            pictures: RGB. Each of shape (H, W, 3), uint8, H and W at least 64; taken one at a time.
        Returns:
            Shape (N,), float64.
        Raises:
            ImageTooSmall: a side is under 64 pixels.
        """
        return np.array([self._raw(self.features(picture)) for picture in pictures], dtype=np.float64)

    def score(self, pictures: Iterable[images.Picture]) -> Scores:
        """Scores in RANGE, higher is better. Arguments and errors as `raw`. Shape (N,), float64."""
        return self.head.to_points(self.raw(pictures))

    def local(self, picture: images.Picture) -> tuple[NDArray[np.float32], Scores]:
        """Features of a picture, and a raw score of each cell of conv5.

        The regressor takes each cell's vector, normalised as h is, for the features of a picture, at both scales. What
        is then left between the mean of the cells and the picture's own score is added to every cell.

        Args:
            picture: RGB. Shape (H, W, 3), uint8, H and W at least 64.
        Returns:
            features, shape (2 * width,), float32, and scores, shape (ceil(H / 32), ceil(W / 32)), float64.
        Raises:
            ImageTooSmall: a side is under 64 pixels.
        """
        features = self.features(picture)
        width = len(features) // 2
        full, half = (
            local_products(scale, self.backend, self.head.ridge.coef[part])
            for scale, part in ((picture, slice(width)), (images.half_scale(picture), slice(width, None)))
        )
        cells = full + interpolate(half, full.shape, 2)
        return features, cells + (self._raw(features) - cells.mean())

    def judge(self, data: bytes, name: str, max_pixels: int = images.MAX_PIXELS) -> Score | Failure:
        """Score an encoded image file; one that cannot be scored gives a Failure.

        Args:
            data: the file's bytes, in any format of `images.decode`.
            name: what the result calls it.
            max_pixels: above which it is refused undecoded.
        """
        try:
            pixels = images.decode(data, name, max_pixels).pixels
        except ContriqueError as error:
            return Failure.of(name, error)
        return self.judge_pixels(pixels, name)

    def judge_pixels(self, pixels: images.Picture, name: str) -> Score | Failure:
        """As `judge`, of a decoded picture. RGB, shape (H, W, 3), uint8."""
        return next(self._score_batch([(name, pixels)]))[0]

    def score_paths(
        self, paths: Iterable[str | Path], skipped: list[Skipped] | None = None
    ) -> Iterator[Score | Failure]:
        """Score files, folders and globs, in order, at bounded memory: the next few are decoded meanwhile.

        Folders give every image file below them, sorted by path. A path that does not exist, a folder without
        images and a file that is not an image each give a Failure, and the rest goes on.

        Args:
            paths: as `find_images` takes them.
            skipped: takes what folders hold besides pictures.
        """
        return self.score_pictures(decode_ahead(find_images(paths, skipped)))

    def score_pictures(self, items: Iterable[NamedPicture | Failure]) -> Iterator[Score | Failure]:
        """Score decoded pictures, in order, neighbours of one size in batches; failures keep their place.

        Args:
            items: a name and RGB pixels of shape (H, W, 3), uint8, or a Failure.
        """
        return (item for item, _ in self._score_with_features(items))

    def diagnose_pictures(self, items: Iterable[NamedPicture | Failure]) -> Iterator[tuple[Score | Failure, str]]:
        """As `score_pictures`, with the likeliest distortion of each picture: `pristine` for none.

        Empty for a failure, and of a model that cannot name any.
        """
        diagnosis = self.head.diagnosis
        for item, features in self._score_with_features(items):
            if diagnosis is None or features is None or isinstance(item, Failure):
                yield item, ""
            else:
                with _thread_pools().limit(limits=1, user_api="blas"):
                    fault = diagnosis.suspects(features)[0].distortion
                yield item, fault

    def _score_with_features(
        self, items: Iterable[NamedPicture | Failure]
    ) -> Iterator[tuple[Score | Failure, NDArray[np.float32] | None]]:
        budget = BATCH_PIXELS["cuda" if has_gpu() else "cpu"]
        for batch in batch_pictures(items, budget):
            if isinstance(batch, Failure):
                yield batch, None
            else:
                yield from self._score_batch(batch)

    def _score_batch(self, batch: list[NamedPicture]) -> Iterator[tuple[Score | Failure, NDArray[np.float32] | None]]:
        """Results of pictures of one size, with their features."""
        # a view of one picture: a copy of 100 megapixels would be 300 MB
        pictures = batch[0][1][None] if len(batch) == 1 else np.stack([pixels for _, pixels in batch])
        backend = self.backend  # a damaged encoder is no fault of the pictures
        try:
            features = extract_batch(pictures, backend)
        except ContriqueError as error:
            yield from ((Failure.of(name, error), None) for name, _ in batch)
            return
        for (name, _), row in zip(batch, features, strict=True):
            try:
                yield self.contract(name, row), row
            except ContriqueError as error:
                yield Failure.of(name, error), None

    def contract(self, name: str, features: NDArray[np.float32]) -> Score:
        """A picture's score with everything that comes with it.

        Args:
            name: what the result calls it.
            features: shape (2 * width,), float32.
        Raises:
            RegressorError, ScorerError: NaN in the features, or a score that is no finite number.
        """
        # Idle threads of OpenBLAS spin for tens of milliseconds, on the cores that the next picture's encoder needs.
        with _thread_pools().limit(limits=1, user_api="blas"):
            raw = self._raw(features)
            if not np.isfinite(raw):
                raise ScorerError("the model gave no finite number; roll it back")
            distance, warning = None, None
            if novelty := self.head.novelty:
                distance = float(novelty.distance(features[None])[0])
                warning = UNLIKE.format(distance) if distance > 1 else ""
        value, interval = float(self.head.to_points(raw)), self.head.interval(raw)
        return Score(name, value, raw, self.version, self.labels, interval, distance, warning)

    def features(self, picture: images.Picture) -> NDArray[np.float32]:
        """Frozen features of a picture, as `extract_batch`. Shape (2 * width,), float32.

        Raises:
            ImageTooSmall: a side is under 64 pixels.
        """
        return np.asarray(extract_batch(picture[None], self.backend)[0])

    def _raw(self, features: NDArray[np.float32]) -> float:
        return float(self.head.predict(features[None])[0])

    def _points_of_features(self, features: NDArray[np.float32]) -> Scores:
        """On the scale of RANGE, not clipped: two backends must agree beyond its ends too. Shape (N,)."""
        return self.head.to_points(self.head.predict(features), clip=False)
