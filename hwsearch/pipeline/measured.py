"""Quality that is measured: a function that evaluates one architecture, wherever an executor runs it.

`hwsearch search --quality MODULE:FUNCTION` takes yours. What it returns may depend on the architecture, the fidelity
and the seed, and on nothing else; then a search gives the same result to the last bit for any number of workers.
"""

from __future__ import annotations

import importlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hwsearch.errors import InputError
from hwsearch.search.evaluation import Measured
from hwsearch.searchspace.architecture import Architecture, LayerSpec
from hwsearch.searchspace.bases import Base
from hwsearch.searchspace.space import SearchSpace

__all__ = ["ArchitectureLoss", "MeasuredQuality", "measured_quality"]


class ArchitectureLoss(Protocol):
    """The quality loss of one architecture in points, less is better. Importable, so that workers can be told of it."""

    def __call__(self, architecture: Architecture, *, fidelity: float, seed: int) -> float: ...


@dataclass(frozen=True)
class _GenomeLoss:
    """The same for a genome; what a worker is sent. Only the vocabulary of the space goes along, not its graph."""

    base: Base
    choices: tuple[LayerSpec, ...]
    loss: ArchitectureLoss

    def __call__(self, genome: tuple[int, ...], *, fidelity: float, seed: int) -> float:
        layers = tuple(self.choices[choice] for choice in genome)
        name = f"{self.base.name}-candidate"
        return self.loss(Architecture(name=name, base=self.base, layers=layers), fidelity=fidelity, seed=seed)


@dataclass(frozen=True)
class MeasuredQuality:
    """A quality loss that takes an evaluation for every architecture. source: what a user calls it."""

    source: str
    loss: ArchitectureLoss

    def cost(self, space: SearchSpace) -> Measured:
        """The loss as a cost of the genomes of a space."""
        return Measured(_GenomeLoss(space.base, space.choices, self.loss))


def measured_quality(source: str) -> MeasuredQuality | None:
    """The function that MODULE:FUNCTION names, looked for in the working directory too; None for any other text.

    Raises InputError where it cannot be imported or called.
    """
    match = re.fullmatch(r"([\w.]+):(\w+)", source)
    if not match:
        return None
    module, name = match.groups()
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        loss = getattr(importlib.import_module(module), name, None)
    except (ImportError, SyntaxError) as error:
        raise InputError(f"--quality {source}: cannot import {module}: {error}") from None
    if not callable(loss):
        raise InputError(
            f"--quality {source}: {module} has no function {name}; it is given an architecture, fidelity= and seed="
        )
    return MeasuredQuality(source, loss)
