"""The demo: clips are rendered into a folder, a daemon follows the folder, the terminal shows what it learns.

Nothing here is special to the demo but the rendering: the daemon is `streamlearn run`'s.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from streamlearn.app import Daemon
from streamlearn.connectors.synthetic import DOMAINS
from streamlearn.process import setup_logging, stop_signal
from streamlearn.settings import LogSettings, load

log = logging.getLogger(__name__)


def run_demo(
    console: Console, *, host: str, port: int, clips_per_domain: int, state_dir: Path | None, seed: int, leave: bool
) -> None:
    """Run until Ctrl-C, or until everything has been learned where `leave` says so.

    Raises:
        SettingsError: the port is taken, or the state directory cannot be used.
    """
    setup_logging(LogSettings(level="warning"))
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="streamlearn-demo-")))
        clips = work / "clips"
        clips.mkdir()
        settings = load(
            None,
            {
                "state_dir": state_dir or work / "state",
                "source": "streamlearn.connectors.folder:FolderSource",
                "folder.path": clips,
                "folder.watch": True,
                "api.host": host,
                "api.port": port,
                "evaluate.budget_ratio": 0.2,  # the curves are what there is to see
            },
        )
        stop = stop_signal()
        daemon = stack.enter_context(Daemon(settings))
        command = [sys.executable, "-m", "streamlearn.connectors.synthetic", str(clips)]
        command += ["--clips-per-domain", str(clips_per_domain), "--seed", str(seed)]
        producer = stack.enter_context(subprocess.Popen(command, start_new_session=True))
        stack.callback(producer.kill)
        total = clips_per_domain * len(DOMAINS)
        console.print(f"search it: [bold]{daemon.url}[/]   (Ctrl-C ends the demo)", highlight=False)
        start, announced = time.monotonic(), False
        with Live(console=console, refresh_per_second=2, transient=False, auto_refresh=False) as live:
            while not stop.wait(0.5):
                status = daemon.service.status()
                done = daemon.state.clips >= total and status["state"] == "idle" and not status["stale_clips"]
                live.update(_screen(daemon, status, total, time.monotonic() - start), refresh=True)
                if producer.poll() not in (None, 0) or status["state"] == "stopped":
                    console.print(f"[red]the demo cannot go on: {status['detail'] or 'the clips could not be made'}[/]")
                    break
                if done and not announced:
                    announced = True
                    live.stop()
                    console.print(
                        f"All {total} clips were learned in {time.monotonic() - start:.0f} s, nobody said where a task"
                        f" begins. The page at [bold]{daemon.url}[/] goes on answering; Ctrl-C ends it.",
                        highlight=False,
                    )
                    if leave:
                        break
        console.print("stopping ...", style="dim")


def _screen(daemon: Daemon, status: dict[str, object], total: int, elapsed_s: float) -> Group:
    seen = daemon.state.clips
    head = Text(
        f"{seen} of {total} clips   {status['clips_per_s']:>5} clips/s   {status['searchable']} searchable"
        f"   step {status['step']}   generation {status['generation']}   {elapsed_s:.0f} s   {status['state']}"
    )
    table = Table(box=None, pad_edge=False)
    for column in ("task", "found at\nclip", "drift\nscore", "clips", "held\nout"):
        table.add_column(column)
    for column in ("R@5\nserved", "R@5\nwithout eras", "R@5\nlearner", "forgotten\nserved", "forgotten\nlearner"):
        table.add_column(column, justify="right")
    for task in daemon.service.tasks():
        recall, forgetting = task["recall"], task["forgetting"]
        table.add_row(
            task["name"],
            str(task["started_clips"]),
            "" if task["score"] is None else f"{task['score']:.1f}",
            str(task["clips"]),
            str(task["held_out"]),
            *(_percent(recall[view].get("5")) for view in ("served", "single", "learner")),
            *(_percent(forgetting[view]) for view in ("served", "learner")),
        )
    bar = Table.grid()  # a bar alone ends no line
    bar.add_row(ProgressBar(total=total, completed=min(seen, total), width=60))
    return Group(head, bar, table)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"
