"""Fixtures that more than one test module uses."""

from __future__ import annotations

import gc
import os
import re
import sys
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Read when torch and huggingface_hub are first imported: one thread each, and nothing is ever downloaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
# Read when the command line is first imported, by whichever test comes first: tables that are wide and plain.
os.environ["COLUMNS"] = "200"
os.environ["NO_COLOR"] = "1"

import pytest
import torch

from streamlearn import cli
from streamlearn.connectors.kafka import KafkaSource
from streamlearn.records import Offsets
from streamlearn.settings import KafkaSettings
from streamlearn.source import begin
from tests.kafka_broker import BrokerUnavailable, KafkaBroker, find_broker
from tests.kafka_source import OpenSource
from tests.said import Said, Say


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Small models on shared machines: more threads wait for each other longer than they compute."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def any_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    """One broker for the whole run; `kafka` is the fixture to use."""
    folder: Path = tmp_path_factory.mktemp("kafka")
    try:
        broker = find_broker(folder)
    except BrokerUnavailable as why:
        if os.environ.get("STREAMLEARN_REQUIRE_KAFKA") == "1":
            pytest.fail(str(why))
        pytest.skip(str(why))
    yield broker
    broker.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """kafka-python leaves sockets to the garbage collector, also connected ones, also in the middle of a test."""
    for item in items:
        if "any_kafka" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.filterwarnings("ignore:unclosed .socket.socket:ResourceWarning"))


@pytest.fixture
def kafka(any_kafka: KafkaBroker) -> Iterator[KafkaBroker]:
    """A real broker that runs, whatever the test before did to it."""
    yield any_kafka
    any_kafka.ensure_running()
    with warnings.catch_warnings():
        # kafka-python leaves the sockets of refused connections to the garbage collector; not to a later test's.
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
def own_kafka(kafka: KafkaBroker) -> KafkaBroker:
    """A real broker that the test may kill, and that has a listener with authentication."""
    if not kafka.is_own:
        why = "this test needs a broker of its own: unset STREAMLEARN_TEST_KAFKA, with Java 17 and Maven on PATH"
        if os.environ.get("STREAMLEARN_REQUIRE_KAFKA") == "1":
            pytest.fail(why)
        pytest.skip(why)
    return kafka


@pytest.fixture
def new_topic(kafka: KafkaBroker, request: pytest.FixtureRequest) -> Callable[..., str]:
    """Create topics with names of their own: `new_topic(partitions=2)`."""

    def create(partitions: int = 1, configs: dict[str, str] | None = None) -> str:
        name = re.sub(r"[^a-zA-Z0-9._-]", "-", request.node.name)[:100]
        return kafka.create_topic(f"{name}-{uuid.uuid4().hex[:8]}", partitions, configs)

    return create


@pytest.fixture
def open_source() -> Iterator[OpenSource]:
    """Start sources, and close them whatever happens to the test."""
    sources: list[KafkaSource] = []

    def start(settings: KafkaSettings, offsets: Offsets | None = None, memo: Any = None) -> KafkaSource:
        source = KafkaSource(settings)
        sources.append(source)
        begin(source, offsets or {}, memo)
        return source

    yield start
    for source in sources:
        source.close()


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """`streamlearn` with arguments, in this process."""

    def run(*arguments: str | Path) -> Said:
        monkeypatch.setattr(sys, "argv", ["streamlearn", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        return Said(code, *capsys.readouterr())

    return run
