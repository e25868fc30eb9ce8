"""Makes video files in memory, records around them, and the tasks that decoder children are tested with."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from streamlearn.loader import LoadOptions, load
from streamlearn.records import Clip, Frames, Position, Record, Tombstone


def gray_level(index: int) -> int:
    """The brightness of a test video's frame of this number, so that a decoded frame tells which it is."""
    return 16 + 10 * (index % 22)


def frame_pixels(index: int, width: int, height: int) -> Frames:
    """(height, width, 3): one gray level, red in the top left quarter."""
    pixels = np.full((height, width, 3), gray_level(index), np.uint8)
    pixels[: height // 2, : width // 2] = (230, 20, 20)
    return pixels


def video(
    codec: str = "libx264",
    container: str = "mp4",
    *,
    frames: int = 20,
    width: int = 96,
    height: int = 96,
    fps: int = 10,
    gop: int = 100,
    rotation: int | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> bytes:
    """An encoded video of `frame_pixels`."""
    file = io.BytesIO()
    with av.open(file, "w", format=container, options=container_options or {}) as output:
        stream = output.add_stream(codec, rate=fps, options=options or {})
        stream.width, stream.height = width, height
        stream.pix_fmt = {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
        stream.codec_context.gop_size = gop
        stream.codec_context.thread_count = 1
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(frame_pixels(i, width, height), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, fps)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def sound() -> bytes:
    """An mp4 file with an audio stream alone."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 8000, 0
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def record(
    value: bytes | dict[str, Any] | None,
    *,
    key: bytes | None = b"clip-1",
    offset: int = 0,
    headers: tuple[tuple[str, bytes], ...] = (),
) -> Record:
    """A record of the topic `clips`; a dict is sent as JSON."""
    body = json.dumps(value).encode() if isinstance(value, dict) else value
    return Record(key, body, Position("clips", "0", offset), headers)


def raw_record(media: bytes, *, key: bytes = b"clip-1", caption: str = "a gray square", offset: int = 0) -> Record:
    """A record whose value is the video."""
    return record(
        media, key=key, offset=offset, headers=(("content-type", b"video/mp4"), ("caption", caption.encode()))
    )


def load_options(**changes: Any) -> LoadOptions:
    """Small frames, small limits, no files."""
    values: dict[str, Any] = {
        "allowed_roots": (),
        "allowed_schemes": ("file",),
        "allowed_hosts": (),
        "max_bytes": 8 * 2**20,
        "max_pixels": 4096 * 2304,
        "max_caption_chars": 10_000,
        "timeout_s": 60.0,
        "frames": 4,
        "size_px": 32,
        "learn_px": 16,
        "sampling": "exact",
        "decoder": "pyav",
    }
    return LoadOptions(**values | changes)


def load_or_misbehave(record: Record, options: LoadOptions) -> Clip | Tombstone:
    """`load`, but some keys do to their decoder what a hostile video might."""
    match record.key:
        case b"kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case b"abort":
            os.abort()
        case b"hang":
            threading.Event().wait()
        case b"bug":
            raise LookupError("a bug in the decoder")
        case b"interrupt":
            os.kill(os.getpid(), signal.SIGINT)
        case b"kill once":
            marker = Path((record.value or b"").decode())
            if not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return Tombstone("kill once", record.position)
    return load(record, options)


def imported_modules(record: Record, options: LoadOptions) -> Tombstone:
    """A tombstone whose id lists what this process has imported."""
    return Tombstone(" ".join(name for name in sys.modules if "." not in name), record.position)
