"""What parts of a split, or two judged sets, must not share: a content, a file, a near-duplicate, a flip, a scene.

Three ways to see it, by what they cost: names and hashes of the manifest find shared contents and files; perceptual
hashes find re-encoded, resized, re-graded and flipped copies among thousands of pictures; key points find a crop of the
same photograph, at some milliseconds a pair (LIVE-IQA and TID2013 hold different crops of the same Kodak photographs).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, Final, Literal

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from contrique import images
from contrique.errors import ContriqueError


def class_ids(values: Sequence[str]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Integer ids of strings, numbered in sorted order. Shape (N,), int64."""
    return np.unique(np.asarray(values, dtype=str), return_inverse=True)[1].astype(np.int64)


def near_duplicates(
    hashes_a: Sequence[str],
    hashes_b: Sequence[str],
    bits: int,
    *,
    flip: Literal["", "horizontal", "vertical", "both"] = "",
    apart: tuple[Sequence[str], Sequence[str]] | None = None,
) -> list[tuple[int, int]]:
    """Pairs of pictures whose perceptual hashes differ in at most `bits` of 64.

    A flip of the picture turns the sign of every other DCT coefficient, so that the hash of the flipped picture is
    known from the hash alone but for the few bits near the median (on 250 photographs: 3 bits on average, 12 at most;
    two different photographs differ in 14 or more).

    Args:
        hashes_a, hashes_b: `images.perceptual_hash` of each picture; an empty one (undecodable) matches nothing.
        bits: the largest difference that counts as a near-duplicate.
        flip: compare the pictures of a with those of b flipped.
        apart: a group of each picture of a and of b; only pairs from different groups are given.
    Returns:
        pairs (index in a, index in b), in order.
    """
    rows_a = np.flatnonzero([bool(value) for value in hashes_a])
    rows_b = np.flatnonzero([bool(value) for value in hashes_b])
    a, b = _hash_codes(filter(None, hashes_a)), _hash_codes(filter(None, hashes_b)) ^ _FLIPPED[flip]
    ids = (
        class_ids([*apart[0], *apart[1]]) if apart else np.r_[np.zeros(len(hashes_a), int), np.ones(len(hashes_b), int)]
    )
    groups_a, groups_b = ids[: len(hashes_a)][rows_a], ids[len(hashes_a) :][rows_b]
    pairs = []
    block = max(1, 2**22 // max(1, len(b)))
    for start in range(0, len(a), block):
        rows = slice(start, start + block)
        close = (np.bitwise_count(a[rows, None] ^ b) <= bits) & (groups_a[rows, None] != groups_b)
        pairs += [(int(rows_a[start + i]), int(rows_b[j])) for i, j in np.argwhere(close)]
    return pairs


def _hash_codes(hashes: Iterable[str]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    return np.array([int(value, 16) for value in hashes], dtype=np.uint64)


# flip -> bits of a perceptual hash, row by row from the highest, whose coefficient changes sign
_FLIPPED = {
    "": np.uint64(0),
    "horizontal": np.uint64(0x5555555555555555),
    "vertical": np.uint64(0x00FF00FF00FF00FF),
    "both": np.uint64(0x55AA55AA55AA55AA),
}
_FLIPS: Final[dict[Literal["", "horizontal", "vertical", "both"], tuple[int, ...]]] = {
    "": (),
    "horizontal": (1,),
    "vertical": (0,),
    "both": (0, 1),
}
FLIP_SLACK: Final = 8  # bits by which a flipped copy's hash, as guessed from the original's, may be off
MATCHES: Final = 20  # consistent key points of one scene; over 150 between crops of one photograph, 4 between others
_SCENE_SIDE: Final = 512  # pixels of the longer side at which key points are sought
_KEY_POINTS: Final = 600
_RATIO: Final = 0.75  # a match must be this much nearer than the second nearest (Lowe 2004, section 7.1)
_TOLERANCE: Final = 4.0  # pixels
Pair = tuple[int, int]
Loader = Callable[[Any], images.Picture]
KeyPoints = tuple[NDArray[np.float32], NDArray[np.float32]]


class LeakError(ContriqueError):
    """Two parts of a split share what they must not; the message names the rows."""


def check_leaks(
    manifest: pd.DataFrame, *, bits: int, parts: pd.Series | None = None, loader: Loader | None = None
) -> None:
    """Refuse parts that share a content, a file or a near-duplicate picture, also a flipped one.

    Args:
        manifest: rows of a picture set or feature set.
        bits: of 64, by which the perceptual hashes of near-duplicates differ at most.
        parts: the part of each row; the column `split` unless given. Giving `reference` checks that no two contents
            share a picture, which is what leave-one-content-out needs.
        loader: gives a row's pixels (`dataset.picture`). With it, a suspected flipped copy is confirmed on its
            pixels; without it, it is judged by its hash, which finds about fourteen of fifteen.
    Raises:
        LeakError: naming the rows.
    """
    part = (manifest["split"] if parts is None else parts).astype("str").to_numpy()
    table = pd.DataFrame({"part": part, "reference": manifest["reference"].to_numpy()})
    spread = table.groupby("reference")["part"].agg(lambda values: sorted(set(values)))
    for reference, names in spread.items():
        if len(names) > 1:
            raise LeakError(f"content '{reference}' is in {' and '.join(names)}; a content belongs to one part")
    label = manifest["image"].astype("str").to_numpy()
    for what, pairs in _shared(manifest, part, bits, loader):
        _refuse(pairs, part, label, what)


def merge_contents(manifest: pd.DataFrame, *, bits: int, loader: Loader | None = None) -> pd.Series:
    """The content of each row, with contents that share a picture taken as one.

    Args:
        manifest: rows of a picture set.
        bits, loader: as `check_leaks`.
    Returns:
        index as given; a content keeps its name, of several that are one the first in the alphabet.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    reference = manifest["reference"].astype("str").to_numpy()
    names, ids = np.unique(reference, return_inverse=True)
    pairs = np.array(
        [pair for _, matches in _shared(manifest, reference, bits, loader) for pair in matches], dtype=np.intp
    )
    rows, columns = ids[pairs.reshape(-1, 2)].T
    graph = coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(names), len(names)))
    _, group = connected_components(graph, directed=False)
    _, first = np.unique(group, return_index=True)
    return pd.Series(names[first[group[ids]]], index=manifest.index, dtype="str")


def shared_contents(
    a: pd.DataFrame, b: pd.DataFrame, *, bits: int, loader: Loader | None = None
) -> set[tuple[str, str]]:
    """Contents of one set and contents of another that share a name, a file or a near-duplicate, also a flipped one.

    Args:
        a, b: manifests.
        bits, loader: as `check_leaks`; the loader is given rows of both.
    Returns:
        pairs (content of a, content of b).
    """
    both = pd.concat([a, b], ignore_index=True)
    side = np.repeat(["a", "b"], [len(a), len(b)])
    reference = both["reference"].astype("str").to_numpy()
    contents = {(name, name) for name in set(a["reference"]) & set(b["reference"])}
    for _, pairs in _shared(both, side, bits, loader):
        contents |= {(reference[min(pair)], reference[max(pair)]) for pair in pairs}
    return contents


def _shared(
    manifest: pd.DataFrame, part: NDArray[Any], bits: int, loader: Loader | None
) -> Iterator[tuple[str, list[Pair]]]:
    """Pairs of rows of different parts that hold the same picture, by what makes them the same."""
    files: dict[str, dict[str, int]] = defaultdict(dict)  # sha256 -> part -> its first row there
    for i, (sha, name) in enumerate(zip(manifest["sha256"], part, strict=True)):
        if sha:
            files[sha].setdefault(name, i)
    yield "the same file", [pair for rows in files.values() for pair in combinations(rows.values(), 2)]
    hashes, apart = list(manifest["phash"]), (list(part), list(part))
    for flip, axes in tqdm(_FLIPS.items(), desc="near-duplicates", delay=2, disable=None):
        slack = FLIP_SLACK if flip and loader else 0
        close = near_duplicates(hashes, hashes, bits + slack, flip=flip, apart=apart)
        if slack and loader:
            close = [(a, b) for a, b in close if _flipped_differs(manifest, a, b, axes, loader) <= bits]
        same = f"the same picture flipped ({flip})" if flip else f"nearly the same picture (within {bits} bits)"
        yield same, close


def _flipped_differs(manifest: pd.DataFrame, a: int, b: int, axes: tuple[int, ...], loader: Loader) -> int:
    """Bits by which row a's hash differs from that of row b's picture, flipped."""
    row = next(manifest.iloc[[b]].itertuples())
    flipped = np.ascontiguousarray(np.flip(loader(row), axes))
    return images.hamming(str(manifest["phash"].iloc[a]), images.perceptual_hash(flipped))


def _refuse(pairs: Sequence[Pair], part: NDArray[Any], label: NDArray[Any], what: str) -> None:
    distinct = sorted({(min(pair), max(pair)) for pair in pairs})
    if distinct:
        examples = "; ".join(f"{label[a]} ({part[a]}) and {label[b]} ({part[b]})" for a, b in distinct[:3])
        more = f"; and {len(distinct) - 3} more pairs" if len(distinct) > 3 else ""
        raise LeakError(f"{what} is in two parts: {examples}{more}; remove one of each pair or give them one reference")


def key_points(picture: images.Picture) -> KeyPoints:
    """SIFT key points of a picture (Lowe 2004), at no more than 512 pixels.

    Args:
        picture: RGB. Shape (H, W, 3), uint8.
    Returns:
        places and descriptors. Shapes (K, 2) and (K, 128), K at most 600, zero for a flat picture.
    """
    grey = cv2.cvtColor(images.fit_within(picture, _SCENE_SIDE), cv2.COLOR_RGB2GRAY)
    points, descriptors = cv2.SIFT.create(nfeatures=_KEY_POINTS).detectAndCompute(grey, None)
    places = np.array([point.pt for point in points], dtype=np.float32).reshape(-1, 2)
    return places, np.empty((0, 128), np.float32) if descriptors is None else descriptors


def matches(a: KeyPoints, b: KeyPoints) -> int:
    """How many key points of two pictures are each other's nearest and agree on one shift, turn and scale.

    A mirrored copy has other key points; those are found by their hashes, unless they are cropped as well.
    """
    if min(len(a[1]), len(b[1])) < 2:
        return 0
    matcher = cv2.BFMatcher()
    back = {match.queryIdx: match.trainIdx for (match,) in matcher.knnMatch(b[1], a[1], k=1)}
    good = [
        (first.queryIdx, first.trainIdx)
        for first, second in matcher.knnMatch(a[1], b[1], k=2)
        if first.distance < _RATIO * second.distance and back[first.trainIdx] == first.queryIdx
    ]
    if len(good) < MATCHES:
        return len(good)
    here, there = np.array(good).T
    _, inliers = cv2.estimateAffinePartial2D(a[0][here], b[0][there], ransacReprojThreshold=_TOLERANCE)
    return int(np.count_nonzero(inliers)) if inliers is not None else 0


def same_scenes(a: Mapping[str, KeyPoints], b: Mapping[str, KeyPoints], what: str = "scenes") -> set[tuple[str, str]]:
    """Pairs of contents that show the same scene, cropped or not: at least MATCHES consistent key points.

    Args:
        a, b: `key_points` of one picture of each content.
        what: label of the progress bar.
    """
    pairs = [(left, right) for left in a for right in b]
    bar = tqdm(pairs, desc=what, unit="pair", delay=2, disable=None)
    return {(left, right) for left, right in bar if matches(a[left], b[right]) >= MATCHES}
