"""Predicted beside published: the figures of arXiv 2508.15884 (Jet-Nemotron) that the cost model can express.

    python benchmarks/published.py

prints, as Markdown, table 3 (best generation throughput at 64K tokens), the speed-ups of Jet-Nemotron-2B over
Qwen3-1.7B-Base in decode and prefill, and table 2 (nine shapes of Gated DeltaNet of equal cache), all under the
host profile of the paper's protocol, Hugging Face eager, and beside it under a serving engine. Inputs are fixed;
nothing is fitted here. docs/published.md holds the output and tells which constants were chosen by looking at it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import spearmanr

from hwsearch.costmodel.builtin_models import load_builtin
from hwsearch.costmodel.compose import model_cost
from hwsearch.costmodel.host import ENGINE, HF_EAGER, Host
from hwsearch.costmodel.memory import memory_of
from hwsearch.costmodel.model import CostModel
from hwsearch.searchspace.architecture import Architecture, LayerSpec
from hwsearch.searchspace.bases import Base
from hwsearch.searchspace.ffn import SwiGLU
from hwsearch.searchspace.mixers import FullAttention, GatedDeltaNet, JetBlock
from hwsearch.searchspace.references import architecture_named
from hwsearch.searchspace.workload import Workload

__all__ = ["Row", "decode_speed_ups", "prefill_speed_ups", "table_2", "table_3"]

K = 1024


@dataclass(frozen=True)
class Row:
    """A published figure, and what is predicted under each host profile."""

    name: str
    setting: str
    published: float
    eager: float
    engine: float

    @property
    def error(self) -> float:
        """Of the prediction under Hugging Face eager, relative."""
        return self.eager / self.published - 1


def _plain(name: str, layers: int, hidden: int, inner: int, heads: int, *, vocab: int) -> Architecture:
    """A Llama-like model with as many KV heads as heads, of head dimension 64; tied embeddings."""
    return Architecture.of_base(
        Base(
            name=name,
            family="llama",
            num_layers=layers,
            hidden_size=hidden,
            vocab_size=vocab,
            mixer=FullAttention(num_heads=heads, num_kv_heads=heads, head_dim=64),
            ffn=SwiGLU(intermediate_size=inner),
            tie_word_embeddings=True,
            max_position_embeddings=131072,
        )
    )


SMOLLM2 = _plain("SmolLM2-1.7B", 24, 2048, 8192, 32, vocab=49152)
MINICPM = _plain("MiniCPM-2B-128K", 40, 2304, 5760, 36, vocab=122753)

# Table 3: architecture, published tokens/s, published batch (None: not stated).
TABLE_3: Sequence[tuple[Architecture, float, int | None]] = (
    (architecture_named("Qwen2.5-1.5B"), 241, 32),
    (architecture_named("Qwen3-1.7B"), 61, 8),
    (architecture_named("Llama-3.2-3B"), 60, None),
    (MINICPM, 18, 2),
    (SMOLLM2, 32, 4),
    (architecture_named("jet-nemotron-2b"), 2885, 128),
    (architecture_named("jet-nemotron-4b"), 1271, 64),
)

# Context in K: (batch, chunk) of Jet-Nemotron-2B, published prefill and decode speed-up over Qwen3-1.7B-Base.
SPEED_UPS: Mapping[int, tuple[tuple[int, int], float, float]] = {
    4: ((1024, 256), 1.14, 15.6),
    8: ((512, 512), 1.15, 23.3),
    16: ((512, 512), 1.37, 39.6),
    32: ((256, 1024), 1.74, 44.1),
    64: ((128, 2048), 2.54, 47.5),
    128: ((128, 2048), 4.03, 51.6),
    256: ((64, 2048), 6.14, 53.6),
}

# Table 2: d_K, d_V, heads, published tokens/s.
TABLE_2 = (
    (256, 288, 4, 2969),
    (192, 384, 4, 2961),
    (128, 576, 4, 2979),
    (256, 144, 8, 2986),
    (192, 192, 8, 2970),
    (128, 288, 8, 2971),
    (128, 192, 12, 2959),
    (96, 256, 12, 2955),
    (64, 384, 12, 2952),
)


def _largest(architecture: Architecture, workload: Workload, model: CostModel, host: Host) -> int:
    memory = memory_of(architecture, workload, device_bytes=model.device.memory_bytes, host=host)
    return memory.max_batch


def rule(architecture: Architecture, context: int, model: CostModel, host: Host) -> tuple[int, int]:
    """Batch and prefill chunk where the paper states none.

    The largest power of two of sequences whose decode fits and whose prefill fits in chunks of at least 256 tokens;
    then the largest power of two of a chunk, at most 16384, that fits at that batch. (The paper chooses the chunk
    so that the batch is largest; 16384 is its largest stated chunk.)
    """
    sizes = [chunk for chunk in (256 * 2**i for i in range(7)) if chunk <= context]
    prefills = [Workload(phase="prefill", batch=1, context=context, chunk=chunk) for chunk in sizes]
    fits = [_largest(architecture, prefill, model, host) for prefill in prefills]
    decode = _largest(architecture, Workload(phase="decode", batch=1, context=context), model, host)
    batch = 1 << (min(fits[0], decode).bit_length() - 1)
    return batch, max(chunk for chunk, most in zip(sizes, fits, strict=True) if most >= batch)


def _decode(architecture: Architecture, batch: int, context: int, model: CostModel, host: Host) -> float:
    workload = Workload(phase="decode", batch=batch, context=context)
    return model_cost(architecture, workload, model=model, host=host).throughput_tokens_per_s


def _prefill(
    architecture: Architecture, shape: tuple[int, int], context: int, model: CostModel, host: Host
) -> float:
    workload = Workload(phase="prefill", batch=shape[0], context=context, chunk=shape[1])
    return model_cost(architecture, workload, model=model, host=host).throughput_tokens_per_s


def table_3(model: CostModel) -> list[Row]:
    """Tokens per second of one decode step at 64K tokens, at the paper's batch or the rule's."""
    rows = []
    for architecture, published, stated in TABLE_3:
        batch = stated or rule(architecture, 64 * K, model, HF_EAGER)[0]
        eager, engine = (_decode(architecture, batch, 64 * K, model, host) for host in (HF_EAGER, ENGINE))
        setting = f"{batch}" if stated else f"{batch} (rule)"
        rows.append(Row(architecture.name, setting, published, eager, engine))
    return rows


def decode_speed_ups(model: CostModel) -> list[Row]:
    """Jet-Nemotron-2B over Qwen3-1.7B in decode, by context."""
    jet, full = architecture_named("jet-nemotron-2b"), architecture_named("Qwen3-1.7B")
    rows = []
    for context, ((batch, _), _, published) in SPEED_UPS.items():
        other, _ = rule(full, context * K, model, HF_EAGER)
        eager, engine = (
            _decode(jet, batch, context * K, model, host) / _decode(full, other, context * K, model, host)
            for host in (HF_EAGER, ENGINE)
        )
        rows.append(Row(f"{context}K", f"{batch} / {other}", published, eager, engine))
    return rows


def prefill_speed_ups(model: CostModel) -> list[Row]:
    """Jet-Nemotron-2B over Qwen3-1.7B in chunked prefill, by context."""
    jet, full = architecture_named("jet-nemotron-2b"), architecture_named("Qwen3-1.7B")
    rows = []
    for context, (shape, published, _) in SPEED_UPS.items():
        other = rule(full, context * K, model, HF_EAGER)
        eager, engine = (
            _prefill(jet, shape, context * K, model, host) / _prefill(full, other, context * K, model, host)
            for host in (HF_EAGER, ENGINE)
        )
        setting = f"{shape[0]} x {shape[1]} / {other[0]} x {other[1]}"
        rows.append(Row(f"{context}K", setting, published, eager, engine))
    return rows


def table_2(model: CostModel) -> list[Row]:
    """Tokens per second of nine Gated DeltaNet shapes in the placement of Jet-Nemotron-2B, batch 128 at 64K."""
    jet = architecture_named("jet-nemotron-2b")
    rows = []
    for d_k, d_v, heads, published in TABLE_2:
        mixer = GatedDeltaNet(num_k_heads=heads, num_v_heads=heads, head_k_dim=d_k, head_v_dim=d_v)
        architecture = jet.replace(
            layers=tuple(
                LayerSpec(mixer=mixer, ffn=layer.ffn) if isinstance(layer.mixer, JetBlock) else layer
                for layer in jet.layers
            )
        )
        eager, engine = (_decode(architecture, 128, 64 * K, model, host) for host in (HF_EAGER, ENGINE))
        rows.append(Row(f"{d_k} / {d_v} / {heads}", "128", published, eager, engine))
    return rows


def spread(rows: Sequence[Row]) -> float:
    """Largest over smallest prediction under Hugging Face eager, less one."""
    values = [row.eager for row in rows]
    return max(values) / min(values) - 1


def spearman(rows: Sequence[Row]) -> float:
    """Rank correlation of predicted (Hugging Face eager) and published figures."""
    return float(spearmanr([row.eager for row in rows], [row.published for row in rows]).statistic)


def _print(title: str, head: tuple[str, str], rows: Sequence[Row], *, digits: int) -> None:
    print(f"\n### {title}\n")
    print(f"| {head[0]} | {head[1]} | published | predicted, hf-eager | error | predicted, engine |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        figures = (f"{row.eager:,.{digits}f}", f"{row.error:+.0%}", f"{row.engine:,.{digits}f}")
        print(f"| {row.name} | {row.setting} | {row.published:,g} | {' | '.join(figures)} |")


def main() -> None:
    model = load_builtin("h100-sxm")
    throughput, grid = table_3(model), table_2(model)
    _print("Table 3: tokens/s at 64K", ("model", "batch"), throughput, digits=0)
    named = [row for row in throughput if row.name not in (MINICPM.name, SMOLLM2.name)]
    print(
        f"\nSpearman over these {len(throughput)} models: {spearman(throughput):.3f}; "
        f"over the {len(named)} that `hwsearch bases` lists: {spearman(named):.3f}"
    )
    _print(
        "Decode speed-up of Jet-Nemotron-2B over Qwen3-1.7B",
        ("context", "batch, 2B / Qwen3 (rule)"),
        decode_speed_ups(model),
        digits=1,
    )
    _print(
        "Prefill speed-up of Jet-Nemotron-2B over Qwen3-1.7B",
        ("context", "batch x chunk, 2B / Qwen3 (rule)"),
        prefill_speed_ups(model),
        digits=2,
    )
    _print("Table 2: nine shapes of equal cache, tokens/s", ("d_K / d_V / heads", "batch"), grid, digits=0)
    print(f"\nSpread of the nine: predicted {spread(grid):.1%}, published {_published_spread(grid):.1%}")


def _published_spread(rows: Sequence[Row]) -> float:
    values = [row.published for row in rows]
    return max(values) / min(values) - 1


if __name__ == "__main__":
    main()
