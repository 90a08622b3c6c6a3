"""Blocks and whole models as something to time: modules with random weights, their caches filled, one call each.

A layer is timed as a stack of copies with weights and caches of their own, run one after the other as the layers of a
model are; a sample is the stack's time over its height. The stack is as high as it takes to go through the memory that
the block is to be measured among: each copy then finds its weights and its cache as far away as a layer finds them in
a model of that size. A single layer in a loop would find them in the caches.

A decode step is taken at exactly the workload's context: attention's cache is rewound before every call, so that no
step finds a longer one and none pays for a new buffer. States live until the next call, as in a model: memory that is
given back at once would be found warm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from hwsearch.models.cache import HybridCache
from hwsearch.models.configuration import HybridConfig
from hwsearch.models.hybrid import HybridForCausalLM
from hwsearch.models.mixers.attention import ROOM, AttentionState, QueryAttention, SoftmaxAttention
from hwsearch.models.mixers.base import Backend, Mixer, MixerState
from hwsearch.models.mixers.shared_kv import SharedKVAttention
from hwsearch.profilers.sampling import Runnable
from hwsearch.searchspace.architecture import Architecture, LayerSpec
from hwsearch.searchspace.bases import Base, RopeScaling
from hwsearch.searchspace.block import Block
from hwsearch.searchspace.ffn import SwiGLU
from hwsearch.searchspace.mixers import FullAttention, NoMixer
from hwsearch.searchspace.workload import Workload

__all__ = ["block_runnable", "model_runnable", "random_model"]


def block_runnable(
    block: Block, *, device: torch.device, copies: int, seed: int, backend: Backend = "auto"
) -> Runnable:
    """A stack of `copies` of a layer or of a mix, or the one frame, with random weights.

    Raises InputError for a mixer without a module.
    """
    layers = copies * block.layers or (LayerSpec(mixer=NoMixer(), ffn=SwiGLU(intermediate_size=1)),)
    model = random_model(
        Architecture(name="stack", base=_base(block, layers), layers=layers),
        device=device,
        dtype=block.workload.dtype,
        seed=seed,
        backend=backend,
    )
    if not block.layers:
        model.model.layers = nn.ModuleList()
        return model_runnable(model, block.workload, device=device, seed=seed)
    return _stack(model, block.workload, device=device, copies=copies)


def _base(block: Block, layers: tuple[LayerSpec, ...]) -> Base:
    """A base of nothing but the block; a stack's embedding is never used and as small as can be."""
    scaling = RopeScaling(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
    )
    return Base(
        name="stack",
        family="qwen3",
        num_layers=len(layers),
        hidden_size=block.hidden_size,
        vocab_size=block.vocab_size or 1,
        mixer=FullAttention(num_heads=1, num_kv_heads=1, head_dim=2),
        ffn=layers[0].ffn,
        tie_word_embeddings=True,
        rope_scaling=scaling if block.stretched_rope else None,
        max_position_embeddings=block.workload.context,
    )


def random_model(
    architecture: Architecture,
    *,
    device: torch.device,
    dtype: str,
    seed: int,
    backend: Backend = "auto",
) -> HybridForCausalLM:
    """The model of an architecture with random weights.

    backend: of the mixers' kernels, for those that have it; the others run what "auto" stands for.
    """
    torch.manual_seed(seed)
    with torch.device(device):
        model = HybridForCausalLM(HybridConfig.of(architecture))
    for mixer in model.model.mixers:
        if mixer is not None and not (isinstance(mixer, QueryAttention) and backend in ("triton", "fla")):
            mixer.backend = backend
    made: HybridForCausalLM = model.to(getattr(torch, dtype)).eval()
    return made


def _stack(model: HybridForCausalLM, workload: Workload, *, device: torch.device, copies: int) -> Runnable:
    layers, mixers = list(model.model.layers), model.model.mixers
    dtype = next(model.parameters()).dtype
    length = 1 if workload.phase == "decode" else workload.context
    shape = (workload.batch, length, model.config.hidden_size)
    hidden_BTD = torch.randn(shape, device=device, dtype=dtype)
    filled = _filled(mixers, workload, device=device, dtype=dtype)
    states: list[MixerState | None] = list(filled)

    def run(piece_BTD: Tensor, positions_BT: Tensor) -> None:
        for i, layer in enumerate(layers):
            piece_BTD, states[i] = layer(piece_BTD, state=states[i], mask_BT=None, positions_BT=positions_BT)

    if workload.phase == "decode":
        last_BT = torch.full((1, 1), workload.context - 1, device=device)

        def decode() -> None:
            states[:] = filled
            _rewind(filled)
            run(hidden_BTD, last_BT)

        return _runnable(decode, mixers, filled, copies=copies)

    pieces = [
        (
            hidden_BTD[:, step.past : step.past + step.context],
            torch.arange(step.past, step.past + step.context, device=device)[None],
        )
        for step in workload.passes
    ]

    def prefill() -> None:
        states[:] = _empty(mixers, workload, device=device, dtype=dtype)
        for piece_BTD, positions_BT in pieces:
            run(piece_BTD, positions_BT)

    return _runnable(prefill, mixers, filled, copies=copies)


def model_runnable(
    model: HybridForCausalLM, workload: Workload, *, device: torch.device, seed: int
) -> Runnable:
    """The passes of a workload through a model: logits of the last token only, the cache kept."""
    mixers = model.model.mixers
    dtype = next(model.parameters()).dtype
    vocabulary = model.lm_head.weight.shape[0]
    length = 1 if workload.phase == "decode" else workload.context
    generator = torch.Generator().manual_seed(seed)
    ids_BT = torch.randint(vocabulary, (workload.batch, length), generator=generator).to(device)
    filled = _filled(mixers, workload, device=device, dtype=dtype)
    held: list[HybridCache] = [model.new_cache()]

    if workload.phase == "decode":

        def decode() -> Tensor:
            (cache,) = held
            cache.states, cache.length = list(filled), workload.context - 1
            _rewind(filled)
            logits: Tensor = model(
                input_ids=ids_BT, past_key_values=cache, use_cache=True, logits_to_keep=1
            ).logits
            return logits

        return _runnable(decode, mixers, filled, copies=1)

    pieces = [ids_BT[:, step.past : step.past + step.context] for step in workload.passes]

    def prefill() -> None:
        # The cache of the last call lives until here, as a stack's states do.
        held[:] = [model.new_cache()]
        for piece_BT in pieces:
            model(input_ids=piece_BT, past_key_values=held[0], use_cache=True, logits_to_keep=1)

    return _runnable(prefill, mixers, filled, copies=1)


def _runnable(
    function: Callable[[], object],
    mixers: Sequence[Mixer | None],
    filled: Sequence[MixerState | None],
    *,
    copies: int,
) -> Runnable:
    return Runnable(
        function=function,
        kernel=lambda: ", ".join(sorted({m.kernel_used for m in mixers if m is not None})) or "torch",
        copies=copies,
        state_bytes=sum(state.bytes for state in filled if state is not None) // copies,
    )


def _empty(
    mixers: Sequence[Mixer | None], workload: Workload, *, device: torch.device, dtype: torch.dtype
) -> list[MixerState | None]:
    return [None if m is None else m.new_state(workload.batch, device=device, dtype=dtype) for m in mixers]


def _filled(
    mixers: Sequence[Mixer | None], workload: Workload, *, device: torch.device, dtype: torch.dtype
) -> list[MixerState | None]:
    """States as they are before a decode step at the workload's context; empty ones for a prefill."""
    states = _empty(mixers, workload, device=device, dtype=dtype)
    if workload.phase == "prefill":
        return states
    return [
        None if mixer is None or state is None else _after(mixer, state, workload, device=device, dtype=dtype)
        for mixer, state in zip(mixers, states, strict=True)
    ]


def _after(
    mixer: Mixer, state: MixerState, workload: Workload, *, device: torch.device, dtype: torch.dtype
) -> MixerState:
    """A mixer's state after all tokens of the context but the last, with random content."""
    past = workload.context - 1
    if isinstance(mixer, SharedKVAttention):
        return state  # it keeps nothing: the layer that it reads is filled
    if isinstance(state, AttentionState) and isinstance(mixer, SoftmaxAttention):
        # A window keeps no more than what its next query sees beside itself.
        kept = min(past, mixer.window - 1) if mixer.window else past
        # Drawn where they stay: a long cache may be half of the device's memory.
        shape = (workload.batch, mixer.num_kv_heads, kept + ROOM, mixer.head_dim)
        keys, values = (torch.randn(shape, device=device, dtype=dtype) for _ in range(2))
        seen_B = torch.full((workload.batch,), past, device=device)
        return AttentionState.within(keys, values, kept=kept, seen_B=seen_B)
    return state.apply(lambda tensor: torch.randn_like(tensor) if tensor.is_floating_point() else tensor)


def _rewind(states: Sequence[MixerState | None]) -> None:
    """Let the next step write where the last one wrote: its token is forgotten."""
    for state in states:
        if isinstance(state, AttentionState) and state.room is not None:
            state.room.filled = state.start + state.k_BHSD.shape[2]
