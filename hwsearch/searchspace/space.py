"""The search space: which architectures may be chosen, and the rules they obey.

A genome is an integer vector, one index into `choices` per layer; a population is an (n, layers) array. Counting,
uniform sampling and bounds are questions to the space's graph, see `graph.PathGraph`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from hwsearch.errors import InputError
from hwsearch.searchspace.architecture import Architecture, LayerSpec
from hwsearch.searchspace.bases import Base
from hwsearch.searchspace.constraints import CountLimit, CountRule, Pattern, count_rules
from hwsearch.searchspace.graph import Automaton, PathGraph
from hwsearch.searchspace.mixers import SOFTMAX_KINDS, SharedKVAttention

__all__ = ["CountLimit", "Genomes", "Pattern", "SearchSpace"]

Genomes = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """Which architectures may be chosen.

    choices: the vocabulary of layers, C of them.
    allowed: per layer the indices of the choices it may take.
    groups: names for several kinds of mixer; every rule takes a kind or a group.
    ties: kinds whose layers must all take the same mixer (their FFN may differ).
    limits: kind -> how often it may occur; patterns: the same within each block of layers.
    forbidden: pairs of kinds that may not follow one another.
    orders: (first, later): no layer of `first` may come after one of `later`.
    needs: (what, earlier): a layer of `what` may only come after one of `earlier`, anywhere before it. That a
    shared_kv_attention layer comes after one it can read needs no rule.
    """

    base: Base
    choices: tuple[LayerSpec, ...]
    allowed: tuple[tuple[int, ...], ...]
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ties: tuple[str, ...] = ()
    limits: Mapping[str, CountLimit] = field(default_factory=dict)
    patterns: tuple[Pattern, ...] = ()
    forbidden: frozenset[tuple[str, str]] = frozenset()
    orders: tuple[tuple[str, str], ...] = ()
    needs: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if len(self.allowed) != self.base.num_layers:
            raise InputError(
                f"the space describes {len(self.allowed)} layers and {self.base.name} has {self.base.num_layers}"
            )
        for layer, options in enumerate(self.allowed):
            if not options or not all(0 <= option < len(self.choices) for option in options):
                raise InputError(f"layer {layer} has no choices, or one outside 0..{len(self.choices) - 1}")
        for kind, limit in self.limits.items():
            limit.check(kind, self.num_layers)

    @property
    def num_layers(self) -> int:
        return len(self.allowed)

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The kind of mixer of each choice, (C,)."""
        return tuple(choice.mixer.kind for choice in self.choices)

    @cached_property
    def allowed_mask(self) -> BoolArray:
        """Which choices each layer may take by itself, (layers, C)."""
        mask = np.zeros((self.num_layers, len(self.choices)), dtype=bool)
        for layer, options in enumerate(self.allowed):
            mask[layer, list(options)] = True
        return mask

    def kind_mask(self, kind: str) -> BoolArray:
        """Which choices use a kind of mixer, or one of a group, (C,)."""
        members = self.groups.get(kind, (kind,))
        return np.array([k in members for k in self.kinds])

    @cached_property
    def tie_classes(self) -> tuple[Genomes, ...]:
        """Per tie a class for each choice, (C,): layers of a class other than -1 must share it."""
        classes = []
        for kind in self.ties:
            members = self.kind_mask(kind)
            if not members.any():
                continue
            mixers = list(
                dict.fromkeys(c.mixer for c, inside in zip(self.choices, members, strict=True) if inside)
            )
            classes.append(
                np.array(
                    [
                        mixers.index(choice.mixer) if inside else -1
                        for choice, inside in zip(self.choices, members, strict=True)
                    ],
                    dtype=np.int64,
                )
            )
        return tuple(classes)

    @cached_property
    def count_rules(self) -> tuple[CountRule, ...]:
        """Limits and patterns as rows over (layers, C)."""
        masks = {kind: self.kind_mask(kind) for kind in (*self.limits, *(p.kind for p in self.patterns))}
        return count_rules(self.num_layers, masks, limits=self.limits, patterns=self.patterns)

    @cached_property
    def transition_mask(self) -> BoolArray:
        """Which choice may not be followed by which, (C, C)."""
        mask = np.zeros((len(self.choices), len(self.choices)), dtype=bool)
        for before, after in self.forbidden:
            mask |= self.kind_mask(before)[:, None] & self.kind_mask(after)
        return mask

    @cached_property
    def order_masks(self) -> tuple[tuple[BoolArray, BoolArray], ...]:
        """Per order rule which choices (C,) may not come after which (C,)."""
        return tuple((self.kind_mask(first), self.kind_mask(later)) for first, later in self.orders)

    @cached_property
    def need_masks(self) -> tuple[tuple[BoolArray, BoolArray], ...]:
        """Per need which choices (C,) may only come after which (C,); keys and values to read are needs too."""
        mixers = [choice.mixer for choice in self.choices]
        readable: dict[tuple[bool, ...], list[bool]] = {}
        for i, mixer in enumerate(mixers):
            if isinstance(mixer, SharedKVAttention):
                from_ = tuple(mixer.reads(other) for other in mixers)
                readable.setdefault(from_, [False] * len(mixers))[i] = True
        return (
            *((self.kind_mask(what), self.kind_mask(earlier)) for what, earlier in self.needs),
            *((np.array(readers), np.array(from_)) for from_, readers in readable.items()),
        )

    @property
    def rules(self) -> dict[str, Any]:
        """Every rule beyond `allowed`, as JSON values."""
        return {
            "groups": {name: list(kinds) for name, kinds in self.groups.items()},
            "ties": list(self.ties),
            "limits": {kind: [limit.at_least, limit.at_most] for kind, limit in self.limits.items()},
            "patterns": [[p.kind, p.every, p.limit.at_least, p.limit.at_most] for p in self.patterns],
            "forbidden": sorted(map(list, self.forbidden)),
            "orders": [list(pair) for pair in self.orders],
            "needs": [list(pair) for pair in self.needs],
        }

    @cached_property
    def paths(self) -> PathGraph:
        """The space as a graph whose paths are its architectures."""
        automaton = Automaton(
            successors=~self.transition_mask,
            limits=tuple((self.kind_mask(kind), limit) for kind, limit in self.limits.items()),
            patterns=tuple((self.kind_mask(pattern.kind), pattern) for pattern in self.patterns),
            ties=self.tie_classes,
            orders=self.order_masks,
            needs=self.need_masks,
            num_layers=self.num_layers,
        )
        return PathGraph(automaton, self.allowed)

    @property
    def graph(self) -> nx.DiGraph:
        """The networkx graph of `paths`."""
        return self.paths.graph

    @property
    def size(self) -> int:
        """Number of architectures, exactly."""
        return self.paths.size

    def sample(self, n: int, *, rng: np.random.Generator) -> Genomes:
        """n genomes, (n, layers), each drawn uniformly from all architectures of the space.

        Raises InputError where the rules leave no architecture at all.
        """
        if self.size == 0:
            raise InputError("the space is empty: its rules leave no architecture")
        return self.paths.sample(n, rng=rng)

    def valid(self, genomes: Genomes) -> BoolArray:
        """Which of the genomes (n, layers) are architectures of the space, (n,)."""
        genomes = np.asarray(genomes)
        inside = (genomes >= 0) & (genomes < len(self.choices))
        safe = np.where(inside, genomes, 0)
        rows = np.arange(self.num_layers)
        ok: BoolArray = np.all(inside & self.allowed_mask[rows, safe], axis=1)
        for rule in self.count_rules:
            count = rule.members[rows, safe].sum(axis=1)
            ok &= (count >= rule.at_least) & (count <= rule.at_most)
        for classes in self.tie_classes:
            taken = classes[safe]
            ok &= np.all((taken < 0) | (taken == taken.max(axis=1, keepdims=True)), axis=1)
        if self.forbidden:
            ok &= ~np.any(self.transition_mask[safe[:, :-1], safe[:, 1:]], axis=1)
        for first, later in self.order_masks:
            seen = np.logical_or.accumulate(later[safe], axis=1)
            ok &= ~np.any(seen[:, :-1] & first[safe[:, 1:]], axis=1)
        for what, earlier in self.need_masks:
            had = np.logical_or.accumulate(earlier[safe], axis=1)
            ok &= ~what[safe[:, 0]] & ~np.any(what[safe[:, 1:]] & ~had[:, :-1], axis=1)
        return ok

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
            raise InputError(f"{architecture.name} breaks the rules of the space")
        return genome

    def restrict(self, keep: Sequence[int]) -> SearchSpace:
        """The same space with only the choices whose indices are in `keep`, renumbered.

        Raises InputError where a layer is left without a choice.
        """
        renumbered = {old: new for new, old in enumerate(keep)}
        return replace(
            self,
            choices=tuple(self.choices[i] for i in keep),
            allowed=tuple(
                tuple(renumbered[i] for i in options if i in renumbered) for options in self.allowed
            ),
        )

    def only(self, allowed: BoolArray) -> SearchSpace:
        """The same space, with layers that may take only the choices in a mask (layers, C) of those they could.

        Raises InputError where a layer is left without a choice.
        """
        kept = self.allowed_mask & allowed
        return replace(self, allowed=tuple(tuple(np.flatnonzero(row).tolist()) for row in kept))

    def limit(self, kind: str, limit: CountLimit) -> SearchSpace:
        """The same space with one more limit, replacing an earlier one on the kind or group."""
        return replace(self, limits={**self.limits, kind: limit})

    def placed_as(self, architecture: Architecture) -> SearchSpace:
        """The same space with the softmax attention where `architecture` has it, of the same kind, and nowhere else.

        Raises InputError where the space cannot hold that placement.
        """
        if len(architecture.layers) != self.num_layers:
            raise InputError(
                f"{architecture.name} has {len(architecture.layers)} layers and the space {self.num_layers}: "
                "take the placement from an architecture of the same base"
            )
        softmax = np.array([kind in SOFTMAX_KINDS for kind in self.kinds])
        rows = [
            self.kind_mask(layer.mixer.kind) if layer.mixer.kind in SOFTMAX_KINDS else ~softmax
            for layer in architecture.layers
        ]
        placed = np.array(rows)
        stuck = np.flatnonzero(~(placed & self.allowed_mask).any(axis=1))
        if len(stuck):
            raise InputError(
                f"{architecture.name} has {architecture.layers[int(stuck[0])].mixer.kind} in layer {stuck[0]}, "
                f"where the space has no choice that keeps the placement: {', '.join(dict.fromkeys(self.kinds))}"
            )
        return self.only(placed)
