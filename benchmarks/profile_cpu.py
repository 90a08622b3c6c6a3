"""Is a CPU profile repeatable, and do measured layers add up to whole models?

    python benchmarks/profile_cpu.py -o benchmarks/results/profile_cpu.json

1. Repeatability: the same 40 points profiled twice, in processes of their own; the difference of the two medians.
2. A full profile of the `postnas` space over a small base (hidden size 256, 6 layers), fit, and held-out errors, with
   the time that they took.
3. Ten random architectures of that space, none of which the fit has seen, measured whole in turn (`hwsearch bench` of
   all ten) and compared with their predictions and 90% intervals, prefill and decode; and all measured once more by
   another process after it: how well one measurement predicts the next is as well as anything can predict it.

Every step is a command that a user would type, in a process of its own. Steps that are done are not done again: kill it
and call it again to go on, or delete --work to start over. The last line printed is the result as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from hwsearch.searchspace.architecture import Architecture
from hwsearch.searchspace.bases import base_named
from hwsearch.searchspace.presets import space_named

POINTS, ARCHITECTURES, SAMPLE_SEED = 40, 10, 20
RUNS = 2
# The decode context is four times the space's window: at one within the window full attention and a window do the
# same, and most hybrids of the space take the same time but for noise.
WORKLOADS = ("prefill:batch=1,context=1280", "decode:batch=4,context=8192")
KEPT = (
    "measured_ms",
    "predicted_ms",
    "predicted_ms_from_operators",
    "predicted_from",
    "error_percent",
    "within_interval",
    "reference_ms",
    "marks",
)
BASE = {
    "_name_or_path": "small",
    "model_type": "qwen3",
    "num_hidden_layers": 6,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 4096,
    "tie_word_embeddings": True,
    "max_position_embeddings": 32768,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument(
        "--work", type=Path, default=Path("profile_cpu_work"), help="Where steps leave their results."
    )
    parser.add_argument("--threads", type=int, default=1, help="That torch computes with.")
    parser.add_argument("--parts", nargs="+", choices=["repeat", "whole"], default=["repeat", "whole"])
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    result: dict[str, Any] = {
        "threads": options.threads,
        "machine": _json(options.work / "doctor.json", "doctor", "--device", "cpu"),
    }
    if "repeat" in options.parts:
        result["repeatability"] = repeatability(options.work)
    if "whole" in options.parts:
        result["profile"] = profiled(options.work)
        result["whole_models"] = whole_models(options.work)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))


def repeatability(work: Path) -> dict[str, Any]:
    """Differences between two runs, in percent of their mean."""
    stores = [work / "first.db", work / "second.db"]
    for store in stores:
        _json(
            work / f"{store.stem}.json",
            *("profile", "--device", "cpu", "--points", str(POINTS), "--seed", "1", "-o", str(store)),
        )
    found = _json(work / "compared.json", "store", "compare", *map(str, stores))
    spread = found["all"]
    return {
        "points": spread["points"],
        "median_percent": spread["median"],
        "p95_percent": spread["p95"],
        "largest_percent": spread["largest"],
        "shift_percent": spread["shift"],
        "median_without_shift_percent": spread["rest"],
        "farthest": {far["subject"]: [far["first_ms"], far["second_ms"]] for far in found["farthest"]},
    }


def profiled(work: Path) -> dict[str, Any]:
    """Profile and fit, with the seconds each took."""
    (work / "small").mkdir(exist_ok=True)
    base = work / "small" / "config.json"
    base.write_text(json.dumps(BASE), encoding="utf-8")
    workloads = [part for text in WORKLOADS for part in ("--workload", text)]
    store = str(work / "small.db")
    steps = {
        "profile_operators": ("profile", "--device", "cpu", "--points", "160", "--visits", "1", "-o", store),
        "profile_space": (
            *("profile", "--device", "cpu", "--space", "postnas", "--base", str(base)),
            *(*workloads, "-o", store),
        ),
        "fit": ("fit", store, "-o", str(work / "small.costmodel")),
    }
    found = {name: _json(work / f"{name}.json", *command) for name, command in steps.items()}
    seconds = {name: answer["seconds"] for name, answer in found.items()}
    return {
        "seconds": seconds | {"all": sum(seconds.values())},
        "rows": found["profile_space"]["measurements"],
        "blocks": found["profile_space"]["blocks"],
        "held_out_mape_percent": {kind: errors["mape"] for kind, errors in found["fit"]["operators"].items()},
    }


def whole_models(work: Path) -> dict[str, Any]:
    """Measured and predicted latencies of random architectures."""
    space = space_named("postnas", base_named(str(work / "small")))
    genomes = space.sample(ARCHITECTURES, rng=np.random.default_rng(SAMPLE_SEED))
    architectures = [space.decode(genome, name=f"architecture-{at}") for at, genome in enumerate(genomes)]
    for architecture in architectures:
        (work / f"{architecture.name}.json").write_text(architecture.to_json(), encoding="utf-8")
    first, again = (_benched(architectures, work, number) for number in range(RUNS))
    found = {}
    for place, text in enumerate(WORKLOADS):
        rows = [
            {key: phases[place][key] for key in KEPT} | {"mixers": dict(architecture.count())}
            for architecture, phases in zip(architectures, first, strict=True)
        ]
        once, twice = ([phases[place]["measured_ms"] for phases in measured] for measured in (first, again))
        found[text] = {
            **{
                name: _agreement(once, [row[name] for row in rows]) for name in KEPT if "predicted_ms" in name
            },
            "within_interval": sum(row["within_interval"] for row in rows),
            "measured_again_within_interval": sum(phases[place]["within_interval"] for phases in again),
            "measured_again_ms": _agreement(once, twice),
            "architectures": [{**row, "measured_again_ms": ms} for row, ms in zip(rows, twice, strict=True)],
        }
    return found


def _benched(architectures: list[Architecture], work: Path, number: int) -> list[list[dict[str, Any]]]:
    """The phases of every architecture, measured in turn by one process."""
    paths = [str(work / f"{architecture.name}.json") for architecture in architectures]
    workloads = [part for text in WORKLOADS for part in ("--workload", text)]
    command = ("bench", *paths, "--device", "cpu", *workloads, "--cost-model", str(work / "small.costmodel"))
    answer = _json(work / f"measured-{number}.json", *command)
    return [each["phases"] for each in answer["architectures"]]


def _agreement(measured_ms: list[float], other_ms: list[float]) -> dict[str, float]:
    """How far the others are from what was measured."""
    measured = np.array(measured_ms)
    error = 100 * (np.array(other_ms, dtype=float) / measured - 1)
    return {
        "mean_error_percent": float(np.abs(error).mean()),
        "bias_percent": float(error.mean()),
        "worst_percent": float(np.abs(error).max()),
        "rank_correlation": float(spearmanr(measured, other_ms).statistic),
    }


def _json(kept: Path, *command: str) -> dict[str, Any]:
    """The JSON of an hwsearch command and its seconds; from the file `kept` where it ran before."""
    if kept.exists():
        answer: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        return answer
    print("hwsearch", *command, file=sys.stderr, flush=True)
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "hwsearch", *command, "--json"], stdout=subprocess.PIPE, check=True, text=True
    )
    answer = {**json.loads(done.stdout), "seconds": time.monotonic() - started}
    temporary = kept.with_suffix(".part")
    temporary.write_text(json.dumps(answer), encoding="utf-8")
    temporary.rename(kept)
    return answer


if __name__ == "__main__":
    main()
