"""Generations: atomic, verified checkpoints of everything but the catalog, which is cut to match (`Catalog.rewind`).

A generation is a folder that is written aside, fsynced and renamed; the rename of the `current` link publishes it.
So at any instant `current` names a whole generation, and whatever is newer than it never happened. Tensors are
safetensors, the rest is JSON; nothing here executes what it reads.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from streamlearn.errors import NewerStateError, StateError
from streamlearn.records import Offsets, Partition

log = logging.getLogger(__name__)

FORMAT = 1  # of the folder; a reader refuses a greater one
# What reading a damaged generation raises.
_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError)


@dataclass(frozen=True)
class Generation:
    """One checkpoint.

    Attributes:
        number: grows by one with each.
        offsets: the next to read, per partition.
        state: JSON-able facts: tasks, eras, scores, lineage.
        tensors: by part ("online", "queue", "eras/0001" ...), named tensors. Parts named `eras/` never change.
        created: UTC, ISO 8601.
    """

    number: int
    offsets: Offsets
    state: Mapping[str, Any]
    tensors: Mapping[str, Mapping[str, Tensor]]
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


class Generations:
    """The checkpoints below a state directory.

    Args:
        state_dir: exists and is writable.
        keep: how many are kept by `prune`.
    """

    def __init__(self, state_dir: Path, keep: int) -> None:
        self.state_dir, self.keep = state_dir, keep
        self.folder = state_dir / "generations"  # made by the first `write`
        self.rejected = 0

    def write(self, generation: Generation) -> None:
        """Write and fsync; it counts only once `publish` has returned."""
        final, aside = self._path(generation.number), self.folder / f".writing-{generation.number:06d}"
        for leftover in (aside, final):  # of a crash before publication
            shutil.rmtree(leftover, ignore_errors=True)
        (aside / "eras").mkdir(parents=True)
        sums, previous = {}, self._sums(generation.number - 1)
        for part, tensors in generation.tensors.items():
            file = f"{part}.safetensors"
            path, written = aside / file, self._path(generation.number - 1) / file
            if part.startswith("eras/") and written.exists() and _sum(written) == previous.get(file):
                os.link(written, path)
            else:
                save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
            sums[file] = _sync_and_sum(path)
        manifest = {
            "format": FORMAT,
            "number": generation.number,
            "created": generation.created,
            "offsets": [[*partition, offset] for partition, offset in generation.offsets.items()],
            "state": generation.state,
            "sha256": sums,
        }
        path = aside / "manifest.json"
        path.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        _sync_and_sum(path)
        _sync_folder(aside / "eras")
        _sync_folder(aside)
        aside.rename(final)
        _sync_folder(self.folder)

    def publish(self, number: int) -> None:
        """Make a written generation the current one: the commit point."""
        link = self.state_dir / ".current"
        link.unlink(missing_ok=True)
        link.symlink_to(Path("generations") / f"{number:06d}")
        link.rename(self.state_dir / "current")
        _sync_folder(self.state_dir)

    def numbers(self) -> list[int]:
        """Published generations, oldest first."""
        current = self.current()
        return sorted(n for p in self.folder.glob("[0-9]*") if current is not None and (n := int(p.name)) <= current)

    def current(self) -> int | None:
        """The published generation's number, None before the first."""
        try:
            return int(os.readlink(self.state_dir / "current").rpartition("/")[2])
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise StateError(f"{self.state_dir / 'current'} must be a link to a generation: {error}") from error

    def newest_good(self) -> Generation | None:
        """The newest published generation that verifies; None in a new state directory.

        Raises:
            NewerStateError: a newer streamlearn wrote it.
            StateError: there are generations, and none verifies.
        """
        numbers = self.numbers()
        if not numbers and any(int(path.name) > 1 for path in self.folder.glob("[0-9]*")):
            # Only the very first generation can be there before anything was published.
            raise StateError(
                f"{self.state_dir} has generations and no link `current`, as a copy without links has: make it again"
                " with `ln -s generations/NUMBER current`"
            )
        for number in reversed(numbers):
            try:
                return self.read(number)
            except NewerStateError:
                raise
            except StateError as error:
                self.rejected += 1
                log.error("generation %d does not verify and is not used: %s", number, error)
        if self.current() is not None:  # or the catalog would be emptied to match the beginning
            raise StateError(f"none of the generations in {self.folder} verifies; restore them from a backup")
        return None

    def manifest(self, number: int) -> dict[str, Any]:
        """What a generation says of itself.

        Raises:
            NewerStateError: a newer streamlearn wrote it.
            StateError: there is no such generation, or its manifest is damaged.
        """
        try:
            manifest: dict[str, Any] = json.loads((self._path(number) / "manifest.json").read_text(encoding="utf-8"))
            newer = manifest["format"] > FORMAT
        except FileNotFoundError as error:
            raise StateError(f"there is no generation {number} in {self.folder}") from error
        except _DAMAGE as error:
            raise StateError(f"the manifest of generation {number} cannot be read: {error!r}") from error
        if newer:
            raise NewerStateError(
                f"generation {number} has format {manifest['format']}, this version reads up to {FORMAT}:"
                " upgrade streamlearn"
            )
        return manifest

    def read(self, number: int) -> Generation:
        """Load and verify.

        Raises:
            NewerStateError: a newer streamlearn wrote it.
            StateError: a file is missing, or differs from what was written.
        """
        manifest = self.manifest(number)
        tensors = {}
        try:
            for name, digest in manifest["sha256"].items():
                path = self._path(number) / name
                if _sum(path) != digest:
                    raise StateError(f"{path} differs from what was written")
                tensors[name.removesuffix(".safetensors")] = load_file(path)
            offsets = {Partition(topic, partition): offset for topic, partition, offset in manifest["offsets"]}
            return Generation(manifest["number"], offsets, manifest["state"], tensors, manifest["created"])
        except _DAMAGE as error:
            raise StateError(f"generation {number} cannot be read: {error!r}") from error

    def prune(self) -> int:
        """Drop all but the newest `keep`; returns the oldest kept."""
        numbers = self.numbers()
        for number in numbers[: -self.keep]:
            shutil.rmtree(self._path(number))
        return numbers[-self.keep :][0]

    def drop_unpublished(self) -> None:
        """Remove what a crash left beside the published generations."""
        published = {f"{number:06d}" for number in self.numbers()}
        for path in self.folder.glob("*"):
            if path.name not in published:
                shutil.rmtree(path)

    def _sums(self, number: int) -> Mapping[str, str]:
        """By file, what a generation wrote; nothing where there is none."""
        try:
            sums: dict[str, str] = self.manifest(number)["sha256"]
        except StateError:
            return {}
        return sums

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}"


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_and_sum(path: Path) -> str:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return _sum(path)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
