"""How a cost model is kept: a folder with model.json and arrays.npz.

model.json holds the identity, the constants and the SHA-256 of arrays.npz, so that a truncated or mixed-up pair
is noticed. A model is written to a temporary sibling and renamed into place.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwsearch.costmodel.accuracy import OperatorErrors
from hwsearch.costmodel.devices import completed
from hwsearch.costmodel.family import Family, family_from_state
from hwsearch.costmodel.transferred import TransferredFamily, transferred_from_state
from hwsearch.errors import DataError, OutputError
from hwsearch.operators import KINDS
from hwsearch.records import DeviceSpec

__all__ = ["FORMAT_VERSION", "ModelState", "check_place", "load_state", "save_state"]

FORMAT = "hwsearch cost model"
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ModelState:
    """What model.json and arrays.npz hold."""

    device: DeviceSpec
    runtime: str
    dtype: str
    source: str
    seed: int
    families: Mapping[str, Family | TransferredFamily]
    held_out: Mapping[str, OperatorErrors]


def check_place(path: Path) -> None:
    """OutputError where saving a model as the folder `path` would overwrite something else."""
    if path.exists() and not (path / "model.json").is_file():
        raise OutputError(f"{path} exists and is not a cost model: choose another name, or remove it")


def save_state(path: Path, state: ModelState) -> None:
    """Write the folder `path`; OutputError where that is impossible or would overwrite something else."""
    check_place(path)
    numbers: dict[str, object] = {}
    arrays: dict[str, NDArray[np.generic]] = {}
    for kind, family in state.families.items():
        numbers[kind], own = family.state()
        arrays |= {f"{kind}/{name}": array for name, array in own.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    document = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "device": asdict(state.device),
        "runtime": state.runtime,
        "dtype": state.dtype,
        "source": state.source,
        "seed": state.seed,
        "arrays_sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
        "held_out": {kind: asdict(errors) for kind, errors in state.held_out.items()},
        "families": numbers,
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            fresh = staging / "new"
            fresh.mkdir()
            (fresh / "arrays.npz").write_bytes(buffer.getvalue())
            (fresh / "model.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
            _move_into_place(fresh, path, aside=staging / "old")
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise OutputError(
            f"cannot write the cost model {path} ({error.strerror or error}): choose a folder you can write to"
        ) from error


def _move_into_place(fresh: Path, path: Path, *, aside: Path) -> None:
    """Rename `fresh` to `path`; a folder cannot be renamed onto a full one, so an old model steps aside whole."""
    if not path.exists():
        fresh.rename(path)
        return
    path.rename(aside)
    try:
        fresh.rename(path)
    except OSError:
        aside.rename(path)
        raise


def _read_pair(path: Path) -> tuple[dict[str, Any], bytes]:
    """model.json, checked to be of this format and version, and the bytes of arrays.npz, checked to belong to it."""
    fix = "give the folder that `hwsearch fit` wrote, or fit the model again"
    try:
        document = json.loads((path / "model.json").read_text(encoding="utf-8"))
        packed = (path / "arrays.npz").read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{path} is not a cost model: {error.filename} is missing; {fix}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}/model.json is damaged ({error}); {fix}") from error
    except OSError as error:
        raise DataError(f"cannot read the cost model {path} ({error.strerror}); {fix}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise DataError(f"{path}/model.json does not describe a cost model of hwsearch; {fix}")
    version = document.get("format_version")
    if version != FORMAT_VERSION:
        raise DataError(
            f"{path} has format version {version}, this hwsearch reads {FORMAT_VERSION}: update hwsearch, or "
            "fit the model again"
        )
    if hashlib.sha256(packed).hexdigest() != document.get("arrays_sha256"):
        raise DataError(f"{path}/arrays.npz is truncated or belongs to another model; {fix}")
    return document, packed


def load_state(path: Path) -> ModelState:
    """Read the folder `path`; DataError where it is not a whole model of a version this package knows."""
    document, packed = _read_pair(path)
    try:
        device = completed(DeviceSpec(**document["device"]))
        with np.load(io.BytesIO(packed), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        families: dict[str, Family | TransferredFamily] = {}
        for kind, own in document["families"].items():
            if kind not in KINDS:
                raise DataError(f"it holds the unknown operator {kind!r}: update hwsearch")
            prefix = f"{kind}/"
            part = {k.removeprefix(prefix): a for k, a in arrays.items() if k.startswith(prefix)}
            if "transferred_from" in own:
                families[kind] = transferred_from_state(kind, own, part)
            else:
                families[kind] = family_from_state(
                    kind,
                    constants=own["constants"],
                    share=own["share"],
                    sensitive=own.get("sensitive", False),
                    spread=own["spread"],
                    arrays=part,
                )
        return ModelState(
            device=device,
            runtime=document["runtime"],
            dtype=document["dtype"],
            source=document["source"],
            seed=document["seed"],
            families=families,
            held_out={
                kind: OperatorErrors(**errors) for kind, errors in document.get("held_out", {}).items()
            },
        )
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except (KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is not a whole cost model ({error!r}): fit it again") from error
