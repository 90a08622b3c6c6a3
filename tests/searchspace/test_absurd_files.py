"""Files that are no architecture: each is refused with one message that names the file and what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hwsearch.errors import DataError, InputError
from hwsearch.searchspace.references import architecture_named

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_hidden_layers": 2,
    "vocab_size": 1000,
    "intermediate_size": 64,
    "max_position_embeddings": 1024,
}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "Expecting value"),
        (bytes(range(256)), "is not valid JSON"),
        (b"{\x80\x81}", "is not valid JSON: it is not UTF-8 text"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"name": "a", "name": "b"}', "the key 'name' occurs twice"),
        (b'{"name": NaN}', "NaN is no JSON number"),
        (b"[1, 2]", "is not a valid architecture"),
        (b'{"schema_version": 1', "is not valid JSON"),
    ],
)
def test_what_is_no_architecture_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "arch.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        architecture_named(str(path))
    assert str(path) in str(caught.value)


def test_folders_and_devices_are_no_files(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/dev/null")):
        with pytest.raises(DataError, match=r"without a config\.json, or no file"):
            architecture_named(str(path))
    for name in ("", "nowhere.json"):
        with pytest.raises(InputError, match="unknown architecture"):
            architecture_named(name)


def test_a_config_is_known_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "anything.json"
    path.write_text(json.dumps(CONFIG))
    assert architecture_named(str(path)).base.num_layers == 2
    path.write_text(json.dumps(CONFIG | {"model_type": "mixtral"}))
    with pytest.raises(DataError, match="model_type must be one of"):
        architecture_named(str(path))


def test_heads_that_do_not_divide_the_width_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG | {"num_attention_heads": 7}))
    with pytest.raises(DataError, match="hidden_size 4096 is not a multiple of num_attention_heads 7"):
        architecture_named(str(path))
    path.write_text(json.dumps(CONFIG | {"num_attention_heads": 7, "head_dim": 64}))
    assert architecture_named(str(path)).base.mixer.head_dim == 64
