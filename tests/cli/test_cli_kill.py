"""kill -9 of postnas and of supernet, again and again: the command given once more ends as if nothing had happened."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.surrogate.tiny_supernet import MIXERS, teacher, write_task_items, write_text

Live = Callable[..., int]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("kill")
    teacher(made / "teacher")
    write_text(made / "text.jsonl")
    write_task_items(made / "tasks.jsonl")
    (made / "space.json").write_text(json.dumps({"mixers": MIXERS}))
    return made


@pytest.fixture(scope="module")
def live(folder: Path) -> Iterator[Live]:
    """Runs a command in a process of its own, killed at a file event; its exit status."""
    command = [sys.executable, "-m", "tests.cli.killable"]
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:

        def call(*arguments: object, kill_at: int | None = None) -> int:
            asked = {"arguments": [str(a) for a in arguments], "kill_at": kill_at, "log": str(folder / "log")}
            assert other.stdin is not None
            assert other.stdout is not None
            other.stdin.write(json.dumps(asked) + "\n")
            other.stdin.flush()
            return int(other.stdout.readline())

        yield call


def _killed_until_it_ends(live: Live, *arguments: object) -> int:
    """Lives of a command, each killed a few file events later than the one before; how many kills it took."""
    for kills in range(60):
        status = live(*arguments, kill_at=3 + 2 * kills)
        if status != -signal.SIGKILL:
            assert status == 0, f"after {kills} kills"
            return kills
    raise AssertionError("no end after 60 kills")


def _contents(run: Path, patterns: tuple[str, ...]) -> dict[str, bytes]:
    found = {
        str(p.relative_to(run)): p.read_bytes() for pattern in patterns for p in sorted(run.glob(pattern))
    }
    assert len(found) >= len(patterns)
    return found


def test_postnas_survives_kill_9(live: Live, folder: Path) -> None:
    options = [
        "postnas", folder / "teacher", "--device", "h100-sxm", "--workload", "decode:batch=1,context=4k",
        "--data", folder / "text.jsonl", "--tasks", folder / "tasks.jsonl", "--full", 1, "--windows", 1,
        "--blocks", "rwkv7", "--steps-a", 1, "--steps-b", 2, "--proxy-steps", 2, "--batch", 2,
        "--length", 16, "--items", 3, "--budget", "latency<=9ms",
    ]  # fmt: skip
    whole, killed = folder / "whole", folder / "killed"
    assert live(*options, "-o", whole) == 0, (folder / "log").read_text()
    assert _killed_until_it_ends(live, *options, "-o", killed) > 5
    kept = ("steps/*.json", "arch.json", "importance.csv", "supernet/alternatives.safetensors", "model/*")
    assert _contents(killed, kept) == _contents(whole, kept)


def test_supernet_survives_kill_9(live: Live, folder: Path) -> None:
    options = [
        "supernet", folder / "teacher", "--data", folder / "text.jsonl", "--tasks", folder / "tasks.jsonl",
        "--space", folder / "space.json", "--steps-a", 3, "--steps-b", 4, "--batch", 2, "--length", 16,
    ]  # fmt: skip
    whole, killed = folder / "whole-net", folder / "killed-net"
    assert live(*options, "-o", whole) == 0, (folder / "log").read_text()
    assert _killed_until_it_ends(live, *options, "-o", killed) > 5
    kept = ("alternatives.safetensors", "corpus/*", "tasks.jsonl")
    assert _contents(killed, kept) == _contents(whole, kept)
    histories = [
        json.loads((net / "supernet.json").read_text())["training"]["history"] for net in (whole, killed)
    ]
    assert histories[0] == histories[1]
