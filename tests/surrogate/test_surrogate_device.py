"""Everything is computed on the device asked for: on one that has no values, and by what supernets are moved to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hwsearch.errors import InputError
from hwsearch.pipeline.linear_blocks import BLOCKS, block_named
from hwsearch.searchspace.architecture import LayerSpec
from hwsearch.searchspace.space import SearchSpace
from hwsearch.surrogate.candidate import CandidateTraining
from hwsearch.surrogate.distil import LossWeights, local_losses, path_losses
from hwsearch.surrogate.processes import device_named
from hwsearch.surrogate.proxy import ProxyJob, proxy_recipe, run_proxy
from hwsearch.surrogate.supernet import Supernet
from hwsearch.surrogate.supernet_folder import SupernetFolder
from hwsearch.surrogate.supernet_settings import SupernetSettings
from tests.surrogate.tiny_supernet import (
    DELTA,
    RECIPE,
    WINDOW,
    batch,
    space,
    teacher,
    write_task_items,
    write_text,
)


def test_the_losses_of_every_mixer_make_no_tensor_on_another_device(tmp_path: Path) -> None:
    """On `meta`, an operation with a tensor of the CPU is an error."""
    checkpoint = teacher(tmp_path / "teacher")
    base = checkpoint.base
    blocks = tuple(LayerSpec(mixer=block_named(kind, base), ffn=base.ffn) for kind in BLOCKS)
    choices = (*space(checkpoint).choices, *blocks)
    whole = SearchSpace(base=base, choices=choices, allowed=(tuple(range(len(choices))),) * base.num_layers)
    net = Supernet.of(checkpoint, whole).to("meta")
    ids = batch(0).to("meta")
    passed = net.teacher_pass(ids)
    for layer, choice, loss in local_losses(net, passed):
        loss.backward()  # type: ignore[no-untyped-call]
        assert loss.device.type == "meta", (layer, choice)
    assert all(parameter.grad is not None for parameter in net.trainable.values())
    for choice in range(1, len(whole.choices)):
        for recompute in (False, True):
            path = [0, choice, choice]
            losses = path_losses(net, path, ids, passed, LossWeights(task=0.5), recompute=recompute)
            if losses is not None:
                losses.total.backward()  # type: ignore[no-untyped-call]
                assert losses.kl.device.type == "meta"


def test_proxies_and_supernets_go_where_they_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = teacher(tmp_path / "teacher")
    folder = SupernetFolder(tmp_path / "supernet")
    folder.create(
        checkpoint=checkpoint,
        space=space(checkpoint),
        sources=[write_text(tmp_path / "text.jsonl")],
        tasks=write_task_items(tmp_path / "items.jsonl"),
        settings=SupernetSettings(recipe=RECIPE, batch=4, length=24),
    )
    asked: list[object] = []
    to = Supernet.to

    def recorded(net: Supernet, device: object) -> Supernet:
        asked.append(device)
        return to(net, device)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(Supernet, "to", recorded)
    folder.train(device="cpu:0")
    training = CandidateTraining(
        supernet=folder.folder, recipe=proxy_recipe(RECIPE, steps=1), items=2, device="cpu:0"
    )
    run_proxy(ProxyJob(training=training, genome=(DELTA, WINDOW, DELTA), steps=1, output=tmp_path / "out"))
    assert asked == ["cpu:0"] * 2


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_named("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="sees no GPU"):
        device_named("cuda:1")
    with pytest.raises(InputError, match="unknown device 'tpx'"):
        device_named("tpx")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_named("cuda:1") == torch.device("cuda", 1)
