"""Scores of supernet paths, for people and for programs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.table import Table

from hwsearch.cli.output import table

if TYPE_CHECKING:
    from hwsearch.surrogate.scoring import Score

__all__ = ["score_json", "score_table"]


def score_json(score: Score) -> dict[str, Any]:
    """The public keys of a score; docs/json.md describes them."""
    return {
        "tasks": {
            name: {
                "accuracy": task.accuracy,
                "accuracy_stderr": task.standard_error,
                "loss_nats": task.loss,
                "items": task.items,
            }
            for name, task in score.tasks.items()
        },
        "kl_nats": score.kl,
        "perplexity": score.perplexity,
        "feature_error": score.feature_mse,
        "seconds": score.seconds,
    }


def score_table(title: str, scores: Mapping[str, Score]) -> Table:
    """One row for each candidate: accuracies in percent with their standard errors, KL, perplexity, feature error."""
    tasks = list(next(iter(scores.values())).tasks)
    shown = table(title, "path", *(f"{task} %" for task in tasks), "KL nats", "perplexity", "feature error")
    for name, score in scores.items():
        accuracies = (
            f"{100 * score.tasks[task].accuracy:.1f} ±{100 * score.tasks[task].standard_error:.1f}"
            for task in tasks
        )
        shown.add_row(
            name, *accuracies, f"{score.kl:.4f}", f"{score.perplexity:.2f}", f"{score.feature_mse:.4f}"
        )
    return shown
