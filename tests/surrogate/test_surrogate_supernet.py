"""The supernet: exactness of the teacher's path, what is frozen, what is trained, resuming."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hwsearch.errors import DataError, InputError
from hwsearch.models.convert import build_model
from hwsearch.models.hybrid import HybridForCausalLM
from hwsearch.searchspace.spacefile import SpaceSpec
from hwsearch.surrogate.distil import LossWeights, local_losses, path_losses
from hwsearch.surrogate.optimiser import Optimiser, learning_rate_at
from hwsearch.surrogate.processes import is_first, joined
from hwsearch.surrogate.sampling import path_sampler
from hwsearch.surrogate.supernet import Supernet
from hwsearch.surrogate.training import Interrupted, Recipe, Stage, train
from tests.models.tiny import largest_difference, logits, save_checkpoint, tokens
from tests.surrogate.tiny_supernet import (
    DELTA,
    FULL,
    MIXERS,
    NONE,
    RECIPE,
    WINDOW,
    batch,
    space,
    supernet,
    teacher,
)


def _frozen(net: Supernet) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in net.teacher.state_dict().items()}


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
def test_all_full_is_the_teacher_before_and_after_training(tmp_path: Path, family: str) -> None:
    original = save_checkpoint(tmp_path / family, family)
    checkpoint = teacher(tmp_path / family, family)
    net = Supernet.of(checkpoint, space(checkpoint))
    ids = tokens(3, 41)
    expected = logits(original, ids)
    before, started = _frozen(net), {name: p.detach().clone() for name, p in net.trainable.items()}
    assert torch.equal(net(ids, genome=net.teacher_genome), expected)
    train(net, batch, RECIPE)
    assert torch.equal(net(ids, genome=net.teacher_genome), expected)
    for name, tensor in net.teacher.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    moved = [name for name, p in net.trainable.items() if not torch.equal(p, started[name])]
    assert len(moved) == len(started)


def test_training_brings_paths_nearer_to_the_teacher(tmp_path: Path) -> None:
    net = supernet(tmp_path / "teacher")
    ids = batch(1000)
    path = [DELTA, WINDOW, DELTA]

    def gaps() -> tuple[float, float]:
        passed = net.teacher_pass(ids)
        local = sum(loss.item() for _, _, loss in local_losses(net, passed))
        losses = path_losses(net, path, ids, passed, LossWeights())
        assert losses is not None
        return local, float(losses.kl)

    before = gaps()
    train(net, batch, Recipe(a=Stage(steps=40, learning_rate=5e-3), b=Stage(steps=0, learning_rate=1e-3)))
    aligned = gaps()
    # A random attention over random tokens cannot be imitated well: only the logits get nearer, and not by much.
    end_to_end = Stage(steps=200, learning_rate=5e-3)
    nothing = Stage(steps=0, learning_rate=1e-3)
    train(net, batch, Recipe(a=nothing, b=end_to_end, losses=LossWeights(feature=0.0)))
    trained = gaps()
    assert aligned[0] < 0.9 * before[0]
    assert aligned[1] < before[1]
    assert trained[1] < 0.9 * aligned[1]


def test_a_path_without_the_teacher_s_last_layers_gets_no_help_from_it(tmp_path: Path) -> None:
    """The losses start from the teacher's stream where the path first differs, and from there on are the path's own."""
    net = supernet(tmp_path / "teacher")
    ids, path = batch(0), [FULL, DELTA, FULL]
    losses = path_losses(net, path, ids, net.teacher_pass(ids), LossWeights(feature=0, kl=1, task=1))
    assert losses is not None
    with torch.no_grad():
        own = net(ids, genome=path)[:, :-1].log_softmax(-1)
        wanted = net(ids, genome=net.teacher_genome)[:, :-1].log_softmax(-1)
    kl = (wanted.exp() * (wanted - own)).sum(-1).mean()
    task = -own.gather(-1, ids[:, 1:, None]).mean()
    torch.testing.assert_close(losses.kl, kl)
    torch.testing.assert_close(losses.task, task)
    for nothing in (net.teacher_genome, [FULL, NONE, FULL]):
        assert path_losses(net, nothing, ids, net.teacher_pass(ids), LossWeights()) is None


def test_recomputing_layers_gives_the_same_gradients(tmp_path: Path) -> None:
    net = supernet(tmp_path / "teacher")
    ids, path, found = batch(0), [DELTA, NONE, WINDOW], []
    for recompute in (False, True):
        losses = path_losses(
            net, path, ids, net.teacher_pass(ids), LossWeights(task=0.5), recompute=recompute
        )
        assert losses is not None
        net.zero_grad()
        losses.total.backward()  # type: ignore[no-untyped-call]
        found.append({n: p.grad.clone() for n, p in net.trainable.items() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert {name.rsplit(".", 1)[0].split(".")[1] for name in found[0]} == {str(DELTA), str(WINDOW)}
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)


def test_pieces_of_logits_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = supernet(tmp_path / "teacher")
    ids, path, found = batch(0), [DELTA] * 3, []
    for values in (2**25, 97 * 7):
        monkeypatch.setattr("hwsearch.surrogate.distil._VALUES", values)
        losses = path_losses(net, path, ids, net.teacher_pass(ids), LossWeights(task=0.5))
        assert losses is not None
        net.zero_grad()
        losses.total.backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad.clone() for p in net.trainable.values() if p.grad is not None]
        found.append((losses.total.detach(), gradients))
    torch.testing.assert_close(found[0], found[1])


def test_bf16_trains_through_fp32_masters(tmp_path: Path) -> None:
    net = supernet(tmp_path / "teacher", dtype=torch.bfloat16)
    before = _frozen(net)
    assert {p.dtype for p in net.parameters()} == {torch.bfloat16}
    name, parameter = next((n, p) for n, p in net.trainable.items() if n.endswith("q_proj.weight"))
    optimiser = Optimiser({name: parameter}, weight_decay=0.0)
    for _ in range(20):
        parameter.grad = torch.ones_like(parameter)
        optimiser.step(1e-5, clip=1e9)  # far less than the distance of neighbouring bf16 numbers
    master = optimiser.masters[name]
    assert master.dtype == torch.float32
    assert torch.equal(parameter, master.bfloat16())
    assert (
        float((master - supernet(tmp_path / "again", dtype=torch.bfloat16).trainable[name].float()).mean())
        < -1e-4
    )
    train(net, batch, RECIPE)
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.teacher.state_dict().items())


def test_alternatives_start_as_a_build_starts_them(tmp_path: Path) -> None:
    net = supernet(tmp_path / "teacher")
    genome = [WINDOW, DELTA, NONE]
    built, origins = build_model(net.space.decode(genome, name="x"), checkpoint=teacher(tmp_path / "teacher"))
    ours = net.model_of(genome).state_dict()
    assert ours.keys() == built.state_dict().keys()
    for origin in origins:
        for name in (*origin.inherited, *origin.mapped):
            key = f"model.layers.{origin.index}.{name}"
            assert torch.equal(ours[key], built.state_dict()[key]), key


def test_a_path_as_a_model_of_its_own(tmp_path: Path) -> None:
    net = supernet(tmp_path / "teacher")
    train(net, batch, RECIPE)
    genome, ids = [DELTA, NONE, WINDOW], tokens(2, 23)
    model = net.model_of(genome)
    assert torch.equal(logits(model, ids), net(ids, genome=genome))
    model.save_pretrained(tmp_path / "model")
    again = HybridForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.equal(logits(again, ids), net(ids, genome=genome))
    with torch.no_grad():  # copies: the supernet stays as it was
        for parameter in model.parameters():
            parameter.zero_()
    assert float(net(ids, genome=genome).abs().max()) > 0


def test_only_keeps_a_path_and_leaves_the_supernet_alone(tmp_path: Path) -> None:
    net = supernet(tmp_path / "teacher")
    genome, ids = [DELTA, FULL, WINDOW], tokens(2, 23)
    before = net(ids, genome=genome)
    single = net.only(genome)
    assert torch.equal(single(ids, genome=genome), before)
    assert single.space.size == 1
    train(single, batch, Recipe(a=Stage(steps=0, learning_rate=1e-3), b=Stage(steps=3, learning_rate=1e-2)))
    assert torch.equal(net(ids, genome=genome), before)
    assert largest_difference(single(ids, genome=genome), before) > 1e-3
    with pytest.raises(InputError, match="no mixer for choice"):
        single(ids, genome=[WINDOW, FULL, WINDOW])


def test_a_trained_softmax_path_stands_beside_the_teacher(tmp_path: Path) -> None:
    net = supernet(tmp_path / "teacher", train_attention=True)
    ids = tokens(2, 23)
    before = _frozen(net)
    full = net(ids, genome=net.teacher_genome)
    train(net, batch, Recipe(a=Stage(steps=0, learning_rate=1e-3), b=Stage(steps=12, learning_rate=1e-2)))
    assert largest_difference(net(ids, genome=net.teacher_genome), full) > 1e-4
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.teacher.state_dict().items())


def test_unfit_spaces_are_refused(tmp_path: Path) -> None:
    checkpoint = teacher(tmp_path / "teacher")
    other = teacher(tmp_path / "other", hidden_size=48)
    with pytest.raises(InputError, match="dimensions are not those"):
        Supernet.of(checkpoint, space(other))
    with pytest.raises(InputError, match="leave `ffn` out"):
        Supernet.of(checkpoint, space(checkpoint, ffn={"share": [1.0, 0.5]}))
    reading = SpaceSpec.model_validate({"mixers": [*MIXERS, {"kind": "shared_kv_attention"}]})
    with pytest.raises(InputError, match="shared_kv_attention reads what another layer's choice left"):
        Supernet.of(checkpoint, reading.build(checkpoint.base))
    delta = space(checkpoint).restrict([DELTA, NONE])
    with pytest.raises(InputError, match="add full_attention"):
        Supernet.of(checkpoint, delta)


@pytest.mark.parametrize("stop_after", [1, 3, 5])
def test_an_interrupted_training_ends_as_if_it_had_not_been(tmp_path: Path, stop_after: int) -> None:
    whole = supernet(tmp_path / "teacher")
    train(whole, batch, RECIPE)
    folder = tmp_path / "state"
    folder.mkdir()
    first = supernet(tmp_path / "teacher")
    asked = iter([False] * (stop_after - 1) + [True])
    with pytest.raises(Interrupted):
        train(first, batch, RECIPE, folder=folder, stop=lambda: next(asked))
    second = supernet(tmp_path / "teacher")
    done = train(second, batch, RECIPE, folder=folder)
    assert [row["step"] for row in done.history] == [1, 2, 3, 1, 2, 3, 4]
    for name, parameter in whole.trainable.items():
        assert torch.equal(second.trainable[name], parameter), name
    with pytest.raises(DataError, match="another recipe"):
        train(second, batch, Recipe(), folder=folder)


def test_balanced_paths_use_every_choice_equally_often(tmp_path: Path) -> None:
    rules = {"layers": [{"at": [0], "allow": ["full_attention", "none"]}]}
    whole = space(teacher(tmp_path / "teacher"), **rules)
    sample = path_sampler(whole, "balanced", seed=3)
    genomes = sample(0, 24)
    for layer, options in enumerate(whole.allowed):
        counts = np.bincount(genomes[:, layer], minlength=4)
        assert all(counts[option] == 24 / len(options) for option in options)
    assert np.array_equal(sample(5, 4), genomes[5:9])
    assert len({tuple(genome) for genome in genomes.tolist()}) > 12


def test_feasible_paths_keep_the_rules(tmp_path: Path) -> None:
    rules = {"limits": [{"of": "full_attention", "at_most": 1}], "ties": ["gated_delta_net"]}
    whole = space(teacher(tmp_path / "teacher"), **rules)
    genomes = path_sampler(whole, "feasible", seed=0)(0, 50)
    assert whole.valid(genomes).all()
    assert not np.array_equal(genomes, path_sampler(whole, "feasible", seed=1)(0, 50))
    assert not whole.valid(path_sampler(whole, "uniform", seed=0)(0, 50)).all()


def test_learning_rate_rises_and_falls() -> None:
    rates = [learning_rate_at(i, steps=20, peak=1.0, warmup=0.2, final=0.1) for i in range(20)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert all(a > b for a, b in itertools.pairwise(rates[4:]))
    assert 0.1 <= rates[-1] < 0.12


_SECOND_PROCESS = """
import sys
from pathlib import Path
from hwsearch.surrogate.processes import is_first, joined
from hwsearch.surrogate.training import train
from tests.surrogate.tiny_supernet import RECIPE, batch, supernet
net = supernet(Path(sys.argv[1]))
with joined("cpu"):
    assert not is_first()
    train(net, batch, RECIPE)
"""


def test_two_processes_train_as_one_with_the_batches_of_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20000 + os.getpid() % 20000), "WORLD_SIZE": "2"}
    command = [sys.executable, "-c", _SECOND_PROCESS, str(tmp_path / "second")]
    other = subprocess.Popen(command, env=os.environ | about | {"RANK": "1"}, cwd=Path(__file__).parents[2])
    for name, value in {**about, "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    net = supernet(tmp_path / "first")
    with joined("cpu"):
        assert is_first()
        done = train(net, batch, RECIPE)
    assert other.wait(timeout=120) == 0
    alone = supernet(tmp_path / "alone")
    expected = train(alone, batch, replace(RECIPE, accumulate=2))
    assert done.tokens == expected.tokens
    for name, parameter in alone.trainable.items():
        torch.testing.assert_close(net.trainable[name].detach(), parameter.detach(), atol=1e-4, rtol=1e-3)
