"""Token mixers: what each is made of and what it costs, in closed form; one file for each family.

A mixer spec holds dimensions only. From them, the hidden size and a workload it lowers itself to operators;
FLOPs and bytes are sums over those. Projections that read the same input are lowered as one gemm, as serving
engines fuse them.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from hwsearch.searchspace.mixers.attention import (
    SOFTMAX_KINDS,
    FullAttention,
    SharedKVAttention,
    SlidingWindowAttention,
)
from hwsearch.searchspace.mixers.base import LinearMixer, Mixer, elementwise, linear
from hwsearch.searchspace.mixers.delta import DeltaNet, GatedDeltaNet, JetBlock
from hwsearch.searchspace.mixers.linear_attention import GLA, Mamba2, RetNet
from hwsearch.searchspace.mixers.none import NoMixer
from hwsearch.searchspace.mixers.recurrent import H3, RGLRU
from hwsearch.searchspace.mixers.rwkv7 import RWKV7

__all__ = [
    "GLA",
    "H3",
    "RGLRU",
    "RWKV7",
    "SOFTMAX_KINDS",
    "DeltaNet",
    "FullAttention",
    "GatedDeltaNet",
    "JetBlock",
    "LinearMixer",
    "Mamba2",
    "Mixer",
    "MixerSpec",
    "NoMixer",
    "RetNet",
    "SharedKVAttention",
    "SlidingWindowAttention",
    "elementwise",
    "linear",
]

MixerSpec = Annotated[
    FullAttention
    | SlidingWindowAttention
    | SharedKVAttention
    | GatedDeltaNet
    | JetBlock
    | DeltaNet
    | GLA
    | RetNet
    | Mamba2
    | RWKV7
    | RGLRU
    | H3
    | NoMixer,
    Field(discriminator="kind"),
]
