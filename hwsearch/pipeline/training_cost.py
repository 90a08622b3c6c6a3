"""What training costs on a device, predicted from the cost model's prefill operators.

The cost model has measured forward kernels; the backward pass is derived. Behind a kernel that does F of work forward
come F for the gradient of its input and, where its weights train, F for that of the weights. With the feed-forward
networks, embeddings and head frozen, as PostNAS trains (arXiv 2508.15884), their kernels cost 2 F in all and those of
the mixers 3 F: attention and recurrences, which have two inputs to differentiate, are taken as 3 F too. Distillation
adds one forward pass of the teacher. The head works on every token, where a prefill needs it for the last one only.

Kernels run back to back: optimiser, communication between devices, and memory pressure that forces recomputation are
left out, so a figure is a lower bound on device hours and its unit tokens per second an upper bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hwsearch.costmodel.compose import check_dtype, latency_of
from hwsearch.costmodel.model import CostModel
from hwsearch.operators import Operator
from hwsearch.searchspace.architecture import Architecture, LayerSpec
from hwsearch.searchspace.space import SearchSpace
from hwsearch.searchspace.workload import Workload

__all__ = ["FROZEN", "TRAINED", "TrainingCost", "local_training", "path_training", "scoring_cost"]

FROZEN, TRAINED = 2.0, 3.0
"""Work of a training step, forward and backward, over that of the forward pass alone."""


@dataclass(frozen=True, kw_only=True)
class TrainingCost:
    """Of one step: student_ms forward and backward, teacher_ms forward, and the tokens in it."""

    student_ms: float
    teacher_ms: float
    tokens: int

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / (self.student_ms + self.teacher_ms) * 1e3

    def hours(self, tokens: float) -> float:
        """Device hours for so many tokens."""
        return tokens / self.tokens_per_s / 3600


def path_training(
    architecture: Architecture, *, model: CostModel, batch: int, context: int, distilled: bool = True
) -> TrainingCost:
    """End to end training of an architecture with everything but the mixers frozen: supernet paths, proxies, blocks."""
    workload = _workload(model, batch=batch, context=context)
    mixers, others = _split(architecture, workload)
    base = Architecture.of_base(architecture.base)
    own, frozen, teacher = latency_of(model, [mixers, others, _forward(base, workload) if distilled else ()])
    return TrainingCost(
        student_ms=TRAINED * own.median_ms + FROZEN * frozen.median_ms,
        teacher_ms=teacher.median_ms,
        tokens=workload.tokens,
    )


def local_training(space: SearchSpace, *, model: CostModel, batch: int, context: int) -> TrainingCost:
    """Every alternative of every layer trained on the teacher's own activations: stage A of the supernet."""
    workload = _workload(model, batch=batch, context=context)
    base = Architecture.of_base(space.base)
    own = LayerSpec(mixer=space.base.mixer, ffn=space.base.ffn)
    alternatives = [
        op
        for allowed in space.allowed
        for choice in allowed
        if space.choices[choice] != own
        for op in space.choices[choice].lower_mixer(space.base.hidden_size, workload)
    ]
    trained, teacher = latency_of(model, [alternatives, _forward(base, workload)])
    return TrainingCost(
        student_ms=TRAINED * trained.median_ms, teacher_ms=teacher.median_ms, tokens=workload.tokens
    )


def scoring_cost(architecture: Architecture, *, model: CostModel, batch: int, context: int) -> TrainingCost:
    """Forward passes alone: an evaluation on tasks or text."""
    workload = _workload(model, batch=batch, context=context)
    (forward,) = latency_of(model, [_forward(architecture, workload)])
    return TrainingCost(student_ms=forward.median_ms, teacher_ms=0.0, tokens=workload.tokens)


def _workload(model: CostModel, *, batch: int, context: int) -> Workload:
    workload = Workload(phase="prefill", batch=batch, context=context, dtype=model.dtype)
    check_dtype(model, workload)
    return workload


def _split(architecture: Architecture, workload: Workload) -> tuple[list[Operator], list[Operator]]:
    """Operators of the mixers, and all others with the head on every token."""
    base = architecture.base
    mixers = [op for layer in architecture.layers for op in layer.lower_mixer(base.hidden_size, workload)]
    others = [op for layer in architecture.layers for op in layer.lower_ffn(base.hidden_size, workload)]
    head = Operator("gemm", (workload.tokens, base.vocab_size, base.hidden_size))
    return mixers, [*others, *architecture.lower_embedding(workload), head]


def _forward(architecture: Architecture, workload: Workload) -> Sequence[Operator]:
    mixers, others = _split(architecture, workload)
    return [*mixers, *others]
