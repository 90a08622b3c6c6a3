"""Does a supernet rank architectures as training them would? The targets of PostNAS on the tiny teacher, seed by seed.

    python benchmarks/postnas_tiny.py ranking   --work DIR --seed 0
    python benchmarks/postnas_tiny.py placement --work DIR --seed 0 [--full 1 --windows 3]
    python benchmarks/postnas_tiny.py recipes   --work DIR --seed 0    (after ranking)
    python benchmarks/postnas_tiny.py report    --work DIR -o benchmarks/results/postnas_tiny.json [--plot curve.png]

tiny_ranking.py, tiny_placement.py, tiny_curve.py and tiny_recipes.py say what each measures, tiny_bench.py what is
common. Every step of a seed is written to DIR as it ends; the same command goes on with what is left, also after a
kill.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import tiny_curve
import tiny_placement
import tiny_ranking
import tiny_recipes
from tiny_bench import Unfinished

from hwsearch.surrogate.teacher import teacher_folder


def report(work: Path, output: Path | None, plot: Path | None) -> None:
    """All finished seeds of all targets: JSON to a file, Markdown to the screen, a picture of the placement curve.

    Seeds of the file that the work folder has nothing on, those of earlier settings among them, stay.
    """
    found = {
        "ranking": _finished(work / tiny_ranking.TARGET, partial(tiny_ranking.summary, work)),
        "recipes": _finished(work / tiny_ranking.TARGET, partial(tiny_recipes.summary, work)),
    }
    for folder in sorted(work.glob("placement-*-*")):
        of_seed = partial(tiny_placement.summary, work, **_counts(folder.name))
        found[folder.name] = _finished(folder, of_seed)
    if output:
        before = json.loads(output.read_text(encoding="utf-8")) if output.exists() else {}
        found = {name: dict(sorted((before.get(name, {}) | seeds).items())) for name, seeds in found.items()}
        output.write_text(json.dumps(before | found, indent=1) + "\n", encoding="utf-8")
    shows = {"ranking": tiny_ranking.show, "recipes": tiny_recipes.show}
    for name, seeds in found.items():
        print(f"\n{name}")
        if seeds:
            shows.get(name, tiny_placement.show)(seeds)
    curves: dict[int, dict[int, Any]] = {}
    for name, seeds in found.items():
        if seeds and name not in shows:
            counts = _counts(name)
            curves.setdefault(counts["windows"], {})[counts["full"]] = seeds
    for windows, curve in curves.items():
        tiny_curve.show(curve)
        if plot:
            tiny_curve.plot(curve, plot.with_stem(f"{plot.stem}-{windows}-windows"))


def _counts(target: str) -> dict[str, int]:
    """The layers of a placement target, from its name."""
    _, full, windows = target.split("-")
    return {"full": int(full), "windows": int(windows)}


def _finished(folder: Path, summary: Callable[[int], dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The summaries of the seeds of a folder; which are not finished is told."""
    found = {}
    for seed in sorted(int(seed.name.removeprefix("seed")) for seed in folder.glob("seed*")):
        try:
            found[f"seed{seed}"] = summary(seed)
        except Unfinished as missing:
            print(f"left out: {missing}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Targets of PostNAS on the tiny teacher.")
    parser.add_argument("what", choices=["ranking", "placement", "recipes", "report"])
    parser.add_argument("--work", type=Path, required=True, help="Folder for what each seed keeps.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--full", type=int, default=1, help="Full-attention layers of placement.")
    parser.add_argument("--windows", type=int, default=3, help="Sliding-window layers of placement.")
    parser.add_argument("--teacher", type=Path, help="Checkpoint folder; the shipped teacher by default.")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--plot", type=Path, help="Picture of the curve, .png or .svg.")
    given = parser.parse_args()
    teacher = given.teacher or teacher_folder()
    if given.what == "report":
        report(given.work, given.output, given.plot)
    elif given.what == "ranking":
        tiny_ranking.run(given.work, given.seed, teacher)
    elif given.what == "recipes":
        tiny_recipes.run(given.work, given.seed, teacher)
    else:
        tiny_placement.run(given.work, given.seed, teacher, full=given.full, windows=given.windows)


if __name__ == "__main__":
    main()
