"""Batches made ahead by other processes."""

import contextlib
import multiprocessing
import os
from collections.abc import Iterator

import torch

from contrique.errors import ContriqueError
from contrique.pretraining.batches import Batch, Views


@contextlib.contextmanager
def use_threads(count: int, sharing: int) -> Iterator[None]:
    """Set torch's threads: `count`, or this process's part of the cores that `sharing` processes share."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or max(1, (os.cpu_count() or 1) // sharing))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _use_one_thread(_: int) -> None:
    import cv2

    torch.set_num_threads(1)
    cv2.setNumThreads(1)


class ErrorsAsItems(torch.utils.data.Dataset[Batch | ContriqueError]):
    """Views whose expected errors come as items: raised in a loader process they would end in its traceback."""

    def __init__(self, views: Views) -> None:
        self.views = views

    def __getitem__(self, step: int) -> Batch | ContriqueError:
        try:
            return self.views[step]
        except ContriqueError as error:
            return error


def load_batches(views: Views, start: int, stop: int, workers: int) -> Iterator[Batch]:
    """Batches of the steps from `start` on, in order, made ahead by `workers` processes."""
    if not workers or start == stop:
        for step in range(start, stop):
            yield views[step]
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["contrique.pretraining.batches"])  # imported once, and not by each process
    for made in torch.utils.data.DataLoader(
        ErrorsAsItems(views),
        batch_size=None,
        sampler=range(start, stop),
        num_workers=workers,
        prefetch_factor=4,
        worker_init_fn=_use_one_thread,
        multiprocessing_context=context,
        pin_memory=torch.cuda.is_available(),
    ):
        if isinstance(made, ContriqueError):
            raise made
        yield made
