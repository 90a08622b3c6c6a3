"""The rules of a space as arrays: which choices a layer may take beside the others, and how to mend genomes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hwsearch.search.space import BoolArray, Genomes, Space

__all__ = ["Rules"]

_ROUNDS = 16  # a child of two valid parents rarely needs more than three


class Tie:
    """A group of choices of which all layers must share one class: classes (C,), -1 outside the group.

    members: (C,). same: (C, C), which are of one class. leaders: the first choice of each class.
    partner[choice, leader]: the choice of the leader's class that stands there where `choice` does in its own (the
    same FFN width, for example), else the leader.
    """

    def __init__(self, classes: Genomes) -> None:
        self.members: BoolArray = classes >= 0
        self.same: BoolArray = (classes[:, None] == classes) & self.members
        rank = np.tril(self.same, -1).sum(axis=1)
        self.leaders: Genomes = np.flatnonzero(self.members & (rank == 0))
        own, leader = np.meshgrid(np.arange(len(classes)), np.arange(len(classes)), indexing="ij")
        self.partner: Genomes = leader.copy()
        for choice in np.flatnonzero(self.members):
            stands_in = self.same[choice][None] & (rank[own] == rank[choice])
            self.partner = np.where(stands_in, choice, self.partner)


class Rules:
    """Ties, limits, transitions and rules on what came before, of a space, vectorised over a population."""

    def __init__(self, space: Space) -> None:
        choices = space.allowed_mask.shape[1]
        self.space = space
        self.allowed = space.allowed_mask
        self.forbidden = space.transition_mask
        self.ties = [Tie(classes) for classes in space.tie_classes]
        self.limits = [(rule.members, rule.at_least, rule.at_most) for rule in space.count_rules]
        self.orders = list(space.order_masks)
        self.needs = list(space.need_masks)
        # Limits as additive costs with upper bounds, for a solver that prices costs.
        tables, bounds = [np.zeros((0, *self.allowed.shape))], []
        for members, at_least, at_most in self.limits:
            counts = members.astype(np.float64)[None]
            if at_most < space.num_layers:
                tables.append(counts)
                bounds.append(at_most)
            if at_least > 0:
                tables.append(-counts)
                bounds.append(-at_least)
        self.limit_tables = np.concatenate(tables)
        self.limit_bounds = np.array(bounds, dtype=np.float64)
        self.num_choices = choices
        self.free = not (self.ties or self.limits or self.orders or self.needs or self.forbidden.any())

    def options(self, genomes: Genomes, layers: NDArray[np.int64]) -> BoolArray:
        """What layer layers[i] of genome i may change to while the rest of the genome stays, (n, C).

        genomes (n, L), layers (n,). The choice it has is never among them.
        """
        rows = np.arange(len(genomes))
        current = genomes[rows, layers]
        options: BoolArray = self.allowed[layers].copy()
        options[rows, current] = False
        if self.free:
            return options
        flat = (genomes + rows[:, None] * self.num_choices).ravel()
        used = np.bincount(flat, minlength=len(genomes) * self.num_choices).reshape(-1, self.num_choices)
        used[rows, current] -= 1
        for tie in self.ties:
            taken = (used > 0) & tie.members
            options &= ~tie.members | (taken @ tie.same) | ~taken.any(axis=1, keepdims=True)
        positions = np.arange(genomes.shape[1])
        for members, at_least, at_most in self.limits:
            inside = members[positions, genomes]
            others = (inside.sum(axis=1) - inside[rows, layers])[:, None]
            here = members[layers]
            options &= ~here | (others < at_most)
            options &= here | (others >= at_least)
        for first, later in self.orders:
            seen = (later[genomes] & (positions < layers[:, None])).any(axis=1, keepdims=True)
            to_come = (first[genomes] & (positions > layers[:, None])).any(axis=1, keepdims=True)
            options &= ~(first & seen) & ~(later & to_come)
        for what, earlier in self.needs:
            others = earlier[genomes] & (positions != layers[:, None])
            first_other = np.where(others.any(axis=1), np.argmax(others, axis=1), genomes.shape[1])[:, None]
            waiting = what[genomes] & (positions <= first_other) & (positions > layers[:, None])
            options &= ~what | (first_other < layers[:, None])
            options &= earlier | ~(waiting.any(axis=1) & earlier[current])[:, None]
        if self.forbidden.any():
            before = genomes[rows, np.maximum(layers - 1, 0)]
            after = genomes[rows, np.minimum(layers + 1, genomes.shape[1] - 1)]
            options &= ~self.forbidden[before] | (layers == 0)[:, None]
            options &= ~self.forbidden[:, after].T | (layers == genomes.shape[1] - 1)[:, None]
        return options

    def repair(self, genomes: Genomes, *, rng: np.random.Generator) -> Genomes:
        """Mends genomes (n, L) that break rules by changing faulty layers; drops those it cannot mend."""
        mended, kept = self.mend(genomes, rng=rng)
        return mended if kept.all() else mended[kept]

    def mend(self, genomes: Genomes, *, rng: np.random.Generator) -> tuple[Genomes, BoolArray]:
        """`genomes` (n, L) with what breaks rules changed, and which of them now keep all, (n,)."""
        whole = self.space.valid(genomes)
        bad = np.flatnonzero(~whole)
        if not len(bad):
            return genomes, whole
        genomes = genomes.copy()
        genomes[bad] = self._unify(genomes[bad], rng)
        for _ in range(_ROUNDS):
            bad = bad[~self.space.valid(genomes[bad])]
            if not len(bad):
                return genomes, np.ones(len(genomes), dtype=bool)
            broken = genomes[bad]
            faults = self._faults(broken)
            layers = np.argmax(rng.random(faults.shape) * faults, axis=1)
            options = self.options(broken, layers)
            drawn = np.argmax(rng.random(options.shape) * options, axis=1)
            possible = options.any(axis=1)
            genomes[bad[possible], layers[possible]] = drawn[possible]
        keep = np.ones(len(genomes), dtype=bool)
        keep[bad] = self.space.valid(genomes[bad])
        return genomes, keep

    def _unify(self, genomes: Genomes, rng: np.random.Generator) -> Genomes:
        """Every layer of a tied kind joins the class of one of them, drawn at random."""
        for tie in self.ties:
            tied = tie.members[genomes]
            leader = np.argmax(rng.random(genomes.shape) * tied, axis=1)
            choice = genomes[np.arange(len(genomes)), leader]
            genomes = np.where(tied, tie.partner[genomes, choice[:, None]], genomes)
        return genomes

    def _faults(self, genomes: Genomes) -> BoolArray:
        """Layers that take part in a broken rule, (n, L); all of them where no rule accounts for it."""
        faults = ~self.allowed[np.arange(genomes.shape[1]), genomes]
        for members, at_least, at_most in self.limits:
            inside = members[np.arange(genomes.shape[1]), genomes]
            count = inside.sum(axis=1, keepdims=True)
            could = members.any(axis=1) & ~inside
            faults |= (inside & (count > at_most)) | (could & (count < at_least))
        for first, later in self.orders:
            early, late = first[genomes], later[genomes]
            faults |= early & np.logical_or.accumulate(late, axis=1)
            faults |= late & np.logical_or.accumulate(early[:, ::-1], axis=1)[:, ::-1]
        for what, earlier in self.needs:
            had = np.logical_or.accumulate(earlier[genomes], axis=1)
            orphans = what[genomes]
            orphans[:, 1:] &= ~had[:, :-1]
            behind = np.logical_or.accumulate(orphans[:, ::-1], axis=1)[:, ::-1]
            faults |= orphans | (behind & (self.allowed & earlier).any(axis=1))
        broken = self.forbidden[genomes[:, :-1], genomes[:, 1:]]
        faults[:, :-1] |= broken
        faults[:, 1:] |= broken
        return faults | ~faults.any(axis=1, keepdims=True)
