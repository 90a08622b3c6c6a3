"""Saving and loading: what was saved comes back, and whatever is damaged is refused with the fix."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hwsearch.costmodel.family import Family
from hwsearch.costmodel.model import CostModel
from hwsearch.costmodel.tables import Table
from hwsearch.errors import DataError, OutputError


@pytest.fixture
def saved(fitted: CostModel, tmp_path: Path) -> Path:
    path = tmp_path / "model"
    fitted.save(path)
    return path


def test_round_trip(fitted: CostModel, saved: Path, tables: dict[str, Table]) -> None:
    loaded = CostModel.load(saved)
    assert (loaded.device, loaded.runtime, loaded.dtype) == (fitted.device, fitted.runtime, fitted.dtype)
    for kind, table in tables.items():
        before = fitted.predict_table(kind, table.dims)
        after = loaded.predict_table(kind, table.dims)
        # Residuals at neighbours are kept in half precision.
        np.testing.assert_allclose(after.median_ms, before.median_ms, rtol=1e-3)
        family = loaded.families[kind]
        assert family.seen(table.dims).all()
        # Few products are learned with the form's sensitivities beside the features.
        assert isinstance(family, Family)
        assert family.sensitive == (kind == "gemm")
    assert sorted(p.name for p in saved.iterdir()) == ["arrays.npz", "model.json"]


def test_saving_again_replaces_and_leaves_nothing_behind(fitted: CostModel, saved: Path) -> None:
    fitted.save(saved)
    CostModel.load(saved)
    assert [p.name for p in saved.parent.iterdir()] == ["model"]


def test_failed_write_keeps_the_old_model(
    fitted: CostModel, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OutputError, match="No space left"):
        fitted.save(saved)
    monkeypatch.undo()
    CostModel.load(saved)
    assert [p.name for p in saved.parent.iterdir()] == ["model"]


def test_does_not_overwrite_what_is_not_a_model(fitted: CostModel, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("keep me")
    for place in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(OutputError, match="not a cost model"):
            fitted.save(place)
    with pytest.raises(OutputError, match="cannot write"):
        fitted.save(tmp_path / "notes.txt" / "model")
    assert (tmp_path / "notes.txt").read_text() == "keep me"


def test_missing_folder_or_part(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a cost model"):
        CostModel.load(tmp_path / "absent")
    (saved / "arrays.npz").unlink()
    with pytest.raises(DataError, match=r"arrays\.npz is missing"):
        CostModel.load(saved)


def test_truncated_arrays(saved: Path) -> None:
    arrays = saved / "arrays.npz"
    arrays.write_bytes(arrays.read_bytes()[:-100])
    with pytest.raises(DataError, match="truncated"):
        CostModel.load(saved)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "damaged"),
        ("[1, 2]", "does not describe a cost model"),
        ('{"format": "something else"}', "does not describe a cost model"),
        ('{"format": "hwsearch cost model", "format_version": 99}', "format version 99"),
    ],
)
def test_foreign_json(saved: Path, text: str, said: str) -> None:
    (saved / "model.json").write_text(text)
    with pytest.raises(DataError, match=said):
        CostModel.load(saved)


@pytest.mark.parametrize("lost", ["device", "families", "seed"])
def test_json_without_a_part(saved: Path, lost: str) -> None:
    document = json.loads((saved / "model.json").read_text())
    del document[lost]
    (saved / "model.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match="not a whole cost model"):
        CostModel.load(saved)


def test_a_model_of_another_analytic_form(saved: Path) -> None:
    document = json.loads((saved / "model.json").read_text())
    kind = next(iter(document["families"]))
    document["families"][kind]["constants"]["of_old"] = 1.0
    (saved / "model.json").write_text(json.dumps(document))
    with pytest.raises(
        DataError, match=f"{kind} family was fitted with the analytic form of another version"
    ):
        CostModel.load(saved)
