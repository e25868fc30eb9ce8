"""Records to clips in child processes: whatever a record does to its decoder, it costs that record alone.

One thread and one pipe per child, answers in order: a child that dies or hangs has exactly one record to answer for,
the first that is unanswered, and it shares no lock or queue with its neighbours. (In pebble's pool they do share:
one worker that the kernel kills while it is idle or sends a result breaks it for all; docs/decisions.md.)

Children are spawned, not forked: the parent has torch's threads. They import what this module imports, which is why
it must never reach torch, transformers or faiss; and, as Python does it, the parent's main script.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import multiprocessing
import queue
import resource
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from streamlearn.decode import Backend, Sampling, decode
from streamlearn.envelope import parse
from streamlearn.errors import DecodeError, RejectedClip, SettingsError, StreamlearnError
from streamlearn.fetch import fetch
from streamlearn.frames import pack, scale
from streamlearn.records import Clip, Event, Record, Rejected, Tombstone

_START_TIMEOUT_S = 120.0  # imports on a busy machine; not charged to a clip
# Several records are sent at once, answers come one by one: the child need not wait for a busy parent in between.
_BATCH_RECORDS = 4
_BATCH_BYTES = 1 << 20
_ATTEMPTS = 2  # a child may die of something else, such as the kernel's want of memory

_context = multiprocessing.get_context("spawn")


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What may be loaded and into what: the settings of `[media]`, with the same names, and the encoder's size."""

    allowed_roots: tuple[Path, ...]
    allowed_schemes: tuple[str, ...]
    allowed_hosts: tuple[str, ...]
    max_bytes: int
    max_pixels: int
    max_caption_chars: int
    timeout_s: float
    frames: int
    size_px: int
    learn_px: int  # of what the encoder reads
    sampling: Sampling
    decoder: Backend


def load(record: Record, options: LoadOptions) -> Clip | Tombstone:
    """One record to its clip, in this process.

    Raises:
        RejectedClip: the record, its media or its video is bad.
    """
    message = parse(record, max_bytes=options.max_bytes, max_caption_chars=options.max_caption_chars)
    if isinstance(message, Tombstone):
        return message
    media = fetch(
        message,
        allowed_roots=options.allowed_roots,
        allowed_schemes=options.allowed_schemes,
        allowed_hosts=options.allowed_hosts,
        max_bytes=options.max_bytes,
        timeout_s=options.timeout_s,
    )
    frames = decode(
        media,
        frames=options.frames,
        size_px=options.size_px,
        sampling=options.sampling,
        max_pixels=options.max_pixels,
        start_s=message.start_s,
        end_s=message.end_s,
        backend=options.decoder,
    )
    return Clip(
        video_id=message.video_id,
        frames=scale(frames, options.learn_px),
        kept=pack(frames),
        captions=message.captions,
        position=record.position,
        uri=message.uri,
        start_s=message.start_s,
        end_s=message.end_s,
        meta=message.meta,
        time=message.time,
        split=message.split,
        task=message.task,
        sha256=hashlib.sha256(media).hexdigest(),
    )


#: What a child does with a record.
Task = Callable[[Record, LoadOptions], Clip | Tombstone]

_Job = tuple[Record, Future[Event]]


class Loader:
    """A pool of decoder processes.

    Args:
        options: for every record.
        workers: how many processes; they start now and are replaced when they die.
        task: what they do; another than `load` must be importable in a child.

    Raises:
        SettingsError: decord is wanted and not installed.
    """

    def __init__(self, options: LoadOptions, *, workers: int, task: Task = load) -> None:
        if options.decoder == "decord" and importlib.util.find_spec("decord") is None:
            raise SettingsError("media.decoder = 'decord': it is not installed; pip install streamlearn[decord]")
        self._options = options
        self._task = task
        self._workers = workers
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        # Closing the writer makes the reader readable in every thread at once, wherever it waits.
        self._closed, self._close = _context.Pipe(duplex=False)
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._work, name=f"decode-{i}", daemon=True) for i in range(workers)]
        for thread in self._threads:
            thread.start()

    def submit(self, record: Record) -> Future[Event]:
        """Load a record; bound how many are outstanding, they are kept in memory.

        Returns:
            a future that becomes the clip, the tombstone, or the rejection of a bad record, whatever it did to its
            decoder. It carries an exception only where no decoder process can be started, and is cancelled
            by `close`.
        """
        future: Future[Event] = Future()
        with self._lock:
            if self._close.closed:
                future.cancel()
            else:
                self._jobs.put((record, future))
        return future

    def close(self) -> None:
        """Stop the children and cancel what is outstanding; idempotent."""
        with self._lock:
            if not self._close.closed:
                self._close.close()
                self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        self._closed.close()

    def _work(self) -> None:
        # Ctrl-C goes to the whole foreground group, and only the parent decides what it means. Children inherit this
        # thread's mask, so it holds for their imports too; the tracker's own start would lift it again.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        child = _Child(self._task, self._options, self._closed)
        with contextlib.suppress(StreamlearnError, _ClosedError):
            child.start()  # ahead of the first record, which tells if it failed
        while jobs := self._take():
            _load_in(child, jobs)
        child.stop()

    def _take(self) -> deque[_Job]:
        """Wait for a record, and take a fair share of what else is there; nothing when the pool is closed."""
        jobs: deque[_Job] = deque()
        share, sent_bytes = 1, 0
        with contextlib.suppress(queue.Empty):
            while len(jobs) < min(share, _BATCH_RECORDS) and sent_bytes < _BATCH_BYTES:
                job = self._jobs.get(block=not jobs)
                share = max(share, 1 + self._jobs.qsize() // self._workers)
                if job is None:
                    self._jobs.put(None)  # for whoever else waits
                    break
                record, future = job
                if self._close.closed:
                    future.cancel()
                if future.set_running_or_notify_cancel():
                    jobs.append(job)
                    sent_bytes += len(record.value or b"")
        return jobs


def _load_in(child: _Child, jobs: deque[_Job]) -> None:
    """Have the child load the records; one that outlives no two children is rejected, its neighbours go on."""
    deaths = 0  # of the record in front
    while jobs:
        record, future = jobs[0]
        try:
            for reply in child.ask([record for record, _ in jobs]):
                record, future = jobs.popleft()
                deaths = 0
                future.set_result(_rejected(record, reply) if isinstance(reply, RejectedClip) else reply)
        except TimeoutError as error:
            record, future = jobs.popleft()
            deaths = 0
            future.set_result(_rejected(record, DecodeError("decode_timeout", str(error))))
        except (EOFError, OSError):
            child.stop()
            deaths += 1
            if deaths == _ATTEMPTS:
                record, future = jobs.popleft()
                deaths = 0
                future.set_result(
                    _rejected(record, DecodeError("decoder_crashed", "the media crashed the decoder; re-encode it"))
                )
        except (_ClosedError, StreamlearnError) as error:
            while jobs:
                _, future = jobs.popleft()
                future.set_exception(CancelledError() if isinstance(error, _ClosedError) else error)


def _rejected(record: Record, error: RejectedClip) -> Rejected:
    return Rejected(record, error.code, error.stage, str(error))


class _ClosedError(Exception):
    """The pool is being closed."""


class _Child:
    """One decoder process, started when needed."""

    def __init__(self, task: Task, options: LoadOptions, closed: Connection) -> None:
        self._task = task
        self._options = options
        self._closed = closed
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None

    def start(self) -> Connection:
        """Start unless running, and wait until the imports are done; StreamlearnError where it does not start."""
        if self._pipe is not None:
            return self._pipe
        pipe, theirs = _context.Pipe()
        try:
            self._process = _context.Process(
                target=_serve, args=(theirs, self._task, self._options), name="streamlearn-decoder", daemon=True
            )
            self._process.start()
            theirs.close()  # or its death would not end the pipe
            self._await(pipe, _START_TIMEOUT_S)
            pipe.recv()
        except (EOFError, OSError) as error:  # TimeoutError is one
            pipe.close()
            self.stop()
            raise StreamlearnError("the decoder process does not start; its own message is on stderr") from error
        self._pipe = pipe
        return pipe

    def ask(self, records: Sequence[Record]) -> Iterator[Clip | Tombstone | RejectedClip]:
        """Send records, yield the answers in their order.

        Raises:
            TimeoutError: the next one was not there in time; the child is gone.
            EOFError, OSError: the child died over the next one.
            StreamlearnError: it does not start.
        """
        pipe = self.start()
        pipe.send(records)
        for _ in records:
            try:
                self._await(pipe, self._options.timeout_s)
            except TimeoutError:
                self.stop()
                raise
            yield pipe.recv()

    def stop(self) -> None:
        """Kill it; a decoder holds nothing that it could lose."""
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        if self._process is not None and self._process.pid is not None:
            self._process.kill()
            self._process.join()
        self._process = None

    def _await(self, pipe: Connection, timeout_s: float) -> None:
        ready = wait([pipe, self._closed], timeout_s)
        if self._closed in ready:
            raise _ClosedError
        if not ready:
            raise TimeoutError(f"fetching and decoding took longer than {timeout_s:g} s; see media.timeout_s")


def _serve(pipe: Connection, task: Task, options: LoadOptions) -> None:
    """The life of a child."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # crashes are expected: no core file for each
    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        pipe.send(None)
        while True:
            for record in pipe.recv():
                pipe.send(_attempt(task, record, options))


def _attempt(task: Task, record: Record, options: LoadOptions) -> Clip | Tombstone | RejectedClip:
    try:
        return task(record, options)
    except RejectedClip as error:
        return error
    except Exception as error:  # noqa: BLE001 - an unforeseen one is this record's too: the stream goes on
        return DecodeError("decode_failed", f"unforeseen {type(error).__name__}: {str(error)[:200]}")
