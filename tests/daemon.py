"""A real daemon in a process of its own, and what a test asks it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.ports import free_port

DEADLINE_S = 120.0


def until(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Wait for a condition of another process; there is nothing to synchronise on but asking."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)  # between questions to another process
    raise AssertionError(f"not within {deadline_s} s: {what}")


def ask(url: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """GET, or POST where there is a body."""
    request = urllib.request.Request(
        url + path, None if body is None else json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=20) as response:
        return json.load(response)


class DaemonProcess:
    """`streamlearn run` with settings; a context manager that leaves nothing behind."""

    def __init__(self, folder: Path, settings: dict[str, Any], *, prefix: Sequence[str] = ()) -> None:
        self.port = free_port()
        self.state_dir = folder / "state"
        settings = {"state_dir": str(self.state_dir), "api.port": self.port, "model.threads": 1, **settings}
        flags = [flag for name, value in settings.items() for flag in ("--set", f"{name}={_text(value)}")]
        self.log = folder / "daemon.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "streamlearn", "run", *flags],
                stdout=log,
                stderr=log,
                start_new_session=True,  # so that a kill takes strace, the daemon and its decoders
                env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
            )

    def __enter__(self) -> DaemonProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def get(self, path: str, body: dict[str, Any] | None = None) -> Any:
        return ask(f"http://127.0.0.1:{self.port}", path, body)

    def search(self, text: str, limit: int = 10) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = self.get("/v1/search", {"query": {"text": text}, "limit": limit})["results"]
        return results

    def status(self) -> dict[str, Any] | None:
        """None while it does not answer."""
        try:
            status: dict[str, Any] = self.get("/v1/status")
        except OSError:
            return None
        return status

    def wait_for(self, what: Callable[[dict[str, Any]], Any], sentence: str) -> dict[str, Any]:
        """Wait until the status fits; a daemon that died fails at once, with its log."""

        def check() -> dict[str, Any] | None:
            if self.process.poll() is not None:
                raise AssertionError(
                    f"the daemon ended with {self.process.returncode}:\n{self.log.read_text()[-3000:]}"
                )
            status = self.status()
            return status if status is not None and what(status) else None

        found: dict[str, Any] = until(check, f"{sentence}; log:\n{self.log.read_text()[-3000:]}")
        return found

    def wait_finished(self) -> dict[str, Any]:
        """Everything was read, evaluated and checkpointed."""
        return self.wait_for(lambda s: s["state"] in ("finished", "idle") and s["searchable"], "the stream is finished")

    def kill(self) -> None:
        """End it with kill -9, the daemon and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        """As an orchestrator does; returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (list, dict)) else str(value)
