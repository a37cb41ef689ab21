"""Every reader of what strangers hand in, with some inputs that are always the same; `make fuzz` draws others."""

import json
from pathlib import Path

import pytest
import targets
from hypothesis import HealthCheck, given, settings
from sandbox import Fault, try_input, watch
from targets import TARGETS

from contrique.errors import ContriqueError

CRASHES = Path(__file__).parent / "crashes"  # an input a file, in a folder called like its target
QUICK = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module", autouse=True)
def _service():
    yield
    if targets.service.cache_info().currsize:
        targets.service().close()
        targets.service.cache_clear()


@pytest.mark.parametrize("name", TARGETS)
def test_any_input_is_a_valid_result_or_one_clear_line(name):
    target = TARGETS[name]

    @settings(QUICK, max_examples=target.examples)
    @given(target.inputs())
    def check(data: bytes) -> None:
        try_input(target.read, data)

    check()


@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if "never valid" not in target.tags])
def test_an_input_as_it_should_be_is_read(name, tmp_path):
    TARGETS[name].read(tmp_path, TARGETS[name].valid())


@pytest.mark.parametrize("path", sorted(CRASHES.glob("*/*")), ids=lambda path: f"{path.parent.name} {path.name}")
def test_what_was_found_stays_mended(path):
    target = TARGETS[{".dvc-config": ".dvc/config"}.get(path.parent.name, path.parent.name)]
    try_input(target.read, path.read_bytes())


def _fail(_: Path, data: bytes) -> None:
    raise ValueError("a bug")


class _Lines(ContriqueError):
    has_lines = True


def _fail_in_two_lines(_: Path, data: bytes) -> None:
    raise _Lines("one\ntwo")


def _write_outside(folder: Path, data: bytes) -> None:
    (folder.parent / "outside" / "x").write_bytes(data)


def _overwrite(folder: Path, data: bytes) -> None:
    (folder.parent / "outside" / "secret").write_bytes(data)


def _start_program(_: Path, data: bytes) -> None:
    import subprocess

    subprocess.run(["true"], check=True)
    raise ContriqueError("and one clear line")


def _connect(_: Path, data: bytes) -> None:
    import socket

    with socket.socket() as client:
        client.connect_ex(("127.0.0.1", 9))


def _unpickle(_: Path, data: bytes) -> None:
    import pickle

    pickle.loads(b"cos\ngetpid\n.")


@pytest.mark.parametrize(
    "read", [_fail, _fail_in_two_lines, _write_outside, _overwrite, _start_program, _connect, _unpickle]
)
def test_what_no_input_may_do_is_noticed(read):
    with pytest.raises(Fault):
        try_input(read, b"x")


def test_a_folder_of_its_own_may_be_written(tmp_path):
    with watch(tmp_path):
        (tmp_path / "x").write_text(json.dumps(1))
