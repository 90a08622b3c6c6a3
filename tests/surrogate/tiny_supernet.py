"""A tiny random teacher with tokenizer, text, tasks and a space, for the tests of the supernet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hwsearch.models.checkpoint import Checkpoint
from hwsearch.searchspace.space import SearchSpace
from hwsearch.searchspace.spacefile import SpaceSpec
from hwsearch.surrogate.supernet import Supernet
from hwsearch.surrogate.training import Recipe, Stage
from tests.models.tiny import VOCABULARY, save_checkpoint, tokenizer, tokens

MIXERS = (
    {"kind": "full_attention"},
    {"kind": "sliding_window_attention", "window": 5},
    {"kind": "gated_delta_net", "num_k_heads": 2, "num_v_heads": 4, "head_k_dim": 8, "head_v_dim": 8},
    {"kind": "none"},
)
FULL, WINDOW, DELTA, NONE = range(len(MIXERS))
RECIPE = Recipe(a=Stage(steps=3, learning_rate=5e-3), b=Stage(steps=4, learning_rate=2e-3), warmup=0.3)


def teacher(folder: Path, family: str = "qwen3", **changes: Any) -> Checkpoint:
    """A checkpoint folder with a tokenizer."""
    save_checkpoint(folder, family, **changes)
    tokenizer().save_pretrained(folder)
    return Checkpoint(folder)


def space(checkpoint: Checkpoint, **rules: Any) -> SearchSpace:
    return SpaceSpec.model_validate({"mixers": MIXERS, **rules}).build(checkpoint.base)


def supernet(folder: Path, family: str = "qwen3", **options: Any) -> Supernet:
    checkpoint = teacher(folder, family)
    return Supernet.of(checkpoint, space(checkpoint), **options)


def batch(number: int) -> torch.Tensor:
    return tokens(4, 19, seed=number)


def write_text(path: Path) -> Path:
    """Words of the tokenizer in which every second one follows from the one before it."""
    rng = np.random.default_rng(0)
    lines = []
    for _ in range(40):
        first = rng.integers(3, VOCABULARY, 30)
        words = np.stack((first, 3 + (first * 7) % (VOCABULARY - 3)), axis=1).flatten()
        lines.append(json.dumps({"text": " ".join(f"t{word}" for word in words)}) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
    return path


def write_task_items(path: Path) -> Path:
    """A completion task, `pairs`, and a multiple choice one, `choice`."""
    rng = np.random.default_rng(1)
    lines: list[dict[str, object]] = []
    for i in range(6):
        key, value, other = (f"t{word}" for word in rng.choice(np.arange(3, VOCABULARY), 3, replace=False))
        lines.append({"task": "pairs", "prompt": f"{key} {value} {other} {key}", "completion": f" {value}"})
        lines.append(
            {"task": "choice", "question": f"{key} {other}", "choices": [value, key, other], "answer": i % 3}
        )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path
