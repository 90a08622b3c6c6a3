"""How the parts of a linear mixer that no attention layer has start in a conversion: so that they change least.

Short convolutions pass each token through (the last tap is one, the others zero), JetBlock's kernel generator gives
that kernel for every token. Write strengths start at one half for every token. Decays do not depend on the token at
first; their rates lie evenly in the logarithm from 0.001 to 0.1 per token over the heads (GLA: over the channels), so
that some heads remember ten tokens and some a thousand. RG-LRU's gates are half open, its output gate, a GELU with a
bias, lets everything pass. The other output gates are SiLU without a bias: no weights make them a constant other than
zero, so they start like other new weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hwsearch.searchspace.mixers import GLA, RGLRU, DeltaNet, GatedDeltaNet, JetBlock, Mamba2, MixerSpec

__all__ = ["neutral_start"]

_GELU_IS_ONE = 1.1446
_GLA_TEMPERATURE = 16  # its log decay is logsigmoid(gate) / 16


def neutral_start(spec: MixerSpec, hidden_size: int) -> dict[str, Tensor]:
    """State-dict entries of a linear mixer's gates and convolutions."""
    match spec:
        case GatedDeltaNet():
            return {
                **_convolutions(
                    spec.num_k_heads * spec.head_k_dim, spec.num_v_heads * spec.head_v_dim, spec.conv_size
                ),
                **_write_strength(spec.num_v_heads, hidden_size),
                **_decay(spec.num_v_heads, hidden_size),
            }
        case DeltaNet():
            return {
                **_convolutions(
                    spec.num_heads * spec.head_k_dim, spec.num_heads * spec.head_v_dim, spec.conv_size
                ),
                **_write_strength(spec.num_heads, hidden_size),
            }
        case JetBlock():
            kernel = _pass_through(spec.num_heads * spec.head_v_dim, spec.conv_size)
            return {
                "dynamic_conv1d.kernel_generator.w2.bias": kernel.flatten(),
                **_write_strength(spec.num_heads, hidden_size),
                **_decay(spec.num_heads, hidden_size),
            }
        case GLA():
            channels = spec.num_heads * spec.head_k_dim
            kept = torch.exp(-_GLA_TEMPERATURE * _rates(spec.head_k_dim)).repeat(spec.num_heads)
            return {
                "gk_proj.1.weight": torch.zeros(channels, spec.gate_low_rank_dim),
                "gk_proj.1.bias": torch.logit(kept),
            }
        case Mamba2():
            channels = spec.num_heads * spec.head_dim + 2 * spec.n_groups * spec.state_size
            decay = _decay(spec.num_heads, hidden_size)
            return {
                "conv1d.weight": _pass_through(channels, spec.conv_size),
                "conv1d.bias": torch.zeros(channels),
                "A_log": decay["A_log"],
                "dt_bias": decay["dt_bias"],
            }
        case RGLRU():
            block = spec.width // spec.num_heads
            gates = ("input_gate_weight", "recurrent_gate_weight")
            return {
                "conv_1d.weight": _pass_through(spec.width, spec.conv_size),
                "linear_y.weight": torch.zeros(spec.width, hidden_size),
                "linear_y.bias": torch.full((spec.width,), _GELU_IS_ONE),
                **{f"rg_lru.{name}": torch.zeros(spec.num_heads, block, block) for name in gates},
            }
        case _:
            return {}


def _rates(count: int) -> Tensor:
    """Decay rates per token, from 0.001 to 0.1, (count,)."""
    return torch.logspace(-3, -1, count)


def _decay(heads: int, hidden_size: int) -> dict[str, Tensor]:
    """exp(A_log) is one; the softplus of dt_bias is the rate."""
    return {
        "a_proj.weight": torch.zeros(heads, hidden_size),
        "A_log": torch.zeros(heads),
        "dt_bias": torch.log(torch.expm1(_rates(heads))),
    }


def _write_strength(heads: int, hidden_size: int) -> dict[str, Tensor]:
    return {"b_proj.weight": torch.zeros(heads, hidden_size)}


def _convolutions(keys: int, values: int, width: int) -> dict[str, Tensor]:
    channels = {"q": keys, "k": keys, "v": values}
    return {f"{part}_conv1d.weight": _pass_through(count, width) for part, count in channels.items()}


def _pass_through(channels: int, width: int) -> Tensor:
    """A kernel for each channel that weighs the newest token alone, (channels, 1, width)."""
    kernel = torch.zeros(channels, 1, width)
    kernel[..., -1] = 1
    return kernel
