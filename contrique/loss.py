"""The multi-positive contrastive loss of the paper, exact and blockwise: no N x N matrix is ever kept."""

import torch
from torch import Tensor

_BLOCK = 512  # rows of the similarity matrix held at a time


def contrastive_loss(z: Tensor, labels: Tensor, temperature: float = 0.1) -> Tensor:
    """Contrastive loss over all local vectors of the global batch (paper, equation 3; spec section 3).

    L = mean_i [ log sum_{k != i} exp(s_ik) - (1 / |P(i)|) sum_{p in P(i)} s_ip ] with s_ij = z_i . z_j / temperature
    of the L2-normalised z, and P(i) every other vector with the label of i. A vector without positives has nothing
    to be told and contributes 0.

    Memory is linear in N: the gradient is accumulated block by block in the forward pass.

    Args:
        z: projections; normalised here. Shape (N, d), any float type; computed in float32.
        labels: class of each vector; an authentic image has a label of its own. Shape (N,), integer.
        temperature: above 0.
    Returns:
        the loss. Shape (), float32.
    Raises:
        ValueError: shapes do not match, fewer than two vectors, or temperature not above 0.
    """
    if z.ndim != 2 or labels.shape != z.shape[:1]:
        raise ValueError(f"expected z (N, d) and labels (N,), got {tuple(z.shape)} and {tuple(labels.shape)}")
    if len(z) < 2:
        raise ValueError(f"expected at least 2 vectors, got {len(z)}")
    if not temperature > 0:
        raise ValueError(f"expected a temperature above 0, got {temperature}")
    with torch.autocast(z.device.type, enabled=False):
        normalised = torch.nn.functional.normalize(z.float(), dim=1)
        loss: Tensor = _Contrastive.apply(normalised, labels, temperature)
        return loss


class _Contrastive(torch.autograd.Function):
    """Loss and gradient with respect to normalised z in one pass over blocks of rows."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, z: Tensor, labels: Tensor, temperature: float) -> Tensor:
        n = len(z)
        classes, inverse, counts = torch.unique(labels, return_inverse=True, return_counts=True)
        class_sum = z.new_zeros(len(classes), z.shape[1]).index_add_(0, inverse, z)
        positives = (counts[inverse] - 1).to(z.dtype)
        weight = (positives > 0).to(z.dtype) / n
        share = weight / positives.clamp(min=1)

        mean_positive = ((class_sum[inverse] - z) * z).sum(1) * share
        grad = -2 * share[:, None] * (class_sum[inverse] - z)
        scaled = z / temperature
        log_sum = z.new_zeros(n)
        for start in range(0, n, _BLOCK):
            rows = slice(start, min(start + _BLOCK, n))
            s = scaled[rows] @ z.T
            s.diagonal(start).fill_(-torch.inf)
            log_sum[rows] = s.logsumexp(1)
            p = s.sub_(log_sum[rows, None]).exp_().mul_(weight[rows, None])
            grad[rows] += p @ z
            grad.addmm_(p.T, z[rows])
        ctx.save_for_backward(grad.div_(temperature))
        loss: Tensor = (weight * log_sum).sum() - mean_positive.sum() / temperature
        return loss

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None, None]:
        grad: Tensor = ctx.saved_tensors[0]  # type: ignore[attr-defined]
        return grads[0] * grad, None, None
