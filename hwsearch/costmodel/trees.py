"""Gradient-boosted oblivious trees in numpy: the residual learner for families with many rows.

An oblivious tree asks the same question at every node of a level, so a row's leaf is the number whose bits are
the answers. Prediction is then a few comparisons of whole columns and one table look-up per tree, which numpy
does at the speed of memory, and a tree is saved as `depth` questions and 2**depth values. Method: Friedman 2001
(boosting with a Huber loss), oblivious trees as in Prokhorenkova et al., arXiv 1706.09516; histograms of
binned features, rows and features subsampled per tree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Trees", "TreesRecipe", "fit_trees"]

_BLOCK = 16384  # rows per block: answers to its questions take a few dozen MB at most
_LEAST_SEARCHED = 512  # rows; with fewer a tree's questions are found on all of them
_SHORT = 96  # numbers; shorter rows of a histogram are summed faster one by one
_CLIP_EVERY = 10  # trees between updates of the Huber bound


@dataclass(frozen=True, kw_only=True)
class TreesRecipe:
    """How an ensemble is grown.

    `rows` and `features` are the fractions drawn to find the questions of a tree; its leaves use every row.
    """

    trees: int = 400
    depth: int = 6
    rate: float = 0.08
    rows: float = 0.6
    features: float = 0.6
    bins: int = 96
    smoothing: float = 1.0
    clip_quantile: float = 0.95


@dataclass(frozen=True)
class Trees:
    """A fitted ensemble: feature and threshold (trees, depth), leaf (trees, 2**depth), float32."""

    feature: NDArray[np.int16]
    threshold: NDArray[np.float32]
    leaf: NDArray[np.float32]

    def predict(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Sum of the trees for features (n, F), as (n,); fastest where each feature is contiguous."""
        total = np.zeros(len(features), np.float32)
        if not len(self.feature):
            return total
        by_feature = np.ascontiguousarray(features.T)
        asked, questions = self._questions()
        width = min(_BLOCK, len(features))
        answers = np.empty((sum(len(thresholds) for _, thresholds in questions), width), np.bool_)
        leaf_of = np.empty(width, np.uint8)
        for start in range(0, len(features), _BLOCK):
            block = by_feature[:, start : start + _BLOCK]
            width = block.shape[1]
            # Trees ask the same questions again and again: each is answered once.
            first = 0
            for feature, thresholds in questions:
                own = answers[first : first + len(thresholds), :width]
                np.greater(block[feature], thresholds[:, None], out=own)
                first += len(thresholds)
            bits = list(answers[:, :width].view(np.uint8))
            out, leaf_of = total[start : start + _BLOCK], leaf_of[:width]
            for places, leaf in zip(asked, self.leaf, strict=True):
                leaf_of[:] = 0
                for place in places:
                    np.add(leaf_of, leaf_of, out=leaf_of)
                    np.add(leaf_of, bits[place], out=leaf_of)
                out += leaf.take(leaf_of)
        return total

    def _questions(self) -> tuple[list[list[int]], list[tuple[int, NDArray[np.float32]]]]:
        """Places of each tree's questions among the different ones, and these: features, and thresholds of each."""
        keys = (self.feature.astype(np.int64) << 32) | self.threshold.view(np.uint32)
        different, place = np.unique(keys, return_inverse=True)
        thresholds = (different & 0xFFFFFFFF).astype(np.uint32).view(np.float32)
        features, begin = np.unique(different >> 32, return_index=True)
        return (
            place.reshape(self.feature.shape).tolist(),
            list(zip(features.tolist(), np.split(thresholds, begin[1:]), strict=True)),
        )

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        # Half precision is three orders finer than the noise of a measurement, and halves a saved model.
        return {
            "feature": self.feature,
            "threshold": self.threshold,
            "leaf": self.leaf.astype(np.float16),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Trees:
        return cls(
            arrays["feature"].astype(np.int16),
            arrays["threshold"].astype(np.float32),
            arrays["leaf"].astype(np.float32),
        )


def _cut_points(column: NDArray[np.float32], bins: int) -> NDArray[np.float32]:
    """At most bins - 1 thresholds between neighbouring values of a column."""
    values = np.unique(column)
    if len(values) > bins:
        values = np.unique(np.quantile(column, np.linspace(0, 1, bins), method="nearest"))
    return ((values[1:].astype(np.float64) + values[:-1]) / 2).astype(np.float32)


def fit_trees(
    features: NDArray[np.float32], target: NDArray[np.float64], *, recipe: TreesRecipe, seed: int
) -> Trees:
    """Boost oblivious trees on features (n, F) towards target (n,), with a Huber loss."""
    rng = np.random.default_rng(seed)
    n, width = features.shape
    cuts = [_cut_points(features[:, f], recipe.bins) for f in range(width)]
    usable = np.flatnonzero([len(own) for own in cuts])
    feature = np.zeros((recipe.trees, recipe.depth), np.int16)
    threshold = np.full((recipe.trees, recipe.depth), np.inf, np.float32)
    leaf = np.zeros((recipe.trees, 2**recipe.depth), np.float32)
    if not len(usable):
        return Trees(feature, threshold, leaf)
    # Features by rows: a question reads one contiguous column.
    codes = np.stack([np.searchsorted(cuts[f], features[:, f]) for f in usable]).astype(np.uint8)
    thresholds = np.stack([np.resize(cuts[f], recipe.bins) for f in usable])
    places = 2 ** np.arange(recipe.depth)[::-1]
    drawn_rows = min(n, max(_LEAST_SEARCHED, round(recipe.rows * n)))
    drawn_features = max(1, round(recipe.features * len(usable)))
    residual = target.astype(np.float64).copy()
    bound = np.inf
    for tree in range(recipe.trees):
        if tree % _CLIP_EVERY == 0:
            bound = max(float(np.quantile(np.abs(residual), recipe.clip_quantile)), 1e-12)
        pull = np.clip(residual, -bound, bound)
        rows = rng.choice(n, drawn_rows, replace=False) if drawn_rows < n else np.arange(n)
        asked = rng.choice(len(usable), drawn_features, replace=False)
        question, position = np.array(_grow(codes[asked][:, rows], pull[rows], recipe)).T
        chosen = asked[question]
        feature[tree], threshold[tree] = usable[chosen], thresholds[chosen, position]
        leaf_of = places @ (codes[chosen] > position[:, None])
        count = np.bincount(leaf_of, minlength=leaf.shape[1])
        total = np.bincount(leaf_of, weights=pull, minlength=leaf.shape[1])
        leaf[tree] = (recipe.rate * total / (count + recipe.smoothing)).astype(np.float16)
        residual -= leaf[tree].take(leaf_of)
    return Trees(feature, threshold, leaf)


def _grow(codes: NDArray[np.uint8], pull: NDArray[np.float64], recipe: TreesRecipe) -> list[tuple[int, int]]:
    """One tree's questions, level by level: (row of codes (F, n), last bin that answers no)."""
    last = codes.max(axis=1)
    bins = int(last.max()) + 1
    # Nothing of this sample lies above a feature's last bin: that is no question.
    nothing = np.where(np.arange(bins)[:, None] >= last, np.float32(-np.inf), np.float32(0))
    unit = 4.0 * max(float(np.abs(pull).sum()), 1e-300)
    weight = pull + unit
    # Of every leaf that holds a row, what it gains by each question: that stays until a question parts the leaf.
    leaf_of = np.zeros(len(pull), np.int64)
    gains = _gains(codes, weight, leaf_of, 1, unit=unit, bins=bins, smoothing=recipe.smoothing)
    questions: list[tuple[int, int]] = []
    while True:
        score = nothing + gains[0]
        for gain in gains[1:]:
            score += gain
        question, position = divmod(int(score.T.argmax()), bins)
        questions.append((question, position))
        left = recipe.depth - len(questions)
        if not left:
            return questions
        leaf_of *= 2
        leaf_of += codes[question] > position
        holds = np.bincount(leaf_of, minlength=2 * len(gains)) > 0
        parted = holds[::2] & holds[1::2]
        if not parted.any():  # no leaf has changed, nor will the next question
            return questions + [(question, position)] * left
        both = parted.repeat(2)
        rows = both[leaf_of].nonzero()[0]
        fresh = _gains(
            codes.take(rows, axis=1),
            weight[rows],
            (both.cumsum() - 1)[leaf_of[rows]],
            2 * int(parted.sum()),
            unit=unit,
            bins=bins,
            smoothing=recipe.smoothing,
        )
        gains = [
            found
            for gain, new in zip(gains, parted.tolist(), strict=True)
            for found in ((fresh.pop(), fresh.pop()) if new else (gain,))
        ]
        leaf_of = (holds.cumsum() - 1)[leaf_of]


def _gains(
    codes: NDArray[np.uint8],
    weight: NDArray[np.float64],
    leaf_of: NDArray[np.int64],
    leaves: int,
    *,
    unit: float,
    bins: int,
    smoothing: float,
) -> list[NDArray[np.float32]]:
    """What each leaf gains by every question (bins, F), last leaf first, from codes (F, n), weights and leaves (n,).

    Sum and count come from one histogram: the count rides in the high bits of the weight, in multiples of `unit`.
    """
    width = len(codes)
    cells = leaves * width
    index = codes.astype(np.int64)
    index *= cells
    index += leaf_of * width
    index += np.arange(width)[:, None]
    weights = np.empty(codes.shape)
    weights[:] = weight
    packed = np.bincount(index.ravel(), weights=weights.ravel(), minlength=bins * cells).reshape(bins, cells)
    count = packed / unit
    np.rint(count, out=count)
    # Single precision halves the work on the histograms, and a gain needs no more. Counts begin at the smoothing.
    below = np.empty((bins, 2, cells), np.float32)
    below[:, 1] = count
    below[0, 1] += np.float32(smoothing)
    below[:, 0] = np.subtract(packed, np.multiply(count, unit, out=count), out=count)
    if 2 * cells < _SHORT:
        np.add.accumulate(below, axis=0, out=below)
    else:  # numpy would add number by number: long rows are added whole
        row, *others = below.reshape(bins, -1)
        for own in others:
            np.add(row, own, own)
            row = own
    below_s, below_n = below[:, 0], below[:, 1]
    all_s, all_n = below[-1, :, ::width].repeat(width, axis=1)
    gain = below_s * below_s
    gain /= below_n
    above_s = np.subtract(all_s, below_s, below_s)
    above_s *= above_s
    above_s /= np.subtract(all_n + np.float32(smoothing), below_n, below_n)
    gain += above_s
    return list(gain.reshape(bins, leaves, width).transpose(1, 0, 2)[::-1])
