"""The page, in a real Chromium against a real server over a fake service."""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright
from prometheus_client import CollectorRegistry

from streamlearn.api import create_app
from streamlearn.errors import SearchError
from streamlearn.metrics import Metrics
from streamlearn.server import Server
from streamlearn.settings import ApiSettings
from streamlearn.testing import FakeClip, FakeService, fake_clips

_CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_REQUIRED = os.environ.get("STREAMLEARN_REQUIRE_BROWSER") == "1"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        _CHROMIUM is None and not _REQUIRED,
        reason="There is no Chromium on PATH: install the system's chromium package to test the page.",
    ),
]

# The resolver rule keeps the browser's own look-ups on this machine.
_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]


@pytest.fixture(scope="module")
def browser():
    assert _CHROMIUM, "STREAMLEARN_REQUIRE_BROWSER=1, but there is no Chromium on PATH"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_CHROMIUM, headless=True, args=_FLAGS)
        yield browser
        browser.close()


@contextlib.contextmanager
def page_of(browser, service: FakeService, path: str = "/", **settings: object) -> Iterator:
    """The page, opened; anything a browser complains about is in `page.complaints`."""
    registry = CollectorRegistry()
    app = create_app(service, settings=ApiSettings(**settings), metrics=Metrics.create(registry), registry=registry)
    with Server(app, host="127.0.0.1", port=0) as server:
        context = browser.new_context(viewport={"width": 1280, "height": 860})
        page = context.new_page()
        page.complaints = []
        page.requested = []
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("console", lambda m: page.complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("request", lambda request: page.requested.append(request.url))
        page.server = server
        page.goto(f"http://127.0.0.1:{server.port}{path}")
        try:
            yield page
        finally:
            context.close()


def pictures(page, n: int) -> list[int]:
    """Natural widths of the first `n` thumbnails, once they are loaded.

    By `expect` and not by `wait_for_function`, whose second look is an `eval` that the page's own policy forbids.
    """
    for image in range(n):
        expect(page.locator("#results img").nth(image)).not_to_have_js_property("naturalWidth", 0)
    return page.eval_on_selector_all("#results img", "images => images.map(i => i.naturalWidth)")


def test_typed_query_shows_results_with_pictures_and_asks_nobody_else(browser):
    with page_of(browser, FakeService(fake_clips(40))) as page:
        page.get_by_label("What does the video show?").fill("a red ball rolls to the left over the sand")
        page.keyboard.press("Enter")
        first = page.locator("#results li").first
        first.get_by_text("a red ball rolls to the left over the sand").wait_for()
        assert all(width == 64 for width in pictures(page, 20))
        assert first.locator(".badge").inner_text() == "t1"
        assert first.locator(".number").inner_text() == "0.90"
        assert re.search(r"20 clips of 40 in [\d.]+ ms", page.locator("#summary").inner_text())
        assert "generation 3" in page.locator("#summary").inner_text()
        assert "q=a+red+ball" in page.url
        assert page.complaints == []
        origin = f"http://127.0.0.1:{page.server.port}/"
        assert all(url.startswith(origin) for url in page.requested)


def test_results_appear_while_typing_and_the_address_leads_back(browser):
    with page_of(browser, FakeService(fake_clips(10)), "/?q=a+blue+square") as page:
        page.locator("#results li").first.get_by_text("a blue square").wait_for()
        assert page.locator("#q").input_value() == "a blue square"
        page.locator("#q").fill("a green triangle")
        page.locator("#results li").first.get_by_text("a green triangle").wait_for()
        assert "q=a+green+triangle" in page.url
        page.get_by_role("button", name=re.compile("More like: a green triangle")).first.click()
        page.wait_for_url("**/?like=*")
        page.locator("#summary").get_by_text("clips like").wait_for()
        page.go_back()
        page.wait_for_url("**/?q=a+green+triangle")
        assert page.complaints == []


def test_example_is_a_query_at_one_click(browser):
    service = FakeService(fake_clips(10))
    with page_of(browser, service) as page:
        page.get_by_role("button", name=service.clips[-1].caption, exact=True).click()
        page.locator("#results li").first.get_by_text(service.clips[-1].caption).wait_for()
        assert page.complaints == []


def test_hostile_caption_is_only_text(browser):
    evil = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'
    clips = [FakeClip(f"{evil}/1", f"ball {evil}", evil), FakeClip("x/../../y?z#", "another ball", "t2")]
    with page_of(browser, FakeService(clips), "/?q=ball") as page:
        page.locator("#results").get_by_text("<script>").first.wait_for()
        page.locator("#tasks").get_by_text("<script>").first.wait_for()
        pictures(page, 2)
        assert page.evaluate("window.hacked") is None
        assert page.locator("#results script, #tasks script, #examples img").count() == 0
        assert page.complaints == []


def test_live_strip_shows_the_clips_and_the_tasks(browser):
    with page_of(browser, FakeService(fake_clips(1234))) as page:
        page.locator("#numbers").get_by_text("1,234").first.wait_for()
        assert page.locator("#state").inner_text() == "learning t3"
        assert page.locator("#tasks li").count() == 3
        assert "90 %" in page.locator("#tasks li").last.inner_text()
        assert "forgotten: served 2 %, learner 50 %; 50 pairs" in page.locator("#tasks li").last.inner_text()
        assert page.locator("#tasks polyline").count() == 6


def test_recall_over_time_is_a_tab_with_curves_boundaries_numbers_and_the_worst(browser):
    with page_of(browser, FakeService(fake_clips(60))) as page:
        page.get_by_role("tab", name="Recall over time").click()
        page.locator("#curves polyline").nth(2).wait_for(state="attached")
        assert not page.locator("#find").is_visible()
        assert page.locator("#curves .boundary").count() == 2
        assert "t2 begins at clip 1,000: drift, score 6.1" in page.locator("#curves").text_content()
        assert page.locator("#times th").all_inner_texts() == ["task", "750", "1,750", "2,750"]
        first, last = page.locator("#times tr").nth(1).locator("td"), page.locator("#times tr").last.locator("td")
        assert first.all_inner_texts() == ["t1", "89 % 50", "87 % 50", "86 % 50"]
        assert last.all_inner_texts() == ["t3", "", "", "89 % 50"]
        assert "asked at clip 1,750, forgotten 0 %" in first.nth(2).get_attribute("title")
        last = page.locator("#matrix tr").last.locator("td").all_inner_texts()
        assert last == ["t3", "50", "80 %", "70 % to 88 %", "90 %", "20 %", "2.0"]
        assert "-5 % 100 pairs" in page.locator("#recall-summary").inner_text()
        assert "its clip is at rank 90, t1" in page.locator("#hardest li").first.inner_text()
        images = page.locator("#recall img")
        assert images.count() > 0
        for image in range(images.count()):
            expect(images.nth(image)).to_have_js_property("naturalWidth", 64)
        for view in ("learner", "single"):
            with page.expect_request(f"**/v1/scores?view={view}*"):
                page.get_by_label("View").select_option(view)
        page.get_by_role("tab", name="Recall over time").press("ArrowLeft")
        assert page.locator("#q").is_visible()
        assert page.complaints == []


def test_recall_of_nothing_is_explained_and_hostile_names_are_only_text(browser):
    evil = "<img src=x onerror='window.hacked=1'>"
    service = FakeService()
    with page_of(browser, service) as page:
        page.get_by_role("tab", name="Recall over time").click()
        page.get_by_text("Nothing has been evaluated yet").wait_for()
        service.clips = [FakeClip(f"{evil}{i}", evil, evil) for i in range(3)]
        page.get_by_label("Recall@", exact=True).select_option("10")  # asks anew, at once
        page.locator("#matrix").get_by_text("<img").wait_for()
        assert page.evaluate("window.hacked") is None
        assert page.locator("#matrix img").count() == 0


def test_empty_index_is_explained_and_the_query_is_answered_when_clips_come(browser):
    service = FakeService()
    with page_of(browser, service, "/?q=ball") as page:
        page.get_by_text("Nothing is indexed yet.").wait_for()
        service.clips = fake_clips(5)
        page.locator("#results li").first.wait_for()
        assert page.complaints == []


def test_daemon_that_answers_little_is_borne(browser):
    class Terse(FakeService):
        def status(self):
            return {}

        def tasks(self):
            return [{"name": "t1"}]

        def scores(self, *_):
            return {}

    with page_of(browser, Terse(fake_clips(3)), "/?q=ball") as page:
        page.locator("#tasks").get_by_text("t1").wait_for()
        page.locator("#results li").first.wait_for()
        assert page.complaints == []


def test_daemon_that_is_away_is_told(browser):
    with page_of(browser, FakeService(fake_clips(5))) as page:
        page.locator("#state").get_by_text("learning").wait_for()
        page.server.stop()
        page.get_by_role("alert").get_by_text("The daemon does not answer").wait_for()
        assert page.locator("#state").inner_text() == "unreachable"


def test_refused_query_says_why(browser):
    service = FakeService(fake_clips(5), failure=SearchError("The text has no known word."))
    with page_of(browser, service, "/?q=ball") as page:
        page.locator("#summary").get_by_text("The text has no known word.").wait_for()


def test_token_is_asked_for_once_and_carried_by_pictures_too(browser, tmp_path: Path):
    token_file = tmp_path / "token"
    token_file.write_text("s3cret-ü\n", encoding="utf-8")
    with page_of(browser, FakeService(fake_clips(8)), "/?q=ball", token_file=token_file) as page:
        for attempt in ("wrong", "s3cret-ü"):
            page.get_by_role("textbox", name="Token").fill(attempt)
            page.get_by_role("button", name="Continue").click()
        assert all(width == 64 for width in pictures(page, 8))
        page.reload()
        assert all(width == 64 for width in pictures(page, 8))
        assert not page.locator("#token-dialog").is_visible()
        assert {c for c in page.complaints if "401" not in c} == set()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("tab", ["Search", "Recall over time"])
def test_text_has_contrast_in_both_schemes(browser, scheme, tab):
    """At least 4.5 : 1 (WCAG AA) for every line of text that stands on a plain ground."""
    with page_of(browser, FakeService(fake_clips(10)), "/?q=a+red+ball") as page:
        page.emulate_media(color_scheme=scheme)
        pictures(page, 10)
        page.get_by_role("tab", name=tab).click()
        if tab == "Recall over time":
            page.locator("#hardest li").first.wait_for()
        ratios = page.evaluate(_CONTRAST)
        assert len(ratios) > 20
        assert {text: ratio for text, ratio in ratios if ratio < 4.5} == {}


_CONTRAST = """() => {
  const parse = (c) => c.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (node) => {
    for (let n = node; n; n = n.parentElement) {
      const c = parse(getComputedStyle(n).backgroundColor);
      if (c.length === 3 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll("body *")]
    .filter((n) => n.checkVisibility() && [...n.childNodes].some((c) => c.nodeType === 3 && c.data.trim()))
    .map((n) => {
      const [a, b] = [luminance(parse(getComputedStyle(n).color)), luminance(ground(n))];
      return [n.textContent.trim().slice(0, 40), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
    });
}"""
