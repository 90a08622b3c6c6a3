"""The rule of RWKV-7 (Peng et al., arXiv 2503.14456): a delta rule whose decay is a vector and whose removal key and
replacement key differ.

Per head, with log decays w_t and vectors a_t, b_t over the key channels:
    S_t = diag(e^{w_t}) S_{t-1} + b_t (a_t^T S_{t-1}) + k_t v_t^T,   o_t = S_t^T r_t

Shapes: r, w, k, a, b (B, T, H, K); v (B, T, H, V); state (B, H, K, V). The arithmetic and the state are fp32 (fp64
for fp64 inputs). Log decays lie between LEAST_LOG_DECAY and 0, as RWKV-7's do by construction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from hwsearch.errors import InputError
from hwsearch.kernels import resolve
from hwsearch.kernels.chunks import arithmetic, without_autocast
from hwsearch.kernels.rwkv7.chunked import LEAST_LOG_DECAY, chunked_rwkv7
from hwsearch.kernels.rwkv7.fla import fla_rwkv7
from hwsearch.kernels.rwkv7.reference import recurrent_rwkv7, rwkv7_step

__all__ = ["BACKENDS", "LEAST_LOG_DECAY", "rwkv7", "rwkv7_step"]

_Rule = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def torch_rwkv7(
    r_BTHK: Tensor,
    w_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    a_BTHK: Tensor,
    b_BTHK: Tensor,
    state_BHKV: Tensor,
) -> tuple[Tensor, Tensor]:
    """The step for one token, the chunked form for more."""
    if v_BTHV.shape[1] > 1:
        return chunked_rwkv7(r_BTHK, w_BTHK, k_BTHK, v_BTHV, a_BTHK, b_BTHK, state_BHKV)
    out, state = rwkv7_step(
        r_BTHK[:, 0], w_BTHK[:, 0], k_BTHK[:, 0], v_BTHV[:, 0], a_BTHK[:, 0], b_BTHK[:, 0], state_BHKV
    )
    return out[:, None], state


BACKENDS: Mapping[str, _Rule] = {"reference": recurrent_rwkv7, "torch": torch_rwkv7, "fla": fla_rwkv7}


@without_autocast
def rwkv7(
    r_BTHK: Tensor,
    w_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    a_BTHK: Tensor,
    b_BTHK: Tensor,
    *,
    state_BHKV: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Outputs (B, T, H, V) in the dtype of v, and the state after the last token (B, H, K, V).

    state_BHKV: the state to start from, zero where None.
    Raises InputError for shapes that do not fit or a backend that cannot run here.
    """
    alike = {tuple(x.shape) for x in (r_BTHK, w_BTHK, k_BTHK, a_BTHK, b_BTHK)}
    if len(alike) != 1 or k_BTHK.shape[:3] != v_BTHV.shape[:3]:
        raise InputError(
            f"rwkv7: r, w, k, a and b must have one shape, got {sorted(alike)}, and the values "
            f"{tuple(v_BTHV.shape)} must agree with it but for the last dimension"
        )
    state_shape = (v_BTHV.shape[0], v_BTHV.shape[2], k_BTHK.shape[3], v_BTHV.shape[3])
    if state_BHKV is None:
        state_BHKV = torch.zeros(state_shape, dtype=arithmetic(v_BTHV), device=v_BTHV.device)
    elif state_BHKV.shape != state_shape:
        raise InputError(f"rwkv7: state {tuple(state_BHKV.shape)} must be {state_shape}")
    backend = resolve("rwkv7", backend=backend, device_type=v_BTHV.device.type, implementations=BACKENDS)
    return BACKENDS[backend](r_BTHK, w_BTHK, k_BTHK, v_BTHV, a_BTHK, b_BTHK, state_BHKV)
