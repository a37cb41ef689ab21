"""Expectations on a picture set: what its files are, what its manifest says, and whether it can be judged with."""

import json
import os
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
from contrique.data.expectations import MAX_NAMES, Check, list_checks
from contrique.data.manifest import SPLITS, read_manifest, read_picture_bytes
from contrique.data.splits import LEAST_TESTED, LEAST_TRAINED, LEAST_VALIDATED
from contrique.data.validation_page import escape, render
from contrique.errors import ContriqueError
from contrique.files import write_aside
from contrique.metadata import Facts

# scores of a part without which it cannot be fitted to, or a correlation is not defined (regressor.fit, metrics)
_LEAST_PICTURES = {"train": LEAST_TRAINED, "validation": LEAST_VALIDATED, "test": LEAST_TESTED}
# column of a perceptual hash -> axes along which the picture was flipped before
HASHES: dict[str, tuple[int, ...]] = {"hash": (), "mirrored": (1,), "upside_down": (0,), "turned": (0, 1)}


class ValidationFailed(ContriqueError):
    """A picture set that does not meet its expectations.

    Attributes:
        failures: a line for each failed expectation, with the rows and the remedy. The message has one more line, with
            the place of the report.
    """

    has_lines = True

    def __init__(self, failures: list[str], report: str) -> None:
        super().__init__("\n".join([*failures, f"all that was checked and seen: {report}"]))
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
    accept(findings, str(report))
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
        aside.write_text(render(result, _describe(summary), failures, len(checks)), encoding="utf-8")
    with write_aside(findings) as aside:
        aside.write_text(json.dumps(result.to_json_dict() | outcome, indent=2) + "\n", encoding="utf-8")
    return summary


def accept(findings: Path, report: str) -> None:
    """Go on only with a picture set that met its expectations.

    Args:
        findings: of `examine`.
        report: where its page is, for the message.
    Raises:
        ValidationFailed: an expectation is not met; the message names the rows.
    """
    outcome = json.loads(findings.read_text(encoding="utf-8"))
    for what, names in outcome["named"].items():  # of many, the message names a few
        if len(names) > MAX_NAMES:
            print(f"{what}: {', '.join(names)}", file=sys.stderr)
    if outcome["failures"]:
        raise ValidationFailed(outcome["failures"], report)


def observe(directory: Path, manifest: pd.DataFrame, config: ValidationConfig) -> pd.DataFrame:
    """The facts to check: the manifest beside what every file turns out to be.

    Args:
        directory: the picture set.
        manifest: its rows.
        config: how near a near-duplicate is.
    Returns:
        the manifest with more columns, one row for each of its rows: `problem` (why the picture cannot be decoded),
        `found_sha256`, `declared` and `actual` (width x height x channels), `found_width`, `found_height`,
        `found_channels`, the perceptual hashes of HASHES, `readable`, `judged`, `label`, `labels_needed`,
        `pretraining`, `splits_of_reference`, `near_duplicate_of`, `part_fault` (why a part cannot be used).
    """
    rows = list(manifest.itertuples())
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        observed = pool.map(lambda row: _look(directory, row), rows)
        observations = list(tqdm(observed, total=len(rows), desc="looking at pictures", unit="picture", disable=None))
    columns = ["problem", "found_sha256", "found_width", "found_height", "found_channels", *HASHES]
    facts = manifest.join(pd.DataFrame(observations, columns=columns, index=manifest.index))
    facts["readable"] = facts["problem"] == ""
    for what, prefix in (("declared", ""), ("actual", "found_")):
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
    facts["part_fault"] = _find_part_faults(facts, human)
    return facts


def _find_part_faults(facts: pd.DataFrame, human: bool) -> pd.Series:
    """For each judged row why its part cannot be fitted to, or has no correlation; empty if it can and has.

    Weak labels are many for each photograph, and come later.
    """
    faults = pd.Series("", index=facts.index, dtype="str")
    for split, least in _LEAST_PICTURES.items() if human else ():
        part = facts["split"] == split
        scores = facts.loc[part, "mos"].dropna()
        if 0 < len(scores) < least:
            faults[part] = f"{split} has {len(scores)}, and needs {least} at least"
        elif len(scores) and scores.nunique() == 1:
            faults[part] = f"all {len(scores)} of {split} are {scores.iloc[0]:g}"
    return faults


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
    """For each judged row a picture that differs in at most `bits` bits, as it is or flipped.

    It is one of another split, or a judged one of another content: the protocol leaves out one content after another.
    """
    judged = facts[facts["judged"]]
    matches = pd.Series("", index=facts.index, dtype="str")

    def compare(others: pd.DataFrame, column: str, name: str) -> None:
        apart = (list(judged[column].astype("str")), list(others[column].astype("str")))
        for flip in HASHES:
            for here, there in leaks.near_duplicates(list(judged["hash"]), list(others[flip]), bits, apart=apart):
                matches[judged.index[here]] = f"{others['image'].iloc[there]} {name} {others[column].iloc[there]}"

    compare(judged, "reference", "of content")
    compare(facts, "split", "in")
    return matches


def _run(facts: pd.DataFrame, checks: list[Check]) -> Any:
    """The result of Great Expectations; each expectation carries the number of its check."""
    import great_expectations as gx
    from great_expectations import expectations
    from great_expectations.data_context.types.base import ProgressBarsConfig
    from great_expectations.expectations.row_conditions import Column

    columns = {value for check in checks for name, value in check.arguments.items() if name.startswith("column")}
    frame = _escape(facts[sorted(columns | {check.condition for check in checks if check.condition} | {"image"})])
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    suite = gx.ExpectationSuite("picture set")
    for number, check in enumerate(checks):
        condition = {"row_condition": Column(check.condition) == True} if check.condition else {}  # noqa: E712
        expectation = getattr(expectations, check.expectation)
        suite.add_expectation(expectation(**check.arguments, **condition, meta={"check": number}))
    asset = context.data_sources.add_pandas("picture set").add_dataframe_asset("pictures")
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": frame.assign(row=frame.index)})
    return batch.validate(
        suite, result_format={"result_format": "COMPLETE", "unexpected_index_column_names": ["row", "image"]}
    )


def _escape(frame: pd.DataFrame) -> pd.DataFrame:
    """Great Expectations puts names into its page as they are."""
    texts = [name for name in frame if isinstance(frame[name].dtype, pd.StringDtype)]
    return frame.assign(**{name: frame[name].map(escape) for name in texts})


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


def _describe(summary: Summary) -> dict[str, Any]:
    """What a set holds, in a person's words."""
    label = {
        "human": f"human scores (MOS {' to '.join(f'{value:g}' for value in summary.mos)})",
        "weak": "weak labels, from full-reference metrics of distorted versions; no human scores",
        "none": "none; for pretraining only",
    }[summary.labels]
    return {"pictures": summary.rows, "labels": label, "judged contents": summary.judged_contents} | summary.counts
