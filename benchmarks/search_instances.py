"""Problems that the search is compared on. All are random, drawn from a seed, so that nothing is tuned to one.

- tables: quality loss, latency and memory per layer and choice; optionally neighbours cost something together.
- gpt_family: perplexity and latency of a GPT family as a surrogate would give them, in the manner of HW-GPT-Bench
  (Sukthanker et al., arXiv 2405.10299; its space of embedding width, depth, bias, and per layer heads and MLP
  ratio; the functions are our own): two genes dominate, layers beyond the depth do nothing, the rest matters little.
- deceptive: one width is poor with almost everything and best with the right rest, within a latency budget.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hwsearch.search.exact import minimise
from hwsearch.search.guide import conditioned
from hwsearch.search.problem import Additive, Budget, Cost, Objective, Pairwise, Problem
from hwsearch.search.space import FloatArray, Genomes, GridSpace

__all__ = ["Deceptive", "black_box", "deceptive", "gpt_family", "tables"]

Tables = Additive | Pairwise


def tables(seed: int, *, layers: int, choices: int, neighbours: float = 0.0) -> Problem:
    """Loss under a latency and a memory budget; neighbours: how much adjacent layers weigh beside single ones."""
    rng = np.random.default_rng(seed)
    shape = (layers, choices)
    order = rng.permutation(choices)
    time = np.sort(rng.random(choices))[order] * rng.uniform(0.8, 1.2, shape) + 0.05
    importance = rng.lognormal(0, 1, (layers, 1))
    loss = np.sort(rng.random(choices))[::-1][order] * importance * rng.uniform(0.7, 1.3, shape)
    memory = rng.random(shape)
    fastest = time.min(axis=1).sum()
    best = time[np.arange(layers), loss.argmin(axis=1)].sum()
    bound = fastest + rng.uniform(0.3, 0.5) * (best - fastest)
    costs: list[Tables] = [Additive(loss), Additive(time), Additive(memory)]
    if neighbours:
        between = neighbours * rng.random((layers - 1, choices, choices))
        weights = np.sqrt(importance[:-1] * importance[1:])[:, :, None]
        costs[0] = Pairwise.neighbours(loss, between * weights)
        handover = 0.1 * neighbours * rng.random((layers - 1, choices, choices))
        costs[1] = Pairwise.neighbours(time, handover)
        bound += 0.05 * neighbours * layers
    return Problem(
        GridSpace((choices,) * layers),
        objectives=(Objective("loss", cost=costs[0]),),
        budgets=(
            Budget("latency", text=f"latency<={bound:.4g}", cost=costs[1], at_most=float(bound)),
            Budget("memory", text=f"memory<={0.45 * layers:.4g}", cost=costs[2], at_most=0.45 * layers),
        ),
    )


def black_box(problem: Problem) -> Problem:
    """The same problem as calls only: no solver sees its tables."""

    def hidden(cost: Cost) -> Cost:
        return lambda genomes: cost(genomes)

    costs = {id(cost): hidden(cost) for _, cost in problem.distinct}
    return Problem(
        problem.space,
        objectives=tuple(Objective(o.name, cost=costs[id(o.cost)]) for o in problem.objectives),
        budgets=tuple(
            Budget(b.name, text=b.text, cost=costs[id(b.cost)], at_most=b.at_most) for b in problem.budgets
        ),
    )


def gpt_family(seed: int) -> Problem:
    """Perplexity and latency over: embedding width, depth, bias, then heads and MLP ratio of each layer."""
    rng = np.random.default_rng(seed)
    depths = np.array([[6, 9, 12], [12, 18, 24], [20, 28, 36]][int(rng.integers(3))])
    most = int(depths[-1])
    widths = 64.0 * np.sort(rng.choice(np.arange(4, 24), size=int(rng.integers(3, 7)), replace=False))
    heads, ratios = np.array([4.0, 8.0, 12.0]), np.array([2.0, 3.0, 4.0])
    space = GridSpace((len(widths), 3, 2, *(3,) * most, *(3,) * most))
    exponent, floor = rng.uniform(0.1, 0.3), rng.uniform(1.5, 2.5)
    importance = rng.lognormal(0, 0.7, most)
    taste = rng.normal(0, 0.01, (most, 3))  # how many heads suit a layer
    aspect, launch = rng.uniform(20, 60), rng.uniform(0.01, 0.05)
    directions = rng.normal(size=(3 + 2 * most, 24)) / np.sqrt(most)
    phases = rng.uniform(0, 2 * np.pi, 24)
    rough = rng.uniform(0.001, 0.003)

    def unpack(genomes: Genomes) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        width, depth = widths[genomes[:, 0]], depths[genomes[:, 1]]
        active = np.arange(most) < depth[:, None]
        return (
            width,
            active.astype(np.float64),
            heads[genomes[:, 3 : 3 + most]],
            ratios[genomes[:, 3 + most :]],
        )

    def wiggle(genomes: Genomes) -> FloatArray:
        waves: FloatArray = np.sin(genomes @ directions + phases).mean(axis=1)
        return 1 + rough * waves

    def perplexity(genomes: Genomes) -> FloatArray:
        width, active, _, ratio = unpack(genomes)
        depth = active.sum(axis=1)
        useful = (active * importance * ratio**0.5).sum(axis=1) / importance.mean()
        size = width**2 * useful / 1e5
        shape = 0.03 * np.log(width / depth / aspect) ** 2
        suited = (active * taste[np.arange(most), genomes[:, 3 : 3 + most]]).sum(axis=1) / depth
        loss = floor + 1.5 * size**-exponent + shape + suited - 0.004 * genomes[:, 2]
        value: FloatArray = np.exp(loss) * wiggle(genomes)
        return value

    def latency(genomes: Genomes) -> FloatArray:
        width, active, head, ratio = unpack(genomes)
        tiles = np.ceil(width / 128)[:, None]
        per_layer = launch + 0.002 * tiles**2 * (1.0 + ratio / 2) + 0.0008 * tiles * head / 4
        total = (active * per_layer).sum(axis=1) * (1 + 0.02 * genomes[:, 2])
        value: FloatArray = (total + 0.002 * width / 64) * wiggle(genomes[:, ::-1])
        return value

    return Problem(
        space,
        objectives=(Objective("perplexity", cost=perplexity), Objective("latency", unit="ms", cost=latency)),
    )


@dataclass(frozen=True)
class Deceptive:
    """problem: calls only. width: the one the optimum has (gene 0). best: per width the least loss there is."""

    problem: Problem
    width: int
    best: FloatArray


def deceptive(seed: int) -> Deceptive:
    """Loss under a latency budget over a width (8) and 24 genes (4), where one width looks worst and is best."""
    rng = np.random.default_rng(seed)
    widths, genes, choices = 8, 24, 8
    right = int(rng.integers(1, widths - 1))
    time = np.zeros((genes + 1, choices))
    time[0, :widths] = np.sort(rng.uniform(2, 6, widths))
    time[1:] = np.sort(rng.random((genes, choices)), axis=1)
    bound = float(time[0].mean() + 0.45 * genes)
    quality = rng.random((genes, choices)) + 0.6 * np.linspace(1, 0, choices)
    gentle = 0.15 * quality
    together = np.repeat(gentle[:, None], choices, axis=1)  # (genes, width, choice)
    together[:, right] = rng.permuted(quality, axis=1) * 1.1
    level = rng.uniform(20, 21, choices)
    cost = Pairwise(
        np.concatenate((level[None], np.zeros((genes, choices)))),
        pairs=np.array([(0, i + 1) for i in range(genes)]),
        together=together,
    )
    allowed = (widths, *(4,) * genes)
    space = GridSpace(allowed)
    budget = Budget("latency", text="latency", cost=Additive(time), at_most=bound)

    def least() -> FloatArray:
        values = []
        for width in range(widths):
            inside = Additive(_only(conditioned(cost, {0: width}).table, width))
            found = minimise(space, inside, (budget,))
            values.append(np.inf if found is None or found.value is None else found.value)
        return np.array(values)

    # The right width wins by 2%.
    values = least()
    cost.table[0, right] += 0.98 * np.delete(values, right).min() - values[right]
    values = least()
    directions = rng.normal(size=(genes + 1, 16))

    def loss(genomes: Genomes) -> FloatArray:
        waves: FloatArray = np.sin(genomes @ directions).mean(axis=1)
        return cost(genomes) * (1 + 0.001 * waves)

    problem = Problem(
        space,
        objectives=(Objective("loss", cost=loss),),
        budgets=(Budget("latency", text="latency", cost=lambda g: budget.cost(g), at_most=bound),),
    )
    return Deceptive(problem, right, values)


def _only(table: FloatArray, width: int) -> FloatArray:
    kept = table.copy()
    kept[0] = 1e3
    kept[0, width] = table[0, width]
    return kept
