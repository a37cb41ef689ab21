from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contrique.pretraining import loss as module
from contrique.pretraining.loss import _number, contrastive_loss


def slow_loss(z: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    """The definition, term by term, in float64."""
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    n, total = len(z), 0.0
    for i in range(n):
        others = [k for k in range(n) if k != i]
        positives = [k for k in others if labels[k] == labels[i]]
        if not positives:
            continue
        s = z @ z[i] / temperature
        top = s[others].max()
        total += top + np.log(np.exp(s[others] - top).sum()) - s[positives].mean()
    return total / n


def full_matrix_loss(z: torch.Tensor, labels: torch.Tensor, temperature: float) -> torch.Tensor:
    """With an N x N matrix and autograd, in float64."""
    z = torch.nn.functional.normalize(z, dim=1)
    s = z @ z.T / temperature
    itself = torch.eye(len(z), dtype=torch.bool)
    positive = (labels[:, None] == labels) & ~itself
    count = positive.sum(1)
    mean_positive = torch.where(positive, s, 0).sum(1) / count.clamp(min=1)
    per_vector = s.masked_fill(itself, -torch.inf).logsumexp(1) - mean_positive
    return torch.where(count > 0, per_vector, 0).mean()


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(2, 24), d=st.integers(2, 8), classes=st.integers(1, 6), seed=st.integers(0, 99),
    temperature=st.sampled_from([0.01, 0.1, 1.0]),
)  # fmt: skip
def test_equals_the_definition(n: int, d: int, classes: int, seed: int, temperature: float) -> None:
    rng = np.random.default_rng(seed)
    z, labels = rng.standard_normal((n, d)), rng.integers(classes, size=n)
    actual = contrastive_loss(torch.from_numpy(z), torch.from_numpy(labels), temperature)
    assert float(actual) == pytest.approx(slow_loss(z, labels, temperature), rel=1e-5, abs=1e-5)


@settings(max_examples=50, deadline=None)
@given(labels=st.lists(st.integers(-3, 10**12), min_size=1, max_size=40))
def test_numbers_of_labels_agree_with_unique(labels: list[int]) -> None:
    assert torch.equal(_number(torch.tensor(labels)), torch.unique(torch.tensor(labels), return_inverse=True)[1])


@pytest.mark.parametrize("rows", [slice(None), slice(300, 600)])
def test_size_of_the_blocks_does_not_matter(rows: slice, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU takes larger ones."""
    generator = torch.Generator().manual_seed(0)
    z, labels = torch.randn(900, 16, generator=generator).double(), torch.randint(0, 9, (900,), generator=generator)
    results = []
    for size in (7, 384, module._BLOCK_GPU):
        monkeypatch.setattr(module, "_BLOCK", size)
        leaf = z.clone().requires_grad_()
        value = contrastive_loss(leaf, labels, rows=rows)
        value.backward()
        assert leaf.grad is not None
        results.append((value.detach(), leaf.grad))
    for value, gradient in results[1:]:
        torch.testing.assert_close(value, results[0][0])
        torch.testing.assert_close(gradient, results[0][1])


@pytest.mark.parametrize("n", [37, 512, 1100])
@pytest.mark.parametrize("temperature", [0.01, 0.1])
def test_value_and_gradient_across_block_borders(n: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(n)
    z = torch.randn(n, 32, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 9, (n,), generator=generator)
    labels[0] = 99  # a class of one
    slow, fast = z.clone().requires_grad_(), z.float().requires_grad_()
    expected = full_matrix_loss(slow, labels, temperature)
    actual = contrastive_loss(fast, labels, temperature)
    (3 * expected).backward()
    (3 * actual).backward()
    assert actual.item() == pytest.approx(expected.item(), rel=1e-5)
    assert float((fast.grad - slow.grad).norm() / slow.grad.norm()) < 1e-5


@pytest.mark.parametrize("n", [37, 600])
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_slices_of_rows_add_up_to_the_whole(n: int, parts: int) -> None:
    generator = torch.Generator().manual_seed(n)
    z = torch.randn(n, 16, generator=generator).requires_grad_()
    labels = torch.randint(0, 9, (n,), generator=generator)
    labels[-1] = 99
    whole = contrastive_loss(z, labels)
    (expected,) = torch.autograd.grad(whole, z)
    bounds = [n * k // parts for k in range(parts + 1)]
    total = torch.stack([contrastive_loss(z, labels, rows=slice(*pair)) for pair in pairwise(bounds)]).sum()
    (grad,) = torch.autograd.grad(total, z)
    assert total.item() == pytest.approx(whole.item(), rel=1e-6)
    assert float((grad - expected).norm() / expected.norm()) < 1e-6


def test_one_row_is_the_term_of_that_row() -> None:
    z, labels = torch.randn(30, 8, generator=torch.Generator().manual_seed(3)), torch.arange(30) % 4
    terms = [30 * float(contrastive_loss(z, labels, rows=slice(i, i + 1))) for i in range(30)]
    similarity = torch.nn.functional.normalize(z, dim=1) @ torch.nn.functional.normalize(z[7], dim=0) / 0.1
    others = torch.arange(30) != 7
    expected = similarity[others].logsumexp(0) - similarity[others & (labels == 7 % 4)].mean()
    assert terms[7] == pytest.approx(float(expected), rel=1e-5)
    assert float(contrastive_loss(z, labels, rows=slice(5, 5))) == 0


def test_bfloat16_products_are_close() -> None:
    generator = torch.Generator().manual_seed(2)
    labels = torch.arange(1100) // 8
    z = torch.randn(1100, 128, generator=generator) + 0.7 * torch.randn(138, 128, generator=generator)[labels]
    slow, fast = z.double().requires_grad_(), z.clone().requires_grad_()
    expected = full_matrix_loss(slow, labels, 0.1)
    actual = contrastive_loss(fast, labels, 0.1, precision="bfloat16")
    expected.backward()
    actual.backward()
    assert actual.item() == pytest.approx(expected.item(), rel=1e-4)
    error = float((fast.grad - slow.grad).norm() / slow.grad.norm())
    assert 1e-5 < error < 2e-3


def test_memory_is_far_below_one_matrix_of_similarities() -> None:
    n = 4096
    z, labels = torch.randn(n, 32, generator=torch.Generator().manual_seed(0)).requires_grad_(), torch.arange(n) % 50
    with torch.profiler.profile(profile_memory=True) as profile:
        contrastive_loss(z, labels).backward()
    memory = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            memory += event.nbytes()
            peak = max(peak, memory)
    assert n * 32 * 4 < peak < n * n * 4 / 2


@pytest.mark.parametrize("labels", [torch.zeros(8), torch.arange(8)])
def test_one_class_or_all_alone_is_finite(labels: torch.Tensor) -> None:
    z = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = contrastive_loss(z, labels.long(), 0.01)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(z.grad).all()
    assert (loss == 0) == bool(labels.any())


def test_order_of_the_vectors_does_not_matter() -> None:
    generator = torch.Generator().manual_seed(5)
    z, labels = torch.randn(40, 8, generator=generator), torch.arange(40) % 7
    order = torch.randperm(40, generator=generator)
    assert float(contrastive_loss(z, labels)) == pytest.approx(
        float(contrastive_loss(z[order], labels[order])), rel=1e-6
    )


def test_bfloat16_input_is_computed_in_float32() -> None:
    z, labels = torch.randn(64, 16, generator=torch.Generator().manual_seed(1)).bfloat16(), torch.arange(64) % 4
    with torch.autocast("cpu", torch.bfloat16):
        assert float(contrastive_loss(z, labels)) == pytest.approx(float(contrastive_loss(z.float(), labels)), rel=1e-6)


@pytest.mark.parametrize(
    ("z", "labels", "temperature", "says"),
    [
        (torch.ones(3, 2), torch.zeros(2), 0.1, "got (3, 2) and (2,)"),
        (torch.ones(1, 2), torch.zeros(1), 0.1, "at least 2"),
        (torch.ones(3, 2), torch.zeros(3), 0.0, "at least 0.00333"),
    ],
)
def test_wrong_arguments(z: torch.Tensor, labels: torch.Tensor, temperature: float, says: str) -> None:
    with pytest.raises(ValueError, match=says.replace("(", r"\(").replace(")", r"\)")):
        contrastive_loss(z, labels, temperature)


def test_wrong_options() -> None:
    z, labels = torch.ones(3, 2), torch.zeros(3)
    with pytest.raises(ValueError, match=r"at least 0\.025 \(bfloat16\), got 0\.01"):
        contrastive_loss(z, labels, 0.01, precision="bfloat16")
    with pytest.raises(ValueError, match="without a step"):
        contrastive_loss(z, labels, rows=slice(0, 3, 2))
