"""Several processes that train together when torchrun started them, one process otherwise."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from hwsearch.errors import InputError

__all__ = ["anywhere", "device_named", "is_first", "joined", "wait"]


@contextmanager
def joined(device: str) -> Iterator[torch.device]:
    """The device of this process, as one of a group where torchrun says so: on GPUs the one of its local rank.

    Raises InputError for a device that is not there.
    """
    chosen = device_named(device)
    if "WORLD_SIZE" not in os.environ:
        yield chosen
        return
    if chosen.type == "cuda":
        chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield chosen
    finally:
        dist.destroy_process_group()


def anywhere(flag: bool, *, device: torch.device) -> bool:
    """Whether a flag is set in any of the processes; all must ask."""
    if not (dist.is_available() and dist.is_initialized()):
        return flag
    found = torch.tensor(float(flag), device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return bool(found)


def is_first() -> bool:
    """Whether this process is the one that writes and reports."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def wait() -> None:
    """Until every process is here."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()


def device_named(name: str) -> torch.device:
    """A device of PyTorch's by name. Raises InputError for one that is not there."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"unknown device {name!r}: write cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {name}: PyTorch sees no GPU here; use --device cpu")
    return device
