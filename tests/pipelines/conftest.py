"""One object store for all runs of a test process: to start one takes seconds."""

import contextlib
import functools
from collections.abc import Iterator

import pytest

from pipelines.laptop import runner
from pipelines.laptop.backend import Store, serve_store


@pytest.fixture(scope="session", autouse=True)
def one_store_for_all_runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with contextlib.ExitStack() as exit_stack, pytest.MonkeyPatch.context() as patch:

        @functools.cache
        def store() -> Store:
            return exit_stack.enter_context(serve_store(tmp_path_factory.mktemp("store")))

        patch.setattr(runner, "serve_store", lambda folder: contextlib.nullcontext(store()))
        yield
