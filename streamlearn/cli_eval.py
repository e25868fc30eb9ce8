"""`streamlearn eval`: the evaluation report of a running daemon, or of a state directory that none is using."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from streamlearn.cli_common import AsJson, ConfigFile, Overrides, Url, ask, console, settings_of
from streamlearn.errors import StreamlearnError
from streamlearn.settings import Settings

_MOST_POINTS, _COLUMNS = 1000, 8  # the columns fit 80 characters


def evaluate(
    html: Annotated[Path | None, typer.Option(help="Write one self-contained page.", metavar="FILE")] = None,
    state_dir: Annotated[
        Path | None, typer.Option(help="Measure anew, from a state directory that no daemon uses.", metavar="DIR")
    ] = None,
    url: Url = "http://127.0.0.1:8080",
    config: ConfigFile = None,
    override: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Recall and forgetting of every task, over time and now; with --html also curves, boundaries and the worst."""
    if html is not None and not html.absolute().parent.is_dir():  # said before the work is done
        raise typer.BadParameter(f"{html.absolute().parent} is no directory", param_hint="--html")
    with ExitStack() as stack:
        if state_dir is None:
            report, scores, thumbnail = _of_daemon(url)
            origin = f"the daemon at {url}"
        else:
            settings = settings_of(config, [*(override or []), f"state_dir={state_dir}"])
            report, scores, thumbnail = _of_state(settings, stack)
            origin = f"generation {report['generation']} in {state_dir}, measured anew"
        if html is not None:
            from streamlearn.evaluation_html import render

            page = render(report, scores, thumbnail, origin)
            try:
                html.write_text(page, encoding="utf-8")
            except OSError as error:
                raise StreamlearnError(f"{html} cannot be written: {error.strerror}; name another file") from error
    if as_json:
        typer.echo(json.dumps({**report, "matrix": scores["matrix"]}))
        return
    _show(report, scores["matrix"], origin, html)


_Found = tuple[dict[str, Any], dict[str, Any], Callable[[str], bytes | None]]


def _of_daemon(url: str) -> _Found:
    def thumbnail(video_id: str) -> bytes | None:
        # Animated WebP, inside the JSON of a search for the clip itself: the one route that answers pictures as text.
        body = {"query": {"video_id": video_id}, "limit": 5, "include": ["thumbnail"]}
        try:
            found = ask(url, "/v1/search", body)["results"]
        except StreamlearnError:
            return None  # its frames are gone
        image = next((hit.get("thumbnail_b64") for hit in found if hit["video_id"] == video_id), None)
        return None if image is None else base64.b64decode(image)

    scores = ask(url, f"/v1/scores?k=5&most={_MOST_POINTS}&columns={_COLUMNS}")
    return ask(url, "/v1/evaluation"), scores, thumbnail


def _of_state(settings: Settings, stack: ExitStack) -> _Found:
    from streamlearn.evaluation_report import over_time
    from streamlearn.offline import opened
    from streamlearn.process import lock_state

    if not settings.state_dir.is_dir():
        raise typer.BadParameter(f"{settings.state_dir} is no directory", param_hint="--state-dir")
    stack.enter_context(lock_state(settings.state_dir))
    offline = stack.enter_context(opened(settings))
    report = offline.report(offline.measure())

    def thumbnail(video_id: str) -> bytes | None:
        clip = offline.catalog.clip(video_id)
        return None if clip is None else offline.frames.thumbnail(clip.row)

    found = offline.catalog.matrix.scores(k=5)
    return report, over_time(found, offline.tasks.tasks, _MOST_POINTS, _COLUMNS), thumbnail


def _show(report: Mapping[str, Any], matrix: Mapping[str, Any], origin: str, html: Path | None) -> None:
    out = console()
    out.print(_over_time(matrix))
    says = "R@5 served when so many clips had been seen, pairs below; in brackets: not asked since the column before"
    out.print(Text(says), style="dim")
    table = Table("task", "pairs", "view", "R@1", "R@5", "95 %", "R@10", "forgotten R@5")
    for task in report["tasks"]:
        for view in ("served", "single", "pool", "learner"):
            of = {v["k"]: v for v in task["values"] if (v["view"], v["direction"]) == (view, "t2v")}
            if of:
                low, high = of[5]["low"], of[5]["high"]
                bounds = "" if low is None else f"{low:.0%} to {high:.0%}"
                recall = [f"{of[k]['recall']:.0%}" for k in (1, 5, 10)]
                recall.insert(2, bounds)
                lost = of[5]["forgetting"]
                facts = (task["name"], str(task["pairs"]), view, *recall, "" if lost is None else f"{lost:.0%}")
                table.add_row(*map(Text, facts))  # or a name with brackets would be read as markup
    out.print(table)
    out.print(Text(f"text to video, {origin}"), style="dim")
    for line in _compared(report):
        out.print(Text(line))
    if html is not None:
        out.print(Text(f"written: {html}"))


def _over_time(matrix: Mapping[str, Any]) -> Table:
    table = Table("task", *(f"{time:,}" for time in matrix["times"]), padding=(0, 1), box=SIMPLE_HEAD)
    for row in matrix["rows"]:
        if (row["view"], row["direction"], row["k"]) == ("served", "t2v", 5):
            table.add_row(Text(row["task"]), *map(_cell, row["cells"]))
    return table


def _cell(cell: Mapping[str, Any] | None) -> Text:
    if cell is None or cell["value"] is None:
        return Text("")
    recall = f"{cell['value']:.0%}" if cell["asked"] else f"({cell['value']:.0%})"
    return Text.assemble(recall, (f"\n{cell['pairs']}", "dim"))


def _compared(report: Mapping[str, Any]) -> list[str]:
    """Whether what was measured anew is what the daemon recorded, where it recorded anything of the same time."""
    if "differences" not in report:
        return []
    lines, differing = [], ", ".join(report["differences"])
    if differing:
        lines.append(f"not equal to what was recorded: {differing}")
    elif len(report["not_comparable"]) < sum(bool(task["values"]) for task in report["tasks"]):
        lines.append("equal to what was recorded")
    for one in report["not_comparable"]:
        at = "never recorded" if one["recorded_at"] is None else f"recorded at clip {one['recorded_at']:,}"
        lines.append(f"{one['task']}: {at}, the checkpoint is at clip {report['clips']:,}: not comparable")
    return lines
