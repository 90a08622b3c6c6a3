"""Attention through SDPA against attention from its definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hwsearch.errors import InputError
from hwsearch.kernels.attention import attention


def _tensors(queries: int, keys: int, heads: int = 4, kv_heads: int = 2, dim: int = 16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(queries * 1000 + keys)
    shapes = ((2, heads, queries, dim), (2, kv_heads, keys, dim), (2, kv_heads, keys, dim))
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("window", [0, 1, 3, 64, 300, 2000])
@pytest.mark.parametrize(
    ("queries", "keys"), [(1, 1), (1, 200), (2, 2), (63, 63), (129, 129), (300, 300), (5, 70), (600, 700)]
)
def test_torch_matches_reference(queries: int, keys: int, window: int) -> None:
    q, k, v = _tensors(queries, keys)
    torch.testing.assert_close(
        attention(q, k, v, window=window),
        attention(q, k, v, window=window, backend="reference"),
        rtol=1e-10,
        atol=1e-12,
    )


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("queries", "window"), [(150, 0), (150, 40), (1, 0), (1, 40)])
def test_grouped_heads_read_their_own_keys(kv_heads: int, queries: int, window: int) -> None:
    q, k, v = _tensors(queries, 150, kv_heads=kv_heads)
    repeated = [x.repeat_interleave(4 // kv_heads, dim=1) for x in (k, v)]
    torch.testing.assert_close(
        attention(q, k, v, window=window),
        attention(q, repeated[0], repeated[1], window=window, backend="reference"),
        rtol=1e-10,
        atol=1e-12,
    )


@pytest.mark.parametrize(("queries", "window"), [(1, 8), (20, 8), (20, 0)])
def test_nothing_outside_the_window_is_touched(queries: int, window: int) -> None:
    q, k, v = _tensors(queries, 400)
    visible = min(400, window + queries - 1) if window else 400
    expected = attention(q, k[:, :, 400 - visible :], v[:, :, 400 - visible :], window=window)
    k[:, :, : 400 - visible] = torch.nan
    v[:, :, : 400 - visible] = torch.nan
    torch.testing.assert_close(attention(q, k, v, window=window), expected)


@pytest.mark.parametrize("window", [0, 40])
def test_gradients(window: int) -> None:
    gradients = []
    for backend in ("torch", "reference"):
        leaves = [x.requires_grad_() for x in _tensors(150, 170)]
        q, k, v = leaves
        attention(q, k, v, window=window, backend=backend).square().sum().backward()  # type: ignore[no-untyped-call]
        gradients.append([leaf.grad for leaf in leaves])
    for ours, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-9, atol=1e-10)


def test_refusals() -> None:
    q, k, v = _tensors(4, 4)
    with pytest.raises(InputError, match="did you mean torch"):
        attention(q, k, v, backend="torhc")
    with pytest.raises(InputError, match="window"):
        attention(q, k, v, window=-1)
    with pytest.raises(InputError, match="divides the 3 query heads"):
        attention(q[:, :3], k, v)
    with pytest.raises(InputError, match="4 queries but only 2 keys"):
        attention(q, k[:, :, :2], v[:, :, :2])
