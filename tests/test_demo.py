"""What a new user sees: the demo, its page in a real browser, its dashboard on a real Prometheus, Ctrl-C."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import ask, until
from tests.ops import dashcheck
from tests.ports import free_port

ROOT = Path(__file__).parent.parent
CLIPS_PER_DOMAIN = 260
SHORT = ("--clips-per-domain", str(CLIPS_PER_DOMAIN))

pytestmark = pytest.mark.slow


class Demo:
    """A running `streamlearn demo`."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.output = folder / "demo.log"
        with self.output.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "streamlearn", "demo", "--port", str(self.port), *SHORT],
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1", "TERM": "dumb"},
                start_new_session=True,
            )

    def status(self) -> dict[str, Any] | None:
        assert self.process.poll() is None, self.output.read_text()
        try:
            status: dict[str, Any] = ask(self.url, "/v1/status")
        except OSError:
            return None
        return status


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    demo = Demo(tmp_path_factory.mktemp("demo"))
    yield demo
    if demo.process.poll() is None:
        os.killpg(demo.process.pid, signal.SIGKILL)
    demo.process.wait()


@pytest.mark.skipif(
    shutil.which("prometheus") is None and os.environ.get("STREAMLEARN_REQUIRE_OPS") != "1",
    reason="prometheus is not installed: apt-get install prometheus",
)
def test_every_query_of_the_dashboard_returns_data_of_the_running_demo(demo: Demo, tmp_path: Path) -> None:
    until(lambda: (s := demo.status()) and s["searchable"], "the first clips can be found")
    stop = threading.Event()

    def keep_asking() -> None:
        while not stop.wait(0.2):
            ask(demo.url, "/v1/search", {"query": {"text": "a red circle"}})

    asking = threading.Thread(target=keep_asking)
    asking.start()
    try:
        dashboard = json.loads((ROOT / "ops" / "grafana" / "dashboards" / "streamlearn.json").read_text())
        with dashcheck.prometheus(f"127.0.0.1:{demo.port}", tmp_path) as server:
            # Rates need two scrapes, recall a first evaluation; boundaries come when they come.
            until(lambda: dashcheck.check_dashboard(server, dashboard) == [], "every query returns data", 150)
            assert dashcheck.check_rules(server) == []
    finally:
        stop.set()
        asking.join()


@pytest.mark.skipif(
    shutil.which("chromium") is None and os.environ.get("STREAMLEARN_REQUIRE_BROWSER") != "1",
    reason="chromium is not installed: apt-get install chromium",
)
def test_the_page_finds_a_clip_by_its_caption_in_a_browser(demo: Demo) -> None:
    from playwright.sync_api import sync_playwright

    until(lambda: (s := demo.status()) and s["searchable"] >= 100, "a hundred clips can be found")
    caption = ask(demo.url, "/v1/status")["examples"][0]
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=[*flags, "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"],
        )
        try:
            page = browser.new_page()
            errors: list[str] = []
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.goto(demo.url)
            page.get_by_role("searchbox").fill(caption)
            page.keyboard.press("Enter")
            loaded = "[...document.images].filter(i => i.naturalWidth > 0).length"
            until(lambda: page.evaluate(loaded) >= 10, "ten thumbnails are shown")
            assert caption.split()[0] in page.locator("main").inner_text()
            assert errors == []
        finally:
            browser.close()


def test_it_learns_everything_and_ctrl_c_ends_it_cleanly(demo: Demo) -> None:
    until(lambda: "clips were learned" in demo.output.read_text(), "everything was learned")
    tasks = ask(demo.url, "/v1/tasks")
    assert sum(task["clips"] for task in tasks) == 5 * CLIPS_PER_DOMAIN
    demo.process.send_signal(signal.SIGINT)
    assert demo.process.wait(60) == 0
    assert "Traceback" not in demo.output.read_text()
