"""What several test modules share: the sample photographs, a real S3 server and the whole stack."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from multiprocessing.util import Finalize
from pathlib import Path

import pytest
from hypothesis import settings
from servers import S3

from contrique.sources.sample import write
from pipelines.laptop.stack import BUCKET, Stack

# The same examples in every run: a test must not fail by chance on whoever runs it next. CONTRIQUE_FUZZ draws new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("fuzz", deadline=None)
settings.load_profile("fuzz" if os.environ.get("CONTRIQUE_FUZZ") else "repeatable")


def pytest_configure() -> None:
    """Give the tests a temporary folder, removed after the last: MLflow, torchrun and what is killed leave files."""
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())  # pytest's own stay, those of failed tests
    scratch = tempfile.mkdtemp(prefix="contrique-tests-")
    # after multiprocessing has ended its processes and removed its own folder, whose priority is -100
    Finalize(None, shutil.rmtree, (scratch,), {"ignore_errors": True}, exitpriority=-200)
    os.environ["TMPDIR"] = tempfile.tempdir = scratch


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample picture set, built once. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("sample") / "data"
    write(folder)
    return folder


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """SeaweedFS, as the stack starts it."""
    stack = Stack(tmp_path_factory.mktemp("stack"))
    stack.s3.start()
    try:
        stack.s3.wait()
        yield S3(f"s3://{BUCKET}", stack.s3_environment)
    finally:
        stack.s3.stop(0)


@pytest.fixture(scope="session")
def whole_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """S3, PostgreSQL and the MLflow server. A test that stops one starts it again."""
    with Stack(tmp_path_factory.mktemp("stack")) as stack:
        yield stack


@pytest.fixture
def s3(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """The S3 server, with the environment of this test pointing at it."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server
