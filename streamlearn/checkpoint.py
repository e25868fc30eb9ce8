"""Generations: atomic, verified checkpoints of everything but the catalog, which is cut to match (`Catalog.rewind`).

A generation is a folder that is written aside, fsynced and renamed; the rename of the `current` link publishes it.
So at any instant `current` names a whole generation, and whatever is newer than it never happened. Tensors are
safetensors, the rest is JSON; nothing here executes what it reads.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from streamlearn import durable
from streamlearn.errors import NewerStateError, StateError
from streamlearn.records import Offsets, Partition
from streamlearn.retention import Kept, Retention

log = logging.getLogger(__name__)

# Of the folder; a reader refuses a greater one. 2: a rollback's generation goes with an older cut of the catalog.
FORMAT = 3
PINNED = "pinned"  # a file of this name keeps a generation
# What reading a damaged generation raises.
_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError)


@dataclass(frozen=True)
class Generation:
    """One checkpoint.

    Attributes:
        number: grows by one with each.
        offsets: the next to read, per partition.
        state: JSON-able facts: tasks, eras, scores, lineage.
        tensors: by part ("online", "queue" ...), named tensors; what was read has all parts here.
        sealed: parts that never change ("eras/0001" ...): what makes them, called where they are not yet on disk.
        cut: the catalog's generation that goes with it: its own number, or that of the one it was copied from.
        created: UTC, ISO 8601.
    """

    number: int
    offsets: Offsets
    state: Mapping[str, Any]
    tensors: Mapping[str, Mapping[str, Tensor]]
    sealed: Mapping[str, Callable[[], Mapping[str, Tensor]]] = field(default_factory=dict)
    cut: int = 0
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def __post_init__(self) -> None:
        object.__setattr__(self, "cut", self.cut or self.number)


class Generations:
    """The checkpoints below a state directory.

    Args:
        state_dir: exists and is writable.
        retention: which are kept by `prune`.
    """

    def __init__(self, state_dir: Path, retention: Retention) -> None:
        self.state_dir, self._retention = state_dir, retention
        self.folder = state_dir / "generations"  # made by the first `write`
        self.rejected = 0

    def write(self, generation: Generation) -> None:
        """Write and fsync; it counts only once `publish` has returned.

        Sealed parts are links to the files of the current generation. One of them is read and compared with its sum
        each time, in turns, so that one that rots is soon found, and written anew, at a cost that does not grow.
        """
        with self._aside(generation) as (aside, sums):
            current = self.current()
            previous = {} if current is None else self._sums(current)
            turn = generation.number % len(generation.sealed) if generation.sealed else 0
            for i, (part, make) in enumerate(generation.sealed.items()):
                file = f"{part}.safetensors"
                written = self._path(current or 0) / file
                digest = previous.get(file)
                if digest is not None and written.exists() and (i != turn or durable.sum_of(written) == digest):
                    os.link(written, aside / file)
                    sums[file] = digest
                else:
                    sums[file] = durable.save(make(), aside / file)
            for part, tensors in generation.tensors.items():
                sums[f"{part}.safetensors"] = durable.save(tensors, aside / f"{part}.safetensors")

    def copy(self, of: int, generation: Generation) -> None:
        """Write a generation with the tensors of another one, which are not copied but linked."""
        with self._aside(generation) as (aside, sums):
            for file, digest in self._sums(of).items():
                (aside / file).parent.mkdir(exist_ok=True)
                os.link(self._path(of) / file, aside / file)
                sums[file] = digest

    @contextmanager
    def _aside(self, generation: Generation) -> Iterator[tuple[Path, dict[str, str]]]:
        """A folder for the files, and their sums to be filled in; whole and in its place afterwards."""
        final, aside = self._path(generation.number), self.folder / f".writing-{generation.number:06d}"
        for leftover in (aside, final):  # of a crash before publication
            shutil.rmtree(leftover, ignore_errors=True)
        folders = {aside, *((aside / part).parent for part in generation.sealed)}
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        sums: dict[str, str] = {}
        yield aside, sums
        manifest = {
            "format": FORMAT,
            "number": generation.number,
            "cut": generation.cut,
            "created": generation.created,
            "offsets": [[*partition, offset] for partition, offset in generation.offsets.items()],
            "state": generation.state,
            "sha256": sums,
        }
        path = aside / "manifest.json"
        path.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        durable.sync_and_sum(path)
        for folder in {aside, *((aside / file).parent for file in sums)}:
            durable.sync_folder(folder)
        aside.rename(final)
        durable.sync_folder(self.folder)

    def publish(self, number: int) -> None:
        """Make a written generation the current one: the commit point."""
        link = self.state_dir / ".current"
        link.unlink(missing_ok=True)
        link.symlink_to(Path("generations") / f"{number:06d}")
        link.rename(self.state_dir / "current")
        durable.sync_folder(self.state_dir)

    def numbers(self) -> list[int]:
        """Published generations, oldest first."""
        current = self.current() or 0
        return sorted(number for number in self._folders() if number <= current)

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
        if not numbers and any(number > 1 for number in self._folders()):
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
                if durable.sum_of(path) != digest:
                    raise StateError(f"{path} differs from what was written")
                tensors[name.removesuffix(".safetensors")] = load_file(path)
            offsets = {Partition(topic, partition): offset for topic, partition, offset in manifest["offsets"]}
            return Generation(
                manifest["number"],
                offsets,
                manifest["state"],
                tensors,
                cut=manifest.get("cut", 0),
                created=manifest["created"],
            )
        except _DAMAGE as error:
            raise StateError(f"generation {number} cannot be read: {error!r}") from error

    def prune(self) -> list[int]:
        """Drop those that need not be kept; the newest is, whatever the retention says.

        Returns:
            The cuts of the catalog that go with those kept.
        """
        kept = self._retention.choose(found := [self.describe(number) for number in self.numbers()])
        self.drop((one.number for one in found if one.number not in kept), but_pinned=True)
        return [one.cut for one in found if self._path(one.number).exists()]

    def describe(self, number: int) -> Kept:
        """What retention must know of a generation; one that is damaged is very old."""
        try:
            manifest = self.manifest(number)
            cut, created = manifest.get("cut", number), manifest["created"]
        except (StateError, KeyError):
            cut, created = number, "1970-01-01T00:00:00+00:00"
        found = [path.stat() for path in self._path(number).rglob("*.safetensors")]
        files = {about.st_ino: about.st_size for about in found}
        return Kept(number, cut, datetime.fromisoformat(created), (self._path(number) / PINNED).exists(), files)

    def pin(self, number: int, *, pinned: bool = True) -> None:
        """Keep a generation, or let the next `prune` drop it again.

        Raises:
            StateError: there is none of this number.
        """
        mark = self._path(number) / PINNED
        try:
            if number not in self.numbers():
                raise FileNotFoundError
            if pinned:
                mark.touch()
            else:
                mark.unlink(missing_ok=True)
            durable.sync_folder(mark.parent)
        except FileNotFoundError as error:  # or it was dropped meanwhile
            raise StateError(f"there is no generation {number} in {self.folder}") from error

    def drop(self, numbers: Iterable[int], *, but_pinned: bool = False) -> None:
        """Remove generations, whatever the retention says; each is whole, or not there, for whoever looks."""
        dropped = []
        for number in numbers:  # all of them before the first is deleted, which takes its time: one may be pinned
            aside = self.folder / f".writing-{number:06d}"
            shutil.rmtree(aside, ignore_errors=True)
            with suppress(FileNotFoundError):
                self._path(number).rename(aside)
                if but_pinned and (aside / PINNED).exists():  # since it was looked at
                    aside.rename(self._path(number))
                else:
                    dropped.append(aside)
        durable.sync_folder(self.folder)
        for aside in dropped:
            shutil.rmtree(aside)

    def drop_unpublished(self) -> None:
        """Remove what a crash left beside the published generations, and what a rollback had gone back from."""
        if not self.folder.exists():
            return
        current = self.current()
        last = 0 if current is None else self._gone_back_to(current)
        dropped = [path for number, path in self._folders().items() if number > last and number != current]
        for path in [*dropped, *self.folder.glob(".writing-*")]:
            shutil.rmtree(path)

    def _gone_back_to(self, number: int) -> int:
        """Of a rollback's generation, the one that it equals: what lay between is gone. Of any other, itself.

        Not the cut, which is older where that was a rollback's, too.
        """
        try:
            manifest = self.manifest(number)
        except StateError:
            return number
        return number if manifest.get("cut", number) == number else int(manifest["state"]["parent"]["generation"])

    def _folders(self) -> dict[int, Path]:
        """By number, published or not; whatever else lies there, as a copy that somebody made, is not ours."""
        return {int(path.name): path for path in self.folder.glob("[0-9]*") if path.name.isdecimal()}

    def _sums(self, number: int) -> Mapping[str, str]:
        """By file, what a generation wrote; nothing where there is none."""
        try:
            return dict(self.manifest(number)["sha256"])
        except StateError:
            return {}

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}"
