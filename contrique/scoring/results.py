"""A picture's score with its contract, and how it is written down."""

import csv
import html
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import IO, Any, Literal

from contrique.errors import ContriqueError
from contrique.regressor.head import DIRECTION, RANGE
from contrique.regressor.reliability import COVERAGE
from contrique.text import dump_json, escape_control

Format = Literal["table", "json", "csv"]


@dataclass(frozen=True)
class Score:
    """One picture's score and everything that is needed to read it.

    Attributes:
        path: the picture.
        score: quality in `range`; `raw` mapped linearly from the declared range of the training labels, clipped.
        raw: the regressor's output, on the scale of its training labels, not clipped.
        interval: where a person's (or, for weak labels, the metrics') judgement of the picture lies with a probability
            of `reliability.COVERAGE`, on the scale of `score`: conformal, so it holds on average over pictures like
            the training ones. None for a model that was fitted without.
        distance: how unlike the training pictures it is; above 1 is farther than 99 % of pictures like them. None for
            a model that cannot tell.
        warning: empty, or in words that the picture is unlike the training pictures. None if `distance` is.
        range: lowest and highest possible `score`.
        direction: `higher is better`.
        model: version in the registry; empty for a model that is not registered.
        labels: what the regressor learned from: `human` opinion scores, or `weak` full-reference labels.
    """

    path: str
    score: float
    raw: float
    model: str
    labels: str
    interval: tuple[float, float] | None = None
    distance: float | None = None
    warning: str | None = None
    range: tuple[float, float] = RANGE
    direction: str = DIRECTION

    @property
    def value(self) -> float:
        """`score`, as Python programs call it."""
        return self.score

    def _repr_html_(self) -> str:
        """For notebooks: the score on its scale, with interval and warning."""
        low, high = self.range
        parts = [f"<b>{self.score:.1f}</b> of {high:.0f} ({html.escape(self.direction)})"]
        if self.interval:
            parts.append(f"{COVERAGE:.0%} interval {self.interval[0]:.1f} to {self.interval[1]:.1f}")
        model = html.escape(self.model) or "unregistered"
        parts += [html.escape(self.path), f"model {model}, learned from {html.escape(self.labels)} labels"]
        if self.warning:
            parts.append(f"<em>{html.escape(self.warning)}</em>")
        share = 100 * (self.score - low) / (high - low)
        bar = f'<meter min="0" max="100" value="{share:.1f}" style="width:20em"></meter>'
        return f"<div>{bar}<br>{' &middot; '.join(parts)}</div>"


@dataclass(frozen=True)
class Failure:
    """A path that gave no score, and why, in one line."""

    path: str
    error: str

    @classmethod
    def of(cls, name: str, error: ContriqueError) -> "Failure":
        """A failure that begins with the name of what failed."""
        line = " ".join(str(error).split())
        return cls(name, line if line.startswith(name) else f"{name}: {line}")


def score_as_dict(item: Score | Failure) -> dict[str, Any]:
    """A score, or a failure, as plain values for JSON."""
    return asdict(item)


def write_results(items: Iterable[Score | Failure], file: IO[str], form: Format = "table") -> int:
    """Write results as they come, one line each.

    Args:
        items: results.
        file: text stream.
        form: `json` (a list of objects with `path` and either `score` and its fields, or `error`), `csv` (one
            header, the same columns for scores and failures) or `table` (for people).
    Returns:
        how many failed.
    """
    return {"table": _write_table, "json": _write_json, "csv": _write_csv}[form](items, file)


def _write_json(items: Iterable[Score | Failure], file: IO[str]) -> int:
    failed = 0
    before = "[\n  "
    for item in items:
        failed += isinstance(item, Failure)
        file.write(before + dump_json(score_as_dict(item)))
        before = ",\n  "
    file.write("[]\n" if before.startswith("[") else "\n]\n")
    return failed


CSV_COLUMNS = (
    *("path", "score", "raw", "low", "high", "direction", "model", "labels", "error"),
    *("interval_low", "interval_high", "distance", "warning"),
)
_FORMULA = ("=", "+", "-", "@")
TEXT_COLUMNS = ("path", "direction", "model", "labels", "error", "warning")  # the others hold numbers


def flatten(item: Score | Failure) -> dict[str, Any]:
    """A result as one row of CSV_COLUMNS; what it lacks is None."""
    row: dict[str, Any] = dict.fromkeys(CSV_COLUMNS) | score_as_dict(item)
    if isinstance(item, Score):
        row["low"], row["high"] = row.pop("range")
        row["interval_low"], row["interval_high"] = row.pop("interval") or (None, None)
    return row


def _write_csv(items: Iterable[Score | Failure], file: IO[str]) -> int:
    failed = 0
    writer = csv.DictWriter(file, CSV_COLUMNS, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writeheader()
    for item in items:
        failed += isinstance(item, Failure)
        row = flatten(item)
        writer.writerow(row | {column: escape_cell(row[column]) for column in TEXT_COLUMNS if row[column]})
    return failed


def escape_cell(text: str) -> str:
    """Text of a cell that no spreadsheet takes for a formula: an apostrophe precedes =, +, - and @ at its start.

    Control characters are shown, as `escape_control` shows them.
    """
    escaped = escape_control(text)
    return f"'{escaped}" if escaped.lstrip().startswith(_FORMULA) else escaped


def _write_table(items: Iterable[Score | Failure], file: IO[str]) -> int:
    failed = scored = 0
    last: Score | None = None
    file.write(f" score  {COVERAGE:.0%} interval  path\n")
    for item in items:
        if isinstance(item, Failure):
            failed += 1
            file.write(f"     -             -  {escape_control(item.error)}\n")
        else:
            scored, last = scored + 1, item
            within = f"{item.interval[0]:.1f} - {item.interval[1]:.1f}" if item.interval else "unknown"
            name = escape_control(item.path) + (f" | {escape_control(item.warning)}" if item.warning else "")
            file.write(f"{item.score:6.1f}  {within:>12}  {name}\n")
    summary = f"{scored} scored, {failed} failed"
    if last:
        low, high = last.range
        model = f"model {last.model}" if last.model else "unregistered model"
        model = escape_control(model)
        summary += f" | scale {low:.0f} to {high:.0f}, {last.direction} | {model}, learned from {last.labels} labels"
    file.write(summary + "\n")
    return failed
