"""Pictures of a report, as PNG files; matplotlib is the extra `bench`, and only this module needs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from streamlearn.bench.curve import KEPT
from streamlearn.bench.report import by_method, mean_and_error, numbers, setups, value
from streamlearn.bench.runs import Line
from streamlearn.bench.trial import SERVED
from streamlearn.errors import SettingsError


def plot_all(lines: Sequence[Line], folder: Path) -> list[Path]:
    """Draw learned against final, recall over time and the curve over era encoders, for each setup.

    Raises:
        SettingsError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SettingsError("plots need matplotlib: pip install 'streamlearn[bench]'") from error
    drawn = []
    for number, mine in enumerate(setups(lines).values(), 1):
        methods = by_method(mine)
        for name, draw in (("learned", _learned), ("course", _course), ("encoders", _encoders)):
            figure = Figure(figsize=(8, 5), layout="constrained")
            draw(figure, methods)
            drawn.append(folder / f"{name}-{number}.png")
            figure.savefig(drawn[-1], dpi=110)
    return drawn


def _learned(figure: Any, methods: Mapping[str, Sequence[Line]]) -> None:
    axes = figure.subplots()
    for name, lines in methods.items():
        points = [numbers(lines, value(f"copies.{SERVED}.{what}.5")) for what in ("learned", "final")]
        if all(points):
            (x, dx), (y, dy) = map(mean_and_error, points)
            axes.errorbar(x, y, xerr=dx, yerr=dy, marker="o", linestyle="", label=name)
    axes.set(
        xlabel="R@5 when learned, %", ylabel="R@5 at the end, %", title="Learned and kept, each task's own gallery"
    )
    _legend(axes, "small")
    axes.grid(alpha=0.3)


def _legend(axes: Any, size: str) -> None:
    """Where anything has a label: a stream of one domain has nothing that was kept, a joint one no course."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=size)


def _course(figure: Any, methods: Mapping[str, Sequence[Line]]) -> None:
    """One panel a method, of its first trial: R@5 of each task over the stream."""
    names = [name for name in methods if not name.endswith("(joint)")][:8]
    panels = figure.subplots(2, max(1, -(-len(names) // 2)), sharex=True, sharey=True, squeeze=False).flatten()
    for axes, name in zip(panels, names, strict=False):
        result = methods[name][0]["result"]
        course = [entry for entry in result["course"] if entry["copy"] == SERVED]
        for task in course[-1]["recall"]:
            mine = [(entry["clips"], entry["recall"][task]["5"]) for entry in course if task in entry["recall"]]
            axes.plot(*zip(*mine, strict=True), marker=".", label=task)
        for start in result["starts"][1:]:
            axes.axvline(start, color="grey", linewidth=0.5)
        axes.set_title(name, fontsize="small")
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    _legend(panels[0], "x-small")
    figure.supxlabel("clips learned")
    figure.supylabel("R@5, %")


def _encoders(figure: Any, methods: Mapping[str, Sequence[Line]]) -> None:
    panels = figure.subplots(1, 2)
    for axes, k in zip(panels, ("1", "5"), strict=True):
        for name, lines in methods.items():
            found = [(kept, v) for kept in KEPT if (v := numbers(lines, value(f"served.judged.{kept}.t2v.{k}")))]
            if len(found) > 1:
                means = [mean_and_error(values) for _, values in found]
                axes.errorbar(
                    [kept for kept, _ in found], [m for m, _ in means], yerr=[e or 0 for _, e in means],
                    marker="o", label=name,
                )  # fmt: skip
        axes.set(xlabel="era encoders kept", ylabel=f"pooled R@{k}, %")
        axes.grid(alpha=0.3)
    _legend(panels[0], "x-small")
    figure.suptitle("Text to video over all tasks' clips")
