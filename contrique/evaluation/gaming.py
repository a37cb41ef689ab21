"""How far a score can be raised without a better picture: gaming the score.

Each attack changes a picture in a way that is cheap for whoever wants a higher score; what it raises is no quality:

- `jpeg_100` and `gradient` change what hardly anybody sees: the picture is as good as before;
- `jpeg_30_saved_at_100` hides a bad original in a good file, and is compared with that bad original;
- `upscaling_*` adds pixels and no information, borders and text add what is not the photograph;
- `sharpening` and `contrast_stretch` may truly mend a blurred or a dull picture. That they do not is presumed, and is
  safe only of photographs that need no mending; `fidelity` says how far they lead away from one.

`gradient` is projected gradient descent (Madry et al., ICLR 2018) through the encoder and the regressor: the worst that
a small change can do to this very model, and beyond those who do not have its weights.
"""

import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from contrique import metrics
from contrique.encoder.backends import Backend, Pictures
from contrique.encoder.features import extract_batch
from contrique.images import Picture
from contrique.regressor.head import Head

if TYPE_CHECKING:
    from PIL import Image

    from contrique.encoder.network import Encoder

Array = metrics.Array
GRADIENT: Final = "gradient"
EPSILON: Final = 2  # levels of 255 by which the gradient attack may change a value
STEPS: Final = 3  # of one level each
RAISED: Final = 5.0  # points from which on a picture counts as raised
_BORDER: Final = 16  # of the shorter side, one in so many pixels
_BATCH_PIXELS: Final = 2**18  # in one pass of the encoder, unless one picture has more
_CAPTION: Final = "SAMPLE"


class Target(Protocol):
    """A model that can be attacked; `scoring.scorer.Scorer` is one."""

    @property
    def head(self) -> Head: ...
    @property
    def encoder(self) -> "Encoder": ...
    @property
    def backend(self) -> Backend: ...


@dataclass(frozen=True)
class Attack:
    """A change of a picture that makes it no better.

    Attributes:
        change: RGB in, RGB out. Shape (H, W, 3), uint8.
        before: what the changed picture is compared with, made of the picture; None for the picture itself.
    """

    change: Callable[[Picture], Picture]
    before: Callable[[Picture], Picture] | None = None


@dataclass(frozen=True)
class Rise:
    """What one attack does to a model's scores.

    Attributes:
        n: pictures.
        mean: rise in points of 100, not clipped to the ends of the scale; None where a score is no finite number.
        low, high: bootstrap interval of the mean; None likewise.
        share: of the pictures that rise by more than RAISED points.
        values: the rise of each picture.
        fidelity: mean full-reference score (`data.weak_labels`) of the changed picture beside the one before, 1 for no
            difference; None if it was not measured, or the sizes differ.
    """

    n: int
    mean: float | None
    low: float | None
    high: float | None
    share: float
    values: list[float | None]
    fidelity: float | None = None


@dataclass(frozen=True)
class Gaming:
    """Attacks on challenger and champion, on the same pictures.

    Attributes:
        contents: of each picture.
        side: pixels to which the middle of each picture was cut.
        challenger, champion: attack to rise; champion None if there is none.
    """

    contents: list[str]
    side: int
    challenger: dict[str, Rise]
    champion: dict[str, Rise] | None


def sharpen(picture: Picture) -> Picture:
    """Unsharp mask: radius 2 pixels, 150 %."""
    from PIL import ImageFilter

    return _by_pillow(picture, lambda image: image.filter(ImageFilter.UnsharpMask(2, 150, 0)))


def upscale(picture: Picture, factor: float) -> Picture:
    """Lanczos."""
    from PIL import Image

    height, width = picture.shape[:2]
    size = round(width * factor), round(height * factor)
    return _by_pillow(picture, lambda image: image.resize(size, Image.Resampling.LANCZOS))


def encode_jpeg(picture: Picture, quality: int) -> Picture:
    """Written as JPEG and read again; colours at full resolution at quality 100, at half below."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality, subsampling=0 if quality == 100 else 2)
    return np.array(Image.open(buffer).convert("RGB"))


def add_border(picture: Picture, level: int) -> Picture:
    """A frame of one grey level around the picture, a sixteenth of its shorter side wide."""
    width = max(1, min(picture.shape[:2]) // _BORDER)
    return np.pad(picture, ((width, width), (width, width), (0, 0)), constant_values=level)


def add_text(picture: Picture) -> Picture:
    """A white caption with a black outline, an eighth of the shorter side high, at the lower edge."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.fromarray(picture)
    size = max(8, min(image.size) // 8)
    place = image.width / 2, image.height - size
    ImageDraw.Draw(image).text(
        place, _CAPTION, "white", ImageFont.load_default(size), anchor="mm", stroke_width=2, stroke_fill="black"
    )
    return np.array(image)


def stretch_contrast(picture: Picture) -> Picture:
    """Each channel from its first to its last percentile to the whole range."""
    from PIL import ImageOps

    return _by_pillow(picture, lambda image: ImageOps.autocontrast(image, cutoff=1))


def _by_pillow(picture: Picture, change: "Callable[[Image.Image], Image.Image]") -> Picture:
    from PIL import Image

    return np.array(change(Image.fromarray(picture)))


ATTACKS: Final[dict[str, Attack]] = {
    "sharpening": Attack(sharpen),
    "upscaling_1.5": Attack(lambda picture: upscale(picture, 1.5)),
    "upscaling_2": Attack(lambda picture: upscale(picture, 2)),
    "jpeg_100": Attack(lambda picture: encode_jpeg(picture, 100)),
    "jpeg_30_saved_at_100": Attack(
        lambda picture: encode_jpeg(encode_jpeg(picture, 30), 100), lambda picture: encode_jpeg(picture, 30)
    ),
    "black_border": Attack(lambda picture: add_border(picture, 0)),
    "white_border": Attack(lambda picture: add_border(picture, 255)),
    "text": Attack(add_text),
    "contrast_stretch": Attack(stretch_contrast),
}
NAMES: Final = (*ATTACKS, GRADIENT)


def climb(target: Target, pictures: Pictures) -> Pictures:
    """The pictures, changed by at most EPSILON levels so that the model's score rises: projected gradient descent.

    Steps are whole levels of the sign of the gradient, so that the result is an 8-bit picture as it stands. The half
    scale that the score takes is differentiated as torch's bicubic, without its rounding.

    Args:
        target: the model.
        pictures: RGB. Shape (N, H, W, 3), uint8, H and W at least 64.
    """
    import torch
    from torch.nn.functional import interpolate

    encoder = target.encoder
    device = next(encoder.parameters()).device
    weights = torch.from_numpy(target.head.ridge.coef).float().to(device)
    start = torch.from_numpy(pictures.copy()).to(device).permute(0, 3, 1, 2).float()
    half = pictures.shape[1] // 2, pictures.shape[2] // 2
    lowest, highest = (start - EPSILON).clamp(min=0), (start + EPSILON).clamp(max=255)
    x = start
    for _ in range(STEPS):
        x = x.detach().requires_grad_()
        small = interpolate(x, half, mode="bicubic", antialias=True).clamp(0, 255)
        features = torch.cat([encoder(x / 255), encoder(small / 255)], dim=1)
        (gradient,) = torch.autograd.grad((features @ weights).sum(), x)
        x = torch.clamp(x + gradient.sign(), lowest, highest)
    changed: Pictures = x.detach().permute(0, 2, 3, 1).byte().cpu().numpy()
    return changed


def measure_rises(
    target: Target,
    pictures: Sequence[Picture],
    contents: Sequence[str],
    *,
    names: Sequence[str] = NAMES,
    resamples: int,
    confidence: float,
    seed: int,
    fidelity: bool = False,
) -> dict[str, Rise]:
    """Attack a model on some pictures.

    Args:
        target: the model.
        pictures: RGB. Each of shape (H, W, 3), uint8, H and W at least 64.
        contents: of each picture; the bootstrap draws them.
        names: of the attacks, of NAMES.
        resamples, confidence, seed: of the bootstrap.
        fidelity: whether to compare changed pictures with those before, too.
    Returns:
        attack to rise.
    """
    counts, _ = metrics.resample(contents, resamples, np.random.default_rng(seed))
    plain = _points(target, pictures)
    rises = {}
    for name in names:
        attack = ATTACKS.get(name, Attack(lambda picture: picture))
        changed: Sequence[Picture] = [attack.change(picture) for picture in pictures]
        if name == GRADIENT:
            changed = [picture for batch in _list_batches(pictures) for picture in climb(target, batch)]
        before = [attack.before(picture) for picture in pictures] if attack.before else pictures
        values = _points(target, changed) - (_points(target, before) if attack.before else plain)
        likeness = _compare(changed, before) if fidelity else None
        rises[name] = _summarize(values, counts, confidence, likeness)
    return rises


def _points(target: Target, pictures: Sequence[Picture]) -> Array:
    raw = [target.head.predict(extract_batch(batch, target.backend)) for batch in _list_batches(pictures)]
    return target.head.to_points(np.concatenate(raw), clip=False)


def _list_batches(pictures: Sequence[Picture]) -> Iterator[Pictures]:
    """Neighbours of one size together, in order: small pictures one by one would take several times as long."""
    for _, alike in itertools.groupby(pictures, key=lambda picture: picture.shape):
        group = list(alike)
        size = max(1, _BATCH_PIXELS // (group[0].shape[0] * group[0].shape[1]))
        for start in range(0, len(group), size):
            yield np.stack(group[start : start + size])


def _compare(changed: Sequence[Picture], before: Sequence[Picture]) -> float | None:
    from contrique.data.weak_labels import weak_label

    pairs = list(zip(changed, before, strict=True))
    if any(new.shape != old.shape for new, old in pairs):
        return None
    return float(np.mean([weak_label(new, old) for new, old in pairs]))


def _summarize(values: Array, counts: Array, confidence: float, fidelity: float | None) -> Rise:
    plain = [float(value) if np.isfinite(value) else None for value in values]
    share = float(np.mean(values > RAISED))
    if None in plain:
        return Rise(len(values), None, None, None, share, plain, fidelity)
    low, high = metrics.interval(counts @ values / counts.sum(axis=1), confidence)
    return Rise(len(values), float(values.mean()), low, high, share, plain, fidelity)


def pick_sample(total: int, count: int, seed: int) -> NDArray[np.intp]:
    """Which of `total` pictures are attacked: all, or `count` of them, the same for the same seed; rising."""
    return np.sort(np.random.default_rng(seed).permutation(total)[:count])


def cut_middle(picture: Picture, side: int) -> Picture:
    """The middle of a picture at its own scale, at most `side` pixels high and wide: scaling would hide damage."""
    top, left = (max(0, (length - side) // 2) for length in picture.shape[:2])
    return np.ascontiguousarray(picture[top : top + side, left : left + side])


def attack_rivals(
    challenger: Target,
    champion: Target | None,
    pictures: Sequence[Picture],
    contents: Sequence[str],
    *,
    side: int,
    **options: Any,
) -> Gaming:
    """Attack challenger and champion on the same pictures.

    Args:
        challenger, champion: the models; champion None if there is none.
        pictures, contents: as `measure_rises`.
        side: to which each picture is cut first.
        options: names, resamples, confidence and seed of `measure_rises`.
    """
    cut = [cut_middle(picture, side) for picture in pictures]
    ours = measure_rises(challenger, cut, contents, **options)
    theirs = measure_rises(champion, cut, contents, **options) if champion else None
    return Gaming(list(contents), side, ours, theirs)
