"""Many trials in worker processes, their outcomes as JSON lines; a trial that is in the file is not run again.

Also the protocol: each method is tuned on a seed of its own, which is never reported, and then runs at its best
learning rate on the reported seeds.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import platform
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from streamlearn import __version__
from streamlearn.bench.methods import method_of
from streamlearn.bench.trial import SERVED, Spec, run_trial
from streamlearn.errors import SettingsError, SourceError, StreamlearnError

log = logging.getLogger(__name__)

RESULTS = "trials.jsonl"
Line = dict[str, Any]


class Results:
    """The JSON lines of a folder.

    Args:
        folder: made where absent.

    Raises:
        SettingsError: it cannot be written.
        SourceError: a line in the middle of the file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / RESULTS
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._path.open("a").close()  # now, and not when the first trial has ended
        except OSError as error:
            raise SettingsError(f"{folder} cannot be written: {error.strerror}; name another folder") from error
        self.lines = list(self._read())
        self._where = provenance()

    def _read(self) -> Iterator[Line]:
        text = self._path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:  # a run was ended while it wrote: the trial is run again
            self._path.write_text(whole, encoding="utf-8")
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                found = json.loads(line)
                if missing := {"key", "role", "spec", "result"} - dict(found).keys():
                    raise ValueError(f"it lacks {', '.join(sorted(missing))}")
            except (ValueError, TypeError) as error:
                raise SourceError(f"{self._path}, line {number} is no trial; remove it: {error}") from error
            yield found

    def has(self, role: str, spec: Spec) -> bool:
        """Whether the trial is in the file, for this purpose."""
        return any(line["key"] == spec.key and line["role"] == role for line in self.lines)

    def of(self, role: str, specs: Iterable[Spec]) -> list[Line]:
        """The lines of these trials alone; the folder may hold others, of other settings or streams."""
        keys = {spec.key for spec in specs}
        return [line for line in self.lines if line["role"] == role and line["key"] in keys]

    def add(self, role: str, spec: Spec, result: Mapping[str, Any]) -> None:
        """Append a finished trial."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line = {"key": spec.key, "role": role, **self._where, "date": now, "spec": asdict(spec), "result": dict(result)}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.lines.append(line)


def provenance() -> dict[str, Any]:
    """Version, commit (with "+" where files were changed since; None outside a checkout) and machine."""
    folder = Path(__file__).parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    commit = git("rev-parse", "--short", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no")
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    return {"version": __version__, "commit": commit and commit + ("+" if changed else ""), "machine": machine}


def run_all(
    trials: Iterable[tuple[str, Spec]], results: Results, *, workers: int, on_done: Callable[[Spec, Line | None], None]
) -> None:
    """Run what is not in the file, `workers` at a time, each in a spawned process of one thread.

    Where a trial fails, those that are under way go on to their end and are kept; the rest is left.

    Args:
        trials: in the order in which they begin, each with what it is for: "tuning" picks learning rates, "reported"
            is reported.
        results: where they go.
        workers: processes.
        on_done: told of each trial that is finished, with None for one that was in the file.

    Raises:
        StreamlearnError: a worker was killed; or what else a trial ended with.
    """
    waiting = []
    for role, spec in trials:
        if results.has(role, spec):
            on_done(spec, None)
        else:
            waiting.append((role, spec))
    if not waiting:
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(waiting)), context, initializer=_begin_worker)
    failure: BaseException | None = None
    try:
        running: dict[Future[dict[str, Any]], tuple[str, Spec]] = {
            pool.submit(run_trial, spec): (role, spec) for role, spec in waiting
        }
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                role, spec = running.pop(future)
                if (error := future.exception()) is None:
                    results.add(role, spec, future.result())
                    on_done(spec, results.lines[-1])
                elif failure is None:
                    failure = error
                    running = {f: of for f, of in running.items() if not f.cancel()}
    except KeyboardInterrupt:  # whoever asks for the end does not mean that of the trials under way, and one each
        for worker in multiprocessing.active_children():
            worker.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    if isinstance(failure, BrokenProcessPool):
        raise StreamlearnError(
            "a worker was ended in the middle of its trial, as for want of memory; finished trials are kept: run the"
            " same again, with fewer --workers"
        ) from failure
    if failure is not None:
        raise failure


def _begin_worker() -> None:
    import torch

    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A benchmark that is killed must not leave trials that nobody will ever have the outcome of."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def grid(specs: Sequence[Spec], *, methods: Sequence[str], learning_rates: Sequence[float]) -> Iterator[Spec]:
    """Every method at every learning rate, of each of `specs` (whose own method and rate do not count)."""
    for spec in specs:
        for method in methods:
            for rate in learning_rates:
                yield replace(spec, method=method, learning_rate=rate)


def merit(line: Line) -> float:
    """What a learning rate is picked by: final R@5 of the served copy, mean over tasks and directions."""
    return float(line["result"]["copies"][SERVED]["final"]["5"])


def best_rates(lines: Iterable[Line], methods: Sequence[str]) -> dict[str, float]:
    """By method, the learning rate whose trials had the best mean merit; of equals the lower.

    A control takes the rate of the method that it controls for. A method with settings, or with replay, that was not
    tuned itself takes the rate of the one without.

    Args:
        lines: of tuning trials that differ in method and rate alone (`Results.of`).
        methods: whose rates are asked for.

    Raises:
        SourceError: a method has no tuning trial.
    """
    found: dict[str, dict[float, list[float]]] = {}
    for line in lines:
        spec = line["spec"]
        found.setdefault(spec["method"], {}).setdefault(spec["learning_rate"], []).append(merit(line))
    best = {
        method: max(sorted(rates), key=lambda rate, r=rates: sum(r[rate]) / len(r[rate]))  # type: ignore[misc]
        for method, rates in found.items()
    }
    out = {}
    for method in methods:
        names = (method_of(method).rate_of or method, method.partition(":")[0], method.partition("+")[0])
        like = next((name for name in names if name in best), names[0])
        if like not in best:
            raise SourceError(f"{method} has no tuning trial: name {like} among the methods that are tuned")
        out[method] = best[like]
    return out
