"""Two-scale views of pictures for pretraining, and the samplers that compose a step (spec section 2).

Everything random is a function of (seed, step) alone: a step's batch is the same whatever the number of loader
processes and wherever training was resumed, and ranks that share a step make the very batch that one process would.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from contrique import distortions
from contrique.data.manifest import DatasetError, picture_name, read_picture_bytes, rows_of
from contrique.data.synthesis import Version
from contrique.images import Picture, as_float, as_uint8, content_hash, decode, fit_within
from contrique.pretraining.colour import COLOUR_SPACES
from contrique.pretraining.crops import cut_views, draw_cut

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Batch:
    """One step's views, or a rank's share of them. Of each picture there are two, at full and at half scale, in random
    order.

    Attributes:
        views: two tensors, RGB uint8. Shape (images, 3, crop, crop) each.
        colours: index into COLOUR_SPACES of each view. Shape (2, images).
        labels: class of each image: (distortion, level) classes, and of each authentic image one of its own.
        rows: row of each image in the pool.
    """

    views: tuple[Tensor, Tensor]
    colours: Tensor
    labels: Tensor
    rows: Tensor

    def pin_memory(self) -> "Batch":
        """The views in page-locked memory, from which a GPU copies by itself; DataLoader calls this."""
        first, second = self.views
        return replace(self, views=(first.pin_memory(), second.pin_memory()))


@dataclass(frozen=True)
class OnTheFly:
    """What each pristine photograph of a pool stands for, where no distorted picture is stored.

    Attributes:
        versions: made of each photograph, as `contrique.data.synthesis.versions` lists them.
        labels: class of each version.
        max_side: photographs are downscaled to it before they are distorted; 0: as they are.
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
        on_the_fly: if given, a row of kind `pristine` becomes as many as there are versions.
    """

    def __init__(self, pool: "pd.DataFrame", on_the_fly: OnTheFly | None = None) -> None:
        self.on_the_fly = on_the_fly
        self.folders = [Path(folder) for folder in pool["folder"]]
        self.records = rows_of(pool)
        made = (pool["kind"] == "pristine").to_numpy() if on_the_fly else np.zeros(len(pool), bool)
        copies = np.where(made, len(on_the_fly.versions) if on_the_fly else 1, 1)
        self.source = np.repeat(np.arange(len(pool), dtype=np.int32), copies)  # row -> record
        first = np.repeat(np.cumsum(copies) - copies, copies)
        self.version = np.where(made[self.source], np.arange(len(self.source)) - first, -1).astype(np.int16)
        self.label = pool["label"].to_numpy(np.int64)[self.source]
        if on_the_fly:
            self.label = np.where(self.version < 0, self.label, np.array(on_the_fly.labels)[self.version])

    def __len__(self) -> int:
        return len(self.source)

    def fingerprint(self) -> str:
        """SHA-256 of all that the pictures are made of: the files' contents, what is made of them, and the classes."""
        told = hashlib.sha256(repr(self.on_the_fly).encode())
        told.update("".join(str(record.sha256) for record in self.records).encode())
        told.update(self.label.tobytes())
        return told.hexdigest()

    def __getitem__(self, row: int) -> Picture:
        """RGB. Shape (H, W, 3), uint8."""
        record, folder, version = self.records[self.source[row]], self.folders[self.source[row]], self.made(row)
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

    def made(self, row: int) -> Version | None:
        """The version that is made of a photograph for this row; None of a stored picture."""
        index = self.version[row]
        return self.on_the_fly.versions[index] if self.on_the_fly and index >= 0 else None

    def name(self, row: int) -> str:
        """What messages call a row."""
        version = self.made(row)
        made = f" as {version.distortion}-{version.level}" if version and version.distortion else ""
        return picture_name(self.records[self.source[row]]) + made

    def version_of(self, row: int) -> Version:
        """Distortion and level of a row, stored or made."""
        record: Any = self.records[self.source[row]]
        return self.made(row) or Version(record.distortion, record.level)

    def reference(self, row: int) -> str:
        """The content of a row."""
        return str(self.records[self.source[row]].reference)

    def size(self, row: int) -> tuple[int, int]:
        """Height and width, from the manifest where it knows them."""
        record: Any = self.records[self.source[row]]
        if not (record.height and record.width):
            height, width = self[row].shape[:2]
            return height, width
        scale = 1.0
        if self.made(row) and self.on_the_fly and self.on_the_fly.max_side:
            scale = min(1.0, self.on_the_fly.max_side / max(record.height, record.width))
        return max(1, round(record.height * scale)), max(1, round(record.width * scale))


class Views(Dataset[Batch]):
    """Step number -> Batch, from a pool of synthetic and authentic pictures.

    Args:
        pool, on_the_fly: as `Pictures` takes them.
        images: pictures a step.
        authentic_share: of them.
        crop: side of a view in pixels.
        balanced: draw classes uniformly and `contents_per_class` different photographs of each, instead of pictures
            uniformly without replacement over an epoch.
        seed: of everything drawn.
        colour_spaces: of COLOUR_SPACES, that views are converted to.
        rank, ranks: this process makes every `ranks`-th picture of a step, from the one at `rank` on.
    Raises:
        DatasetError: the pool lacks synthetic or authentic pictures that the step needs, or the ranks cannot share
            the pictures of a step equally.
    """

    def __init__(
        self,
        pool: "pd.DataFrame",
        *,
        images: int,
        authentic_share: float,
        crop: int,
        balanced: bool,
        contents_per_class: int,
        seed: int,
        colour_spaces: Sequence[str] = COLOUR_SPACES,
        on_the_fly: OnTheFly | None = None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        if images % ranks:
            raise DatasetError(f"pretrain.images={images} cannot be shared by {ranks} processes; set a multiple of it")
        if not colour_spaces:
            raise DatasetError(f"pretrain.colour_spaces is empty; choose some of {', '.join(COLOUR_SPACES)}")
        self.colours = np.array([COLOUR_SPACES.index(name) for name in colour_spaces])
        self.crop, self.seed, self.rank, self.ranks = crop, seed, rank, ranks
        self.pictures = Pictures(pool, on_the_fly)
        label = self.pictures.label
        self.authentic, self.synthetic = np.flatnonzero(label < 0), np.flatnonzero(label >= 0)
        self.n_authentic = round(images * authentic_share)
        self.n_synthetic = images - self.n_authentic
        for count, rows, kind in (
            (self.n_authentic, self.authentic, "authentic"),
            (self.n_synthetic, self.synthetic, "synthetic"),
        ):
            if count and not len(rows):
                raise DatasetError(
                    f"no {kind} pictures to pretrain on; give some or set pretrain.authentic_share "
                    f"to {0 if kind == 'authentic' else 1}"
                )
        self.balanced, self.contents_per_class = balanced, contents_per_class
        self.by_class: dict[int, dict[str, list[int]]] = {}
        self._order: dict[int, tuple[int, NDArray[np.int64]]] = {}
        for row in self.synthetic.tolist() if balanced else ():
            contents = self.by_class.setdefault(int(label[row]), {})
            contents.setdefault(self.pictures.reference(row), []).append(row)

    @property
    def steps_per_epoch(self) -> float:
        """Steps after which as many synthetic pictures were drawn as there are; authentic ones if no others are."""
        if self.n_synthetic:
            return len(self.synthetic) / self.n_synthetic
        return len(self.authentic) / self.n_authentic

    def rows(self, step: int) -> NDArray[np.int64]:
        """Rows of the pool that make a step, of all ranks: synthetic ones first. Shape (images,)."""
        rng = np.random.default_rng([self.seed, 1, step])
        synthetic = self._balanced(rng) if self.balanced else self._epoch(self.synthetic, self.n_synthetic, step, 2)
        return np.concatenate([synthetic, self._epoch(self.authentic, self.n_authentic, step, 3)])

    def _balanced(self, rng: np.random.Generator) -> NDArray[np.int64]:
        chosen: list[int] = []
        classes = sorted(self.by_class)
        order: list[int] = []
        while len(chosen) < self.n_synthetic:
            order = order or list(rng.permutation(len(classes)))
            contents = self.by_class[classes[order.pop()]]
            names = sorted(contents)
            for i in rng.permutation(len(names))[: self.contents_per_class]:
                chosen.append(int(rng.choice(contents[names[i]])))
        return np.array(chosen[: self.n_synthetic], np.int64)

    def _epoch(self, rows: NDArray[np.int64], count: int, step: int, stream: int) -> NDArray[np.int64]:
        """`count` rows from a sequence of permutations of `rows`, one per pass over them."""
        positions = np.arange(step * count, (step + 1) * count)
        out = np.empty(count, np.int64)
        for epoch in np.unique(positions // max(1, len(rows))):
            here = positions // len(rows) == epoch
            out[here] = rows[self._permutation(stream, int(epoch), len(rows))[positions[here] % len(rows)]]
        return out

    def _permutation(self, stream: int, epoch: int, count: int) -> NDArray[np.int64]:
        """The order of an epoch; the last one is kept, since all steps of an epoch ask for it."""
        if self._order.get(stream, (-1,))[0] != epoch:
            self._order[stream] = (epoch, np.random.default_rng([self.seed, stream, epoch]).permutation(count))
        return self._order[stream][1]

    def __getitem__(self, step: int) -> Batch:
        rows = self.rows(step)
        rng = np.random.default_rng([self.seed, 4, step])
        first, second = [], []
        for position, row in enumerate(rows):
            # what the other ranks draw is drawn here too: the share of a rank does not depend on their number
            image = self.pictures[row] if position % self.ranks == self.rank else None
            height, width = image.shape[:2] if image is not None else self.pictures.size(row)
            cut = draw_cut(height, width, self.crop, rng)
            if image is not None:
                a, b = cut_views(image, self.crop, cut)
                first.append(a)
                second.append(b)
        labels = self.pictures.label[rows]
        own = labels < 0
        labels[own] = 1_000_000 + rows[own]  # by picture: of a small set a step draws some twice
        colours = torch.from_numpy(self.colours[rng.integers(len(self.colours), size=(2, len(rows)))])
        mine = slice(self.rank, None, self.ranks)
        return Batch(
            (_stack(first), _stack(second)),
            colours[:, mine],
            torch.from_numpy(labels)[mine],
            torch.from_numpy(rows)[mine],
        )


def _stack(crops: list[Picture]) -> Tensor:
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
