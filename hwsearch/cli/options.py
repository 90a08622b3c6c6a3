"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable

import click

__all__ = ["device_option", "seed_option", "unit_option", "workload_option"]

_Decorator = Callable[[Callable[..., None]], Callable[..., None]]

device_option: _Decorator = click.option(
    "--device",
    "--cost-model",
    "device",
    required=True,
    help="A cost model: a name from `hwsearch devices`, the folder that `hwsearch fit` wrote, or a device file.",
)
workload_option: _Decorator = click.option(
    "--workload",
    required=True,
    help="prefill:batch=N,context=N[,chunk=N] or decode:batch=N,context=N; 64k stands for 65536.",
)
seed_option: _Decorator = click.option(
    "--seed", default=0, show_default=True, help="Seed of everything random."
)
unit_option: _Decorator = click.option(
    "--unit",
    default="ms",
    show_default=True,
    type=click.Choice(["ms", "us", "s", "ns"]),
    help="Of the latencies in another tool's tables.",
)
