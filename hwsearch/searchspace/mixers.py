"""Token mixers: what each is made of and what it costs, in closed form.

A mixer spec holds dimensions only. From them, the hidden size and a workload it lowers itself to operators;
FLOPs and bytes are sums over those. Projections that read the same input are lowered as one gemm, as serving
engines fuse them.

Sources: gated delta net, arXiv 2412.06464 with the layer layout of flash-linear-attention; JetBlock,
arXiv 2508.15884 (dynamic convolution over the values, no convolution over queries and keys).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Literal

from pydantic import Field, StrictBool, model_validator

from hwsearch.operators import STATE_BYTES, Operator, operator
from hwsearch.searchspace.spec import PositiveInt, Spec
from hwsearch.searchspace.workload import Workload

__all__ = [
    "FullAttention",
    "GatedDeltaNet",
    "JetBlock",
    "Mixer",
    "MixerSpec",
    "NoMixer",
    "SlidingWindowAttention",
    "elementwise",
    "linear",
]

LayerType = Literal["full_attention", "sliding_attention", "linear_attention", "moe"]


def linear(workload: Workload, inputs: int, outputs: int) -> Operator:
    """A projection of every token of the workload."""
    return operator("gemm", m=workload.tokens, n=outputs, k=inputs)


def elementwise(workload: Workload, width: int, *, reads: int, writes: int) -> Operator:
    """A memory-bound kernel over every token of the workload."""
    return operator("elementwise", rows=workload.tokens, width=width, reads=reads, writes=writes)


class Mixer(Spec, ABC):
    """What every token mixer answers."""

    @property
    @abstractmethod
    def layer_type(self) -> LayerType:
        """The layer's name in Hugging Face's `layer_types` vocabulary."""

    @property
    @abstractmethod
    def label(self) -> str:
        """The kind and its dimensions on one short line."""

    @abstractmethod
    def parameters(self, hidden_size: int) -> int:
        """Trainable parameters, the layer's input norm not counted."""

    @abstractmethod
    def lower(self, hidden_size: int, workload: Workload) -> tuple[Operator, ...]:
        """The operators of one forward pass, the layer's input norm not counted."""

    @abstractmethod
    def cache_bytes(self, context: int, element_bytes: int) -> int:
        """Bytes per sequence of keys, values and recurrent state after `context` tokens."""

    def conv_state_bytes(self, element_bytes: int) -> int:
        """Bytes per sequence of the inputs that short convolutions keep between decode steps."""
        return 0


class _Softmax(Mixer):
    num_heads: PositiveInt
    num_kv_heads: PositiveInt
    head_dim: PositiveInt
    qk_norm: StrictBool = False
    qkv_bias: StrictBool = False

    @model_validator(mode="after")
    def _groups(self) -> _Softmax:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )
        return self

    @property
    def _qkv_size(self) -> int:
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def _window(self) -> int:
        return 0

    @property
    def label(self) -> str:
        window = f", window {self._window}" if self._window else ""
        return f"{self.num_heads}/{self.num_kv_heads} heads x {self.head_dim}{window}"

    def parameters(self, hidden_size: int) -> int:
        output = self.num_heads * self.head_dim * hidden_size
        norms = 2 * self.head_dim if self.qk_norm else 0
        bias = self._qkv_size if self.qkv_bias else 0
        return hidden_size * self._qkv_size + bias + norms + output

    def lower(self, hidden_size: int, workload: Workload) -> tuple[Operator, ...]:
        heads = {"num_heads": self.num_heads, "num_kv_heads": self.num_kv_heads, "head_dim": self.head_dim}
        if workload.phase == "prefill":
            attention = operator(
                "context_attention",
                batch=workload.batch,
                seq_len=workload.context,
                past_len=min(workload.past, self._window or workload.past),
                window=self._window,
                **heads,
            )
        else:
            attention = operator(
                "generation_attention",
                batch=workload.batch,
                kv_len=workload.context,
                window=self._window,
                **heads,
            )
        rotated = (self.num_heads + self.num_kv_heads) * self.head_dim
        # Norm of queries and keys and the rotary embedding run as one kernel each.
        kernels = 2 if self.qk_norm else 1
        return (
            linear(workload, hidden_size, self._qkv_size),
            *(elementwise(workload, rotated, reads=1, writes=1) for _ in range(kernels)),
            attention,
            linear(workload, self.num_heads * self.head_dim, hidden_size),
        )

    def cache_bytes(self, context: int, element_bytes: int) -> int:
        kept = min(self._window, context) if self._window else context
        return 2 * kept * self.num_kv_heads * self.head_dim * element_bytes


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
    def _window(self) -> int:
        return self.window

    @property
    def layer_type(self) -> LayerType:
        return "sliding_attention"


class GatedDeltaNet(Mixer):
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
    def layer_type(self) -> LayerType:
        return "linear_attention"

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
            self._conv(workload),
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

    def _conv(self, workload: Workload) -> Operator:
        shape = {"batch": workload.batch, "channels": self._conv_channels, "width": self.conv_size}
        if workload.phase == "prefill":
            return operator("short_conv_prefill", seq_len=workload.context, **shape)
        return operator("short_conv_decode", **shape)

    def cache_bytes(self, context: int, element_bytes: int) -> int:
        return STATE_BYTES * self.num_v_heads * self.head_k_dim * self.head_v_dim

    def conv_state_bytes(self, element_bytes: int) -> int:
        return self.conv_size * self._conv_channels * element_bytes


class JetBlock(Mixer):
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
    def layer_type(self) -> LayerType:
        return "linear_attention"

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


class NoMixer(Mixer):
    """No token mixing: the layer is its feed-forward network alone."""

    kind: Literal["none"] = "none"

    @property
    def layer_type(self) -> LayerType:
        return "moe"  # the name under which Hugging Face caches accept a layer without state

    @property
    def label(self) -> str:
        return ""

    def parameters(self, hidden_size: int) -> int:
        return 0

    def lower(self, hidden_size: int, workload: Workload) -> tuple[Operator, ...]:
        return ()

    def cache_bytes(self, context: int, element_bytes: int) -> int:
        return 0


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


MixerSpec = Annotated[
    FullAttention | SlidingWindowAttention | GatedDeltaNet | JetBlock | NoMixer, Field(discriminator="kind")
]
