"""Learning what a cost is made of: additive, neighbours, dominating layers; and proposing by it."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from hwsearch.search.evolution import Evolution
from hwsearch.search.exact import minimise
from hwsearch.search.guide import conditioned
from hwsearch.search.learned import Learner, additive_models
from hwsearch.search.problem import Additive, Budget, Cost, Objective, Pairwise, Problem
from hwsearch.search.space import FloatArray, Genomes, GridSpace
from tests.search.search_problems import hybrid, random_problem

SPACE = GridSpace((4, 5, 3, 5, 4, 5, 5, 2))
SHAPE = SPACE.allowed_mask.shape


def learn(cost: Cost, n: int, *, hubs: tuple[int, ...] = ()) -> tuple[Learner, FloatArray, FloatArray]:
    rng = np.random.default_rng(0)
    learner = Learner(SPACE.allowed_mask)
    genomes, fresh = SPACE.sample(n, rng=rng), SPACE.sample(200, rng=rng)
    for i in range(4):
        model = learner.fit(genomes, cost(genomes), hubs=hubs, select=i == 0, adapt=True)
    return learner, model.predict(fresh), cost(fresh)


def unexplained(predicted: FloatArray, true: FloatArray) -> float:
    return float(np.mean((predicted - true) ** 2) / np.var(true))


def test_an_additive_cost_is_learnt_exactly() -> None:
    rng = np.random.default_rng(1)
    learner, predicted, true = learn(Additive(rng.random(SHAPE), constant=3.0), 80)
    assert learner.form == "layers"
    np.testing.assert_allclose(predicted, true, rtol=1e-4)


def test_the_logarithm_of_a_product_is_additive() -> None:
    rng = np.random.default_rng(1)
    parts = Additive(rng.random(SHAPE))
    learner, predicted, true = learn(lambda g: np.exp(3 * parts(g)), 80)
    state = learner.state()
    assert state is not None
    assert state["fitted"]["form"] == "layers"
    assert state["fitted"]["log"]
    assert unexplained(predicted, true) < 1e-4


def test_neighbours_are_told_from_dominating_layers() -> None:
    rng = np.random.default_rng(1)
    table = rng.random(SHAPE)
    together = 1.5 * rng.random((len(SHAPE) + 5, SHAPE[1], SHAPE[1]))
    learner, predicted, true = learn(Pairwise.neighbours(table, together[:7]), 350, hubs=(3,))
    assert learner.form == "neighbours"
    assert unexplained(predicted, true) < 0.02
    hub = np.array([(min(3, i), max(3, i)) for i in range(8) if i != 3])
    learner, predicted, true = learn(Pairwise(table, pairs=hub, together=together[:7]), 350, hubs=(3,))
    assert learner.form == "hubs"
    assert unexplained(predicted, true) < 0.02


def test_noise_is_not_trusted() -> None:
    rng = np.random.default_rng(1)
    learner = Learner(SPACE.allowed_mask)
    genomes = SPACE.sample(150, rng=rng)
    model = learner.fit(genomes, rng.random(150), hubs=(0,), select=True, adapt=True)
    assert model.trust < 0.1


def test_draws_agree_with_what_was_seen_and_differ_elsewhere() -> None:
    rng = np.random.default_rng(1)
    learner = Learner(SPACE.allowed_mask)
    cost = Additive(rng.random(SHAPE))
    genomes, others = SPACE.sample(12, rng=rng), SPACE.sample(100, rng=rng)
    model = learner.fit(genomes, cost(genomes), hubs=(), select=True, adapt=True)
    one, two = model.draw(rng), model.draw(rng)
    apart = np.std(one(others) - two(others))
    assert apart > 0.05
    assert np.std(one(genomes) - cost(genomes)) < 0.3 * apart


def test_a_saved_learner_goes_on_alike() -> None:
    rng = np.random.default_rng(1)
    cost = Pairwise.neighbours(rng.random(SHAPE), rng.random((7, SHAPE[1], SHAPE[1])))
    learner, _, _ = learn(cost, 120)
    again = Learner(SPACE.allowed_mask)
    again.restore(learner.state())
    genomes = SPACE.sample(150, rng=rng)
    fits = [x.fit(genomes, cost(genomes), hubs=(), select=False, adapt=True) for x in (learner, again)]
    np.testing.assert_array_equal(fits[0].predict(genomes), fits[1].predict(genomes))


def test_plain_additive_models() -> None:
    rng = np.random.default_rng(1)
    costs: list[Cost] = [Additive(rng.random(SHAPE), constant=5.0), lambda g: np.sin(7.0 * g.sum(axis=1))]
    genomes = SPACE.sample(300, rng=rng)
    values = np.stack([cost(genomes) for cost in costs], axis=1)
    models = additive_models(genomes, values, num_choices=SHAPE[1])
    fresh = SPACE.sample(50, rng=rng)
    np.testing.assert_allclose(models[0].predict(fresh), costs[0](fresh), rtol=1e-5)
    assert models[0].trust > 1 - 1e-9
    assert models[1].trust < 0.5


def test_conditioning_keeps_the_cost_of_what_agrees() -> None:
    rng = np.random.default_rng(1)
    pairs = np.array(list(itertools.combinations(range(8), 2)))
    cost = Pairwise(rng.random(SHAPE), pairs=pairs, together=rng.random((len(pairs), 5, 5)), constant=2.0)
    fixed = {1: 2, 2: 0, 6: 4}
    genomes = SPACE.sample(50, rng=rng)
    genomes[:, list(fixed)] = list(fixed.values())
    left = conditioned(cost, fixed)
    np.testing.assert_allclose(left(genomes), cost(genomes))
    assert isinstance(left, Pairwise)
    assert not np.isin(left.pairs, list(fixed)).any()


def black_box(problem: Problem) -> Problem:
    """The same problem without its tables."""

    def hidden(cost: Cost) -> Cost:
        return lambda genomes: cost(genomes)

    costs = {id(cost): hidden(cost) for _, cost in problem.distinct}
    return Problem(
        problem.space,
        objectives=tuple(Objective(o.name, cost=costs[id(o.cost)]) for o in problem.objectives[:1]),
        budgets=tuple(
            Budget(b.name, text=b.text, cost=costs[id(b.cost)], at_most=b.at_most) for b in problem.budgets
        ),
    )


def evolve(problem: Problem, *, evaluations: int, population: int, seed: int) -> Evolution:
    evolution = Evolution(problem, population=population, seed=seed)
    while evolution.evaluations < evaluations:
        genomes = evolution.ask(at_most=evaluations - evolution.evaluations)
        evolution.tell(genomes, problem.costs(genomes))
    return evolution


@pytest.mark.parametrize("seed", [0, 1])
def test_a_black_box_that_adds_up_is_solved_in_few_evaluations(seed: int) -> None:
    known = random_problem(seed, space=GridSpace((6,) * 16), tightness=0.4, peak=False)
    best = minimise(known.space, known.objectives[0].cost, known.budgets)
    assert best is not None
    assert best.value is not None
    evolution = evolve(black_box(known), evaluations=350, population=25, seed=seed)
    assert evolution.archive.objectives[0, 0] <= 1.005 * best.value


def test_rules_hold_in_what_a_model_proposes() -> None:
    problem = black_box(random_problem(3, space=hybrid(10), tightness=0.4))
    evolution = Evolution(problem, population=20, seed=0)
    genomes = []
    for _ in range(12):
        genomes.append(evolution.ask())
        evolution.tell(genomes[-1], problem.costs(genomes[-1]))
    assert evolution.guide is not None
    assert evolution.guide.trust > 0.3
    assert problem.space.valid(np.concatenate(genomes)).all()


def test_a_narrow_choice_that_looks_poor_on_average_is_found() -> None:
    """The best width is bad unless everything else fits it, and then the best; the budget rules out the rest."""
    rng = np.random.default_rng(0)
    space = GridSpace((5, *(4,) * 9))
    fit = rng.permuted(np.tile(np.arange(4), (9, 1)), axis=1)

    def loss(genomes: Genomes) -> FloatArray:
        deep = np.take_along_axis(fit[None], genomes[:, 1:, None], axis=2)[:, :, 0].sum(axis=1)
        slope = np.array([1.4, 0.4, 0.4, 0.3, 0.2])
        start = np.array([8.0, 12.5, 12.0, 11.0, 10.0])
        level: FloatArray = start[genomes[:, 0]] + slope[genomes[:, 0]] * deep
        return level

    time = Additive(np.concatenate((np.array([[0, 1, 2, 9, 9]]), rng.random((9, 5)))))
    problem = Problem(
        space,
        objectives=(Objective("loss", cost=loss),),
        budgets=(Budget("time", text="time<=8", cost=time, at_most=8.0),),
    )
    evolution = evolve(problem, evaluations=600, population=25, seed=0)
    assert evolution.archive.genomes[0, 0] == 0


@pytest.mark.parametrize("cut", [3, 9])
def test_a_restored_run_asks_the_same_questions(cut: int) -> None:
    rng = np.random.default_rng(5)
    loss = Pairwise.neighbours(rng.random(SHAPE), 0.3 * rng.random((7, SHAPE[1], SHAPE[1])))
    time = Additive(rng.random(SHAPE))
    problem = Problem(
        SPACE,
        objectives=(Objective("loss", cost=lambda g: loss(g)), Objective("time", cost=lambda g: time(g))),
        budgets=(),
    )

    def advance(evolution: Evolution, generations: int) -> list[tuple[Genomes, FloatArray]]:
        batches = []
        for _ in range(generations):
            genomes = evolution.ask()
            batches.append((genomes, problem.costs(genomes)))
            evolution.tell(*batches[-1])
        return batches

    whole = Evolution(problem, population=16, seed=3)
    first = advance(whole, cut)
    state = json.loads(json.dumps(whole.state()))
    rest = advance(whole, 5)
    again = Evolution(problem, population=16, seed=3)
    again.restore(first, state)
    for (genomes, _), (same, _) in zip(rest, advance(again, 5), strict=True):
        np.testing.assert_array_equal(genomes, same)
