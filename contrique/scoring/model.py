"""A model for Python programs: anything that is a picture in, scores with their contract out."""

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from contrique import images
from contrique.errors import ContriqueError
from contrique.scoring.explain import Explanation, explain
from contrique.scoring.inputs import NamedPicture
from contrique.scoring.results import Failure, Score
from contrique.scoring.scorer import Scorer

if TYPE_CHECKING:
    from PIL import Image

    PictureLike = str | Path | bytes | Image.Image | NDArray[np.uint8]


class Model:
    """A no-reference image-quality model, as `contrique.load` returns it.

    Args:
        scorer: encoder and head.
    """

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    @property
    def version(self) -> str:
        """In the registry, or the folder that it was loaded from."""
        return self._scorer.version

    @property
    def labels(self) -> str:
        """What it learned from: `human` opinion scores, or `weak` full-reference labels."""
        return self._scorer.labels

    @overload
    def score(self, picture: "PictureLike") -> Score: ...  # type: ignore[overload-overlap]  # text is iterable too
    @overload
    def score(self, picture: "Iterable[PictureLike]") -> Iterator[Score | Failure]: ...
    def score(self, picture: Any) -> Score | Iterator[Score | Failure]:
        """Score a picture, or many.

        Args:
            picture: path of an image file, the bytes of one, a PIL image or an array: RGB, shape (H, W, 3), uint8.
                H and W at least 64. Or a list or generator of those; it is read as results are taken, a few pictures
                ahead, so that it may be endless.
        Returns:
            the score: `value` from 0 to 100, higher is better, with `interval` and `warning`. Of a list or generator
            an iterator of them, in order, with a Failure in the place of a picture that cannot be scored.
        Raises:
            ContriqueError: a single picture cannot be read (`images.BadImage`) or is too small
                (`encoder.features.ImageTooSmall`); the message names it and the remedy.
            TypeError: neither a picture nor an iterable.
        """
        if _is_many(picture):
            return self._scorer.score_pictures(_decode_many(picture))
        name, pixels = name_of(picture), decode_any(picture)
        with _naming(name):
            return self._scorer.contract(name, self._scorer.features(pixels))

    def explain(self, picture: "PictureLike") -> Explanation:
        """Where a picture's quality is lost, and which distortion it looks like. Arguments and errors as `score`.

        Returns:
            score, `heat` (score of each patch of 32 x 32 pixels) and `suspects`; `save` draws it.
        """
        name, pixels = name_of(picture), decode_any(picture)
        with _naming(name):
            return explain(self._scorer, pixels, name)

    def __repr__(self) -> str:
        return f"Model({self.version or 'unregistered'}, learned from {self.labels} labels)"


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Errors of the block begin with the picture's name."""
    try:
        yield
    except ContriqueError as error:
        raise type(error)(Failure.of(name, error).error) from error


def decode_any(picture: Any, name: str = "") -> images.Picture:
    """Pixels of a path, bytes, a PIL image or an array. Shape (H, W, 3), uint8.

    Args:
        picture: as `Model.score`.
        name: what errors call it; default: `name_of`.
    Raises:
        BadImage: it cannot be read, or the array has another shape or type.
        TypeError: no picture.
    """
    name = name or name_of(picture)
    if isinstance(picture, str | Path):
        return images.read(picture)
    if isinstance(picture, bytes):
        return images.decode(picture, name).pixels
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise images.BadImage(
                f"{name}: an array of shape {picture.shape} and type {picture.dtype}; "
                "give RGB of shape (H, W, 3), uint8, and many pictures as a list"
            )
        return picture
    if _is_pillow(picture):
        return _decode_pillow(picture, name)
    raise TypeError(
        f"{name}: a {type(picture).__name__} is no picture; give a path, bytes, a PIL image, or an array of shape "
        "(H, W, 3), uint8"
    )


def name_of(picture: Any, number: int | None = None) -> str:
    """What results call a picture: its path, or `image` with its number."""
    if isinstance(picture, str | Path):
        return str(picture)
    return "image" if number is None else f"image {number}"


def _is_pillow(picture: Any) -> bool:
    from PIL import Image

    return isinstance(picture, Image.Image)


def _decode_pillow(image: "Image.Image", name: str) -> images.Picture:
    """As `images.decode` would its file: upright, over white, 8-bit RGB."""
    from PIL import ImageOps

    try:
        upright = ImageOps.exif_transpose(image)
        if upright.mode == "RGB" and "transparency" not in upright.info:
            return np.asarray(upright)
        buffer = io.BytesIO()
        upright.save(buffer, "TIFF" if upright.mode in ("F", "CMYK", "YCbCr", "LAB") else "PNG")
    except Exception as error:  # a file that Pillow reads only now may be damaged
        raise images.BadImage(f"{name}: cannot be read ({' '.join(str(error).split())}); open it again") from error
    return images.decode(buffer.getvalue(), name).pixels


def _is_many(picture: Any) -> bool:
    is_single = isinstance(picture, str | Path | bytes | np.ndarray) or _is_pillow(picture)
    return not is_single and isinstance(picture, Iterable)


def _decode_many(pictures: Iterable[Any]) -> Iterator[NamedPicture | Failure]:
    for number, picture in enumerate(pictures):
        name = name_of(picture, number)
        try:
            yield name, decode_any(picture, name)
        except ContriqueError as error:
            yield Failure.of(name, error)
