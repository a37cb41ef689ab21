"""The head's one mapping, its files, and folders of strangers that must be refused in one line."""

import dataclasses
import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contrique import files
from contrique.artifacts import COEFFICIENTS, DESCRIPTION
from contrique.regressor.diagnosis import ANY, Diagnosis
from contrique.regressor.head import RANGE, Head, RegressorSummary
from contrique.regressor.reliability import Novelty
from contrique.regressor.ridge import RegressorError, Ridge

WIDTH = 16
SUMMARY = RegressorSummary("human", -20.0, 120.0, 1.0, 10, 4, 5, 0.5, WIDTH, 7.0, 99, 0.8)


def build_head() -> Head:
    rng = np.random.default_rng(0)
    diagnosis = Diagnosis(
        rng.normal(size=(4, WIDTH)).astype(np.float32), np.zeros(4, np.float32), ("a", "b") * 2, (ANY, ANY, 3, 0)
    )
    bank = rng.normal(size=(9, WIDTH)).astype(np.float32)
    return Head(Ridge(rng.normal(size=WIDTH), 3.0, 1.0), SUMMARY, Novelty(bank, 0.7), diagnosis)


@pytest.fixture
def folder(tmp_path):
    build_head().save(tmp_path / "head")
    return tmp_path / "head"


def test_the_mapping_is_linear_in_the_declared_range_and_clipped():
    head = build_head()
    raw = np.array([[-20.0, 50.0, 120.0], [-1e6, 15.0, 1e6]])
    np.testing.assert_allclose(head.to_points(raw), [[0, 50, 100], [0, 25, 100]])
    np.testing.assert_allclose(head.to_points(raw, clip=False)[0], [0, 50, 100])
    assert head.to_points(raw, clip=False)[1, 2] > 1e5
    assert head.to_points(raw).shape == raw.shape
    assert head.point == 1.4
    assert head.half_width == pytest.approx(5)
    assert head.interval(50.0) == pytest.approx((45, 55))
    assert head.interval(-20.0) == pytest.approx((RANGE[0], 5))
    assert dataclasses.replace(head, summary=dataclasses.replace(SUMMARY, interval=None)).interval(50.0) is None


def test_a_head_comes_back_as_it_was_saved(folder, tmp_path):
    head, original = Head.load(folder), build_head()
    assert head.summary == original.summary
    np.testing.assert_array_equal(head.ridge.coef, original.ridge.coef)
    np.testing.assert_array_equal(head.novelty.bank, original.novelty.bank)
    assert (head.ridge.intercept, head.novelty.threshold) == (3.0, 0.7)
    assert (head.diagnosis.distortions, head.diagnosis.levels) == (("a", "b", "a", "b"), (ANY, ANY, 3, 0))
    head.save(tmp_path / "again")
    for name in (COEFFICIENTS, DESCRIPTION):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_each_file_is_read_once(folder, monkeypatch):
    names = []
    monkeypatch.setattr(files, "open_regular", lambda *a, real=files.open_regular: names.append(a[0].name) or real(*a))
    Head.load(folder)
    assert sorted(names) == sorted([COEFFICIENTS, DESCRIPTION])


def test_a_head_from_before_the_contract_still_loads(folder):
    """Its files had neither the fields nor the arrays."""
    fields = json.loads((folder / DESCRIPTION).read_text())
    for name in ("interval", "interval_n", "diagnosis_accuracy"):
        del fields[name]
    (folder / DESCRIPTION).write_text(json.dumps(fields))
    keep_arrays(folder, "coef", "intercept", "alpha")
    head = Head.load(folder)
    np.testing.assert_array_equal(head.ridge.coef, build_head().ridge.coef)
    assert (head.summary.interval, head.summary.interval_n) == (None, 0)
    assert (head.novelty, head.diagnosis, head.half_width) == (None, None, None)


def read_arrays(folder: Path) -> dict[str, Any]:
    with np.load(folder / COEFFICIENTS) as file:
        return {name: file[name] for name in file.files}


def change(folder: Path, **arrays: Any) -> None:
    """Replace arrays; None removes one."""
    content = {name: value for name, value in (read_arrays(folder) | arrays).items() if value is not None}
    with (folder / COEFFICIENTS).open("wb") as file:
        np.savez(file, **content)


def keep_arrays(folder: Path, *names: str) -> None:
    change(folder, **{name: None for name in read_arrays(folder) if name not in names})


def describe(folder: Path, **fields: Any) -> None:
    path = folder / DESCRIPTION
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def zip_of(header: bytes, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """An archive whose member `coef` has a header of one's own and no data."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("coef.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    return buffer.getvalue()


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def grow(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size)


def flip(path: Path) -> None:
    """One byte of the weights, which come first."""
    data = bytearray(path.read_bytes())
    data[250] ^= 1
    path.write_bytes(bytes(data))


def complex_zeros(*shape: int) -> Any:
    return np.zeros(shape, np.complex128)


BANK = np.ones((9, WIDTH), np.float32)
HOSTILE = {
    "no description": lambda f: (f / DESCRIPTION).unlink(),
    "no coefficients": lambda f: (f / COEFFICIENTS).unlink(),
    "half a description": lambda f: (f / DESCRIPTION).write_text("{"),
    "a list": lambda f: (f / DESCRIPTION).write_text("[1]"),
    "deep brackets": lambda f: (f / DESCRIPTION).write_text("[" * 200_000),
    "not utf-8": lambda f: (f / DESCRIPTION).write_bytes(b"\xff\xfe\x00{"),
    "a number too long to read": lambda f: (f / DESCRIPTION).write_text('{"n": ' + "9" * 5000 + "}"),
    "an unknown field": lambda f: describe(f, surprise=1),
    "another format": lambda f: describe(f, format=99),
    "a missing field": lambda f: (f / DESCRIPTION).write_text('{"labels": "human"}'),
    "a description that is a pipe": lambda f: replace_by_pipe(f / DESCRIPTION),
    "a description that is a folder": lambda f: ((f / DESCRIPTION).unlink(), (f / DESCRIPTION).mkdir()),
    "a description of 10 TB": lambda f: grow(f / DESCRIPTION, 10**12),
    "infinite label": lambda f: (f / DESCRIPTION).write_text((f / DESCRIPTION).read_text().replace("120.0", "1e400")),
    "NaN label": lambda f: describe(f, label_low=float("nan")),
    "text for a label": lambda f: describe(f, label_low="0"),
    "no label": lambda f: describe(f, label_high=None),
    "inverted range": lambda f: describe(f, label_low=120.0, label_high=-20.0),
    "empty range": lambda f: describe(f, label_low=3.0, label_high=3.0),
    "a range that overflows": lambda f: describe(f, label_low=-1.7e308, label_high=1.7e308),
    "inverted interval": lambda f: describe(f, interval=-7.0),
    "NaN interval": lambda f: describe(f, interval=float("nan")),
    "interval of text": lambda f: describe(f, interval=[1, 2]),
    "accuracy over one": lambda f: describe(f, diagnosis_accuracy=1.5),
    "labels by nobody": lambda f: describe(f, labels="\x1b[2Jhuman"),
    "true for a count": lambda f: describe(f, n=True),
    "half a picture": lambda f: describe(f, n=2.5),
    "a dimension of a billion": lambda f: describe(f, features_dim=10**9),
    "a number beyond floats": lambda f: describe(f, alpha=10**400),
    "SRCC of two": lambda f: describe(f, validation_srcc=2.0),
    "half an archive": lambda f: (f / COEFFICIENTS).write_bytes((f / COEFFICIENTS).read_bytes()[:200]),
    "a flipped byte": lambda f: flip(f / COEFFICIENTS),
    "a pickle": lambda f: (f / COEFFICIENTS).write_bytes(pickle.dumps({"coef": [1.0]})),
    "one plain array": lambda f: np.save((f / COEFFICIENTS).open("wb"), np.zeros(WIDTH)),
    "objects": lambda f: change(f, coef=np.array([{}] * WIDTH, dtype=object)),
    "an archive that is a pipe": lambda f: replace_by_pipe(f / COEFFICIENTS),
    "an archive of 10 TB": lambda f: grow(f / COEFFICIENTS, 10**12),
    "a header that claims 10 TB": lambda f: (f / COEFFICIENTS).write_bytes(
        zip_of(b"{'descr': '<f8', 'fortran_order': False, 'shape': (1250000000000,), }\n")
    ),
    "a header of brackets": lambda f: (f / COEFFICIENTS).write_bytes(zip_of(b"(" * 9000 + b"\n")),
    "a header that is code": lambda f: (f / COEFFICIENTS).write_bytes(zip_of(b"__import__('os').getpid()\n")),
    "a bomb": lambda f: change(f, bomb=np.zeros(2**26)),
    "complex weights": lambda f: change(f, coef=complex_zeros(WIDTH)),
    "whole weights": lambda f: change(f, coef=np.zeros(WIDTH, np.int64)),
    "weights of text": lambda f: change(f, coef=np.full(WIDTH, "1.0")),
    "NaN weights": lambda f: change(f, coef=np.full(WIDTH, np.nan)),
    "infinite weights": lambda f: change(f, coef=np.full(WIDTH, np.inf)),
    "too few weights": lambda f: change(f, coef=np.zeros(WIDTH - 1)),
    "a table of weights": lambda f: change(f, coef=np.zeros((1, WIDTH))),
    "no weights": lambda f: change(f, coef=None),
    "complex intercept": lambda f: change(f, intercept=np.complex128(1j)),
    "many intercepts": lambda f: change(f, intercept=np.zeros(3)),
    "NaN intercept": lambda f: change(f, intercept=np.float64("nan")),
    "negative alpha": lambda f: change(f, alpha=np.float64(-1)),
    "NaN threshold": lambda f: change(f, novelty_threshold=np.float64("nan")),
    "infinite threshold": lambda f: change(f, novelty_threshold=np.float64("inf")),
    "no distance": lambda f: change(f, novelty_threshold=np.float64(0)),
    "negative threshold": lambda f: change(f, novelty_threshold=np.float64(-1)),
    "no threshold": lambda f: change(f, novelty_threshold=None),
    "a threshold without pictures": lambda f: change(f, novelty_bank=None),
    "NaN among the pictures": lambda f: change(f, novelty_bank=BANK * np.nan),
    "complex pictures": lambda f: change(f, novelty_bank=complex_zeros(9, WIDTH)),
    "overflowing pictures": lambda f: change(f, novelty_bank=BANK.astype(np.float64) * 1e300),
    "pictures of another width": lambda f: change(f, novelty_bank=BANK[:, :-1]),
    "too few pictures": lambda f: change(f, novelty_bank=BANK[:2]),
    "distortions without weights": lambda f: change(f, diagnosis_coef=None),
    "NaN of a distortion": lambda f: change(f, diagnosis_intercept=np.full(4, np.nan)),
    "rows that do not fit": lambda f: change(f, diagnosis_intercept=np.zeros(3)),
    "complex distortions": lambda f: change(f, diagnosis_coef=complex_zeros(4, WIDTH)),
    "names that draw on the terminal": lambda f: change(f, diagnosis_distortions=np.array(["a\x1b[2J", "b"] * 2)),
    "names without end": lambda f: change(f, diagnosis_distortions=np.array(["a" * 100_000, "b"] * 2)),
    "a distortion twice": lambda f: change(f, diagnosis_distortions=np.array(["a"] * 4)),
    "a level of a thousand": lambda f: change(f, diagnosis_levels=np.array([ANY, ANY, 1000, 0])),
    "levels in halves": lambda f: change(f, diagnosis_levels=np.array([ANY, ANY, 2.5, 0])),
    "distortions without levels": lambda f: change(f, diagnosis_levels=np.full(4, ANY)),
    "levels without distortions": lambda f: change(f, diagnosis_levels=np.array([1, 2, 3, 0])),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_folder_is_refused_in_one_line(folder, name):
    HOSTILE[name](folder)
    with pytest.raises(RegressorError, match="fit it again") as error:
        Head.load(folder)
    message = str(error.value)
    assert str(folder) in message
    assert len(message) < 1000
    assert message.isprintable()
