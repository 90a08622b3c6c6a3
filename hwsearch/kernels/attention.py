"""Causal softmax attention: prefill, prefill after cached tokens, decode, with a sliding window and with GQA.

Two backends. "reference" materialises the scores. "torch" uses F.scaled_dot_product_attention and never does
the quadratic work of a mask:
- prefill from an empty cache and without a window is one causal call;
- otherwise queries go block by block, each block seeing only the keys that some query of it can see;
- decode slices the cache to the window.
In the last two cases the query heads of a group are packed into rows, so that every fused kernel of PyTorch
takes the call (the memory-efficient one has no grouped heads) and the cache is read once per group.

Options of the weights: a sink logit per head, which takes its share of the softmax and carries no value, and sigmoid
scores, sigmoid(score - log of the number of visible keys) without any normalisation (arXiv 2409.04431).

A mask of real tokens serves padded batches: no query sees a padded key but its own, which keeps the outputs of padded
queries finite.

Shapes: queries (B, H, T, D), keys and values (B, H_kv, S, D) with S >= T; the T queries are the last T of the
S positions. H_kv divides H; query head h reads key head h // (H / H_kv). Mask (B, S) of bool, False where padded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hwsearch.errors import InputError
from hwsearch.kernels import choose

__all__ = ["BACKENDS", "attention", "reference_attention", "torch_attention", "torch_path"]

_CAUSAL_BLOCK = 512  # queries per call after cached tokens
_LEAST_BLOCK = 128  # fewer queries per call and the calls cost more than the masked pairs they avoid


def attention(
    q_BHTD: Tensor,
    k_BHSD: Tensor,
    v_BHSD: Tensor,
    *,
    window: int = 0,
    mask_BS: Tensor | None = None,
    sinks_H: Tensor | None = None,
    sigmoid: bool = False,
    backend: str = "torch",
) -> Tensor:
    """Causal attention output (B, H, T, D), scores scaled by 1 / sqrt(D).

    window: tokens each query sees, itself included; 0 for all before it. T = 1 is a decode step.
    sinks_H: a logit per query head. sigmoid: sigmoid scores instead of a softmax; takes no sinks.
    Raises InputError for shapes that do not fit, a negative window, sinks with sigmoid, or an unknown backend.
    """
    heads, kv_heads = q_BHTD.shape[1], k_BHSD.shape[1]
    if k_BHSD.shape != v_BHSD.shape or heads % kv_heads:
        raise InputError(
            f"attention: keys {tuple(k_BHSD.shape)} and values {tuple(v_BHSD.shape)} must have one shape and "
            f"a number of heads that divides the {heads} query heads"
        )
    if k_BHSD.shape[2] < q_BHTD.shape[2]:
        raise InputError(f"attention: {q_BHTD.shape[2]} queries but only {k_BHSD.shape[2]} keys")
    if window < 0:
        raise InputError(f"attention: window must be 0 (none) or positive, got {window}")
    if mask_BS is not None and mask_BS.shape != (k_BHSD.shape[0], k_BHSD.shape[2]):
        raise InputError(
            f"attention: mask {tuple(mask_BS.shape)} must be {(k_BHSD.shape[0], k_BHSD.shape[2])}"
        )
    if sinks_H is not None and (sigmoid or sinks_H.shape != (heads,)):
        raise InputError(
            f"attention: sinks {tuple(sinks_H.shape)} must be {(heads,)}, and sigmoid scores take none"
        )
    run = choose("attention", backend=backend, implementations=BACKENDS)
    return run(q_BHTD, k_BHSD, v_BHSD, window, mask_BS, sinks_H, sigmoid)


def reference_attention(
    q_BHTD: Tensor,
    k_BHSD: Tensor,
    v_BHSD: Tensor,
    window: int,
    mask_BS: Tensor | None = None,
    sinks_H: Tensor | None = None,
    sigmoid: bool = False,
) -> Tensor:
    """Attention from its definition, with all T x S scores."""
    group = q_BHTD.shape[1] // k_BHSD.shape[1]
    queries, keys = q_BHTD.shape[2], k_BHSD.shape[2]
    k_BHSD = k_BHSD.repeat_interleave(group, dim=1)
    v_BHSD = v_BHSD.repeat_interleave(group, dim=1)
    scores = q_BHTD @ k_BHSD.transpose(-1, -2) / math.sqrt(q_BHTD.shape[-1])
    seen = _seen(keys - queries, keys, 0, keys, window, mask_BS, q_BHTD.device)
    if sigmoid:
        return _sigmoid_weights(scores, seen) @ v_BHSD
    scores = scores.masked_fill(~seen, -math.inf)
    if sinks_H is not None:
        scores = torch.cat((scores, sinks_H[:, None, None].expand(*scores.shape[:-1], 1)), dim=-1)
    return scores.softmax(dim=-1)[..., :keys] @ v_BHSD


def torch_path(
    *, queries: int, keys: int, window: int, plain: bool = True
) -> Literal["packed", "causal", "blocks"]:
    """Which of its three ways `torch_attention` takes for a shape; plain: no mask, no sinks, no sigmoid."""
    if queries == 1:
        return "packed"
    return "causal" if queries == keys and plain and (window == 0 or window >= keys) else "blocks"


def torch_attention(
    q_BHTD: Tensor,
    k_BHSD: Tensor,
    v_BHSD: Tensor,
    window: int,
    mask_BS: Tensor | None = None,
    sinks_H: Tensor | None = None,
    sigmoid: bool = False,
) -> Tensor:
    """Attention through F.scaled_dot_product_attention, over the visible keys only."""
    queries, keys = q_BHTD.shape[2], k_BHSD.shape[2]
    past = keys - queries
    plain = mask_BS is None and sinks_H is None and not sigmoid
    path = torch_path(queries=queries, keys=keys, window=window, plain=plain)
    if path == "packed":
        first = max(0, keys - window) if window else 0
        seen = None
        if mask_BS is not None:
            seen = _seen(past, keys, first, keys, 0, mask_BS, q_BHTD.device)
        return _packed(q_BHTD, k_BHSD[:, :, first:], v_BHSD[:, :, first:], seen, sinks_H, sigmoid)
    if path == "causal":
        grouped = q_BHTD.shape[1] != k_BHSD.shape[1]
        return F.scaled_dot_product_attention(q_BHTD, k_BHSD, v_BHSD, is_causal=True, enable_gqa=grouped)
    block = max(_LEAST_BLOCK, window // 2) if window else _CAUSAL_BLOCK
    outputs = []
    for start in range(0, queries, block):
        stop = min(start + block, queries)
        first = max(0, past + start - window + 1) if window else 0
        k_block, v_block = (x[:, :, first : past + stop] for x in (k_BHSD, v_BHSD))
        seen = _seen(past + start, past + stop, first, past + stop, window, mask_BS, q_BHTD.device)
        outputs.append(_packed(q_BHTD[:, :, start:stop], k_block, v_block, seen, sinks_H, sigmoid))
    return torch.cat(outputs, dim=2)


def _seen(
    first_query: int,
    last_query: int,
    first_key: int,
    last_key: int,
    window: int,
    mask_BS: Tensor | None,
    device: torch.device,
) -> Tensor:
    """Which key positions each query position attends to: bool, (queries, keys), or (B, 1, queries, keys) if masked."""
    query = torch.arange(first_query, last_query, device=device)[:, None]
    key = torch.arange(first_key, last_key, device=device)[None, :]
    seen = key <= query
    if window:
        seen = seen & (key > query - window)
    if mask_BS is not None:
        seen = (seen & mask_BS[:, None, None, first_key:last_key]) | (key == query)
    return seen


def _packed(
    q_BHTD: Tensor,
    k_BHSD: Tensor,
    v_BHSD: Tensor,
    seen: Tensor | None,
    sinks_H: Tensor | None,
    sigmoid: bool,
) -> Tensor:
    """Attention with the query heads of each group as rows: (B, H_kv, group * T, D) against (B, H_kv, S, D)."""
    batch, heads, length, head_dim = q_BHTD.shape
    group = heads // k_BHSD.shape[1]
    rows = q_BHTD.reshape(batch, -1, group * length, head_dim)
    mask = None if seen is None else torch.cat([seen] * group, dim=-2)
    if sigmoid:
        scores = rows @ k_BHSD.transpose(-1, -2) / math.sqrt(head_dim)
        weights = _sigmoid_weights(
            scores, torch.ones_like(scores, dtype=torch.bool) if mask is None else mask
        )
        return (weights @ v_BHSD).reshape(q_BHTD.shape)
    if sinks_H is not None:
        k_BHSD, v_BHSD, mask = _with_sink(rows, k_BHSD, v_BHSD, mask, sinks_H, length)
    return F.scaled_dot_product_attention(rows, k_BHSD, v_BHSD, attn_mask=mask).reshape(q_BHTD.shape)


def _with_sink(
    rows: Tensor, k_BHSD: Tensor, v_BHSD: Tensor, mask: Tensor | None, sinks_H: Tensor, length: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, values and an additive mask with one key more, all zero, whose score is the head's sink."""
    keys = k_BHSD.shape[2]
    bias = rows.new_zeros((1, 1, 1, keys))
    if mask is not None:
        bias = bias.masked_fill(~mask, -math.inf)
    sinks = sinks_H.to(rows.dtype).reshape(1, k_BHSD.shape[1], -1, 1).repeat_interleave(length, dim=2)
    shape = (max(bias.shape[0], 1), k_BHSD.shape[1], rows.shape[2])
    bias = torch.cat((bias.expand(*shape, keys), sinks.expand(*shape, 1)), dim=-1)
    zero = torch.zeros_like(k_BHSD[:, :, :1])
    return torch.cat((k_BHSD, zero), dim=2), torch.cat((v_BHSD, zero), dim=2), bias


def _sigmoid_weights(scores: Tensor, seen: Tensor) -> Tensor:
    """sigmoid(score - log of how many keys the query sees), zero where it does not see.

    In fp32 (fp64 for fp64): in bf16 the logarithm of a thousand keys is off by more than a percent of the weight.
    """
    dtype = torch.promote_types(scores.dtype, torch.float32)
    visible = seen.sum(dim=-1, keepdim=True).to(dtype)
    return torch.sigmoid(scores.to(dtype) - visible.log()).masked_fill(~seen, 0).to(scores.dtype)


_Attention = Callable[[Tensor, Tensor, Tensor, int, Tensor | None, Tensor | None, bool], Tensor]

BACKENDS: Mapping[str, _Attention] = {
    "reference": reference_attention,
    "torch": torch_attention,
}
