"""The chunked delta rule and its single step against the recurrence, in fp64."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from hwsearch.errors import InputError
from hwsearch.kernels.delta_rule import delta_rule, delta_rule_step


class Inputs(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor
    beta: Tensor
    state: Tensor

    def tokens(self, start: int, stop: int) -> list[Tensor]:
        return [x[:, start:stop] for x in self[:5]]


def _inputs(length: int, *, key_heads: int = 2, value_heads: int = 4, decay: float = 0.3) -> Inputs:
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return Inputs(
        q=normal(2, length, key_heads, 8),
        k=normal(2, length, key_heads, 8),
        v=normal(2, length, value_heads, 12),
        g=-decay * normal(2, length, value_heads).abs(),
        beta=normal(2, length, value_heads).sigmoid(),
        state=normal(2, value_heads, 8, 12),
    )


def _close(ours: Tensor, reference: Tensor) -> None:
    assert ours.dtype == reference.dtype
    torch.testing.assert_close(ours, reference, rtol=1e-9, atol=1e-11)


def _run(x: Inputs, backend: str) -> tuple[Tensor, Tensor]:
    return delta_rule(x.q, x.k, x.v, x.g, x.beta, state_BHKV=x.state, backend=backend)


def test_recurrence_by_hand() -> None:
    """Two tokens, one head, key along one axis: the second write replaces what is left of the first."""
    one = torch.ones(1, 2, 1, 1, dtype=torch.float64)
    v = torch.tensor([3.0, 5.0], dtype=torch.float64).reshape(1, 2, 1, 1)
    g = torch.log(torch.tensor([1.0, 0.5], dtype=torch.float64)).reshape(1, 2, 1)
    beta = torch.tensor([1.0, 0.25], dtype=torch.float64).reshape(1, 2, 1)
    out, state = delta_rule(one, one, v, g, beta, backend="reference")
    # S1 = 3; S2 = 1.5 + 0.25 (5 - 1.5) = 2.375
    torch.testing.assert_close(
        out.flatten(), torch.tensor([3, 2.375], dtype=torch.float64), rtol=1e-5, atol=0
    )
    assert state.item() == pytest.approx(2.375, rel=1e-5)


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 127, 200])
@pytest.mark.parametrize("decay", [0.0, 0.3, 30.0])
def test_chunks_match_recurrence(length: int, decay: float) -> None:
    x = _inputs(length, decay=decay)
    for ours, reference in zip(_run(x, "torch"), _run(x, "reference"), strict=True):
        _close(ours, reference)


@pytest.mark.parametrize("cut", [1, 64, 100])
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_two_pieces_match_one(cut: int, backend: str) -> None:
    x = _inputs(150)
    whole, last = _run(x, backend)
    q, k, v, g, beta = x.tokens(0, cut)
    first, middle = delta_rule(q, k, v, g, beta, state_BHKV=x.state, backend=backend)
    q, k, v, g, beta = x.tokens(cut, 150)
    second, end = delta_rule(q, k, v, g, beta, state_BHKV=middle, backend=backend)
    _close(torch.cat((first, second), dim=1), whole)
    _close(end, last)


@pytest.mark.parametrize(("key_heads", "value_heads"), [(1, 4), (2, 4), (3, 3)])
def test_steps_match_recurrence(key_heads: int, value_heads: int) -> None:
    x = _inputs(7, key_heads=key_heads, value_heads=value_heads)
    whole, last = _run(x, "reference")
    state, before = x.state, x.state.clone()
    for t in range(7):
        out, state = delta_rule_step(x.q[:, t], x.k[:, t], x.v[:, t], x.g[:, t], x.beta[:, t], state)
        _close(out, whole[:, t])
    _close(state, last)
    assert torch.equal(x.state, before)


@pytest.mark.parametrize("decay", [0.3, 200.0])  # the second overflows exp() in the masked half of a chunk
def test_gradients(decay: float) -> None:
    gradients = []
    for backend in ("torch", "reference"):
        x = Inputs(*(leaf.requires_grad_() for leaf in _inputs(70, decay=decay)))
        out, state = _run(x, backend)
        (out.square().sum() + state.square().sum()).backward()  # type: ignore[no-untyped-call]
        gradients.append([leaf.grad for leaf in x])
    for ours, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_low_precision_keeps_an_fp32_state(dtype: torch.dtype, tolerance: float) -> None:
    x = _inputs(130)
    low = [leaf.to(dtype) for leaf in x[:5]]
    q, k, v, g, beta = low
    out, state = delta_rule(q, k, v, g, beta)
    exact, exact_state = delta_rule(*(leaf.double() for leaf in low), backend="reference")
    assert (out.dtype, state.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(out.double(), exact, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(state.double(), exact_state, rtol=1e-4, atol=1e-5)


def test_refusals() -> None:
    x = _inputs(4)
    with pytest.raises(InputError, match="must divide"):
        delta_rule(x.q, x.k, x.v[:, :, :3], x.g[:, :, :3], x.beta[:, :, :3])
    with pytest.raises(InputError, match="gates"):
        delta_rule(x.q, x.k, x.v, x.g[:, :2], x.beta)
    with pytest.raises(InputError, match="state"):
        delta_rule(x.q, x.k, x.v, x.g, x.beta, state_BHKV=x.state[:1])
    with pytest.raises(InputError, match="unknown backend"):
        delta_rule(x.q, x.k, x.v, x.g, x.beta, backend="cuda")
    with pytest.raises(InputError, match="backend fla runs on CUDA devices, and the tensors are on cpu"):
        delta_rule(x.q, x.k, x.v, x.g, x.beta, backend="fla")
    with pytest.raises(InputError, match="one step without gradients, and here are 4 tokens"):
        delta_rule(x.q, x.k, x.v, x.g, x.beta, backend="triton")
