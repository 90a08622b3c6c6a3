"""Mixers with a diagonal recurrence: the RG-LRU block of Griffin (arXiv 2402.19427), in the layout of
RecurrentGemma, and a diagonal state-space model behind a shift, after H3 (arXiv 2212.14052) and GSS (arXiv
2206.13947)."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from hwsearch.operators import STATE_BYTES, Operator, operator
from hwsearch.searchspace.mixers.base import LinearMixer, elementwise, linear, short_conv
from hwsearch.searchspace.spec import PositiveInt
from hwsearch.searchspace.workload import Workload

__all__ = ["H3", "RGLRU"]


class RGLRU(LinearMixer):
    """Two branches of `width`: GELU, and a short convolution followed by a gated linear recurrent unit.

    The recurrence's two gates are block-diagonal projections with a block for each of num_heads.
    """

    kind: Literal["rg_lru"] = "rg_lru"
    width: PositiveInt
    num_heads: PositiveInt
    conv_size: PositiveInt = 4

    @model_validator(mode="after")
    def _blocks(self) -> RGLRU:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        return self

    @property
    def label(self) -> str:
        return f"{self.width} channels, {self.num_heads} blocks"

    def parameters(self, hidden_size: int) -> int:
        width = self.width
        branches = 2 * (hidden_size + 1) * width
        gates = 2 * (width // self.num_heads + 1) * width
        return branches + (self.conv_size + 1) * width + gates + width + (width + 1) * hidden_size

    def lower(self, hidden_size: int, workload: Workload) -> tuple[Operator, ...]:
        width = self.width
        shape = {"batch": workload.batch, "channels": width}
        if workload.phase == "prefill":
            scan = operator("diagonal_scan_prefill", seq_len=workload.context, **shape)
        else:
            scan = operator("diagonal_scan_decode", **shape)
        return (
            linear(workload, hidden_size, 2 * width),
            short_conv(workload, width, self.conv_size),
            # The FLOPs and weights of the block-diagonal gates: each output sees width / num_heads inputs.
            linear(workload, width // self.num_heads, 2 * width),
            elementwise(workload, width, reads=3, writes=2),
            scan,
            elementwise(workload, width, reads=2, writes=1),
            linear(workload, width, hidden_size),
        )

    def cache_bytes(self, context: int, element_bytes: int) -> int:
        return STATE_BYTES * self.width

    def conv_state_bytes(self, element_bytes: int) -> int:
        return self.conv_size * self.width * element_bytes


class H3(LinearMixer):
    """q * ssm(shift(k) * v): a shift of conv_size tokens, and state_size real, time-invariant states per channel."""

    kind: Literal["h3"] = "h3"
    width: PositiveInt
    state_size: PositiveInt = 16
    conv_size: PositiveInt = 4

    @property
    def label(self) -> str:
        return f"{self.width} channels x {self.state_size}"

    def parameters(self, hidden_size: int) -> int:
        return self.width * (4 * hidden_size + self.conv_size + 2 * self.state_size + 2)

    def lower(self, hidden_size: int, workload: Workload) -> tuple[Operator, ...]:
        shape = {"batch": workload.batch, "channels": self.width, "state_size": self.state_size}
        if workload.phase == "prefill":
            ssm = operator("diagonal_ssm_prefill", seq_len=workload.context, **shape)
        else:
            ssm = operator("diagonal_ssm_decode", **shape)
        return (
            linear(workload, hidden_size, 3 * self.width),
            short_conv(workload, self.width, self.conv_size),
            elementwise(workload, self.width, reads=2, writes=1),
            ssm,
            elementwise(workload, self.width, reads=3, writes=1),  # skip, and the product with q
            linear(workload, self.width, hidden_size),
        )

    def cache_bytes(self, context: int, element_bytes: int) -> int:
        return STATE_BYTES * self.width * self.state_size

    def conv_state_bytes(self, element_bytes: int) -> int:
        return self.conv_size * self.width * element_bytes
