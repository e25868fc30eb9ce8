"""Whether the state directory can take what is about to be written; looked at before a batch is learned.

It knows the file system, not what is written. A batch that fails half-way could only be mended by a restart, so
learning waits while there is still room for the batch and the checkpoint in hand.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from threading import Event

log = logging.getLogger(__name__)

_LOOK_S = 2.0  # between two looks at a full disk


class Room:
    """The room in a folder's file system.

    Args:
        folder: exists.
        min_free_bytes: with less than this, it is full.
    """

    def __init__(self, folder: Path, min_free_bytes: int) -> None:
        self._folder, self._min_free_bytes = folder, min_free_bytes

    def wait(self, stopping: Event, tell: Callable[[str | None], None]) -> bool:
        """Return when there is room, or false when somebody is stopping.

        `tell` hears the trouble, and None when it is over.
        """
        said = None
        while (trouble := self.trouble()) is not None:
            if said is None:
                log.error("%s", trouble)
            tell(said := trouble)
            if stopping.wait(_LOOK_S):
                return False
        if said is not None:
            log.info("there is room again")
            tell(None)
        return not stopping.is_set()

    def trouble(self) -> str | None:
        """Why nothing should be written, with the remedy; None where it may be."""
        try:
            system = os.statvfs(self._folder)
        except OSError as error:
            return f"{self._folder} cannot be looked at ({error}): nothing is learned until it can"
        try:
            os.utime(
                self._folder
            )  # flags and permissions do not tell: ext4 keeps them when it goes read-only by itself
        except OSError as error:
            return (
                f"{self._folder} cannot be written ({error.strerror}): nothing is learned until it can; after an error"
                " of the disk stop the daemon, check and mount the file system, start again"
            )
        free = system.f_bavail * system.f_frsize
        if free < self._min_free_bytes:
            return (
                f"{self._folder} has {free / 2**20:.0f} MiB left, less than checkpoint.min_free_bytes"
                f" ({self._min_free_bytes / 2**20:.0f} MiB): nothing is learned until there is room"
            )
        return None
