"""How to measure: options that `hwsearch profile` and `hwsearch bench` share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from hwsearch.records import Execution

__all__ = ["Measuring", "backend_option", "execution_option", "measuring_options", "visits_option"]

_Decorator = Callable[[Callable[..., None]], Callable[..., None]]

backend_option: _Decorator = click.option(
    "--backend",
    default="torch",
    show_default=True,
    type=click.Choice(["auto", "torch", "triton", "fla"]),
    help="Kernels to measure, where the operator has them; others run on torch.",
)
execution_option: _Decorator = click.option(
    "--execution",
    default="eager",
    show_default=True,
    type=click.Choice(["eager", "cuda-graph"]),
    help="Launched by the host one by one, or captured and replayed.",
)
visits_option: _Decorator = click.option(
    "--visits",
    default=3,
    show_default=True,
    type=click.IntRange(min=1),
    help="How often to come back to each point.",
)


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """timeout_s: after which a visit's process is killed; None: no process of its own."""

    timeout_s: float | None
    backend: str
    execution: Execution
    visits: int
    energy: bool


def measuring_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options, passed on as one argument `measuring`."""

    @click.option(
        "--timeout",
        default=120.0,
        show_default=True,
        type=click.FloatRange(min=0),
        help="Seconds after which a measurement that does not end is killed and noted. 0: no limit, no own process.",
    )
    @backend_option
    @execution_option
    @visits_option
    @click.option("--energy", is_flag=True, help="Also joules per call, where the device counts them.")
    @functools.wraps(command)
    def wrapped(
        *, timeout: float, backend: str, execution: Execution, visits: int, energy: bool, **others: Any
    ) -> None:
        measuring = Measuring(
            timeout_s=timeout or None, backend=backend, execution=execution, visits=visits, energy=energy
        )
        command(measuring=measuring, **others)

    return wrapped
