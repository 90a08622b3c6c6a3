"""How many processes evaluate architectures, where, and on which GPUs: options that commands share."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import click

from hwsearch.errors import InputError
from hwsearch.search.executors import Executor, ProcessExecutor, RayExecutor, visible_devices

__all__ = ["executor_of", "worker_options"]

_Decorator = Callable[[Callable[..., None]], Callable[..., None]]


def worker_options(command: Callable[..., None]) -> Callable[..., None]:
    """--workers, --worker-device and --executor, as `workers`, `worker_devices` and `executor`."""
    options: tuple[_Decorator, ...] = (
        click.option(
            "--workers",
            type=click.IntRange(min=1),
            help="Evaluate so many architectures at once where quality is measured; sums of sweeps take no time to "
            "share.",
        ),
        click.option(
            "--worker-device",
            "worker_devices",
            multiple=True,
            metavar="cuda:N",
            help="A GPU that one worker has to itself; repeat it for several, in place of --workers. With Ray write "
            "cuda: one GPU for each worker.",
        ),
        click.option(
            "--executor",
            type=click.Choice(["local", "ray"]),
            help="Where workers run: processes here (the default), or Ray, on the cluster at RAY_ADDRESS or one of its "
            "own.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def executor_of(kind: str | None, *, workers: int | None, devices: Sequence[str]) -> Executor:
    """What the options ask for. Raises InputError where they contradict one another, or for an unknown device."""
    if kind == "ray":
        if tuple(devices) not in ((), ("cuda",)):
            raise InputError(
                f"--worker-device {devices[0]}: Ray chooses which GPU a worker has; write --worker-device cuda"
            )
        return RayExecutor(workers or 1, address=os.environ.get("RAY_ADDRESS"), gpus=len(devices))
    if devices and workers:
        raise InputError(
            f"--workers {workers} and --worker-device: each device has one worker, leave --workers out"
        )
    return ProcessExecutor(workers or 1, devices=visible_devices(devices))
