"""The folder of a supernet: what it was made from, its trained mixers, the data it is trained and scored on.

    supernet.json               checkpoint, space, settings, and after training what the training did
    alternatives.safetensors    the trained mixers; the teacher's weights stay in the checkpoint
    training.safetensors        the state of a training that has not ended
    corpus/, tasks.jsonl        packed text and task items
    scores.db                   scores, by the content of what was scored

The teacher is named, not copied. Its weights are compared by their hash when the folder is opened, so a checkpoint that
has changed since is refused.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hwsearch.errors import DataError, InputError, OutputError, plainly
from hwsearch.models.checkpoint import Checkpoint
from hwsearch.models.folder import new_folder
from hwsearch.searchspace.architecture import Architecture
from hwsearch.searchspace.space import Genomes, SearchSpace
from hwsearch.surrogate.corpus import PackedCorpus, pack
from hwsearch.surrogate.scoring import Scorer
from hwsearch.surrogate.space_json import space_content, space_from_content
from hwsearch.surrogate.supernet import Supernet, hash_tensors
from hwsearch.surrogate.supernet_settings import SupernetSettings
from hwsearch.surrogate.tasks import EncodedTasks, Task, read_tasks
from hwsearch.surrogate.training import Batches, Progress, Trained, train

__all__ = ["SupernetFolder", "tokenizer_of"]

_ABOUT, _WEIGHTS, _STATE = "supernet.json", "alternatives.safetensors", "training.safetensors"
_CORPUS, _TASKS, _SCORES = "corpus", "tasks.jsonl", "scores.db"
_VERSION = 1
_VALIDATION_SHARE = 0.02


class SupernetFolder:
    """A supernet on disk. Nothing is read before it is asked for.

    checkpoint: where the teacher is now; None where it was when the folder was made.
    """

    def __init__(self, folder: Path, *, checkpoint: Path | None = None) -> None:
        self.folder = folder
        self._checkpoint = checkpoint

    @property
    def exists(self) -> bool:
        """Whether a supernet was begun here."""
        return (self.folder / _ABOUT).is_file()

    @property
    def trained(self) -> bool:
        """Whether its training has ended."""
        return self.exists and (self.folder / _WEIGHTS).is_file()

    @property
    def about(self) -> dict[str, Any]:
        """The content of supernet.json. Raises DataError where there is none."""
        path = self.folder / _ABOUT
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            version = content["version"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{self.folder} is no supernet ({plainly(error)}): make one with `hwsearch supernet`"
            ) from None
        if version != _VERSION:
            raise DataError(f"{path} is of version {version}, not {_VERSION}: train the supernet again")
        assert isinstance(content, dict)
        return content

    @property
    def weights_hash(self) -> str:
        """SHA-256 of the trained mixers, hexadecimal. Raises DataError where the training has not ended."""
        self._check_trained()
        return hashlib.sha256((self.folder / _WEIGHTS).read_bytes()).hexdigest()

    @property
    def checkpoint(self) -> Checkpoint:
        """The teacher. Raises DataError where it is not there any more."""
        folder = self._checkpoint or Path(self.about["checkpoint"])
        if not folder.is_dir():
            raise DataError(
                f"the teacher of {self.folder}, {folder}, is not there: say with --from where it is now"
            )
        return Checkpoint(folder)

    @property
    def space(self) -> SearchSpace:
        """The space whose paths it holds."""
        return space_from_content(self.about["space"])

    def create(
        self,
        *,
        checkpoint: Checkpoint,
        space: SearchSpace,
        sources: Sequence[Path],
        tasks: Path,
        settings: SupernetSettings,
    ) -> None:
        """Make the folder with its data, before training; where it is there already, check that it is the same.

        sources: text files to pack, or one folder of a packed corpus. Raises InputError where the folder holds another
        supernet.
        """
        base = checkpoint.base
        if not 2 <= settings.length <= base.max_position_embeddings:
            raise InputError(
                f"rows of {settings.length} tokens: {base.name} takes 2 to {base.max_position_embeddings}"
            )
        wanted = {
            "version": _VERSION,
            "checkpoint": str(checkpoint.folder.resolve()),
            "teacher": _hash(checkpoint),
            "space": space_content(space),
            "settings": settings.content(),
            "sources": [source.name for source in sources],
        }
        if self.exists:
            about = self.about
            other = sorted(key for key in wanted if key != "checkpoint" and about.get(key) != wanted[key])
            if other:
                raise InputError(
                    f"{self.folder} holds a supernet with another {' and '.join(other)}: name another folder, or give "
                    "the same options to go on with it"
                )
            return
        if self.folder.exists() and not all(_begun(file) for file in self.folder.iterdir()):
            raise OutputError(f"{self.folder} is not empty and holds no supernet: name a new folder with -o")
        tokenizer = tokenizer_of(checkpoint)
        read_tasks(tasks)
        packed = sources[0] if len(sources) == 1 and sources[0].is_dir() else None
        if packed is not None:
            given = PackedCorpus.open(packed)
            given.check(tokenizer)
            if given.length != settings.length:
                raise InputError(
                    f"{packed} has rows of {given.length} tokens, asked for {settings.length}: give --length "
                    f"{given.length}, or the text itself"
                )
        try:
            self.folder.mkdir(exist_ok=True)
            shutil.copyfile(tasks, self.folder / _TASKS)
        except OSError as error:
            raise OutputError(f"cannot write {self.folder}: {error.strerror or error}") from None
        corpus = self.folder / _CORPUS
        if packed is not None and not corpus.exists():
            with new_folder(corpus) as made:
                shutil.copytree(packed, made, dirs_exist_ok=True)
        elif not corpus.exists():
            pack(
                sources,
                tokenizer=tokenizer,
                folder=corpus,
                length=settings.length,
                validation_share=_VALIDATION_SHARE,
                seed=settings.recipe.seed,
            )
        self._write_about(wanted)

    @property
    def corpus(self) -> PackedCorpus:
        """The packed text."""
        return PackedCorpus.open(self.folder / _CORPUS)

    def batches(self, *, seed: int) -> Batches:
        """The batches of a training on the text."""
        corpus, rows = self.corpus, self.settings.batch
        return lambda number: corpus.batch(number, batch=rows, seed=seed)

    @property
    def settings(self) -> SupernetSettings:
        """How it is trained."""
        return SupernetSettings.of(self.about["settings"])

    def untrained(
        self,
        *,
        device: torch.device | str = "cpu",
        space: SearchSpace | None = None,
        seed: int | None = None,
    ) -> Supernet:
        """The supernet as it starts; with a space or a seed, another one of the same teacher.

        Raises DataError where the checkpoint is not the one it was begun with.
        """
        checkpoint, settings = self.checkpoint, self.settings
        if _hash(checkpoint) != self.about["teacher"]:
            raise DataError(
                f"{checkpoint.folder} is not the teacher of {self.folder}: its weights are others, or have changed"
            )
        supernet = Supernet.of(
            checkpoint,
            space or self.space,
            dtype=settings.torch_dtype,
            seed=settings.recipe.seed if seed is None else seed,
            train_attention=settings.train_attention,
        )
        return supernet.to(device)

    def supernet(self, *, device: torch.device | str = "cpu") -> Supernet:
        """The trained supernet. Raises DataError where the training has not ended."""
        self._check_trained()
        supernet = self.untrained(device=device)
        path = self.folder / _WEIGHTS
        try:
            found = supernet.alternatives.load_state_dict(load_file(str(path)), strict=False)
        except (OSError, SafetensorError, RuntimeError) as error:
            raise DataError(f"cannot read {path}: {plainly(error)}") from None
        if found.missing_keys or found.unexpected_keys:
            raise DataError(
                f"{path} does not hold the mixers of the space in {_ABOUT}: train the supernet again"
            )
        return supernet

    def train(
        self,
        *,
        device: torch.device | str = "cpu",
        on_step: Callable[[Progress], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> Trained:
        """Train to the end, from where an earlier call stopped; what was trained before is left as it is.

        Raises training.Interrupted where `stop` asked for it.
        """
        if self.trained:
            return _trained(self.about["training"])
        recipe, supernet = self.settings.recipe, self.untrained(device=device)
        trained = train(
            supernet,
            self.batches(seed=recipe.seed),
            recipe,
            folder=self.folder,
            on_step=on_step,
            stop=stop,
        )
        if not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0:
            self.write(supernet, trained)
        return trained

    def write(self, supernet: Supernet, trained: Trained) -> None:
        """Keep trained mixers and what their training did; the state of the training goes."""
        self._write_about({**self.about, "training": asdict(trained)})
        self._write_weights(supernet)
        (self.folder / _STATE).unlink(missing_ok=True)

    def write_path(self, path: Supernet, trained: Trained, *, source: SupernetFolder) -> None:
        """Keep one path of another folder's supernet that was trained further: its mixers without data or scores."""
        about = source.about
        del about["sources"]
        self._write_about({**about, "space": space_content(path.space), "training": asdict(trained)})
        self._write_weights(path)

    def genome_of(self, architecture: Architecture) -> Genomes:
        """The genome (layers,) of an architecture whose layers the supernet has, whatever the rules of its space.

        Raises InputError where it lacks one.
        """
        space = self.space
        loose = replace(space, limits={}, patterns=(), ties=(), forbidden=frozenset(), orders=())
        try:
            return loose.encode(architecture)
        except InputError as error:
            kinds = ", ".join(f"{layer.mixer.kind} {layer.mixer.label}".strip() for layer in space.choices)
            raise InputError(f"{error}; the supernet in {self.folder} has {kinds}") from None

    def tasks(self, *, items: int | None = None) -> tuple[Task, ...]:
        """The tasks, with at most the first `items` of each."""
        found = read_tasks(self.folder / _TASKS)
        return tuple(replace(task, items=task.items[:items]) for task in found)

    def scorer(
        self, supernet: Supernet, *, items: int | None = None, text_rows: int = 16, rows: int = 64
    ) -> Scorer:
        """Scores on the folder's tasks and the first rows of its validation text, kept in the folder.

        items: of each task; None for all. rows: of a batch.
        """
        tokenizer = tokenizer_of(self.checkpoint)
        limit = supernet.space.base.max_position_embeddings
        encoded = EncodedTasks.of(self.tasks(items=items), tokenizer, max_length=limit)
        text_NT = torch.from_numpy(self.corpus.validation[:text_rows].astype("int64"))
        return Scorer(supernet, encoded, text_NT, rows=rows, cache=self.folder / _SCORES)

    def _check_trained(self) -> None:
        if self.about and not self.trained:
            raise DataError(
                f"the supernet in {self.folder} is not trained to its end: give `hwsearch supernet` the same options "
                "again and it goes on"
            )

    def _write_weights(self, supernet: Supernet) -> None:
        path = self.folder / _WEIGHTS
        weights = {
            name: value.cpu().contiguous() for name, value in supernet.alternatives.state_dict().items()
        }
        save_file(weights, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def _write_about(self, content: Mapping[str, Any]) -> None:
        path = self.folder / _ABOUT
        written = path.with_suffix(".part")
        written.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        written.replace(path)


def _begun(file: Path) -> bool:
    """Whether a file is what an interrupted `create` leaves behind."""
    own = (_TASKS, _CORPUS, Path(_ABOUT).with_suffix(".part").name)
    return file.name in own or file.name.startswith(f".{_CORPUS}.")


def tokenizer_of(checkpoint: Checkpoint) -> Any:
    """The tokenizer of a checkpoint. Raises DataError where it has none that can be read."""
    from transformers import AutoTokenizer

    if not any(file.name.startswith("tokenizer") for file in checkpoint.extra_files):
        raise DataError(
            f"{checkpoint.folder} has no tokenizer files: put the checkpoint's tokenizer beside it"
        )
    try:
        return AutoTokenizer.from_pretrained(checkpoint.folder)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the tokenizer of {checkpoint.folder}: {plainly(error)}") from None


def _hash(checkpoint: Checkpoint) -> str:
    return hash_tensors((name, checkpoint.tensor(name)) for name in sorted(checkpoint.names))


def _trained(content: Mapping[str, Any]) -> Trained:
    return Trained(**{**content, "history": tuple(content["history"])})
