"""Mixers around the delta rule: DeltaNet (arXiv 2406.06484), gated DeltaNet (arXiv 2412.06464) and JetBlock
(arXiv 2508.15884), with the layer layouts of flash-linear-attention and of NVIDIA's published model code."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from hwsearch.operators import STATE_BYTES, Operator, operator
from hwsearch.searchspace.mixers.base import LinearMixer, elementwise, linear, short_conv
from hwsearch.searchspace.spec import PositiveInt
from hwsearch.searchspace.workload import Workload

__all__ = ["DeltaNet", "GatedDeltaNet", "JetBlock"]


class DeltaNet(LinearMixer):
    """Delta rule without decay, with short convolutions on q, k and v and an output norm."""

    kind: Literal["delta_net"] = "delta_net"
    num_heads: PositiveInt
    head_k_dim: PositiveInt
    head_v_dim: PositiveInt
    conv_size: PositiveInt = 4

    @property
    def _key_size(self) -> int:
        return self.num_heads * self.head_k_dim

    @property
    def _value_size(self) -> int:
        return self.num_heads * self.head_v_dim

    @property
    def _conv_channels(self) -> int:
        return 2 * self._key_size + self._value_size

    @property
    def label(self) -> str:
        return f"{self.num_heads} heads x {self.head_k_dim}/{self.head_v_dim}"

    def parameters(self, hidden_size: int) -> int:
        projections = hidden_size * (2 * self._key_size + 2 * self._value_size + self.num_heads)
        return projections + self.conv_size * self._conv_channels + self.head_v_dim

    def lower(self, hidden_size: int, workload: Workload) -> tuple[Operator, ...]:
        return (
            linear(workload, hidden_size, 2 * self._key_size + self._value_size),
            linear(workload, hidden_size, self.num_heads),
            elementwise(workload, self.num_heads, reads=1, writes=1),
            short_conv(workload, self._conv_channels, self.conv_size),
            delta_rule(
                workload,
                num_k_heads=self.num_heads,
                num_v_heads=self.num_heads,
                head_k_dim=self.head_k_dim,
                head_v_dim=self.head_v_dim,
            ),
            elementwise(workload, self._value_size, reads=1, writes=1),
            linear(workload, self._value_size, hidden_size),
        )

    def cache_bytes(self, context: int, element_bytes: int) -> int:
        return STATE_BYTES * self.num_heads * self.head_k_dim * self.head_v_dim

    def conv_state_bytes(self, element_bytes: int) -> int:
        return self.conv_size * self._conv_channels * element_bytes


class GatedDeltaNet(LinearMixer):
    """Gated delta rule with short convolutions on q, k and v and a gated output norm.

    Several value heads may share a key head (num_v_heads a multiple of num_k_heads).
    """

    kind: Literal["gated_delta_net"] = "gated_delta_net"
    num_k_heads: PositiveInt
    num_v_heads: PositiveInt
    head_k_dim: PositiveInt
    head_v_dim: PositiveInt
    conv_size: PositiveInt = 4

    @model_validator(mode="after")
    def _groups(self) -> GatedDeltaNet:
        if self.num_v_heads % self.num_k_heads:
            raise ValueError(
                f"num_v_heads {self.num_v_heads} is not a multiple of num_k_heads {self.num_k_heads}"
            )
        return self

    @property
    def _key_size(self) -> int:
        return self.num_k_heads * self.head_k_dim

    @property
    def _value_size(self) -> int:
        return self.num_v_heads * self.head_v_dim

    @property
    def _conv_channels(self) -> int:
        return 2 * self._key_size + self._value_size

    @property
    def label(self) -> str:
        return f"{self.num_k_heads}/{self.num_v_heads} heads x {self.head_k_dim}/{self.head_v_dim}"

    def parameters(self, hidden_size: int) -> int:
        projections = hidden_size * (2 * self._key_size + 3 * self._value_size)
        gates = 2 * hidden_size * self.num_v_heads + 2 * self.num_v_heads
        return projections + gates + self.conv_size * self._conv_channels + self.head_v_dim

    def lower(self, hidden_size: int, workload: Workload) -> tuple[Operator, ...]:
        return (
            linear(workload, hidden_size, 2 * self._key_size + 2 * self._value_size),
            linear(workload, hidden_size, 2 * self.num_v_heads),
            elementwise(workload, 2 * self.num_v_heads, reads=1, writes=1),
            short_conv(workload, self._conv_channels, self.conv_size),
            delta_rule(
                workload,
                num_k_heads=self.num_k_heads,
                num_v_heads=self.num_v_heads,
                head_k_dim=self.head_k_dim,
                head_v_dim=self.head_v_dim,
            ),
            elementwise(workload, self._value_size, reads=2, writes=1),
            linear(workload, self._value_size, hidden_size),
        )

    def cache_bytes(self, context: int, element_bytes: int) -> int:
        return STATE_BYTES * self.num_v_heads * self.head_k_dim * self.head_v_dim

    def conv_state_bytes(self, element_bytes: int) -> int:
        return self.conv_size * self._conv_channels * element_bytes


class JetBlock(LinearMixer):
    """Gated delta rule whose values pass a causal convolution with a kernel generated per token.

    The generator is a bottleneck of `generator_reduction`: hidden -> values / reduction -> values x conv_size.
    """

    kind: Literal["jet_block"] = "jet_block"
    num_heads: PositiveInt
    head_k_dim: PositiveInt
    head_v_dim: PositiveInt
    conv_size: PositiveInt = 4
    generator_reduction: PositiveInt = 8

    @model_validator(mode="after")
    def _bottleneck(self) -> JetBlock:
        if self._value_size % self.generator_reduction:
            raise ValueError(
                f"num_heads x head_v_dim = {self._value_size} is not a multiple of generator_reduction "
                f"{self.generator_reduction}"
            )
        return self

    @property
    def _key_size(self) -> int:
        return self.num_heads * self.head_k_dim

    @property
    def _value_size(self) -> int:
        return self.num_heads * self.head_v_dim

    @property
    def _bottleneck_size(self) -> int:
        return self._value_size // self.generator_reduction

    @property
    def label(self) -> str:
        return f"{self.num_heads} heads x {self.head_k_dim}/{self.head_v_dim}"

    def parameters(self, hidden_size: int) -> int:
        projections = hidden_size * (2 * self._key_size + 3 * self._value_size)
        gates = 2 * hidden_size * self.num_heads + 2 * self.num_heads
        taps = self._value_size * self.conv_size
        generator = hidden_size * self._bottleneck_size + self._bottleneck_size * taps + taps
        return projections + gates + generator + self.head_v_dim

    def lower(self, hidden_size: int, workload: Workload) -> tuple[Operator, ...]:
        taps = self._value_size * self.conv_size
        return (
            linear(workload, hidden_size, 2 * self._key_size + 2 * self._value_size),
            linear(workload, hidden_size, 2 * self.num_heads),
            elementwise(workload, 2 * self.num_heads, reads=1, writes=1),
            elementwise(workload, 2 * self._key_size, reads=1, writes=1),  # SiLU of q and k
            linear(workload, hidden_size, self._bottleneck_size),
            elementwise(workload, self._bottleneck_size, reads=1, writes=1),
            linear(workload, self._bottleneck_size, taps),
            # Dynamic convolution: each token reads its own taps beside its values, and one fresh value suffices
            # because the earlier ones are still on chip or in the small convolution state.
            elementwise(workload, self._value_size, reads=1 + self.conv_size, writes=1),
            delta_rule(
                workload,
                num_k_heads=self.num_heads,
                num_v_heads=self.num_heads,
                head_k_dim=self.head_k_dim,
                head_v_dim=self.head_v_dim,
            ),
            elementwise(workload, self._value_size, reads=2, writes=1),
            linear(workload, self._value_size, hidden_size),
        )

    def cache_bytes(self, context: int, element_bytes: int) -> int:
        return STATE_BYTES * self.num_heads * self.head_k_dim * self.head_v_dim

    def conv_state_bytes(self, element_bytes: int) -> int:
        return self.conv_size * self._value_size * element_bytes


def delta_rule(
    workload: Workload, *, num_k_heads: int, num_v_heads: int, head_k_dim: int, head_v_dim: int
) -> Operator:
    """The delta-rule operator of the workload's phase."""
    heads = {
        "num_k_heads": num_k_heads,
        "num_v_heads": num_v_heads,
        "head_k_dim": head_k_dim,
        "head_v_dim": head_v_dim,
    }
    if workload.phase == "prefill":
        return operator("delta_rule_prefill", batch=workload.batch, seq_len=workload.context, **heads)
    return operator("delta_rule_decode", batch=workload.batch, **heads)
