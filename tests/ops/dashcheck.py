"""Evaluate every query of a dashboard on a real Prometheus that scrapes a running exporter.

It knows how Grafana fills variables into queries; it knows nothing about what the series mean. From the command line:

    python tests/ops/dashcheck.py 127.0.0.1:8080 ops/grafana/dashboards/streamlearn.json

prints every problem and exits with 1 if there is one. It takes about ten seconds: rates need a few scrapes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CONFIG = Path(__file__).parents[2] / "ops/prometheus/prometheus.yml"

#: What Grafana makes of its own variables, at a scrape interval of one second.
_BUILT_IN = {"__rate_interval": "15s", "__interval": "5s", "__range": "60s"}
_VARIABLE = re.compile(r"\$\{?(\w+)\}?")
_LABEL_VALUES = re.compile(r"label_values\((?:(?P<selector>.+),\s*)?(?P<label>\w+)\)")
_LEGEND = re.compile(r"\{\{\s*(\w+)\s*\}\}")
_SCRAPES = 6


@dataclass(frozen=True)
class Prometheus:
    """The HTTP API of a running Prometheus at `url`."""

    url: str

    def get(self, path: str, **params: str | float) -> Any:
        """Return the answer's `data`.

        Raises:
            ValueError: Prometheus refuses the request; the message is its own.
        """
        query = urllib.parse.urlencode(params)
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise ValueError(json.load(error)["error"]) from None

    def recent(self, expr: str, window_s: float = 10) -> list[dict[str, Any]]:
        """Evaluate `expr` over the last `window_s` seconds; raise ValueError where it does not parse."""
        now = time.time()
        result: list[dict[str, Any]] = self.get("query_range", query=expr, start=now - window_s, end=now, step=1)[
            "result"
        ]
        return result


@contextmanager
def prometheus(target: str, folder: Path) -> Iterator[Prometheus]:
    """Run Prometheus on the project's own configuration and rules, scraping `target` every second.

    Args:
        target: host:port of the exporter that stands in for the job `streamlearn`.
        folder: an empty folder for its configuration, data and log.

    Raises:
        RuntimeError: it did not start, or did not reach the target, within half a minute.
    """
    config = yaml.safe_load(CONFIG.read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(CONFIG.parent / pattern) for pattern in config["rule_files"]]
    config["scrape_configs"] = [job for job in config["scrape_configs"] if job["job_name"] == "streamlearn"]
    config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
    del config["alerting"]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    log = folder / "prometheus.log"
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--web.listen-address=127.0.0.1:0",
    ]
    with log.open("wb") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT)
    try:
        address = _wait(lambda: re.search(r'msg="Listening on" address=(\S+)', log.read_text()), log)[1]
        server = Prometheus(f"http://{address}")
        _wait(lambda: _scrapes(server) >= _SCRAPES, log)
        yield server
    finally:
        process.terminate()
        process.wait(30)


def _scrapes(server: Prometheus) -> float:
    try:
        result = server.get("query", query='sum_over_time(up{job="streamlearn"}[1m])')["result"]
    except (ValueError, OSError):
        return 0.0  # it listens before it is ready
    return float(result[0]["value"][1]) if result else 0.0


def _wait(condition: Callable[[], Any], log: Path, timeout_s: float = 30) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise RuntimeError(f"Prometheus did not get there in {timeout_s:g} s:\n{log.read_text()[-2000:]}")
        time.sleep(0.05)
    return value


def panels(dashboard: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The panels that show data, those inside collapsed rows included."""
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            yield from panels(panel)
        elif panel["type"] != "text":
            yield panel


def queries(dashboard: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Every query as (where, PromQL with variables, legend); those of annotations have no legend."""
    for panel in panels(dashboard):
        for target in panel["targets"]:
            yield f"panel {panel['title']!r}", target["expr"], target.get("legendFormat", "")
    for annotation in dashboard["annotations"]["list"]:
        yield f"annotation {annotation['name']!r}", annotation["expr"], ""


def check_dashboard(server: Prometheus, dashboard: Mapping[str, Any], may_be_empty: Collection[str] = ()) -> list[str]:
    """Return a sentence for each query that is wrong or shows nothing.

    Every choice of a custom variable is tried.

    Args:
        server: it scrapes what the dashboard is about.
        dashboard: the parsed JSON.
        may_be_empty: series that need not be there; a query that names one of them may return nothing. Annotations
            always may.
    """
    problems: list[str] = []
    choices = _variables(server, dashboard, problems)
    for where, expr, legend in queries(dashboard):
        names = sorted(set(_VARIABLE.findall(expr)))
        if unknown := [name for name in names if name not in choices]:
            problems.append(f"{where}: unknown variable ${unknown[0]}: {expr}")
            continue
        optional = where.startswith("annotation") or any(series in expr for series in may_be_empty)
        for values in itertools.product(*(choices[name] for name in names)):
            filled = dict(zip(names, values, strict=True))
            problem = _evaluate(server, _fill(expr, filled), legend, optional)
            if problem:
                problems.append(f"{where}: {problem}")
    return problems


def _variables(server: Prometheus, dashboard: Mapping[str, Any], problems: list[str]) -> dict[str, list[str]]:
    """The values to try for each variable: one for those that Grafana asks Prometheus for, all for custom ones."""
    choices = {name: [value] for name, value in _BUILT_IN.items()}
    for variable in dashboard["templating"]["list"]:
        name = variable["name"]
        if variable["type"] == "custom":
            choices[name] = variable["query"].split(",")
        elif variable["type"] == "query":
            query = _fill(variable["query"]["query"], {name: values[0] for name, values in choices.items()})
            found = _LABEL_VALUES.fullmatch(query)
            if found is None:
                problems.append(f"variable {name!r}: not a label_values() query: {query}")
                continue
            params = {"match[]": found["selector"]} if found["selector"] else {}
            values = server.get(f"label/{found['label']}/values", **params)
            if not values:
                problems.append(f"variable {name!r}: no values: {query}")
            choices[name] = ["|".join(values)]
    return choices


def _fill(text: str, values: Mapping[str, str]) -> str:
    return _VARIABLE.sub(lambda variable: values[variable[1]], text)


def _evaluate(server: Prometheus, expr: str, legend: str, optional: bool) -> str | None:
    try:
        result = server.recent(expr)
    except ValueError as error:
        return f"{error}: {expr}"
    if not any(not math.isnan(float(value)) for series in result for _, value in series["values"]) and not optional:
        return f"no data: {expr}"
    for label in _LEGEND.findall(legend):
        if any(label not in series["metric"] for series in result):
            return f"the legend names a label {label!r} that the result has not: {expr}"
    return None


def check_rules(server: Prometheus) -> list[str]:
    """Return a sentence for each rule that Prometheus could not evaluate."""
    rules = [rule for group in server.get("rules")["groups"] for rule in group["rules"]]
    return [
        f"rule {rule['name']}: {rule['health']} {rule.get('lastError', '')}" for rule in rules if rule["health"] != "ok"
    ]


def main() -> int:
    """Check a dashboard against a running exporter."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", help="host:port of the exporter")
    parser.add_argument("dashboard", type=Path)
    parser.add_argument("--may-be-empty", nargs="*", default=[], metavar="SERIES")
    arguments = parser.parse_args()
    if shutil.which("prometheus") is None:
        print("prometheus is not on PATH: apt-get install prometheus", file=sys.stderr)
        return 2
    dashboard = json.loads(arguments.dashboard.read_text())
    with tempfile.TemporaryDirectory() as folder, prometheus(arguments.target, Path(folder)) as server:
        problems = check_dashboard(server, dashboard, arguments.may_be_empty) + check_rules(server)
    for problem in problems:
        print(problem)
    print(f"{len(list(queries(dashboard)))} queries, {len(problems)} problems")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
