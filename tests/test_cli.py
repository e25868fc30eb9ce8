"""The verbs as a person or a script uses them: what they print, and one sentence with exit code 2 when they cannot."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jsonschema
import pytest
from prometheus_client import CollectorRegistry

from streamlearn import __version__
from streamlearn.api import create_app
from streamlearn.checkpoint import Generations
from streamlearn.errors import SettingsError
from streamlearn.metrics import Metrics
from streamlearn.process import lock_state
from streamlearn.retention import Retention
from streamlearn.server import Server
from streamlearn.settings import ApiSettings
from streamlearn.testing import FakeService, ListSource, fake_clips
from tests.said import Say
from tests.test_daemon import Stream, daemon, settled


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A daemon with clips in two tasks, one with a caption that looks like markup."""
    stream = Stream()
    records = stream.clips("studio", 24) + stream.clips("night", 8, task="night [/bold]")
    first = json.loads(records[0].value or b"")
    records[0] = stream.raw(
        b"odd", json.dumps({**first, "video_id": "odd", "captions": ["[/b] [red]x[/red]"]}).encode()
    )
    with daemon(tmp_path_factory.mktemp("cli"), ListSource(records)) as one:
        settled(one)
        yield one.url


# --- settings


def test_right_settings_are_said_to_be_valid(say: Say, tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text("[learner]\nbatch_size = 16\n")
    assert say("config", "check", "-c", file) == (0, "the settings are valid\n", "")


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("learner.batch_size=0", "streamlearn: learner.batch_size = '0': Input should be greater than or equal to 1\n"),
        ("lerner.batch_size=1", "streamlearn: lerner: there is no such setting;"),
    ],
)
def test_wrong_settings_end_with_their_sentence_and_2(say: Say, flag: str, sentence: str) -> None:
    code, out, err = say("config", "check", "--set", flag)
    assert (code, out) == (2, "")
    assert err.startswith(sentence)
    assert err.count("\n") == 1


def test_a_flag_without_a_value_is_refused_with_its_form(say: Say) -> None:
    code, _, err = say("config", "check", "--set", "learner.batch_size")
    assert code == 2
    assert "NAME=VALUE" in err


def test_config_show_prints_what_is_in_force_and_every_meaning(say: Say, tmp_path: Path) -> None:
    flags = ("--set", "learner.batch_size=7", "--set", f"state_dir={tmp_path}")
    shown = say("config", "show", *flags).out.splitlines()
    assert "learner.batch_size = 7" in shown
    assert f'state_dir = "{tmp_path}"' in shown
    assert json.loads(say("config", "show", "--json", *flags).out)["learner"]["batch_size"] == 7
    defaults = say("config", "show", "--defaults").out.splitlines()
    assert "learner.batch_size = 32   # Clips per step." in defaults
    assert len(defaults) == len(shown)


def test_schema_prints_a_json_schema_that_takes_a_clip_message(say: Say) -> None:
    schema = json.loads(say("schema", "clip").out)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate({"video_id": "a", "caption": "b", "uri": "file:///c.mp4"}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"video_id": "a"}, schema)
    assert say("schema", "event").code == 2


# --- a running daemon


def test_search_prints_a_table_and_for_a_script_the_answer(say: Say, running: str) -> None:
    code, out, _ = say("search", "a red star", "--limit", "3", "--url", running)
    assert code == 0
    assert out.count("studio-") + out.count("night-") + out.count("odd") >= 3
    answer = json.loads(say("search", "a red star", "--limit", "3", "--json", "--url", running).out)
    assert [hit["rank"] for hit in answer["results"]] == [1, 2, 3]


def test_captions_and_tasks_are_printed_as_they_are(say: Say, running: str) -> None:
    code, out, _ = say("search", "x", "--limit", "100", "--url", running)
    assert code == 0
    assert "[/b] [red]x[/red]" in out
    assert "night [/bold]" in out
    assert "night [/bold]" in say("tasks", "--url", running).out
    assert "night [/bold]" in say("status", "--url", running).out


def test_status_and_tasks_tell_what_the_daemon_does(say: Say, running: str) -> None:
    assert {"era", "open", "encoded"} <= {*say("tasks", "--url", running).out.split()}
    status = say("status", "--url", running).out
    assert f"version  {__version__}" in status
    assert "searchable  32" in status
    assert "clips.dead_lettered  0" in status
    assert "detail  -" in status
    assert "{" not in status
    assert json.loads(say("status", "--json", "--url", running).out)["searchable"] == 32
    assert [task["name"] for task in json.loads(say("tasks", "--json", "--url", running).out)] == [
        "t1",
        "night [/bold]",
    ]


def test_tables_in_a_pipe_are_not_cut_to_80_columns(running: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "streamlearn", "tasks", "--url", running],
        capture_output=True,
        text=True,
        timeout=60,
        env={name: value for name, value in os.environ.items() if name != "COLUMNS"},
    )
    assert "forgetting served" in done.stdout
    assert "\u2026" not in done.stdout


def test_what_the_daemon_refuses_is_told_in_its_words(say: Say, running: str) -> None:
    code, _, err = say("search", "a", "--limit", "201", "--url", running)
    assert code == 2
    assert "422: limit is 201, at most 200 (search.max_limit)" in err


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1", "127.0.0.1:8080", "nonsense", "http://", "http://a b/", "file:///etc/passwd"]
)
@pytest.mark.parametrize("verb", [("search", "a"), ("status",), ("tasks",)])
def test_no_daemon_there_is_a_sentence(say: Say, verb: tuple[str, ...], url: str) -> None:
    code, out, err = say(*verb, "--url", url)
    assert (code, out) == (2, "")
    assert err.startswith("streamlearn: no daemon answers at ")
    assert err.count("\n") == 1


def test_the_environments_token_is_sent(say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("s3cret-ü", encoding="utf-8")
    registry = CollectorRegistry()
    app = create_app(
        FakeService(fake_clips(3)),
        settings=ApiSettings(token_file=tmp_path / "token"),
        metrics=Metrics.create(registry),
        registry=registry,
    )
    with Server(app, host="127.0.0.1", port=0) as server:
        url = f"http://127.0.0.1:{server.port}"
        assert "401: Send the header Authorization" in say("status", "--url", url).err
        monkeypatch.setenv("STREAMLEARN_TOKEN", "s3cret-ü")
        assert say("status", "--url", url).code == 0
        assert say("config", "check").code == 0


@contextmanager
def somebody_else(status: int, body: bytes) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "body"), [(200, b"<html>"), (502, b"<html>Bad gateway"), (404, b"[]"), (500, b""), (200, b"\xff")]
)
def test_another_server_there_is_a_sentence(say: Say, status: int, body: bytes) -> None:
    with somebody_else(status, body) as url:
        code, _, err = say("status", "--url", url)
    assert code == 2
    assert err.startswith("streamlearn: ")
    assert url in err
    assert err.count("\n") == 1


# --- generations


@pytest.mark.slow
def test_generations_are_listed_newest_first_and_shown(say: Say, tmp_path: Path) -> None:
    with daemon(tmp_path, ListSource(Stream().clips("studio", 40)), checkpoint__interval_clips=16) as one:
        settled(one)
    numbers = Generations(tmp_path / "state", Retention(3)).numbers()
    where = ("--set", f"state_dir={tmp_path / 'state'}")
    listed = json.loads(say("generations", "ls", "--json", *where).out)
    assert [row["number"] for row in listed] == numbers[::-1]
    assert listed[0]["clips"] == 40
    assert str(numbers[-1]) in say("generations", "ls", *where).out
    manifest = json.loads(say("generations", "show", str(numbers[-1]), *where).out)
    assert manifest["number"] == numbers[-1]
    assert "online.safetensors" in manifest["sha256"]
    code, _, err = say("generations", "show", "999", *where)
    assert code == 2
    assert "there is no generation 999" in err
    older, newer = str(numbers[0]), str(numbers[-1])
    found = json.loads(say("generations", "diff", older, newer, *where).out)
    added = found["index"]["clips_added"]
    assert (found["generations"], added > 0) == ([numbers[0], numbers[-1]], True)
    assert found["index"]["vectors_written"] >= added
    back = json.loads(say("generations", "diff", newer, older, *where).out)
    assert (back["index"]["clips_added"], back["index"]["clips_removed"]) == (0, added)
    (tmp_path / "state" / "catalog.db-shm").mkdir()  # as where nothing can be written
    assert json.loads(say("generations", "diff", older, newer, *where).out) == found
    (tmp_path / "state" / "catalog.db-shm").rmdir()
    assert say("generations", "pin", older, *where).out.startswith(f"generation {older} is pinned")
    assert "pinned" in say("generations", "ls", *where).out
    assert say("generations", "unpin", older, *where).out.startswith(f"generation {older} is not pinned")
    assert "pinned" not in say("generations", "ls", *where).out


def test_the_other_verbs_of_generations_of_no_state_say_so_and_make_nothing(say: Say, tmp_path: Path) -> None:
    where = ("--set", f"state_dir={tmp_path / 'typo'}")
    for verb in (("rollback", "1"), ("diff", "1", "2"), ("pin", "1"), ("unpin", "1")):
        code, _, err = say("generations", *verb, *where)
        assert (code, "there is no generation 1" in err) == (2, True)
        assert not (tmp_path / "typo").exists()


def test_going_back_in_a_state_that_was_copied_without_links_names_the_remedy(say: Say, tmp_path: Path) -> None:
    (tmp_path / "generations" / "000002").mkdir(parents=True)
    code, _, err = say("generations", "rollback", "2", "--set", f"state_dir={tmp_path}")
    assert (code, "ln -s generations/NUMBER current" in " ".join(err.split())) == (2, True)


def test_listing_the_generations_of_no_state_prints_none_and_makes_nothing(say: Say, tmp_path: Path) -> None:
    where = ("--set", f"state_dir={tmp_path / 'typo'}")
    assert json.loads(say("generations", "ls", "--json", *where).out) == []
    assert not (tmp_path / "typo").exists()


@pytest.mark.slow
def test_a_damaged_manifest_is_a_sentence(say: Say, tmp_path: Path) -> None:
    with daemon(tmp_path, ListSource(Stream().clips("studio", 8))) as one:
        settled(one)
    (tmp_path / "state" / "current" / "manifest.json").write_text("{")
    where = ("--set", f"state_dir={tmp_path / 'state'}")
    code, _, err = say("generations", "show", "1", *where)
    assert code == 2
    assert err.startswith("streamlearn: the manifest of generation 1 cannot be read")
    code, listed, _ = say("generations", "ls", *where)
    assert code == 0
    assert "damaged: the manifest of generation 1 cannot be read" in listed


# --- the program


@pytest.mark.slow
def test_run_with_a_wrong_setting_ends_with_a_sentence_and_2(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "streamlearn", "run", "--set", "model.device=tpu", "--set", f"state_dir={tmp_path}"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "streamlearn: model.device = 'tpu' is not usable here" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_where_the_log_is_objects_the_sentence_that_ends_the_daemon_is_one_too(tmp_path: Path) -> None:
    flags = [f"state_dir={tmp_path}", "model.device=tpu", "log.format=json"]
    done = subprocess.run(
        [sys.executable, "-m", "streamlearn", "run", *(part for flag in flags for part in ("--set", flag))],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    last = json.loads(done.stderr.splitlines()[-1])
    assert last["levelname"] == "CRITICAL"
    assert last["message"].startswith("model.device = 'tpu' is not usable here")


def test_a_state_directory_that_cannot_be_written_says_to_whom_to_give_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        SettingsError, match=rf"cannot be written by user {os.geteuid()}: .*; give that user the folder"
    ):
        lock_state(tmp_path / "file" / "state")


def test_a_line_of_the_log_as_json_has_no_colours() -> None:
    script = (
        "import logging; from streamlearn.process import setup_logging; from streamlearn.settings import LogSettings\n"
        "setup_logging(LogSettings(format='json'))\n"
        "logging.getLogger('uvicorn.error').info('started', extra={'color_message': '\\x1b[36mstarted'})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    said = json.loads(done.stderr)
    assert (said["message"], "color_message" in said) == ("started", False)


def test_verbs_that_need_no_model_import_none() -> None:
    script = "import sys, streamlearn.cli; assert not {'torch', 'faiss', 'transformers'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0


def test_nothing_is_collected_when_the_program_ends() -> None:
    # What was registered first is called last.
    script = "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count() > 10_000))"
    script += "; import sys; sys.argv = ['streamlearn', '--help']; from streamlearn import cli; cli.main()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "True")
