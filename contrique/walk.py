"""One walk through folders of pictures: what is taken, and what is left out for which reason."""

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from contrique.text import escape_control

_READ = """.apng .bmp .dib .gif .j2c .j2k .jfif .jp2 .jpc .jpe .jpeg .jpf .jpg .jpx
.pbm .pgm .png .pnm .ppm .qoi .tif .tiff .webp"""
_UNREAD = """.3fr .arw .avif .cr2 .cr3 .dng .eps .exr .hdr .heic .heif .hif .ico .jxl .jxr
.nef .orf .pdf .pef .pfm .psd .raf .raw .rw2 .svg .tga .wdp .xcf"""
_OF_SYSTEMS = """@eadir .@__thumb #recycle @recycle #snapshot $recycle.bin __macosx .appledouble .spotlight-v100
.fseventsd .trashes .trash lost+found .thumbnails .thumbs thumbs.db desktop.ini .ds_store"""
SUFFIXES: Final = frozenset(_READ.split())
_UNSUPPORTED = frozenset(_UNREAD.split())  # pictures in formats that are not read
# what macOS, Windows, NAS servers and photograph managers put beside pictures
_SIDECARS = frozenset(_OF_SYSTEMS.split()) | {"system volume information"}


@dataclass(frozen=True)
class Skipped:
    """Something below a folder that is not taken as a picture.

    Attributes:
        path: of it.
        reason: why, in words that may follow a count.
        lost: whether it may well be a picture that somebody wanted: it cannot be read, or its format is not supported.
    """

    path: Path
    reason: str
    lost: bool = False


def walk_pictures(folder: Path) -> Iterator[Path | Skipped]:
    """Every picture below a folder, and everything that is left out, once each.

    Files of a folder come before its subfolders, both sorted by name. Links are followed; a link to a folder that is
    walked anyway, or to one that holds it, is left out, so that a circle ends and no picture comes twice.

    Args:
        folder: where to begin.
    Yields:
        files with a suffix of SUFFIXES as paths below `folder`; all else as `Skipped`.
    """
    yield from _walk(folder, folder.resolve(), set())


def _walk(folder: Path, root: Path, visits: set[tuple[int, int]]) -> Iterator[Path | Skipped]:
    try:
        status = folder.stat()
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        yield Skipped(folder, f"cannot be read ({error.strerror})", lost=True)
        return
    visits.add((status.st_dev, status.st_ino))
    folders = []
    for entry in entries:
        path = folder / entry.name
        try:
            mode = path.stat().st_mode
        except OSError as error:
            reason = "links to nothing" if entry.is_symlink() else f"cannot be read ({error.strerror})"
            yield Skipped(path, reason, lost=_may_be_picture(path))
            continue
        if _is_sidecar(entry.name):
            yield Skipped(path, "put there by a system (thumbnails, metadata)")
        elif stat.S_ISDIR(mode):
            folders.append((path, entry.is_symlink()))
        else:
            yield _judge(path, mode)
    for path, is_link in folders:
        yield from _enter(path, is_link, root, visits)


def _enter(path: Path, is_link: bool, root: Path, visits: set[tuple[int, int]]) -> Iterator[Path | Skipped]:
    target = path.resolve()
    status = path.stat()
    inner = target.is_relative_to(root) or root.is_relative_to(target)
    if (is_link and inner) or (status.st_dev, status.st_ino) in visits:
        yield Skipped(path, "links to folders that are walked anyway")
    else:
        yield from _walk(path, root, visits)


def _judge(path: Path, mode: int) -> Path | Skipped:
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return path if stat.S_ISREG(mode) else Skipped(path, "not a regular file", lost=True)
    if suffix in _UNSUPPORTED:
        return Skipped(path, f"in a format that is not supported ({suffix}; convert to PNG)", lost=True)
    return Skipped(path, "not pictures by their suffix")


def _may_be_picture(path: Path) -> bool:
    return not path.suffix or path.suffix.lower() in SUFFIXES | _UNSUPPORTED


def _is_sidecar(name: str) -> bool:
    return name.startswith("._") or name.lower() in _SIDECARS


def summarize_skipped(skipped: Iterable[Skipped]) -> str:
    """One line that says what was left out and why, with an example of each reason; empty if nothing was."""
    entries = sorted(skipped, key=lambda entry: not entry.lost)
    counts = Counter(entry.reason for entry in entries)
    first = {entry.reason: entry.path for entry in reversed(entries)}
    parts = [f"{count} {reason}, such as {escape_control(str(first[reason]))}" for reason, count in counts.items()]
    return f"left out: {'; '.join(parts)}" if parts else ""
