"""Scores of an ordinary causal language model: tasks, and perplexity on rows of text."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional

from hwsearch.errors import DataError
from hwsearch.surrogate.tasks import EncodedTasks, TaskScore

__all__ = ["ModelScores", "load_model", "score_tasks", "text_loss", "token_scores"]

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class ModelScores:
    """tasks: task -> score. chance: task -> accuracy of knowing nothing. text_loss: nats per token of held-out text,
    None where there is no such text."""

    tasks: Mapping[str, TaskScore]
    chance: Mapping[str, float]
    text_loss: float | None

    @property
    def perplexity(self) -> float | None:
        """Of the held-out text, per token."""
        return None if self.text_loss is None else math.exp(self.text_loss)


def load_model(folder: Path) -> tuple[Any, Any]:
    """The causal language model in a Hugging Face folder, in float32, and its tokenizer. No code of the folder runs.

    Raises DataError where it cannot be read.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    importlib.import_module("hwsearch.models.hybrid")  # makes the classes of `hwsearch build` known
    if not (folder / "config.json").is_file():
        raise DataError(f"{folder} has no config.json: name the folder of a Hugging Face model")
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
        return model, AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(f"cannot load {folder}: {str(error).splitlines()[0]}") from None


def token_scores(logits_BTV: Tensor, tokens_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability (B, T) float32 of each token given those before it, and whether it was the most probable (B, T).

    The first token of a row has nothing before it: zero, and true.
    """
    logits_BTV = logits_BTV[:, :-1].float()
    following_BT = tokens_BT[:, 1:]
    hits_BT = logits_BTV.argmax(dim=-1) == following_BT
    log_probs_BT = -functional.cross_entropy(logits_BTV.transpose(1, 2), following_BT, reduction="none")
    return functional.pad(log_probs_BT, (1, 0)), functional.pad(hits_BT, (1, 0), value=True)


@torch.no_grad()
def score_tasks(model: Any, encoded: EncodedTasks, *, batch: int = 32) -> dict[str, TaskScore]:
    """Task -> score of a Hugging Face causal language model; `batch` rows at a time, on the model's device."""
    log_probs_NT: FloatArray = np.zeros(encoded.tokens_NT.shape)
    hits_NT: BoolArray = np.zeros(encoded.tokens_NT.shape, dtype=np.bool_)
    with _evaluating(model):
        for index, rows in encoded.batches(batch):
            tokens_BT = torch.from_numpy(rows).to(model.device)
            log_probs_BT, hits_BT = token_scores(
                model(input_ids=tokens_BT, use_cache=False).logits, tokens_BT
            )
            log_probs_NT[index, : rows.shape[1]] = log_probs_BT.cpu().numpy()
            hits_NT[index, : rows.shape[1]] = hits_BT.cpu().numpy()
    return encoded.score(log_probs_NT, hits_NT)


@torch.no_grad()
def text_loss(model: Any, rows_NT: NDArray[np.int32], *, batch: int = 32) -> float:
    """Mean nats per token of rows of text (n, T), the first token of each row not counted."""
    total = 0.0
    with _evaluating(model):
        for start in range(0, len(rows_NT), batch):
            tokens_BT = torch.from_numpy(rows_NT[start : start + batch].astype(np.int64)).to(model.device)
            log_probs_BT, _ = token_scores(model(input_ids=tokens_BT, use_cache=False).logits, tokens_BT)
            total -= float(log_probs_BT.sum(dtype=torch.float64))
    return total / float(len(rows_NT) * (rows_NT.shape[1] - 1))


class _evaluating:
    """Evaluation mode while it lasts, then the mode that was."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __enter__(self) -> None:
        self.was_training = self.model.training
        self.model.eval()

    def __exit__(self, *_: object) -> None:
        self.model.train(self.was_training)
