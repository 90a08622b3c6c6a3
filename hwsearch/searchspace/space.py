"""The search space: a graph whose paths are architectures.

Nodes stand for a choice made at a layer, together with what the rules must remember of the path so far (how many
layers of a limited kind, which member of a tied group); edges lead to every choice that the rules allow next.
Every path from source to sink is exactly one architecture of the space, so counting paths counts architectures,
and walking backwards in proportion to the counts samples them uniformly.

A genome is an integer vector, one index into `choices` per layer; a population is an (n, layers) array.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from hwsearch.errors import InputError
from hwsearch.searchspace.architecture import Architecture, LayerSpec
from hwsearch.searchspace.bases import Base

__all__ = ["CountLimit", "Genomes", "SearchSpace"]

Genomes = NDArray[np.int64]

_SOURCE = "source"
_SINK = "sink"
_UNSET = -1


@dataclass(frozen=True, kw_only=True)
class CountLimit:
    """At least and at most how many layers may use a kind of mixer."""

    at_least: int = 0
    at_most: int | None = None


@dataclass(frozen=True)
class _Node:
    """A choice at a layer, and the rules' memory of the path up to and including it."""

    layer: int
    choice: int
    counts: tuple[int, ...]
    ties: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """Which architectures may be chosen.

    choices: the vocabulary of layers, C of them.
    allowed: per layer the indices of the choices it may take.
    ties: kinds of mixer whose layers must all take the same choice.
    limits: kind of mixer -> how often it may occur.
    forbidden: pairs of kinds that may not follow one another.
    """

    base: Base
    choices: tuple[LayerSpec, ...]
    allowed: tuple[tuple[int, ...], ...]
    ties: tuple[str, ...] = ()
    limits: Mapping[str, CountLimit] = field(default_factory=dict)
    forbidden: frozenset[tuple[str, str]] = frozenset()

    def __post_init__(self) -> None:
        if len(self.allowed) != self.base.num_layers:
            raise InputError(
                f"the space describes {len(self.allowed)} layers and {self.base.name} has {self.base.num_layers}"
            )
        for layer, options in enumerate(self.allowed):
            if not options or not all(0 <= option < len(self.choices) for option in options):
                raise InputError(f"layer {layer} has no choices, or one outside 0..{len(self.choices) - 1}")
        for kind, limit in self.limits.items():
            at_most = self.num_layers if limit.at_most is None else limit.at_most
            if not 0 <= limit.at_least <= at_most:
                raise InputError(
                    f"{kind}: at least {limit.at_least} and at most {at_most} of {self.num_layers} layers is impossible"
                )

    @property
    def num_layers(self) -> int:
        return len(self.allowed)

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The kind of mixer of each choice, (C,)."""
        return tuple(choice.mixer.kind for choice in self.choices)

    @cached_property
    def allowed_mask(self) -> NDArray[np.bool_]:
        """Which choices each layer may take by itself, (layers, C)."""
        mask = np.zeros((self.num_layers, len(self.choices)), dtype=bool)
        for layer, options in enumerate(self.allowed):
            mask[layer, list(options)] = True
        return mask

    def kind_mask(self, kind: str) -> NDArray[np.bool_]:
        """Which choices use a kind of mixer, (C,)."""
        return np.array([k == kind for k in self.kinds])

    @cached_property
    def graph(self) -> nx.DiGraph:
        """Source, one layer of nodes per decoder layer, sink; nodes that reach no sink are left out."""
        graph = nx.DiGraph()
        graph.add_nodes_from([_SOURCE, _SINK])
        frontier: list[_Node] = []
        for layer in range(self.num_layers):
            reached: dict[_Node, None] = {}
            for previous in frontier if layer else [None]:
                for node in self._successors(previous, layer):
                    graph.add_edge(previous or _SOURCE, node)
                    reached[node] = None
            frontier = list(reached)
        least = [limit.at_least for limit in self.limits.values()]
        for node in frontier:
            if all(count >= bound for count, bound in zip(node.counts, least, strict=True)):
                graph.add_edge(node, _SINK)
        dead = set(graph) - nx.ancestors(graph, _SINK) - {_SOURCE, _SINK}
        graph.remove_nodes_from(dead)
        return graph

    def _successors(self, previous: _Node | None, layer: int) -> Iterator[_Node]:
        counts = previous.counts if previous else (0,) * len(self.limits)
        ties = previous.ties if previous else (_UNSET,) * len(self.ties)
        for choice in self.allowed[layer]:
            kind = self.kinds[choice]
            if previous and (self.kinds[previous.choice], kind) in self.forbidden:
                continue
            new_counts = tuple(
                count + (kind == limited) for count, limited in zip(counts, self.limits, strict=True)
            )
            # Counts only matter up to their bound; beyond the lower one, without an upper one, they all look alike.
            bounded = tuple(
                min(count, limit.at_least) if limit.at_most is None else count
                for count, limit in zip(new_counts, self.limits.values(), strict=True)
            )
            if any(
                limit.at_most is not None and count > limit.at_most
                for count, limit in zip(bounded, self.limits.values(), strict=True)
            ):
                continue
            new_ties = tuple(
                choice if kind == tied else current for current, tied in zip(ties, self.ties, strict=True)
            )
            if any(old not in (_UNSET, new) for old, new in zip(ties, new_ties, strict=True)):
                continue
            yield _Node(layer, choice, bounded, new_ties)

    @cached_property
    def _paths_to_sink(self) -> dict[object, int]:
        counts: dict[object, int] = {_SINK: 1}
        for node in reversed(list(nx.topological_sort(self.graph))):
            if node != _SINK:
                counts[node] = sum(counts[successor] for successor in self.graph.successors(node))
        return counts

    @property
    def size(self) -> int:
        """Number of architectures, exactly."""
        return self._paths_to_sink.get(_SOURCE, 0)

    def sample(self, n: int, *, rng: np.random.Generator) -> Genomes:
        """n genomes, (n, layers), each drawn uniformly from all architectures of the space.

        Raises InputError where the rules leave no architecture at all.
        """
        if self.size == 0:
            raise InputError("the space is empty: its limits, ties and forbidden pairs leave no architecture")
        paths = self._paths_to_sink
        genomes = np.empty((n, self.num_layers), dtype=np.int64)
        steps: dict[object, tuple[list[_Node], NDArray[np.float64]]] = {}
        at: list[object] = [_SOURCE] * n
        for layer in range(self.num_layers):
            draws = rng.random(n)
            for i, node in enumerate(at):
                if node not in steps:
                    options = list(self.graph.successors(node))
                    shares = np.cumsum([paths[option] / paths[node] for option in options])
                    steps[node] = (options, shares / shares[-1])
                options, edges = steps[node]
                chosen = options[int(np.searchsorted(edges, draws[i], side="right"))]
                genomes[i, layer] = chosen.choice
                at[i] = chosen
        return genomes

    def valid(self, genomes: Genomes) -> NDArray[np.bool_]:
        """Which of the genomes (n, layers) are architectures of the space, (n,)."""
        genomes = np.asarray(genomes)
        inside = (genomes >= 0) & (genomes < len(self.choices))
        safe = np.where(inside, genomes, 0)
        ok: NDArray[np.bool_] = np.all(inside & self.allowed_mask[np.arange(self.num_layers), safe], axis=1)
        for kind, limit in self.limits.items():
            count = self.kind_mask(kind)[safe].sum(axis=1)
            ok &= count >= limit.at_least
            if limit.at_most is not None:
                ok &= count <= limit.at_most
        for kind in self.ties:
            members: NDArray[np.bool_] = self.kind_mask(kind)[safe]
            highest = np.where(members, safe, -1).max(axis=1, keepdims=True)
            ok &= np.all(~members | (safe == highest), axis=1)
        if self.forbidden:
            ok &= ~np.any(self.transition_mask[safe[:, :-1], safe[:, 1:]], axis=1)
        return ok

    @cached_property
    def transition_mask(self) -> NDArray[np.bool_]:
        """Which choice may not be followed by which, (C, C)."""
        return np.array([[(a, b) in self.forbidden for b in self.kinds] for a in self.kinds])

    def decode(self, genome: Sequence[int] | Genomes, *, name: str) -> Architecture:
        """The architecture that a genome (layers,) of the space stands for."""
        layers = tuple(self.choices[int(choice)] for choice in genome)
        return Architecture(name=name, base=self.base, layers=layers)

    def encode(self, architecture: Architecture) -> Genomes:
        """The genome (layers,) of an architecture. Raises InputError where the space does not hold it."""
        index = {choice: i for i, choice in enumerate(self.choices)}
        missing = [i for i, layer in enumerate(architecture.layers) if layer not in index]
        if missing or len(architecture.layers) != self.num_layers:
            raise InputError(
                f"{architecture.name} is not in the space: layers {missing or 'of another count'}"
            )
        genome = np.array([index[layer] for layer in architecture.layers], dtype=np.int64)
        if not self.valid(genome[None])[0]:
            raise InputError(f"{architecture.name} breaks the space's limits, ties or transitions")
        return genome

    def restrict(self, keep: Sequence[str]) -> SearchSpace:
        """The same space with only the kinds of mixer in `keep`.

        Raises InputError where a layer is left without a choice.
        """
        kept = [i for i, kind in enumerate(self.kinds) if kind in keep]
        renumbered = {old: new for new, old in enumerate(kept)}
        return SearchSpace(
            base=self.base,
            choices=tuple(self.choices[i] for i in kept),
            allowed=tuple(
                tuple(renumbered[i] for i in options if i in renumbered) for options in self.allowed
            ),
            ties=tuple(kind for kind in self.ties if kind in keep),
            limits={kind: limit for kind, limit in self.limits.items() if kind in keep or limit.at_least},
            forbidden=self.forbidden,
        )

    def limit(self, kind: str, limit: CountLimit) -> SearchSpace:
        """The same space with one more limit, replacing an earlier one on the kind."""
        return SearchSpace(
            base=self.base,
            choices=self.choices,
            allowed=self.allowed,
            ties=self.ties,
            limits={**self.limits, kind: limit},
            forbidden=self.forbidden,
        )
