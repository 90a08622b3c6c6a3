"""Mixers around gated linear attention: GLA (arXiv 2312.06635), RetNet (arXiv 2307.08621) and Mamba-2 (arXiv
2405.21060), with the layer layouts of flash-linear-attention."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from hwsearch.operators import STATE_BYTES, Operator, operator
from hwsearch.searchspace.mixers.base import LinearMixer, elementwise, linear, short_conv
from hwsearch.searchspace.spec import PositiveInt
from hwsearch.searchspace.workload import Workload

__all__ = ["GLA", "Mamba2", "RetNet"]


class _Retentive(LinearMixer):
    """q, k, v and an output gate of their own projections; a state of head_k_dim x head_v_dim per head."""

    num_heads: PositiveInt
    head_k_dim: PositiveInt
    head_v_dim: PositiveInt

    @property
    def _key_size(self) -> int:
        return self.num_heads * self.head_k_dim

    @property
    def _value_size(self) -> int:
        return self.num_heads * self.head_v_dim

    @property
    def label(self) -> str:
        return f"{self.num_heads} heads x {self.head_k_dim}/{self.head_v_dim}"

    def parameters(self, hidden_size: int) -> int:
        return hidden_size * (2 * self._key_size + 3 * self._value_size) + self.head_v_dim

    def cache_bytes(self, context: int, element_bytes: int) -> int:
        return STATE_BYTES * self.num_heads * self.head_k_dim * self.head_v_dim

    def _attend(self, workload: Workload, gate_dim: int) -> Operator:
        return linear_attention(
            workload,
            num_k_heads=self.num_heads,
            num_v_heads=self.num_heads,
            head_k_dim=self.head_k_dim,
            head_v_dim=self.head_v_dim,
            gate_dim=gate_dim,
        )


class GLA(_Retentive):
    """Gated linear attention: a decay per key channel, from a low-rank projection."""

    kind: Literal["gla"] = "gla"
    gate_low_rank_dim: PositiveInt = 16

    def parameters(self, hidden_size: int) -> int:
        gate = (hidden_size + self._key_size) * self.gate_low_rank_dim + self._key_size
        return super().parameters(hidden_size) + gate

    def lower(self, hidden_size: int, workload: Workload) -> tuple[Operator, ...]:
        return (
            linear(workload, hidden_size, 2 * self._key_size + 2 * self._value_size),
            linear(workload, hidden_size, self.gate_low_rank_dim),
            linear(workload, self.gate_low_rank_dim, self._key_size),
            elementwise(workload, self._key_size, reads=1, writes=1),
            self._attend(workload, self.head_k_dim),
            elementwise(workload, self._value_size, reads=2, writes=1),
            linear(workload, self._value_size, hidden_size),
        )


class RetNet(_Retentive):
    """Multi-scale retention: a fixed decay per head, rotary embedding of queries and keys."""

    kind: Literal["retnet"] = "retnet"

    @model_validator(mode="after")
    def _pairs(self) -> RetNet:
        if self.head_k_dim % 2:
            raise ValueError(
                f"head_k_dim {self.head_k_dim} is odd; a rotary embedding turns pairs of channels"
            )
        return self

    def lower(self, hidden_size: int, workload: Workload) -> tuple[Operator, ...]:
        return (
            linear(workload, hidden_size, 2 * self._key_size + 2 * self._value_size),
            elementwise(workload, 2 * self._key_size, reads=1, writes=1),
            self._attend(workload, 1),
            elementwise(workload, self._value_size, reads=2, writes=1),
            linear(workload, self._value_size, hidden_size),
        )


class Mamba2(LinearMixer):
    """State-space duality: a decay per head and token; keys and queries of state_size shared within n_groups."""

    kind: Literal["mamba2"] = "mamba2"
    num_heads: PositiveInt
    head_dim: PositiveInt
    state_size: PositiveInt = 128
    n_groups: PositiveInt = 1
    conv_size: PositiveInt = 4

    @model_validator(mode="after")
    def _groups(self) -> Mamba2:
        if self.num_heads % self.n_groups:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of n_groups {self.n_groups}")
        return self

    @property
    def _inner_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def _conv_channels(self) -> int:
        return self._inner_size + 2 * self.n_groups * self.state_size

    @property
    def label(self) -> str:
        return f"{self.num_heads} heads x {self.state_size}/{self.head_dim}"

    def parameters(self, hidden_size: int) -> int:
        inputs = hidden_size * (self._inner_size + self._conv_channels + self.num_heads)
        convolution = self._conv_channels * (self.conv_size + 1)
        return inputs + convolution + 3 * self.num_heads + self._inner_size + self._inner_size * hidden_size

    def lower(self, hidden_size: int, workload: Workload) -> tuple[Operator, ...]:
        return (
            linear(workload, hidden_size, self._inner_size + self._conv_channels + self.num_heads),
            elementwise(workload, self.num_heads, reads=1, writes=2),  # step sizes and decays
            short_conv(workload, self._conv_channels, self.conv_size),
            linear_attention(
                workload,
                num_k_heads=self.n_groups,
                num_v_heads=self.num_heads,
                head_k_dim=self.state_size,
                head_v_dim=self.head_dim,
                gate_dim=1,
            ),
            elementwise(workload, self._inner_size, reads=3, writes=1),  # skip, gate and norm
            linear(workload, self._inner_size, hidden_size),
        )

    def cache_bytes(self, context: int, element_bytes: int) -> int:
        return STATE_BYTES * self._inner_size * self.state_size

    def conv_state_bytes(self, element_bytes: int) -> int:
        return self.conv_size * self._conv_channels * element_bytes


def linear_attention(
    workload: Workload,
    *,
    num_k_heads: int,
    num_v_heads: int,
    head_k_dim: int,
    head_v_dim: int,
    gate_dim: int,
) -> Operator:
    """The gated-linear-attention operator of the workload's phase; gate_dim decays per head."""
    heads = {
        "num_k_heads": num_k_heads,
        "num_v_heads": num_v_heads,
        "head_k_dim": head_k_dim,
        "head_v_dim": head_v_dim,
        "gate_dim": gate_dim,
    }
    if workload.phase == "prefill":
        return operator("linear_attention_prefill", batch=workload.batch, seq_len=workload.context, **heads)
    return operator("linear_attention_decode", batch=workload.batch, **heads)
