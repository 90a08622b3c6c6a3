"""Growing partial paths layer by layer: label setting for the resource-constrained shortest path.

Irnich and Desaulniers (2005), vectorised: all labels of a layer at once. A label holds what a partial path has spent of
every cost and its largest peaks so far. It is dropped where its bound lies above the threshold, where no completion
can keep the limits, or where another label of the same choice has spent less of everything.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hwsearch.search.space import FloatArray, Genomes

__all__ = ["Labels", "Priced", "PricedTables"]

_STRIDES = (1, 2, 3, 5, 8, 13, 21, 34)


class PricedTables(Protocol):
    """Costs along the layers, the first to be minimised: see `chain.Chain`."""

    unary: FloatArray
    between: FloatArray | None
    blocked: FloatArray | None
    peaked: list[int]
    peaks: list[FloatArray]

    def togo(
        self, unary: FloatArray, between: FloatArray | None, closed: FloatArray
    ) -> tuple[FloatArray, float]:
        """Least cost after each (layer, choice), (L, C), and of a whole path."""
        ...

    def priced(self, prices: FloatArray) -> tuple[FloatArray, FloatArray | None]:
        """The tables of the first cost plus the others at prices (R,)."""
        ...


class Priced(Protocol):
    """Tables with what is closed to each layer (L, C), limits (R,) and price lists (R,), the best first.

    offset (k,): constants and least peaks. floors: the least that each peak can be. slack (k,): rounding allowed.
    """

    @property
    def chain(self) -> PricedTables: ...

    closed: FloatArray
    offset: FloatArray
    floors: FloatArray
    limits: FloatArray
    slack: FloatArray
    prices: list[FloatArray]


class Labels:
    """Partial paths grown layer by layer."""

    def __init__(self, part: Priced, cap: int) -> None:
        self.part, self.cap = part, cap
        self.most = 0
        chain = part.chain
        self.weights = np.array([np.concatenate(([1.0], prices)) for prices in part.prices])  # (m, k)
        self.credits = np.array([float(prices @ part.limits) for prices in part.prices])
        self.togo = np.array(
            [chain.togo(*chain.priced(prices), part.closed)[0] for prices in part.prices]
        )  # (m, L, C)
        between = chain.between
        self.least = np.array(
            [
                chain.togo(chain.unary[i], None if between is None else between[i], part.closed)[0]
                for i in range(1, len(chain.unary))
            ]
        ).reshape(len(chain.unary) - 1, *part.closed.shape)

    def below(self, threshold: float) -> tuple[Genomes, float]:
        """Genomes (n, L), among them one of least cost if that is at most the threshold; and up to where that holds."""
        part, chain = self.part, self.part.chain
        layers = len(part.closed)
        complete = threshold
        cut = threshold - float(part.offset[0]) + part.slack[0]
        nodes = np.flatnonzero(np.isfinite(part.closed[0]))
        spent = chain.unary[:, 0, nodes].T
        peaks = np.stack([peak[0, nodes] for peak in chain.peaks], axis=1) if chain.peaks else None
        kept = self._kept(spent, nodes, 0, peaks, cut)[0]
        spent, nodes = spent[kept], nodes[kept]
        peaks = None if peaks is None else peaks[kept]
        steps: list[tuple[NDArray[np.int64], Genomes]] = [(np.arange(len(nodes)), nodes)]
        self.most = 0
        for layer in range(1, layers):
            # The best prices alone decide first, on one number per pair instead of a whole label.
            table, between = chain.priced(part.prices[0])
            base = spent @ self.weights[0] - self.credits[0]
            ahead = table[layer] + part.closed[layer] + self.togo[0, layer]
            bounds = base[:, None] + ahead
            if between is not None:
                bounds += between[layer - 1][nodes]
            if chain.blocked is not None:
                bounds += chain.blocked[nodes]
            parents, after = np.nonzero(bounds <= cut)
            if len(parents) > 4 * self.cap:
                flat = bounds[parents, after]
                kept = np.argpartition(flat, 4 * self.cap)
                complete = min(complete, float(flat[kept[4 * self.cap]]) + float(part.offset[0]))
                kept = np.sort(kept[: 4 * self.cap])
                parents, after = parents[kept], after[kept]
            grown = spent[parents] + chain.unary[:, layer, after].T
            if chain.between is not None:
                grown += chain.between[:, layer - 1, nodes[parents], after].T
            if peaks is not None:
                peaks = np.maximum(
                    peaks[parents], np.stack([peak[layer, after] for peak in chain.peaks], axis=1)
                )
            kept, lowest = self._kept(grown, after, layer, peaks, cut)
            if len(kept) > self.cap:
                order = np.argpartition(lowest, self.cap)
                complete = min(complete, float(lowest[order[self.cap]]) + float(part.offset[0]))
                kept = np.sort(kept[order[: self.cap]])
            spent, nodes, parents = grown[kept], after[kept], parents[kept]
            peaks = None if peaks is None else peaks[kept]
            kept = self._undominated(spent, nodes, peaks)
            spent, nodes, parents = spent[kept], nodes[kept], parents[kept]
            peaks = None if peaks is None else peaks[kept]
            steps.append((parents, nodes))
            self.most = max(self.most, len(nodes))
        rows = np.arange(len(nodes))
        genomes = np.empty((len(rows), layers), dtype=np.int64)
        for layer in range(layers - 1, -1, -1):
            parents, nodes = steps[layer]
            genomes[:, layer] = nodes[rows]
            rows = parents[rows]
        return genomes, complete

    def _kept(
        self, spent: FloatArray, nodes: Genomes, layer: int, peaks: FloatArray | None, cut: float
    ) -> tuple[NDArray[np.int64], FloatArray]:
        """Which labels (n, k) may still lead to a path within the limits and below the cut, and their bounds."""
        part, chain = self.part, self.part.chain
        spent = spent.copy()
        if peaks is not None:
            for i, cost in enumerate(chain.peaked):
                spent[:, cost] += np.maximum(peaks[:, i] - part.floors[i], 0.0)
        good = np.isfinite(self.togo[0, layer][nodes])
        lowest = np.full(len(spent), -np.inf)
        for weights, credit, togo in zip(self.weights, self.credits, self.togo, strict=True):
            np.maximum(lowest, spent @ weights + togo[layer][nodes] - credit, out=lowest)
        good &= lowest <= cut
        for i in range(spent.shape[1] - 1):
            good &= spent[:, i + 1] + self.least[i, layer][nodes] <= part.limits[i] + part.slack[i + 1]
        kept = np.flatnonzero(good)
        return kept, lowest[kept]

    @staticmethod
    def _undominated(spent: FloatArray, nodes: Genomes, peaks: FloatArray | None) -> NDArray[np.int64]:
        """Labels without most of those that another of the same choice betters in everything, in order."""
        kept = np.arange(len(nodes))
        if len(nodes) < 100:
            return kept
        everything = spent if peaks is None else np.concatenate((spent, peaks), axis=1)
        kept = np.lexsort((spent[:, 0], nodes))
        for stride in _STRIDES:
            if len(kept) <= stride:
                break
            before, behind = kept[:-stride], kept[stride:]
            dominated = nodes[before] == nodes[behind]
            dominated &= np.all(everything[before] <= everything[behind], axis=1)
            kept = np.concatenate((kept[:stride], behind[~dominated]))
        return kept
