"""Everything that a tiny teacher's weights depend on, besides the text of the Python installation."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TeacherRecipe"]


@dataclass(frozen=True, kw_only=True)
class TeacherRecipe:
    """The defaults make the shipped teacher.

    Attention heads are 32 wide, half as many for keys and values; the feed-forward is three times as wide as the model.
    A step takes `batch` rows of `length` tokens, the share `text_share` of the rows real text. `answer_weight` and
    `plain_weight`: loss weights of the answers and of the rest of synthetic samples, beside one for text. Over the
    first `ramp` steps samples grow to their full length: associations are learnt on short lists, where a guess
    among what stands in the context already pays. Learning rates are those of the stable phase: it begins after
    `warmup` steps and ends with a linear fall to zero over the share `decay` of the steps.
    """

    layers: int = 8
    hidden_size: int = 128
    vocabulary: int = 1280
    steps: int = 1800
    batch: int = 16
    length: int = 160
    text_share: float = 0.25
    answer_weight: float = 2.0
    plain_weight: float = 0.1
    ramp: int = 800
    matrix_rate: float = 0.02
    vector_rate: float = 4e-3
    warmup: int = 50
    decay: float = 0.3
    seed: int = 0

    def rate(self, step: int) -> float:
        """Learning rate of a step as a share of that of the stable phase."""
        left = (self.steps - step) / max(self.steps * self.decay, 1.0)
        return min((step + 1) / self.warmup, left, 1.0)

    def reach(self, step: int) -> float:
        """Length of the samples of a step, from 0 (the shortest) to 1."""
        return min((step + 1) / self.ramp, 1.0)
