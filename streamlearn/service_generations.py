"""What the HTTP API says of generations and does with them, in a running daemon. Safe from any thread."""

from __future__ import annotations

from typing import Any

from streamlearn.checkpoint import Generations
from streamlearn.errors import StateError
from streamlearn.generation_facts import compared, overview
from streamlearn.pipeline import Pipeline
from streamlearn.rollback import ResumeFrom

_PATIENCE_S = 60.0  # for the batch, or the checkpoint, that is under way


class GenerationsService:
    """The generations of a running daemon."""

    def __init__(self, generations: Generations, pipeline: Pipeline) -> None:
        self._generations, self._pipeline = generations, pipeline

    def all(self) -> list[dict[str, Any]]:
        """What is kept, newest first."""
        return overview(self._generations)

    def one(self, number: int) -> dict[str, Any] | None:
        """The manifest; None where there is none of this number.

        Raises:
            StateError: it is damaged.
        """
        if number not in self._generations.numbers():
            return None
        return self._generations.manifest(number)

    def diff(self, older: int, newer: int) -> dict[str, Any]:
        """What two of them do not have in common.

        Raises:
            StateError: a manifest is damaged, or gone.
        """
        return compared(self._generations, self._pipeline.state.catalog.changes, older, newer)

    def pin(self, number: int, pinned: bool) -> None:
        """Keep a generation, or no longer.

        Raises:
            StateError: there is none of this number.
        """
        self._generations.pin(number, pinned=pinned)

    def roll_back(self, number: int, resume_from: ResumeFrom) -> dict[str, Any]:
        """Go back, between two batches; returns once searches are answered from there.

        Raises:
            StreamlearnError: it cannot be done, as the sentence says; nothing was changed.
        """
        pipeline = self._pipeline
        if resume_from == "generation" and not pipeline.feed.can_rewind:
            raise StateError("this source cannot be read again while the daemon runs: stop it, or resume from latest")

        return vars(pipeline.mailbox.ask(lambda: pipeline.roll_back(number, resume_from), _PATIENCE_S)).copy()
