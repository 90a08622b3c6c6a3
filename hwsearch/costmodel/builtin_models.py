"""Cost models that ship with the package, and how they are built.

Rebuild one from the tables it names: build_builtin("h100-sxm", data_dir=Path("tables"), out=Path("builtin")).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hwsearch.costmodel.devices import device_named, device_reported_as
from hwsearch.costmodel.importers import Imported, import_aiconfigurator
from hwsearch.costmodel.model import CostModel
from hwsearch.errors import DataError, unknown_name

__all__ = ["build_builtin", "builtin_models", "fit_imported", "load_builtin"]

_HOME = Path(__file__).parent / "builtin"
_SEED = 0


def builtin_models() -> tuple[str, ...]:
    """Names of the cost models that ship with the package."""
    return tuple(sorted(p.parent.name for p in _HOME.glob("*/model.json")))


def load_builtin(name: str) -> CostModel:
    """The shipped cost model `name`; InputError with the nearest name for one that does not exist."""
    known = builtin_models()
    if name not in known:
        raise unknown_name("built-in cost model", name, known)
    return CostModel.load(_HOME / name)


def fit_imported(imported: Imported, *, seed: int) -> CostModel:
    """A cost model of imported tables. DataError where their device is not a built-in one."""
    device = device_reported_as(imported.device_name)
    if device is None:
        raise DataError(
            f"no ceilings are known for the device {imported.device_name!r}: fit with CostModel.fit and a DeviceSpec"
        )
    return CostModel.fit(
        imported.tables,
        device=device,
        runtime=imported.runtime,
        dtype=imported.dtype,
        source=imported.source,
        seed=seed,
    )


def build_builtin(name: str, *, data_dir: Path, out: Path) -> Mapping[str, int]:
    """Fit the built-in model `name` from the AIConfigurator tables in data_dir and save it as out / name.

    Returns the rows left out, by reason. Raises DataError where the tables are of another device.
    """
    imported = import_aiconfigurator(data_dir)
    expected = device_named(name).device_name
    if imported.device_name != expected:
        raise DataError(f"{data_dir} holds tables of {imported.device_name}; {name} is {expected}")
    fit_imported(imported, seed=_SEED).save(out / name)
    return imported.left_out
