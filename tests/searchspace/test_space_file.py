"""Space files: the three formats agree, presets round-trip, the schema fits, and mistakes name their place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from hwsearch.errors import DataError, InputError
from hwsearch.searchspace.bases import BASES
from hwsearch.searchspace.mixers import GatedDeltaNet, JetBlock, Mamba2
from hwsearch.searchspace.presets import PRESETS, preset_named, space_named
from hwsearch.searchspace.spacefile import SpaceSpec, space_schema
from hwsearch.searchspace.spaceloader import load_space

BASE = BASES["Qwen2.5-1.5B"]
YAML = """\
description: test
mixers:
  - kind: full_attention
    num_kv_heads: [1, 2]
  - {kind: jet_block, num_heads: [8, 12], head_k_dim: [96, 128], state_size: 294912}
  - kind: none
ffn: {share: [1, 0.5]}
groups: {cheap: [jet_block, none]}
ties: [jet_block]
limits:
  - {of: full_attention, at_most: 8}
  - {of: full_attention, at_least: 1, every: 7}
forbidden: [[none, none]]
orders: [[none, full_attention]]
layers:
  - {at: [0, -1], allow: [full_attention]}
"""
TOML = """\
description = "test"
ties = ["jet_block"]
forbidden = [["none", "none"]]
orders = [["none", "full_attention"]]
ffn = {share = [1.0, 0.5]}
groups = {cheap = ["jet_block", "none"]}
layers = [{at = [0, -1], allow = ["full_attention"]}]
limits = [{of = "full_attention", at_most = 8}, {of = "full_attention", at_least = 1, every = 7}]
[[mixers]]
kind = "full_attention"
num_kv_heads = [1, 2]
[[mixers]]
kind = "jet_block"
num_heads = [8, 12]
head_k_dim = [96, 128]
state_size = 294912
[[mixers]]
kind = "none"
"""


def written(tmp_path: Path, text: str, suffix: str = ".yaml") -> Path:
    path = tmp_path / f"space{suffix}"
    path.write_text(text)
    return path


def test_the_three_formats_agree(tmp_path: Path) -> None:
    spec = load_space(written(tmp_path, YAML))
    assert load_space(written(tmp_path, TOML, ".toml")) == spec
    assert load_space(written(tmp_path, json.dumps(spec.to_content()), ".json")) == spec
    space = space_named(str(tmp_path / "space.toml"), BASE)
    jets = [choice.mixer for choice in space.choices if isinstance(choice.mixer, JetBlock)]
    assert {(jet.num_heads, jet.head_k_dim, jet.head_v_dim) for jet in jets} == {
        (8, 96, 384), (8, 128, 288), (12, 96, 256), (12, 128, 192),
    }  # fmt: skip
    assert {choice.ffn.intermediate_size for choice in space.choices} == {8960, 4480}
    for genome in space.paths.unrank(0), space.paths.unrank(space.size - 1):
        kinds = [space.kinds[choice] for choice in genome]
        assert kinds[0] == kinds[-1] == "full_attention"
        assert all("full_attention" in kinds[first : first + 7] for first in range(0, 28, 7))


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_printed_as_a_file_is_the_same_space(name: str, tmp_path: Path) -> None:
    content = PRESETS[name].spec(BASE).to_content()
    for suffix in (".json", ".yaml"):  # JSON is YAML
        again = load_space(written(tmp_path, json.dumps(content, indent=2), suffix))
        assert again.build(BASE) == preset_named(name, BASE)
    jsonschema.Draft202012Validator(space_schema()).validate(content)


def test_the_schema_is_a_schema_and_knows_what_the_loader_knows() -> None:
    schema = space_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    good: dict[str, Any] = {"mixers": [{"kind": "none"}, {"kind": "sliding_window_attention", "window": 8}]}
    assert validator.is_valid(good)
    mistakes: list[dict[str, Any]] = [
        {"mixers": []},
        {"mixers": [{"kind": "sliding_window_attention"}]},
        {"mixers": [{"kind": "none", "window": 8}]},
        {**good, "mixer": []},
        {**good, "ffn": {"share": "half"}},
    ]
    for wrong in mistakes:
        assert not validator.is_valid(wrong)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("num_kv_heads: [1, 2]", "num_kv_head: [1, 2]"), r"line 4, mixers\[0\]\.num_kv_head: unknown key, did you"),
        (("head_k_dim: [96, 128], ", ""), r"line 5, mixers\[1\]\.head_k_dim: is missing"),
        (("num_heads: [8, 12]", "num_heads: [8, x]"), r"line 5, mixers\[1\]\.num_heads\[1\]: .*integer"),
        (("kind: none", "kind: nothing"), r"line 6, mixers\[2\]: unknown mixer 'nothing': known: .*, none,"),
        (("- kind: none", "- none"), r"line 6, mixers\[2\]: 'none' is no mapping; .*{kind: full_attention}"),
        (("ties: [jet_block]", "ties: jet_block"), r"line 9, ties: 'jet_block' is no list"),
        (("ties:", "tie:"), r"line 9, tie: unknown key, did you mean ties"),
        (("at_most: 8", "at_mots: 8"), r"line 11, limits\[0\]\.at_mots: unknown key, did you mean at_most"),
        (("share: [1, 0.5]", "share: [1, 0.5], intermediate_size: 64"), r"line 7, ffn: give either"),
        (("forbidden: [[none, none]]", "forbidden: [[none]]"), r"line 13, forbidden\[0\]\[1\]: is missing"),
        (("ties: [jet_block]", "ties: [jet_block]\nties: []"), r":10: ties is given twice"),
        (("description: test", "description: [test"), "is not valid YAML"),
        ((YAML, "- a"), "holds no keys"),
        ((YAML, ""), "holds no keys"),
    ],
)  # fmt: skip
def test_mistakes_name_their_line_and_path(tmp_path: Path, change: tuple[str, str], told: str) -> None:
    path = written(tmp_path, YAML.replace(*change))
    with pytest.raises(DataError, match=told):
        load_space(path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("ties: [jet_block]", "ties: [jetblock]"), "in ties 'jetblock': did you mean jet_block"),
        (("of: full_attention, at_most", "of: full, at_most"), r"in limits\[0\]\.of"),
        (("groups: {cheap", "groups: {none"), "call the group something else"),
        (("at: [0, -1]", "at: [0, 28]"), r"layers\[0\]\.at: 28 is not a layer of Qwen2.5-1.5B, which has 28"),
        (("allow: [full_attention]", "allow: [gla]"), r"in layers\[0\]\.allow 'gla'"),
        (("kind: none", "kind: full_attention"), "the mixers repeat"),
        (("num_kv_heads: [1, 2]", "num_kv_heads: [5]"), "which cannot be: .*num_heads 12"),
        (("state_size: 294912", "state_size: 7"), "no point with a state_size of 7"),
        (("every: 7", "at_most: 9"), "two limits on the whole model"),
    ],
)  # fmt: skip
def test_what_the_base_cannot_have_is_refused(tmp_path: Path, change: tuple[str, str], told: str) -> None:
    spec = load_space(written(tmp_path, YAML.replace(*change)))
    with pytest.raises(InputError, match=told):
        spec.build(BASE)


def test_broken_toml_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not valid TOML: .*line 1"):
        load_space(written(tmp_path, "mixers = 1 2\n[", ".toml"))
    with pytest.raises(DataError, match="mixers: is missing"):
        load_space(written(tmp_path, "{}", ".json"))
    with pytest.raises(DataError, match=r"ends in \.yaml"):
        load_space(written(tmp_path, "", ".txt"))
    with pytest.raises(DataError, match=r"cannot read .*absent\.yaml: No such file or directory$"):
        load_space(tmp_path / "absent.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="it is not UTF-8 text"):
        load_space(tmp_path / "bytes.yaml")
    with pytest.raises(InputError, match="did you mean postnas"):
        space_named("postnass", BASE)


def test_two_fields_of_heads_span_only_what_can_be() -> None:
    delta = {"kind": "gated_delta_net", "head_k_dim": 128, "num_k_heads": [4, 8], "num_v_heads": 8}
    space = SpaceSpec.model_validate({"mixers": [{**delta, "state_size": 131072}]}).build(BASE)
    assert {choice.mixer for choice in space.choices} == {
        GatedDeltaNet(num_k_heads=heads, num_v_heads=8, head_k_dim=128, head_v_dim=128) for heads in (4, 8)
    }
    with pytest.raises(ValueError, match="head_v_dim is missing"):
        SpaceSpec.model_validate({"mixers": [delta]})
    with pytest.raises(ValueError, match="no recurrent state"):
        SpaceSpec.model_validate({"mixers": [{"kind": "none", "state_size": 4}]})


def test_a_state_size_of_a_mixer_of_its_own_is_a_grid_like_any_other() -> None:
    mamba = {"kind": "mamba2", "num_heads": 8, "head_dim": 64, "state_size": [64, 128]}
    space = SpaceSpec.model_validate({"mixers": [mamba]}).build(BASE)
    assert {choice.mixer for choice in space.choices} == {
        Mamba2(num_heads=8, head_dim=64, state_size=size) for size in (64, 128)
    }
