"""A search space as a layered graph whose paths are its architectures: counting, sampling, bounds.

A node is a layer boundary together with what the rules must remember of the path so far: the transition class of
the last choice, how many layers of a limited kind there were, in all and in the running block of a pattern, which
member a tied group has settled on, and what a rule on earlier layers has seen. An edge carries the choices of one
layer that lead from one memory to the next, so every path with one choice per edge is exactly one architecture.
Dynamic programming over it counts architectures, draws them uniformly (by rank: an integer below the size is an
architecture), and gives for every (layer, choice) the least additive cost of any architecture that uses it.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from hwsearch.searchspace.constraints import CountLimit, Pattern

__all__ = ["Automaton", "PathGraph"]

Genomes = NDArray[np.int64]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_SOURCE = "source"
_SINK = "sink"
_UNSET = -1


@dataclass(frozen=True)
class _State:
    """The memory of a path: see the module. Equal memories are one node."""

    last: int
    counts: tuple[int, ...]
    blocks: tuple[int, ...]
    ties: tuple[int, ...]
    orders: tuple[bool, ...]
    needs: tuple[bool, ...]


@dataclass(frozen=True, eq=False)
class Automaton:
    """The rules of a space over C choices, as what a path must remember.

    successors: (C, C), which choice may follow which. limits, patterns: with their members (C,).
    ties: class of each choice, (C,), -1 outside. orders: (first, later) members (C,): none of `first` may come
    after one of `later`. needs: (what, earlier) members (C,): `what` may only come after one of `earlier`.
    """

    successors: NDArray[np.bool_]
    limits: tuple[tuple[NDArray[np.bool_], CountLimit], ...]
    patterns: tuple[tuple[NDArray[np.bool_], Pattern], ...]
    ties: tuple[IntArray, ...]
    orders: tuple[tuple[NDArray[np.bool_], NDArray[np.bool_]], ...]
    needs: tuple[tuple[NDArray[np.bool_], NDArray[np.bool_]], ...]
    num_layers: int

    @cached_property
    def _last_class(self) -> IntArray:
        """Choices with the same allowed successors leave the same memory, (C,)."""
        return np.unique(self.successors, axis=0, return_inverse=True)[1].reshape(-1)

    @cached_property
    def _may_follow(self) -> NDArray[np.bool_]:
        """(classes, C)."""
        return np.unique(self.successors, axis=0)

    @cached_property
    def alike(self) -> tuple[int, ...]:
        """Per choice the first choice that no rule tells it from."""
        columns = [self._last_class, *self.successors]
        columns += [mask.astype(np.int64) for mask, _ in (*self.limits, *self.patterns)]
        columns += [*self.ties, *(mask for pair in (*self.orders, *self.needs) for mask in pair)]
        signatures = np.column_stack([np.asarray(column, dtype=np.int64) for column in columns])
        first: dict[bytes, int] = {}
        return tuple(first.setdefault(row.tobytes(), i) for i, row in enumerate(signatures))

    @property
    def start(self) -> _State:
        return _State(
            last=_UNSET,
            counts=(0,) * len(self.limits),
            blocks=(0,) * len(self.patterns),
            ties=(_UNSET,) * len(self.ties),
            orders=(False,) * len(self.orders),
            needs=(False,) * len(self.needs),
        )

    def step(self, state: _State, layer: int, choice: int) -> _State | None:
        """The memory after one more layer; None where a rule forbids it."""
        if state.last != _UNSET and not self._may_follow[state.last, choice]:
            return None
        counts = []
        for count, (members, limit) in zip(state.counts, self.limits, strict=True):
            count += bool(members[choice])
            if limit.at_most is not None and count > limit.at_most:
                return None
            # Beyond the lower bound, where there is no upper one, all counts are alike.
            counts.append(min(count, limit.at_least) if limit.at_most is None else count)
        blocks = []
        for count, (members, pattern) in zip(state.blocks, self.patterns, strict=True):
            count += bool(members[choice])
            if pattern.limit.at_most is not None and count > pattern.limit.at_most:
                return None
            block = pattern.block(layer, self.num_layers)
            if layer + 1 == block[1]:
                if count < pattern.at_least(block):
                    return None
                count = 0
            blocks.append(count)
        ties = []
        for settled, classes in zip(state.ties, self.ties, strict=True):
            own = int(classes[choice])
            if own != _UNSET and settled not in (_UNSET, own):
                return None
            ties.append(settled if own == _UNSET else own)
        orders = []
        for seen, (first, later) in zip(state.orders, self.orders, strict=True):
            if seen and first[choice]:
                return None
            orders.append(bool(seen or later[choice]))
        needs = []
        for seen, (what, earlier) in zip(state.needs, self.needs, strict=True):
            if what[choice] and not seen:
                return None
            needs.append(bool(seen or earlier[choice]))
        last = int(self._last_class[choice])
        return _State(last, tuple(counts), tuple(blocks), tuple(ties), tuple(orders), tuple(needs))

    def accepts(self, state: _State) -> bool:
        """Whether a path may end here."""
        return all(
            count >= limit.at_least for count, (_, limit) in zip(state.counts, self.limits, strict=True)
        )


class PathGraph:
    """The graph of an automaton over layers that may take the choices in `allowed`."""

    def __init__(self, automaton: Automaton, allowed: tuple[tuple[int, ...], ...]) -> None:
        self.automaton = automaton
        self.allowed = allowed

    @cached_property
    def graph(self) -> nx.DiGraph:
        """From "source" to "sink" over nodes (layer boundary, memory); edges have `layer` and `choices`.

        Nodes from which no path ends are left out.
        """
        graph = nx.DiGraph()
        graph.add_nodes_from([_SOURCE, _SINK])
        frontier: dict[_State, Hashable] = {self.automaton.start: _SOURCE}
        for layer, options in enumerate(self.allowed):
            alike: dict[int, list[int]] = {}
            for choice in options:
                alike.setdefault(self.automaton.alike[choice], []).append(choice)
            reached: dict[_State, Hashable] = {}
            for state, node in frontier.items():
                edges: dict[_State, list[int]] = {}
                for first, choices in alike.items():
                    after = self.automaton.step(state, layer, first)
                    if after is not None:
                        edges.setdefault(after, []).extend(choices)
                for after, choices in edges.items():
                    target = reached.setdefault(after, (layer + 1, after))
                    graph.add_edge(node, target, layer=layer, choices=tuple(sorted(choices)))
            frontier = reached
        for state, node in frontier.items():
            if self.automaton.accepts(state):
                graph.add_edge(node, _SINK, layer=len(self.allowed), choices=())
        dead = set(graph) - nx.ancestors(graph, _SINK) - {_SOURCE, _SINK}
        graph.remove_nodes_from(dead)
        return graph

    @cached_property
    def _order(self) -> list[Hashable]:
        return list(nx.topological_sort(self.graph))

    @cached_property
    def _paths(self) -> Mapping[Hashable, int]:
        """Architectures from each node to the sink."""
        counts: dict[Hashable, int] = {_SINK: 1}
        for node in reversed(self._order):
            if node != _SINK:
                counts[node] = sum(
                    max(len(edge["choices"]), 1) * counts[after] for after, edge in self.graph[node].items()
                )
        return counts

    @property
    def size(self) -> int:
        """Number of architectures, exactly."""
        return self._paths.get(_SOURCE, 0)

    @cached_property
    def _turns(self) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Per node, by its number: how many architectures lie before each (choice, number of the next node)."""
        number = {node: i for i, node in enumerate(self._order)}
        turns = []
        for node in self._order:
            ways = [(c, after) for after, edge in self.graph[node].items() for c in edge["choices"]]
            sizes = [0, *(self._paths[after] for _, after in ways)]
            turns.append((list(itertools.accumulate(sizes))[:-1], [(c, number[after]) for c, after in ways]))
        return turns

    def unrank(self, rank: int) -> list[int]:
        """The genome (layers,) that an integer from 0 to size - 1 stands for."""
        assert 0 <= rank < self.size
        genome: list[int] = []
        node = self._order.index(_SOURCE)
        for _ in self.allowed:
            before, ways = self._turns[node]
            turn = bisect_right(before, rank) - 1
            choice, node = ways[turn]
            genome.append(choice)
            rank -= before[turn]
        return genome

    def sample(self, n: int, *, rng: np.random.Generator) -> Genomes:
        """n genomes, (n, layers), each exactly uniform over all architectures."""
        size = self.size
        bits = (size - 1).bit_length()
        width = (bits + 7) // 8
        genomes = np.empty((n, len(self.allowed)), dtype=np.int64)
        for i in range(n):
            while True:  # a rank at or above the size is drawn again, so that all others stay equally likely
                rank = int.from_bytes(rng.bytes(width), "little") >> (8 * width - bits) if bits else 0
                if rank < size:
                    break
            genomes[i] = self.unrank(rank)
        return genomes

    def least_through(self, table: FloatArray) -> FloatArray:
        """The least sum of table[layer, choice] over any architecture that uses each (layer, choice).

        table: (layers, choices); so is the result, infinite where no architecture uses the choice there.
        """
        table = np.asarray(table, dtype=np.float64)
        ahead: dict[Hashable, float] = {_SOURCE: 0.0}
        for node in self._order:
            for after, edge in self.graph[node].items():
                step = table[edge["layer"], list(edge["choices"])].min() if edge["choices"] else 0.0
                ahead[after] = min(ahead.get(after, np.inf), ahead.get(node, np.inf) + float(step))
        behind: dict[Hashable, float] = {_SINK: 0.0}
        through = np.full(table.shape, np.inf)
        for node in reversed(self._order):
            for after, edge in self.graph[node].items():
                if not edge["choices"]:
                    behind[node] = min(behind.get(node, np.inf), behind[after])
                    continue
                layer, choices = edge["layer"], list(edge["choices"])
                onwards = table[layer, choices] + behind[after]
                behind[node] = min(behind.get(node, np.inf), float(onwards.min()))
                through[layer, choices] = np.minimum(through[layer, choices], ahead[node] + onwards)
        return through
