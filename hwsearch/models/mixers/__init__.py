"""The modules of the token mixers, one file each, and which spec each of them runs."""

from __future__ import annotations

from collections.abc import Mapping

from hwsearch.errors import InputError
from hwsearch.models.mixers.attention import SoftmaxAttention
from hwsearch.models.mixers.base import Backend, Mixer, Rope
from hwsearch.models.mixers.delta import DeltaNet, GatedDeltaNet
from hwsearch.models.mixers.diagonal import H3, RGLRU
from hwsearch.models.mixers.jet_block import JetBlock
from hwsearch.models.mixers.linear_attention import GLA, RetNet
from hwsearch.models.mixers.mamba2 import Mamba2
from hwsearch.models.mixers.rwkv7 import RWKV7
from hwsearch.models.mixers.shared_kv import SharedKVAttention
from hwsearch.searchspace import mixers as specs
from hwsearch.searchspace.mixers import Mixer as Spec

__all__ = ["MIXERS", "mixer_for"]

MIXERS: Mapping[type[Spec], type[Mixer]] = {
    specs.FullAttention: SoftmaxAttention,
    specs.SlidingWindowAttention: SoftmaxAttention,
    specs.SharedKVAttention: SharedKVAttention,
    specs.GatedDeltaNet: GatedDeltaNet,
    specs.JetBlock: JetBlock,
    specs.DeltaNet: DeltaNet,
    specs.GLA: GLA,
    specs.RetNet: RetNet,
    specs.Mamba2: Mamba2,
    specs.RWKV7: RWKV7,
    specs.RGLRU: RGLRU,
    specs.H3: H3,
}


def mixer_for(
    spec: Spec,
    hidden_size: int,
    *,
    layer_index: int = 0,
    num_layers: int = 1,
    norm_eps: float = 1e-6,
    rope: Rope | None = None,
    backend: Backend = "auto",
) -> Mixer:
    """The module of a mixer spec. Raises InputError for a spec that has none."""
    if type(spec) not in MIXERS:
        raise InputError(
            f"layer {layer_index}: no module for the mixer {type(spec).__name__}; there are modules for "
            f"{', '.join(sorted(known.__name__ for known in MIXERS))}"
        )
    return MIXERS[type(spec)].from_spec(
        spec,
        hidden_size,
        layer_index=layer_index,
        num_layers=num_layers,
        norm_eps=norm_eps,
        rope=rope,
        backend=backend,
    )
