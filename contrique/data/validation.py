"""Expectations on a picture set: what its files are, what its manifest says, and whether it can be judged with."""

import html
import json
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from contrique import images
from contrique.config import ValidationConfig
from contrique.data import leaks
from contrique.data.expectations import SHOWN, Check, list_checks
from contrique.data.manifest import SPLITS, read_manifest, read_picture_bytes
from contrique.errors import ContriqueError
from contrique.files import write_aside
from contrique.metadata import Facts

# column of a perceptual hash -> axes along which the picture was flipped before
HASHES: dict[str, tuple[int, ...]] = {"hash": (), "mirrored": (1,), "upside_down": (0,), "turned": (0, 1)}


class ValidationFailed(ContriqueError):
    """A picture set that does not meet its expectations.

    Attributes:
        failures: a line for each failed expectation, with the rows and the remedy.
    """

    has_lines = True

    def __init__(self, failures: list[str]) -> None:
        super().__init__("\n".join(failures))
        self.failures = failures


@dataclass(frozen=True)
class Summary(Facts):
    """What a valid picture set holds.

    Attributes:
        rows: pictures.
        counts: pictures by `split/kind`.
        labels: `human` if judged pictures have a MOS, `weak` if metrics will label them, `none` if none are judged.
        judged_contents: contents outside `pretrain`.
        mos: lowest and highest MOS, or empty.
        expectations: how many were checked.
    """

    rows: int
    counts: dict[str, int]
    labels: str
    judged_contents: int
    mos: tuple[float, ...]
    expectations: int


def validate(directory: Path, report: Path, config: ValidationConfig | None = None) -> Summary:
    """`examine` a picture set, the findings beside the report, and `accept` it.

    Args:
        directory: the picture set.
        report: HTML page to write, readable offline; written on failure too.
        config: the limits.
    Returns:
        what the set holds.
    Raises:
        ValidationFailed: an expectation is not met; the message names the rows.
        DatasetError: there is no readable manifest.
    """
    findings = report.with_suffix(".json")
    summary = examine(directory, report, findings, config)
    accept(findings)
    return summary


def examine(directory: Path, report: Path, findings: Path, config: ValidationConfig | None = None) -> Summary:
    """Look at every file of a picture set, then check files, manifest and splits with Great Expectations.

    It ends well whatever it finds: a cluster discards what a failed task made, and the report with it.

    Args:
        directory: the picture set.
        report: HTML page to write, readable offline.
        findings: JSON file to write, for `accept` and the run's report.
        config: the limits.
    Returns:
        what the set holds.
    Raises:
        DatasetError: there is no readable manifest.
    """
    config = config or ValidationConfig()
    facts = observe(directory, read_manifest(directory), config)
    checks = list_checks(facts, config)
    result = _run(facts, checks)
    failed = {checks[number]: facts.loc[rows] for number, rows in _failed(result).items()}
    summary = _summarize(facts, len(checks))
    failures = [check.message(rows) for check, rows in failed.items()]
    outcome = {
        "failures": failures,
        "named": {check.what: check.names(rows) for check, rows in failed.items()},
        "summary": asdict(summary),
    }
    with write_aside(report) as aside:
        aside.write_text(_page(result, summary, failures), encoding="utf-8")
    with write_aside(findings) as aside:
        aside.write_text(json.dumps(result.to_json_dict() | outcome, indent=2) + "\n", encoding="utf-8")
    return summary


def accept(findings: Path) -> None:
    """Go on only with a picture set that met its expectations.

    Args:
        findings: of `examine`.
    Raises:
        ValidationFailed: an expectation is not met; the message names the rows.
    """
    outcome = json.loads(findings.read_text(encoding="utf-8"))
    for what, names in outcome["named"].items():  # of many, the message names a few
        if len(names) > SHOWN:
            print(f"{what}: {', '.join(names)}", file=sys.stderr)
    if outcome["failures"]:
        raise ValidationFailed(outcome["failures"])


def observe(directory: Path, manifest: pd.DataFrame, config: ValidationConfig) -> pd.DataFrame:
    """The facts to check: the manifest beside what every file turns out to be.

    Args:
        directory: the picture set.
        manifest: its rows.
        config: how near a near-duplicate is.
    Returns:
        the manifest with more columns, one row for each of its rows: `problem` (why the picture cannot be decoded),
        `found_sha256`, `declared` and `found` (width x height x channels), `found_width`, `found_height`,
        `found_channels`, the perceptual hashes of HASHES, `readable`, `judged`, `label`, `labels_needed`,
        `pretraining`, `splits_of_reference`, `near_duplicate_of`.
    """
    rows = list(manifest.itertuples())
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        looked = pool.map(lambda row: _look(directory, row), rows)
        seen = list(tqdm(looked, total=len(rows), desc="looking at pictures", unit="picture", disable=None))
    columns = ["problem", "found_sha256", "found_width", "found_height", "found_channels", *HASHES]
    facts = manifest.join(pd.DataFrame(seen, columns=columns, index=manifest.index))
    facts["readable"] = facts["problem"] == ""
    for what, prefix in (("declared", ""), ("found", "found_")):
        size = [facts[f"{prefix}{name}"].astype(str) for name in ("width", "height", "channels")]
        facts[what] = size[0] + "x" + size[1] + "x" + size[2]
    facts["judged"] = facts["split"].isin(SPLITS[1:])
    human = bool(facts.loc[facts["judged"], "mos"].notna().any())
    facts["label"] = facts["mos"] if human else facts["weak_label"]
    # The pipeline labels distorted versions of pristine photographs by itself; nothing else can do without a score.
    facts["labels_needed"] = facts["judged"] & (human | (facts["kind"] != "pristine"))
    facts["pretraining"] = ~facts["judged"] & facts["kind"].isin(["pristine", "authentic"])
    pairs = facts[["reference", "split"]].drop_duplicates().sort_values("split")
    facts["splits_of_reference"] = facts["reference"].map(pairs.groupby("reference")["split"].agg(" and ".join))
    facts["near_duplicate_of"] = _near_duplicates(facts, config.near_duplicate_bits)
    return facts


def _look(directory: Path, row: Any) -> tuple[str | int, ...]:
    sha256 = ""
    try:
        data = read_picture_bytes(directory, row)
        sha256 = images.content_hash(data)
        decoded = images.decode(data, row.image)
    except images.BadImage as error:
        return str(error).removeprefix(f"{directory}/"), sha256, 0, 0, 0, *[""] * len(HASHES)
    height, width = decoded.pixels.shape[:2]
    flipped = [np.ascontiguousarray(np.flip(decoded.pixels, axes)) for axes in HASHES.values()]
    return "", sha256, width, height, decoded.channels, *map(images.perceptual_hash, flipped)


def _near_duplicates(facts: pd.DataFrame, bits: int) -> pd.Series:
    """For each judged row a picture of another split that differs in at most `bits` bits, as it is or flipped."""
    judged = facts[facts["judged"]]
    found = pd.Series("", index=facts.index, dtype="str")
    apart = (list(judged["split"]), list(facts["split"]))
    for of in HASHES:
        for here, there in leaks.near_duplicates(list(judged["hash"]), list(facts[of]), bits, apart=apart):
            found[judged.index[here]] = f"{facts['image'].iloc[there]} in {facts['split'].iloc[there]}"
    return found


def _run(facts: pd.DataFrame, checks: list[Check]) -> Any:
    """The result of Great Expectations; each expectation carries the number of its check."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx
    from great_expectations import expectations
    from great_expectations.data_context.types.base import ProgressBarsConfig
    from great_expectations.expectations.row_conditions import Column

    used = {value for check in checks for name, value in check.arguments.items() if name.startswith("column")}
    frame = facts[sorted(used | {check.condition for check in checks if check.condition} | {"image"})]
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    suite = gx.ExpectationSuite("picture set")
    for number, check in enumerate(checks):
        condition = {"row_condition": Column(check.condition) == True} if check.condition else {}  # noqa: E712
        make = getattr(expectations, check.expectation)
        suite.add_expectation(make(**check.arguments, **condition, meta={"check": number}))
    asset = context.data_sources.add_pandas("picture set").add_dataframe_asset("pictures")
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": frame.assign(row=frame.index)})
    return batch.validate(
        suite, result_format={"result_format": "COMPLETE", "unexpected_index_column_names": ["row", "image"]}
    )


def _failed(result: Any) -> dict[int, list[Any]]:
    """The rows of each check that failed, by its number."""
    failed = {}
    for outcome in result.results:
        if not outcome.result:
            raise RuntimeError(f"{outcome.expectation_config.type} did not run: {outcome.exception_info}")
        if not outcome.success:
            rows = [entry["row"] for entry in outcome.result.get("unexpected_index_list") or []]
            failed[int(outcome.expectation_config.meta["check"])] = rows
    return dict(sorted(failed.items()))


def _summarize(facts: pd.DataFrame, expectations: int) -> Summary:
    counts = (facts["split"] + "/" + facts["kind"]).value_counts()
    judged = facts[facts["judged"]]
    mos = judged["mos"].dropna()
    return Summary(
        rows=len(facts),
        counts={str(name): int(counts[name]) for name in sorted(counts.index)},
        labels="human" if len(mos) else "weak" if len(judged) else "none",
        judged_contents=int(judged["reference"].nunique()),
        mos=(float(mos.min()), float(mos.max())) if len(mos) else (),
        expectations=expectations,
    )


# Great Expectations' own page takes its style and icons from the network; its sections are rendered here without them.
# The policy also keeps a file name with markup in it from running as a script.
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: .5rem 0; } td, th { border: 1px solid #ddd; padding: .25rem .6rem;
text-align: left; vertical-align: top; overflow-wrap: anywhere; } .ge-section { border-top: 1px solid #ddd; }
.failed { background: #fdecea; padding: .5rem 1rem; } .met { background: #e9f6ec; padding: .5rem 1rem; }
.collapse, [data-toggle=collapse], .d-none { display: none; } .badge { background: #eee; padding: 0 .3rem; }
.fa-check-circle::before { content: "\\2713"; color: #1a7f37; } .fa-times::before { content: "\\2717"; color: #b3261e; }
"""


def _page(result: Any, summary: Summary, failures: list[str]) -> str:
    from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
    from great_expectations.render.view import DefaultJinjaSectionView

    if failures:
        verdict = f"<div class=failed><p>{len(failures)} of {summary.expectations} expectations failed.</p><ul>"
        verdict += "".join(f"<li>{html.escape(failure)}</li>" for failure in failures) + "</ul></div>"
    else:
        verdict = f"<div class=met>All {summary.expectations} expectations are met.</div>"
    label = {
        "human": f"human scores (MOS {' to '.join(f'{value:g}' for value in summary.mos)})",
        "weak": "weak labels, from full-reference metrics of distorted versions; no human scores",
        "none": "none; for pretraining only",
    }[summary.labels]
    cells = {"pictures": summary.rows, "labels": label, "judged contents": summary.judged_contents} | summary.counts
    table = "".join(f"<tr><th>{html.escape(name)}</th><td>{value}</td></tr>" for name, value in cells.items())
    view = DefaultJinjaSectionView()
    sections = "".join(
        view.render({"section": section.to_json_dict(), "section_loop": {"index": number}})
        for number, section in enumerate(ValidationResultsPageRenderer().render(result).sections, start=1)
    )
    sections = re.sub(r' href="\.\./[^"]*"', "", sections)  # to pages of a documentation site that is not there
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Validation of the picture set</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>{_STYLE}</style></head>
<body><h1>Validation of the picture set</h1>{verdict}<table>{table}</table>{sections}</body></html>
"""
