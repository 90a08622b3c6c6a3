"""hwsearch search with a supernet as --quality: what to ask it next is chosen by a predictor of its answers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from hwsearch.cli.output import console, emit_json, milliseconds, note, progress, quiet_transformers, table
from hwsearch.cli.report import model_cost_json, print_model_cost
from hwsearch.costmodel.model import CostModel
from hwsearch.errors import InfeasibleError
from hwsearch.models import require_transformers
from hwsearch.pipeline.blocks import BlockTable
from hwsearch.search.executors import Executor
from hwsearch.search.fidelity import FidelityResult, Round
from hwsearch.search.pareto import knee
from hwsearch.search.study import Study
from hwsearch.searchspace.budget import parse_budget
from hwsearch.searchspace.workload import Workload

__all__ = ["search_supernet"]

_BATCH = 8


def search_supernet(
    folder: Path,
    *,
    model: CostModel,
    blocks: BlockTable | None,
    workload: str,
    budgets: tuple[str, ...],
    metric: str,
    items: int,
    evaluations: int,
    executor: Executor,
    worker_device: str,
    output: Path,
    resume: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Search the space of the supernet in a folder and print the trade-offs.

    worker_device: where the executor's workers score.
    """
    require_transformers(purpose="a search with a supernet")
    quiet_transformers()
    from hwsearch.pipeline.supernet_search import supernet_search

    task = supernet_search(
        folder,
        model=model,
        blocks=blocks,
        workload=Workload.from_text(workload, dtype=model.dtype),
        budgets=[parse_budget(text) for text in budgets],
        metric=metric,
        items=items,
        worker_device=worker_device,
    )
    for text in task.notes:
        note(text)
    with Study.open(output, settings=task.identity, resume=resume) as study, progress() as bar:
        row = bar.add_task("searching", total=evaluations, status="")

        def advance(at: Round) -> None:
            best = "none within the budgets yet" if at.best is None else f"best {at.best:.4g}"
            bar.update(row, completed=at.full, status=f"{best}, hypervolume {at.hypervolume:.4g}")

        try:
            with executor:
                result = task.go(
                    study=study,
                    executor=executor,
                    evaluations=evaluations,
                    batch=_BATCH,
                    seed=seed,
                    on_round=advance,
                )
        except InfeasibleError:
            study.discard()
            raise
        predictor = task.predictor(study)
    best = result.genomes[0].tolist()
    cost, score = task.cost(best), task.loss.score(best)
    trust = None if predictor is None else {"rank_correlation": predictor.tau, "stretch": predictor.stretch}
    front = _front(result, kinds=task.space.kinds, metric=metric)
    if as_json:
        emit_json(
            {
                "run": str(output),
                "base": task.space.base.name,
                "device": model.device.name,
                "runtime": model.runtime,
                "workload": str(task.workload),
                "budgets": [budget.text for budget in task.problem.budgets],
                "space_size": str(task.space.size),
                "evaluations": result.full,
                "metric": metric,
                "predictor": trust,
                "best": {
                    "tasks": {
                        name: {"accuracy": t.accuracy, "loss_nats": t.loss} for name, t in score.tasks.items()
                    },
                    "kl_nats": score.kl,
                    "layer_types": list(cost.architecture.layer_types),
                    "prediction": model_cost_json(cost, model),
                },
                "knee": knee(result.objectives),
                "front": front,
                "notes": list(task.notes),
            }
        )
        return
    to = console()
    shown = table(
        f"Trade-offs within the budgets: {len(front)}, from {result.full} of {task.space.size:.3g} architectures",
        "pick",
        "mixers",
        metric,
        "latency ms",
        left=2,
    )
    for entry in front:
        shown.add_row(
            str(entry["pick"]),
            ", ".join(f"{count} {kind}" for kind, count in entry["mixers"].items()),
            f"{entry['value']:.4f}",
            milliseconds(entry["latency_ms"]),
        )
    to.print(shown)
    print_model_cost(cost, model, to=to)
    tasks = ", ".join(f"{name} {100 * t.accuracy:.1f}%" for name, t in score.tasks.items())
    to.print(f"{'under the supernet':<20}{tasks}, KL {score.kl:.4f} nats", markup=False, soft_wrap=True)
    if trust:
        to.print(
            f"{'predictor':<20}rank correlation {trust['rank_correlation']:.2f} on scores it was not fitted to",
            markup=False,
            soft_wrap=True,
        )
    to.print(f"{'run':<20}{output}: {result.full} scores", markup=False, soft_wrap=True)


def _front(result: FidelityResult, *, kinds: tuple[str, ...], metric: str) -> list[dict[str, Any]]:
    sign = -1.0 if metric.endswith("accuracy") else 1.0
    return [
        {
            "pick": i,
            "value": sign * float(values[0]),
            "latency_ms": float(values[1]),
            "mixers": dict(Counter(kinds[choice] for choice in genome)),
        }
        for i, (genome, values) in enumerate(zip(result.genomes, result.objectives, strict=True))
    ]
