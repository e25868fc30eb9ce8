"""What the code may look like: who imports whom, how long a module is, what it must not do. Read from the source."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: A module imports only from layers above its own in this list, never from its own. README.md has the same order.
LAYERS: tuple[tuple[str, ...], ...] = (
    # nouns, and mathematics that needs none
    ("streamlearn", "errors", "records", "message", "schemas", "contrast", "connectors", "connectors.scenes"),
    ("durable", "retention", "cutover", "era_decisions", "wire", "connectors.kafka_schemas"),
    ("settings_base", "allocator", "recent", "page", "assets", "lineage", "encoders_frames"),
    ("encoders_tiny", "onset", "tail", "mailbox"),
    ("detector",),
    ("settings_learning", "settings_serving", "settings_sources"),
    # parts that know nouns alone
    ("settings", "metrics", "source", "envelope", "fetch", "decode", "drift", "evaluate", "score_book", "room"),
    (
        "encoders_pretrained",
        "recognition",
        "judge_sample",
        "drift_log",
        "heldout",
        "testing_evaluation",
        "signals",
        "drift_vote",
    ),
    ("encoders", "momentum_triton", "drift_library"),
    ("tune",),
    (
        "index_blocks",
        "era_scores",
        "era_words",
        "frames",
        "filters",
        "catalog_file",
        "checkpoint",
        "deadletters",
        "problems",
        "server",
        "process",
    ),
    (
        "connectors.folder_readers",
        "connectors.kafka_auth",
        "connectors.kafka_beginnings",
        "connectors.kafka_handover",
        "connectors.kafka_memo",
        "connectors.kafka_records",
        "connectors.kafka_stretches",
        "connectors.synthetic",
        "backlog",
        "connection",
        "deleting",
        "lag",
    ),
    # parts made of parts
    (
        "catalog_rows",
        "catalog_cuts",
        "momentum",
        "reservoir",
        "index_device",
        "index_lists",
        "index_view",
        "tasks",
        "loader",
        "feed",
    ),
    ("guard", "testing", "task_names"),
    ("methods.base", "connectors.folder_inbox", "connectors.kafka_client"),
    ("connectors.folder", "connectors.kafka_positions", "connectors.kafka_producer", "connectors.kafka_subscription"),
    ("connectors.kafka_listener", "connectors.kafka_topic", "publish_rows", "publish_journal", "publish_pace"),
    ("publish_csv", "publish_tar", "publish_messages"),
    ("methods.distill", "methods.inbatch", "methods.moco"),
    ("methods.bmu", "methods.lwf", "connectors.kafka_range", "connectors.kafka_publisher", "connectors.kafka_events"),
    ("connectors.kafka_letters", "connectors.kafka_replay", "cli_common", "cli_progress", "publish_sources"),
    ("methods.ctp", "routes_clips", "routes_evaluation"),
    ("methods", "catalog_learned", "catalog_scores", "judge"),
    ("catalog_reader", "watch"),
    ("catalog", "learner", "api", "publish", "dlq", "connectors.kafka_reader"),
    ("routes_generations", "generation_facts", "rollback"),
    ("index_compact", "era_view", "events"),
    ("index", "text_stack", "queries", "era_judges", "paging"),
    ("snapshots", "era_maps"),
    ("era_readout",),
    ("era_merge",),
    ("era",),
    ("era_clips",),
    ("era_bounds",),
    ("eras", "search", "stored_clips", "warmup", "clip_writer", "connectors.kafka"),
    ("ledger", "evaluator", "frozen_clips", "waiting"),
    ("scoreboard", "evaluation_report", "evaluation_html"),
    ("examiner",),
    # the daemon: one cut of its state, the loop over it, the composition root, the verbs
    ("cut",),
    ("state", "offline"),
    ("service_evaluation",),
    ("pipeline", "service"),
    ("routes_tasks", "service_tasks", "cli_tasks", "service_generations"),
    ("app",),
    ("cli_eval",),
    ("demo", "replay"),
    ("cli_streams", "cli_generations", "cli_publish"),
    # the benchmark, beside the daemon: learner and parts, no source and no state directory
    ("bench",),
    ("bench.corpus", "bench.methods", "bench.remembered"),
    ("bench.schedule", "bench.gallery"),
    ("bench.sealed", "bench.options"),
    ("bench.curve",),
    ("bench.revisits",),
    ("bench.trial",),
    ("bench.runs",),
    ("bench.report",),
    ("bench.plots", "bench.quick"),
    ("cli_bench",),
    ("cli",),
    ("__main__",),
)

LONGEST = 320
#: Those that may be longer, each with its reason.
LONGER = {
    "pipeline": 320,  # shorter, in truth: the loop is what everybody reads
}

#: Sleeps to keep a pace, in a process of its own; nothing waits for it.
PACES_ITSELF = "connectors.synthetic"

CONNECTORS_MAY_KNOW = {"errors", "records", "source"}


def modules() -> dict[str, Path]:
    """Every module by its name below `streamlearn`; the package itself is "streamlearn"."""
    found = {}
    for folder, prefix in ((ROOT / "streamlearn", ()), (ROOT / "connectors", ("connectors",))):
        for path in folder.rglob("*.py"):
            parts = (*prefix, *path.relative_to(folder).with_suffix("").parts)
            found[".".join(part for part in parts if part != "__init__") or "streamlearn"] = path
    return found


MODULES = modules()
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
each_module = pytest.mark.parametrize("name", sorted(MODULES))


def imports(name: str) -> Iterator[str]:
    """The modules of this project that a module imports, wherever in it the import stands."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            full = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            full = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for path in full:
            short = path.removeprefix("streamlearn.")
            if path.partition(".")[0] == "streamlearn":
                # What is imported from a module may be a module itself, or a name in it.
                yield short if short in MODULES else short.rpartition(".")[0] or "streamlearn"


def tracked_texts() -> Iterator[tuple[str, str]]:
    """Path and text of every file that is, or would be, in the repository."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("this is no git checkout: which files belong to the project is unknown")
    for name in listed.stdout.decode().split("\0"):
        path = ROOT / name
        if name and path.is_file() and b"\0" not in (data := path.read_bytes()):
            yield name, data.decode()


def test_every_module_has_its_place_in_the_layers_once() -> None:
    listed = [name for layer in LAYERS for name in layer]
    assert sorted(listed) == sorted(MODULES)


@each_module
def test_imports_go_up_the_layers_only(name: str) -> None:
    place = {module: i for i, layer in enumerate(LAYERS) for module in layer}
    assert [other for other in imports(name) if place[other] >= place[name]] == []


@each_module
def test_module_is_not_longer_than_it_may_be(name: str) -> None:
    assert len(MODULES[name].read_text(encoding="utf-8").splitlines()) <= LONGER.get(name, LONGEST)


@each_module
def test_module_says_what_it_is(name: str) -> None:
    assert ast.get_docstring(TREES[name])


@each_module
def test_module_neither_prints_nor_sleeps_nor_keeps_global_state(name: str) -> None:
    for node in ast.walk(TREES[name]):
        assert not isinstance(node, ast.Global), f"line {node.lineno}: global"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called != "print", f"line {node.lineno}: print"
            if name != PACES_ITSELF:
                assert called.rpartition(".")[2] != "sleep", f"line {node.lineno}: sleep; wait on an event instead"


@pytest.mark.parametrize("name", [name for name in sorted(MODULES) if name.startswith("connectors")])
def test_connector_knows_the_contract_and_not_the_daemon(name: str) -> None:
    others = {other for other in imports(name) if not other.startswith("connectors")}
    assert others <= CONNECTORS_MAY_KNOW


@pytest.mark.parametrize(
    "module",
    ["streamlearn.loader", "streamlearn.api", "streamlearn.connectors.kafka", "streamlearn.connectors.folder"],
)
def test_module_is_cheap_to_import(module: str) -> None:
    """Decoders are many, and each imports `loader`; torch alone is 200 MB in each of them."""
    heavy = "{'torch', 'transformers', 'faiss'} & set(sys.modules)"
    code = f"import sys, {module}; print(sorted({heavy}))"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_every_package_is_listed_in_pyproject() -> None:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = [path.parent for top in ("streamlearn", "connectors") for path in (ROOT / top).rglob("__init__.py")]
    names = [".".join(folder.relative_to(ROOT).parts) for folder in folders]
    names = [f"streamlearn.{name}" if name.startswith("connectors") else name for name in names]
    assert sorted(tool["packages"]) == sorted(names)
    assert tool["package-dir"] == {"streamlearn.connectors": "connectors"}


def test_no_text_names_a_machine_or_leaves_something_to_do() -> None:
    # The brackets keep this file from finding itself.
    words = re.compile(r"\b(TO[D]O|FIX[M]E|X[X]X)\b")
    place = re.compile(r"(?<![\w.:])/(?:work|home|Users|root)/[\w.-]|files\.python[h]osted\.org|py[p]i\.org")
    found = [
        f"{name}:{number}: {line.strip()[:80]}"
        for name, text in tracked_texts()
        for number, line in enumerate(text.splitlines(), 1)
        if words.search(line) or place.search(line)
    ]
    assert found == []
