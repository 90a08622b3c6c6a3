"""Target 1 of PostNAS on the tiny teacher: does the supernet rank architectures as training them would?

Space: 2 full-attention and 2 sliding-window layers of 8, the rest gated delta nets: 420 architectures. The supernet
trains STEPS_B sampled paths. 24 architectures are then trained alone, each from stage A for 10 times the supernet's
steps per architecture, so that the 24 together cost 10 times the supernet's stage B. The supernet's scores of the 24
are compared with their scores after that (Kendall's tau), by every metric. The predictor is fitted to the supernet's
scores of 60 other architectures and judged on those of 120 it has not seen.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau
from tiny_bench import METRICS, Bench, Genome, aligned_folder, better, need, target_folder

from hwsearch.pipeline.steps import Steps
from hwsearch.searchspace.space import CountLimit
from hwsearch.surrogate.predictor import Predictor

TARGET = "ranking"
ALONE, FITTED, JUDGED = 24, 60, 120  # trained alone; scored for the predictor; scored to judge it
STEPS_B = 168
CHOOSING, JUDGING = (16, 8), (60, 24)  # items of each task, rows of text


def bench(work: Path, seed: int, teacher: Path) -> Bench:
    """One seed's."""
    exactly = CountLimit(at_least=2, at_most=2)
    return Bench(
        work,
        TARGET,
        seed=seed,
        teacher=teacher,
        space_of=lambda s: s.limit("full_attention", exactly).limit("sliding_window_attention", exactly),
        choosing=CHOOSING,
        judging=JUDGING,
        config={"b": STEPS_B, "architectures": [ALONE, FITTED, JUDGED]},
    )


def architectures(of: Bench) -> list[Genome]:
    """All of the space in the seed's order."""
    order = np.random.default_rng(of.seed).permutation(of.space.size)
    return [tuple(of.space.paths.unrank(i)) for i in order]


def run(work: Path, seed: int, teacher: Path) -> None:
    """One seed."""
    own = bench(work, seed, teacher)
    everyone = architectures(own)
    aligned = own.aligned()
    net = own.supernet(aligned, own.recipe(b=STEPS_B))
    own.scores(net, everyone[:ALONE], name="supernet-scores")
    own.scores(net, everyone[ALONE : ALONE + FITTED + JUDGED], name="predictor-scores")
    steps = round(10 * STEPS_B / ALONE)
    for i, genome in enumerate(everyone[:ALONE]):
        found = own.alone(aligned, genome, steps=steps, name=f"alone-{i:02d}")
        print(f"seed {seed}: {i + 1} of {ALONE} trained alone, {found['seconds']:.0f} s, "
              f"mean loss {found['score']['mean_loss']:.3f}", flush=True)  # fmt: skip
    print(json.dumps(summary(work, seed), indent=1), flush=True)


def summary(work: Path, seed: int) -> dict[str, Any]:
    """What a seed's files say."""
    steps = Steps(target_folder(work, TARGET, seed))
    under, more = need(steps, "supernet-scores"), need(steps, "predictor-scores")
    lone = [need(steps, f"alone-{i:02d}") for i in range(ALONE)]
    genomes = np.array(more["genomes"])
    predictor = {}
    for metric in METRICS:
        values = np.array([s[metric] for s in more["scores"]])
        fitted = Predictor.fit(genomes[:FITTED], values[:FITTED], num_choices=int(genomes.max()) + 1, seed=0)
        mean, deviation = fitted.predict(genomes[FITTED:])
        inside = np.abs(mean - values[FITTED:]) <= 1.645 * deviation
        predictor[metric] = {
            "tau": float(kendalltau(mean, values[FITTED:]).statistic),
            "tau_foreseen": fitted.tau,
            "inside_90": float(inside.mean()),
        }
    each = (under["seconds"] + more["seconds"]) / (ALONE + FITTED + JUDGED)
    training = float(np.mean([found["seconds"] for found in lone]))
    stage_a = need(Steps(aligned_folder(work, seed)), "time")["seconds"]
    return {
        "tau": taus(under["scores"], [found["score"] for found in lone]),
        "predictor": predictor,
        "supernet_train_s": stage_a + need(steps, "b-time")["seconds"],
        "score_s": each,
        "alone_s": training,
        "cost_ratio": training / each,
        "spread_alone": {m: float(np.std([found["score"][m] for found in lone])) for m in METRICS},
    }


def taus(under: list[dict[str, float]], after: list[dict[str, float]]) -> dict[str, float]:
    """Kendall's tau of every metric under the supernet with every metric after training alone; NaN without spread."""
    return {
        f"{one} -> {other}": float(
            kendalltau(
                [better(one) * s[one] for s in under], [better(other) * s[other] for s in after]
            ).statistic
        )
        for one in METRICS
        for other in METRICS[:-1]
    }


def show(seeds: Mapping[str, Mapping[str, Any]]) -> None:
    """Kendall's tau: rows are what the supernet says, columns what training alone says, each the seeds' values."""
    after = ("mean_loss", "mean_accuracy", "recall.loss", "recall.accuracy", "kl")
    print(f"| supernet's | {' | '.join(after)} | predictor on unseen | in its 90% |")
    print("|---|" + "---|" * (len(after) + 2))
    for metric in METRICS:
        row = [
            ", ".join(f"{seed['tau'][f'{metric} -> {name}']:+.2f}" for seed in seeds.values())
            for name in after
        ]
        unseen = ", ".join(f"{seed['predictor'][metric]['tau']:+.2f}" for seed in seeds.values())
        inside = ", ".join(f"{seed['predictor'][metric]['inside_90']:.0%}" for seed in seeds.values())
        print(f"| {metric} | {' | '.join(row)} | {unseen} | {inside} |")
    for name, seed in seeds.items():
        print(
            f"{name}: {seed['supernet_train_s']:.0f} s for the supernet, {seed['score_s']:.2f} s a score, "
            f"{seed['alone_s']:.1f} s a training alone, ratio {seed['cost_ratio']:.0f}"
        )
