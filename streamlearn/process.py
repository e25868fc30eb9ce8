"""What any verb that runs for long needs of its process: signals, logging, the state directory to itself."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import IO

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from streamlearn.errors import SettingsError
from streamlearn.settings import LogSettings


def stop_signal() -> threading.Event:
    """An event that SIGINT and SIGTERM set; a second one ends the process at once. Call from the main thread."""
    stop = threading.Event()

    def on_signal(number: int, _: object) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    return stop


def setup_logging(settings: LogSettings) -> None:
    """Log to stderr, as text or as one JSON object a line."""
    handler = logging.StreamHandler(sys.stderr)
    if settings.format == "json":
        # uvicorn gives its message twice, the second time with colours
        unwanted = [*RESERVED_ATTRS, "color_message"]
        handler.setFormatter(JsonFormatter("%(asctime)s %(levelname)s %(name)s %(message)s", reserved_attrs=unwanted))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(level=settings.level.upper(), handlers=[handler], force=True)
    # It logs every failed attempt while a broker is away; the connector says once what is wrong.
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    logging.getLogger("httpx").setLevel(logging.WARNING)


def lock_state(state_dir: Path) -> IO[str]:
    """Make the state directory and hold it: two daemons in one would destroy each other's work."""
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        lock = (state_dir / "lock").open("w")
    except OSError as error:
        raise SettingsError(
            f"state_dir = {str(state_dir)!r} cannot be written by user {os.geteuid()}: {error}; give that user the"
            " folder, or name another"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise SettingsError(
            f"state_dir = {str(state_dir)!r} is in use by another daemon; stop it or take another"
        ) from error
    return lock
