"""What every token mixer answers, and the operators that many of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

from hwsearch.operators import Operator, operator
from hwsearch.searchspace.spec import Spec
from hwsearch.searchspace.workload import Workload

__all__ = ["LayerType", "LinearMixer", "Mixer", "elementwise", "linear", "short_conv"]

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


class LinearMixer(Mixer):
    """A mixer whose state has the same size after every context."""

    @property
    def layer_type(self) -> LayerType:
        return "linear_attention"


def short_conv(workload: Workload, channels: int, width: int) -> Operator:
    """A causal depthwise convolution in the workload's phase."""
    shape = {"batch": workload.batch, "channels": channels, "width": width}
    if workload.phase == "prefill":
        return operator("short_conv_prefill", seq_len=workload.context, **shape)
    return operator("short_conv_decode", **shape)
