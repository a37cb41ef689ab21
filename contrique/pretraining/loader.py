"""Batches prepared in advance by other processes."""

import contextlib
import multiprocessing
import os
from collections.abc import Iterator

import torch

from contrique.errors import ContriqueError
from contrique.interrupts import shield_children
from contrique.pretraining.batches import Batch, Views

PREFETCH = 4  # batches that each process prepares in advance


@contextlib.contextmanager
def use_threads(count: int, sharing: int) -> Iterator[None]:
    """Set torch's threads: `count`, or for 0 this process's share of the cores among `sharing` processes."""
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
    """Views that return expected errors as items: raised in a loader process they would arrive with its traceback."""

    def __init__(self, views: Views) -> None:
        self.views = views

    def __getitem__(self, step: int) -> Batch | ContriqueError:
        try:
            return self.views[step]
        except ContriqueError as error:
            return error


def load_batches(views: Views, start: int, stop: int, workers: int) -> Iterator[Batch]:
    """Batches of the steps `start` to `stop - 1`, in order, prepared in advance by `workers` processes.

    The processes start with the call; without any, each batch is computed when it is asked for.
    """
    if not workers or start == stop:
        return (views[step] for step in range(start, stop))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["contrique.pretraining.batches"])  # imported once, and not by each process
    loader = torch.utils.data.DataLoader(
        ErrorsAsItems(views),
        batch_size=None,
        sampler=range(start, stop),
        num_workers=workers,
        prefetch_factor=PREFETCH,
        worker_init_fn=_use_one_thread,
        multiprocessing_context=context,
        pin_memory=torch.cuda.is_available(),
    )
    with shield_children():
        items = iter(loader)
    return map(_raise_errors, items)


def _raise_errors(item: Batch | ContriqueError) -> Batch:
    if isinstance(item, ContriqueError):
        raise item
    return item
