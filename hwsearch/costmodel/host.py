"""Runtime profiles of the host: how the software around the kernels runs a model.

The cost model prices kernels; what launches them decides how many there are and what is copied between them.

engine: a serving engine. Fused kernels back to back, as inside a CUDA graph; the cache is written in place.
engine-eager: the same kernels without a CUDA graph, each launched by the host.
hf-eager: Hugging Face's eager modules. Every kernel of the module is launched by the host, and every step
concatenates the new keys and values to the cache, which reads and writes the whole cache of the softmax layers (a
full sliding window is rolled, a copy as well). Host and device work at the same time, so that a step takes the
longer of the two; the largest layer's cache exists twice while it is copied.

Constants of the eager hosts, none of them fitted per row:

* COPY_SHARE 0.35 of the datasheet bandwidth. PyTorch up to 2.7 concatenates 16-bit types element by element and so
  at half the rate of 32-bit types: github.com/pytorch/pytorch/pull/150233 gives 2.67 ms for 2.5 GB read and
  written, 0.94 TB/s, where fp32 reaches 1.84 TB/s (GPU not stated: 28% of an H100, 46% of an A100). Chosen within
  that range by looking at one published figure, Qwen3-1.7B at 64K in arXiv 2508.15884.
* LAUNCH_MS 0.010 of host time per kernel: Python module, dispatcher and driver; the 5 to 25 microseconds that are
  commonly reported. Not chosen by looking at published figures: it decides short contexts at small batches only.
* USABLE_SHARE 0.95 of the memory: nothing but PyTorch's allocator runs beside the model. By it the published
  batches fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hwsearch.errors import unknown_name
from hwsearch.operators import Operator
from hwsearch.searchspace.architecture import Architecture, LayerSpec
from hwsearch.searchspace.eager import eager_embedding, eager_ffn, eager_head, eager_mixer
from hwsearch.searchspace.mixers import FullAttention, SlidingWindowAttention
from hwsearch.searchspace.workload import Workload

__all__ = ["ENGINE", "ENGINE_EAGER", "HF_EAGER", "HOSTS", "Host", "host_named"]


LAUNCH_MS = 0.010


@dataclass(frozen=True, kw_only=True)
class Host:
    """A runtime profile.

    fused: which lowering runs. launch_ms: host time per kernel. copy_share: bandwidth at which the cache is
    copied, as a share of the datasheet's; None where it is not copied. usable_share: of the device's memory.
    """

    name: str
    label: str
    fused: bool
    launch_ms: float
    copy_share: float | None
    usable_share: float

    def mixer(self, layer: LayerSpec, hidden_size: int, workload: Workload) -> tuple[Operator, ...]:
        lower = LayerSpec.lower_mixer if self.fused else eager_mixer
        return lower(layer, hidden_size, workload)

    def ffn(self, layer: LayerSpec, hidden_size: int, workload: Workload) -> tuple[Operator, ...]:
        lower = LayerSpec.lower_ffn if self.fused else eager_ffn
        return lower(layer, hidden_size, workload)

    def embedding(self, architecture: Architecture, workload: Workload) -> tuple[Operator, ...]:
        lower = Architecture.lower_embedding if self.fused else eager_embedding
        return lower(architecture, workload)

    def head(self, architecture: Architecture, workload: Workload) -> tuple[Operator, ...]:
        lower = Architecture.lower_head if self.fused else eager_head
        return lower(architecture, workload)

    def copied_bytes(self, layer: LayerSpec, workload: Workload) -> int:
        """Bytes read and written to append to a layer's cache, over all passes of the workload."""
        if self.copy_share is None:
            return 0
        if workload.phase == "decode":
            return 2 * workload.batch * _kv_bytes(layer, workload.context, workload)
        return workload.batch * sum(
            _kv_bytes(layer, step.past, workload) + _kv_bytes(layer, step.past + step.context, workload)
            for step in workload.passes
            if step.past
        )

    def transient_bytes(self, layer: LayerSpec, workload: Workload) -> int:
        """Bytes of the second copy of a layer's cache that exists while it is appended to."""
        if self.copy_share is None:
            return 0
        return workload.batch * _kv_bytes(layer, workload.context, workload)


def _kv_bytes(layer: LayerSpec, context: int, workload: Workload) -> int:
    if isinstance(layer.mixer, FullAttention | SlidingWindowAttention):
        return layer.mixer.cache_bytes(context, workload.element_bytes)
    return 0


ENGINE = Host(
    name="engine",
    label="serving engine with CUDA graphs: fused kernels back to back, no host time",
    fused=True,
    launch_ms=0.0,
    copy_share=None,
    usable_share=0.9,
)
ENGINE_EAGER = Host(
    name="engine-eager",
    label="serving engine without CUDA graphs: fused kernels, host time per kernel",
    fused=True,
    launch_ms=LAUNCH_MS,
    copy_share=None,
    usable_share=0.9,
)
HF_EAGER = Host(
    name="hf-eager",
    label="Hugging Face eager: unfused kernels, the cache copied at every step, host time per kernel",
    fused=False,
    launch_ms=LAUNCH_MS,
    copy_share=0.35,
    usable_share=0.95,
)
HOSTS: Mapping[str, Host] = {host.name: host for host in (ENGINE, ENGINE_EAGER, HF_EAGER)}


def host_named(name: str) -> Host:
    """A profile of HOSTS; InputError with the nearest name otherwise."""
    if name not in HOSTS:
        raise unknown_name("host profile", name, HOSTS)
    return HOSTS[name]
