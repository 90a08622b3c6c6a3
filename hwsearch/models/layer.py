"""One layer of a hybrid model: a pre-normed mixer and a pre-normed feed-forward network, each with its residual."""

from __future__ import annotations

from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from hwsearch.models.configuration import rope_of
from hwsearch.models.ffn import ffn_for
from hwsearch.models.mixers import mixer_for
from hwsearch.models.mixers.attention import KeysValues, Lent
from hwsearch.models.mixers.base import Mixer, MixerState
from hwsearch.models.norm import RMSNorm
from hwsearch.searchspace.architecture import Architecture
from hwsearch.searchspace.mixers import NoMixer

__all__ = ["HybridLayer"]


class HybridLayer(GradientCheckpointingLayer):
    """One layer; without a mixer it is its feed-forward network alone.

    kv_source: the layer whose keys and values it reads; lends: whether a later layer reads its own.
    """

    def __init__(self, architecture: Architecture, index: int) -> None:
        super().__init__()
        self.index = index
        self.kv_source = architecture.kv_sources[index]
        self.lends = index in architecture.kv_sources
        base, spec = architecture.base, architecture.layers[index]
        self.mixer: Mixer | None = None
        self.input_layernorm: RMSNorm | None = None
        if not isinstance(spec.mixer, NoMixer):
            self.input_layernorm = RMSNorm(base.hidden_size, eps=base.rms_norm_eps)
            self.mixer = mixer_for(
                spec.mixer,
                base.hidden_size,
                layer_index=index,
                num_layers=base.num_layers,
                norm_eps=base.rms_norm_eps,
                rope=rope_of(base),
            )
        self.post_attention_layernorm = RMSNorm(base.hidden_size, eps=base.rms_norm_eps)
        self.mlp = ffn_for(spec.ffn, base.hidden_size)

    def forward(
        self,
        hidden_BTD: Tensor,
        *,
        state: MixerState | None = None,
        mask_BT: Tensor | None = None,
        positions_BT: Tensor | None = None,
        lent: Lent | None = None,
    ) -> tuple[Tensor, MixerState | None]:
        """(B, T, D) to the same, and the mixer's state after the last token where one was given.

        lent: by layer the keys and values that earlier ones lend for these tokens; a layer that lends adds its own.
        """
        if self.mixer is not None and self.input_layernorm is not None:
            normed_BTD = self.input_layernorm(hidden_BTD)
            if self.kv_source is not None:
                assert lent is not None
                mixed_BTD, _ = self.mixer(normed_BTD, state=lent[self.kv_source], mask_BT=mask_BT)
            elif self.lends:
                assert lent is not None
                own: list[KeysValues] = []
                mixed_BTD, state = self.mixer(
                    normed_BTD, state=state, mask_BT=mask_BT, positions_BT=positions_BT, lent=own
                )
                (lent[self.index],) = own
            else:
                mixed_BTD, state = self.mixer(
                    normed_BTD, state=state, mask_BT=mask_BT, positions_BT=positions_BT
                )
            hidden_BTD = hidden_BTD + mixed_BTD
        return hidden_BTD + self.mlp(self.post_attention_layernorm(hidden_BTD)), state
