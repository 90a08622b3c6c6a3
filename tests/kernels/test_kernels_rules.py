"""Every recurrent rule against its recurrence in fp64: outputs, states and gradients, whole and in pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from hwsearch.errors import InputError
from hwsearch.kernels.delta_rule import delta_rule
from hwsearch.kernels.diagonal import diagonal_scan, diagonal_ssm
from hwsearch.kernels.dynamic_conv import dynamic_conv
from hwsearch.kernels.linear_attention import linear_attention
from hwsearch.kernels.rwkv7 import rwkv7

Rule = Callable[..., tuple[Tensor, Tensor]]
B, H, K, V, D, N = 2, 3, 8, 12, 10, 5
LENGTHS = [1, 2, 63, 65, 127, 1000]


def _delta(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor, *, state: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    return delta_rule(q, k, v, -0.2 * g.abs(), b.sigmoid(), state_BHKV=state, backend=backend)


def _linear(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, *, state: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    return linear_attention(q, k, v, -0.2 * g.abs(), scale=0.3, state_BHKV=state, backend=backend)


def _rwkv7(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, *, state: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    unit = torch.nn.functional.normalize(a, dim=-1)
    decay = -0.6065 * w.sigmoid()
    return rwkv7(r, decay, k, v, -unit, unit * b.sigmoid(), state_BHKV=state, backend=backend)


def _scan(a: Tensor, x: Tensor, *, state: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    return diagonal_scan(a.sigmoid(), x, state_BD=state, backend=backend)


def _ssm(x: Tensor, *, state: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(9)
    g, b, c = (torch.randn(D, N, generator=generator, dtype=torch.float64).to(x.dtype) for _ in range(3))
    return diagonal_ssm(x, -0.2 * g.abs(), b, c, state_BDN=state, backend=backend)


def _conv(x: Tensor, taps: Tensor, *, state: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    return dynamic_conv(x, taps, state_BWD=state.to(x.dtype), backend=backend)


keys, values, gates = (H, K), (H, V), (H,)
# The rule, the shapes of its tokens after (B, T), the shape of its state after B.
RULES: dict[str, tuple[Rule, list[tuple[int, ...]], tuple[int, ...]]] = {
    "delta_rule": (_delta, [keys, keys, values, gates, gates], (H, K, V)),
    "linear_attention_head": (_linear, [(1, K), (1, K), values, (H, 1)], (H, K, V)),
    "linear_attention_channel": (_linear, [keys, keys, values, keys], (H, K, V)),
    "rwkv7": (_rwkv7, [keys, keys, keys, values, keys, keys], (H, K, V)),
    "diagonal_scan": (_scan, [(D,), (D,)], (D,)),
    "diagonal_ssm": (_ssm, [(D,)], (D, N)),
    "dynamic_conv": (_conv, [(D,), (D, 4)], (4, D)),
}


def _tensors(name: str, length: int) -> tuple[Rule, list[Tensor], Tensor]:
    rule, tokens, state = RULES[name]
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    batch = 1 if length > 500 else B  # the recurrences take their time
    return rule, [normal(batch, length, *shape) for shape in tokens], normal(batch, *state)


def _error(ours: Tensor, expected: Tensor) -> float:
    ours, expected = ours.detach().double(), expected.detach().double()
    return float((ours - expected).norm() / expected.norm())


def _trained(rule: Rule, tokens: list[Tensor], state: Tensor, backend: str) -> list[Tensor]:
    """Output, last state, and the gradients of everything."""
    leaves = [x.clone().requires_grad_() for x in (*tokens, state)]
    out, last = rule(*leaves[:-1], state=leaves[-1], backend=backend)
    (out.double().square().sum() + last.double().square().sum()).backward()  # type: ignore[no-untyped-call]
    return [out, last, *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Every tensor that is allocated without being written holds NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", sorted(RULES))
def test_fp32_within_1e_5_of_the_fp64_recurrence(name: str, length: int) -> None:
    rule, tokens, state = _tensors(name, length)
    expected = _trained(rule, tokens, state, "reference")
    ours = _trained(rule, [x.float() for x in tokens], state.float(), "torch")
    assert max(_error(a, b) for a, b in zip(ours, expected, strict=True)) <= 1e-5


@pytest.mark.parametrize("length", [1, 65, 127])
@pytest.mark.parametrize("name", sorted(RULES))
def test_bf16_within_1e_2(name: str, length: int) -> None:
    rule, tokens, state = _tensors(name, length)
    low = [x.bfloat16() for x in tokens]
    state = state.bfloat16().float()
    expected = _trained(rule, [x.double() for x in low], state.double(), "reference")
    ours = _trained(rule, low, state, "torch")
    assert ours[0].dtype == torch.bfloat16
    assert max(_error(a, b) for a, b in zip(ours, expected, strict=True)) <= 1e-2


@pytest.mark.parametrize("pieces", [[1, 126], [64, 63], [5, 60, 62]])
@pytest.mark.parametrize("name", sorted(RULES))
def test_pieces_equal_one(name: str, pieces: list[int]) -> None:
    rule, tokens, state = _tensors(name, 127)
    whole, last = rule(*tokens, state=state, backend="torch")
    outputs, start = [], 0
    for piece in pieces:
        part = [x[:, start : start + piece] for x in tokens]
        out, state = rule(*part, state=state, backend="torch")
        outputs.append(out)
        start += piece
    assert _error(torch.cat(outputs, dim=1), whole) < 1e-12
    assert _error(state, last) < 1e-12


@pytest.mark.parametrize("strength", [0.0, 3.0, 200.0])
def test_decays_of_any_strength(strength: float) -> None:
    _, (q, k, v, g), state = _tensors("linear_attention_channel", 70)
    found = [
        linear_attention(q, k, v, -strength * g.abs(), scale=1.0, state_BHKV=state, backend=backend)[0]
        for backend in ("torch", "reference")
    ]
    assert _error(*found) < 1e-12


def test_refusals() -> None:
    _, (q, k, v, g), _ = _tensors("linear_attention_channel", 4)
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
