"""What PostNAS costs at the size of Qwen2.5-1.5B on H100s, predicted by our own cost model, beside the paper's hours.

    python benchmarks/postnas_cost.py

prints Markdown; docs/postnas.md holds the output. Nothing is measured here: `pipeline.training_cost` says how a
training step is derived from forward kernels. Rows of 4096 tokens, 8 of them a step; the pass over tasks is taken as
2 M tokens for every architecture scored, 1000 items of 2000 tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from hwsearch.costmodel.builtin_models import load_builtin
from hwsearch.pipeline.linear_blocks import BLOCKS, block_named, grid_of, with_block
from hwsearch.pipeline.training_cost import local_training, path_training, scoring_cost
from hwsearch.searchspace.architecture import Architecture
from hwsearch.searchspace.bases import BASES
from hwsearch.searchspace.presets import preset_named
from hwsearch.searchspace.references import architecture_named

__all__ = ["Row", "rows"]

BATCH, CONTEXT = 8, 4096
PAPER_TOKENS = (
    50e9  # of the supernet (arXiv 2508.15884), and of each run at 624 hours, which its rates put at as many
)
ALIGN, PATHS, PROXY = (
    50e6,
    300e6,
    100e6,
)  # tokens as proposed here: stage A, stage B, and a candidate trained alone
SCORED = 2e6
WIDTH, FULL, WINDOWS, RULES = 4, 2, 2, 3


@dataclass(frozen=True)
class Row:
    """A step: H100-hours published, predicted for as many tokens, and predicted as proposed here; None where absent."""

    step: str
    published: float | None
    alike: float | None
    here: float
    what: str


def _beam(layers: int, steps: int) -> int:
    """Architectures that a beam scores at most: the start, then what its members grow into."""
    return 1 + sum((1 if i == 0 else WIDTH) * (layers - i) for i in range(steps))


def rows() -> list[Row]:
    """Every step of the pipeline."""
    model, base = load_builtin("h100-sxm"), BASES["Qwen2.5-1.5B"]
    placed = architecture_named("jet-nemotron-2b")
    space = preset_named("postnas-placement", base)
    delta = with_block(placed, block_named("gated_delta_net", base), name="path")
    path = path_training(delta, model=model, batch=BATCH, context=CONTEXT)
    local = local_training(space, model=model, batch=BATCH, context=CONTEXT)
    score = scoring_cost(Architecture.of_base(base), model=model, batch=BATCH, context=CONTEXT).hours(SCORED)
    blocks = [
        path_training(
            with_block(placed, block_named(kind, base), name=kind), model=model, batch=BATCH, context=CONTEXT
        )
        for kind in BLOCKS
    ]
    shapes = [
        path_training(with_block(placed, shape, name="shape"), model=model, batch=BATCH, context=CONTEXT)
        for shape in grid_of(block_named("jet_block", base))
    ]
    layers = base.num_layers
    beams = _beam(layers, FULL) + (1 + RULES) * _beam(layers - FULL, WINDOWS)
    finalists = -(-len(shapes) // 3)
    grid = sum(0.25 * shape.hours(PROXY) for shape in shapes)
    grid += 0.75 * finalists * max(shape.hours(PROXY) for shape in shapes)
    return [
        Row(
            "supernet",
            808,
            path.hours(PAPER_TOKENS),
            local.hours(ALIGN) + path.hours(PATHS),
            f"{ALIGN / 1e6:.0f} M tokens of stage A, {PATHS / 1e6:.0f} M of stage B",
        ),
        Row("importance", None, None, (2 * layers + 2) * score, f"{2 * layers + 2} architectures scored"),
        Row(
            "placement, windows",
            None,
            None,
            beams * score,
            f"{beams} scored at most, beam of {WIDTH}, windows also around three rules",
        ),
        Row(
            "block selection",
            3120,
            sum(block.hours(PAPER_TOKENS) for block in blocks[:5]),
            sum(block.hours(PROXY) for block in blocks),
            f"{len(blocks)} blocks, {PROXY / 1e6:.0f} M tokens each",
        ),
        Row(
            "hardware-aware grid",
            5616,
            9 * shapes[0].hours(PAPER_TOKENS),
            grid,
            f"{len(shapes)} shapes, {finalists} of them for {PROXY / 1e6:.0f} M tokens, the others for a quarter",
        ),
    ]


def main() -> None:
    print("| step | published | predicted, as many tokens | predicted, as here | as here |")
    print("|---|---|---|---|---|")
    found = rows()
    for row in found:
        published = "" if row.published is None else f"{row.published:.0f}"
        alike = "" if row.alike is None else f"{row.alike:.0f}"
        print(f"| {row.step} | {published} | {alike} | {row.here:.1f} | {row.what} |")
    totals = [
        sum(filter(None, values)) for values in zip(*((r.published, r.alike) for r in found), strict=True)
    ]
    print(f"| sum | {totals[0]:.0f} | {totals[1]:.0f} | {sum(row.here for row in found):.1f} | |")


if __name__ == "__main__":
    main()
