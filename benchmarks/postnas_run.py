"""The whole of PostNAS on this machine: CPU measured, teacher converted within a latency budget, the result timed.

    python benchmarks/postnas_run.py --work DIR [--context 32k] [--batch 4] [--share 0.6] [--threads 1] [-o FILE.json]

Target 5 of the surrogate. Steps, each the command that a user would type: `hwsearch teacher data`, `hwsearch profile`
and `hwsearch fit` of every block and shape that the run may ask for, `hwsearch postnas` on the shipped teacher with a
budget of `--share` of the teacher's predicted latency, and `hwsearch bench` of teacher and result. Prints one JSON
object: seconds of the postnas run, the budget, predicted and measured latencies. What is there is not done again.
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

from hwsearch.pipeline.linear_blocks import block_named, grid_of
from hwsearch.searchspace.architecture import Architecture
from hwsearch.searchspace.bases import base_named
from hwsearch.searchspace.mixers import Mixer
from hwsearch.searchspace.presets import preset_named
from hwsearch.surrogate.teacher import teacher_folder

BLOCKS = ("gated_delta_net", "jet_block", "gla")


def hwsearch(*arguments: object) -> str:
    """Standard output of a command."""
    command = [sys.executable, "-m", "hwsearch", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def space_file(path: Path, teacher: Path) -> None:
    """Every mixer that the run may price."""
    base = base_named(str(teacher))
    mixers: list[Mixer] = [choice.mixer for choice in preset_named("postnas-placement", base).choices[:2]]
    mixers += [shape for kind in BLOCKS for shape in grid_of(block_named(kind, base))]
    path.write_text(
        json.dumps({"mixers": [mixer.model_dump(mode="json") for mixer in mixers]}), encoding="utf-8"
    )


def run(work: Path, teacher: Path, *, workload: str, share: float, seed: int, full: int) -> dict[str, Any]:
    """Everything, in `work`."""
    work.mkdir(parents=True, exist_ok=True)
    data, model, found = work / "data", work / "cpu", work / "run"
    if not (data / "samples.jsonl").exists():
        hwsearch("teacher", "data", "-o", data)
    if not model.exists():
        space_file(work / "space.json", teacher)
        hwsearch("profile", "--device", "cpu", "--points", 240, "--visits", 1, "-o", work / "cpu.db")
        asked = ["--workload", workload, "--space", work / "space.json", "--base", teacher]
        hwsearch("profile", "--device", "cpu", *asked, "-o", work / "cpu.db")
        hwsearch("fit", work / "cpu.db", "-o", model)
    (work / "teacher.json").write_text(
        Architecture.of_base(base_named(str(teacher))).to_json(), encoding="utf-8"
    )

    def timed(*architectures: Path) -> list[dict[str, Any]]:
        bench = hwsearch("bench", *architectures, "--workload", workload, "--cost-model", model, "--json")
        return [each["phases"][0] for each in json.loads(bench)["architectures"]]

    (before,) = timed(work / "teacher.json")
    budget = share * float(before["predicted_ms"])
    began = time.perf_counter()
    result = json.loads(
        hwsearch(
            "postnas", teacher, "--device", model, "--workload", workload, "--budget", f"latency<={budget:.4f}ms",
            "--data", data / "text.jsonl", "--data", data / "samples.jsonl", "--full", full, "--blocks",
            ",".join(BLOCKS), "--length", 128, "--dtype", "float32", "--steps-a", 80, "--steps-b", 120,
            "--proxy-steps", 50, "--batch", 8, "--items", 30, "--workers", 2, "--seed", seed, "-o", found, "--json",
        )
    )  # fmt: skip
    seconds = time.perf_counter() - began
    before, after = timed(work / "teacher.json", found / "arch.json")
    prediction = result["prediction"]
    return {
        "workload": workload,
        "seconds": seconds,
        "budget_ms": budget,
        "predicted": prediction,
        "measured_ms": after["measured_ms"],
        "within_interval": prediction["latency_ms_low"]
        <= after["measured_ms"]
        <= prediction["latency_ms_high"],
        "teacher_predicted_ms": [before[f"predicted_ms{end}"] for end in ("", "_low", "_high")],
        "over_budget": after["measured_ms"] / budget - 1,
        "teacher_measured_ms": before["measured_ms"],
        "speed_up": before["measured_ms"] / after["measured_ms"],
        "layer_types": result["layer_types"],
        "block": result["block"],
        "teacher_scores": result["teacher"],
        "scores": result["model"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description="PostNAS on this machine, from its measurement to the timed result."
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, help="Checkpoint folder; the shipped teacher by default.")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--context", default="32k")
    parser.add_argument(
        "--share", type=float, default=0.6, help="Budget over the teacher's predicted latency."
    )
    parser.add_argument("--full", type=int, default=2, help="Layers with full attention.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--threads", type=int, default=1, help="That torch measures with.")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    found = run(
        given.work,
        given.teacher or teacher_folder(),
        workload=f"decode:batch={given.batch},context={given.context}",
        share=given.share,
        seed=given.seed,
        full=given.full,
    )
    text = json.dumps(found, indent=1)
    if given.output:
        given.output.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
