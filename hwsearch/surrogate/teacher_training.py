"""Training of the tiny teacher: weighted next-token loss, Muon, a warm-up-stable-decay schedule, resumable.

Matrices inside the layers are trained by Muon (momentum orthogonalised by Newton-Schulz steps, `torch.optim.Muon`,
kellerjordan.github.io/posts/muon), the embedding and the norms by AdamW. The learning rate rises linearly, stays, and
falls linearly to zero (WSD, arXiv 2404.06395). A state holds the weights, both optimisers and the step in one
safetensors file that is replaced atomically; the batch of a step depends on the seed and the step alone. So a run that
is killed goes on from its last state and ends with the weights it would have had, bit for bit on the same machine and
number of threads.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from hwsearch.errors import DataError, InputError
from hwsearch.surrogate.teacher_data import TeacherData
from hwsearch.surrogate.teacher_recipe import TeacherRecipe

__all__ = ["Progress", "train"]

_SAVE_EVERY = 100  # steps
_ADAM_BETAS = (0.9, 0.95)
_CLIP = 1.0


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where training stands: loss of the last step in nats, speed of this run, seconds left at that speed."""

    step: int
    steps: int
    loss: float
    tokens_per_s: float
    seconds_left: float


def train(
    model: Any, data: TeacherData, recipe: TeacherRecipe, *, state: Path, report: Callable[[Progress], None]
) -> float:
    """Train a Hugging Face causal language model in place, from the file `state` on where there is one.

    `report` is called after every step. Returns the seconds that all steps took, those before an interruption too.
    Interrupting loses the steps since the state was last written. Raises InputError where it is of another recipe.
    """
    optimizers = _optimizers(model, recipe)
    first, before = _load(model, optimizers, state, recipe) if state.exists() else (0, 0.0)
    started = time.perf_counter()
    model.train()
    for step in range(first, recipe.steps):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["stable"] * recipe.rate(step)
        tokens_BT, weights_BT = (tensor.to(model.device) for tensor in data(step))
        loss = _loss(model, tokens_BT, weights_BT)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        done = step + 1
        seconds = time.perf_counter() - started
        if done % _SAVE_EVERY == 0 or done == recipe.steps:
            _save(model, optimizers, state, recipe, step=done, seconds=before + seconds)
        report(
            Progress(
                step=done,
                steps=recipe.steps,
                loss=float(loss.detach()),
                tokens_per_s=tokens_BT.numel() * (done - first) / seconds,
                seconds_left=seconds / (done - first) * (recipe.steps - done),
            )
        )
    return before + time.perf_counter() - started


def _loss(model: Any, tokens_BT: Tensor, weights_BT: Tensor) -> Tensor:
    logits_BTV = model(input_ids=tokens_BT, use_cache=False).logits[:, :-1]
    losses_BT = functional.cross_entropy(
        logits_BTV.flatten(0, 1), tokens_BT[:, 1:].flatten(), reduction="none"
    ).view(logits_BTV.shape[:2])
    return (losses_BT * weights_BT[:, 1:]).sum() / weights_BT[:, 1:].sum()


def _optimizers(model: Any, recipe: TeacherRecipe) -> list[torch.optim.Optimizer]:
    parameters = dict(model.named_parameters())
    matrices = [value for name, value in parameters.items() if value.ndim == 2 and ".layers." in name]
    others = [value for name, value in parameters.items() if value.ndim != 2 or ".layers." not in name]
    muon = torch.optim.Muon(
        [{"params": matrices, "stable": recipe.matrix_rate}], weight_decay=0.01, momentum=0.95
    )
    adam = torch.optim.AdamW(
        [{"params": others, "stable": recipe.vector_rate}], betas=_ADAM_BETAS, weight_decay=0.0
    )
    return [muon, adam]


def _save(
    model: Any,
    optimizers: list[torch.optim.Optimizer],
    path: Path,
    recipe: TeacherRecipe,
    *,
    step: int,
    seconds: float,
) -> None:
    tensors = {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    for i, optimizer in enumerate(optimizers):
        for index, values in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{index}.{key}": torch.as_tensor(v) for key, v in values.items()}
    temporary = path.with_suffix(".new")
    metadata = {"step": str(step), "seconds": str(seconds), "recipe": json.dumps(asdict(recipe))}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata=metadata)
    temporary.replace(path)


def _load(
    model: Any, optimizers: list[torch.optim.Optimizer], path: Path, recipe: TeacherRecipe
) -> tuple[int, float]:
    """Restore what `_save` wrote; the steps that are done and the seconds they took."""
    try:
        opened = safe_open(str(path), framework="pt")
    except SafetensorError as error:
        raise DataError(f"cannot read {path}: {error}; remove {path.parent} to begin anew") from None
    with opened as file:
        metadata = file.metadata()
        if json.loads(metadata["recipe"]) != asdict(recipe):
            raise InputError(
                f"{path.parent} was begun with other settings ({metadata['recipe']}): give the same, or another folder"
            )
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(file.get_tensor(f"model.{name}"))
        for i, optimizer in enumerate(optimizers):
            saved: dict[int, dict[str, Tensor]] = {}
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                part, *rest = name.split(".")
                if part == "optimizer" and rest[0] == str(i):
                    saved.setdefault(int(rest[1]), {})[rest[2]] = file.get_tensor(name)
            optimizer.load_state_dict(
                {"state": saved, "param_groups": optimizer.state_dict()["param_groups"]}
            )
    return int(metadata["step"]), float(metadata["seconds"])
