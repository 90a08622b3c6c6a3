"""How well do rules that pick attention layers agree across models, and how much of a pick is sampling noise?

    python benchmarks/selection_rules.py [--draws 1000] [-o benchmarks/results/selection_rules.json]

On the shipped per-layer sweeps of Qwen3-1.7B and Qwen3-4B (github.com/thunlp/hybrid-linear-attention, arXiv
2601.22156). Prints Markdown; docs/placement-rules.md holds the output.

Across models: Spearman correlation of a rule's scores at equal relative depth (the 4B interpolated to the 1.7B's 28),
with the 5th to 95th percentile over bootstrap draws of both sweeps; the ceiling is what two draws of the same model
agree by, the geometric mean of both models. Top k: the expected share that the picks of two draws of one model have in
common, and beside it what random picks would share. Held-out task: a rule on two of the recall tasks against the third
one's measured drops, Spearman, mean of the three.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from hwsearch.surrogate.importance import LayerSweep, load_sweep
from hwsearch.surrogate.selection import RECALL, RULES, Rule, at_depths, overlap, replicas

__all__ = ["Finding", "judged"]

SWEEPS = (("qwen3-1.7b-sweep", "Qwen3-1.7B", 28), ("qwen3-4b-sweep", "Qwen3-4B", 36))
FEW, QUARTER = (
    (2, 3),
    (7, 9),
)  # Jet-Nemotron's counts of full-attention layers; a quarter of the layers, as HALO keeps


@dataclass(frozen=True)
class Finding:
    """Of one rule; pairs are for Qwen3-1.7B and Qwen3-4B. See the module's docstring."""

    rule: str
    across: float
    across_low: float
    across_high: float
    ceiling: float
    few: tuple[float, float]
    quarter: tuple[float, float]
    held_out: tuple[float, float]
    picks: tuple[tuple[int, ...], tuple[int, ...]]


def _spearman(one: np.ndarray, other: np.ndarray) -> float:
    return float(spearmanr(one, other).statistic)


def _across(rule: Rule, small: LayerSweep, large: LayerSweep) -> float:
    return _spearman(rule(small), at_depths(rule(large), small.num_layers))


def _held_out(rule: Rule, sweep: LayerSweep) -> float:
    """The rule without one recall task, against that task."""
    return float(
        np.mean(
            [
                _spearman(
                    rule(sweep.only([t for t in sweep.tasks if t != task])), sweep.only([task]).drops[:, 0]
                )
                for task in RECALL
            ]
        )
    )


def judged(*, draws: int, seed: int = 0) -> list[Finding]:
    """Every rule on both sweeps."""
    small, large = (load_sweep(name, base=base, num_layers=layers) for name, base, layers in SWEEPS)
    again = [replicas(sweep, 2 * draws, seed=seed + i) for i, sweep in enumerate((small, large))]
    found = []
    for name, rule in RULES.items():
        scores = [[rule(sweep) for sweep in drawn] for drawn in again]
        pairs = [list(zip(s[:draws], s[draws:], strict=True)) for s in scores]
        same = [float(np.mean([_spearman(a, b) for a, b in p])) for p in pairs]
        across = [
            _spearman(a, at_depths(b, small.num_layers))
            for a, b in zip(scores[0][:draws], scores[1][:draws], strict=True)
        ]
        few, quarter = (
            tuple(float(np.mean([overlap(a, b, k=k) for a, b in p])) for k, p in zip(ks, pairs, strict=True))
            for ks in (FEW, QUARTER)
        )
        picks = [
            tuple(sorted(np.argsort(-rule(sweep), kind="stable")[:k].tolist()))
            for sweep, k in zip((small, large), QUARTER, strict=True)
        ]
        low, high = np.quantile(across, [0.05, 0.95])
        found.append(
            Finding(
                rule=name,
                across=_across(rule, small, large),
                across_low=float(low),
                across_high=float(high),
                ceiling=float(np.sqrt(max(same[0], 0.0) * max(same[1], 0.0))),
                few=(few[0], few[1]),
                quarter=(quarter[0], quarter[1]),
                held_out=(_held_out(rule, small), _held_out(rule, large)),
                picks=(picks[0], picks[1]),
            )
        )
    return found


def _print(found: list[Finding]) -> None:
    print("| rule | across models | 90% of draws | ceiling | top 2, 3 | top 7, 9 | held-out task |")
    print("|---|---|---|---|---|---|---|")
    for f in found:
        few, quarter = (", ".join(f"{share:.2f}" for share in pair) for pair in (f.few, f.quarter))
        held = ", ".join(f"{rho:+.2f}" for rho in f.held_out)
        print(
            f"| {f.rule} | {f.across:+.2f} | {f.across_low:+.2f} to {f.across_high:+.2f} | {f.ceiling:.2f} | "
            f"{few} | {quarter} | {held} |"
        )
    chance = [
        ", ".join(f"{k / n:.2f}" for k, (_, _, n) in zip(ks, SWEEPS, strict=True)) for ks in (FEW, QUARTER)
    ]
    print(f"| random picks | 0 | | | {chance[0]} | {chance[1]} | 0 |")
    print()
    print("| rule | 7 of Qwen3-1.7B | 9 of Qwen3-4B |")
    print("|---|---|---|")
    for f in found:
        print(f"| {f.rule} | {', '.join(map(str, f.picks[0]))} | {', '.join(map(str, f.picks[1]))} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    found = judged(draws=given.draws)
    _print(found)
    if given.output:
        content = {"draws": given.draws, "seed": 0, "rules": [asdict(f) for f in found]}
        given.output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
