"""A benchmark as tables of text, for Markdown and HTML alike."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from contrique import pages
from contrique.text import Markdown, count_noun, escape_markdown

WEAK: Final = "weak labels"  # what the set of synthesized pictures is called
_COLUMNS: Final = {
    "srcc": "SRCC",
    "plcc": "PLCC, raw",
    "plcc_logistic": "PLCC, logistic",
    "krcc": "KRCC",
    "rmse": "RMSE",
    "rmse_logistic": "RMSE, logistic",
}


@dataclass(frozen=True)
class Table:
    """A table as text, for Markdown and HTML alike; rows of other people's figures are `published`."""

    title: str
    notes: list[str]
    header: list[str]
    rows: list[list[str]]
    published: list[list[str]] = field(default_factory=list)


def build_tables(result: Mapping[str, Any]) -> list[Table]:
    """Every table of a benchmark: each set, across sets, and by distortion.

    Args:
        result: as `benchmark.Benchmark.as_dict` or `benchmark.read`.
    """
    sets = [name for name in result["sets"] if name != WEAK]
    tables = [_own_table(result, name) for name in sets]
    if any(row for outcome in result["methods"].values() for row in outcome["across"].values()):
        tables += [_across_table(result, sets, method) for method in result["methods"]]
    tables += [_slice_table(result, name) for name in sets if _first(result)["own"][name]["slices"]]
    return tables


def _first(result: Mapping[str, Any]) -> Any:
    return next(iter(result["methods"].values()))


def _own_table(result: Mapping[str, Any], name: str) -> Table:
    facts, judged = result["sets"][name], _first(result)["own"][name]
    rows = [_own_row(method, outcome["own"][name]) for method, outcome in result["methods"].items()]
    rows += [
        _own_row(f"{method}, full-reference", outcome["full_reference"][name])
        for method, outcome in result["methods"].items()
        if name in outcome["full_reference"]
    ]
    published = []
    for method, figures in result["published"].items():
        if name in figures:
            values = dict(zip(("srcc", "plcc_logistic"), figures[name], strict=True))
            cells = ["" if values.get(column) is None else f"{values[column]:.3f}" for column in _COLUMNS]
            published.append([f"{method} (published)", *cells, ""])
    protocol = f"{judged['protocol']}, {count_noun(judged['splits'], 'split')}"
    note = (
        f"{judged['n']} pictures of {count_noun(judged['contents'], 'content')}; {protocol}; "
        f"scores {facts['low']:.4g} to {facts['high']:.4g}, higher is better"
    )
    return Table(
        f"{facts['title']}: own set",
        [note, *facts["notes"]],
        ["method", *_COLUMNS.values(), "SRCC within content"],
        rows,
        published,
    )


def _own_row(method: str, judged: Mapping[str, Any]) -> list[str]:
    figures = [_estimate(judged["metrics"].get(column)) for column in _COLUMNS]
    return [method, *figures, _estimate(judged["within_content"])]


def _across_table(result: Mapping[str, Any], sets: Sequence[str], method: str) -> Table:
    outcome, rows, notes = result["methods"][method], [], []
    for fitted in result["sets"]:
        cells = []
        for judged in sets:
            if fitted == judged:
                cells.append(f"({_estimate(outcome['own'][judged]['metrics']['srcc'])})")
                continue
            cell = outcome["across"][fitted][judged]
            cells.append(_estimate(cell["judgement"] and cell["judgement"]["metrics"]["srcc"]))
            where = f"fitted on {fitted}, judged on {judged}"
            if cell["left_out"]:
                notes.append(f"{where}: left out of the fit: {count_noun(cell['left_out'], 'content')} that both show")
            if not cell["crops_seen"]:
                notes.append(f"{where}: contents compared by perceptual hash alone, which sees no crops")
            if cell["reason"]:
                notes.append(f"{where}: no figure: {cell['reason']}")
        title = result["sets"][fitted]["title"]
        rows.append([f"{WEAK} (opinion-unaware)" if fitted == WEAK else title, *cells])
    if WEAK in result["sets"]:
        notes += [f"{WEAK}: {note}" for note in result["sets"][WEAK]["notes"]]
    header = ["SRCC: fitted on", *(f"judged on {result['sets'][judged]['title']}" for judged in sets)]
    return Table(f"{method}: across sets", ["in brackets: own set, out of fold", *notes], header, rows)


def _slice_table(result: Mapping[str, Any], name: str) -> Table:
    columns = {method: outcome["own"][name]["slices"] for method, outcome in result["methods"].items()}
    ours = next(iter(columns))
    if cell := _first(result)["across"].get(WEAK, {}).get(name):
        columns[f"{ours}, opinion-unaware"] = cell["judgement"]["slices"] if cell["judgement"] else {}
    kinds = sorted({kind for slices in columns.values() for kind in slices})
    rows = []
    for kind in kinds:
        counts = [slices[kind] for slices in columns.values() if kind in slices]
        cells = [_estimate(slices[kind]["srcc"] if kind in slices else None) for slices in columns.values()]
        rows.append([kind, str(counts[0]["n"]), str(counts[0]["contents"]), *cells])
    return Table(
        f"{result['sets'][name]['title']}: SRCC by distortion, own set",
        [],
        ["distortion", "pictures", "contents", *columns],
        rows,
    )


def _estimate(result: Mapping[str, Any] | None) -> str:
    if result is None or not math.isfinite(result["value"]):
        return Markdown("-")
    return Markdown(f"{result['value']:.3f} [{result['low']:.3f}, {result['high']:.3f}]")


def _about(result: Mapping[str, Any]) -> str:
    encoder = result["encoder"]
    return (
        f"{encoder['name']}: {encoder['arch']}, weights {encoder['sha256'][:12]}, features in {encoder['precision']}. "
        f"In square brackets: {result['confidence']:.0%} interval by bootstrap over contents (of under three contents, "
        f"over the pictures within them: too narrow), {result['resamples']} resamples, seed {result['seed']}. "
        "Published figures are other people's, medians over their own splits."
    )


def render_markdown(result: Mapping[str, Any]) -> str:
    """The tables as Markdown.

    Args:
        result: as `tables`.
    """
    lines = ["# Benchmark", "", escape_markdown(_about(result))]
    for table in build_tables(result):
        notes = [f"- {escape_markdown(note)}" for note in table.notes]
        lines += ["", f"## {escape_markdown(table.title)}", "", *notes, *[""] * bool(notes)]
        rows = [[escape_markdown(cell) for cell in row] for row in (table.header, *table.rows)]
        rows.insert(1, [Markdown("---")] * len(table.header))
        rows += [[Markdown(f"*{escape_markdown(cell)}*" if cell else "") for cell in row] for row in table.published]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def render_section(result: Mapping[str, Any]) -> str:
    """The tables as an HTML fragment without a style of its own; every text in it is escaped.

    Args:
        result: as `tables`.
    """
    return pages.render("benchmark.html", _filling(result))


def render_page(result: Mapping[str, Any]) -> str:
    """The tables as an HTML page that refers to nothing outside it.

    Args:
        result: as `tables`.
    """
    return pages.render("benchmark_page.html", _filling(result))


def _filling(result: Mapping[str, Any]) -> dict[str, Any]:
    return {"about": _about(result), "tables": build_tables(result)}
