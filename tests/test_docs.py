"""What the documents say is so: settings, series, functions, commands, links, examples."""

from __future__ import annotations

import ast
import json
import re
import sqlite3
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from docs import generate
from streamlearn import cli
from streamlearn.envelope import parse
from streamlearn.errors import SourceError
from streamlearn.message import ClipMessage
from streamlearn.metrics import series_names
from streamlearn.records import Partition
from streamlearn.settings import describe, load
from streamlearn.source import load_source_class
from tests.contracts import check_source
from tests.ops.exporter import filled_registry

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
README = (ROOT / "README.md").read_text(encoding="utf-8")
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def fences(text: str, language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def code(text: str) -> Iterator[str]:
    """Everything in a document that is set as code, a line or a span at a time."""
    for block in re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield from block.splitlines()
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def leaves(tables: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Settings of a TOML file by their dotted names."""
    for name, value in tables.items():
        if isinstance(value, dict) and name != "source_options":
            yield from ((f"{name}.{leaf}", inner) for leaf, inner in value.items())
        else:
            yield name, value


def anchors(text: str) -> set[str]:
    """The fragments that a Markdown page answers to: its headings as GitHub writes them."""
    headings = re.findall(r"^#+ +(.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def functions(path: Path) -> set[str]:
    """Names of a module's functions and of its classes' methods: `run`, `Loader.submit`."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        inner = node.body if isinstance(node, ast.ClassDef) else []
        names |= {f"{node.name}.{n.name}" for n in inner if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}  # type: ignore[union-attr]
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
    return names


# --- pages that are made from the code --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "made"), [("settings.md", generate.settings_page), ("metrics.md", generate.metrics_page)]
)
def test_page_is_what_the_code_says(name: str, made: object) -> None:
    assert callable(made)
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == made(), "run: python docs/generate.py"


def test_every_setting_has_a_meaning_and_a_line_of_its_own() -> None:
    page = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
    for name, _, meaning in describe(None):
        assert meaning.endswith((".", "...")), f"{name}: its description is not a sentence"
        assert page.count(f"| `{name}` |") == 1


def test_every_series_has_a_line_with_the_labels_it_is_exported_with() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| \w+ \| (.*?) \| .+ \|$", (ROOT / "docs/metrics.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    documented = {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows}
    exported: dict[str, set[str]] = {}
    for family in filled_registry().collect():
        name = family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
        exported[name] = {label for sample in family.samples for label in sample.labels} - {"le"}
    assert documented == exported
    assert set(documented) == set(series_names())
    assert set().union(*documented.values()) == set(generate.LABELS)


# --- what any page may say --------------------------------------------------------------------------------------------


@each_page
def test_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, fragment = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), f"{page.name}: there is no {target}"
        if fragment:
            assert fragment in anchors(file.read_text(encoding="utf-8")), f"{page.name}: {target} has no such heading"


@each_page
def test_setting_exists(page: Path) -> None:
    names = {name for name, _, _ in describe(None)}
    sections = {name.partition(".")[0] for name in names if "." in name}
    for span in code(page.read_text(encoding="utf-8")):
        found = re.findall(r"(?<![\w./])([a-z_]+)\.([a-z_]+)(?![\w./(])", span)
        named = {f"{section}.{leaf}" for section, leaf in found if section in sections and leaf not in ("py", "md")}
        for variable in re.findall(r"STREAMLEARN_([A-Z_]+__[A-Z_]+)", span):
            named.add(variable.lower().replace("__", "."))
        assert named <= names, f"{page.name}: {span}"


@each_page
def test_series_exists(page: Path) -> None:
    suffixes = r"(_bucket|_sum|_count)$"
    for span in code(page.read_text(encoding="utf-8")):
        for name in re.findall(r"(?<![\w./])streamlearn_[a-z_]+(?![\w./])", span):
            assert re.sub(suffixes, "", name) in series_names(), f"{page.name}: {span}"


@each_page
def test_verb_exists(page: Path) -> None:
    """`streamlearn generations ls`, and the option behind it, are what the command line offers."""
    top = typer.main.get_command(cli.app)
    for span in code(page.read_text(encoding="utf-8")):
        for words in re.findall(r"(?:^|/|\$ |: )streamlearn((?: +[^\s#|;&]+)+)", span):
            command, rest = top, words.split()
            while rest and hasattr(command, "commands") and not rest[0].startswith("-"):
                assert rest[0] in command.commands, f"{page.name}: {span}"
                command, rest = command.commands[rest[0]], rest[1:]
            options = {option for parameter in command.params for option in parameter.opts}
            used = {word.partition("=")[0] for word in rest if word.startswith("--")}
            assert used <= options | {"--help"}, f"{page.name}: {span}"


@each_page
def test_make_target_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for span in code(page.read_text(encoding="utf-8")):
        for target in re.findall(r"^make ([a-z]+)", span):
            assert target in targets, f"{page.name}: {span}"


@each_page
def test_settings_file_is_accepted(page: Path, tmp_path: Path) -> None:
    for block in fences(page.read_text(encoding="utf-8"), "toml"):
        file = tmp_path / "streamlearn.toml"
        file.write_text(block, encoding="utf-8")
        given = dict(leaves(tomllib.loads(block)))
        in_force = {name: value for name, value, _ in describe(load(file)) if name in given}
        assert in_force == {name: json.dumps(value) for name, value in given.items()}


def test_document_that_the_code_names_exists() -> None:
    sources = [p for top in ("streamlearn", "connectors", "tests", "ops") for p in (ROOT / top).rglob("*.[py]*")]
    named = {
        name
        for path in sources
        if path.suffix in (".py", ".yml", ".yaml")
        for name in re.findall(r"docs/\w+\.md", path.read_text(encoding="utf-8"))
    }
    assert {name for name in named if not (ROOT / name).is_file()} == set()


# --- README -----------------------------------------------------------------------------------------------------------


def test_readme_begins_with_one_sentence_and_has_both_commands_on_its_first_screen() -> None:
    lines = README.splitlines()
    assert lines[0] == "# streamlearn"
    assert lines[2] == tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["description"]
    first_screen = "\n".join(lines[:20])
    assert re.search(r"^make demo\b", first_screen, re.MULTILINE)
    assert re.search(r"^make test\b", first_screen, re.MULTILINE)


def test_readme_tree_has_every_module_where_it_lies_with_a_comment() -> None:
    tree = next(block for block in fences(README, "") if block.startswith(".\n"))
    folders: list[str] = []
    listed = set()
    for line in tree.splitlines()[1:]:
        match = re.fullmatch(r"((?:│   )*)[├└]── (\S+) +(\S.*)", line)
        assert match, f"no path with a comment: {line}"
        depth = len(match[1]) // 4
        folders = folders[:depth]
        path = ROOT / "/".join([*folders, match[2]])
        assert path.is_dir() if match[2].endswith("/") else path.is_file(), f"there is no {path.relative_to(ROOT)}"
        if path.is_dir():
            folders.append(match[2].rstrip("/"))
        listed.add(path)
    modules = {path for top in ("streamlearn", "connectors") for path in (ROOT / top).glob("*.py")}
    assert modules - listed == set()


# --- path.md ----------------------------------------------------------------------------------------------------------


def test_path_is_ten_steps_and_every_function_on_it_exists() -> None:
    text = (ROOT / "docs/path.md").read_text(encoding="utf-8")
    steps = re.split(r"^\d+\. ", text, flags=re.MULTILINE)[1:]
    assert re.findall(r"^(\d+)\. ", text, re.MULTILINE) == [str(n) for n in range(1, 11)]
    for step in steps:
        named = re.findall(r"`([\w/]+\.py):([\w.]+)`", step)
        assert named, f"no function is named in: {step}"
        for file, function in named:
            assert function in functions(ROOT / file), f"{file}:{function}"


# --- decisions.md -----------------------------------------------------------------------------------------------------


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    for extra in project["project"]["optional-dependencies"].values():
        wanted += extra
    names = {re.split(r"[\[<>=; ]", line)[0].lower() for line in wanted}
    decisions = (ROOT / "docs/decisions.md").read_text(encoding="utf-8").lower()
    stubs = {name for name in names if name.startswith("types-")}
    assert {name for name in names - stubs if f"`{name}`" not in decisions} == set()


def test_every_decision_and_every_log_entry_has_a_date() -> None:
    for name in ("decisions.md", "log.md"):
        headings = re.findall(r"^## (.+)$", (ROOT / "docs" / name).read_text(encoding="utf-8"), re.MULTILINE)
        assert headings
        assert [h for h in headings if not re.match(r"\d{4}-\d\d-\d\d · ", h)] == []


# --- connectors.md ----------------------------------------------------------------------------------------------------


def test_the_example_connector_delivers_waits_resumes_and_pauses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (example,) = fences((ROOT / "docs/connectors.md").read_text(encoding="utf-8"), "python")
    (tmp_path / "table_source.py").write_text(example, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    table = sqlite3.connect(tmp_path / "clips.db")
    table.execute(re.search(r"CREATE TABLE .*\)", example)[0])  # type: ignore[index]
    for i in range(70):
        message = f'{{"video_id": "clip-{i}", "caption": "a ball", "media_b64": "AAAA"}}'
        table.execute("INSERT INTO clips (message) VALUES (?)", [message])
    table.commit()

    settings = load(
        None, {"source": "table_source:TableSource", "source_options": {"path": str(tmp_path / "clips.db")}}
    )
    source = load_source_class(settings.source).from_settings(settings)
    partition = Partition("clips", "0")
    source.start({})
    assert source.lag() == {partition: 70}
    records = [*source.poll(0.01), *source.poll(0.01)]
    assert source.poll(0.01) == []
    messages = [parse(record, max_bytes=1000, max_caption_chars=100) for record in records]
    assert [m.video_id for m in messages if isinstance(m, ClipMessage)] == [f"clip-{i}" for i in range(70)]

    check_source(lambda: load_source_class(settings.source).from_settings(settings), 70, cuts=5)

    table.execute("INSERT INTO clips (message) VALUES ('{')")
    table.commit()
    source.pause()
    assert source.poll(0.01) == []
    source.resume()
    assert [record.value for record in source.poll(0.01)] == [b"{"]
    source.commit({partition: 72})
    source.close()
    source.close()

    resumed = load_source_class(settings.source).from_settings(settings)
    resumed.start({partition: records[30].position.offset + 1})
    assert [record.position for record in resumed.poll(0.01)][:39] == [record.position for record in records[31:]]
    resumed.close()

    table.execute("DROP TABLE clips")
    table.commit()
    broken = load_source_class(settings.source).from_settings(settings)
    broken.start({})
    with pytest.raises(SourceError, match="cannot be read"):
        broken.poll(0.01)
    broken.close()
    table.close()


# --- LICENSE ----------------------------------------------------------------------------------------------------------


def test_license_is_the_one_that_the_package_declares() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["license"]
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert declared == "Apache-2.0"
    assert re.search(r"Apache License\s+Version 2\.0, January 2004", text)
    assert text.rstrip().endswith("limitations under the License.")
