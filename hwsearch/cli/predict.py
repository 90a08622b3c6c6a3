"""hwsearch predict: what an architecture costs on a device."""

from __future__ import annotations

import click

from hwsearch.cli.options import device_option, workload_option
from hwsearch.cli.output import console, emit_json, json_option
from hwsearch.cli.report import model_cost_json, print_model_cost
from hwsearch.costmodel.compose import model_cost
from hwsearch.pipeline import cost_model_named
from hwsearch.searchspace.references import architecture_named
from hwsearch.searchspace.workload import Workload

__all__ = ["command"]


@click.command("predict")
@click.option(
    "--arch",
    required=True,
    help="A name from `hwsearch bases`, an architecture JSON, or a Hugging Face config.json.",
)
@device_option
@workload_option
@json_option
def command(*, arch: str, device: str, workload: str, as_json: bool) -> None:
    """Latency with its 90% interval, throughput, memory and the largest batch, layer by layer."""
    architecture = architecture_named(arch)
    model = cost_model_named(device)
    cost = model_cost(architecture, Workload.from_text(workload, dtype=model.dtype), model=model)
    if as_json:
        emit_json(model_cost_json(cost, model))
    else:
        print_model_cost(cost, model, to=console())
