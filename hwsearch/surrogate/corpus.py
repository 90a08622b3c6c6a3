"""Text for training: tokenised with the checkpoint's tokenizer, packed into rows of equal length, memory-mapped.

The documents are put in an order drawn from the seed, each ended by the tokenizer's end-of-text token where it has one,
laid end to end and cut into rows; what does not fill the last row is dropped. The last rows are the validation part, so
at most one document stands on both sides. Rows are drawn without replacement, in an order that depends on the seed and
the epoch only: the batch of a step is the same whether training was interrupted or not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hwsearch.errors import DataError, DependencyError, InputError, plainly
from hwsearch.models.folder import new_folder

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["PackedCorpus", "documents", "pack"]

IntArray = NDArray[np.int64]
RowArray = NDArray[np.int32]

_HEADER = "corpus.json"
_PARTS = ("train", "validation")
_VERSION = 1
_TEXT = "text"  # key of a jsonl line, column of a parquet file
_AT_ONCE = 512  # documents handed to the tokenizer together


@dataclass(frozen=True, kw_only=True)
class PackedCorpus:
    """train and validation: (rows, length) int32 token ids, mapped from disk. vocabulary: hash of the tokenizer's."""

    train: RowArray
    validation: RowArray
    vocabulary: str

    @classmethod
    def open(cls, folder: Path) -> PackedCorpus:
        """The corpus that `pack` wrote. Raises DataError where there is none, or a part of it is missing."""
        try:
            header = json.loads((folder / _HEADER).read_text(encoding="utf-8"))
            if header["version"] != _VERSION:
                raise DataError(f"{folder} is of version {header['version']}, not {_VERSION}: pack it again")
            parts = {part: np.load(folder / f"{part}.npy", mmap_mode="r") for part in _PARTS}
            corpus = cls(**parts, vocabulary=header["vocabulary"])
            shapes = {part: tuple(header["rows"][part]) for part in _PARTS}
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{folder} is no packed corpus: {plainly(error)}; make it with `pack`") from None
        if any(parts[part].shape != shapes[part] or parts[part].dtype != np.int32 for part in _PARTS):
            raise DataError(f"the parts of {folder} do not fit its {_HEADER}: pack it again")
        return corpus

    @property
    def length(self) -> int:
        """Tokens in a row."""
        return int(self.train.shape[1])

    def check(self, tokenizer: Any) -> None:
        """Raise DataError where the corpus was packed with another tokenizer."""
        if self.vocabulary != _vocabulary(tokenizer):
            raise DataError(
                "the corpus was packed with another tokenizer than this checkpoint's: pack it again"
            )

    def batch(self, step: int, *, batch: int, seed: int) -> Tensor:
        """Rows (batch, length) int64 of the training part: the same for the same step, batch size and seed."""
        import torch

        return torch.from_numpy(self.train[self._rows(step, batch=batch, seed=seed)].astype(np.int64))

    def _rows(self, step: int, *, batch: int, seed: int) -> IntArray:
        rows = len(self.train)
        positions = np.arange(step * batch, (step + 1) * batch)
        return np.array([_order(rows, seed, int(p) // rows)[int(p) % rows] for p in positions])


def documents(source: Path) -> Iterator[str]:
    """The texts of a file: .txt and .md are one, .jsonl has one under "text" in each line, .parquet a column "text".

    Raises InputError for another kind of file, DataError for one that cannot be read.
    """
    try:
        match source.suffix:
            case ".txt" | ".md":
                yield source.read_text(encoding="utf-8")
            case ".jsonl":
                yield from _lines(source)
            case ".parquet":
                yield from _column(source)
            case other:
                raise InputError(f"{source}: text is read from .txt, .md, .jsonl and .parquet, not {other!r}")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {source}: {plainly(error)}") from None


def pack(
    sources: Sequence[Path], *, tokenizer: Any, folder: Path, length: int, validation_share: float, seed: int
) -> PackedCorpus:
    """Tokenise every document of `sources` with a Hugging Face tokenizer into a new folder, and open it.

    Raises InputError where the text does not fill one row of `length` tokens for each of the two parts, OutputError
    where the folder exists already. Needs disk, not memory, in proportion to the text.
    """
    if length < 2 or not 0 < validation_share < 1:
        raise InputError(
            f"a row of {length} tokens and a validation share of {validation_share} make no corpus"
        )
    with new_folder(folder) as made:
        stream, ends = made / "stream.bin", _tokenise(sources, tokenizer, made / "stream.bin")
        total = int(ends[-1]) if len(ends) else 0
        rows = total // length
        validation = max(1, round(rows * validation_share))
        if rows - validation < 1:
            raise InputError(
                f"{', '.join(map(str, sources))}: {total} tokens do not fill two rows of {length}"
            )
        tokens = np.memmap(stream, dtype=np.int32, mode="r")
        shapes = {"train": (rows - validation, length), "validation": (validation, length)}
        _write_rows(tokens, ends, made, shapes, seed=seed)
        del tokens
        stream.unlink()
        header = {
            "version": _VERSION,
            "rows": shapes,
            "documents": len(ends),
            "tokens": total,
            "sources": [source.name for source in sources],
            "validation_share": validation_share,
            "seed": seed,
            "vocabulary": _vocabulary(tokenizer),
        }
        (made / _HEADER).write_text(json.dumps(header, indent=2) + "\n", encoding="utf-8")
    return PackedCorpus.open(folder)


def _tokenise(sources: Sequence[Path], tokenizer: Any, stream: Path) -> IntArray:
    """Write the tokens of all documents one after another; where each ends, (documents,)."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ends: list[int] = []
    total = 0
    texts = (text for source in sources for text in documents(source) if text.strip())
    with stream.open("wb") as file:
        while chunk := list(islice(texts, _AT_ONCE)):
            for ids in tokenizer(chunk)["input_ids"]:
                ids = ids if ids[-1:] == end else [*ids, *end]
                file.write(np.array(ids, dtype=np.int32).tobytes())
                total += len(ids)
                ends.append(total)
    return np.array(ends, dtype=np.int64)


def _write_rows(
    tokens: RowArray, ends: IntArray, folder: Path, shapes: dict[str, tuple[int, int]], *, seed: int
) -> None:
    """Lay the documents end to end in the seed's order into the arrays of the two parts."""
    starts = np.concatenate([[0], ends[:-1]])
    arrays = [
        np.lib.format.open_memmap(
            folder / f"{part}.npy", mode="w+", dtype=np.int32, shape=shapes[part]
        ).reshape(-1)
        for part in _PARTS
    ]
    part, filled = 0, 0
    for document in np.random.default_rng(seed).permutation(len(ends)):
        piece = tokens[starts[document] : ends[document]]
        while len(piece) and part < len(arrays):
            taken = piece[: arrays[part].size - filled]
            arrays[part][filled : filled + len(taken)] = taken
            filled += len(taken)
            piece = piece[len(taken) :]
            if filled == arrays[part].size:
                part, filled = part + 1, 0


@lru_cache(maxsize=4)
def _order(rows: int, seed: int, epoch: int) -> IntArray:
    return np.random.default_rng((seed, epoch)).permutation(rows)


def _lines(source: Path) -> Iterator[str]:
    with source.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                text = json.loads(line)[_TEXT]
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f'{source}, line {number}: expected {{"text": ...}} ({error!r})') from None
            if not isinstance(text, str):
                raise DataError(f'{source}, line {number}: "text" is {type(text).__name__}, not text')
            yield text


def _column(source: Path) -> Iterator[str]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise DependencyError("pyarrow", extra="parquet", purpose=f"reading {source}") from None
    try:
        with parquet.ParquetFile(source) as file:
            for batch in file.iter_batches(columns=[_TEXT]):
                yield from (text for text in batch.column(_TEXT).to_pylist() if text is not None)
    except (pyarrow.ArrowException, KeyError) as error:
        raise DataError(f"cannot read a column {_TEXT!r} of {source}: {error}") from None


def _vocabulary(tokenizer: Any) -> str:
    """A hash of the tokens and their ids."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()[:16]
