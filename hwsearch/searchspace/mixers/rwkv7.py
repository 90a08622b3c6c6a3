"""RWKV-7's time mixing (arXiv 2503.14456), in the layout of flash-linear-attention."""

from __future__ import annotations

from typing import Literal

from hwsearch.errors import InputError
from hwsearch.operators import STATE_BYTES, Operator, operator
from hwsearch.searchspace.mixers.base import LinearMixer, elementwise, linear
from hwsearch.searchspace.spec import PositiveInt
from hwsearch.searchspace.workload import Workload

__all__ = ["RWKV7"]


class RWKV7(LinearMixer):
    """Token shift, low-rank decay, in-context learning rate and gate, and the generalised delta rule.

    num_heads x head_dim is the hidden size, as published: the token shift keeps one hidden vector. There is no value
    residual to the first layer, which need not be an RWKV-7 layer in a hybrid; published layer 0 has none either.
    """

    kind: Literal["rwkv7"] = "rwkv7"
    num_heads: PositiveInt
    head_dim: PositiveInt
    decay_low_rank_dim: PositiveInt = 64
    a_low_rank_dim: PositiveInt = 64
    gate_low_rank_dim: PositiveInt = 128

    @property
    def _size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def label(self) -> str:
        return f"{self.num_heads} heads x {self.head_dim}"

    def require_width(self, hidden_size: int) -> None:
        """Raises InputError where the heads do not make up the hidden size."""
        if self._size != hidden_size:
            raise InputError(
                f"rwkv7: num_heads {self.num_heads} x head_dim {self.head_dim} = {self._size} must be the hidden "
                f"size {hidden_size}"
            )

    def parameters(self, hidden_size: int) -> int:
        self.require_width(hidden_size)
        size, ranks = self._size, self.decay_low_rank_dim + self.a_low_rank_dim + self.gate_low_rank_dim
        low_rank = ranks * (hidden_size + size) + 2 * size
        vectors = 6 * hidden_size + 3 * size
        return 4 * hidden_size * size + low_rank + vectors + 2 * size

    def lower(self, hidden_size: int, workload: Workload) -> tuple[Operator, ...]:
        self.require_width(hidden_size)
        size = self._size
        ranks = (self.decay_low_rank_dim, self.a_low_rank_dim, self.gate_low_rank_dim)
        heads = {"num_heads": self.num_heads, "head_k_dim": self.head_dim, "head_v_dim": self.head_dim}
        if workload.phase == "prefill":
            rule = operator("rwkv7_prefill", batch=workload.batch, seq_len=workload.context, **heads)
        else:
            rule = operator("rwkv7_decode", batch=workload.batch, **heads)
        return (
            elementwise(
                workload, hidden_size, reads=2, writes=6
            ),  # token shift: six mixes with the last token
            *(linear(workload, hidden_size, size) for _ in range(3)),
            *(
                op
                for rank in ranks
                for op in (
                    linear(workload, hidden_size, rank),
                    elementwise(workload, rank, reads=1, writes=1),
                    linear(workload, rank, size),
                )
            ),
            elementwise(workload, size, reads=3, writes=4),  # decay, removal and replacement keys, keys
            rule,
            elementwise(workload, size, reads=5, writes=1),  # group norm, bonus and gate
            linear(workload, size, hidden_size),
        )

    def cache_bytes(self, context: int, element_bytes: int) -> int:
        return STATE_BYTES * self._size * self.head_dim

    def conv_state_bytes(self, element_bytes: int) -> int:
        return self._size * element_bytes
