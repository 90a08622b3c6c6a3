"""The search beside its peers, on problems that nothing was tuned to: the table of docs/solvers.md.

    python benchmarks/search_vs_peers.py --out benchmarks/results/search_vs_peers.json [--quick] [--only ROW]

Every solver is given the same calls and the same number of them. Peers: pymoo's NSGA-II with integer operators (its
own constraint handling), Optuna's NSGA-II sampler, regularised evolution (Real et al., 2019; population 100, sample
25, one mutation, infeasible genomes ranked by their violation), and random search. Times are of this process.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.problem import Problem as PymooProblem
from pymoo.operators.crossover.sbx import SBX
from pymoo.operators.mutation.pm import PM
from pymoo.operators.repair.rounding import RoundingRepair
from pymoo.operators.sampling.rnd import IntegerRandomSampling
from pymoo.optimize import minimize
from search_instances import black_box, deceptive, gpt_family, tables

from hwsearch.search.evolution import Evolution
from hwsearch.search.exact import minimise
from hwsearch.search.hypervolume import hypervolume
from hwsearch.search.problem import Additive, Pairwise, Problem
from hwsearch.search.space import FloatArray, Genomes, GridSpace

SIZES = ((28, 8), (48, 10), (64, 12))
Solver = Callable[["Log", int, int], None]
Row = dict[str, Any]


class Log:
    """A problem that writes down what it was asked."""

    def __init__(self, problem: Problem, at_most: int) -> None:
        self.problem = problem
        self.at_most = at_most
        self.genomes: list[Genomes] = []
        self.costs: list[FloatArray] = []
        self.count = 0
        self.seconds = 0.0

    @property
    def cardinalities(self) -> Genomes:
        assert isinstance(self.problem.space, GridSpace)
        return np.array(self.problem.space.cardinalities)

    def __call__(self, genomes: Genomes) -> FloatArray:
        started = time.process_time()
        costs = self.problem.costs(genomes)
        self.seconds += time.process_time() - started
        self.genomes.append(genomes.copy())
        self.costs.append(costs)
        self.count += len(genomes)
        return costs

    def best(self, n: int) -> tuple[float, Genomes | None]:
        """The least first objective within the budgets among the first n evaluations, and its genome."""
        genomes, costs = np.concatenate(self.genomes)[:n], np.concatenate(self.costs)[:n]
        fits = np.flatnonzero(self.problem.violations(costs) <= 0)
        if not len(fits):
            return np.inf, None
        first = fits[np.argmin(costs[fits, self.problem.objective_columns[0]])]
        return float(costs[first, self.problem.objective_columns[0]]), genomes[first]

    def points(self, n: int) -> FloatArray:
        costs = np.concatenate(self.costs)[:n]
        return costs[:, self.problem.objective_columns]


def ours(log: Log, seed: int, population: int) -> None:
    evolution = Evolution(log.problem, population=population, seed=seed)
    while log.count < log.at_most:
        genomes = evolution.ask(at_most=log.at_most - log.count)
        evolution.tell(genomes, log(genomes))


def pymoo(log: Log, seed: int, population: int, *, corners: bool = False) -> None:
    problem = log.problem
    bounds = np.array([budget.at_most for budget in problem.budgets])
    scales = np.array([budget.scale for budget in problem.budgets])

    class Wrapped(PymooProblem):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(
                n_var=len(log.cardinalities),
                n_obj=len(problem.objectives),
                n_ieq_constr=len(problem.budgets),
                xl=0,
                xu=log.cardinalities - 1,
                vtype=int,
            )

        def _evaluate(self, x: Any, out: dict[str, Any], *args: object, **kwargs: object) -> None:
            costs = log(np.asarray(x, dtype=np.int64))
            out["F"] = costs[:, problem.objective_columns]
            if len(bounds):
                out["G"] = (costs[:, problem.budget_columns] - bounds) / scales

    sampling: Any = IntegerRandomSampling()
    if corners:
        rng = np.random.default_rng(seed)
        sampling = rng.integers(0, log.cardinalities, size=(population, len(log.cardinalities)))
        for i in range(int(log.cardinalities.max())):
            sampling[i] = np.minimum(i, log.cardinalities - 1)
    algorithm = NSGA2(
        pop_size=population,
        sampling=sampling,
        crossover=SBX(prob=0.9, eta=15, vtype=float, repair=RoundingRepair()),
        mutation=PM(eta=20, vtype=float, repair=RoundingRepair()),
        eliminate_duplicates=True,
    )
    minimize(Wrapped(), algorithm, ("n_eval", log.at_most), seed=seed)


def seeded_pymoo(log: Log, seed: int, population: int) -> None:
    pymoo(log, seed, population, corners=True)


def optuna_nsga2(log: Log, seed: int, population: int) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    problem = log.problem
    bounds = np.array([budget.at_most for budget in problem.budgets])

    def constraints(trial: optuna.trial.FrozenTrial) -> Sequence[float]:
        return list(trial.user_attrs["excess"])

    sampler = optuna.samplers.NSGAIISampler(
        population_size=population, seed=seed, constraints_func=constraints if len(bounds) else None
    )
    study = optuna.create_study(sampler=sampler, directions=["minimize"] * len(problem.objectives))

    def objective(trial: optuna.Trial) -> Sequence[float]:
        genome = [trial.suggest_int(f"g{i}", 0, int(c) - 1) for i, c in enumerate(log.cardinalities)]
        costs = log(np.array([genome]))[0]
        trial.set_user_attr("excess", (costs[list(problem.budget_columns)] - bounds).tolist())
        return list(costs[list(problem.objective_columns)])

    study.optimize(objective, n_trials=log.at_most)


def regularised(log: Log, seed: int, population: int) -> None:
    rng = np.random.default_rng(seed)
    space, cards = log.problem.space, log.cardinalities
    genomes = space.sample(100, rng=rng)
    costs = log(genomes)
    alive = deque((g, c) for g, c in zip(genomes, _scores(log.problem, costs), strict=True))
    while log.count < log.at_most:
        tournament = [alive[i] for i in rng.integers(0, len(alive), 25)]
        child = min(tournament, key=lambda pair: pair[1])[0].copy()
        gene = int(rng.integers(len(cards)))
        child[gene] = rng.integers(cards[gene])
        alive.append((child, _scores(log.problem, log(child[None]))[0]))
        alive.popleft()


def _scores(problem: Problem, costs: FloatArray) -> list[tuple[float, float]]:
    first = costs[:, problem.objective_columns[0]]
    return list(zip(problem.violations(costs).tolist(), first.tolist(), strict=True))


def random_search(log: Log, seed: int, population: int) -> None:
    log(log.problem.space.sample(log.at_most, rng=np.random.default_rng(seed)))


PEERS: dict[str, Solver] = {
    "pymoo NSGA-II": pymoo,
    "Optuna NSGA-II": optuna_nsga2,
    "regularised evolution": regularised,
    "random": random_search,
}
SLOW = "Optuna NSGA-II"  # 4 to 6 ms per evaluation: only where 1000 evaluations are asked for


def run(solver: Solver, problem: Problem, evaluations: int, seed: int, population: int) -> tuple[Log, float]:
    """What was asked, and the solver's own processor time per evaluation in microseconds."""
    log = Log(problem, evaluations)
    started = time.process_time()
    solver(log, seed, population)
    own = time.process_time() - started - log.seconds
    return log, 1e6 * own / max(log.count, 1)


def known(neighbours: float, seeds: int) -> list[Row]:
    """Time to a proven optimum, and what an additive model alone would lose."""
    rows = []
    for layers, choices in SIZES:
        seconds, proven, lost = [], [], []
        for seed in range(seeds):
            problem = tables(seed, layers=layers, choices=choices, neighbours=neighbours)
            started = time.perf_counter()
            found = minimise(problem.space, problem.objectives[0].cost, problem.budgets)
            seconds.append(time.perf_counter() - started)
            assert found is not None
            proven.append(found.proven)
            if neighbours and found.value:
                lost.append(_additive_loss(problem) / found.value - 1)
        row: Row = {"layers": layers, "choices": choices, "seconds": seconds, "proven": proven}
        rows.append(row | ({"additive_only_loss": lost} if neighbours else {}))
    return rows


def _additive_loss(problem: Problem) -> float:
    """The value of the optimum of the tables whose neighbour terms are averaged into the layers."""
    cost = problem.objectives[0].cost
    assert isinstance(cost, Pairwise)
    flat = cost.table.copy()
    for (first, second), both in zip(cost.pairs.tolist(), cost.together, strict=True):
        flat[first] += both.mean(axis=1)
        flat[second] += both.mean(axis=0)
    found = minimise(problem.space, Additive(flat), problem.budgets)
    assert found is not None
    return float(cost(np.array([found.genome]))[0])


def unknown(
    neighbours: float, checkpoints: Sequence[int], seeds: int, sizes: Sequence[tuple[int, int]]
) -> list[Row]:
    """Loss above the optimum after so many calls."""
    rows = []
    for layers, choices in sizes:
        for name, solver in {"hwsearch": ours, **PEERS}.items():
            most = checkpoints[-1]
            if name == SLOW and most > 1000:
                continue
            losses: dict[int, list[float]] = {n: [] for n in checkpoints}
            times = []
            for seed in range(1 if name == SLOW else seeds):
                problem = tables(seed, layers=layers, choices=choices, neighbours=neighbours)
                found = minimise(problem.space, problem.objectives[0].cost, problem.budgets)
                assert found is not None
                assert found.value is not None
                population = 25 if name == "hwsearch" else 100
                log, own = run(solver, black_box(problem), most, seed, population)
                times.append(own)
                for n in losses:
                    losses[n].append(log.best(n)[0] / found.value - 1)
            rows.append(
                {"layers": layers, "choices": choices, "solver": name, "loss": losses, "own_us": times}
            )
            print(
                layers,
                choices,
                name,
                {n: [round(100 * x, 2) for x in v] for n, v in losses.items()},
                flush=True,
            )
    return rows


def own_time(evaluations: int) -> list[Row]:
    """Own processor time per evaluation where the objective is a table look-up, population 200."""
    rows = []
    for layers, choices in SIZES:
        problem = tables(0, layers=layers, choices=choices)
        for name, solver in {"hwsearch": ours, "pymoo NSGA-II": pymoo, SLOW: optuna_nsga2}.items():
            own = [
                run(solver, problem, 1000 if name == SLOW else evaluations, seed, 200)[1] for seed in range(2)
            ]
            rows.append({"layers": layers, "choices": choices, "solver": name, "own_us": own})
            print(rows[-1], flush=True)
    return rows


def two_objectives(checkpoints: Sequence[int], seeds: int) -> list[Row]:
    """Share of the best known hypervolume: of the union of all runs and of a long one."""
    solvers = {
        "hwsearch": ours,
        "pymoo NSGA-II": pymoo,
        "pymoo, corners seeded": seeded_pymoo,
        "random": random_search,
    }
    shares: dict[str, dict[int, list[float]]] = {name: {n: [] for n in checkpoints} for name in solvers}
    for seed in range(seeds):
        problem = gpt_family(seed)
        sample = problem.costs(problem.space.sample(2000, rng=np.random.default_rng(seed)))
        reference = sample.max(axis=0)
        logs = {
            name: run(solver, problem, checkpoints[-1], seed, 50 if name == "hwsearch" else 100)[0]
            for name, solver in solvers.items()
        }
        long = run(seeded_pymoo, problem, 10 * checkpoints[-1], seed, 400)[0]
        everything = np.concatenate([log.points(len(log.genomes) * 10**6) for log in (*logs.values(), long)])
        best = hypervolume(everything, reference)
        for name, log in logs.items():
            for n in checkpoints:
                shares[name][n].append(hypervolume(log.points(n), reference) / best)
        print(
            seed,
            {name: [round(100 * v[-1], 2) for v in s.values()] for name, s in shares.items()},
            flush=True,
        )
    return [{"solver": name, "share": share} for name, share in shares.items()]


def basins(evaluations: int, seeds: int) -> list[Row]:
    """In how many of the seeds the best genome has the right width."""
    rows = []
    for name, solver in {
        "hwsearch": ours,
        "pymoo NSGA-II": pymoo,
        "regularised evolution": regularised,
    }.items():
        right, losses = [], []
        for seed in range(seeds):
            given = deceptive(seed)
            value, genome = run(solver, given.problem, evaluations, seed, 50 if name == "hwsearch" else 100)[
                0
            ].best(evaluations)
            right.append(genome is not None and int(genome[0]) == given.width)
            losses.append(value / float(given.best.min()) - 1)
        rows.append({"solver": name, "right": right, "loss": losses})
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", help="one of the rows")
    parser.add_argument("--quick", action="store_true", help="fewer seeds and sizes, to see that it runs")
    arguments = parser.parse_args()
    quick = arguments.quick
    seeds = 1 if quick else 3
    sizes = SIZES[:1] if quick else SIZES
    rows: dict[str, Callable[[], list[Row]]] = {
        "known_additive": lambda: known(0.0, seeds),
        "known_neighbours": lambda: known(0.15, seeds),
        "unknown_additive": lambda: unknown(0.0, (1000,), seeds, sizes),
        "unknown_neighbours": lambda: unknown(0.15, (1000,), seeds, sizes),
        "unknown_neighbours_long": lambda: unknown(0.15, (10_000,), min(seeds, 2), (SIZES[0], SIZES[-1])),
        "own_time": lambda: own_time(4000 if quick else 20_000),
        "two_objectives": lambda: two_objectives((1000, 2000 if quick else 5000), 1 if quick else 5),
        "basins": lambda: basins(1000 if quick else 5000, 1 if quick else 5),
    }
    results = {}
    if arguments.out and arguments.out.is_file():
        results = json.loads(arguments.out.read_text(encoding="utf-8"))
    for name, row in rows.items():
        if arguments.only in (None, name):
            started = time.perf_counter()
            results[name] = row()
            print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
            if arguments.out:
                arguments.out.parent.mkdir(parents=True, exist_ok=True)
                arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
