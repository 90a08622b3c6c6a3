"""report.md of a PostNAS run: what each step found, in tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hwsearch.errors import OutputError
from hwsearch.pipeline.postnas import Postnas
from hwsearch.pipeline.postnas_plan import Plan

__all__ = ["write_report"]

_SOFTMAX = ("full_attention", "sliding_window_attention")


def write_report(postnas: Postnas, found: Mapping[str, Any], *, heatmap: str | None) -> Path:
    """Writes RUN/report.md; its path. heatmap: the name of the picture of importance beside it, None without one."""
    path = postnas.run / "report.md"
    try:
        path.write_text("\n".join(_lines(postnas, found, heatmap=heatmap)) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from None
    return path


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return [*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows), ""]


def _accuracies(score: Mapping[str, Any]) -> list[str]:
    return [f"{100 * task['accuracy']:.1f}" for task in score["tasks"].values()]


def _latency(row: Mapping[str, Any]) -> str:
    return f"{row['latency_ms']:.3f} ({row['latency_ms_low']:.3f} to {row['latency_ms_high']:.3f})"


def _at(genome: Sequence[int], kind: str, kinds: Sequence[str]) -> str:
    return ", ".join(str(i) for i, choice in enumerate(genome) if kinds[choice] == kind) or "no layer"


def _windows(rows: Sequence[Sequence[object]], tasks: Sequence[str], plan: Plan) -> list[str]:
    return [
        "## Sliding windows",
        "",
        f"Searched by {plan.window_objective} around the full attention found, and around where rules of thumb would "
        "have put as many layers; guarded: of all that the search ended with, what falls least behind the rules on any "
        "task. Accuracies in percent under the supernet, nothing trained alone:",
        "",
        *_table(["placement", "full attention", "windows", *tasks, plan.window_objective], rows),
    ]


def _lines(postnas: Postnas, found: Mapping[str, Any], *, heatmap: str | None) -> list[str]:
    plan, base = postnas.plan, postnas.checkpoint.base
    tasks = list(found["export"]["teacher"]["tasks"])
    where = found["windows"]["genome"]
    layers = {
        kind: [i for i, choice in enumerate(where) if postnas.space.kinds[choice] == kind]
        for kind in dict.fromkeys(postnas.space.kinds)
    }
    placement = [
        [
            size,
            [i for i, choice in enumerate(genome) if choice == postnas.space.kinds.index("full_attention")],
            f"{value:.4f}",
        ]
        for size, (genome, value) in enumerate(found["placement"]["path"])
    ]
    windows = [
        [
            name + (" (chosen)" if row["genome"] == where else ""),
            *(_at(row["genome"], kind, postnas.space.kinds) for kind in _SOFTMAX),
            *_accuracies(row["score"]),
            f"{row['value']:.4f}",
        ]
        for name, row in found["windows"]["compared"].items()
    ]
    blocks = [
        [
            row["block"] + (" (chosen)" if row["block"] == found["blocks"]["best"] else ""),
            *_accuracies(row["score"]),
            f"{row['value']:.4f}",
            f"{row['throughput_tokens_per_s']:,.0f}",
            f"{row['training_tokens_per_s']:,.0f}",
        ]
        for row in found["blocks"]["rows"]
    ]
    grid = [
        [
            row["shape"] + (" (chosen)" if row["genome"] == found["grid"]["best"] else ""),
            *("" if value is None else f"{value:.4f}" for value in row["values"].values()),
            _latency(row),
            f"{row['parameters'] / 1e6:,.2f}",
            f"{row['cache_bytes_per_sequence'] / 2**20:,.2f}",
        ]
        for row in found["grid"]["rows"]
    ]
    kept = found["importance"]
    alone = {
        task: [score["loss"] - one["tasks"][task]["loss"] for one in kept["kept"]]
        for task, score in kept["linear"]["tasks"].items()
    }
    end = found["export"]
    judged = [
        [
            name,
            *_accuracies(end[key]),
            f"{end[key]['kl']:.4f}",
            f"{end[key]['perplexity']:.2f}",
            _latency(end[price]),
        ]
        for name, key, price in (
            ("teacher", "teacher", "teacher_prediction"),
            ("model", "model", "prediction"),
        )
    ]
    kinds = "; ".join(
        f"{kind} at {', '.join(map(str, at)) or 'no layer'}"
        for kind, at in layers.items()
        if kind != postnas.space.kinds[-1]
    )
    return [
        f"# PostNAS of {base.name}",
        "",
        f"Latency and throughput are predicted for {postnas.model.device.name} ({postnas.model.runtime}) at "
        f"`{postnas.workload}`, with 90% intervals; training tokens/s are predicted and leave out the optimiser. "
        f"Budgets: {', '.join(budget.text for budget in plan.budgets) or 'none'}. Accuracies are in percent. Only "
        f"mixers are trained. Seed {plan.seed}.",
        "",
        "## Result",
        "",
        f"{found['grid']['architecture']['name']}: {kinds}; {found['blocks']['best']} elsewhere (layers from 0). "
        "On items that chose nothing:",
        "",
        *_table(["", *tasks, "KL, nats", "perplexity", "latency, ms"], judged),
        "`arch.json` is the architecture, `model/` a Hugging Face model with the weights of its short training.",
        "",
        "## Importance",
        "",
        *([f"![importance]({heatmap})", ""] if heatmap else []),
        "Nats on the right answer that full attention in one layer gains where all others are linear:",
        "",
        *_table(
            ["task", *map(str, range(postnas.space.num_layers))],
            [
                [task, *(f"{value:+.2f}" for value in values)]
                for task, values in alone.items()
            ],
        ),
        "## Placement",
        "",
        f"Beam search, width {plan.width}, {found['placement']['evaluations']} scores, by {plan.objective}:",
        "",
        *_table(["full attention", "layers", plan.objective], placement),
        *(_windows(windows, tasks, plan) if windows else []),
        "## Blocks",
        "",
        *_table(["block", *tasks, plan.metric, "tokens/s", "training tokens/s"], blocks),
        "## Shapes of equal cache",
        "",
        *_table(
            ["shape", *(f"{plan.metric} after {float(share):.0%}" for share in found["grid"]["rows"][0]["values"]),
             "latency, ms", "parameters, M", "cache, MiB"],
            grid,
        ),
    ]  # fmt: skip
