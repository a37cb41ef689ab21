"""The files in which public sets keep their scores: CSV, Excel and MATLAB, read within bounds."""

import io
import json
import os
import resource
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any, Final

import pandas as pd

from contrique.files import read_regular

_MAX_BYTES: Final = 2**27  # of a score file; FLIVE's has four million
_MAX_UNPACKED: Final = 2**28  # of an Excel file's sheets
_MAX_MATLAB: Final = 2**20
_MATLAB_SECONDS, _MATLAB_BYTES = 30, 2**31
_PROGRAM: Final = "from contrique.sources.tables import convert_matlab; convert_matlab()"
Table = dict[str, list[Any]]


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty."""
    return [line for line in read_regular(path, _MAX_BYTES).decode().splitlines() if line.strip()]


def read_csv(path: Path) -> pd.DataFrame:
    """A CSV file with a header."""
    return pd.read_csv(io.BytesIO(read_regular(path, _MAX_BYTES)), skipinitialspace=True)


def read_sheet(path: Path, sheet: str | int) -> pd.DataFrame:
    """The cells of a sheet of an Excel file, as objects, without a header.

    Raises:
        ValueError: the file unpacks to more than such a file may have.
    """
    data = read_regular(path, _MAX_BYTES)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if (size := sum(member.file_size for member in archive.infolist())) > _MAX_UNPACKED:
            raise ValueError(f"it unpacks to {size} bytes")
    return pd.read_excel(io.BytesIO(data), sheet_name=sheet, header=None, dtype=object, engine="openpyxl")


def read_matlab(path: Path) -> Table:
    """The arrays of a MATLAB file by name, each as a flat list of numbers or of a cell array's texts.

    SciPy's reader can be led beyond its memory by a damaged file, so it runs in a process of its own, which gives JSON.

    Raises:
        ValueError: it cannot be read.
    """
    environment = {
        "PYTHONPATH": os.pathsep.join(folder or str(Path.cwd()) for folder in sys.path),
        "OPENBLAS_NUM_THREADS": "1",  # each thread would take its share of the memory
    }
    result = subprocess.run(
        [sys.executable, "-P", "-c", _PROGRAM],
        input=read_regular(path, _MAX_MATLAB),
        capture_output=True,
        env=os.environ | environment,
        check=False,
        timeout=10 * _MATLAB_SECONDS,  # where other work leaves it little of a processor
    )
    if result.returncode:
        reason = result.stderr.decode(errors="replace").strip().splitlines()
        raise ValueError(f"{path.name}: {reason[-1] if reason else f'its reader ended with {result.returncode}'}")
    table: Table = json.loads(result.stdout)
    return table


def convert_matlab() -> None:
    """What the process of `read_matlab` runs: a MATLAB file from standard input, JSON to standard output."""
    resource.setrlimit(resource.RLIMIT_AS, (_MATLAB_BYTES, _MATLAB_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (_MATLAB_SECONDS, _MATLAB_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import numpy as np
    from scipy.io import loadmat

    content = loadmat(io.BytesIO(sys.stdin.buffer.read()))
    table = {
        name: [np.asarray(cell).item() for cell in np.ravel(array)]
        for name, array in content.items()
        if not name.startswith("__")
    }
    json.dump(table, sys.stdout)
