"""Measurements of other tools: one file for each foreign format, all of them give an `Imported`."""

from __future__ import annotations

from pathlib import Path

from hwsearch.costmodel.importers.aiconfigurator import import_aiconfigurator
from hwsearch.costmodel.importers.imported import Imported
from hwsearch.costmodel.importers.vidur import import_vidur, is_vidur
from hwsearch.records import DeviceSpec

__all__ = ["Imported", "import_aiconfigurator", "import_tables", "import_vidur"]


def import_tables(path: Path, *, unit: str = "ms", device: DeviceSpec | None = None) -> Imported:
    """Read a table or a folder of tables of whichever tool wrote it; see the importers for what they raise."""
    return (import_vidur if is_vidur(path) else import_aiconfigurator)(path, unit=unit, device=device)
