"""hwsearch importance: what each layer's full attention is worth for each task, under a supernet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from hwsearch.cli.output import console, emit_json, json_option, quiet_transformers, table, working
from hwsearch.cli.scores import score_json
from hwsearch.errors import DependencyError, InputError, OutputError
from hwsearch.models import require_transformers

if TYPE_CHECKING:
    from hwsearch.surrogate.layer_scores import LayerScores

__all__ = ["command", "plot_importance"]


@click.command("importance")
@click.argument("supernet", type=click.Path(path_type=Path))
@click.option(
    "--linear", metavar="KIND", help="What replaces full attention; default: the first linear mixer."
)
@click.option("--items", type=click.IntRange(min=1), help="Of each task; default: all.")
@click.option(
    "--text-rows", default=16, show_default=True, type=click.IntRange(min=1), help="For KL, perplexity."
)
@click.option("--from", "source", type=click.Path(path_type=Path), help="The teacher, if it has moved.")
@click.option("--device", default="cpu", show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="CSV for `hwsearch search --quality`.")
@click.option("--plot", type=click.Path(path_type=Path), help="Heatmaps: .png, .svg or .pdf.")
@json_option
def command(
    *,
    supernet: Path,
    linear: str | None,
    items: int | None,
    text_rows: int,
    source: Path | None,
    device: str,
    output: Path | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Score layer i full with all others linear, and layer i linear with all others full, for every layer i.

    Scores are kept in the folder SUPERNET: what was scored once is not scored again.
    """
    require_transformers(purpose="hwsearch importance")
    quiet_transformers()
    from hwsearch.surrogate.layer_scores import layer_scores, linear_choice
    from hwsearch.surrogate.processes import device_named
    from hwsearch.surrogate.supernet_folder import SupernetFolder

    folder = SupernetFolder(supernet, checkpoint=source)
    net = folder.supernet(device=device_named(device))
    choice = linear_choice(net.space, linear)
    with working("scoring layers"):
        found = layer_scores(net, folder.scorer(net, items=items, text_rows=text_rows), linear=choice)
    if output is not None:
        try:
            output.write_text(found.csv(), encoding="utf-8")
        except OSError as error:
            raise OutputError(f"cannot write {output}: {error.strerror}") from None
    if plot is not None:
        plot_importance(found, path=plot)
    if as_json:
        emit_json(
            {
                "model": found.model,
                "mixer": found.mixer,
                "teacher": score_json(found.teacher),
                "linear": score_json(found.linear),
                "kept": [score_json(score) for score in found.kept],
                "replaced": [score_json(score) for score in found.replaced],
            }
        )
        return
    _show(found)


def _show(found: LayerScores) -> None:
    to = console()
    for title, ends, scores, side in (
        ("kept: layer i full, all others", found.linear, found.kept, 0),
        ("replaced: all full, layer i", found.teacher, found.replaced, 1),
    ):
        shown = table(f"{title} {found.mixer}", "layer", *(f"{task} %" for task in found.tasks), "KL nats")
        name = "none kept" if side == 0 else "none replaced"
        for layer, score in ((name, ends), *((str(i), s) for i, s in enumerate(scores))):
            accuracies = (f"{100 * score.tasks[task].accuracy:.1f}" for task in found.tasks)
            shown.add_row(layer, *accuracies, f"{score.kl:.4f}")
        to.print(shown)
        order = np.argsort(-found.drops("kl")[side], kind="stable")
        to.print(f"by KL, most important first: {', '.join(map(str, order))}", soft_wrap=True)
    errors = [score.standard_error for score in found.teacher.tasks.values()]
    errors += [
        task.standard_error for score in (*found.kept, *found.replaced) for task in score.tasks.values()
    ]
    to.print(f"standard error of an accuracy, by sampling of items: at most {100 * max(errors):.1f} points")


def plot_importance(found: LayerScores, *, path: Path) -> None:
    """Two heatmaps, layers by tasks: accuracy points gained by keeping a layer, and lost by replacing it.

    Raises DependencyError without matplotlib, OutputError where the file cannot be written, InputError for an ending
    that names no format.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise DependencyError("matplotlib", extra="report", purpose="importance --plot") from None
    panels = [
        np.array([found.drops(f"{task}.accuracy")[side] for task in found.tasks]) * 100 for side in (0, 1)
    ]
    layers = len(found.kept)
    figure = Figure(figsize=(2.5 + 0.45 * layers, 1.6 + 0.9 * len(found.tasks)), layout="constrained")
    titles = (f"gained by keeping one layer among {found.mixer}", "lost by replacing one layer")
    for axes, values, title in zip(figure.subplots(2, 1, sharex=True), panels, titles, strict=True):
        most = max(float(np.abs(values).max()), 1.0)
        image = axes.imshow(values, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto")
        axes.set_yticks(range(len(found.tasks)), found.tasks)
        axes.set_xticks(range(layers))
        axes.set_title(title, fontsize=9)
        figure.colorbar(image, ax=axes, label="accuracy, points")
        for (row, column), value in np.ndenumerate(values):
            shade = "white" if abs(value) > 0.6 * most else "black"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=shade)
    axes.set_xlabel(f"layer of {found.model}")
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from None
    except ValueError as error:  # matplotlib names the formats it knows
        raise InputError(f"cannot draw {path}: {error}; end the file in .png, .svg or .pdf") from None
