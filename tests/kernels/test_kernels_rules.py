"""Every operator's torch backend against its definition in fp64: outputs, states and gradients, whole and in pieces."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from hwsearch.errors import InputError
from hwsearch.kernels.diagonal import diagonal_scan
from hwsearch.kernels.dynamic_conv import dynamic_conv
from hwsearch.kernels.linear_attention import linear_attention
from hwsearch.kernels.rwkv7 import rwkv7
from tests.kernels.rules import LENGTHS, RULES, check_accuracy, check_pieces, error, tensors


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Every tensor that is allocated without being written holds NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", sorted(RULES))
def test_within_the_tolerance_of_the_fp64_recurrence(name: str, length: int, dtype: torch.dtype) -> None:
    check_accuracy(name, length, dtype)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("pieces", [[1, 126], [64, 63], [5, 60, 62]], ids=str)
@pytest.mark.parametrize("name", sorted(RULES))
def test_pieces_equal_one(name: str, pieces: list[int]) -> None:
    check_pieces(name, pieces, torch.float64, tolerance=1e-12)


@pytest.mark.parametrize("strength", [0.0, 3.0, 200.0])
def test_decays_of_any_strength(strength: float) -> None:
    _, (q, k, v, g), state = tensors("linear_attention_channel", 70)
    found = [
        linear_attention(q, k, v, -strength * g.abs(), scale=1.0, state_BHKV=state, backend=backend)[0]
        for backend in ("torch", "reference")
    ]
    assert error(*found) < 1e-12


def test_refusals() -> None:
    _, (q, k, v, g), _ = tensors("linear_attention_channel", 4)
    with pytest.raises(InputError, match="must divide"):
        linear_attention(q[:, :, :2], k[:, :, :2], v, g, scale=1.0)
    with pytest.raises(InputError, match="gates"):
        linear_attention(q, k, v, g[..., :2], scale=1.0)
    with pytest.raises(InputError, match="one shape"):
        rwkv7(q, k, k, v, k, k[:, :2])
    with pytest.raises(InputError, match="differ"):
        diagonal_scan(v[..., 0], v[:, :2, :, 0])
    with pytest.raises(InputError, match="taps"):
        dynamic_conv(v[..., 0], v[:, :2])
