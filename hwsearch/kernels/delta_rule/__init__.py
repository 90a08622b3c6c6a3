"""The gated delta rule: token by token, in chunks, and one step of decoding.

Per head, with log decay g_t and write strength beta_t, q and k L2-normalised:
    S_t = e^{g_t} S_{t-1} + beta_t k_t (v_t - k_t^T e^{g_t} S_{t-1})^T,   o_t = S_t^T q_t / sqrt(d_k)
A log decay of zero everywhere gives the delta rule without gates (Yang et al., arXiv 2406.06484).

Shapes: q, k (B, T, H_k, K); v (B, T, H_v, V); g, beta (B, T, H_v); state (B, H_v, K, V). H_k divides H_v: value
head h reads key head h // (H_v / H_k). The arithmetic and the state are fp32 (fp64 for fp64 inputs).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from hwsearch.errors import InputError
from hwsearch.kernels import resolve
from hwsearch.kernels.chunks import arithmetic, without_autocast
from hwsearch.kernels.delta_rule.chunked import CHUNK, chunked_delta_rule
from hwsearch.kernels.delta_rule.fla import fla_delta_rule
from hwsearch.kernels.delta_rule.reference import delta_rule_step, recurrent_delta_rule

__all__ = ["BACKENDS", "CHUNK", "delta_rule", "delta_rule_step"]

_Rule = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def torch_delta_rule(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, g_BTH: Tensor, beta_BTH: Tensor, state_BHKV: Tensor
) -> tuple[Tensor, Tensor]:
    """The step for one token, the chunked form for more."""
    if v_BTHV.shape[1] > 1:
        return chunked_delta_rule(q_BTHK, k_BTHK, v_BTHV, g_BTH, beta_BTH, state_BHKV)
    out, state = delta_rule_step(
        q_BTHK[:, 0], k_BTHK[:, 0], v_BTHV[:, 0], g_BTH[:, 0], beta_BTH[:, 0], state_BHKV
    )
    return out[:, None], state


def triton_delta_step(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, g_BTH: Tensor, beta_BTH: Tensor, state_BHKV: Tensor
) -> tuple[Tensor, Tensor]:
    """This package's kernel, for one token."""
    from hwsearch.kernels.delta_rule.triton import fused_delta_step

    q, k, v, g, beta = (x[:, 0] for x in (q_BTHK, k_BTHK, v_BTHV, g_BTH, beta_BTH))
    out, state = fused_delta_step(q, k, v, g, beta, state_BHKV)
    return out[:, None], state


BACKENDS: Mapping[str, _Rule] = {
    "reference": recurrent_delta_rule,
    "torch": torch_delta_rule,
    "fla": fla_delta_rule,
}
# Only where asked for: "auto" takes fla's step until the two have been measured side by side.
_STEP_BACKENDS: Mapping[str, _Rule] = {**BACKENDS, "triton": triton_delta_step}


@without_autocast
def delta_rule(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    g_BTH: Tensor,
    beta_BTH: Tensor,
    *,
    state_BHKV: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Outputs (B, T, H_v, V) in the dtype of v, and the state after the last token (B, H_v, K, V).

    g_BTH: log decay, at most 0. state_BHKV: the state to start from, zero where None.
    Raises InputError for shapes that do not fit or a backend that cannot run here.
    """
    heads, value_heads = k_BTHK.shape[2], v_BTHV.shape[2]
    if q_BTHK.shape != k_BTHK.shape or q_BTHK.shape[:2] != v_BTHV.shape[:2] or value_heads % heads:
        raise InputError(
            f"delta rule: queries {tuple(q_BTHK.shape)}, keys {tuple(k_BTHK.shape)} and values "
            f"{tuple(v_BTHV.shape)} do not fit: the number of key heads must divide that of the value heads"
        )
    if g_BTH.shape != v_BTHV.shape[:3] or beta_BTH.shape != v_BTHV.shape[:3]:
        raise InputError(
            f"delta rule: gates {tuple(g_BTH.shape)} and {tuple(beta_BTH.shape)} must have the values' shape "
            f"{tuple(v_BTHV.shape[:3])} without the last dimension"
        )
    state_shape = (v_BTHV.shape[0], value_heads, k_BTHK.shape[3], v_BTHV.shape[3])
    if state_BHKV is None:
        state_BHKV = torch.zeros(state_shape, dtype=arithmetic(v_BTHV), device=v_BTHV.device)
    elif state_BHKV.shape != state_shape:
        raise InputError(f"delta rule: state {tuple(state_BHKV.shape)} must be {state_shape}")
    known = BACKENDS
    if backend == "triton":
        if v_BTHV.shape[1] > 1 or torch.is_grad_enabled():
            raise InputError(
                f"delta rule: backend triton is one step without gradients, and here are {v_BTHV.shape[1]} tokens "
                f"with gradients {'on' if torch.is_grad_enabled() else 'off'}: use backend auto, fla or torch"
            )
        known = _STEP_BACKENDS
    backend = resolve("delta rule", backend=backend, device_type=v_BTHV.device.type, implementations=known)
    return known[backend](q_BTHK, k_BTHK, v_BTHV, g_BTH, beta_BTH, state_BHKV)
