"""Does a supernet rank architectures as training them would? The targets of PostNAS on the tiny teacher, seed by seed.

    python benchmarks/postnas_tiny.py ranking   --work DIR --seed 0
    python benchmarks/postnas_tiny.py placement --work DIR --seed 0 [--full 1]
    python benchmarks/postnas_tiny.py report    --work DIR -o benchmarks/results/postnas_tiny.json

Every step of a seed is written to DIR as it ends; the same command goes on with what is left, also after a kill.

Common to both: the teacher that ships with the package, data of the kind it was trained on, and everything but the new
mixers frozen. What scores choose by and what results are judged by share no task item and no text. Stage A (local
alignment) is run once per seed; all trainings of the seed start from its weights.

ranking (target 1). Space: 2 full-attention and 2 sliding-window layers of 8, the rest gated delta nets: 420
architectures. The supernet trains STEPS["b"] sampled paths. 24 architectures are then trained alone, each from stage A
for 10 times the supernet's steps per architecture, so that the 24 together cost 10 times the supernet's stage B. The
supernet's scores of the 24 are compared with their scores after that (Kendall's tau), by every metric. The predictor
is fitted to the supernet's scores of 60 other architectures and judged on those of 120 it has not seen.

placement (target 2). Space: `--full` full-attention layers of 8, the rest gated delta nets. Placements are searched by
beam under each of three scores, and trained alone for as long as the rivals: uniform, first, last, and 10 at random.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from scipy.stats import kendalltau

from hwsearch.models.checkpoint import Checkpoint
from hwsearch.pipeline.steps import Steps
from hwsearch.search.beam import beam_search
from hwsearch.search.problem import Objective, Problem
from hwsearch.searchspace.presets import preset_named
from hwsearch.searchspace.space import CountLimit, SearchSpace
from hwsearch.surrogate.corpus import PackedCorpus, pack
from hwsearch.surrogate.predictor import Predictor
from hwsearch.surrogate.scoring import Score, Scorer
from hwsearch.surrogate.supernet import Supernet
from hwsearch.surrogate.supernet_folder import tokenizer_of
from hwsearch.surrogate.synthetic import held_out_tasks
from hwsearch.surrogate.tasks import EncodedTasks
from hwsearch.surrogate.teacher import teacher_folder, write_data
from hwsearch.surrogate.training import Batches, Recipe, Stage, train

Genome = tuple[int, ...]

ALONE, FITTED, JUDGED = (
    24,
    60,
    120,
)  # architectures trained alone; scored for the predictor; scored to judge it
STEPS = {"a": 120, "b": 168}
BATCH, LENGTH, SAMPLES = 8, 128, 2500
CHOOSING, JUDGING = (16, 8), (60, 24)  # items of each task, rows of text
RATE_A, RATE_B = 4e-3, 2e-3
METRICS = ("kl", "mean_loss", "mean_accuracy", "recall.loss", "recall.accuracy", "feature_mse")
PLACED_BY = ("recall.loss", "kl", "feature_mse")
PLACEMENT_STEPS = 25
RANDOM = 10
CONFIG = [
    ALONE,
    FITTED,
    JUDGED,
    STEPS,
    BATCH,
    LENGTH,
    CHOOSING,
    JUDGING,
    SAMPLES,
    RATE_A,
    RATE_B,
    PLACEMENT_STEPS,
]


class Bench:
    """One seed: the teacher, its data, and what is trained from it."""

    def __init__(
        self, seed: int, folder: Path, teacher: Path, space_of: Callable[[SearchSpace], SearchSpace]
    ) -> None:

        torch.set_num_threads(1)
        self.seed = seed
        self.checkpoint = Checkpoint(teacher)
        self.space = space_of(preset_named("postnas-placement", self.checkpoint.base))
        settings = {
            "seed": seed,
            "teacher": hashlib.sha256((teacher / "model.safetensors").read_bytes()).hexdigest(),
            "choices": [choice.model_dump(mode="json") for choice in self.space.choices],
            "rules": self.space.rules,
            "config": CONFIG,
        }
        self.steps = Steps.open(folder, settings=settings)
        tokenizer = tokenizer_of(self.checkpoint)
        corpus = packed_corpus(folder.parents[1] / "data", tokenizer)
        # What chooses and what judges share no item and no text.
        self.tasks, self.text = {}, {}
        rows = corpus.validation.astype(np.int64)
        for choosing, (items, count) in ((True, CHOOSING), (False, JUDGING)):
            tasks = held_out_tasks(seed=100 * seed + choosing, items=items)
            self.tasks[choosing] = EncodedTasks.of(tasks, tokenizer, max_length=512)
            self.text[choosing] = torch.from_numpy(rows[:count] if choosing else rows[-count:])
        self.batches: Batches = lambda step: corpus.batch(step, batch=BATCH, seed=seed)

    def aligned(self) -> Supernet:
        """After stage A."""
        net = Supernet.of(self.checkpoint, self.space, dtype=torch.float32, seed=self.seed)
        self._train("a", net, a=STEPS["a"])
        return net

    def supernet(self, aligned: Supernet) -> Supernet:
        """After stage B, from a supernet after stage A."""
        net = copy.deepcopy(aligned)
        self._train("b", net, b=STEPS["b"])
        return net

    def _train(self, name: str, net: Supernet, *, a: int = 0, b: int = 0) -> float:
        """Trains in place, or loads what a training before ended with; process seconds of the training."""
        folder = self.steps.folder / name
        folder.mkdir(exist_ok=True)
        recipe = Recipe(
            a=Stage(steps=a, learning_rate=RATE_A), b=Stage(steps=b, learning_rate=RATE_B), seed=self.seed
        )
        began = time.process_time()
        train(net, self.batches, recipe, folder=folder)
        spent = time.process_time() - began
        known = self.steps.run(f"{name}-time", lambda: {"seconds": spent})
        return float(known["seconds"])

    def alone(self, start: Supernet, genome: Genome, *, steps: int, name: str) -> dict[str, Any]:
        """An architecture trained by itself from a supernet's weights: its score, and process seconds."""

        def trained() -> dict[str, Any]:
            net = start.only(genome)
            recipe = Recipe(
                a=Stage(steps=0, learning_rate=0.0),
                b=Stage(steps=steps, learning_rate=RATE_B),
                seed=self.seed,
            )
            began = time.process_time()
            train(net, self.batches, recipe)
            spent = time.process_time() - began
            return {
                "genome": list(genome),
                "seconds": spent,
                "score": _plain(self.scorer(net, choosing=False).scores(np.array([genome]))[0]),
            }

        return self.steps.run(name, trained)

    def scorer(self, net: Supernet, *, choosing: bool) -> Scorer:
        cache = self.steps.folder / "scores.sqlite" if choosing else None
        return Scorer(net, self.tasks[choosing], self.text[choosing], cache=cache)

    def scores(self, net: Supernet, genomes: Sequence[Genome], *, name: str) -> dict[str, Any]:
        """Scores under a supernet, and process seconds for all."""

        def scored() -> dict[str, Any]:
            began = time.process_time()
            found = self.scorer(net, choosing=True).scores(np.array(genomes))
            spent = time.process_time() - began
            return {
                "genomes": [list(g) for g in genomes],
                "seconds": spent,
                "scores": [_plain(s) for s in found],
            }

        return self.steps.run(name, scored)


def packed_corpus(folder: Path, tokenizer: Any) -> PackedCorpus:
    """The documentation of Python and samples of the abilities, as `hwsearch teacher data` writes them, packed."""
    if not (folder / "corpus").exists():
        if not (folder / "samples.jsonl").exists():
            write_data(folder, seed=7, samples=SAMPLES)
        sources = [folder / "text.jsonl", folder / "samples.jsonl"]
        pack(
            sources,
            tokenizer=tokenizer,
            folder=folder / "corpus",
            length=LENGTH,
            validation_share=0.05,
            seed=0,
        )
    corpus = PackedCorpus.open(folder / "corpus")
    corpus.check(tokenizer)
    return corpus


def _plain(score: Score) -> dict[str, float]:
    found = {metric: score.value(metric) for metric in METRICS}
    return found | {
        f"{task}.{k}": score.value(f"{task}.{k}") for task in score.tasks for k in ("accuracy", "loss")
    }


def _better(metric: str) -> float:
    """Sign that makes a lower value better."""
    return -1.0 if metric.endswith("accuracy") else 1.0


def ranking(seed: int, folder: Path, teacher: Path) -> None:
    """Target 1 for one seed."""
    exactly = CountLimit(at_least=2, at_most=2)
    bench = Bench(
        seed,
        folder,
        teacher,
        lambda s: s.limit("full_attention", exactly).limit("sliding_window_attention", exactly),
    )
    rng = np.random.default_rng(seed)
    everyone = [tuple(bench.space.paths.unrank(i)) for i in rng.permutation(bench.space.size)]
    aligned = bench.aligned()
    net = bench.supernet(aligned)
    bench.scores(net, everyone[:ALONE], name="supernet-scores")
    bench.scores(net, everyone[ALONE : ALONE + FITTED + JUDGED], name="predictor-scores")
    steps = round(10 * STEPS["b"] / ALONE)
    for i, genome in enumerate(everyone[:ALONE]):
        found = bench.alone(aligned, genome, steps=steps, name=f"alone-{i:02d}")
        print(f"seed {seed}: {i + 1} of {ALONE} trained alone, {found['seconds']:.0f} s, "
              f"mean loss {found['score']['mean_loss']:.3f}", flush=True)  # fmt: skip
    print(json.dumps(ranking_summary(folder), indent=1), flush=True)


def ranking_summary(folder: Path) -> dict[str, Any]:
    """What a seed's files say."""
    steps = Steps(folder)
    under, more = _need(steps, "supernet-scores"), _need(steps, "predictor-scores")
    lone = [_need(steps, f"alone-{i:02d}") for i in range(ALONE)]
    tau = {
        f"{metric} -> {after}": float(
            kendalltau(
                [_better(metric) * s[metric] for s in under["scores"]],
                [_better(after) * found["score"][after] for found in lone],
            ).statistic
        )
        for metric in METRICS
        for after in METRICS[:-1]
    }
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
    return {
        "tau": tau,
        "predictor": predictor,
        "supernet_train_s": _need(steps, "a-time")["seconds"] + _need(steps, "b-time")["seconds"],
        "score_s": each,
        "alone_s": training,
        "cost_ratio": training / each,
        "spread_alone": {m: float(np.std([found["score"][m] for found in lone])) for m in METRICS},
    }


def placement(seed: int, folder: Path, teacher: Path, *, full_layers: int) -> None:
    """Target 2 for one seed."""

    def two_kinds(space: SearchSpace) -> SearchSpace:
        kept = [i for i, kind in enumerate(space.kinds) if kind != "sliding_window_attention"]
        return space.restrict(kept).limit("full_attention", CountLimit(at_most=full_layers))

    bench = Bench(seed, folder, teacher, two_kinds)
    net = bench.supernet(bench.aligned())
    full, layers = bench.space.kinds.index("full_attention"), bench.space.num_layers
    linear = 1 - full
    rivals: dict[str, Genome] = {}
    for metric in PLACED_BY:

        def searched(metric: str = metric) -> dict[str, Any]:
            scorer = bench.scorer(net, choosing=True)
            problem = Problem(
                bench.space,
                objectives=(
                    Objective(metric, cost=lambda g: scorer.objective(g, metric=metric), tier="expensive"),
                ),
            )
            found = beam_search(problem, start=np.full(layers, linear), choices=[full], steps=full_layers)
            return {"genome": list(found.path[-1][0]), "evaluations": found.evaluations}

        rivals[f"searched by {metric}"] = tuple(bench.steps.run(f"searched-{metric}", searched)["genome"])
    at = {
        "uniform": [round((i + 0.5) * layers / full_layers - 0.5) for i in range(full_layers)],
        "first": list(range(full_layers)),
        "last": list(range(layers - full_layers, layers)),
    }
    rng = np.random.default_rng(seed)
    at |= {f"random {i}": rng.permutation(layers)[:full_layers].tolist() for i in range(RANDOM)}
    for name, where in at.items():
        rivals[name] = tuple(full if i in where else linear for i in range(layers))
    bench.steps.run("rivals", lambda: {name: list(genome) for name, genome in rivals.items()})
    for name, genome in rivals.items():
        same = "".join(map(str, genome))
        found = bench.alone(net, genome, steps=PLACEMENT_STEPS, name=f"alone-{same}")
        print(f"seed {seed}: {name} {np.flatnonzero(np.array(genome) == full).tolist()} recall "
              f"{found['score']['recall.accuracy']:.2f} {found['score']['recall.loss']:.4f}, "
              f"mean accuracy {found['score']['mean_accuracy']:.3f}", flush=True)  # fmt: skip
    print(json.dumps(placement_summary(folder), indent=1), flush=True)


def placement_summary(folder: Path) -> dict[str, Any]:
    """What a seed's files say: rival -> scores after training; "random" is the mean of the ten."""
    steps = Steps(folder)
    rivals = _need(steps, "rivals")
    scores = {n: _need(steps, f"alone-{''.join(map(str, g))}")["score"] for n, g in rivals.items()}
    drawn = [score for name, score in scores.items() if name.startswith("random ")]
    kept = {name: score for name, score in scores.items() if not name.startswith("random ")}
    kept["random, mean of 10"] = {m: float(np.mean([s[m] for s in drawn])) for m in drawn[0]}
    kept["random, best of 10"] = {
        m: float((min if _better(m) > 0 else max)(s[m] for s in drawn)) for m in drawn[0]
    }
    return {"layers": {n: [i for i, c in enumerate(g) if c == 0] for n, g in rivals.items()}, "scores": kept}


def _need(steps: Steps, name: str) -> dict[str, Any]:
    found = steps.result(name)
    if found is None:
        raise SystemExit(f"{steps.folder} lacks {name}: run that seed to its end first")
    return found


def report(work: Path, output: Path | None) -> None:
    """All finished seeds of both targets: JSON to a file, Markdown to the screen."""
    found: dict[str, Any] = {"config": CONFIG}
    summaries: Mapping[str, Callable[[Path], dict[str, Any]]] = {
        "ranking": ranking_summary,
        "placement-1": placement_summary,
        "placement-2": placement_summary,
    }
    for what, summary in summaries.items():
        found[what] = {folder.name: summary(folder) for folder in sorted((work / what).glob("seed*"))}
    if output:
        output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    _print_ranking(found["ranking"])
    for what in ("placement-1", "placement-2"):
        print(f"\n{what}")
        _print_placement(found[what])


def _print_ranking(seeds: Mapping[str, Mapping[str, Any]]) -> None:
    """Kendall's tau: rows are what the supernet says, columns what training alone says, each the seeds' values."""
    after = ("mean_loss", "mean_accuracy", "recall.loss", "kl")
    print(f"| supernet's | {' | '.join(after)} | predictor on unseen | in its 90% |")
    print("|---|" + "---|" * (len(after) + 2))
    for metric in METRICS:
        taus = [
            ", ".join(f"{seed['tau'][f'{metric} -> {name}']:+.2f}" for seed in seeds.values())
            for name in after
        ]
        unseen = ", ".join(f"{seed['predictor'][metric]['tau']:+.2f}" for seed in seeds.values())
        inside = ", ".join(f"{seed['predictor'][metric]['inside_90']:.0%}" for seed in seeds.values())
        print(f"| {metric} | {' | '.join(taus)} | {unseen} | {inside} |")
    for name, seed in seeds.items():
        print(
            f"{name}: {seed['supernet_train_s']:.0f} s for the supernet, {seed['score_s']:.2f} s a score, "
            f"{seed['alone_s']:.1f} s a training alone, ratio {seed['cost_ratio']:.0f}"
        )


def _print_placement(seeds: Mapping[str, Mapping[str, Any]]) -> None:
    """Recall accuracy and loss, and mean accuracy, after equal training; each the seeds' values."""
    rivals = list(dict.fromkeys(name for seed in seeds.values() for name in seed["scores"]))
    print("| placement | recall | recall loss | mean accuracy | mean loss |")
    print("|---|---|---|---|---|")
    for rival in rivals:
        scores = [seed["scores"][rival] for seed in seeds.values() if rival in seed["scores"]]
        cells = [
            ", ".join(f"{100 * s['recall.accuracy']:.0f}%" for s in scores),
            ", ".join(f"{s['recall.loss']:.3f}" for s in scores),
            ", ".join(f"{100 * s['mean_accuracy']:.0f}%" for s in scores),
            ", ".join(f"{s['mean_loss']:.3f}" for s in scores),
        ]
        print(f"| {rival} | {' | '.join(cells)} |")
    for name, seed in seeds.items():
        print(f"{name}: {seed['layers']}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Targets of PostNAS on the tiny teacher.")
    parser.add_argument("what", choices=["ranking", "placement", "report"])
    parser.add_argument("--work", type=Path, required=True, help="Folder for what each seed keeps.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--full", type=int, default=2, help="Full-attention layers of placement.")
    parser.add_argument("--teacher", type=Path, help="Checkpoint folder; the shipped teacher by default.")
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    if given.what == "report":
        report(given.work, given.output)
        return
    what = given.what if given.what == "ranking" else f"placement-{given.full}"
    folder = given.work / what / f"seed{given.seed}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    if given.what == "ranking":
        ranking(given.seed, folder, given.teacher or teacher_folder())
    else:
        placement(given.seed, folder, given.teacher or teacher_folder(), full_layers=given.full)


if __name__ == "__main__":
    main()
