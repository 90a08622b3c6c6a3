"""report.md of a PostNAS run: what each step found, in tables, with the heatmaps of importance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hwsearch.errors import OutputError
from hwsearch.pipeline.postnas import Postnas

__all__ = ["importance_table", "write_report"]


def write_report(postnas: Postnas, found: Mapping[str, Any]) -> Path:
    """Writes RUN/report.md, RUN/importance.csv and, where matplotlib is there, the heatmap; the report's path."""
    run = postnas.run
    drawn = _heatmap(importance_table(found["importance"]), run / "importance.png")
    try:
        (run / "importance.csv").write_text(_csv(found["importance"]), encoding="utf-8")
        path = run / "report.md"
        path.write_text("\n".join(_lines(postnas, found, drawn=drawn)) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write the report in {run}: {error.strerror}") from None
    return path


def importance_table(found: Mapping[str, Any]) -> dict[str, dict[str, list[float]]]:
    """Per task what full attention in one layer is worth, in nats on the right answer, (layers,) each.

    alone: all other layers linear, gain over no full attention at all. missing: all others full, loss without it.
    """
    table: dict[str, dict[str, list[float]]] = {}
    for task in found["teacher"]["tasks"]:

        def loss(score: Mapping[str, Any], task: str = task) -> float:
            return float(score["tasks"][task]["loss"])

        table[task] = {
            "alone": [loss(found["linear"]) - loss(score) for score in found["only_full"]],
            "missing": [loss(score) - loss(found["teacher"]) for score in found["only_linear"]],
        }
    return table


def _csv(found: Mapping[str, Any]) -> str:
    """A sweep as `hwsearch search --quality` reads it: one layer at a time linear, layer -1 the teacher."""
    lines = ["model,layer,task,metric,value,stderr"]
    for layer, score in enumerate([found["teacher"], *found["only_linear"]], start=-1):
        for name, task in score["tasks"].items():
            accuracy, items = task["accuracy"], task["items"]
            error = (accuracy * (1 - accuracy) / max(items - 1, 1)) ** 0.5
            lines.append(f"checkpoint,{layer},{name},acc,{accuracy:.6f},{error:.6f}")
    return "\n".join(lines) + "\n"


def _heatmap(table: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> bool:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    tasks = list(table)
    figure = Figure(figsize=(9, 1.5 + 0.9 * len(tasks)), layout="constrained")
    for axes, which, title in zip(
        figure.subplots(2, 1),
        ("alone", "missing"),
        (
            "gained by full attention in this layer alone, nats",
            "lost without full attention in this layer, nats",
        ),
        strict=True,
    ):
        image = axes.imshow(np.array([table[task][which] for task in tasks]), aspect="auto", cmap="magma")
        axes.set_yticks(range(len(tasks)), tasks)
        axes.set_xlabel("layer")
        axes.set_title(title, fontsize=9)
        figure.colorbar(image, ax=axes)
    figure.savefig(path, dpi=120)
    return True


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return [*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows), ""]


def _accuracies(score: Mapping[str, Any]) -> list[str]:
    return [f"{100 * task['accuracy']:.1f}" for task in score["tasks"].values()]


def _latency(row: Mapping[str, Any]) -> str:
    return f"{row['latency_ms']:.3f} ({row['latency_ms_low']:.3f} to {row['latency_ms_high']:.3f})"


def _lines(postnas: Postnas, found: Mapping[str, Any], *, drawn: bool) -> list[str]:
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
        *(["![importance](importance.png)", ""] if drawn else []),
        "Nats on the right answer that full attention in one layer gains where all others are linear:",
        "",
        *_table(
            ["task", *map(str, range(postnas.space.num_layers))],
            [
                [task, *(f"{value:+.2f}" for value in values["alone"])]
                for task, values in importance_table(found["importance"]).items()
            ],
        ),
        "## Placement",
        "",
        f"Beam search, width {plan.width}, {found['placement']['evaluations']} scores, by {plan.objective}:",
        "",
        *_table(["full attention", "layers", plan.objective], placement),
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
