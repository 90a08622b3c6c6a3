"""AdamW over the trainable parameters of a supernet: fp32 masters for low-precision weights, gradients of several
processes averaged, its state as plain tensors.

Frozen weights take no part: no gradient is computed for them and no state is kept. Of the trainable ones a step updates
those on the sampled paths only; the moments of the others stay. DistributedDataParallel would wait for gradients that
never come, so the gradients that there are get averaged in one reduction: every process samples the same paths.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["Optimiser", "learning_rate_at"]

_BETAS = (0.9, 0.95)
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def learning_rate_at(step: int, *, steps: int, peak: float, warmup: float, final: float) -> float:
    """Linear from 0 over the first `warmup` share of the steps, then a cosine down to `final` times the peak."""
    rising = max(round(warmup * steps), 1)
    if step < rising:
        return peak * (step + 1) / rising
    share = (step - rising) / max(steps - rising, 1)
    return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * share)))


class Optimiser:
    """AdamW. parameters: by name; those of lower precision than fp32 are updated through fp32 masters."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], *, weight_decay: float) -> None:
        self.parameters = dict(parameters)
        self.masters = {
            name: parameter if parameter.dtype == torch.float32 else nn.Parameter(parameter.detach().float())
            for name, parameter in self.parameters.items()
        }
        # Norms, biases, decays and convolutions are not pulled to zero.
        decayed = [master for master in self.masters.values() if master.dim() == 2]
        others = [master for master in self.masters.values() if master.dim() != 2]
        groups = [
            {"params": decayed, "weight_decay": weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self._adam = torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, betas=_BETAS, fused=True)

    def step(self, learning_rate: float, *, clip: float) -> float:
        """Average the gradients over processes, clip their norm, update, clear them. The norm before clipping."""
        found = [name for name, parameter in self.parameters.items() if parameter.grad is not None]
        for name in found:
            parameter, master = self.parameters[name], self.masters[name]
            if master is not parameter:
                assert parameter.grad is not None
                master.grad = parameter.grad.float()
        masters = [self.masters[name] for name in found]
        _average([master.grad for master in masters if master.grad is not None])
        norm = float(nn.utils.clip_grad_norm_(masters, clip)) if masters else 0.0
        for group in self._adam.param_groups:
            group["lr"] = learning_rate
        if math.isfinite(norm):
            self._adam.step()
        with torch.no_grad():
            for name in found:
                if self.masters[name] is not self.parameters[name]:
                    self.parameters[name].copy_(self.masters[name])
                self.parameters[name].grad = None
                self.masters[name].grad = None
        return norm

    def state(self) -> dict[str, Tensor]:
        """Masters and moments by name; those of parameters that were never updated are left out."""
        found = {f"master {name}": master.detach() for name, master in self.masters.items()}
        for name, master in self.masters.items():
            own = self._adam.state.get(master, {})
            found |= {f"{moment} {name}": own[moment] for moment in _MOMENTS if moment in own}
        return found

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave, and the parameters with it."""
        for name, master in self.masters.items():
            master.copy_(state[f"master {name}"])
            self.parameters[name].copy_(master)
            if f"step {name}" in state:
                moments = {moment: state[f"{moment} {name}"].to(master.device) for moment in _MOMENTS}
                self._adam.state[master] = moments


def _average(gradients: list[Tensor]) -> None:
    """The mean over all processes, in one reduction."""
    if not (dist.is_available() and dist.is_initialized()) or not gradients:
        return
    joined = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(joined)
    joined /= dist.get_world_size()
    for gradient, part in zip(gradients, torch.split(joined, [g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
