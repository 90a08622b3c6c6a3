"""The rules against the naive references of flash-linear-attention, which others wrote from the same papers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hwsearch.kernels.delta_rule import delta_rule
from hwsearch.kernels.linear_attention import linear_attention
from hwsearch.kernels.rwkv7 import rwkv7

pytest.importorskip("fla", reason="fla-core is not installed: nothing to compare with")

B, T, H, K, V = 2, 70, 3, 16, 24


def _normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _tokens(width: int, *, seed: int) -> Tensor:
    return _normal(B, T, H, width, seed=seed)


def _close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert float((ours - theirs).norm() / theirs.norm()) <= 1e-5


@pytest.fixture
def qkv() -> tuple[Tensor, Tensor, Tensor]:
    return _tokens(K, seed=0), _tokens(K, seed=1), _tokens(V, seed=2)


@pytest.fixture
def state() -> Tensor:
    return _normal(B, H, K, V, seed=3)


def _unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x, dim=-1)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_gated_delta_rule(qkv: tuple[Tensor, Tensor, Tensor], state: Tensor, backend: str) -> None:
    from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule

    q, k, v = qkv
    g, beta = -0.3 * _normal(B, T, H, seed=4).abs(), _normal(B, T, H, seed=5).sigmoid()
    theirs, last = naive_recurrent_gated_delta_rule(
        _unit(q), _unit(k), v, beta, g, initial_state=state, output_final_state=True
    )
    out, ours = delta_rule(q, k, v, g, beta, state_BHKV=state, backend=backend)
    _close(out, theirs)
    _close(ours, last)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_delta_rule_without_gates(qkv: tuple[Tensor, Tensor, Tensor], state: Tensor, backend: str) -> None:
    from fla.ops.delta_rule.naive import delta_rule_recurrence

    q, k, v = qkv
    beta = _normal(B, T, H, seed=5).sigmoid()
    theirs, last = delta_rule_recurrence(
        *(x.transpose(1, 2) for x in (_unit(q), _unit(k), v, beta)), initial_state=state
    )
    out, ours = delta_rule(q, k, v, torch.zeros_like(beta), beta, state_BHKV=state, backend=backend)
    _close(out, theirs.transpose(1, 2))
    _close(ours, last)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_gla(qkv: tuple[Tensor, Tensor, Tensor], state: Tensor, backend: str) -> None:
    from fla.ops.gla.naive import naive_recurrent_gla

    q, k, v = qkv
    g = torch.nn.functional.logsigmoid(_tokens(K, seed=4))
    theirs, last = naive_recurrent_gla(q, k, v, g, initial_state=state, output_final_state=True)
    out, ours = linear_attention(q, k, v, g, scale=K**-0.5, state_BHKV=state, backend=backend)
    _close(out, theirs)
    _close(ours, last)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_one_decay_per_head(qkv: tuple[Tensor, Tensor, Tensor], state: Tensor, backend: str) -> None:
    from fla.ops.simple_gla.naive import naive_recurrent_simple_gla

    q, k, v = qkv
    g = -0.3 * _normal(B, T, H, seed=4).abs()
    theirs, last = naive_recurrent_simple_gla(q, k, v, g, initial_state=state)
    out, ours = linear_attention(q, k, v, g[..., None], scale=K**-0.5, state_BHKV=state, backend=backend)
    _close(out, theirs)
    _close(ours, last)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_retention(qkv: tuple[Tensor, Tensor, Tensor], backend: str) -> None:
    """Their parallel form, whose decays are RetNet's."""
    from fla.ops.retention.naive import naive_retention

    q, k, v = qkv
    decay = torch.log1p(-torch.exp2(-5.0 - torch.arange(H)))
    g = decay[:, None].expand(B, T, H, 1)
    out, _ = linear_attention(q, k, v, g, scale=K**-0.5, backend=backend)
    _close(out, naive_retention(*(x.transpose(1, 2) for x in qkv)).transpose(1, 2))


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_rwkv7(qkv: tuple[Tensor, Tensor, Tensor], state: Tensor, backend: str) -> None:
    """Their diagonal-plus-low-rank recurrence, of which RWKV-7's rule is a case."""
    from fla.ops.generalized_delta_rule.dplr.naive import dplr_recurrence

    r, k, v = qkv
    w = -0.6065 * _tokens(K, seed=4).sigmoid()
    removal = _unit(_tokens(K, seed=5))
    a, b = -removal, removal * _tokens(K, seed=6).sigmoid()
    theirs, last = dplr_recurrence(
        *(x.transpose(1, 2) for x in (r * K**0.5, k, v, a, b, w)), initial_state=state
    )
    out, ours = rwkv7(r, w, k, v, a, b, state_BHKV=state, backend=backend)
    _close(out, theirs.transpose(1, 2))
    _close(ours, last)
