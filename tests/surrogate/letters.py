"""A tokenizer for tests: one token per character."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["Letters"]

_MERGED = 200


class Letters:
    """Characters by their code; `merged`, a string, becomes one token wherever it stands."""

    pad_token_id = 0
    eos_token_id = 1

    def __init__(self, *, merged: str = "") -> None:
        self.merged = merged

    def __call__(self, texts: Sequence[str]) -> dict[str, list[list[int]]]:
        return {"input_ids": [self._ids(text) for text in texts]}

    def get_vocab(self) -> dict[str, int]:
        """As a Hugging Face tokenizer has it."""
        return {chr(i): i for i in range(2, 128)} | ({self.merged: _MERGED} if self.merged else {})

    def text(self, ids: Iterable[int]) -> str:
        """The text of tokens."""
        return "".join(self.merged if i == _MERGED else chr(i) for i in ids)

    def _ids(self, text: str) -> list[int]:
        pieces = text.split(self.merged) if self.merged else [text]
        ids = [ord(c) for c in pieces[0]]
        for piece in pieces[1:]:
            ids += [_MERGED, *map(ord, piece)]
        return ids
