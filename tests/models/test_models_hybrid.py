"""The hybrid model: cache against full forward, padding, generation, training, saving."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from hwsearch.errors import InputError
from hwsearch.models.configuration import HybridConfig
from hwsearch.models.hybrid import HybridForCausalLM
from hwsearch.searchspace.mixers import MixerSpec, NoMixer
from tests.models import tiny

CLOSE = 1e-5  # of the largest logit, in fp32
STACKS: dict[str, tuple[MixerSpec, ...]] = {
    "full": (tiny.FULL, tiny.FULL),
    "window": (tiny.WINDOW, tiny.WINDOW.replace(window=1), tiny.WINDOW.replace(window=64)),
    "softmax and none": (NoMixer(), tiny.FULL, NoMixer(), tiny.WINDOW),
    "sinks and sigmoid": (tiny.FULL.replace(sinks=True), tiny.WINDOW.replace(scores="sigmoid")),
    "shared keys": (tiny.WINDOW, tiny.FULL, tiny.SHARED, NoMixer(), tiny.SHARED_WINDOW, tiny.SHARED),
    **{f"{spec.kind} and full": (spec, tiny.FULL) for spec in tiny.LINEAR},
    "linear only": tiny.LINEAR[:3],
    "everything": (tiny.WINDOW, *tiny.LINEAR, NoMixer(), tiny.FULL),
}


@pytest.fixture(params=sorted(STACKS))
def model(request: pytest.FixtureRequest) -> HybridForCausalLM:
    return tiny.model(*STACKS[request.param])


def in_pieces(model: HybridForCausalLM, ids: Tensor, lengths: list[int], **arguments: Any) -> Tensor:
    cache = model.new_cache()
    parts = []
    for piece in tiny.pieces(ids.shape[1], lengths):
        masks = {name: mask[:, : piece.stop] for name, mask in arguments.items()}
        parts.append(tiny.logits(model, ids[:, piece], past_key_values=cache, **masks))
    assert cache.get_seq_length() == ids.shape[1]
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("lengths", [[1] * 23, [23], [7, 1, 1, 9, 5], [22, 1]])
def test_pieces_with_a_cache_equal_one_forward(model: HybridForCausalLM, lengths: list[int]) -> None:
    ids = tiny.tokens(3, 23)
    whole = tiny.logits(model, ids, use_cache=False)
    assert tiny.relative_difference(in_pieces(model, ids, lengths), whole) < CLOSE
    assert whole.std() > 0.1, "logits too small for the comparison to mean anything"


@pytest.mark.parametrize("lengths", [[23], [7, 1, 1, 9, 5], [1] * 23])
def test_left_padding_changes_nothing(model: HybridForCausalLM, lengths: list[int]) -> None:
    ids, padding = tiny.tokens(3, 23), (0, 4, 9)
    mask = torch.ones_like(ids)
    for row, padded in enumerate(padding):
        mask[row, :padded] = 0
    padded_at_once = tiny.logits(model, ids, attention_mask=mask, use_cache=False)
    with_cache = in_pieces(model, ids, lengths, attention_mask=mask)
    for row, padded in enumerate(padding):
        alone = tiny.logits(model, ids[row : row + 1, padded:], use_cache=False)[0]
        assert tiny.relative_difference(padded_at_once[row, padded:], alone) < CLOSE
        assert tiny.relative_difference(with_cache[row, padded:], alone) < CLOSE


def test_right_padding_is_harmless_without_a_cache_and_refused_with_one(model: HybridForCausalLM) -> None:
    ids = tiny.tokens(2, 9)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    padded = tiny.logits(model, ids, attention_mask=mask, use_cache=False)
    alone = tiny.logits(model, ids[1:, :6], use_cache=False)
    assert tiny.relative_difference(padded[1, :6], alone[0]) < CLOSE
    assert torch.equal(tiny.logits(model, ids, attention_mask=mask), padded)
    with pytest.raises(InputError, match="pad on the left"):
        model(ids, attention_mask=mask, use_cache=True)


@pytest.mark.parametrize(
    "how", [{}, {"num_beams": 3}, {"prefill_chunk_size": 4}, {"use_cache": False}], ids=str
)
def test_generation_of_a_padded_batch_equals_each_prompt_alone(
    model: HybridForCausalLM, how: dict[str, Any]
) -> None:
    ids = tiny.tokens(2, 11)
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    options = {"max_new_tokens": 8, "do_sample": False, **how}
    together = model.generate(ids, attention_mask=mask, **options)[:, 11:]
    assert torch.equal(together[0], model.generate(ids[:1], **options)[0, 11:])
    assert torch.equal(together[1], model.generate(ids[1:, 5:], **options)[0, 6:])


def test_sampling_depends_on_the_seed_only(model: HybridForCausalLM) -> None:
    ids = tiny.tokens(2, 5)
    drawn = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        drawn.append(model.generate(ids, max_new_tokens=12, do_sample=True))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_generation_goes_on_from_a_cache(model: HybridForCausalLM) -> None:
    ids = tiny.tokens(1, 6)
    options = {"do_sample": False, "return_dict_in_generate": True}
    first = model.generate(ids, max_new_tokens=4, past_key_values=model.new_cache(), **options)
    more = model.generate(first.sequences, max_new_tokens=4, past_key_values=first.past_key_values, **options)
    assert torch.equal(more.sequences, model.generate(ids, max_new_tokens=8, do_sample=False))


def test_generation_starts_from_embeddings_as_from_tokens(model: HybridForCausalLM) -> None:
    ids = tiny.tokens(1, 6)
    options = {"max_new_tokens": 5, "do_sample": False}
    embedded = model.generate(inputs_embeds=model.model.embed_tokens(ids), **options)
    assert torch.equal(embedded, model.generate(ids, **options)[:, 6:])


def test_backends_are_asked_of_layers_and_never_replaced() -> None:
    model = tiny.model(tiny.FULL, NoMixer(), tiny.WINDOW)
    ids = tiny.tokens(2, 9)
    expected = tiny.logits(model, ids)
    model.set_backend("reference", layers=[2])
    assert tiny.relative_difference(tiny.logits(model, ids), expected) < CLOSE
    mixers = model.model.mixers
    assert [mixer and mixer.kernel_used for mixer in mixers] == ["torch", None, "reference"]
    model.set_backend("triton")
    with pytest.raises(InputError, match="triton"):
        model(ids)


def test_a_window_bounds_the_cache() -> None:
    model = tiny.model(tiny.WINDOW, NoMixer())
    cache = model.new_cache()
    for _ in range(4):
        tiny.logits(model, tiny.tokens(2, 50), past_key_values=cache)
    state_bytes = cache.bytes
    assert (
        state_bytes == 2 * (2 * 4 * 2 * 16 * 4) + 2 * 8
    )  # batch 2: keys and values of 4 tokens, one counter
    cache.reset()
    assert cache.bytes == 0


def test_cache_follows_the_sequences_it_is_told_to_keep(model: HybridForCausalLM) -> None:
    ids = tiny.tokens(3, 9)
    cache = model.new_cache()
    tiny.logits(model, ids[:, :8], past_key_values=cache)
    cache.batch_select_indices(torch.tensor([2, 0]))
    cache.batch_repeat_interleave(2)
    kept = ids[[2, 2, 0, 0]]
    after = tiny.logits(model, kept[:, 8:], past_key_values=cache)
    assert tiny.relative_difference(after, tiny.logits(model, kept)[:, 8:]) < CLOSE


def test_gradient_checkpointing_gives_the_same_gradients(model: HybridForCausalLM) -> None:
    model.train()
    ids = tiny.tokens(2, 12)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable()
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(list(model.parameters()))
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_those_of_the_closed_form(tied: bool) -> None:
    stack = (tiny.FULL, tiny.WINDOW, NoMixer())
    model = tiny.model(*stack, tie_word_embeddings=tied)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert counted == tiny.architecture(*stack, tie_word_embeddings=tied).parameters
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


@pytest.mark.parametrize("tied", [True, False])
def test_saved_and_loaded_it_is_the_same(tmp_path: Path, tied: bool) -> None:
    model = tiny.model(tiny.FULL, tiny.WINDOW, NoMixer(), tie_word_embeddings=tied)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = tiny.tokens(2, 9)
    assert torch.equal(tiny.logits(loaded, ids), tiny.logits(model, ids))
    assert loaded.config.spec == model.config.spec
    assert AutoConfig.from_pretrained(tmp_path).layer_types == ["full_attention", "sliding_attention", "moe"]


def test_a_saved_folder_needs_only_an_installed_hwsearch(tmp_path: Path) -> None:
    """In a process that has not imported hwsearch, through the shim; and saving again keeps it so."""
    model = tiny.model(tiny.FULL, *tiny.LINEAR, NoMixer())
    model.save_pretrained(tmp_path / "one")
    script = (
        "import sys, torch; from transformers import AutoModelForCausalLM\n"
        "assert 'hwsearch' not in sys.modules\n"
        f"m = AutoModelForCausalLM.from_pretrained({str(tmp_path / 'one')!r}, trust_remote_code=True)\n"
        f"m.save_pretrained({str(tmp_path / 'two')!r})\n"
        "print(m.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=5, do_sample=False).tolist())"
    )
    environment = {
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**environment, "PYTHONPATH": root, "PATH": ""},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=5, do_sample=False).tolist()
    assert done.stdout.strip().endswith(str(expected))
    one, two = ({file.name for file in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two
    assert "modeling_hwsearch.py" in two
    assert (tmp_path / "one" / "config.json").read_text() == (tmp_path / "two" / "config.json").read_text()


def test_resized_embeddings_survive_saving(tmp_path: Path) -> None:
    model = tiny.model(tiny.FULL)
    model.resize_token_embeddings(tiny.VOCABULARY + 3)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = tiny.tokens(1, 5)
    assert tiny.logits(loaded, ids).shape[-1] == tiny.VOCABULARY + 3
    assert torch.equal(tiny.logits(loaded, ids), tiny.logits(model, ids))


def test_hidden_states_are_the_layers_outputs() -> None:
    model = tiny.model(tiny.FULL, NoMixer())
    ids = tiny.tokens(1, 5)
    with torch.no_grad():
        out = model(ids, output_hidden_states=True)
        assert torch.equal(out.hidden_states[0], model.model.embed_tokens(ids))
        last = model.model.norm(model.model.layers[1](out.hidden_states[1])[0])
    assert len(out.hidden_states) == 3
    assert torch.equal(out.hidden_states[2], last)
    assert torch.equal(out.logits, model.lm_head(last))


def test_logits_to_keep_and_tuples() -> None:
    model = tiny.model(tiny.FULL)
    ids = tiny.tokens(2, 5)
    whole = tiny.logits(model, ids)
    assert torch.allclose(tiny.logits(model, ids, logits_to_keep=2), whole[:, -2:], atol=1e-6)
    assert torch.equal(model(ids, return_dict=False)[0], whole)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"past_key_values": DynamicCache()}, "DynamicCache; leave it out, or pass a HybridCache"),
        ({"attention_mask": torch.ones(2, 4)}, r"attention_mask has the shape \(2, 4\)"),
        ({"attention_mask": torch.ones(2, 1, 5, 5)}, "attention_mask has the shape"),
        ({"output_attentions": True}, "no attention weights"),
        ({"inputs_embeds": torch.zeros(2, 5, 32)}, "exactly one of input_ids and inputs_embeds"),
    ],
    ids=["cache", "short mask", "4d mask", "attentions", "both inputs"],
)
def test_what_it_cannot_do_is_refused(arguments: dict[str, Any], told: str) -> None:
    model = tiny.model(tiny.FULL)
    with pytest.raises(InputError, match=told):
        model(tiny.tokens(2, 5), **arguments)


def test_generation_with_another_cache_is_refused() -> None:
    model = tiny.model(tiny.FULL)
    with pytest.raises(InputError, match="cache_implementation='static'"):
        model.generate(tiny.tokens(1, 3), max_new_tokens=2, cache_implementation="static")
    with pytest.raises(InputError, match="holds no architecture"):
        HybridForCausalLM(HybridConfig())
