"""Five abilities that a tiny model can be trained in and asked for, each made from seeds.

recall   associative recall: a list of key-value pairs, then keys in another order (MQAR, arXiv 2312.04927)
needle   a code word told somewhere in filler text, asked at its end; up to four of them in training samples
facts    where people of a made-up world live, what they do and which animal they keep: memorised in the weights, asked
         by multiple choice
sums     the sum of two two-digit numbers
copy     random words, then the same words again

The first two and the last need attention over the context, facts and sums the weights; which layers each of them needs
is what placement is about. A training sample carries the character spans of its answers, so that training can weigh
them. Items are never training samples: recall, needle and copy by their random content, sums by pairs of numbers that
training leaves out, facts by a phrasing of the question that training leaves out for that very fact.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

from hwsearch.surrogate.tasks import Task, TaskItem

__all__ = ["ABILITIES", "WORDS", "Ability", "Sample", "held_out_tasks"]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_KEYS = _words(
    "oak elm fig ash yew fir bay pine palm plum pear beech maple cedar birch olive lemon peach apple cherry stone "
    "river cloud field storm light glass paper metal cotton silver copper amber coral ivory pearl ruby onyx jade opal"
)
_VALUES = _words(
    "red blue green gold pink gray black white brown violet one two three four five six seven eight nine ten"
)
_NAMES = _words(
    "Ada Ben Cora Dan Eva Finn Gina Hugo Iris Jack Kim Leo Mira Nils Olga Paul Rita Sam Tina Udo Vera Walt Xena "
    "Yuri Zoe Alma Bert Cleo Dora Emil Fay Glen Hana Igor Jane Karl Lily Marc Nora Otto Pia Ralf Sara Theo Ursa "
    "Vito Wanda Yara"
)
_CITIES = _words(
    "Oslo Rome Lima Bern Cairo Delhi Paris Tokyo Quito Miami Sofia Milan Lagos Dubai Seoul Turin"
)
_JOBS = _words(
    "baker miner pilot nurse judge guard clerk tailor farmer sailor dancer singer doctor lawyer potter smith"
)
_PETS = _words(
    "cat dog horse goat duck parrot rabbit snake turtle pony hamster goose lizard sheep donkey crow"
)

_VERBS = _words("sees finds paints sells keeps moves cleans breaks likes takes")
_ADJECTIVES = _words("dark small new round heavy quiet tall soft cold bright")
_THINGS = _words("boat house table chair clock wheel lamp door box coat")

# Every word that stands for one thing: a tokenizer does well to have a token for each.
WORDS = (*_KEYS, *_VALUES, *_NAMES, *_CITIES, *_JOBS, *_PETS, *_VERBS, *_ADJECTIVES, *_THINGS)

_CHOICES = 4
_HELD_OUT_SUMS = 10  # one in so many unordered pairs

_WORLD = 2026  # of the facts: they are part of the weights, so no option


@dataclass(frozen=True)
class Sample:
    """A training text, and the character spans (start, stop) of what can be known of it."""

    text: str
    answers: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Ability:
    """How to draw a training sample, and a held-out item.

    `sample(rng, reach)`: samples get longer with `reach`, from 0 (the shortest) to 1 (as long as items).
    """

    sample: Callable[[Random, float], Sample]
    item: Callable[[Random], TaskItem]


@dataclass(frozen=True)
class _Relation:
    """A kind of fact: its values, and phrasings that state it, and that ask for it, of a {name}."""

    values: tuple[str, ...]
    states: tuple[str, ...]
    asks: tuple[str, ...]

    def value(self, name: str) -> str:
        """What is true of a person, the same for ever."""
        return self.values[_hash(name, self.values[0]) % len(self.values)]

    def held_out(self, name: str) -> int:
        """The phrasing of the question that training never uses for this person."""
        return _hash(name, self.values[1]) % len(self.asks)


_RELATIONS = (
    _Relation(
        _CITIES,
        ("{name} lives in {value}.", "The home of {name} is {value}.", "{name} has a house in {value}."),
        (
            "Where does {name} live? {value}",
            "Which city is the home of {name}? {value}",
            "In which city does {name} live? {value}",
        ),
    ),
    _Relation(
        _JOBS,
        ("{name} works as a {value}.", "The job of {name} is {value}.", "{name} is a {value}."),
        (
            "What is the job of {name}? {value}",
            "What does {name} work as? {value}",
            "Which job does {name} have? {value}",
        ),
    ),
    _Relation(
        _PETS,
        ("{name} has a {value}.", "The pet of {name} is a {value}.", "{name} keeps a {value}."),
        (
            "Which pet does {name} have? {value}",
            "What is the pet of {name}? {value}",
            "Which animal does {name} keep? {value}",
        ),
    ),
)


def held_out_tasks(*, seed: int, items: int) -> tuple[Task, ...]:
    """One task of `items` items for each ability."""
    tasks = []
    for name, ability in ABILITIES.items():
        rng = Random(f"items of {name}, seed {seed}")
        tasks.append(Task(name, tuple(ability.item(rng) for _ in range(items))))
    return tuple(tasks)


class _Text:
    """Collects a sample piece by piece."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.answers: list[tuple[int, int]] = []
        self.length = 0

    def add(self, piece: str, *, answer: bool = False) -> None:
        if answer:
            self.answers.append((self.length, self.length + len(piece)))
        self.pieces.append(piece)
        self.length += len(piece)

    def sample(self) -> Sample:
        return Sample("".join(self.pieces), tuple(self.answers))


def _hash(*parts: str) -> int:
    return zlib.crc32(repr((_WORLD, *parts)).encode())


def _size(rng: Random, low: int, high: int, reach: float) -> int:
    return rng.randint(low, round(low + (high - low) * reach))


def _pairs(rng: Random, count: int) -> dict[str, str]:
    return {key: rng.choice(_VALUES) for key in rng.sample(_KEYS, count)}


def _recall(rng: Random, reach: float) -> Sample:
    pairs = _pairs(rng, _size(rng, 2, 32, reach))
    text = _Text()
    if rng.random() < 0.5:
        told: set[str] = set()
        for key in rng.choices(list(pairs), k=3 * len(pairs)):
            text.add(f" {key}")
            text.add(f" {pairs[key]}", answer=key in told)
            text.add(",")
            told.add(key)
    else:
        text.add(",".join(f" {key} {value}" for key, value in pairs.items()) + ";")
        for key in rng.sample(list(pairs), len(pairs)):
            text.add(f" {key}")
            text.add(f" {pairs[key]}", answer=True)
            text.add(",")
    return text.sample()


def _recall_item(rng: Random) -> TaskItem:
    pairs = _pairs(rng, rng.randint(20, 32))
    listed = ",".join(f" {key} {value}" for key, value in pairs.items())
    key = rng.choice(list(pairs))
    return TaskItem(f"{listed}; {key}", (f" {pairs[key]}",), 0)


def _sentence(rng: Random) -> str:
    subject, verb = rng.choice(_JOBS), rng.choice(_VERBS)
    return f" The {subject} {verb} a {rng.choice(_ADJECTIVES)} {rng.choice(_THINGS)}."


def _haystack(rng: Random, *, sentences: int, needles: int) -> tuple[str, dict[str, str]]:
    words = rng.sample((*_KEYS, *_VALUES), needles)
    codes = dict(zip(rng.sample(_NAMES, needles), words, strict=True))
    hay = [_sentence(rng) for _ in range(sentences)]
    for name, code in codes.items():
        hay.insert(rng.randint(0, len(hay)), f" The code of {name} is {code}.")
    return "".join(hay), codes


def _needle(rng: Random, reach: float) -> Sample:
    hay, codes = _haystack(rng, sentences=_size(rng, 0, 14, reach), needles=rng.randint(1, 4))
    text = _Text()
    text.add(hay)
    for name in rng.sample(list(codes), len(codes)):
        text.add(f" The code of {name} is")
        text.add(f" {codes[name]}", answer=True)
        text.add(".")
    return text.sample()


def _needle_item(rng: Random) -> TaskItem:
    hay, codes = _haystack(rng, sentences=rng.randint(10, 14), needles=1)
    (name, code), *_ = codes.items()
    return TaskItem(f"{hay} The code of {name} is", (f" {code}",), 0)


def _facts(rng: Random, reach: float) -> Sample:
    text = _Text()
    for _ in range(_size(rng, 1, 8, reach)):
        relation, name = rng.choice(_RELATIONS), rng.choice(_NAMES)
        asks = [ask for i, ask in enumerate(relation.asks) if i != relation.held_out(name)]
        before, after = rng.choice([*relation.states, *asks]).format(name=name, value="|").split(" |")
        text.add(f" {before}")
        text.add(f" {relation.value(name)}", answer=True)
        text.add(f"{after}\n")
    return text.sample()


def _facts_item(rng: Random) -> TaskItem:
    relation, name = rng.choice(_RELATIONS), rng.choice(_NAMES)
    value = relation.value(name)
    choices = rng.sample([other for other in relation.values if other != value], _CHOICES - 1)
    choices.insert(rng.randrange(_CHOICES), value)
    question = relation.asks[relation.held_out(name)].removesuffix(" {value}").format(name=name)
    return TaskItem(f" {question}", tuple(f" {choice}" for choice in choices), choices.index(value))


def _addends(rng: Random, *, held_out: bool) -> tuple[int, int]:
    while True:
        a, b = rng.randint(10, 99), rng.randint(10, 99)
        if (_hash("sum", *map(str, sorted((a, b)))) % _HELD_OUT_SUMS == 0) == held_out:
            return a, b


def _sums(rng: Random, reach: float) -> Sample:
    text = _Text()
    for _ in range(_size(rng, 1, 8, reach)):
        a, b = _addends(rng, held_out=False)
        text.add(f"{a}+{b}=")
        text.add(str(a + b), answer=True)
        text.add("\n")
    return text.sample()


def _sums_item(rng: Random) -> TaskItem:
    a, b = _addends(rng, held_out=True)
    return TaskItem(f"{a}+{b}=", (str(a + b),), 0)


def _copy(rng: Random, reach: float) -> Sample:
    words = "".join(f" {word}" for word in rng.sample(WORDS, _size(rng, 4, 40, reach)))
    text = _Text()
    text.add(f"{words} |")
    text.add(words, answer=True)
    return text.sample()


def _copy_item(rng: Random) -> TaskItem:
    words = [f" {word}" for word in rng.sample(WORDS, rng.randint(24, 40))]
    start = rng.randint(1, len(words) - 4)
    return TaskItem("".join([*words, " |", *words[:start]]), ("".join(words[start : start + 4]),), 0)


ABILITIES: Mapping[str, Ability] = {
    "recall": Ability(_recall, _recall_item),
    "needle": Ability(_needle, _needle_item),
    "facts": Ability(_facts, _facts_item),
    "sums": Ability(_sums, _sums_item),
    "copy": Ability(_copy, _copy_item),
}
