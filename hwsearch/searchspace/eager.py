"""What Hugging Face's eager modules launch: one operator for each kernel of a layer, nothing fused.

The counterpart of the fused lowering in mixers.py and ffn.py. Kernels follow from the arithmetic that the modules
write out (transformers 4.52, Qwen2, Qwen3 and Llama; flash-linear-attention 0.2 for the linear mixers, whose
convolutions, gated norm and delta rule are Triton kernels): a norm goes through fp32 and takes eight kernels, a
rotary embedding five for each of queries and keys. Attention is FlashAttention's one kernel. An fp32 row counts
as two rows of bf16. Copies of the cache are not operators of a layer; costmodel/host.py prices them.
"""

from __future__ import annotations

from hwsearch.errors import InputError
from hwsearch.operators import Operator, operator
from hwsearch.searchspace.architecture import Architecture, LayerSpec
from hwsearch.searchspace.ffn import FFNSpec
from hwsearch.searchspace.mixers import (
    GLA,
    RWKV7,
    DeltaNet,
    FullAttention,
    GatedDeltaNet,
    JetBlock,
    Mamba2,
    MixerSpec,
    NoMixer,
    RetNet,
    SharedKVAttention,
    SlidingWindowAttention,
    elementwise,
    linear,
)
from hwsearch.searchspace.workload import Workload

__all__ = ["eager_embedding", "eager_ffn", "eager_head", "eager_mixer"]


def eager_mixer(layer: LayerSpec, hidden_size: int, workload: Workload) -> tuple[Operator, ...]:
    """The mixer of a layer with its norm and its residual addition, over all passes of the workload."""
    if isinstance(layer.mixer, NoMixer):
        return ()
    return tuple(
        op
        for step in workload.passes
        for op in (
            *_norm(hidden_size, step),
            *_mixer(layer.mixer, hidden_size, step),
            _add(hidden_size, step),
        )
    )


def eager_ffn(layer: LayerSpec, hidden_size: int, workload: Workload) -> tuple[Operator, ...]:
    """The feed-forward network of a layer with its norm and its residual addition, over all passes."""
    return tuple(
        op
        for step in workload.passes
        for op in (*_norm(hidden_size, step), *_ffn(layer.ffn, hidden_size, step), _add(hidden_size, step))
    )


def eager_embedding(architecture: Architecture, workload: Workload) -> tuple[Operator, ...]:
    return architecture.lower_embedding(workload)


def eager_head(architecture: Architecture, workload: Workload) -> tuple[Operator, ...]:
    """Final norm, LM head, and the greedy choice among fp32 logits, for the last token of each sequence."""
    last = Workload(phase="decode", batch=workload.batch, context=workload.context, dtype=workload.dtype)
    vocabulary = architecture.base.vocab_size
    _, gemm = architecture.lower_head(workload)
    return (
        *_norm(architecture.base.hidden_size, last),
        gemm,
        elementwise(last, vocabulary, reads=1, writes=2),
        elementwise(last, vocabulary, reads=1, writes=1),  # argmax reads fp32, that is two rows
    )


def _norm(width: int, w: Workload) -> tuple[Operator, ...]:
    return (
        elementwise(w, width, reads=1, writes=2),  # to fp32
        elementwise(w, width, reads=2, writes=2),  # square
        elementwise(w, width, reads=1, writes=1),  # mean, which reads fp32 and writes next to nothing
        elementwise(w, 1, reads=2, writes=2),  # plus epsilon
        elementwise(w, 1, reads=2, writes=2),  # reciprocal root
        elementwise(w, width, reads=2, writes=2),  # scale
        elementwise(w, width, reads=2, writes=1),  # back to bf16
        elementwise(w, width, reads=1, writes=1),  # weight
    )


def _add(width: int, w: Workload) -> Operator:
    return elementwise(w, width, reads=2, writes=1)


def _rotary(width: int, w: Workload) -> tuple[Operator, ...]:
    return (
        elementwise(w, width, reads=1, writes=1),  # times cosine
        elementwise(w, width // 2, reads=1, writes=1),  # negated half
        elementwise(w, width, reads=1, writes=1),  # halves joined
        elementwise(w, width, reads=1, writes=1),  # times sine
        elementwise(w, width, reads=2, writes=1),  # sum
    )


def _ffn(ffn: FFNSpec, hidden_size: int, w: Workload) -> tuple[Operator, ...]:
    inner = ffn.intermediate_size
    return (
        linear(w, hidden_size, inner),
        elementwise(w, inner, reads=1, writes=1),
        linear(w, hidden_size, inner),
        elementwise(w, inner, reads=2, writes=1),
        linear(w, inner, hidden_size),
    )


def _mixer(mixer: MixerSpec, hidden_size: int, w: Workload) -> tuple[Operator, ...]:
    match mixer:
        case FullAttention() | SlidingWindowAttention() | SharedKVAttention():
            return _softmax(mixer, hidden_size, w)
        case GatedDeltaNet():
            return _gated_delta_net(mixer, hidden_size, w)
        case JetBlock():
            return _jet_block(mixer, hidden_size, w)
        case DeltaNet():
            return _delta_net(mixer, hidden_size, w)
        case GLA() | RetNet():
            return _retentive(mixer, hidden_size, w)
        case Mamba2() | RWKV7():
            return mixer.lower(hidden_size, w)  # flash-linear-attention's layers launch just these
        case _:
            raise InputError(
                f"the host hf-eager has no kernel list for the mixer {mixer.kind} (no eager module runs it at the "
                "speed of its kernels): use the host engine or engine-eager"
            )


def _only(kinds: tuple[str, ...], operators: tuple[Operator, ...]) -> Operator:
    """The one operator of some kinds: kernels that are the same fused and eager."""
    (found,) = (op for op in operators if op.kind in kinds)
    return found


def _softmax(
    m: FullAttention | SlidingWindowAttention | SharedKVAttention, hidden: int, w: Workload
) -> tuple[Operator, ...]:
    queries = m.num_heads * m.head_dim
    keys = () if isinstance(m, SharedKVAttention) else (m.num_kv_heads * m.head_dim,)
    return (
        *(linear(w, hidden, width) for width in (queries, *keys, *keys)),
        *(op for width in (queries, *keys) if m.qk_norm for op in _norm(width, w)),
        *(op for width in (queries, *keys) for op in _rotary(width, w)),
        _only(("context_attention", "generation_attention"), m.lower(hidden, w)),
        linear(w, queries, hidden),
    )


def _gates(heads: int, hidden: int, w: Workload) -> tuple[Operator, ...]:
    """Write strength (product, sigmoid) and decay (product, to fp32, bias, softplus, scale)."""
    return (
        linear(w, hidden, heads),
        elementwise(w, heads, reads=1, writes=1),
        linear(w, hidden, heads),
        elementwise(w, heads, reads=1, writes=2),
        *(elementwise(w, heads, reads=2, writes=2) for _ in range(3)),
    )


def _gated_delta_net(m: GatedDeltaNet, hidden: int, w: Workload) -> tuple[Operator, ...]:
    keys, values = m.num_k_heads * m.head_k_dim, m.num_v_heads * m.head_v_dim
    return (
        *(linear(w, hidden, width) for width in (keys, keys, values)),
        *(_conv(w, width, m.conv_size) for width in (keys, keys, values)),
        *_gates(m.num_v_heads, hidden, w),
        _only(("delta_rule_prefill", "delta_rule_decode"), m.lower(hidden, w)),
        linear(w, hidden, values),
        elementwise(w, values, reads=2, writes=1),
        linear(w, values, hidden),
    )


def _delta_net(m: DeltaNet, hidden: int, w: Workload) -> tuple[Operator, ...]:
    keys, values = m.num_heads * m.head_k_dim, m.num_heads * m.head_v_dim
    return (
        *(linear(w, hidden, width) for width in (keys, keys, values)),
        *(_conv(w, width, m.conv_size) for width in (keys, keys, values)),
        linear(w, hidden, m.num_heads),
        elementwise(w, m.num_heads, reads=1, writes=1),
        _only(("delta_rule_prefill", "delta_rule_decode"), m.lower(hidden, w)),
        elementwise(w, values, reads=1, writes=1),
        linear(w, values, hidden),
    )


def _retentive(m: GLA | RetNet, hidden: int, w: Workload) -> tuple[Operator, ...]:
    keys, values = m.num_heads * m.head_k_dim, m.num_heads * m.head_v_dim
    if isinstance(m, GLA):
        before: tuple[Operator, ...] = (
            linear(w, hidden, m.gate_low_rank_dim),
            linear(w, m.gate_low_rank_dim, keys),
            elementwise(w, keys, reads=1, writes=1),  # log sigmoid
            elementwise(w, keys, reads=1, writes=1),  # over the normaliser
        )
    else:
        before = (elementwise(w, keys, reads=1, writes=1),) * 2  # rotary embedding, one Triton kernel each
    return (
        *(linear(w, hidden, width) for width in (keys, keys, values)),
        *before,
        _only(("linear_attention_prefill", "linear_attention_decode"), m.lower(hidden, w)),
        linear(w, hidden, values),
        elementwise(w, values, reads=2, writes=1),
        linear(w, values, hidden),
    )


def _conv(w: Workload, channels: int, width: int) -> Operator:
    shape = {"batch": w.batch, "channels": channels, "width": width}
    if w.phase == "prefill":
        return operator("short_conv_prefill", seq_len=w.context, **shape)
    return operator("short_conv_decode", **shape)


def _jet_block(m: JetBlock, hidden: int, w: Workload) -> tuple[Operator, ...]:
    keys, values = m.num_heads * m.head_k_dim, m.num_heads * m.head_v_dim
    bottleneck = values // m.generator_reduction
    # A decode step shifts and rewrites the convolution's window; a prefill writes into a zeroed buffer instead.
    kept = m.conv_size if w.phase == "decode" else 1
    return (
        *(op for _ in range(2) for op in (linear(w, hidden, keys), elementwise(w, keys, reads=1, writes=1))),
        linear(w, hidden, values),
        linear(w, hidden, bottleneck),
        elementwise(w, bottleneck, reads=1, writes=1),
        linear(w, bottleneck, values * m.conv_size),
        elementwise(w, values, reads=1 + m.conv_size + kept, writes=1 + kept),
        elementwise(w, values, reads=1, writes=1),
        *_gates(m.num_heads, hidden, w),
        _only(("delta_rule_prefill", "delta_rule_decode"), m.lower(hidden, w)),
        linear(w, hidden, values),
        elementwise(w, values, reads=2, writes=1),
        linear(w, values, hidden),
    )
