"""The hybrid language model: an architecture as a transformers model, with generation and gradient checkpointing.

Pre-normed layers of a mixer and a feed-forward network, each with its residual, between a token embedding and an LM
head, as in Qwen and Llama. Importing this module registers the classes with AutoModel and AutoModelForCausalLM.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from hwsearch.errors import InputError
from hwsearch.models.cache import HybridCache
from hwsearch.models.configuration import SHIM, SHIM_TEXT, HybridConfig
from hwsearch.models.layer import HybridLayer
from hwsearch.models.mixers.attention import Lent
from hwsearch.models.mixers.base import Backend, Mixer
from hwsearch.models.norm import RMSNorm
from hwsearch.searchspace.architecture import Architecture

__all__ = ["HybridForCausalLM", "HybridModel", "hybrid_config"]


class _Hybrid(PreTrainedModel):
    """What both models share."""

    config: HybridConfig
    config_class = HybridConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["HybridLayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _is_stateful = True  # generation that rolls the cache back is refused

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Mixer):
            module.reset_parameters()

    @classmethod
    def is_custom_code(cls) -> bool:
        """False: for custom code transformers passes over modules without parameters of their own, mixers among them.

        It does so because such code may overwrite what was loaded; ours spares it.
        """
        return False

    def set_backend(self, backend: Backend, *, layers: Iterable[int] | None = None) -> None:
        """Ask the mixers of some layers (None: all) for this backend of their kernels.

        A mixer that does not have it fails in its forward; softmax attention has torch and reference.
        """
        wanted = None if layers is None else frozenset(layers)
        for module in self.modules():
            if isinstance(module, HybridModel):
                for index, mixer in enumerate(module.mixers):
                    if mixer is not None and (wanted is None or index in wanted):
                        mixer.backend = backend

    def save_pretrained(self, save_directory: str | Path, *arguments: Any, **options: Any) -> None:
        """As in transformers, and beside the weights the module through which AutoModel finds these classes."""
        super().save_pretrained(save_directory, *arguments, **options)
        if options.get("is_main_process", True):
            (Path(save_directory) / f"{SHIM}.py").write_text(SHIM_TEXT, encoding="utf-8")

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Nothing: the shim that save_pretrained writes serves instead of a copy of this file."""


class HybridModel(_Hybrid):
    """Embedding, layers and final norm."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__(config)
        architecture = config.spec
        base = architecture.base
        self.embed_tokens = nn.Embedding(config.vocab_size or base.vocab_size, base.hidden_size)
        layers = [HybridLayer(architecture, index) for index in range(base.num_layers)]
        self.layers = nn.ModuleList(layers)
        self.norm = RMSNorm(base.hidden_size, eps=base.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @property
    def mixers(self) -> list[Mixer | None]:
        """The mixer of each layer, None where it has none."""
        return [layer.mixer for layer in self.layers if isinstance(layer, HybridLayer)]

    def new_cache(self) -> HybridCache:
        """An empty cache for this model."""
        return HybridCache(len(self.layers))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: HybridCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast | tuple[Any, ...]:
        """Hidden states (B, T, D) after the final norm, as in transformers.

        attention_mask: (B, T), or (B, tokens in the cache + T). With a cache only the left may be padded. Without
        one the right may be too; use_cache None makes none for a batch that is padded on the right, nor in training.
        Raises InputError for both or neither of input_ids and inputs_embeds, for a cache that is not a HybridCache,
        a mask that does not fit, and output_attentions.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError("pass exactly one of input_ids and inputs_embeds")
        if output_attentions:
            raise InputError(
                "output_attentions: the kernels form no attention weights, linear mixers have none"
            )
        hidden_BTD = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        batch, length, _ = hidden_BTD.shape
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training and not _right_padded(attention_mask)
        cache = self._cache(past_key_values, use_cache)
        mask_BT = _mask(attention_mask, batch, length, cache)
        if position_ids is None:
            position_ids = _positions(length, mask_BT, cache, hidden_BTD.device)
        if cache is not None and not cache.length:
            cache.prepare(self.mixers, batch, device=hidden_BTD.device, dtype=hidden_BTD.dtype)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        collected = [hidden_BTD] if output_hidden_states else None
        self._check_checkpointing()
        lent = Lent()
        for index, layer in enumerate(self.layers):
            state = None if cache is None else cache.states[index]
            hidden_BTD, state = layer(
                hidden_BTD, state=state, mask_BT=mask_BT, positions_BT=position_ids, lent=lent
            )
            if cache is not None:
                cache.states[index] = state
            if collected is not None:
                collected.append(hidden_BTD)
        if cache is not None:
            cache.advance(length, mask_BT)
        hidden_BTD = self.norm(hidden_BTD)
        if collected is not None:
            collected[-1] = hidden_BTD
        output = BaseModelOutputWithPast(
            last_hidden_state=hidden_BTD,
            past_key_values=cache,
            hidden_states=None if collected is None else tuple(collected),
        )
        return output.to_tuple() if return_dict is False else output

    def _check_checkpointing(self) -> None:
        """InputError where lent keys and values would get no gradient."""
        if not (self.training and self.gradient_checkpointing) or set(self.config.spec.kv_sources) == {None}:
            return
        if self._gradient_checkpointing_func.keywords.get("use_reentrant", True):
            raise InputError(
                "re-entrant checkpointing loses the gradients of keys and values that shared_kv_attention reads: "
                "pass {'use_reentrant': False}"
            )

    def _cache(self, given: HybridCache | None, use_cache: bool) -> HybridCache | None:
        """The cache to use: what was given, or a new one where one is wanted."""
        if given is not None and not isinstance(given, HybridCache):
            raise InputError(
                f"past_key_values is a {type(given).__name__}; leave it out, or pass a HybridCache (model.new_cache())"
            )
        if self.training and self.gradient_checkpointing:
            if given is not None:
                raise InputError("gradient checkpointing runs layers twice: leave past_key_values out")
            return None
        return given if given is not None or not use_cache else self.new_cache()


class HybridForCausalLM(_Hybrid, GenerationMixin):
    """The language model. `HybridForCausalLM(HybridConfig.of(architecture))` has random weights."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: HybridConfig) -> None:
        super().__init__(config)
        self.model = HybridModel(config)
        vocab_size = config.vocab_size or config.spec.base.vocab_size
        self.lm_head = nn.Linear(config.spec.base.hidden_size, vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: HybridCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits (B, T, vocabulary), and the loss where labels (B, T) are given: unshifted, -100 is ignored.

        logits_to_keep: compute only the last so many positions' logits (0: all), or those of an index.
        """
        if use_cache is None and labels is not None:
            use_cache = False  # a loss is no step of a generation
        body = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(body.last_hidden_state[:, kept, :])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **kwargs)
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=body.past_key_values,
            hidden_states=body.hidden_states,
        )
        return output.to_tuple() if return_dict is False else output

    def new_cache(self) -> HybridCache:
        """An empty cache, to pass as past_key_values."""
        return self.model.new_cache()

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *arguments: Any
    ) -> None:
        """Generation starts with a HybridCache, unless the caller brings one or wants none."""
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise InputError(
                f"cache_implementation={generation_config.cache_implementation!r}: a hybrid model keeps one state per "
                "mixer; leave it out"
            )
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = self.model.new_cache()


def hybrid_config(architecture: Architecture) -> HybridConfig:
    """The config of an architecture, after the model was built from it on the meta device.

    Raises InputError for a mixer without a module.
    """
    config = HybridConfig.of(architecture)
    config.architectures = [HybridForCausalLM.__name__]
    with torch.device("meta"):
        model = HybridForCausalLM(config)
    built = sum(parameter.numel() for parameter in model.parameters())
    assert built == architecture.parameters, (
        f"{built} parameters built, {architecture.parameters} in closed form"
    )
    return config


def _right_padded(attention_mask: Tensor | None) -> bool:
    if attention_mask is None or attention_mask.dim() != 2 or torch.compiler.is_compiling():
        return False
    return not bool(attention_mask[:, -1].all())


def _mask(attention_mask: Tensor | None, batch: int, length: int, cache: HybridCache | None) -> Tensor | None:
    """The mask of the `length` new tokens as bool; None where all of them are real.

    Looking at the mask's values makes a GPU wait, so a decode step after unpadded columns does not look.
    """
    if attention_mask is None:
        return None
    past = 0 if cache is None else cache.length
    if attention_mask.dim() != 2 or attention_mask.shape not in ((batch, length), (batch, past + length)):
        raise InputError(
            f"attention_mask has the shape {tuple(attention_mask.shape)}; it must be (batch, tokens) = "
            f"({batch}, {length}){f' or ({batch}, {past + length}), the cached tokens first' if past else ''}"
        )
    mask_BT = attention_mask[:, -length:].bool()
    if torch.compiler.is_compiling():
        return mask_BT
    if past and length == 1 and cache is not None and cache.padding_over:
        return None
    all_real = bool(mask_BT.all())
    if cache is not None:
        if not all_real and (cache.padding_over or bool((mask_BT[:, 1:] < mask_BT[:, :-1]).any())):
            raise InputError(
                "attention_mask has padding after a real token; with a cache pad on the left only "
                "(tokenizer.padding_side = 'left'), or pass use_cache=False"
            )
        cache.padding_over = bool(mask_BT[:, -1].all())
    return None if all_real else mask_BT


def _positions(
    length: int, mask_BT: Tensor | None, cache: HybridCache | None, device: torch.device
) -> Tensor:
    """Positions among the real tokens of each sequence, (B or 1, T); 0 at padding before them."""
    steps = torch.arange(length, device=device)[None] if mask_BT is None else mask_BT.long().cumsum(1) - 1
    if cache is not None and cache.length:
        steps = steps + cache.length
        if cache.padding_B is not None:
            steps = steps - cache.padding_B[:, None]
    return steps.clamp(min=0)


AutoModel.register(HybridConfig, HybridModel)
AutoModelForCausalLM.register(HybridConfig, HybridForCausalLM)
