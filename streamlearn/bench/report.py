"""From JSON lines to Markdown: mean and standard error of each method over the reported trials.

A group of trials shares everything but seed and order. Differences between methods are taken trial by trial, on the
same seed and order, so that what all methods have in common cancels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from streamlearn.bench.curve import KEPT
from streamlearn.bench.gallery import DIRECTIONS
from streamlearn.bench.runs import Line
from streamlearn.bench.trial import COPIES, SERVED

#: A number of a trial's result; None where it has none.
Measure = Callable[[Mapping[str, Any]], float | None]
_SHARED = ("corpus", "boundaries", "mixing_clips", "passes", "learner", "model", "drift", "search")


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and its standard error where there is more than one value.

    >>> mean_and_error([1.0, 3.0])
    (2.0, 1.0)
    """
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, None
    variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def shown(values: Sequence[float], *, signed: bool = False) -> str:
    """`41.2 ± 0.8`; nothing where there is no value."""
    if not values:
        return ""
    mean, error = mean_and_error(values)
    text = f"{mean:+.1f}" if signed else f"{mean:.1f}"
    return text if error is None else f"{text} ± {error:.1f}"


def value(path: str) -> Measure:
    """Reads a dotted path, as `copies.local.final.5`."""

    def read(result: Mapping[str, Any]) -> float | None:
        found: Any = result
        for step in path.split("."):
            if not isinstance(found, Mapping) or step not in found:
                return None
            found = found[step]
        return float(found)

    return read


def setups(lines: Iterable[Line]) -> dict[str, list[Line]]:
    """Reported trials by what they share: the stream (rendered ones of any seed) and the settings."""
    found: dict[str, list[Line]] = {}
    for line in lines:
        if line["role"] == "reported":
            found.setdefault(_setup(line["spec"]), []).append(line)
    return found


def _setup(spec: Mapping[str, Any]) -> str:
    facts = {name: spec[name] for name in _SHARED if spec[name]}
    stream = Path(str(facts.pop("corpus"))).name
    if stream.startswith("synthetic-"):
        _, _, _, clips, test, _, size, *domains = stream.split("-")
        stream = f"{'-'.join(domains) or 'five domains'} rendered at {size} px, of each {clips} clips to learn from"
        stream += f" and {test} asked for"
    others = [f"{name} {json.dumps(v) if isinstance(v, dict) else v}" for name, v in facts.items()]
    return ", ".join([stream, *others])


def by_method(lines: Iterable[Line]) -> dict[str, list[Line]]:
    """Trials by method, best final recall first; the joint order is a method's name with "joint" behind it.

    A method that ran at several learning rates has a name for each.
    """
    lines = list(lines)
    rates: dict[str, set[float]] = {}
    for line in lines:
        rates.setdefault(line["spec"]["method"], set()).add(line["spec"]["learning_rate"])
    found: dict[str, list[Line]] = {}
    for line in lines:
        spec = line["spec"]
        name = spec["method"] + (f"@{spec['learning_rate']:g}" if len(rates[spec["method"]]) > 1 else "")
        found.setdefault(name + (" (joint)" if spec["order"] == "iid" else ""), []).append(line)
    final = value(f"copies.{SERVED}.final.5")
    return dict(sorted(found.items(), key=lambda item: -_mean(item[1], final)))


def _mean(lines: Sequence[Line], measure: Measure) -> float:
    values = numbers(lines, measure)
    return sum(values) / len(values) if values else -math.inf


def numbers(lines: Iterable[Line], measure: Measure) -> list[float]:
    """A measure of each trial that has it."""
    return [v for line in lines if (v := measure(line["result"])) is not None]


def differences(lines: Iterable[Line], others: Iterable[Line], measure: Measure) -> list[float]:
    """A measure of trials less that of the others' trials with the same seed and order."""
    base = {(line["spec"]["seed"], line["spec"]["order"]): measure(line["result"]) for line in others}
    found = []
    for line in lines:
        mine, other = measure(line["result"]), base.get((line["spec"]["seed"], line["spec"]["order"]))
        if mine is not None and other is not None:
            found.append(mine - other)
    return found


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all but the first column to the right."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def learner_table(methods: Mapping[str, Sequence[Line]]) -> str:
    """The learner's own view: each task's gallery encoded by today's served copy."""
    head = [
        "method", "lr", "R@5 final", "R@5 learned", "R@1 final", "R@1 learned", "R@10 final", "forgetting R@5, %",
        "BWT R@5", "harmonic R@5", "any-time R@5", "pooled R@1", "pooled R@5", "median rank, pooled", "pairs/s",
        "state MiB", "n",
    ]  # fmt: skip
    of = f"copies.{SERVED}"
    plain = [
        f"{of}.final.5",
        f"{of}.learned.5",
        f"{of}.final.1",
        f"{of}.learned.1",
        f"{of}.final.10",
        f"{of}.forgetting.5",
    ]
    plain += [f"{of}.bwt.5", f"{of}.harmonic.5", f"{of}.minimum.5"]
    rows = []
    for name, lines in methods.items():
        row = [f"`{name}`", "/".join(sorted({f"{line['spec']['learning_rate']:g}" for line in lines}))]
        row += [shown(numbers(lines, value(path))) for path in plain]
        row += [shown(numbers(lines, _both(f"{of}.pooled", what))) for what in ("1", "5", "median")]
        row += [f"{_mean(lines, value('pairs_per_s')):.0f}", f"{_mean(lines, value('state_bytes')) / 2**20:.0f}"]
        rows.append([*row, str(len(lines))])
    return table(head, rows)


def _both(path: str, what: str) -> Measure:
    """Mean of both directions."""
    there, back = value(f"{path}.t2v.{what}"), value(f"{path}.v2t.{what}")

    def read(result: Mapping[str, Any]) -> float | None:
        a, b = there(result), back(result)
        return None if a is None or b is None else (a + b) / 2

    return read


def tasks_table(methods: Mapping[str, Sequence[Line]]) -> str:
    """Recall and median rank at the end, both directions, in each task's own gallery and in one of all."""
    asked = {"1": "R@1", "5": "R@5", "10": "R@10", "median": "median rank"}
    rows = []
    for name, lines in methods.items():
        copies = [line["result"]["copies"][SERVED] for line in lines]
        tasks = dict.fromkeys(task for copy in copies for task in copy.get("tasks", ()))
        galleries = {task: [copy["tasks"][task] for copy in copies if task in copy["tasks"]] for task in tasks}
        for gallery, found in {**galleries, "all in one": [copy["pooled"] for copy in copies]}.items():
            cells = [shown([one[way][what] for one in found]) for way in DIRECTIONS for what in asked]
            rows.append([f"`{name}`, {gallery}", *cells])
    return table(["method, gallery", *(f"{way} {said}" for way in DIRECTIONS for said in asked.values())], rows)


def difference_table(methods: Mapping[str, Sequence[Line]], against: str) -> str:
    """Each method less one of them, trial by trial."""
    columns = {
        "R@5 final": value(f"copies.{SERVED}.final.5"),
        "R@1 final": value(f"copies.{SERVED}.final.1"),
        "R@1 learned": value(f"copies.{SERVED}.learned.1"),
        "R@5 learned": value(f"copies.{SERVED}.learned.5"),
        "forgetting R@5": value(f"copies.{SERVED}.forgetting.5"),
        "pooled R@5": _both(f"copies.{SERVED}.pooled", "5"),
        "eras: one encoder, R@5": value("served.judged.1.t2v.5"),
        "eras: all, R@5": value("served.judged.all.t2v.5"),
        "... among all clips: one encoder": value("served.judged.1.among.5"),
        "all": value("served.judged.all.among.5"),
    }
    rows = [
        [f"`{name}`", *(shown(differences(lines, methods[against], m), signed=True) for m in columns.values())]
        for name, lines in methods.items()
        if name != against
    ]
    return table([f"less `{against}`", *columns], rows)


def copies_table(methods: Mapping[str, Sequence[Line]]) -> str:
    """Which copy is best to serve: final and learned recall of each."""
    head = ["method"]
    for copy in COPIES:
        head += [f"{copy}: R@5 final", "learned", "R@1 final", "learned", "pooled R@5"]
    rows = []
    for name, lines in methods.items():
        row = [f"`{name}`"]
        for copy in COPIES:
            paths = [f"copies.{copy}.final.5", f"copies.{copy}.learned.5"]
            paths += [f"copies.{copy}.final.1", f"copies.{copy}.learned.1"]
            row += [shown(numbers(lines, value(path))) for path in paths]
            row.append(shown(numbers(lines, _both(f"copies.{copy}.pooled", "5"))))
        rows.append(row)
    return table(head, rows)


def curve_table(methods: Mapping[str, Sequence[Line]], rule: str = "judged", gallery: str = "t2v") -> str:
    """Text to video, R@1 / R@5, against the number of era encoders kept.

    Beside it the stored vectors asked with today's text encoder alone; over the pool of test clips also everything
    encoded anew by today's pair. The gallery "among" is all clips.
    """
    columns = {"encoded anew": f"copies.{SERVED}.pooled.t2v"} if gallery == "t2v" else {}
    columns |= {"mode single": f"served.single.{gallery}"}
    columns |= {f"{kept} encoder{'s' * (kept != '1')}": f"served.{rule}.{kept}.{gallery}" for kept in KEPT}
    if gallery == "t2v":
        others = {"cosine alone": "cosine", "back (v2t)": "v2t", "thinned query": "thinned"}
        columns |= {f"all, {what}": f"served.{rule}.all.{name}" for what, name in others.items()}
    rows = []
    for name, lines in methods.items():
        if not numbers(lines, value(f"served.{rule}.all.{gallery}.5")):
            continue
        cells = [[shown(numbers(lines, value(f"{path}.{k}"))) for k in (1, 5)] for path in columns.values()]
        eras = sorted({len(line["result"]["sealed_with"]) for line in lines})
        rows.append([f"`{name}`", *(" / ".join(cell).strip(" /") for cell in cells), "/".join(map(str, eras))])
    return table(["method", *columns, "eras"], rows) if rows else ""


def forgetting_table(methods: Mapping[str, Sequence[Line]]) -> str:
    """Forgetting, percent of the best recall so far: by users, who ask eras, and by the learner alone."""
    views = {
        "served": "served.judged.all.forgetting",
        "served, in a pool of fixed size": "served.judged.all.forgetting_pool",
        "learner": f"copies.{SERVED}.forgetting",
    }
    rows = []
    for name, lines in methods.items():
        row = [shown(numbers(lines, value(f"{path}.{k}"))) for path in views.values() for k in (1, 5)]
        if row[0]:
            rows.append([f"`{name}`", *row])
    return table(["method", *(f"{view}: R@{k}" for view in views for k in (1, 5))], rows)


def revisits_table(methods: Mapping[str, Sequence[Line]]) -> str:
    """R@1 / R@5 over the pool of clips that came back, and of all, by what encoded them."""
    ways, whose = ("anew", "old", "before"), ("came", "earlier", "all")
    rows = []
    for name, lines in methods.items():
        visits: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
        for line in lines:
            for visit in line["result"].get("revisits", ()):
                visits.setdefault((line["spec"]["order"], visit["clips"]), []).append(visit)
        for (order, clips), mine in visits.items():
            cells = [
                " / ".join(shown([visit[way][who][k] for visit in mine]) for k in ("1", "5"))
                for who in whose
                for way in ways
            ]
            rows.append([f"`{name}`, {order}, {clips} clips", *cells, str(len(mine))])
    return table(["returns", *(f"{who}: {way}" for who in whose for way in ways), "n"], rows) if rows else ""


def report(lines: Sequence[Line], against: str = "bmu-local") -> str:
    """The whole report as Markdown."""
    parts = ["# streamlearn bench cvlm", _sources(lines)]
    for setup, mine in setups(lines).items():
        methods = by_method(mine)
        seeds = sorted({line["spec"]["seed"] for line in mine})
        orders = sorted({line["spec"]["order"] for line in mine})
        tasks = dict.fromkeys(task for line in mine for task in line["result"]["copies"][SERVED].get("tasks", ()))
        parts += [
            f"## {setup}",
            f"Domains {', '.join(tasks)}; seeds {', '.join(map(str, seeds))}; orders {', '.join(orders)}."
            " Mean ± standard error.",
        ]
        several = against in methods and len(methods) > 1
        tables = {
            "Learner: each task's own gallery, encoded by today's served copy": learner_table(methods),
            "The same at the end, by task and direction": tasks_table(methods),
            "Differences, trial by trial": difference_table(methods, against) if several else "",
            "Copies": copies_table(methods),
            "Eras: R@1 / R@5 over the pool against the number of era encoders kept": curve_table(methods),
            "The same, eras always sealed with the momentum pair": curve_table(methods, "local"),
            "The same, eras read without readouts": curve_table(methods, "plain"),
            "Eras: the same among all clips, those that were learned, too": curve_table(methods, gallery="among"),
            "The same, eras read without readouts, among all clips": curve_table(methods, "plain", "among"),
            "Forgetting: what users lost, and what the learner lost, %": forgetting_table(methods),
            "Domains that come back: R@1 / R@5 over the pool": revisits_table(methods),
        }
        parts += [part for title, made in tables.items() if made for part in (f"### {title}", made)]
        full, thin = (numbers(mine, value(f"captions.{what}.5")) for what in ("full", "thinned"))
        parts.append(
            f"Searching the stored captions instead of the videos (TF-IDF): R@5 {shown(full)} for the caption in full,"
            f" {shown(thin)} with four tenths of its words missing."
        )
    return "\n\n".join(parts) + "\n"


def _sources(lines: Sequence[Line]) -> str:
    commits = sorted({str(line["commit"]) for line in lines})
    dates = sorted(line["date"][:10] for line in lines)
    machines = sorted({line["machine"] for line in lines})
    roles = {role: sum(line["role"] == role for line in lines) for role in ("tuning", "reported")}
    return (
        f"{roles['reported']} reported trials, {roles['tuning']} for tuning; commit {', '.join(commits)};"
        f" {dates[0]} to {dates[-1]}; {'; '.join(machines)}."
    )
