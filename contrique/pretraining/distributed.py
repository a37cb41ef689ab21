"""Training by several processes that torchrun starts, with the same result as a single process.

The vectors of all ranks are gathered with their gradient, the gradients of the parameters are summed and not averaged
(each rank's loss is its share of the whole loss), and batch norm takes its statistics over all ranks.
"""

import contextlib
import os
import signal
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from contrique.errors import ContriqueError

T = TypeVar("T")
_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
_LONG = timedelta(days=7)  # what one rank may prepare alone while the others wait


class ProcessFailed(ContriqueError):
    """One of several processes failed; the message names it and its error."""


@dataclass(frozen=True)
class World:
    """The processes that train together.

    Attributes:
        device: that this process trains on.
        rank: of this process, 0 to `size - 1`.
        size: number of processes.
        local: processes on this machine, which share its cores.
        local_rank: of this process among them.
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    local: int = 1
    local_rank: int = 0

    @property
    def is_local_main(self) -> bool:
        """Whether this process fetches the data for those on its machine."""
        return self.local_rank == 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and the log."""
        return self.rank == 0


@contextlib.contextmanager
def process_group() -> Iterator[World]:
    """Join the processes that torchrun started, by NCCL on GPUs and gloo on CPUs; without torchrun, a world of one.

    Yields:
        the world; within another `process_group`, the same one.
    """
    cuda = torch.cuda.is_available()
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield World(torch.device("cuda" if cuda else "cpu"))
        return
    local_rank = int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    nested = is_in_group()
    if not nested:
        if cuda:
            torch.cuda.set_device(device)
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    yield World(device, dist.get_rank(), dist.get_world_size(), int(os.environ["LOCAL_WORLD_SIZE"]), local_rank)
    if not nested:  # and not after a failure: the others may be waiting for this rank, and it would wait for them
        dist.destroy_process_group()


def run_processes(processes: int, work: Callable[..., T], *arguments: Any) -> T:
    """Call a function in several processes of this machine, started as torchrun starts them.

    Args:
        processes: 1 calls it in this process.
        work: a function of a module, which joins the others by `process_group`.
        arguments: of `work`; they are pickled.
    Returns:
        the result of the first process.
    Raises:
        ProcessFailed: a process raised or was killed, and the others were ended; or there are fewer GPUs.
    """
    if processes == 1:
        return work(*arguments)
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if torch.cuda.is_available() and torch.cuda.device_count() < processes:
        raise ProcessFailed(
            f"{processes} processes need a GPU each, and {torch.cuda.device_count()} can be seen; ask for fewer "
            "processes or for more GPUs"
        )
    try:
        with tempfile.TemporaryDirectory() as logs, _keep_signals():
            config = LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=processes,
                run_id=uuid.uuid4().hex,
                rdzv_backend="c10d",
                rdzv_endpoint="localhost:0",
                max_restarts=0,
                logs_specs=DefaultLogsSpecs(log_dir=logs),
            )
            results: dict[int, T] = elastic_launch(config, work)(*arguments)
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        record: Any = failure.message  # a dict if the process raised, by torch's own record of it
        message = record["message"] if isinstance(record, dict) else record
        raise ProcessFailed(f"process {rank} of {processes}: {message}") from failed
    return results[0]


@contextlib.contextmanager
def _keep_signals() -> Iterator[None]:
    """Restore the signal handlers, which torch's launcher replaces."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def is_in_group() -> bool:
    """Whether this process is in a group that `process_group` opened, even as its only member."""
    return dist.is_initialized()


def wait_for_all() -> None:
    """Return when every rank has called this; that may take days."""
    if is_in_group():
        group: Any = dist.new_group(timeout=_LONG, backend="gloo")  # waits for all ranks, too
        dist.monitored_barrier(group, timeout=_LONG)


def broadcast(value: float) -> float:
    """Rank 0's value, on every rank."""
    if not is_in_group():
        return value
    tensor = torch.tensor(value, dtype=torch.float64)
    dist.broadcast(tensor, 0)
    return float(tensor)


def gather(tensor: Tensor) -> Tensor:
    """Concatenate the tensors of all ranks, in order; gradients flow back to the rank of each part.

    Args:
        tensor: of the same shape on every rank. Shape (n, ...).
    Returns:
        Shape (ranks * n, ...).
    """
    gathered: Tensor = _Gather.apply(tensor) if is_in_group() else tensor
    return gathered


class _Gather(torch.autograd.Function):
    """The gradient of a part is the sum over all ranks, so that W ranks differentiate one loss."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        parts = tensor.new_empty((dist.get_world_size() * tensor.shape[0], *tensor.shape[1:]))
        dist.all_gather(list(parts.chunk(dist.get_world_size())), tensor.contiguous())
        return parts

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        return grad.chunk(dist.get_world_size())[dist.get_rank()]


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Sum over all ranks, without gradient."""
    if is_in_group():
        tensor = tensor.detach().clone()
        dist.all_reduce(tensor)
    return tensor


class _SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over all ranks on any device; `torch.nn.SyncBatchNorm`, which is faster, runs on GPUs alone.

    Every rank must hold as many values per channel as the others.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        values = input.to(self.weight.dtype)
        over = [axis for axis in range(input.ndim) if axis != 1]
        variance, mean = torch.var_mean(values, over, correction=0)
        moments = gather(torch.stack([mean, variance])[None])  # (ranks, 2, channels)
        mean, variance = moments[:, 0].mean(0), moments[:, 1].mean(0) + moments[:, 0].var(0, correction=0)
        self._update_running_stats(mean.detach(), variance.detach(), len(moments) * input.numel() // input.shape[1])
        shape = [1, -1] + [1] * (input.ndim - 2)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return ((values - mean.view(shape)) * scale.view(shape) + self.bias.view(shape)).to(input.dtype)

    def _update_running_stats(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Move the running statistics, as torch.nn.BatchNorm2d does."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)


def synchronise_batch_norm(model: nn.Module, device: torch.device) -> None:
    """Replace every batch norm in `model` by one over all ranks; parameters and buffers stay the same objects."""
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                synchronised = _SyncBatchNorm(child.num_features, child.eps, child.momentum)
                for kind in (child._parameters, child._buffers):
                    for key, tensor in kind.items():
                        setattr(synchronised, key, tensor)
                setattr(module, name, synchronised.train(child.training))


class GradientSum:
    """Sums each parameter's gradient over all ranks, while the backward pass goes on.

    A rank's loss is its share of the whole loss, so the sum is the gradient. DistributedDataParallel would average, and
    it regroups its buckets after the first step, so that a resumed run adds up in another order than one that was not
    interrupted.

    Args:
        model: the same on every rank.
    """

    def __init__(self, model: nn.Module) -> None:
        self._pending: list[dist.Work] = []
        for parameter in model.parameters() if is_in_group() else ():
            parameter.register_post_accumulate_grad_hook(self._start)  # type: ignore[no-untyped-call]

    def _start(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        work = dist.all_reduce(parameter.grad, async_op=True)
        assert work is not None
        self._pending.append(work)

    def wait(self) -> None:
        """Return when the gradients of the last backward pass are summed."""
        for work in self._pending:
            work.wait()
        self._pending.clear()
