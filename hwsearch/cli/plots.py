"""Plots of a run: its trade-offs, and how the search converged. matplotlib comes with the extra `report`."""

from __future__ import annotations

from pathlib import Path

from hwsearch.errors import DependencyError, InputError, OutputError
from hwsearch.search.journal import Journal

__all__ = ["plot_run"]


def plot_run(journal: Journal, *, path: Path, exact: float | None, title: str) -> None:
    """Trade-offs of the first two objectives beside best and hypervolume over evaluations.

    exact: the proven least first objective, drawn where it is known. Raises DependencyError without matplotlib,
    OutputError where the file cannot be written, InputError for an ending that names no format.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise DependencyError("matplotlib", extra="report", purpose="study plot") from None
    several = journal.num_objectives > 1
    figure = Figure(figsize=(10 if several else 6, 4), layout="constrained")
    panels = figure.subplots(1, 2 if several else 1, squeeze=False)[0]
    labels = [f"{n}, {u}" if u else n for n, u in zip(journal.names, journal.units, strict=True)]
    if several:
        front = journal.front().objectives
        inside = journal.costs[journal.full[journal.feasible[journal.full]]]
        outside = journal.costs[journal.full[~journal.feasible[journal.full]]]
        axes = panels[0]
        axes.plot(outside[:, 0], outside[:, 1], ".", color="0.85", markersize=3, label="over a budget")
        axes.plot(
            inside[:, 0], inside[:, 1], ".", color="C0", alpha=0.4, markersize=3, label="within the budgets"
        )
        axes.plot(front[:, 0], front[:, 1], "o-", color="C3", markersize=4, linewidth=1, label="front")
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        axes.grid(visible=True, alpha=0.3)
        axes.legend(fontsize=8)
    steps = [step for step in journal.convergence() if step.best is not None]
    axes = panels[-1]
    axes.step([s.evaluations for s in steps], [s.best for s in steps], where="post", color="C0", label="best")
    if exact is not None:
        axes.axhline(exact, color="0.3", linestyle="--", linewidth=1, label="exact optimum")
    axes.set_xlabel("evaluations at full fidelity")
    axes.set_ylabel(f"best {labels[0]}")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=8, loc="center right")
    if several:
        volume = axes.twinx()
        volume.plot([s.evaluations for s in steps], [s.hypervolume for s in steps], color="C1")
        volume.set_ylabel("hypervolume", color="C1")
    figure.suptitle(title, fontsize=10)
    try:
        figure.savefig(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from None
    except ValueError as error:  # matplotlib names the formats it knows
        raise InputError(f"cannot draw {path}: {error}; end the file in .png, .svg or .pdf") from None
