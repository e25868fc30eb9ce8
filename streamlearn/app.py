"""The composition root: the only reader of settings. Builds the parts, starts them in order, stops them in reverse."""

from __future__ import annotations

import logging
import os
import threading
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Self

import torch
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector

from streamlearn import __version__, allocator, task_names
from streamlearn.api import create_app
from streamlearn.catalog import Catalog
from streamlearn.checkpoint import Generations
from streamlearn.clip_writer import ClipWriter
from streamlearn.deadletters import FileDeadLetters
from streamlearn.deleting import Deleting
from streamlearn.encoders import Towers
from streamlearn.eras import Eras
from streamlearn.evaluator import Evaluator
from streamlearn.events import Events
from streamlearn.examiner import Examiner
from streamlearn.feed import Feed
from streamlearn.frames import FrameStore
from streamlearn.frozen_clips import FrozenClips, frame_of
from streamlearn.generation_facts import retention
from streamlearn.index import configure_faiss
from streamlearn.judge import Judge
from streamlearn.learner import Learner
from streamlearn.ledger import Ledger
from streamlearn.lineage import Reading
from streamlearn.loader import Loader, LoadOptions
from streamlearn.metrics import Metrics
from streamlearn.pipeline import Pipeline
from streamlearn.process import lock_state
from streamlearn.routes_clips import clip_routes
from streamlearn.routes_generations import generation_routes
from streamlearn.routes_tasks import task_routes
from streamlearn.score_book import ScoreBook
from streamlearn.scoreboard import Scoreboard
from streamlearn.search import Searcher
from streamlearn.server import Server
from streamlearn.service import DaemonService
from streamlearn.service_generations import GenerationsService
from streamlearn.service_tasks import TasksService
from streamlearn.settings import Settings
from streamlearn.source import DeadLetters, EventSink, Publisher, Source, load_source_class
from streamlearn.state import State
from streamlearn.stored_clips import StoredClips
from streamlearn.tasks import Boundaries
from streamlearn.tune import detector_of
from streamlearn.warmup import build_towers, device_of, reading_of

log = logging.getLogger(__name__)


class Daemon:
    """Everything that `streamlearn run` runs; a context manager that has started all of it.

    Args:
        settings: the tree.
        source: instead of the one that the settings name.

    Raises:
        SettingsError: a setting is wrong, the port is taken, or another daemon uses the state directory.
        StateError: the state directory cannot be used.
    """

    def __init__(self, settings: Settings, source: Source | None = None) -> None:
        self.settings = settings
        self._stack = ExitStack()
        try:
            self._build(source)
        except BaseException:
            self._stack.close()
            raise

    def _build(self, source: Source | None) -> None:
        settings, media, opened = self.settings, self.settings.media, self._stack
        torch.set_num_threads(settings.model.threads or max(1, (os.cpu_count() or 1) - settings.media.workers))
        configure_faiss()
        allocator.tune()
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.metrics = Metrics.create(self.registry)
        opened.enter_context(lock_state(settings.state_dir))

        self.catalog = opened.enter_context(closing(Catalog(settings.state_dir / "catalog.db")))
        self.frames = opened.enter_context(
            closing(FrameStore(settings.state_dir / "frames", media.store_max_bytes, media.recent_max_bytes))
        )
        towers, device = build_towers(settings.model, settings.learner.seed), device_of(settings.model.device)
        learner = Learner(towers, settings.learner, device, StoredClips(self.catalog, self.frames, towers.size_px))
        reopen = None if source is not None else partial(load_source_class(settings.source).from_settings, settings)
        source = source or load_source_class(settings.source).from_settings(settings)
        self.dead_letters = opened.enter_context(closing(_dead_letters(source, settings.state_dir)))
        events = opened.enter_context(closing(Events(_event_sink(source), self.metrics)))
        self.loader = opened.enter_context(
            closing(Loader(load_options(settings, learner.online.size_px), workers=settings.media.workers))
        )
        deleting = Deleting()
        self.searcher = Searcher(
            self.catalog,
            self.frames,
            settings.search,
            self.metrics,
            submit=self.loader.submit,
            decode_timeout_s=2 * settings.media.timeout_s,
            deleting=deleting,
        )
        self.feed = Feed(
            source,
            self.loader,
            batch_size=settings.learner.batch_size,
            max_wait_s=settings.learner.max_wait_s,
            max_age_s=settings.learner.max_batch_age_s,
            show_after_s=settings.search.show_after_s,
            metrics=self.metrics,
            begins=lambda name: task_names.begins(self.state.tasks, name),
            reopen=reopen,
            deleting=deleting,
        )
        opened.callback(self.feed.close)
        book = ScoreBook()
        judged = settings.drift.frozen_judge and settings.drift.detector != "none"
        frozen = learner.online.frozen_copy() if judged else None  # before anything is learned
        device_of(settings.search.index_device, "search.index_device")
        eras = Eras(learner, self.catalog, self.frames, settings.search)
        judge = _judge(frozen, self.catalog, self.frames, eras, settings)
        detector = detector_of(settings.drift)
        evaluator = Evaluator(self.catalog, self.frames, self.searcher, settings.evaluate)
        self.scoreboard = Scoreboard(book, self.catalog, self.metrics)
        examiner = Examiner(evaluator, self.scoreboard, self.metrics, budget_ratio=settings.evaluate.budget_ratio)
        opened.callback(examiner.close)
        ledger = Ledger(
            self.catalog,
            self.frames,
            eras,
            self.dead_letters,
            self.metrics,
            heldout_ratio=settings.evaluate.heldout_ratio,
        )
        self.state = State(
            learner=learner,
            eras=eras,
            ledger=ledger,
            detector=detector,
            judge=judge,
            book=book,
            catalog=self.catalog,
            frames=self.frames,
            generations=Generations(settings.state_dir, retention(settings.checkpoint)),
            searcher=self.searcher,
            dead_letters=self.dead_letters,
            events=events,
            metrics=self.metrics,
            reading=Reading(
                {f"media.{name}": getattr(media, name) for name in ("frames", "size_px", "sampling")},
                reading_of(learner.online),
                carry=settings.checkpoint.on_mismatch == "carry",
            ),
            remember=self.feed.memo,
        )
        self.pipeline = Pipeline(
            feed=self.feed,
            learner=learner,
            ledger=ledger,
            boundaries=Boundaries(detector),
            examiner=examiner,
            state=self.state,
            settings=settings,
            metrics=self.metrics,
        )
        self.service = DaemonService(
            self.state,
            self.searcher,
            self.feed,
            source=settings.source,
            heldout_max=settings.evaluate.heldout_max_per_task,
        )
        writer = ClipWriter(
            self._publisher(source),
            source=settings.source,
            catalog=self.catalog,
            max_bytes=settings.media.max_bytes,
            max_caption_chars=settings.media.max_caption_chars,
            written=self.feed.look,
        )
        app = create_app(
            self.service,
            settings=settings.api,
            metrics=self.metrics,
            registry=self.registry,
            areas=[
                clip_routes(writer),
                task_routes(TasksService(self.pipeline)),
                generation_routes(GenerationsService(self.state.generations, self.pipeline)),
            ],
        )
        self.server = Server(app, host=settings.api.host, port=settings.api.port)
        opened.callback(self.server.stop)
        self.metrics.build_info.info({"version": __version__, "model": self.state.model_version})
        self._thread = threading.Thread(target=self.pipeline.run, name="pipeline", daemon=True)

    def _publisher(self, source: Source) -> Publisher | None:
        own = getattr(source, "publisher", None)
        return None if own is None else self._stack.enter_context(closing(own()))

    @property
    def url(self) -> str:
        """Where the page and the API are."""
        host = self.settings.api.host
        return f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{self.server.port}"

    def __enter__(self) -> Self:
        try:
            self.state.restore()
            self.scoreboard.export()
            self.server.start()
            self.feed.start(self.state.offsets, self.state.memo)
        except BaseException:
            self._stack.close()
            raise
        self._thread.start()
        self._stack.callback(self._thread.join)
        return self

    def __exit__(self, *_: object) -> None:
        """End the current batch, write a last checkpoint, answer what is being asked, close."""
        self.pipeline.stop()
        self._stack.close()


def load_options(settings: Settings, encoder_px: int) -> LoadOptions:
    """What the decoders may read, and make of it: the folder source's own folder is always allowed.

    Decoders scale down to what the encoder reads: one process has the whole of the learning to do, they are many.
    """
    media = settings.media
    roots = [*media.allowed_roots]
    if settings.source.startswith("streamlearn.connectors.folder:"):
        roots.append(settings.folder.path)
    return LoadOptions(
        allowed_roots=tuple(root.resolve() for root in roots),
        allowed_schemes=tuple(media.allowed_schemes),
        allowed_hosts=tuple(media.allowed_hosts),
        max_bytes=media.max_bytes,
        max_pixels=media.max_pixels,
        max_caption_chars=media.max_caption_chars,
        timeout_s=media.timeout_s,
        frames=media.frames,
        size_px=media.size_px,
        learn_px=min(media.size_px, encoder_px),
        sampling=media.sampling,
        decoder=media.decoder,
    )


def _dead_letters(source: Source, state_dir: Path) -> DeadLetters:
    own = getattr(source, "dead_letters", None)
    return own() if own is not None else FileDeadLetters(state_dir / "dead_letters.jsonl")


def _event_sink(source: Source) -> EventSink | None:
    own = getattr(source, "events", None)
    return None if own is None else own()


def _judge(frozen: Towers | None, catalog: Catalog, frames: FrameStore, eras: Eras, settings: Settings) -> Judge | None:
    if frozen is None:
        return None
    return Judge(
        FrozenClips(frozen, catalog, frames, eras),
        frame=frame_of(frozen),
        batch_size=settings.learner.batch_size,
        clips_per_false_boundary=settings.drift.clips_per_false_boundary,
        revisits=settings.drift.revisits,
    )
