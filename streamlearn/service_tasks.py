"""What an operator does to tasks, handed to the pipeline's thread. Safe from any thread."""

from __future__ import annotations

import dataclasses
from typing import Any

from streamlearn.pipeline import Pipeline

_TIMEOUT_S = 60.0


class TasksService:
    """A `routes_tasks.Service` over the running daemon."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def mark(self, name: str | None) -> dict[str, Any]:
        """A task begins with the next clip."""
        return dataclasses.asdict(self._pipeline.mailbox.ask(lambda: self._pipeline.mark(name), _TIMEOUT_S))

    def rename(self, old: str, new: str) -> None:
        """A task gets another name."""
        self._pipeline.mailbox.ask(lambda: self._pipeline.relabel(old, new, merge=False), _TIMEOUT_S)

    def merge(self, old: str, into: str) -> None:
        """A task becomes part of another."""
        self._pipeline.mailbox.ask(lambda: self._pipeline.relabel(old, into, merge=True), _TIMEOUT_S)
