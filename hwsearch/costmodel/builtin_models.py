"""Cost models that ship with the package.

Each is what `hwsearch fit TABLES -o hwsearch/costmodel/builtin/NAME` writes for the tables that its source names.
"""

from __future__ import annotations

from pathlib import Path

from hwsearch.costmodel.model import CostModel
from hwsearch.errors import unknown_name

__all__ = ["builtin_models", "load_builtin"]

_HOME = Path(__file__).parent / "builtin"


def builtin_models() -> tuple[str, ...]:
    """Names of the cost models that ship with the package."""
    return tuple(sorted(p.parent.name for p in _HOME.glob("*/model.json")))


def load_builtin(name: str) -> CostModel:
    """The shipped cost model `name`; InputError with the nearest name for one that does not exist."""
    known = builtin_models()
    if name not in known:
        raise unknown_name("built-in cost model", name, known)
    return CostModel.load(_HOME / name)
