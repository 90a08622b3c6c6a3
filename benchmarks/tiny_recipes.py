"""Which recipe makes the supernet that ranks best, at equal processor time? On the architectures of the ranking target.

The seed of the ranking target must be there: its architectures, trained alone, are the truth, and the processor times
of its two stages set the price. Every variant gets as many steps as the standard recipe's time would buy: without stage
A more sampled paths, without stage B more local steps; a loss that is left out saves too little to matter.

The truth itself was trained from stage A with both losses, which may favour the recipes that resemble it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tiny_ranking
from tiny_bench import RATE_A, RATE_B, STEPS_A, aligned_folder, need, target_folder
from tiny_ranking import ALONE, STEPS_B, taus

from hwsearch.pipeline.steps import Steps
from hwsearch.surrogate.distil import LossWeights
from hwsearch.surrogate.training import Recipe, Stage

_ALIGNED = ("no KL", "no feature loss")  # start from stage A
SHOWN = ("mean_loss", "mean_accuracy", "recall.loss", "kl")


def recipes(work: Path, seed: int) -> dict[str, Recipe]:
    """Variants by name."""
    ranking = Steps(target_folder(work, tiny_ranking.TARGET, seed))
    step_a = need(Steps(aligned_folder(work, seed)), "time")["seconds"] / STEPS_A
    step_b = need(ranking, "b-time")["seconds"] / STEPS_B
    none = Stage(steps=0, learning_rate=RATE_B)
    paths = Recipe(a=none, b=Stage(steps=STEPS_B, learning_rate=RATE_B), seed=seed)
    return {
        "no stage A": replace(paths, b=replace(paths.b, steps=STEPS_B + round(STEPS_A * step_a / step_b))),
        "no stage B": replace(
            paths,
            a=Stage(steps=STEPS_A + round(STEPS_B * step_b / step_a), learning_rate=RATE_A),
            b=none,
        ),
        "no KL": replace(paths, losses=LossWeights(feature=1.0, kl=0.0)),
        "no feature loss": replace(paths, losses=LossWeights(feature=0.0, kl=1.0)),
    }


def run(work: Path, seed: int, teacher: Path) -> None:
    """One seed."""
    bench = tiny_ranking.bench(work, seed, teacher)
    genomes = tiny_ranking.architectures(bench)[:ALONE]
    for name, recipe in recipes(work, seed).items():
        label = name.replace(" ", "-")
        start = bench.aligned() if name in _ALIGNED else bench.untrained()
        bench.scores(bench.supernet(start, recipe, name=label), genomes, name=f"scores-{label}")
        print(f"seed {seed}: {name} done", flush=True)
    print(json.dumps(summary(work, seed), indent=1), flush=True)


def summary(work: Path, seed: int) -> dict[str, Any]:
    """Per variant tau of each metric with itself after training alone, the mean score, and the seconds of training."""
    steps = Steps(target_folder(work, tiny_ranking.TARGET, seed))
    lone = [need(steps, f"alone-{i:02d}")["score"] for i in range(ALONE)]
    stage_a = need(Steps(aligned_folder(work, seed)), "time")["seconds"]
    found = {"standard": ("supernet-scores", "b-time", stage_a)}
    for name in recipes(work, seed):
        label = name.replace(" ", "-")
        found[name] = (f"scores-{label}", f"{label}-time", stage_a if name in _ALIGNED else 0.0)
    return {
        name: {
            "tau": {m: taus(need(steps, scores)["scores"], lone)[f"{m} -> {m}"] for m in SHOWN},
            "mean": {m: float(np.mean([s[m] for s in need(steps, scores)["scores"]])) for m in SHOWN},
            "train_s": before + need(steps, time)["seconds"],
        }
        for name, (scores, time, before) in found.items()
    }


def show(seeds: Mapping[str, Mapping[str, Any]]) -> None:
    """Tau by variant, each the seeds' values."""
    print(
        f"| recipe | {' | '.join(f'tau, {m}' for m in SHOWN)} | mean loss of the 24 | mean KL | training, s |"
    )
    print("|---|" + "---|" * (len(SHOWN) + 3))
    for name in next(iter(seeds.values())):
        rows = [seed[name] for seed in seeds.values()]
        cells = [", ".join(f"{row['tau'][m]:+.2f}" for row in rows) for m in SHOWN]
        cells += [", ".join(f"{row['mean'][m]:.2f}" for row in rows) for m in ("mean_loss", "kl")]
        cells += [", ".join(f"{row['train_s']:.0f}" for row in rows)]
        print(f"| {name} | {' | '.join(cells)} |")
