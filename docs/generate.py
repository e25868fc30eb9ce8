"""Writes docs/settings.md and docs/metrics.md from the code that they describe.

    python docs/generate.py

`tests/test_docs.py` fails where the files and the code differ. What a setting or a series means is written once, beside
it, in `streamlearn/settings*.py` and `streamlearn/metrics.py`; only the labels are explained here.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from streamlearn.errors import CODES
from streamlearn.metrics import DELIVERIES, KS, OUTCOMES, SEARCH_STAGES, STAGES, Metrics
from streamlearn.settings import Section, Settings, describe

HERE = Path(__file__).parent

SETTINGS_HEAD = """# Settings

Made from `streamlearn/settings*.py` by `docs/generate.py`; do not edit. `streamlearn config show` prints what is in
force.

Later ones win: the defaults below, a TOML file (`--config FILE` or `STREAMLEARN_CONFIG`), the environment, flags
(`--set NAME=VALUE`). A setting's environment variable is its name in capitals behind `STREAMLEARN_`, with `__` for the
dot: `STREAMLEARN_KAFKA__BOOTSTRAP_SERVERS=a:9092,b:9092`. Lists are written so or as JSON, maps as JSON. A wrong or
unknown setting stops the start with a sentence; `streamlearn config check` says it without starting.

Units are in the names: `_s` seconds, `_ms` milliseconds, `_bytes`, `_px` pixels, `_clips`, `_batches`. Between
evaluations, checkpoints and published snapshots every record counts as a clip, also a tombstone or a rejected one.
"""

METRICS_HEAD = """# Metrics

Made from `streamlearn/metrics.py` by `docs/generate.py`; do not edit. All are at `/metrics`, in base units; ratios are
0 to 1. Histograms also have `_bucket`, `_sum` and `_count`. Beside them stand the process and Python metrics of the
Prometheus client. [operations.md](operations.md#alerts) says which of them raise an alert, and what to do then.

"""

LABELS = {
    "task": "Name of a task: `t1`, `t2` ... or an operator's. At most 1000 different ones.",
    "direction": "`t2v`: a caption looks for its clip. `v2t`: a clip looks for its caption.",
    "k": ", ".join(f"`{k}`" for k in KS) + ": how many of the first answers count.",
    "view": "`served`: what a user gets, the same search over the index as it stands, all clips in one pool."
    " `single`: the same questions and clips, asked as `search.mode = single` asks, whatever is set: by today's text"
    " encoder and cosine alone; text to video only."
    " `learner`: each task's own held-out clips, encoded anew by today's momentum encoders: what the weights still"
    " know. `pool`: as served, but among `evaluate.pool_clips` clips drawn from the pool: comparable while that grows;"
    " text to video only.",
    "era": "Number of an era; those that are served.",
    "outcome": ", ".join(f"`{outcome}`" for outcome in OUTCOMES) + ".",
    "code": "Why a record was rejected; [operations.md](operations.md#dead-letters) explains the codes. One of "
    + ", ".join(f"`{code}`" for codes in CODES.values() for code in codes)
    + ".",
    "delivery": ", ".join(f"`{delivery}`" for delivery in DELIVERIES)
    + ": there was nowhere to send it for so long that newer ones took its place, or the daemon ended.",
    "topic": "Of the source: a Kafka topic, or the folder's name.",
    "partition": "Of the topic.",
    "detector": "`mean_shift` or `none`.",
    "cause": "`start` of the stream, `drift`, or `operator`.",
    "stage": "Of the pipeline: "
    + ", ".join(f"`{stage}`" for stage in STAGES)
    + "; of a search: "
    + ", ".join(f"`{stage}`" for stage in SEARCH_STAGES)
    + ".",
    "version": "Of streamlearn.",
    "model": "Model version at the start: fingerprint, lineage and step.",
}


def settings_page() -> str:
    """Every setting: one table a section."""
    rows: dict[str, list[str]] = {}
    for name, default, meaning in describe(None):
        section, _, leaf = name.rpartition(".")
        values = _values(_schemas(section)[leaf])
        rows.setdefault(section, []).append(f"| `{name}` | `{default}` | {values} | {_cell(meaning)} |")
    out = [SETTINGS_HEAD]
    for section, lines in rows.items():
        title = f"## [{section}]\n\n{_section(section).__doc__}" if section else "## Without a section"
        out.append("\n".join([title, "", "| setting | default | values | meaning |", "|---|---|---|---|", *lines, ""]))
    return "\n".join(out)


def metrics_page() -> str:
    """Every series with its labels, then what the labels mean."""
    metrics = Metrics.create(CollectorRegistry())
    out = [METRICS_HEAD + "| series | type | labels | meaning |", "|---|---|---|---|"]
    for field in fields(metrics):
        family = next(iter(getattr(metrics, field.name).describe()))
        names = ("version", "model") if family.type == "info" else getattr(metrics, field.name)._labelnames
        labels = ", ".join(f"`{label}`" for label in names)
        out.append(f"| `streamlearn_{field.name}` | {family.type} | {labels} | {_cell(family.documentation)} |")
    out += ["", "## Labels", "", "| label | values |", "|---|---|"]
    out += [f"| `{label}` | {meaning} |" for label, meaning in LABELS.items()]
    return "\n".join(out) + "\n"


def _section(name: str) -> type[Section]:
    section = Settings.model_fields[name].annotation
    assert isinstance(section, type)
    assert issubclass(section, Section)
    return section


def _schemas(section: str) -> dict[str, Any]:
    properties: dict[str, Any] = (_section(section) if section else Settings).model_json_schema()["properties"]
    return properties


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _values(schema: dict[str, Any]) -> str:
    """What may be given, in words: the type, then its bounds."""
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(_values(option) for option in schema["anyOf"])
    words = {"null": "nothing", "array": "list", "object": "map", "string": "text", "boolean": "`true` or `false`"}
    kind = {"path": "path"}.get(schema.get("format", ""), words.get(schema["type"], schema["type"]))
    bounds = [
        f"{sign} {schema[key]:g}"
        for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        if key in schema
    ]
    return " ".join([kind, ", ".join(bounds)]).strip()


if __name__ == "__main__":
    (HERE / "settings.md").write_text(settings_page(), encoding="utf-8")
    (HERE / "metrics.md").write_text(metrics_page(), encoding="utf-8")
