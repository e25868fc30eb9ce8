"""`streamlearn eval`: the evaluation report of a running daemon, or of a state directory that none is using."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from streamlearn.cli_common import AsJson, ConfigFile, Overrides, Url, ask, settings_of
from streamlearn.errors import StreamlearnError
from streamlearn.settings import Settings

_MOST_POINTS = 1000


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
    """Recall and forgetting of every task: the matrix, and with --html curves, boundaries and the worst."""
    with ExitStack() as stack:
        if state_dir is None:
            report, points, thumbnail = _of_daemon(url)
            origin = f"the daemon at {url}"
        else:
            settings = settings_of(config, [*(override or []), f"state_dir={state_dir}"])
            report, points, thumbnail = _of_state(settings, stack)
            origin = f"generation {report['generation']} in {state_dir}, measured anew"
        if html is not None:
            from streamlearn.evaluation_html import render

            html.write_text(render(report, points, thumbnail, origin), encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(report))
        return
    _show(report, origin, html)


_Found = tuple[dict[str, Any], Sequence[Mapping[str, Any]], Callable[[str], bytes | None]]


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

    return ask(url, "/v1/evaluation"), ask(url, f"/v1/scores?k=5&most={_MOST_POINTS}")["points"], thumbnail


def _of_state(settings: Settings, stack: ExitStack) -> _Found:
    from streamlearn.evaluation_report import thinned
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

    return report, [asdict(s) for s in thinned(offline.catalog.matrix.scores(k=5), _MOST_POINTS)], thumbnail


def _show(report: Mapping[str, Any], origin: str, html: Path | None) -> None:
    out = Console()
    table = Table("task", "pairs", "view", "R@1", "R@5", "95 %", "R@10", "forgotten R@5")
    for task in report["tasks"]:
        for view in ("served", "pool", "learner"):
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
    if "differences" in report:
        differing = ", ".join(report["differences"])
        says = f"not equal to what was recorded: {differing}" if differing else "equal to what was recorded"
        out.print(Text(says))
    if html is not None:
        out.print(Text(f"written: {html}"))
