"""hwsearch predict: what an architecture costs on a device."""

from __future__ import annotations

from pathlib import Path

import click

from hwsearch.cli.compare import comparison_json, print_comparison
from hwsearch.cli.options import device_option, workload_option
from hwsearch.cli.output import console, emit_json, json_option
from hwsearch.cli.report import model_cost_json, print_model_cost
from hwsearch.cli.sweep import plot_sweep, print_sweep, read_sweep, sweep_json
from hwsearch.costmodel.compose import check_dtype, model_cost
from hwsearch.costmodel.cost import ModelCost
from hwsearch.costmodel.host import ENGINE, HOSTS, Host, host_named
from hwsearch.costmodel.memory import memory_of
from hwsearch.costmodel.model import CostModel
from hwsearch.costmodel.weights import WEIGHT_BYTES
from hwsearch.errors import InfeasibleError, InputError
from hwsearch.pipeline.blocks import load_blocks, with_blocks
from hwsearch.pipeline.models import cost_model_named
from hwsearch.searchspace.architecture import Architecture
from hwsearch.searchspace.references import architecture_named
from hwsearch.searchspace.workload import Workload, read_workload

__all__ = ["command"]


@click.command("predict")
@click.option(
    "--arch",
    required=True,
    help="A name from `hwsearch bases`, an architecture JSON, or a Hugging Face config.json.",
)
@device_option
@workload_option
@click.option(
    "--host",
    default=ENGINE.name,
    show_default=True,
    metavar="|".join(HOSTS),
    help="The software around the kernels: a serving engine with or without CUDA graphs, or Hugging Face's eager.",
)
@click.option(
    "--tp",
    type=click.IntRange(min=1, max=1024),
    default=1,
    show_default=True,
    help="Devices that share the model (tensor parallelism); analytic, not measured.",
)
@click.option(
    "--weights",
    type=click.Choice(list(WEIGHT_BYTES)),
    help="Weight-only quantisation of the layers' projections; analytic, not measured.",
)
@click.option(
    "--compare", multiple=True, metavar="ARCH", help="Another architecture, side by side; repeatable."
)
@click.option(
    "--sweep", metavar="NAME=LOW..HIGH", help="Double context or batch: context=4k..256k, batch=1..64."
)
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    help="With --sweep: a figure; the file's ending tells its format.",
)
@json_option
def command(
    *,
    arch: str,
    device: str,
    workload: str,
    host: str,
    tp: int,
    weights: str | None,
    compare: tuple[str, ...],
    sweep: str | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Latency with its 90% interval, throughput, memory and the largest batch, layer by layer.

    batch=max in the workload stands for the largest batch that fits. Where --device is a cost model that holds layers
    measured whole at this workload, the latency is their sum.
    """
    if plot is not None and sweep is None:
        raise InputError("--plot draws a sweep: add for example --sweep context=4k..256k")
    architectures = [architecture_named(name) for name in (arch, *compare)]
    profile = host_named(host)
    model = cost_model_named(device)
    # Blocks hold the framework's own time; another host than the default is a question about operators.
    measured = load_blocks(Path(device)) if host == ENGINE.name else None
    asked, largest = read_workload(workload, dtype=model.dtype)

    def cost_of(architecture: Architecture, at: Workload) -> ModelCost:
        if largest:
            at = _filled(architecture, at, model=model, host=profile, tp=tp, weights=weights)
        cost = model_cost(architecture, at, model=model, host=profile, tp=tp, weights=weights)
        return with_blocks(cost, measured)

    if sweep is not None:
        swept, values = read_sweep(sweep)
        if swept == "batch" and largest:
            raise InputError(
                "--sweep batch and batch=max contradict each other: write batch=1 in the workload"
            )
        series = [
            [cost_of(architecture, _at(asked, swept, value)) for value in values]
            for architecture in architectures
        ]
        if plot is not None:
            plot_sweep(series, swept, values, model=model, path=plot)
        if as_json:
            emit_json(sweep_json(series, swept, values, model=model))
        else:
            print_sweep(series, swept, values, model=model, to=console())
        return
    costs = [cost_of(architecture, asked) for architecture in architectures]
    if compare:
        if as_json:
            emit_json(comparison_json(costs, model))
        else:
            print_comparison(costs, model, to=console())
    elif as_json:
        emit_json(model_cost_json(costs[0], model))
    else:
        print_model_cost(costs[0], model, to=console())


def _at(workload: Workload, swept: str, value: int) -> Workload:
    """A point of a sweep, read as text so that one which cannot be is refused as one that was typed."""
    return Workload.from_text(str(workload.model_copy(update={swept: value})))


def _filled(
    architecture: Architecture,
    workload: Workload,
    *,
    model: CostModel,
    host: Host,
    tp: int,
    weights: str | None,
) -> Workload:
    """The workload at the largest batch that fits. InfeasibleError where not even one sequence does."""
    check_dtype(model, workload)
    memory = memory_of(
        architecture,
        workload,
        device_bytes=model.device.memory_bytes,
        host=host,
        tp=tp,
        weights=weights,
    )
    if not memory.max_batch:
        raise InfeasibleError(
            f"{architecture.name} does not fit on {_devices(model, tp)} with one sequence of {workload.context} "
            f"tokens: it needs {memory.total_bytes / 2**30:.1f} GiB of {memory.usable_bytes / 2**30:.1f} GiB "
            f"({host.usable_share:.0%} of {model.device.memory_bytes / 2**30:.0f} GiB) on each; shorten the context, "
            "cut a prefill into chunks (chunk=2k), share it among devices (--tp), quantise its weights (--weights), or "
            "choose a larger device"
        )
    return workload.replace(batch=memory.max_batch)


def _devices(model: CostModel, tp: int) -> str:
    return model.device.name if tp == 1 else f"{tp} {model.device.name}"
