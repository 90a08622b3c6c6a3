"""Scores of supernet paths: against the definitions, alone and together, kept; proxies, importance, folders."""

from __future__ import annotations

import sqlite3
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hwsearch.errors import DataError, InputError, OutputError
from hwsearch.surrogate.candidate import CandidateTraining
from hwsearch.surrogate.importance import load_sweep
from hwsearch.surrogate.layer_scores import layer_scores, linear_choice
from hwsearch.surrogate.proxy import ProxyJob, proxy_recipe, proxy_training, run_proxy, rungs
from hwsearch.surrogate.scoring import Score, Scorer
from hwsearch.surrogate.space_json import space_content, space_from_content
from hwsearch.surrogate.supernet_folder import SupernetFolder
from hwsearch.surrogate.supernet_settings import SupernetSettings
from hwsearch.surrogate.training import Interrupted
from tests.surrogate.tiny_supernet import (
    DELTA,
    FULL,
    NONE,
    RECIPE,
    WINDOW,
    space,
    supernet,
    teacher,
    write_task_items,
    write_text,
)

SETTINGS = SupernetSettings(recipe=RECIPE, batch=4, length=24)


@pytest.fixture
def folder(tmp_path: Path) -> SupernetFolder:
    """A supernet folder that is trained."""
    found = begun(tmp_path)
    found.train()
    return found


def begun(tmp_path: Path, **changes: object) -> SupernetFolder:
    checkpoint = teacher(tmp_path / "teacher")
    found = SupernetFolder(tmp_path / "supernet")
    found.create(
        checkpoint=checkpoint,
        space=space(checkpoint),
        sources=[write_text(tmp_path / "text.jsonl")],
        tasks=write_task_items(tmp_path / "items.jsonl"),
        settings=replace(SETTINGS, **changes),  # type: ignore[arg-type]
    )
    return found


def without_time(score: Score) -> Score:
    return replace(score, seconds=0.0)


def test_scores_are_what_they_are_called(tmp_path: Path) -> None:
    net = supernet(tmp_path / "teacher")
    folder = begun(tmp_path)
    scorer = folder.scorer(net, text_rows=3, rows=2)
    genome = [DELTA, NONE, WINDOW]
    found = scorer.scores(np.array([genome]))[0]
    text = torch.from_numpy(folder.corpus.validation[:3].astype("int64"))
    with torch.no_grad():
        own = net(text, genome=genome)[:, :-1].log_softmax(-1)
        wanted = net(text, genome=net.teacher_genome)[:, :-1].log_softmax(-1)
        tasks = torch.from_numpy(scorer.tasks.tokens_NT)
        before = net(tasks, genome=genome)[:, :-1].log_softmax(-1)
    assert found.kl == pytest.approx(float((wanted.exp() * (wanted - own)).sum(-1).mean()), rel=1e-4)
    nll = -own.gather(-1, text[:, 1:, None]).mean()
    assert found.perplexity == pytest.approx(float(nll.exp()), rel=1e-4)
    log_probs = np.zeros(tasks.shape)
    log_probs[:, 1:] = before.gather(-1, tasks[:, 1:, None]).squeeze(-1).numpy()
    hits = np.zeros(tasks.shape, dtype=bool)
    hits[:, 1:] = (before.argmax(-1) == tasks[:, 1:]).numpy()
    expected = scorer.tasks.score(log_probs, hits)
    assert found.tasks.keys() == expected.keys() == {"pairs", "choice"}
    for name, score in expected.items():
        assert found.tasks[name].accuracy == score.accuracy
        assert found.tasks[name].loss == pytest.approx(score.loss, rel=1e-4)
    errors = []
    hidden, passed = net.embed(text), net.teacher_pass(text)
    for index, choice in enumerate(genome):
        with torch.no_grad():
            hidden, mixed = net.layer(index, choice, hidden)
        wrong = passed.mixed[index] if mixed is None else mixed - passed.mixed[index]
        errors.append(float(wrong.square().sum() / passed.mixed[index].square().sum()))
    assert found.feature_mse == pytest.approx(np.mean(errors), rel=0.05)  # batches of unequal rows


def test_scores_do_not_depend_on_the_company(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = supernet(tmp_path / "teacher")
    folder = begun(tmp_path)
    genomes = net.space.sample(24, rng=np.random.default_rng(0))
    genomes = np.concatenate((genomes, [net.teacher_genome], genomes[:3]))
    monkeypatch.setattr("hwsearch.surrogate.scoring._GROUP", 10)
    counts: list[tuple[int, int]] = []
    whole = folder.scorer(net, items=3)
    inside = Scorer(net, whole.tasks, whole.text_NT, rows=5)
    together = inside.scores(genomes, on_score=lambda done, of: counts.append((done, of)))
    assert counts[-1] == (28, 28)
    for genome, score in zip(genomes, together, strict=True):
        alone = Scorer(net, whole.tasks, whole.text_NT, rows=5)
        assert without_time(alone.scores(genome[None])[0]) == without_time(score)
    ends = together[24]
    assert ends.kl == pytest.approx(0, abs=1e-6)
    assert ends.feature_mse == 0
    np.testing.assert_array_equal(
        inside.objective(genomes, metric="pairs.accuracy"), [-s.tasks["pairs"].accuracy for s in together]
    )
    with pytest.raises(InputError, match=r"did you mean pairs\.loss"):
        inside.objective(genomes[:1], metric="pair.loss")
    with pytest.raises(InputError, match="3 layers"):
        inside.scores(genomes[:, :2])


def test_a_prefix_is_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = supernet(tmp_path / "teacher")
    scorer = begun(tmp_path).scorer(net, rows=1000)
    runs = 0
    layer = net.layer

    def counted(*arguments: object, **options: object) -> object:
        nonlocal runs
        runs += 1
        return layer(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(net, "layer", counted)
    scorer.scores(np.array([[DELTA, DELTA, c] for c in (FULL, WINDOW, DELTA)] + [[FULL, FULL, DELTA]]))
    # Tasks: 3 + 3 + 1 + 1 layers; text: 3 of the teacher, whose first two serve one path, then 1 + 3 + 1 + 1.
    assert runs == 8 + 9


def test_scores_are_kept_by_content(folder: SupernetFolder) -> None:
    net = folder.supernet()
    genomes = net.space.sample(5, rng=np.random.default_rng(1))
    first = folder.scorer(net).scores(genomes)
    again = folder.scorer(folder.supernet())
    again._measure = None  # type: ignore[assignment, method-assign]
    assert again.scores(genomes[::-1]) == first[::-1]
    with torch.no_grad():
        next(iter(net.trainable.values())).add_(1.0)
    rows = folder.folder / "scores.db"
    folder.scorer(net).scores(genomes)
    with sqlite3.connect(rows) as connection:
        assert connection.execute("SELECT COUNT(DISTINCT evaluation) FROM score").fetchone() == (2,)
    rows.write_bytes(b"nonsense" * 100)
    with pytest.raises(DataError, match=r"scores\.db is damaged"):
        folder.scorer(net).scores(genomes)


def test_an_interrupted_folder_goes_on(tmp_path: Path) -> None:
    whole = begun(tmp_path)
    whole.train()
    (tmp_path / "other").mkdir()
    part = SupernetFolder(tmp_path / "other" / "supernet")
    checkpoint, text, items = tmp_path / "teacher", tmp_path / "text.jsonl", tmp_path / "items.jsonl"
    same = {"space": whole.space, "sources": [text], "tasks": items, "settings": SETTINGS}
    part.create(checkpoint=whole.checkpoint, **same)  # type: ignore[arg-type]
    asked = iter([False, True])
    with pytest.raises(Interrupted):
        part.train(stop=lambda: next(asked))
    assert not part.trained
    with pytest.raises(DataError, match="not trained to its end"):
        part.supernet()
    part.create(checkpoint=whole.checkpoint, **same)  # type: ignore[arg-type]
    done = part.train()
    assert [row["step"] for row in done.history] == [1, 2, 3, 1, 2, 3, 4]
    assert part.supernet().fingerprint() == whole.supernet().fingerprint()
    assert part.train() == done  # nothing left to do
    with pytest.raises(InputError, match="another settings"):
        part.create(checkpoint=whole.checkpoint, **{**same, "settings": replace(SETTINGS, batch=3)})  # type: ignore[arg-type]
    assert checkpoint.is_dir()


def test_a_changed_or_missing_teacher_is_refused(folder: SupernetFolder, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    (tmp_path / "teacher").rename(moved)
    with pytest.raises(DataError, match="say with --from"):
        folder.supernet()
    net = SupernetFolder(folder.folder, checkpoint=moved).supernet()
    assert net.num_layers == 3
    teacher(tmp_path / "teacher", rms_norm_eps=1e-6, initializer_range=0.3)
    with pytest.raises(DataError, match="its weights are others"):
        folder.supernet()
    with pytest.raises(OutputError, match="is not empty"):
        SupernetFolder(moved).create(
            checkpoint=SupernetFolder(folder.folder, checkpoint=moved).checkpoint,
            space=folder.space,
            sources=[tmp_path / "text.jsonl"],
            tasks=tmp_path / "items.jsonl",
            settings=SETTINGS,
        )


def test_spaces_survive_json(tmp_path: Path) -> None:
    rules = {
        "groups": {"softmax": ["full_attention", "sliding_window_attention"]},
        "ties": ["gated_delta_net"],
        "limits": [{"of": "softmax", "at_most": 2}, {"of": "none", "at_most": 1, "every": 2}],
        "forbidden": [["none", "none"]],
        "orders": [["gated_delta_net", "none"]],
        "layers": [{"at": [-1], "allow": ["softmax"]}],
    }
    whole = space(teacher(tmp_path / "teacher"), **rules)
    assert space_from_content(space_content(whole)) == whole


def test_importance_in_both_directions(folder: SupernetFolder, tmp_path: Path) -> None:
    net = folder.supernet()
    scorer = folder.scorer(net)
    assert linear_choice(net.space) == DELTA
    found = layer_scores(net, scorer, linear=DELTA)
    by_hand = scorer.scores(np.array([[DELTA, FULL, DELTA], [FULL, DELTA, FULL]]))
    assert (found.kept[1], found.replaced[1]) == tuple(by_hand)
    kept, replaced = found.drops("kl")
    assert kept[1] == pytest.approx(found.linear.kl - by_hand[0].kl)
    assert replaced[1] == pytest.approx(by_hand[1].kl - found.teacher.kl)
    assert (replaced > 0).all()
    (tmp_path / "sweep.csv").write_text(found.csv())
    sweep = load_sweep(str(tmp_path / "sweep.csv"), base="any", num_layers=3)
    assert sweep.tasks == ("pairs", "choice")
    drop = found.teacher.tasks["pairs"].accuracy - found.replaced[2].tasks["pairs"].accuracy
    assert sweep.drops[2, 0] == pytest.approx(100 * drop)
    assert sweep.layer_error[2, 0] == pytest.approx(
        100 * found.replaced[2].tasks["pairs"].standard_error, rel=1e-4
    )
    with pytest.raises(InputError, match="jet_block"):
        linear_choice(net.space, "jet_block")


def test_rungs() -> None:
    assert rungs(90, candidates=9, halving=3) == ((9, 10), (3, 30), (1, 90))
    assert rungs(90, candidates=9, halving=1) == ((9, 90),)
    assert rungs(3, candidates=5, halving=2) == ((5, 1), (3, 1), (2, 1), (1, 3))


def _jobs(folder: SupernetFolder, output: Path, steps: int) -> list[ProxyJob]:
    recipe = proxy_recipe(RECIPE, steps=steps)
    genomes = [(DELTA, FULL, DELTA), (FULL, DELTA, DELTA), (DELTA, DELTA, FULL), (DELTA, WINDOW, DELTA)]
    training = CandidateTraining(supernet=folder.folder, recipe=recipe)
    return [ProxyJob(training=training, genome=genome, steps=steps, output=output) for genome in genomes]


def test_halving_goes_on_with_the_best(folder: SupernetFolder, tmp_path: Path) -> None:
    pool: Executor
    with ThreadPoolExecutor(1) as pool:
        found = proxy_training(_jobs(folder, tmp_path / "proxies", 8), executor=pool, metric="kl", halving=2)
    assert sorted(result.steps for result in found.values()) == [2, 2, 4, 8]
    last = next(result for result in found.values() if result.steps == 8)
    assert last.tokens == 8 * 4 * 24
    # Halted at two rungs and continued, it is where one training takes it.
    job = next(job for job in _jobs(folder, tmp_path / "whole", 8) if job.genome == last.genome)
    whole = run_proxy(job)
    assert without_time(whole.score) == without_time(last.score)
    folders = [SupernetFolder(last.folder), SupernetFolder(whole.folder)]
    assert folders[0].supernet().fingerprint() == folders[1].supernet().fingerprint()
    net = folder.supernet()
    assert folders[0].supernet().fingerprint() != net.only(last.genome).fingerprint()
    for name, tensor in folders[0].supernet().teacher.state_dict().items():
        assert torch.equal(tensor, net.teacher.state_dict()[name]), name


def test_a_scorer_takes_any_tasks(tmp_path: Path) -> None:
    net = supernet(tmp_path / "teacher")
    folder = begun(tmp_path)
    few = folder.scorer(net, items=2)
    assert isinstance(few, Scorer)
    assert {score.items for score in few.scores(net.teacher_genome[None])[0].tasks.values()} == {2}
