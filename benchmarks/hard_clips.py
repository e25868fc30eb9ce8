"""What the decoders make of a folder of hard video files, one line a file.

    python benchmarks/hard_clips.py FOLDER --sampling keyframe

Each file goes through the Loader, so a crash or a hang is a line of the table like any other.
"""

from __future__ import annotations

import argparse
import collections
import json
import time
from pathlib import Path

from streamlearn.decode import Backend, Sampling
from streamlearn.loader import Loader, LoadOptions
from streamlearn.records import Clip, Event, Position, Record, Rejected


def main() -> None:
    """Print one line a file and the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sampling", choices=["exact", "keyframe"], default="exact")
    parser.add_argument("--backends", nargs="+", choices=["pyav", "decord"], default=["pyav", "decord"])
    arguments = parser.parse_args()
    paths = sorted(p for p in arguments.folder.iterdir() if p.is_file())

    tables = {backend: run(paths, backend, arguments.sampling) for backend in arguments.backends}
    width = max(len(path.name) for path in paths)
    for path in paths:
        print(f"{path.name:{width}}", *(f"{describe(*tables[b][path]):34}" for b in tables), sep="  ")
    for backend, table in tables.items():
        outcomes = collections.Counter(e.code if isinstance(e, Rejected) else "decoded" for e, _ in table.values())
        print(f"\n{backend}: {outcomes['decoded']} of {len(paths)} decoded;", dict(outcomes.most_common()))


def run(paths: list[Path], backend: Backend, sampling: Sampling) -> dict[Path, tuple[Event, float]]:
    """Load every file in turn; the event and the seconds it took."""
    options = LoadOptions(
        allowed_roots=tuple({path.parent for path in paths}),
        allowed_schemes=("file",),
        allowed_hosts=(),
        max_bytes=64 * 2**20,
        max_pixels=3840 * 2160 * 2,
        max_caption_chars=1_000,
        timeout_s=60.0,
        frames=8,
        size_px=224,
        learn_px=224,
        sampling=sampling,
        decoder=backend,
    )
    loader = Loader(options, workers=1)
    table = {}
    try:
        for number, path in enumerate(paths):
            value = json.dumps({"uri": path.resolve().as_uri(), "caption": path.name}).encode()
            record = Record(path.name.encode(), value, Position("hard", "0", number))
            begin = time.perf_counter()
            table[path] = loader.submit(record).result(), time.perf_counter() - begin
    finally:
        loader.close()
    return table


def describe(event: Event, seconds: float) -> str:
    """One cell."""
    outcome = f"ok mean {event.frames.mean():5.1f}" if isinstance(event, Clip) else getattr(event, "code", "")
    return f"{outcome} ({seconds * 1e3:.0f} ms)"


if __name__ == "__main__":
    main()
