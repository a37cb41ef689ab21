"""Scores that people keep in CSV files, as their spreadsheets write them."""

import csv
import io
import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contrique.data.manifest import DatasetError
from contrique.files import StorageError, inside, read_regular
from contrique.text import escape_control

_MAX_BYTES = 2**28  # of the file
_MAX_QUOTE = 60  # characters of a cell that a message repeats
_SCORES = ("mos", "dmos")
_COLUMNS = ("image", *_SCORES, "reference", "distortion", "level", "split")
_DELIMITERS = (",", ";", "\t")
_MISSING = frozenset({"", "-", "na", "n/a", "nan", "none", "null"})
_NUMBER = re.compile(r"[+-]?(\d+[.,]?\d*|[.,]\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_MAX_LEVEL = 10**6


@dataclass(frozen=True)
class _Record:
    """A row of the file: the number of its line, and its cells by column."""

    line: int
    cells: dict[str, str]


def read_labels(path: Path, folder: Path | None = None) -> list[dict[str, Any]]:
    """Manifest rows of a CSV file of scores.

    UTF-8, UTF-16 with its mark and Windows-1252 (Latin-1) are understood; commas, semicolons and tabs between cells;
    decimal points, or decimal commas throughout a column. Headers and cells are stripped and put into Unicode's NFC.

    Args:
        path: with the columns image, mos or dmos, and optionally reference, distortion, level and split.
        folder: what its images are relative to; its own folder by default.
    Returns:
        rows with image, reference, kind, distortion, level, mos (higher is better; NaN where there is none) and split.
    Raises:
        DatasetError: it is missing, unreadable, lacks a column, holds a cell that makes no sense, or names an image
            that is not there; the message names line, column and content.
    """
    try:
        data = read_regular(path, _MAX_BYTES)
    except StorageError as error:
        if path.exists():
            raise DatasetError(str(error)) from error
        raise DatasetError(
            f"{path}: not found; a labelled folder needs it with columns image and mos (or dmos). "
            "Pass a folder without scores as --pristine or --authentic"
        ) from error
    records = _parse(_decode(data, path), path)
    columns = records[0].cells.keys()
    score = next(column for column in _SCORES if column in columns)
    images = _find_images(records, path, path.parent if folder is None else folder)
    scores = _read_numbers(records, score, path)
    if score == "dmos":
        finite = [value for value in scores if not math.isnan(value)]
        scores = [max(finite) + min(finite) - value if finite else value for value in scores]
    levels = _read_levels(records, path)
    return [
        {
            "image": image,
            "reference": record.cells.get("reference") or record.cells["image"],
            "kind": "distorted" if record.cells.get("distortion") else "authentic",
            "distortion": record.cells.get("distortion", ""),
            "level": level,
            "mos": mos,
            "split": record.cells.get("split", "").lower(),
        }
        for record, image, mos, level in zip(records, images, scores, levels, strict=True)
    ]


def _decode(data: bytes, path: Path) -> str:
    encoding = "utf-8-sig"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif b"\0" in data:
        raise DatasetError(f"{path}: holds bytes of zero, as UTF-16 without its mark does; save it as UTF-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding == "utf-16":
            raise DatasetError(f"{path}: damaged UTF-16 ({error.reason}); save it as UTF-8") from error
    try:
        return data.decode("cp1252")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DatasetError(f"{path}: line {line} is neither UTF-8 nor Latin-1; save the file as UTF-8") from error


def _parse(text: str, path: Path) -> list[_Record]:
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=_find_delimiter(text), strict=True)
    header: list[str] = []
    records = []
    end = 0
    try:
        for raw in lines:
            start, end = end + 1, lines.line_num
            cells = [unicodedata.normalize("NFC", cell.strip()) for cell in raw]
            if not any(cells) or cells[0].lower().startswith("sep="):
                continue
            if header:
                records.append(_Record(start, _name_cells(cells, header, start, path)))
            else:
                header = _read_header(cells, path)
    except csv.Error as error:
        raise DatasetError(f"{path}: not a readable CSV file (line {end + 1}: {error}); correct it") from error
    if not records:
        raise DatasetError(f"{path}: not a readable CSV file of scores (no rows); fill in images and their scores")
    return records


def _find_delimiter(text: str) -> str:
    """What stands between the names of the columns."""
    header = next((line for line in text.splitlines() if line.strip()), "")
    if header.lower().startswith("sep=") and len(header) > 4:
        return header[4] if header[4] in _DELIMITERS else ","
    return max(_DELIMITERS, key=header.count)


def _read_header(cells: Sequence[str], path: Path) -> list[str]:
    header = [cell.casefold() for cell in cells]
    twice = [name for name in _COLUMNS if header.count(name) > 1]
    if twice:
        raise DatasetError(f"{path}: has the column {twice[0]} twice; remove one")
    if "image" not in header or not {*_SCORES} & {*header}:
        names = [escape_control(name[:_MAX_QUOTE]) for name in header[:_MAX_QUOTE]]
        raise DatasetError(f"{path}: needs the columns image and mos (or dmos), has {names}")
    return header


def _name_cells(cells: Sequence[str], header: Sequence[str], line: int, path: Path) -> dict[str, str]:
    if any(cells[len(header) :]):
        raise DatasetError(
            f"{path}: line {line} has {len(cells)} cells for {len(header)} columns; put cells with a comma, as in "
            "names and decimal commas, into double quotes"
        )
    filled = [*cells, *[""] * len(header)]
    return {name: cell for name, cell in zip(header, filled, strict=False) if name in _COLUMNS}


def _fault(record: _Record, column: str, path: Path, what: str) -> DatasetError:
    cell = record.cells[column]
    text = escape_control(cell if len(cell) <= _MAX_QUOTE else f"{cell[:_MAX_QUOTE]}...")
    return DatasetError(f"{path}: line {record.line}, column {column}: '{text}' {what}")


def _read_numbers(records: Sequence[_Record], column: str, path: Path) -> list[float]:
    points = any("." in record.cells[column] for record in records)
    numbers = []
    for record in records:
        cell = record.cells[column]
        if cell.casefold() in _MISSING:
            numbers.append(math.nan)
            continue
        if not _NUMBER.fullmatch(cell):
            raise _fault(record, column, path, "is not a number; correct it, or leave it empty")
        if points and "," in cell:
            raise _fault(record, column, path, "has a comma where others have a decimal point; write them alike")
        numbers.append(float(cell.replace(",", ".")))
        if not math.isfinite(numbers[-1]):
            raise _fault(record, column, path, "is too large; correct it")
    return numbers


def _read_levels(records: Sequence[_Record], path: Path) -> list[int]:
    if "level" not in records[0].cells:
        return [0] * len(records)
    values = _read_numbers(records, "level", path)
    for value, record in zip(values, records, strict=True):
        if not math.isnan(value) and (value != int(value) or abs(value) > _MAX_LEVEL):
            raise _fault(record, "level", path, "is not a whole number; correct it, or leave it empty")
    return [0 if math.isnan(value) else int(value) for value in values]


def _find_images(records: Sequence[_Record], path: Path, folder: Path) -> list[str]:
    """The file that each record names, as it is called on disk: systems differ in how they compose accents."""
    spellings, absent = [], []
    for record in records:
        name = record.cells["image"]
        if not name:
            raise _fault(record, "image", path, "names no image; fill it in or remove the row")
        if "\\" in name:
            raise _fault(record, "image", path, "holds a backslash; write / between folders")
        try:
            inside(name, "")
        except StorageError as error:
            raise _fault(record, "image", path, "leads out of the folder; give a name below it") from error
        spelling = next((s for s in (name, unicodedata.normalize("NFD", name)) if _is_file(folder / s)), "")
        spellings.append(spelling)
        if not spelling:
            absent.append(escape_control(name))
    if absent:
        raise DatasetError(f"{path}: {len(absent)} images are not in the folder, first {absent[:3]}; restore or remove")
    return spellings


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # the name is too long, or a folder may not be entered
        return False
