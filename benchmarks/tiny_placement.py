"""Target 2 of PostNAS on the tiny teacher: does a searched placement of full attention beat the usual rules?

Space: `full` full-attention and `windows` sliding-window layers of 8, the rest gated delta nets. Full attention is
placed as the pipeline places it, by beam search under a supernet, once for each score in PLACED_BY, the pipeline's own
first; its rivals are uniform, first, last, and placements at random, 10 where one layer keeps full attention, which the
target judges, 3 elsewhere, for the curve of tiny_curve.py. Windows are then placed around every one of them by the same
beam search, for the mean loss over tasks: the rivals differ in where full attention is, and each has the windows that
suit it best. Each is trained alone from the supernet's weights for STEPS_ALONE steps, as many as `hwsearch postnas`
gives a candidate by default, and judged on items that chose nothing. Seed 0 was looked at while this was set up; other
seeds judge.

A placement beats another on a task where its accuracy is higher by more than two standard errors of the difference,
taken as if the two had answered different items. Which score foresees best is told by Kendall's tau over all placements
that were trained: with one full-attention layer, all there are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tiny_bench import Bench, Genome, need, target_folder
from tiny_ranking import taus

from hwsearch.pipeline.postnas_placement import grown, rule_placements, unbeaten
from hwsearch.pipeline.steps import Steps
from hwsearch.search.beam import BeamResult
from hwsearch.searchspace.space import CountLimit
from hwsearch.surrogate.layer_scores import linear_choice

PLACED_BY = ("mean_loss", "recall.loss", "kl", "feature_mse")
WINDOWS_BY = "mean_loss"
STEPS_B, STEPS_ALONE = 168, 150
CHOOSING, JUDGING = (32, 8), (120, 24)  # items of each task, rows of text
WIDTH, RANDOM, RANDOM_OF_CURVE = 4, 10, 3
SEARCHED = f"searched by {PLACED_BY[0]}"
RULES = ("uniform", "first", "last", "random, mean")


def target(full: int, windows: int) -> str:
    return f"placement-{full}-{windows}"


def run(work: Path, seed: int, teacher: Path, *, full: int, windows: int) -> None:
    """One seed."""
    bench = Bench(
        work,
        target(full, windows),
        seed=seed,
        teacher=teacher,
        space_of=lambda s: s.limit("full_attention", CountLimit(at_most=full)).limit(
            "sliding_window_attention", CountLimit(at_most=windows)
        ),
        choosing=CHOOSING,
        judging=JUDGING,
        config={
            "b": STEPS_B,
            "alone": STEPS_ALONE,
            "width": WIDTH,
            "placed_by": PLACED_BY,
            "windows_by": f"{WINDOWS_BY}, unbeaten",
        },
    )
    net = bench.supernet(bench.aligned(), bench.recipe(b=STEPS_B))
    scorer, space = bench.scorer(net, choosing=True), bench.space
    layers, softmax = space.num_layers, space.kinds.index("full_attention")
    linear = np.full(layers, linear_choice(space))

    def searched(metric: str) -> list[int]:
        found = grown(
            linear, kind="full_attention", count=full, metric=metric, width=WIDTH, scorer=scorer, space=space
        )
        return np.flatnonzero(np.array(found.path[-1][0]) == softmax).tolist()

    at = {f"searched by {metric}": searched(metric) for metric in PLACED_BY}
    rules = rule_placements(layers, full)
    at |= rules
    rng, draws = np.random.default_rng(seed), RANDOM if full == 1 else RANDOM_OF_CURVE
    at |= {f"random {i}": sorted(rng.permutation(layers)[:full].tolist()) for i in range(draws)}
    if full == 1:
        at |= {f"layer {i}": [i] for i in range(layers)}

    def completed(where: list[int]) -> BeamResult:
        placed = linear.copy()
        placed[where] = softmax
        return grown(
            placed, kind="sliding_window_attention", count=windows, metric=WINDOWS_BY, width=WIDTH,
            scorer=scorer, space=space,
        )  # fmt: skip

    def placements() -> dict[str, list[int]]:
        found = {name: completed(where) for name, where in at.items()}
        genomes = {name: list(each.path[-1][0]) for name, each in found.items()}
        thumb = np.array([genomes[name] for name in rules])
        return genomes | {
            name: unbeaten(each, thumb, scorer=scorer)
            for name, each in found.items()
            if name.startswith("searched") and windows
        }

    rivals = bench.steps.run("rivals", placements)
    genomes = list(dict.fromkeys(tuple(genome) for genome in rivals.values()))
    bench.scores(net, genomes, name="under-supernet")
    for genome in genomes:
        found = bench.alone(net, genome, steps=STEPS_ALONE, name=_name(genome))
        print(f"seed {seed}: {_layers(genome, softmax)} recall {found['score']['recall.accuracy']:.2f}, "
              f"mean accuracy {found['score']['mean_accuracy']:.3f}", flush=True)  # fmt: skip
    print(json.dumps(summary(work, seed, full=full, windows=windows), indent=1), flush=True)


def summary(work: Path, seed: int, *, full: int, windows: int) -> dict[str, Any]:
    """What a seed's files say: every rival's scores after training, and how the searched one compares."""
    steps = Steps(target_folder(work, target(full, windows), seed))
    rivals, under = need(steps, "rivals"), need(steps, "under-supernet")
    alone = {tuple(g): need(steps, _name(g))["score"] for g in under["genomes"]}
    scores = {name: alone[tuple(genome)] for name, genome in rivals.items()}
    drawn = [score for name, score in scores.items() if name.startswith("random ")]
    kept = {n: s for n, s in scores.items() if not n.startswith(("random ", "layer "))}
    kept[RULES[-1]] = {m: float(np.mean([s[m] for s in drawn])) for m in drawn[0]}
    tasks = [m.removesuffix(".error") for m in drawn[0] if m.endswith(".error")]
    own = kept[SEARCHED]
    compared = {}
    for rule in RULES:
        gaps = {task: own[f"{task}.accuracy"] - kept[rule][f"{task}.accuracy"] for task in tasks}
        noise = {
            task: 2 * float(np.hypot(own[f"{task}.error"], kept[rule][f"{task}.error"])) for task in tasks
        }
        compared[rule] = {
            "recall_gap": gaps["recall"],
            "beaten_on_recall": gaps["recall"] > noise["recall"],
            "gaps": gaps,
            "lost_by_more_than_noise": [task for task in tasks if gaps[task] < -noise[task]],
        }
    return {
        "layers": {
            name: {kind: [i for i, c in enumerate(genome) if c == choice] for choice, kind in _KINDS.items()}
            for name, genome in rivals.items()
        },
        "scores": kept,
        "searched_against": compared,
        "met": all(c["beaten_on_recall"] and not c["lost_by_more_than_noise"] for c in compared.values()),
        "tau": taus(under["scores"], list(alone.values())),
        "placements": len(alone),
    }


_KINDS = {0: "full", 1: "windows"}  # choices of the space, which stand in this order in the preset


def _name(genome: Genome) -> str:
    return f"alone-{''.join(map(str, genome))}"


def _layers(genome: Genome, choice: int) -> list[int]:
    return [i for i, c in enumerate(genome) if c == choice]


def show(seeds: Mapping[str, Mapping[str, Any]]) -> None:
    """Accuracies after equal training; each the seeds' values."""
    first = next(iter(seeds.values()))["scores"]
    tasks = [m.removesuffix(".error") for m in next(iter(first.values())) if m.endswith(".error")]
    print(f"| placement | {' | '.join(tasks)} | mean | KL, nats |")
    print("|---|" + "---|" * (len(tasks) + 2))
    for rival in first:
        scores = [seed["scores"][rival] for seed in seeds.values()]
        cells = [", ".join(f"{100 * s[f'{task}.accuracy']:.0f}" for s in scores) for task in tasks]
        cells += [", ".join(f"{100 * s['mean_accuracy']:.0f}" for s in scores)]
        cells += [", ".join(f"{s['kl']:.3f}" for s in scores)]
        print(f"| {rival} | {' | '.join(cells)} |")
    for name, seed in seeds.items():
        print(f"{name}: target {'met' if seed['met'] else 'missed'}")
        for rule, c in seed["searched_against"].items():
            lost = ", ".join(c["lost_by_more_than_noise"]) or "nothing"
            print(f"  against {rule}: recall {100 * c['recall_gap']:+.0f} points, loses {lost}")
        for rival, at in seed["layers"].items():
            if not rival.startswith(("random ", "layer ")):
                print(f"  {rival}: full attention at {at['full']}, windows at {at['windows']}")
    after = ("recall.loss", "recall.accuracy", "mean_loss", "mean_accuracy", "kl")
    print(f"\n| score under the supernet | {' | '.join(after)} |\n|---|" + "---|" * len(after))
    for metric in ("recall.loss", "recall.accuracy", "mean_loss", "mean_accuracy", "kl", "feature_mse"):
        cells = [
            ", ".join(f"{seed['tau'][f'{metric} -> {other}']:+.2f}" for seed in seeds.values())
            for other in after
        ]
        print(f"| {metric} | {' | '.join(cells)} |")
