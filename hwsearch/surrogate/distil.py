"""What the alternatives of a supernet are trained on: to do what the teacher's attention does.

Stage A, local: every alternative reads what the teacher's attention reads and is regressed to what it gives,
    |mixer(x) - attention(x)|^2 / |attention(x)|^2
summed over the batch above and below. No path is sampled and nothing is propagated through the stack, so one forward
of the teacher serves all alternatives of all layers.

Stage B, along a path: the student runs end to end from its first layer that differs from the teacher, and three losses
are weighted against each other: the same error at each mixer, but with the student's own stream as input (the paper's
feature distillation, arXiv 2508.15884, which does not say which tensors are compared); the KL divergence of the next
token's distribution from the teacher's, in nats; and the cross entropy with the text. The last two are computed in
pieces of tokens, so that the logits of a large vocabulary never stand in memory at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hwsearch.errors import InputError
from hwsearch.surrogate.supernet import Genome, Supernet, TeacherPass

__all__ = ["LossWeights", "PathLosses", "local_losses", "path_losses"]

_VALUES = 2**25  # logits of the student that are held at once


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Of the losses of stage B."""

    feature: float = 1.0
    kl: float = 1.0
    task: float = 0.0

    def __post_init__(self) -> None:
        if min(self.feature, self.kl, self.task) < 0 or max(self.feature, self.kl, self.task) <= 0:
            raise InputError(
                f"loss weights feature {self.feature:g}, kl {self.kl:g}, task {self.task:g}: they must be 0 or more, "
                "and one above 0"
            )


@dataclass(frozen=True)
class PathLosses:
    """total: weighted, with its graph. The parts are detached; one that has no weight is zero."""

    total: Tensor
    feature: Tensor
    kl: Tensor
    task: Tensor


def local_losses(supernet: Supernet, teacher: TeacherPass) -> Iterator[tuple[int, int, Tensor]]:
    """Layer, choice and loss of every alternative, one by one; each loss has a graph of its own."""
    for layer in range(supernet.num_layers):
        alternatives = supernet.alternatives_of(layer)
        if not alternatives:
            continue
        with torch.no_grad():
            input_BTD = supernet.mixer_input(layer, teacher.hidden[layer])
        for choice, mixer in alternatives.items():
            mixed_BTD, _ = mixer(input_BTD)
            yield layer, choice, _error(mixed_BTD, teacher.mixed[layer])


def path_losses(
    supernet: Supernet,
    genome: Genome,
    input_ids_BT: Tensor,
    teacher: TeacherPass,
    weights: LossWeights,
    *,
    recompute: bool = False,
) -> PathLosses | None:
    """The losses of one path on a batch of whole rows; None where nothing on the path trains.

    recompute: keep only the residual stream of each layer and compute the rest again in the backward pass.
    """
    if not any(int(choice) in supernet.alternatives_of(i) for i, choice in enumerate(genome)):
        return None
    first = next(i for i, choice in enumerate(genome) if not supernet.is_teacher(i, int(choice)))
    hidden_BTD = teacher.hidden[first]
    errors = []
    for index in range(first, supernet.num_layers):
        choice = int(genome[index])
        if recompute:
            hidden_BTD, mixed_BTD = checkpoint(supernet.layer, index, choice, hidden_BTD, use_reentrant=False)
        else:
            hidden_BTD, mixed_BTD = supernet.layer(index, choice, hidden_BTD)
        if weights.feature and mixed_BTD is not None:
            errors.append(_error(mixed_BTD, teacher.mixed[index]))
    zero = torch.zeros((), device=hidden_BTD.device)
    feature = torch.stack(errors).mean() if errors else zero
    kl, task = zero, zero
    if weights.kl or weights.task:
        kl, task = _output_losses(supernet, hidden_BTD, teacher.hidden[-1], input_ids_BT, weights)
    total = weights.feature * feature + weights.kl * kl + weights.task * task
    return PathLosses(total, feature.detach(), kl.detach(), task.detach())


def _error(mixed_BTD: Tensor, wanted_BTD: Tensor) -> Tensor:
    wanted = wanted_BTD.float()
    return (mixed_BTD.float() - wanted).square().sum() / wanted.square().sum()


def _output_losses(
    supernet: Supernet, own_BTD: Tensor, teacher_BTD: Tensor, ids_BT: Tensor, weights: LossWeights
) -> tuple[Tensor, Tensor]:
    """KL divergence and cross entropy, means over the predicted tokens."""
    own_ND, teacher_ND = own_BTD[:, :-1].flatten(0, 1), teacher_BTD[:, :-1].flatten(0, 1)
    target_N = ids_BT[:, 1:].flatten()
    size = max(_VALUES // supernet.space.base.vocab_size, 1)

    def losses(own_KD: Tensor, teacher_KD: Tensor, target_K: Tensor) -> tuple[Tensor, Tensor]:
        own_KV = supernet.head(own_KD).float().log_softmax(dim=1)
        kl = task = own_KV.new_zeros(())
        if weights.kl:
            with torch.no_grad():
                teacher_KV = supernet.head(teacher_KD).float().log_softmax(dim=1)
            kl = F.kl_div(own_KV, teacher_KV, log_target=True, reduction="sum")
        if weights.task:
            task = F.nll_loss(own_KV, target_K, reduction="sum")
        return kl, task

    pieces = [torch.split(tensor, size) for tensor in (own_ND, teacher_ND, target_N)]
    sums = []
    for piece in zip(*pieces, strict=True):
        # One piece keeps its logits; of several, each computes them again in the backward pass.
        single = len(pieces[0]) == 1
        sums.append(losses(*piece) if single else checkpoint(losses, *piece, use_reentrant=False))
    kl, task = (torch.stack(parts).sum() / len(target_N) for parts in zip(*sums, strict=True))
    return kl, task
