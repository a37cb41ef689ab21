"""Metadata: whatever a stage says of what it made comes out flat, and through ML Metadata."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from contrique.metadata import Facts, describe
from pipelines.laptop.backend import record_metadata


@dataclasses.dataclass(frozen=True)
class Example(Facts):
    name: str = "a"
    rows: int = 3
    share: float = 0.5
    good: bool = True
    missing: float | None = None
    undefined: float = math.nan
    endless: float = math.inf
    counts: dict[str, int] = dataclasses.field(default_factory=lambda: {"train/pristine": 2})
    mos: tuple[float, ...] = (1.0, 5.0)


FLAT = {"name": "a", "rows": 3, "share": 0.5, "good": True, "counts.train/pristine": 2, "mos": "1.0, 5.0"}


def test_everything_is_text_a_finite_number_or_a_boolean():
    assert Example().describe() == FLAT
    json.dumps(Example().describe(), allow_nan=False)


def test_ml_metadata_takes_and_keeps_all_of_it():
    metadata = record_metadata(Example().describe(), output="made", session="{}")
    assert {name: metadata[name] for name in FLAT} == FLAT


def test_a_value_of_another_kind_is_an_error_of_the_program():
    with pytest.raises(TypeError, match="folder: PosixPath is nothing that metadata can hold"):
        describe({"folder": Path("a")})
