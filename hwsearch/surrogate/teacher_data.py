"""What the tiny teacher is trained on: its tokenizer, and batches of real text and synthetic samples with weights.

A batch is a function of the seed and the step, so training that is resumed sees what it would have seen. Rows of text
come from the packed corpus; the others are filled with samples, each from the ability that is furthest behind its
share of tokens, and the last sample of a row is cut. The answers of samples weigh more than text, the rest of a sample,
which is mostly random, little.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import Any

import torch
from torch import Tensor

from hwsearch.surrogate.corpus import PackedCorpus
from hwsearch.surrogate.synthetic import ABILITIES, WORDS, Sample
from hwsearch.surrogate.teacher_recipe import TeacherRecipe

__all__ = ["EOS", "PAD", "TeacherData", "synthetic_text", "train_tokenizer"]

EOS, PAD = "<|endoftext|>", "<|pad|>"

# How Qwen2's and Qwen3's tokenizers split text before merging: every digit is a token of its own.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_WORD_SHOWINGS = 3000


def train_tokenizer(texts: Iterable[str], *, vocabulary: int) -> Any:
    """A byte-level BPE tokenizer of `vocabulary` tokens: PreTrainedTokenizerFast, padding on the left.

    The words of the synthetic abilities are shown so often that each becomes one token, as common words are in a
    vocabulary of the usual size.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    words = "".join(f" {word}" for word in WORDS)
    made.train_from_iterator([*texts, *[words] * _WORD_SHOWINGS], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def synthetic_text(*, seed: int, samples: int) -> list[str]:
    """Training samples of every length as plain text, `samples` of each ability."""
    rngs = [(ability, Random(f"text of {name}, seed {seed}")) for name, ability in ABILITIES.items()]
    return [ability.sample(rng, 1.0).text for _ in range(samples) for ability, rng in rngs]


class TeacherData:
    """Batches of a recipe: rows as long as the corpus's, encoded with a PreTrainedTokenizerFast."""

    def __init__(self, corpus: PackedCorpus, *, recipe: TeacherRecipe, tokenizer: Any) -> None:
        self.corpus = corpus
        self.recipe = recipe
        self.tokenizer = tokenizer

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Tokens (batch, length) int64 of a step and the weights (batch, length) float32 of predicting each."""
        recipe, length = self.recipe, self.corpus.length
        text_rows = round(recipe.batch * recipe.text_share)
        tokens_BT = torch.empty(recipe.batch, length, dtype=torch.int64)
        weights_BT = torch.ones(recipe.batch, length)
        if text_rows:
            tokens_BT[:text_rows] = self.corpus.batch(step, batch=text_rows, seed=recipe.seed)
        rng = Random(f"seed {recipe.seed}, step {step}")
        spent = dict.fromkeys(ABILITIES, 0)
        for row in range(text_rows, recipe.batch):
            ids: list[int] = []
            weights: list[float] = []
            while len(ids) < length:
                name = min(spent, key=lambda name: spent[name])
                more_ids, more_weights = self._encoded(ABILITIES[name].sample(rng, recipe.reach(step)))
                ids += more_ids
                weights += more_weights
                spent[name] += len(more_ids)
            tokens_BT[row] = torch.tensor(ids[:length])
            weights_BT[row] = torch.tensor(weights[:length])
        return tokens_BT, weights_BT

    def _encoded(self, sample: Sample) -> tuple[list[int], list[float]]:
        """Token ids, the end of text among them, and their loss weights."""
        encoded = self.tokenizer.backend_tokenizer.encode(sample.text)
        weights = [self.recipe.plain_weight] * (len(encoded.ids) + 1)
        answers = iter(sample.answers)
        start, stop = next(answers, (0, 0))
        for i, (left, right) in enumerate(encoded.offsets):
            while left >= stop and (following := next(answers, None)) is not None:
                start, stop = following
            if max(left, start) < min(right, stop):
                weights[i] = self.recipe.answer_weight
        return [*encoded.ids, self.tokenizer.eos_token_id], weights
