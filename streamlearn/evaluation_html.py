"""The evaluation report as one HTML file that needs nothing else: no script, no font, no picture from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

_STYLE = """
:root { color-scheme: light dark; font: 15px/1.45 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin: 2rem 0 .5rem; font-size: 1.1rem; } p, small { color: GrayText; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #8884; }
th:first-child, td:first-child { text-align: left; } .before { color: GrayText; }
svg { width: 100%; height: auto; border: 1px solid #8884; border-radius: 10px; }
svg text { fill: currentColor; font-size: 11px; }
ol { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem; }
ol { padding: 0; list-style: none; }
li { display: grid; grid-template-columns: 72px 1fr; gap: .7rem; } li img { width: 72px; border-radius: 8px; }
li span { overflow-wrap: anywhere; }
"""
_COLOURS = ("#3b82d6", "#b35ba3", "#3a9a58", "#d0702f", "#7d6ee0", "#b08a1c")
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 720, 240, 40, 20

Thumbnail = Callable[[str], bytes | None]


def render(report: Mapping[str, Any], scores: Mapping[str, Any], thumbnail: Thumbnail, origin: str) -> str:
    """The page.

    Args:
        report: as `evaluation_report.report` makes it.
        scores: points, oldest first, and matrix, as `evaluation_report.over_time` makes them.
        thumbnail: a clip's animated WebP by its id; None where its frames are gone.
        origin: where all this is from, in words.
    """
    parts = [f"<h1>Recall over time</h1><p>{escape(origin)}</p>"]
    for view, direction, says in (
        ("served", "t2v", "what search finds, text to video"),
        ("single", "t2v", "what it would find if today's text encoder asked all eras"),
        ("pool", "t2v", "what search finds, among a fixed number of clips"),
        ("learner", "t2v", "today's encoders alone, text to video"),
        ("served", "v2t", "stored vectors, video to text"),
        ("learner", "v2t", "today's encoders alone, video to text"),
    ):
        of = [p for p in scores["points"] if (p["view"], p["direction"], p["k"]) == (view, direction, 5)]
        if of:
            parts.append(f"<h2>Recall@5, {view} <small>{escape(says)}</small></h2>")
            parts.append(_curves(of, report["boundaries"]))
            parts.append(_matrix(scores["matrix"], view, direction))
            parts.append(_now(report, view, direction))
    parts.append("<h2>Over all tasks</h2>" + _summary(report["summary"]))
    parts.append("<h2>Boundaries</h2>" + _boundaries(report["boundaries"]))
    parts.append("<h2>Hardest queries <small>captions of held-out clips that find them last</small></h2>")
    parts.append(_worst(report["hardest_queries"], "its clip is at rank", thumbnail))
    parts.append("<h2>Worst clips <small>held-out clips whose caption is far from them</small></h2>")
    parts.append(_worst(report["worst_clips"], "its caption is at rank", thumbnail))
    head = f'<meta charset="utf-8"><title>streamlearn: recall over time</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def _matrix(matrix: Mapping[str, Any], view: str, direction: str) -> str:
    """Recall@5 of the tasks at some times of evaluation, with the pairs behind it."""
    rows = [row for row in matrix["rows"] if (row["view"], row["direction"], row["k"]) == (view, direction, 5)]
    head = "".join(f"<th>{time:,}</th>" for time in matrix["times"])
    body = "".join(f"<tr><td>{escape(row['task'])}</td>{''.join(map(_cell, row['cells']))}</tr>" for row in rows)
    says = "R@5 when so many clips had been seen, and the pairs behind it; grey: not asked since the column before"
    return f"<p>{says}</p><table><tr><th>task</th>{head}</tr>{body}</table>"


def _cell(cell: Mapping[str, Any] | None) -> str:
    if cell is None or cell["value"] is None:
        return "<td></td>"
    bounds = "" if cell["low"] is None else f", {_percent(cell['low'])} to {_percent(cell['high'])}"
    lost = "" if cell["forgetting"] is None else f", forgotten {_percent(cell['forgetting'])}"
    title = f"asked at clip {cell['clips_seen']:,}{bounds}{lost}"
    grey = "" if cell["asked"] else ' class="before"'
    return f'<td{grey} title="{title}">{_percent(cell["value"])} <small>{cell["pairs"]}</small></td>'


def _now(report: Mapping[str, Any], view: str, direction: str) -> str:
    rows = []
    for task in report["tasks"]:
        values = {v["k"]: v for v in task["values"] if (v["view"], v["direction"]) == (view, direction)}
        if not values:
            continue
        cells = [task["name"], str(task["pairs"])]
        for k in (1, 5, 10):
            value = values[k]
            bounds = "" if value["low"] is None else f" ({_percent(value['low'])} to {_percent(value['high'])})"
            cells.append(_percent(value["recall"]) + bounds)
        cells.append(_percent(values[5]["forgetting"]))
        median = [m["value"] for m in task["median_rank"] if (m["view"], m["direction"]) == (view, direction)]
        cells.append(f"{median[0]:.1f}" if median else "")
        rows.append(cells)
    return _table(["task", "pairs", "R@1", "R@5", "R@10", "forgotten, R@5", "median rank"], rows)


def _summary(summary: Sequence[Mapping[str, Any]]) -> str:
    names = ("harmonic_mean", "backward_transfer", "forward_transfer", "anytime_minimum")
    rows = [
        [f"{s['view']}, {s['direction']}, R@{s['k']}", *(_ratio(s[name], s["pairs"][name]) for name in names)]
        for s in summary
        if s["k"] == 5
    ]
    return _table(["", "harmonic mean", "backward transfer", "forward transfer", "any-time minimum"], rows)


def _boundaries(boundaries: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [b["task"], f"{b['clips']:,}", b["cause"], "" if b["score"] is None else f"{b['score']:.1f}"]
        for b in boundaries
    ]  # fmt: skip
    return _table(["task", "begins at clip", "cause", "score"], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{line(head, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


def _curves(points: Sequence[Mapping[str, Any]], boundaries: Sequence[Mapping[str, Any]]) -> str:
    last = max(1, *(p["clips_seen"] for p in points), *(b["clips"] for b in boundaries))

    def at(clips: float, value: float) -> str:
        return f"{_LEFT + (_WIDTH - _LEFT - 8) * clips / last:.1f},{8 + (_HEIGHT - _BOTTOM - 8) * (1 - value):.1f}"

    out = []
    for value in (0, 0.5, 1):
        x, y = at(0, value).split(",")
        out.append(f'<line x1="{x}" x2="{_WIDTH - 8}" y1="{y}" y2="{y}" stroke="#8884"/>')
        out.append(f'<text x="4" y="{float(y) + 4}">{_percent(value)}</text>')
    out.append(f'<text x="{_WIDTH - 8}" y="{_HEIGHT - 5}" text-anchor="end">{last:,} clips</text>')
    for b in boundaries:
        x = at(b["clips"], 0).split(",")[0]
        title = f"<title>{escape(b['task'])} begins: {escape(b['cause'])}</title>"
        line = f'<line x1="{x}" x2="{x}" y1="8" y2="{_HEIGHT - _BOTTOM}" stroke="#888" stroke-dasharray="3 3">{title}'
        out.append(f"{line}</line>")
    for i, task in enumerate(dict.fromkeys(p["task"] for p in points)):
        of = [at(p["clips_seen"], p["value"]) for p in points if p["task"] == task and p["value"] is not None]
        if not of:
            continue
        colour, title = _COLOURS[i % len(_COLOURS)], f"<title>{escape(task)}</title>"
        x, y = of[-1].split(",")
        out.append(
            f'<polyline points="{" ".join(of)}" fill="none" stroke="{colour}" stroke-width="2">{title}</polyline>'
        )
        out.append(f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}">{title}</circle>')
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="recall over the clips seen">{"".join(out)}</svg>'
    )


def _worst(worst: Sequence[Mapping[str, Any]], says: str, thumbnail: Thumbnail) -> str:
    items = []
    for one in worst:
        image = thumbnail(one["video_id"])
        picture = "<span></span>"
        if image is not None:
            data = base64.b64encode(image).decode()
            picture = f'<img alt="" src="data:image/webp;base64,{data}">'
        facts = f"{says} {one['rank']:,}, {one['task']}, {one['video_id']}"
        items.append(f"<li>{picture}<span>{escape(one['question'])}<br><small>{escape(facts)}</small></span></li>")
    return f"<ol>{''.join(items)}</ol>" if items else "<p>Every one is found first.</p>"


def _ratio(value: float | None, pairs: int) -> str:
    return "" if value is None else f"{_percent(value)} of {pairs} pairs"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"
