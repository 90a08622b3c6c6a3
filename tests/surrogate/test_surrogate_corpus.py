"""Packing text: every token once, the split, the order of batches, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from hwsearch.errors import DataError, InputError, OutputError
from hwsearch.surrogate.corpus import PackedCorpus, documents, pack
from tests.surrogate.letters import Letters

TEXTS = [f"{chr(65 + i)}" * (3 * i + 1) for i in range(20)]  # each of its own letter


def _jsonl(path: Path, texts: Sequence[str] = TEXTS) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def _packed(folder: Path, *, length: int = 7, share: float = 0.25, seed: int = 0) -> PackedCorpus:
    source = _jsonl(folder / "text.jsonl")
    return pack(
        [source],
        tokenizer=Letters(),
        folder=folder / f"corpus{seed}",
        length=length,
        validation_share=share,
        seed=seed,
    )


def test_rows_hold_every_document_once_and_whole(tmp_path: Path) -> None:
    corpus = _packed(tmp_path)
    flat = np.concatenate([corpus.train.reshape(-1), corpus.validation.reshape(-1)])
    total = sum(len(text) + 1 for text in TEXTS)
    assert len(flat) == total // 7 * 7
    found = "".join(chr(i) for i in flat).split(chr(Letters.eos_token_id))
    assert set(found[:-1]) <= set(TEXTS)
    assert len(found[:-1]) == len(set(found[:-1]))
    assert len(corpus.validation) == round(total // 7 * 0.25)
    assert corpus.train.dtype == np.int32
    assert corpus.length == 7


def test_the_split_depends_on_the_seed_only(tmp_path: Path) -> None:
    first, again, other = (
        pack(
            [_jsonl(tmp_path / "text.jsonl")],
            tokenizer=Letters(),
            folder=tmp_path / str(i),
            length=7,
            validation_share=0.3,
            seed=seed,
        )
        for i, seed in enumerate((1, 1, 2))
    )
    np.testing.assert_array_equal(first.train, again.train)
    np.testing.assert_array_equal(first.validation, again.validation)
    assert not np.array_equal(first.train, other.train)


def test_an_epoch_draws_every_row_once_and_a_step_is_always_the_same(tmp_path: Path) -> None:
    corpus = _packed(tmp_path)
    rows = len(corpus.train)
    drawn = np.concatenate([corpus.batch(step, batch=1, seed=4).numpy() for step in range(rows)])
    assert sorted(map(tuple, drawn.tolist())) == sorted(map(tuple, corpus.train.tolist()))
    second = np.concatenate([corpus.batch(step, batch=1, seed=4).numpy() for step in range(rows, 2 * rows)])
    assert not np.array_equal(drawn, second)
    reopened = PackedCorpus.open(tmp_path / "corpus0")
    batch = corpus.batch(5, batch=4, seed=4)
    assert batch.equal(reopened.batch(5, batch=4, seed=4))
    assert not batch.equal(corpus.batch(5, batch=4, seed=5))


def test_text_is_read_from_every_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo")
    table = pyarrow.table({"text": ["three", None, "four"], "other": [1, 2, 3]})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert list(documents(tmp_path / "a.txt")) == ["one\ntwo"]
    assert list(documents(tmp_path / "a.parquet")) == ["three", "four"]
    assert list(documents(_jsonl(tmp_path / "a.jsonl", ["five", "six\u2028"]))) == ["five", "six\u2028"]


def test_files_without_text_are_refused(tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "a"}\n{"body": "b"}\n')
    with pytest.raises(DataError, match="line 2"):
        list(documents(bad))
    bad.write_text('{"text": 3}\n')
    with pytest.raises(DataError, match="int, not text"):
        list(documents(bad))
    parquet.write_table(pyarrow.table({"body": ["b"]}), tmp_path / "bad.parquet")
    (tmp_path / "worse.parquet").write_text("no table")
    for name in ("bad.parquet", "worse.parquet", "absent.txt"):
        with pytest.raises(DataError, match=name):
            list(documents(tmp_path / name))
    with pytest.raises(InputError, match="csv"):
        list(documents(tmp_path / "a.csv"))


def test_a_failed_packing_leaves_nothing_behind(tmp_path: Path) -> None:
    source = _jsonl(tmp_path / "text.jsonl", ["ab"])
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match="do not fill"):
        pack([source], tokenizer=Letters(), folder=tmp_path / "c", length=2, validation_share=0.1, seed=0)
    assert sorted(tmp_path.iterdir()) == before
    (tmp_path / "c").mkdir()
    with pytest.raises(OutputError, match="exists"):
        pack([source], tokenizer=Letters(), folder=tmp_path / "c", length=2, validation_share=0.1, seed=0)


def test_a_damaged_corpus_and_another_tokenizer_are_noticed(tmp_path: Path) -> None:
    corpus = _packed(tmp_path)
    corpus.check(Letters())
    with pytest.raises(DataError, match="another tokenizer"):
        corpus.check(Letters(merged="ab"))
    folder = tmp_path / "corpus0"
    np.save(folder / "train.npy", np.zeros((2, 7), dtype=np.int32))
    with pytest.raises(DataError, match="do not fit"):
        PackedCorpus.open(folder)
    (folder / "train.npy").unlink()
    with pytest.raises(DataError, match="packed corpus"):
        PackedCorpus.open(folder)
