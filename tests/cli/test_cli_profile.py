"""profile by plans, on this machine's CPU: dry runs, active runs that go on, two workers, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwsearch.costmodel.builtin_models import load_builtin
from hwsearch.costmodel.devices import device_named
from hwsearch.errors import InputError
from hwsearch.pipeline.active import Stop
from hwsearch.pipeline.models import carry_model
from hwsearch.pipeline.profiling import Profile
from hwsearch.profilers.bench import BenchSetup
from hwsearch.profilers.store import Store
from tests.cli.conftest import Call
from tests.cli.test_cli_figures import _assert_documented

pytest.importorskip("torch")

SPACE = (
    "--space",
    "postnas-placement",
    "--base",
    "Qwen2.5-0.5B",
    "--workload",
    "decode:batch=1..4,context=16..64",
)


def test_a_dry_run_touches_nothing_and_says_what_it_would_do(hwsearch: Call, tmp_path: Path) -> None:
    store = tmp_path / "cpu.db"
    found = hwsearch("profile", *SPACE, "-o", store, "--dry-run", "--json").json
    _assert_documented(found, "profile --dry-run")
    assert list(tmp_path.iterdir()) == []
    assert found["points"] == found["asked"] == sum(found["kinds"].values()) > 30
    assert 0 < found["overhead_s"] <= found["seconds_per_point"]
    assert found["blocks"] > 6
    assert found["block_seconds"] > 0
    on_points = found["points"] * found["seconds_per_point"]
    assert found["seconds"] == pytest.approx(on_points + found["block_seconds"])
    assert "roofline" in found["predicted_by"]
    nowhere = hwsearch("profile", *SPACE, "--dry-run", "--json").json
    assert (nowhere["store"], nowhere["asked"]) == (None, found["asked"])
    bare = hwsearch("profile", *SPACE, "--no-blocks", "--dry-run", "--json").json
    assert (bare["blocks"], bare["block_seconds"]) == (0, 0)
    assert "give -o" in hwsearch("profile", *SPACE).complaint


@pytest.mark.parametrize(
    ("asked", "advice"),
    [((), "raise --points"), ((*SPACE, "--plan", "random"), "widen the workloads")],
    ids=["spread", "space"],
)
def test_too_few_operators_for_a_fit_come_with_the_way_out(
    hwsearch: Call, tmp_path: Path, asked: tuple[str, ...], advice: str
) -> None:
    done = hwsearch("profile", *asked, "--points", 8, "-o", tmp_path / "cpu.db")
    assert advice in done.err


def test_plans_share_a_store_and_go_on(hwsearch: Call, tmp_path: Path) -> None:
    store = tmp_path / "cpu.db"
    first = hwsearch("profile", *SPACE, "--plan", "random", "--points", 6, "-o", store, "--json").json
    _assert_documented(first, "profile")
    assert (first["measured"], first["skipped"], first["curve"]) == (6, 0, [])
    again = hwsearch("profile", *SPACE, "--plan", "active", "--points", 9, "-o", store, "--json").json
    assert (again["measured"], again["skipped"], again["measurements"]) == (3, 6, 9)
    assert [point["points"] for point in again["curve"]] == [6, 9]
    assert again["stopped"] == "9 points are measured"
    done = hwsearch("profile", *SPACE, "--plan", "random", "--points", 6, "-o", store, "--json").json
    assert (done["measured"], done["skipped"]) == (0, 9)
    rest = hwsearch("profile", *SPACE, "-o", store, "--dry-run", "--json").json
    assert (rest["done"], rest["points"]) == (9, rest["asked"] - 9)


def test_two_workers_share_a_plan_and_one_store(hwsearch: Call, tmp_path: Path) -> None:
    store = tmp_path / "cpu.db"
    found = hwsearch(
        "profile",
        *SPACE,
        "--plan",
        "random",
        "--points",
        9,
        "--device",
        "cpu",
        "--device",
        "cpu",
        "-o",
        store,
        "--json",
    ).json
    assert (found["measured"], found["not_ok"], found["measurements"]) == (9, 0, 9)
    with Store.open(store) as opened:
        rows = opened.measurements()
        assert len(opened.devices()) == 1
    assert len({row.operator for row in rows}) == 9
    assert {row.status for row in rows} == {"ok"}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--plan", "active"), "needs to know when to stop"),
        (("--target-error", "0.05"), "for example 5%"),
        (("--target-error", "0%"), "for example 5%"),
        (("--time", "10"), "for example 10m"),
        (("--time", "0s"), "for example 10m"),
        (("--from", "h100-sxm"), "add --plan active"),
        (("--from", "h100-sxm", "--plan", "active", "--points", "20"), "bfloat16"),
        (("--base", "Qwen2.5-0.5B"), "add --space"),
        (("--space", "postnas"), "needs --base"),
        (("--space", "postnas", "--base", "Qwen2.5-0.5B", "--workload", "decode:batch=9..1,context=4"), "batch"),
        (("--space", "kv-sharing", "--base", "Qwen2.5-0.5B", "--workload", "decode:batch=1,context=64"), "--no-blocks"),
    ],
)  # fmt: skip
def test_nonsense_is_refused_before_a_store_is_made(
    hwsearch: Call, tmp_path: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    assert complaint in hwsearch("profile", *arguments, "-o", tmp_path / "cpu.db").complaint
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_is_itself_transferred_is_refused(hwsearch: Call, tmp_path: Path) -> None:
    source = load_builtin("h100-sxm")
    carry_model(source, device=device_named("h200-sxm")).save(tmp_path / "carried")
    options = ("--plan", "active", "--points", "20", "--dtype", "bfloat16", "--from", tmp_path / "carried")
    complaint = hwsearch("profile", *options, "-o", tmp_path / "cpu.db").complaint
    assert "itself transferred from h100-sxm" in complaint
    assert not (tmp_path / "cpu.db").exists()


def test_devices_of_two_kinds_are_refused() -> None:
    setup = BenchSetup(dtype="float32")
    task = Profile(devices=("cpu", "cuda:0"), setup=setup, plan="grid", stop=Stop())
    with pytest.raises(InputError, match="must be of one model"):
        task.check()
