"""What is expected of a picture set: a table of checks, each with what is wrong and what to do."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from contrique.config import ValidationConfig
from contrique.data.manifest import KINDS, SPLITS
from contrique.text import escape_control

MAX_NAMES = 5  # rows that a message names


@dataclass(frozen=True, eq=False)
class Check:
    """An expectation and how its failure is told.

    Attributes:
        what: what is wrong.
        remedy: what to do.
        expectation: name of a class of `great_expectations.expectations`.
        arguments: its arguments.
        condition: boolean column that says which rows it is about; empty for all.
        show: how a row is named.
    """

    what: str
    remedy: str
    expectation: str
    arguments: dict[str, Any]
    condition: str = ""
    show: Callable[[Any], str] = lambda row: str(row.image)

    def names(self, rows: pd.DataFrame) -> list[str]:
        """The rows, as a person is told them, each once."""
        return list(dict.fromkeys(escape_control(self.show(row)) for row in rows.itertuples()))

    def message(self, rows: pd.DataFrame) -> str:
        """One line that names the rows and the remedy; a check of the whole set fails without rows."""
        if rows.empty:
            return f"{self.what}; {self.remedy}"
        names = self.names(rows)
        more = f" and {len(names) - MAX_NAMES} more, named in the log" if len(names) > MAX_NAMES else ""
        return f"{self.what} ({len(rows)}): {', '.join(names[:MAX_NAMES])}{more}; {self.remedy}"


def list_checks(facts: pd.DataFrame, config: ValidationConfig) -> list[Check]:
    """What is expected of a picture set.

    Args:
        facts: of `validation.observe`.
        config: the limits.
    """
    low, high = config.mos_range
    sides = {"min_value": config.min_side, "max_value": config.max_side}
    outside = f"outside {config.min_side} to {config.max_side} pixels"
    resize = "resize or remove them, or change validation.min_side and max_side"
    pretraining, judged = facts[facts["pretraining"]], facts[facts["judged"]]
    checks = [
        Check(
            "pictures that cannot be decoded",
            "or remove their rows",
            "ExpectColumnValuesToBeInSet",
            {"column": "problem", "value_set": [""]},
            show=lambda row: row.problem.replace(";", ","),
        ),
        Check(
            "pictures that are not those of the manifest, by SHA-256",
            "restore them with `dvc pull`, or build the manifest again",
            "ExpectColumnPairValuesToBeEqual",
            {"column_A": "sha256", "column_B": "found_sha256"},
            "readable",
        ),
        Check(
            "pictures of another size than the manifest says",
            "build the manifest again",
            "ExpectColumnPairValuesToBeEqual",
            {"column_A": "declared", "column_B": "actual"},
            "readable",
            lambda row: f"{row.image} ({row.actual}, not {row.declared})",
        ),
        Check(
            f"pictures with a width {outside}",
            resize,
            "ExpectColumnValuesToBeBetween",
            {"column": "found_width"} | sides,
            "readable",
            lambda row: f"{row.image} ({row.found_width})",
        ),
        Check(
            f"pictures with a height {outside}",
            resize,
            "ExpectColumnValuesToBeBetween",
            {"column": "found_height"} | sides,
            "readable",
            lambda row: f"{row.image} ({row.found_height})",
        ),
        Check(
            "pictures without one to four channels",
            "convert them to RGB",
            "ExpectColumnValuesToBeInSet",
            {"column": "found_channels", "value_set": [1, 2, 3, 4]},
            "readable",
            lambda row: f"{row.image} ({row.found_channels})",
        ),
        Check(
            "pictures that are the same file",
            "keep one of them",
            "ExpectColumnValuesToBeUnique",
            {"column": "found_sha256"},
            "readable",
        ),
        Check(
            f"scores outside {low:g} to {high:g}",
            "correct the labels, or change validation.mos_range",
            "ExpectColumnValuesToBeBetween",
            {"column": "mos", "min_value": low, "max_value": high},
            show=lambda row: f"{row.image} ({row.mos:g})",
        ),
        Check(
            "weak labels outside 0 to 1",
            "build the manifest again",
            "ExpectColumnValuesToBeBetween",
            {"column": "weak_label", "min_value": 0, "max_value": 1},
            show=lambda row: f"{row.image} ({row.weak_label:g})",
        ),
        Check(
            "rows of an unknown split",
            f"use one of {', '.join(SPLITS)}",
            "ExpectColumnValuesToBeInSet",
            {"column": "split", "value_set": list(SPLITS)},
            show=lambda row: f"{row.image} ('{row.split}')",
        ),
        Check(
            "rows of an unknown kind",
            f"use one of {', '.join(KINDS)}",
            "ExpectColumnValuesToBeInSet",
            {"column": "kind", "value_set": list(KINDS)},
            show=lambda row: f"{row.image} ('{row.kind}')",
        ),
        Check(
            "pictures whose reference is on both sides of a split",
            "give all pictures of a reference the same split",
            "ExpectColumnValuesToNotMatchRegex",
            {"column": "splits_of_reference", "regex": " and "},
            show=lambda row: f"{row.image} ('{row.reference}' is in {row.splits_of_reference})",
        ),
        Check(
            f"too few contents to pretrain on ({pretraining['reference'].nunique()})",
            f"add folders of pristine or authentic pictures, {config.min_pretrain_contents} contents at least",
            "ExpectColumnUniqueValueCountToBeBetween",
            {"column": "reference", "min_value": config.min_pretrain_contents},
            "pretraining",
        ),
    ]
    if not pretraining.empty:
        checks.append(
            Check(
                "no pristine pictures, of which distorted ones are made",
                "add a folder of undistorted photographs as --pristine",
                "ExpectColumnDistinctValuesToContainSet",
                {"column": "kind", "value_set": ["pristine"]},
            )
        )
    if config.needs_authentic and not pretraining.empty:
        checks.append(
            Check(
                "no authentic pictures, which pretraining takes for a share of every step",
                "add a folder of camera photographs as --authentic, or set pretrain.authentic_share=0",
                "ExpectColumnDistinctValuesToContainSet",
                {"column": "kind", "value_set": ["authentic"]},
                "pretraining",
            )
        )
    if judged.empty:
        return checks
    empty = [split for split in SPLITS[1:] if split not in set(judged["split"])]
    return [
        *checks,
        Check(
            "judged pictures without a score (NaN)",
            "fill it in or remove the row; pictures without scores can be pretrained on, in split pretrain",
            "ExpectColumnValuesToNotBeNull",
            {"column": "label"},
            "labels_needed",
        ),
        Check(
            "judged pictures that are in another part or content too, as they are or flipped, by perceptual hash",
            "remove one of each pair or give them one reference, or the model is judged on what it has seen",
            "ExpectColumnValuesToBeInSet",
            {"column": "near_duplicate_of", "value_set": [""]},
            show=lambda row: f"{row.image} (as {row.near_duplicate_of})",
        ),
        Check(
            f"too few contents to judge with ({judged['reference'].nunique()})",
            f"label pictures of {config.min_judged_contents} at least: to train, to validate and to test with",
            "ExpectColumnUniqueValueCountToBeBetween",
            {"column": "reference", "min_value": config.min_judged_contents},
            "judged",
        ),
        Check(
            f"no pictures in the split {' and the split '.join(empty)}",
            "move whole contents there",
            "ExpectColumnDistinctValuesToContainSet",
            {"column": "split", "value_set": list(SPLITS[1:])},
            "judged",
        ),
        Check(
            "parts with too few or constant scores",
            "label more pictures, or move whole contents there by a column `split`",
            "ExpectColumnValuesToBeInSet",
            {"column": "part_fault", "value_set": [""]},
            "judged",
            lambda row: str(row.part_fault),
        ),
    ]
