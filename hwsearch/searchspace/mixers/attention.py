"""Softmax attention: over the whole context, over a sliding window, or over the keys and values of an earlier layer.

Two options change its weights and next to nothing of its cost. `sinks`: each head has a learned logit that takes its
share of the softmax and carries no value, so that a head may attend to nothing (arXiv 2508.10925). `scores` sigmoid:
each weight is the sigmoid of its score minus the logarithm of the number of visible tokens, and nothing is normalised
over the tokens (arXiv 2409.04431).

A layer that reads an earlier layer's keys and values projects queries only and keeps no cache: cross-layer attention
(arXiv 2405.12981), the cross-decoder of YOCO (arXiv 2405.05254), Hymba's pairs of layers (arXiv 2411.13676), and the
last layers of Gemma 3n, which read the last layer of their own kind, full or windowed, that has a cache (its
`num_kv_shared_layers`). Here it reads the nearest earlier layer with keys and values of its layout and window.
"""

from __future__ import annotations

from typing import Literal

from pydantic import StrictBool, model_validator

from hwsearch.operators import Operator, operator
from hwsearch.searchspace.mixers.base import LayerType, Mixer, elementwise, linear
from hwsearch.searchspace.spec import PositiveInt
from hwsearch.searchspace.workload import Workload

__all__ = ["SOFTMAX_KINDS", "FullAttention", "SharedKVAttention", "SlidingWindowAttention"]

SOFTMAX_KINDS = ("full_attention", "sliding_window_attention", "shared_kv_attention")


class _Softmax(Mixer):
    num_heads: PositiveInt
    num_kv_heads: PositiveInt
    head_dim: PositiveInt
    qk_norm: StrictBool = False
    qkv_bias: StrictBool = False
    sinks: StrictBool = False
    scores: Literal["softmax", "sigmoid"] = "softmax"

    @model_validator(mode="after")
    def _groups(self) -> _Softmax:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if self.sinks and self.scores == "sigmoid":
            raise ValueError("sinks take part in a softmax: leave them out with sigmoid scores")
        return self

    @property
    def visible(self) -> int:
        """Tokens that a query sees, itself among them; 0: all up to itself."""
        return 0

    @property
    def _own_kv_heads(self) -> int:
        """Heads of keys and values that this layer computes and keeps."""
        return self.num_kv_heads

    @property
    def _qkv_size(self) -> int:
        return (self.num_heads + 2 * self._own_kv_heads) * self.head_dim

    @property
    def label(self) -> str:
        window = f", window {self.visible}" if self.visible else ""
        options = (", sinks" if self.sinks else "") + (", sigmoid" if self.scores == "sigmoid" else "")
        return f"{self.num_heads}/{self.num_kv_heads} heads x {self.head_dim}{window}{options}"

    def parameters(self, hidden_size: int) -> int:
        output = self.num_heads * self.head_dim * hidden_size
        norms = (2 if self._own_kv_heads else 1) * self.head_dim if self.qk_norm else 0
        bias = self._qkv_size if self.qkv_bias else 0
        sinks = self.num_heads if self.sinks else 0
        return hidden_size * self._qkv_size + bias + norms + sinks + output

    def lower(self, hidden_size: int, workload: Workload) -> tuple[Operator, ...]:
        heads = {"num_heads": self.num_heads, "num_kv_heads": self.num_kv_heads, "head_dim": self.head_dim}
        if workload.phase == "prefill":
            attention = operator(
                "context_attention",
                batch=workload.batch,
                seq_len=workload.context,
                past_len=min(workload.past, self.visible or workload.past),
                window=self.visible,
                **heads,
            )
        else:
            attention = operator(
                "generation_attention",
                batch=workload.batch,
                kv_len=workload.context,
                window=self.visible,
                **heads,
            )
        rotated = (self.num_heads + self._own_kv_heads) * self.head_dim
        # Norm of queries and keys and the rotary embedding run as one kernel each.
        kernels = 2 if self.qk_norm else 1
        return (
            linear(workload, hidden_size, self._qkv_size),
            *(elementwise(workload, rotated, reads=1, writes=1) for _ in range(kernels)),
            attention,
            linear(workload, self.num_heads * self.head_dim, hidden_size),
        )

    def cache_bytes(self, context: int, element_bytes: int) -> int:
        kept = min(self.visible, context) if self.visible else context
        return 2 * kept * self._own_kv_heads * self.head_dim * element_bytes


class FullAttention(_Softmax):
    """Causal softmax attention over the whole context; grouped queries where num_kv_heads < num_heads."""

    kind: Literal["full_attention"] = "full_attention"

    @property
    def layer_type(self) -> LayerType:
        return "full_attention"


class SlidingWindowAttention(_Softmax):
    """Causal softmax attention over the last `window` tokens."""

    kind: Literal["sliding_window_attention"] = "sliding_window_attention"
    window: PositiveInt

    @property
    def visible(self) -> int:
        return self.window

    @property
    def layer_type(self) -> LayerType:
        return "sliding_attention"


class SharedKVAttention(_Softmax):
    """Causal softmax attention over the keys and values of the nearest earlier layer that has such.

    Such: `num_kv_heads` heads of `head_dim` channels, in a full_attention layer where `window` is None, else in a
    sliding_window_attention layer of this window. Its own projections are those of queries and output.
    """

    kind: Literal["shared_kv_attention"] = "shared_kv_attention"
    window: PositiveInt | None = None

    @property
    def visible(self) -> int:
        return self.window or 0

    @property
    def _own_kv_heads(self) -> int:
        return 0

    @property
    def layer_type(self) -> LayerType:
        return "full_attention" if self.window is None else "sliding_attention"

    def reads(self, mixer: Mixer) -> bool:
        """Whether a layer with this mixer keeps keys and values that this one can read."""
        return (
            isinstance(mixer, FullAttention | SlidingWindowAttention)
            and (mixer.num_kv_heads, mixer.head_dim) == (self.num_kv_heads, self.head_dim)
            and mixer.visible == self.visible
        )

    @property
    def wanted(self) -> str:
        """The layer that it can read, in words."""
        kind = (
            "full_attention" if self.window is None else f"sliding_window_attention of window {self.window}"
        )
        return f"{kind} with {self.num_kv_heads} key/value heads of {self.head_dim} channels"
