"""Two-scale views of pictures for pretraining, and the samplers that compose a step (spec section 2).

All randomness is a function of (seed, step): a step's batch depends neither on the number of loader processes nor on
where training was resumed, and ranks that share a step compute the same batch as a single process.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from contrique import distortions
from contrique.config import PretrainConfig
from contrique.data.manifest import DatasetError, picture_name, read_picture_bytes, rows_of
from contrique.data.synthesis import Version
from contrique.images import Picture, as_float, as_uint8, content_hash, decode, fit_within
from contrique.pretraining.cache import PictureCache
from contrique.pretraining.colour import COLOUR_SPACES
from contrique.pretraining.crops import cut_views, draw_cut

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Batch:
    """Views of one step, or one rank's share of them: two of each picture, at full and at half scale, in random order.

    Attributes:
        views: two tensors, RGB uint8. Shape (images, 3, crop, crop) each.
        colours: index into COLOUR_SPACES of each view. Shape (2, images).
        labels: class of each image. A class is a (distortion, level); each authentic image is a class of its own.
        rows: row of each image in the pool.
    """

    views: tuple[Tensor, Tensor]
    colours: Tensor
    labels: Tensor
    rows: Tensor

    def pin_memory(self) -> "Batch":
        """The batch with its views in page-locked memory, for asynchronous copies to a GPU; DataLoader calls this."""
        first, second = self.views
        return replace(self, views=(first.pin_memory(), second.pin_memory()))


@dataclass(frozen=True)
class OnTheFly:
    """The distorted versions of each pristine photograph of a pool, where no distorted picture is stored.

    Attributes:
        versions: of each photograph, as `contrique.data.synthesis.versions` lists them.
        labels: class of each version.
        max_side: longer side in pixels that photographs are downscaled to before distortion; 0: no downscaling.
        seed: of the distortions. The pictures are those that `contrique.data.synthesis.synthesize` would store.
    """

    versions: tuple[Version, ...]
    labels: tuple[int, ...]
    max_side: int
    seed: int


class Pictures:
    """Row number -> picture, read from its picture set or distorted on the fly.

    Args:
        pool: manifest rows with the columns of a manifest and `folder` (its picture set) and `label`: the class id of
            a synthetic row, -1 for an authentic one.
        on_the_fly: if present, a row of kind `pristine` becomes one row per version.
    """

    def __init__(self, pool: "pd.DataFrame", on_the_fly: OnTheFly | None = None) -> None:
        self.on_the_fly = on_the_fly
        self.folders = [Path(folder) for folder in pool["folder"]]
        self.records = rows_of(pool)
        distorted = (pool["kind"] == "pristine").to_numpy() if on_the_fly else np.zeros(len(pool), bool)
        copies = np.where(distorted, len(on_the_fly.versions) if on_the_fly else 1, 1)
        self.source = np.repeat(np.arange(len(pool), dtype=np.int32), copies)  # row -> record
        first = np.repeat(np.cumsum(copies) - copies, copies)
        self.version = np.where(distorted[self.source], np.arange(len(self.source)) - first, -1).astype(np.int16)
        self.label = pool["label"].to_numpy(np.int64)[self.source]
        if on_the_fly:
            self.label = np.where(self.version < 0, self.label, np.array(on_the_fly.labels)[self.version])

    def __len__(self) -> int:
        return len(self.source)

    def fingerprint(self) -> str:
        """SHA-256 of all that determines the pictures: contents of the files, versions and classes."""
        digest = hashlib.sha256(repr(self.on_the_fly).encode())
        digest.update("".join(str(record.sha256) for record in self.records).encode())
        digest.update(self.label.tobytes())
        return digest.hexdigest()

    def __getitem__(self, row: int) -> Picture:
        """RGB. Shape (H, W, 3), uint8."""
        record, folder, version = self.records[self.source[row]], self.folders[self.source[row]], self.synthesized(row)
        data = read_picture_bytes(folder, record)
        pixels = decode(data, self.name(row)).pixels
        if not self.on_the_fly or not version:
            return pixels
        if self.on_the_fly.max_side:
            pixels = fit_within(pixels, self.on_the_fly.max_side)
        if not version.distortion:
            return pixels
        generator = distortions.generator(content_hash(data), *version, self.on_the_fly.seed)
        return as_uint8(distortions.distort(as_float(pixels), *version, generator))

    def synthesized(self, row: int) -> Version | None:
        """The version of a photograph that this row is distorted to on the fly; None for a stored picture."""
        index = self.version[row]
        return self.on_the_fly.versions[index] if self.on_the_fly and index >= 0 else None

    def name(self, row: int) -> str:
        """Name of a row in messages."""
        version = self.synthesized(row)
        suffix = f" as {version.distortion}-{version.level}" if version and version.distortion else ""
        return picture_name(self.records[self.source[row]]) + suffix

    def version_of(self, row: int) -> Version:
        """Distortion and level of a row."""
        record: Any = self.records[self.source[row]]
        return self.synthesized(row) or Version(record.distortion, record.level)

    def reference(self, row: int) -> str:
        """The content of a row."""
        return str(self.records[self.source[row]].reference)

    def size(self, row: int) -> tuple[int, int]:
        """Height and width in pixels, from the manifest if it has them."""
        record: Any = self.records[self.source[row]]
        if not (record.height and record.width):
            height, width = self[row].shape[:2]
            return height, width
        scale = 1.0
        if self.synthesized(row) and self.on_the_fly and self.on_the_fly.max_side:
            scale = min(1.0, self.on_the_fly.max_side / max(record.height, record.width))
        return max(1, round(record.height * scale)), max(1, round(record.width * scale))


class Views(Dataset[Batch]):
    """Step number -> Batch, from a pool of synthetic and authentic pictures.

    Args:
        pool, on_the_fly: as `Pictures` takes them.
        config: pictures a step, how many of them are authentic, side of a view, colour spaces that views are converted
            to, and the sampler: `balanced` draws classes uniformly, and `contents_per_class` different photographs of
            each; `uniform` draws pictures, without replacement within an epoch.
        seed: of all draws.
        rank, ranks: this process computes every `ranks`-th picture of a step, starting at index `rank`.
    Raises:
        DatasetError: the pool lacks synthetic or authentic pictures that the step needs, or the ranks cannot share
            the pictures of a step equally.
    """

    def __init__(
        self,
        pool: "pd.DataFrame",
        config: PretrainConfig,
        *,
        seed: int,
        on_the_fly: OnTheFly | None = None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        if config.images % ranks:
            raise DatasetError(
                f"pretrain.images={config.images} cannot be shared by {ranks} processes; set a multiple of it"
            )
        if not config.colour_spaces:
            raise DatasetError(f"pretrain.colour_spaces is empty; choose some of {', '.join(COLOUR_SPACES)}")
        self.colours = np.array([COLOUR_SPACES.index(name) for name in config.colour_spaces])
        self.config, self.seed, self.rank, self.ranks = config, seed, rank, ranks
        self.pictures = Pictures(pool, on_the_fly)
        self.cache: PictureCache | None = None  # without one a picture is decoded whenever it is drawn
        label = self.pictures.label
        self.authentic, self.synthetic = np.flatnonzero(label < 0), np.flatnonzero(label >= 0)
        self.n_authentic, self.n_synthetic = config.authentic_images, config.images - config.authentic_images
        for count, rows, kind in (
            (self.n_authentic, self.authentic, "authentic"),
            (self.n_synthetic, self.synthetic, "synthetic"),
        ):
            if count and not len(rows):
                raise DatasetError(
                    f"no {kind} pictures to pretrain on; give some or set pretrain.authentic_share "
                    f"to {0 if kind == 'authentic' else 1}"
                )
        self.balanced = config.sampler == "balanced"
        self.by_class: dict[int, dict[str, list[int]]] = {}
        self._order: dict[int, tuple[int, NDArray[np.int64]]] = {}
        for row in self.synthetic.tolist() if self.balanced else ():
            contents = self.by_class.setdefault(int(label[row]), {})
            contents.setdefault(self.pictures.reference(row), []).append(row)
        self.by_class = {label: dict(sorted(self.by_class[label].items())) for label in sorted(self.by_class)}

    @property
    def steps_per_epoch(self) -> float:
        """Steps until as many synthetic pictures were drawn as the pool has; authentic ones if it has no others."""
        if self.n_synthetic:
            return len(self.synthetic) / self.n_synthetic
        return len(self.authentic) / self.n_authentic

    def rows(self, step: int) -> NDArray[np.int64]:
        """Rows of the pool in a step, over all ranks, synthetic rows first. Shape (images,)."""
        rng = np.random.default_rng([self.seed, 1, step])
        synthetic = self._balanced(rng) if self.balanced else self._epoch(self.synthetic, self.n_synthetic, step, 2)
        return np.concatenate([synthetic, self._epoch(self.authentic, self.n_authentic, step, 3)])

    def _balanced(self, rng: np.random.Generator) -> NDArray[np.int64]:
        rows: list[int] = []
        classes = list(self.by_class)
        order: list[int] = []
        while len(rows) < self.n_synthetic:
            order = order or list(rng.permutation(len(classes)))
            contents = self.by_class[classes[order.pop()]]
            names = list(contents)
            for i in rng.permutation(len(names))[: self.config.contents_per_class]:
                rows.append(int(rng.choice(contents[names[i]])))
        return np.array(rows[: self.n_synthetic], np.int64)

    def _epoch(self, rows: NDArray[np.int64], count: int, step: int, stream: int) -> NDArray[np.int64]:
        """`count` rows from a sequence of permutations of `rows`, one permutation per epoch."""
        positions = np.arange(step * count, (step + 1) * count)
        out = np.empty(count, np.int64)
        for epoch in np.unique(positions // max(1, len(rows))):
            mask = positions // len(rows) == epoch
            out[mask] = rows[self._permutation(stream, int(epoch), len(rows))[positions[mask] % len(rows)]]
        return out

    def _permutation(self, stream: int, epoch: int, count: int) -> NDArray[np.int64]:
        """Order of an epoch. The last one is cached, since all steps of an epoch need it."""
        if self._order.get(stream, (-1,))[0] != epoch:
            self._order[stream] = (epoch, np.random.default_rng([self.seed, stream, epoch]).permutation(count))
        return self._order[stream][1]

    def __getitem__(self, step: int) -> Batch:
        rows = self.rows(step)
        rng = np.random.default_rng([self.seed, 4, step])
        first, second = [], []
        for position, row in enumerate(rows):
            # every rank draws the numbers of all ranks, so that the pictures do not depend on how many there are
            image, half = self._decode(row) if position % self.ranks == self.rank else (None, None)
            height, width = image.shape[:2] if image is not None else self.pictures.size(row)
            cut = draw_cut(height, width, self.config.crop, rng)
            if image is not None:
                a, b = cut_views(image, self.config.crop, cut, half)
                first.append(a)
                second.append(b)
        labels = self.pictures.label[rows]
        authentic = labels < 0
        labels[authentic] = 1_000_000 + rows[authentic]  # by picture: a step draws some of a small set twice
        colours = torch.from_numpy(self.colours[rng.integers(len(self.colours), size=(2, len(rows)))])
        share = slice(self.rank, None, self.ranks)
        return Batch(
            (_stack(first), _stack(second)),
            colours[:, share],
            torch.from_numpy(labels)[share],
            torch.from_numpy(rows)[share],
        )

    def _decode(self, row: int) -> tuple[Picture, Picture | None]:
        """A picture and its half scale, if that is known."""
        return self.cache[row] if self.cache else (self.pictures[row], None)


def _stack(crops: list[Picture]) -> Tensor:
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
