"""How good an architecture is as a path of a supernet: per task, and how far it is from the teacher.

Candidates are scored together. In the order of their genomes two neighbours share a beginning, and the residual stream
behind it is kept, so every distinct beginning runs once per batch; the teacher's path is the first of them. Sharing
changes no bit of a score: batches are cut the same way for every candidate. Scores are kept under the content of the
supernet and of what it was scored on, so none is computed twice, in this process or a later one.

Measures: accuracy and loss on the right answer of each task, as `tasks` counts them; on text the perplexity, the KL
divergence of the candidate's next-token distribution from the teacher's in nats per token, and the feature error, the
mean over layers of |mixer output - teacher's attention output|^2 / |teacher's attention output|^2. Published ablations
(arXiv 2512.20569) found placement by such a feature error weak and by KL strong.
"""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hwsearch.errors import DataError, InputError, unknown_name
from hwsearch.surrogate.supernet import Supernet
from hwsearch.surrogate.tasks import EncodedTasks, TaskScore

__all__ = ["Score", "Scorer"]

FloatArray = NDArray[np.float64]
Genomes = NDArray[np.int64]

_GROUP = 64  # candidates that are scored together, then kept
_VALUES = 2**23  # logits that are computed at once
_KEPT = 2**26  # probabilities of the teacher that are kept for all candidates


@dataclass(frozen=True, kw_only=True)
class Score:
    """Of one candidate. kl: nats per token; feature_mse: relative; seconds: its share of the time of its group."""

    tasks: Mapping[str, TaskScore]
    kl: float
    perplexity: float
    feature_mse: float
    seconds: float

    def cost(self, metric: str) -> float:
        """The same as `value`, less being better: accuracies count negative."""
        return self.value(metric) * (-1.0 if metric.endswith("accuracy") else 1.0)

    def value(self, metric: str) -> float:
        """One number of the score: TASK.accuracy, TASK.loss, mean_accuracy, mean_loss, kl, perplexity, feature_mse."""
        task, dot, name = metric.rpartition(".")
        if dot and task in self.tasks and name in ("accuracy", "loss"):
            return float(getattr(self.tasks[task], name))
        if metric in ("mean_accuracy", "mean_loss"):
            return float(np.mean([getattr(s, metric.removeprefix("mean_")) for s in self.tasks.values()]))
        if metric in ("kl", "perplexity", "feature_mse"):
            return float(getattr(self, metric))
        known = [f"{task}.{name}" for task in self.tasks for name in ("accuracy", "loss")]
        raise unknown_name(
            "metric", metric, [*known, "mean_accuracy", "mean_loss", "kl", "perplexity", "feature_mse"]
        )


@dataclass(frozen=True)
class _TeacherText:
    """The teacher's distributions over a batch of text, piece by piece. kept: those computed so far, or None."""

    supernet: Supernet
    pieces: Sequence[Tensor]
    target_N: Tensor
    kept: dict[int, tuple[Tensor, Tensor]] | None

    def distribution(self, i: int) -> tuple[Tensor, Tensor]:
        """Probabilities (K, V) of a piece, and the negative entropies (K,)."""
        if self.kept is not None and i in self.kept:
            return self.kept[i]
        log_KV = self.supernet.head(self.pieces[i]).float().log_softmax(dim=1)
        probability_KV = log_KV.exp()
        found = probability_KV, (probability_KV * log_KV).sum(dim=1).double()
        if self.kept is not None:
            self.kept[i] = found
        return found


class Scorer:
    """Scores genomes of a supernet on tasks and on text.

    text_NT: rows of tokens, whole. rows: of a batch. cache: a SQLite file that keeps scores; None keeps them in memory
    only.
    """

    def __init__(
        self,
        supernet: Supernet,
        tasks: EncodedTasks,
        text_NT: Tensor,
        *,
        rows: int = 64,
        cache: Path | None = None,
    ) -> None:
        self.supernet = supernet
        self.tasks = tasks
        self.text_NT = text_NT
        self.rows = rows
        self.cache = cache
        self._evaluation = ""
        self._known: dict[bytes, Score] = {}

    def scores(self, genomes: Genomes, *, on_score: Callable[[int, int], None] | None = None) -> list[Score]:
        """The scores of genomes (n, layers), in their order. on_score: told how many are known, and of how many."""
        genomes = np.asarray(genomes, dtype=np.int64)
        if genomes.ndim != 2 or genomes.shape[1] != self.supernet.num_layers:
            raise InputError(
                f"genomes of the shape {genomes.shape}: the supernet has {self.supernet.num_layers} layers, give "
                f"(n, {self.supernet.num_layers})"
            )
        if not self._evaluation:
            self._open()
        keys = [genome.astype("<i2").tobytes() for genome in genomes]
        unknown = {key: genome for key, genome in zip(keys, genomes, strict=True) if key not in self._known}
        order = sorted(unknown, key=lambda key: self._rank(unknown[key]))
        for start in range(0, len(order), _GROUP):
            group = order[start : start + _GROUP]
            began = time.perf_counter()
            found = self._measure(np.array([unknown[key] for key in group]))
            each = (time.perf_counter() - began) / len(group)
            self._keep({key: score(each) for key, score in zip(group, found, strict=True)})
            if on_score:
                on_score(len(keys) - len(order) + start + len(group), len(keys))
        return [self._known[key] for key in keys]

    def objective(self, genomes: Genomes, *, metric: str) -> FloatArray:
        """A metric of `Score.value` for genomes (n, layers), as a cost (n,): accuracies count negative."""
        return np.array([score.cost(metric) for score in self.scores(genomes)])

    def _rank(self, genome: Genomes) -> tuple[int, ...]:
        """Sorts genomes by their beginnings, that of the teacher first."""
        return tuple(-1 if self.supernet.is_teacher(i, int(c)) else int(c) for i, c in enumerate(genome))

    @torch.inference_mode()
    def _measure(self, genomes: Genomes) -> list[Callable[[float], Score]]:
        """Scores of sorted genomes (n, layers), all but the time."""
        count, device = len(genomes), self.supernet.teacher.device
        scored_NT = self.tasks.completion_NT
        place_NT = np.cumsum(scored_NT).reshape(scored_NT.shape) - 1  # of a scored token among all of them
        log_probs = np.zeros((count, scored_NT.sum()))
        hits = np.zeros(log_probs.shape, dtype=np.bool_)
        for index, tokens in self.tasks.batches(self.rows):
            own_BT = scored_NT[index, : tokens.shape[1]]
            place_K = place_NT[index, : tokens.shape[1]][own_BT]
            ids_BT, mask_BT = torch.from_numpy(tokens).to(device), torch.from_numpy(own_BT).to(device)
            targets_K = ids_BT[mask_BT]
            for i, hidden_BTD, _ in self._paths(genomes, ids_BT, features=False):
                before_KD = hidden_BTD[:, :-1][mask_BT[:, 1:]]
                log_probs[i, place_K], hits[i, place_K] = self._completions(before_KD, targets_K)
        kl, nll, feature, tokens_seen, text_rows = np.zeros(count), np.zeros(count), np.zeros(count), 0, 0
        for ids_BT in torch.split(self.text_NT.to(device), self.rows):
            teacher: _TeacherText | None = None
            for i, hidden_BTD, error in self._paths(genomes, ids_BT, features=True):
                if error is None:
                    teacher = self._teacher_text(hidden_BTD, ids_BT)
                    continue
                assert teacher is not None
                sums = self._text(hidden_BTD, teacher)
                kl[i] += sums[0]
                nll[i] += sums[1]
                feature[i] += float(error) * len(ids_BT)
            tokens_seen += ids_BT.shape[0] * (ids_BT.shape[1] - 1)
            text_rows += len(ids_BT)

        def finished(i: int) -> Callable[[float], Score]:
            log_probs_NT, hits_NT = np.zeros(scored_NT.shape), np.zeros(scored_NT.shape, dtype=np.bool_)
            log_probs_NT[scored_NT], hits_NT[scored_NT] = log_probs[i], hits[i]
            tasks = self.tasks.score(log_probs_NT, hits_NT)
            return lambda seconds: Score(
                tasks=tasks,
                kl=max(float(kl[i] / tokens_seen), 0.0),  # rounding may leave the teacher's own below
                perplexity=math.exp(nll[i] / tokens_seen),
                feature_mse=float(feature[i] / text_rows),
                seconds=seconds,
            )

        return [finished(i) for i in range(count)]

    def _paths(
        self, genomes: Genomes, ids_BT: Tensor, *, features: bool
    ) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """For each of the sorted genomes its index, the last residual stream (B, T, D) and its feature error.

        features: the teacher's path comes first, under the index -1, and errors are computed.
        """
        net = self.supernet
        before = [-1] * net.num_layers
        if features:
            teacher = net.teacher_pass(ids_BT)
            stack, known = list(teacher.hidden), net.num_layers
            scale = [mixed.float().square().mean() for mixed in teacher.mixed]
            errors = [torch.zeros_like(scale[0])] * net.num_layers
            yield -1, stack[-1], None
        else:
            stack, known = [net.embed(ids_BT)], 0
        for i, genome in enumerate(genomes):
            path = list(self._rank(genome))
            same = next((k for k in range(known) if path[k] != before[k]), known)
            del stack[same + 1 :]
            for layer in range(same, net.num_layers):
                hidden_BTD, mixed_BTD = net.layer(layer, int(genome[layer]), stack[-1])
                stack.append(hidden_BTD)
                if features:
                    wanted = teacher.mixed[layer]
                    gap = wanted if mixed_BTD is None else mixed_BTD - wanted
                    errors[layer] = gap.float().square().mean() / scale[layer]
            before, known = path, net.num_layers
            yield i, stack[-1], torch.stack(errors).mean() if features else None

    def _completions(self, before_KD: Tensor, targets_K: Tensor) -> tuple[FloatArray, NDArray[np.bool_]]:
        """Log-probability of each token given the hidden state before it, and whether it was the most probable."""
        found, hit = [], []
        for hidden_KD, target_K in zip(*self._pieces(before_KD, targets_K), strict=True):
            logits_KV = self.supernet.head(hidden_KD).float()
            chosen_K = logits_KV.gather(1, target_K[:, None]).squeeze(1)
            found.append(chosen_K - logits_KV.logsumexp(dim=1))
            hit.append(logits_KV.argmax(dim=1) == target_K)
        return torch.cat(found).double().cpu().numpy(), torch.cat(hit).cpu().numpy()

    def _text(self, hidden_BTD: Tensor, teacher: _TeacherText) -> tuple[float, float]:
        """Sums over the predicted tokens of the KL divergence from the teacher and of the negative log-likelihood."""
        kl = nll = 0.0
        pieces = self._pieces(hidden_BTD[:, :-1].flatten(0, 1), teacher.target_N)
        for i, (own_KD, target_K) in enumerate(zip(*pieces, strict=True)):
            teacher_KV, negative_entropy_K = teacher.distribution(i)
            logits_KV = self.supernet.head(own_KD).float()
            norm_K = logits_KV.logsumexp(dim=1).double()
            kl += float((negative_entropy_K - (teacher_KV * logits_KV).sum(dim=1).double() + norm_K).sum())
            nll += float((norm_K - logits_KV.gather(1, target_K[:, None]).squeeze(1).double()).sum())
        return kl, nll

    def _teacher_text(self, hidden_BTD: Tensor, ids_BT: Tensor) -> _TeacherText:
        pieces = self._pieces(hidden_BTD[:, :-1].flatten(0, 1))[0]
        target_N = ids_BT[:, 1:].flatten()
        values = len(target_N) * self.supernet.space.base.vocab_size
        return _TeacherText(self.supernet, pieces, target_N, {} if values <= _KEPT else None)

    def _pieces(self, *tensors: Tensor) -> list[Sequence[Tensor]]:
        """Tensors (K, ...) in pieces whose logits fit in memory."""
        size = max(_VALUES // self.supernet.space.base.vocab_size, 1)
        return [torch.split(tensor, size) for tensor in tensors]

    def _open(self) -> None:
        """Name the evaluation by its content, and read what the cache has of it."""
        digest = hashlib.sha256(self.supernet.fingerprint().encode())
        tasks = self.tasks
        for array in (tasks.tokens_NT, tasks.completion_NT, tasks.item_N, tasks.answers_I, tasks.task_I):
            digest.update(str(array.shape).encode() + np.ascontiguousarray(array).tobytes())
        digest.update(repr(tasks.names).encode() + self.text_NT.cpu().numpy().tobytes())
        self._evaluation = digest.hexdigest()
        if self.cache is None:
            return
        with closing(self._connect()) as connection:
            query = "SELECT genome, score FROM score WHERE evaluation = ?"
            try:
                rows = connection.execute(query, (self._evaluation,)).fetchall()
            except sqlite3.DatabaseError as error:
                raise DataError(
                    f"{self.cache} is damaged ({error}): remove it, scores are computed again"
                ) from None
        self._known = {genome: _score(json.loads(text)) for genome, text in rows}

    def _keep(self, found: Mapping[bytes, Score]) -> None:
        self._known |= found
        if self.cache is None:
            return
        rows = [(self._evaluation, key, json.dumps(asdict(score))) for key, score in found.items()]
        with closing(self._connect()) as connection, connection:
            connection.executemany("INSERT INTO score VALUES (?, ?, ?) ON CONFLICT DO NOTHING", rows)

    def _connect(self) -> sqlite3.Connection:
        assert self.cache is not None
        connection = sqlite3.connect(self.cache, timeout=60)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS score (evaluation TEXT, genome BLOB, score TEXT, "
                "PRIMARY KEY (evaluation, genome)) WITHOUT ROWID"
            )
        except sqlite3.DatabaseError as error:
            connection.close()
            raise DataError(
                f"{self.cache} is damaged ({error}): remove it, scores are computed again"
            ) from None
        return connection


def _score(content: Mapping[str, object]) -> Score:
    tasks = content["tasks"]
    assert isinstance(tasks, dict)
    rest = {key: value for key, value in content.items() if key != "tasks"}
    return Score(tasks={name: TaskScore(**score) for name, score in tasks.items()}, **rest)  # type: ignore[arg-type]
