"""Tensor parallelism, analytic: what one of N devices holds and runs, and what the devices tell one another.

Sharding as serving engines do it (Megatron-LM, arXiv 1909.08053): heads, the inner width of the feed-forward network
and the vocabulary are divided, so that the first projection of a block is split by columns and the last by rows; norms
and the residual stream are on every device. Key and value heads that are fewer than the devices are replicated. A
JetBlock's narrow kernel generator input is replicated too.

Every mixer, every feed-forward network and the embedding end in an all-reduce of the residual stream; the logits are
gathered. A ring all-reduce of D bytes over N devices sends 2 (N - 1) / N D bytes over every link in 2 (N - 1) steps, a
gather half of that (arXiv 2211.05102, section 3.1). Nothing is overlapped with compute.

Constants: a link reaches 70% of its datasheet rate and a step takes 1.5 microseconds, beside one kernel launch. Chosen
by looking at public NCCL measurements on 8 H100 (github.com/microsoft/vidur, data/profiling/network), where 64 MiB take
0.245 ms over 2 and 0.318 ms over 4 devices (given here: 0.219, 0.331), 2 MiB take 0.039 ms over 8 (0.035) and 0.033 ms
over 4 (0.021), and messages under 100 KiB about 0.02 ms over 8 (0.024). Not looked at before: 2 MiB over 4 A100 take
0.053 ms (0.027). Mid-sized messages over four devices are given too short for NCCL, by up to a factor of two, which
is the interval; engines' own kernels for these sizes are faster than NCCL.
"""

from __future__ import annotations

from typing import TypeVar

from hwsearch.costmodel.roofline import LAUNCH_MS
from hwsearch.errors import InputError
from hwsearch.records import DeviceSpec
from hwsearch.searchspace.architecture import Architecture, LayerSpec
from hwsearch.searchspace.mixers import (
    GLA,
    DeltaNet,
    FullAttention,
    GatedDeltaNet,
    JetBlock,
    MixerSpec,
    NoMixer,
    RetNet,
    SharedKVAttention,
    SlidingWindowAttention,
)

__all__ = ["all_gather_ms", "all_reduce_ms", "link_bandwidth", "sharded"]

S = TypeVar("S", FullAttention, SlidingWindowAttention, SharedKVAttention)

_LINK_SHARE = 0.7
_STEP_MS = 0.0015
_TRIED = (2, 3, 4, 5, 6, 7, 8, 16, 32, 64)


class _IndivisibleError(ValueError):
    """A dimension that does not divide; its text names it."""


def sharded(architecture: Architecture, tp: int) -> Architecture:
    """What one of `tp` devices holds, as an architecture of its own; the same one where tp is 1.

    Raises InputError where heads or widths do not divide, with the numbers of devices that do.
    """
    try:
        return _sharded(architecture, tp)
    except _IndivisibleError as error:
        fitting = [str(n) for n in _TRIED if _fits(architecture, n)]
        fix = f"use {' or '.join(fitting)} devices, or 1" if fitting else "it runs on one device only"
        raise InputError(f"{architecture.name} does not divide over {tp} devices: {error}; {fix}") from None


def _fits(architecture: Architecture, tp: int) -> bool:
    try:
        _sharded(architecture, tp)
    except _IndivisibleError:
        return False
    return True


def _sharded(architecture: Architecture, tp: int) -> Architecture:
    if tp == 1:
        return architecture
    base = architecture.base
    shards = {layer: _layer(layer, tp) for layer in dict.fromkeys(architecture.layers)}
    own = base.replace(
        vocab_size=-(-base.vocab_size // tp),  # engines pad the vocabulary
        mixer=_softmax(base.mixer, tp),
        ffn=base.ffn.replace(intermediate_size=_part(base.ffn.intermediate_size, tp, "intermediate_size")),
    )
    return Architecture(
        name=architecture.name, base=own, layers=tuple(shards[layer] for layer in architecture.layers)
    )


def _part(value: int, tp: int, name: str) -> int:
    if value % tp:
        raise _IndivisibleError(f"{name} {value} is not a multiple of {tp}")
    return value // tp


def _layer(layer: LayerSpec, tp: int) -> LayerSpec:
    inner = _part(layer.ffn.intermediate_size, tp, "intermediate_size")
    return LayerSpec(mixer=_mixer(layer.mixer, tp), ffn=layer.ffn.replace(intermediate_size=inner))


def _softmax(mixer: S, tp: int) -> S:
    if mixer.num_kv_heads % tp and tp % mixer.num_kv_heads:
        raise _IndivisibleError(
            f"num_kv_heads {mixer.num_kv_heads} neither divides nor is a multiple of {tp}"
        )
    return mixer.replace(
        num_heads=_part(mixer.num_heads, tp, "num_heads"), num_kv_heads=max(1, mixer.num_kv_heads // tp)
    )


def _mixer(mixer: MixerSpec, tp: int) -> MixerSpec:
    match mixer:
        case FullAttention():
            return _softmax(mixer, tp)
        case SlidingWindowAttention():
            return _softmax(mixer, tp)
        case SharedKVAttention():
            return _softmax(mixer, tp)
        case GatedDeltaNet():
            return mixer.replace(
                num_k_heads=_part(mixer.num_k_heads, tp, "num_k_heads"),
                num_v_heads=_part(mixer.num_v_heads, tp, "num_v_heads"),
            )
        case JetBlock():
            # The generator's input keeps its width, which is the values' over the reduction.
            return mixer.replace(
                num_heads=_part(mixer.num_heads, tp, "num_heads"),
                generator_reduction=_part(mixer.generator_reduction, tp, "generator_reduction"),
            )
        case DeltaNet() | GLA() | RetNet():
            return mixer.replace(num_heads=_part(mixer.num_heads, tp, "num_heads"))
        case NoMixer():
            return mixer
        case _:
            raise _IndivisibleError(f"how {mixer.kind} is sharded is not modelled")


def link_bandwidth(device: DeviceSpec) -> float:
    """Bytes per second and direction between two devices; InputError where that is not known."""
    if device.link_bandwidth is None:
        raise InputError(
            f"the link between two {device.name} is not known: add link_gbs (GB/s in one direction) to its "
            "device file, or use one device"
        )
    return device.link_bandwidth


def all_reduce_ms(sent: float, *, tp: int, device: DeviceSpec) -> float:
    """Milliseconds of a ring all-reduce of `sent` bytes."""
    return LAUNCH_MS + 2 * _pass_ms(sent, tp, device)


def all_gather_ms(gathered: float, *, tp: int, device: DeviceSpec) -> float:
    """Milliseconds until every device has all of `gathered` bytes, of which each held a part."""
    return LAUNCH_MS + _pass_ms(gathered, tp, device)


def _pass_ms(sent: float, tp: int, device: DeviceSpec) -> float:
    """Once around the ring."""
    return (tp - 1) * (1e3 * sent / tp / (_LINK_SHARE * link_bandwidth(device)) + _STEP_MS)
