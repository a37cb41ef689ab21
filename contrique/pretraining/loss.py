"""The multi-positive contrastive loss of the paper, exact and blockwise, without an N x N matrix in memory."""

import itertools
from typing import Any, Literal

import torch
from torch import Tensor

_BLOCK, _BLOCK_GPU = 384, 4096  # rows of the similarity matrix in memory at a time; a GPU idles between small kernels
_SMALLEST = 1 / 300  # temperature at which exp(2 / temperature) is still far inside the range of float64
_SMALLEST_FLOAT32 = 1 / 40


def contrastive_loss(
    z: Tensor,
    labels: Tensor,
    temperature: float = 0.1,
    *,
    rows: slice | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
) -> Tensor:
    """Contrastive loss over all local vectors of the global batch (paper, equation 3; spec section 3).

    L = mean_i [ log sum_{k != i} exp(s_ik) - (1 / |P(i)|) sum_{p in P(i)} s_ip ] with s_ij = z_i . z_j / temperature
    of the L2-normalised z, and P(i) every other vector with the label of i. A vector without positives contributes
    0.

    Memory is linear in N: the forward pass computes the gradient too, from blocks of rows. The matrix is symmetric, so
    only the blocks on and above its diagonal are computed.

    Args:
        z: projections; normalised here. Shape (N, d), any float type; computed in float32, in float64 if
            they are or below a temperature of 1 / 40.
        labels: class of each vector; an authentic image has a label of its own. Shape (N,), integer.
        temperature: at least 1 / 300.
        rows: sum over these i alone, still divided by N: values and gradients of slices that make up the whole add up
            to the whole's, so that each of several processes can take one.
        precision: of the matrix products; `bfloat16` is about twice as fast where the processor has it, with a
            gradient that is off by 0.1 % at first and 1 to 2 % once positives nearly coincide. Temperature at least
            1 / 40.
    Returns:
        the loss. Shape (), float32, or float64 as z.
    Raises:
        ValueError: shapes do not match, fewer than two vectors, a temperature too low, or `rows` with a step.
    """
    if z.ndim != 2 or labels.shape != z.shape[:1]:
        raise ValueError(f"expected z (N, d) and labels (N,), got {tuple(z.shape)} and {tuple(labels.shape)}")
    if len(z) < 2:
        raise ValueError(f"expected at least 2 vectors, got {len(z)}")
    smallest = _SMALLEST_FLOAT32 if precision == "bfloat16" else _SMALLEST
    if not temperature >= smallest:
        raise ValueError(f"expected a temperature of at least {smallest:.3g} ({precision}), got {temperature}")
    start, stop, step = (rows or slice(None)).indices(len(z))
    if step != 1:
        raise ValueError(f"expected rows without a step, got {rows}")
    with torch.autocast(z.device.type, enabled=False):
        dtype = torch.promote_types(z.dtype, torch.float32)
        wide = dtype if temperature >= _SMALLEST_FLOAT32 else torch.float64
        normalised = torch.nn.functional.normalize(z.to(wide), dim=1)
        products = torch.bfloat16 if precision == "bfloat16" else wide
        if start:  # the rows to sum over come first
            normalised, labels = normalised.roll(-start, 0), labels.roll(-start)
        loss: Tensor = _Contrastive.apply(normalised, labels, temperature, max(0, stop - start), products)
        return loss.to(dtype)


class _Contrastive(torch.autograd.Function):
    """Loss of the first `count` rows, and its gradient with respect to normalised z."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, labels: Tensor, temperature: float, count: int, products: torch.dtype) -> Tensor:
        n = len(z)
        inverse = _number(labels)
        sizes = torch.zeros_like(inverse).index_add_(0, inverse, torch.ones_like(inverse))
        positives = (sizes[inverse] - 1).to(z.dtype)
        weight = (positives > 0).to(z.dtype) / n
        share = (weight / positives.clamp(min=1))[:, None]

        totals, partials = (torch.zeros_like(z).index_add_(0, inverse[:k], z[:k]) for k in (n, count))
        pulls = totals[inverse[:count]] - z[:count]
        loss: Tensor = -(share[:count] * pulls * z[:count]).sum() / temperature
        grad = -share * partials[inverse]
        grad[:count] -= share[:count] * (pulls - z[:count])

        left, right = (z / temperature).to(products), z.to(products)
        sums = z.new_zeros(n)
        blocks = _blocks(n, count, _BLOCK if z.device.type == "cpu" else _BLOCK_GPU)
        for rows, after in blocks:
            e = _exponentials(left, right, rows).to(z.dtype)
            sums[rows] += e.sum(1)
            sums[after] += e[:, len(e) :].sum(0)
        loss += (weight[:count] * sums[:count].log()).sum()

        scale = torch.cat([weight[:count] / sums[:count], z.new_zeros(n - count)]).to(products)
        for rows, after in blocks:
            p = _exponentials(left, right, rows)
            p *= scale[rows, None] + scale[rows.start :]
            grad[rows] += p @ right[rows.start :]
            grad[after] += p[:, len(p) :].T @ right[rows]
        ctx.save_for_backward(grad.div_(temperature))
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        grad: Tensor = ctx.saved_tensors[0]
        return grads[0] * grad, None, None, None, None


def _number(labels: Tensor) -> Tensor:
    """Number each label, from 0 to less than N. `torch.unique` does it too, but the host waits for a GPU's answer."""
    ordered, order = labels.sort()
    changes = ordered.diff(prepend=ordered[:1]) != 0
    return torch.empty_like(order).scatter_(0, order, changes.cumsum(0))


def _blocks(n: int, count: int, size: int) -> list[tuple[slice, slice]]:
    """Blocks of the first `count` rows, each with the rows after it: by symmetry its columns stand for theirs."""
    bounds = [*range(0, count, size), count]
    return [(slice(start, stop), slice(stop, n)) for start, stop in itertools.pairwise(bounds)]


def _exponentials(left: Tensor, right: Tensor, rows: slice) -> Tensor:
    """exp(s) of a block of rows and the columns from its diagonal on, 0 on the diagonal; |s| <= 1 / temperature."""
    e = (left[rows] @ right[rows.start :].T).exp_()
    e.diagonal().zero_()
    return e
