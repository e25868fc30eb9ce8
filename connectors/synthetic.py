"""The synthetic world, rendered and encoded: an endless supply of video-caption pairs to try the daemon on.

Knows pixels and mp4; what there is to show and how it is said is in `scenes`. What a caption leaves open (places,
phases, grain) is drawn when its scene is rendered. Costs about 1 ms a clip to render at 32 px and 6 ms to encode at
96 px.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from streamlearn.connectors.scenes import COLOURS, DOMAINS, GENERIC, WORLD, Scene, sample, vocabulary
from streamlearn.records import Frames

__all__ = ["DOMAINS", "GENERIC", "Scene", "clips", "encode", "render", "sample", "vocabulary", "write_stream"]

Floats = npt.NDArray[np.floating]

_SIZES = {"small": 0.25, "large": 0.44}  # radius; the picture spans -1..1
_SPEEDS = {"slowly": 0.4, "quickly": 1.0}  # way over the clip, in the same unit
_STILL_RADIUS = 0.23
_GRAIN_CELLS = 32  # grain has the same coarseness at every size, so that a clip looks alike at 32 and 96 px
_BATCH_CLIPS = 16  # rendered at once: more would leave the cache


def render(scenes: Sequence[Scene], *, size_px: int, frames: int = 8, rng: np.random.Generator) -> Frames:
    """Draw scenes; what their captions leave open comes from `rng`.

    Returns:
        (n, frames, size_px, size_px, 3) uint8 RGB.
    """
    out = np.empty((len(scenes), frames, size_px, size_px, 3), np.uint8)
    for start in range(0, len(scenes), _BATCH_CLIPS):
        batch = scenes[start : start + _BATCH_CLIPS]
        out[start : start + len(batch)] = _render_batch(batch, size_px, frames, rng)
    return out


def _render_batch(scenes: Sequence[Scene], size_px: int, frames: int, rng: np.random.Generator) -> Frames:
    n = len(scenes)
    centre, radius = _paths(scenes, frames, rng)  # (n, T, 2), (n, T)
    still = _still_places(centre, rng)  # (n, 1, 2)
    moving_rgb, still_rgb = _object_colours(scenes, rng)  # (n, 3) each

    picture = _backdrops(scenes, size_px, rng)[:, None]  # (n, 1, S, S, 3)
    cover, _ = _draw([s.still_shape for s in scenes], ["plain"] * n, still, np.full((n, 1), _STILL_RADIUS), size_px)
    picture += cover[..., None] * (still_rgb[:, None, None, None] - picture)
    cover, shade = _draw([s.shape for s in scenes], [s.texture for s in scenes], centre, radius, size_px)
    picture = picture + cover[..., None] * (shade[..., None] * moving_rgb[:, None, None, None] - picture)

    noise = np.array([WORLD[s.domain].noise for s in scenes], np.float32)
    grain = rng.standard_normal((n, frames, _GRAIN_CELLS, _GRAIN_CELLS, 3), np.float32)
    picture += _upsampled(grain * noise[:, None, None, None, None], size_px)
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


def _paths(scenes: Sequence[Scene], frames: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Centres (n, T, 2) as (x, y), y downwards, and radii (n, T) of the moving objects."""
    t = np.linspace(-0.5, 0.5, frames)
    steps = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
    centre = np.zeros((len(scenes), frames, 2), np.float32)
    radius = np.empty((len(scenes), frames), np.float32)
    for i, s in enumerate(scenes):
        way, radius[i] = _SPEEDS[s.speed], _SIZES[s.size]
        if s.motion in steps:
            centre[i] = np.outer(t * way, steps[s.motion])
        elif s.motion == "diagonal":
            centre[i] = np.outer(t * way, rng.choice((-0.8, 0.8), 2))
        elif s.motion == "circling":
            angle = t * way * 2 * np.pi + rng.uniform(0, 2 * np.pi)
            centre[i] = 0.32 * np.stack((np.cos(angle), np.sin(angle)), axis=1)
        else:
            radius[i] *= np.exp((1.0 if s.motion == "growing" else -1.0) * 1.4 * way * t)
        room = 0.98 - np.abs(centre[i]).max(axis=0) - min(radius[i].max(), 0.5)
        centre[i] += rng.uniform(-1, 1, 2) * np.maximum(room, 0.05)
    return centre, radius


def _still_places(centre: Floats, rng: np.random.Generator) -> Floats:
    """(n, 1, 2): of a few random places the one that the moving object leaves most visible."""
    places = rng.uniform(-0.7, 0.7, (len(centre), 4, 2)).astype(np.float32)
    distance = np.linalg.norm(places[:, :, None] - centre[:, None], axis=-1).min(axis=-1)  # (n, 4)
    return np.take_along_axis(places, distance.argmax(axis=1)[:, None, None], axis=1)


def _object_colours(scenes: Sequence[Scene], rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Colours (n, 3) of the moving and the still objects, as the domain shows them."""
    domains = [WORLD[s.domain] for s in scenes]
    named = np.array([(COLOURS[s.colour], COLOURS[s.still_colour]) for s in scenes], np.float32)  # (n, 2, 3)
    shown = np.einsum("nij,nkj->nki", np.array([d.palette for d in domains], np.float32), named)
    shown += np.array([d.lift for d in domains], np.float32)[:, None]
    share = np.array([d.tint for d in domains], np.float32)[:, None, None] * rng.random((len(scenes), 1, 1), np.float32)
    shown += share * (rng.random((len(scenes), 1, 3), np.float32) - shown)
    return shown[:, 0], shown[:, 1]


def _draw(
    shapes: Sequence[str],
    textures: Sequence[str],
    centre: Floats,
    radius: Floats,
    size_px: int,
) -> tuple[Floats, Floats]:
    """How much of each pixel an object covers, and how bright its texture is there: (n, T, S, S) each."""
    axis = _axis(size_px)
    cover = np.empty((*radius.shape, size_px, size_px), np.float32)
    shade = np.ones_like(cover)
    for i, (shape, texture) in enumerate(zip(shapes, textures, strict=True)):
        scale = radius[i, :, None, None].astype(np.float32)
        x = (axis - centre[i, :, 0, None]).astype(np.float32)[:, None, :]  # (T, 1, S)
        y = (axis - centre[i, :, 1, None]).astype(np.float32)[:, :, None]  # (T, S, 1)
        # One pixel of ramp around the outline is the antialiasing; a pixel is 2 / S wide.
        np.clip(0.5 - _distance(shape, x / scale, y / scale) * scale * (size_px / 2), 0, 1, out=cover[i])
        if texture != "plain":
            wave = np.sin(y * 25.0)
            if texture == "checked":
                wave = wave * np.sin(x * 25.0) * 2
            shade[i] = np.clip(0.65 + wave * 1.5, 0.3, 1.0)
    return cover, shade


def _distance(shape: str, x: Floats, y: Floats) -> Floats:
    """Signed distance to the outline of a shape of radius 1, negative inside; x (T, 1, S), y (T, S, 1)."""
    distance: Floats
    ax, ay = np.abs(x), np.abs(y)
    match shape:
        case "circle":
            distance = np.sqrt(x * x + y * y) - 1
        case "ring":
            distance = np.abs(np.sqrt(x * x + y * y) - 0.75) - 0.28
        case "square":
            distance = np.maximum(ax, ay) - 0.85
        case "diamond":
            distance = (ax + ay - 1.1) * 0.7071
        case "bar":
            distance = np.maximum(ax - 1.1, ay - 0.32)
        case "cross":
            distance = np.minimum(np.maximum(ax - 1, ay - 0.34), np.maximum(ax - 0.34, ay - 1))
        case "triangle":
            distance = np.maximum((ax - (y + 1) * 0.528) * 0.884, y - 0.8)
        case _:  # star
            distance = (np.sqrt(x * x + y * y) - 0.68 - 0.42 * np.cos(5 * np.arctan2(x, -y))) * 0.6
    return distance


def _backdrops(scenes: Sequence[Scene], size_px: int, rng: np.random.Generator) -> Floats:
    """(n, S, S, 3)."""
    out = np.empty((len(scenes), size_px, size_px, 3), np.float32)
    for i, s in enumerate(scenes):
        backdrop = WORLD[s.domain].backdrops[s.background]
        low = rng.random(3) if backdrop.low is None else np.array(backdrop.low) + rng.uniform(-0.03, 0.03, 3)
        high = low if backdrop.pattern == "flat" else backdrop.high or rng.random(3)
        mix = _pattern(backdrop.pattern, size_px, rng)[..., None]
        out[i] = low + mix * (np.asarray(high) - low)
    return out


def _pattern(name: str, size_px: int, rng: np.random.Generator) -> Floats:
    """How much of its second colour a backdrop shows where, 0..1: (S, S)."""
    mix: npt.NDArray[Any]
    axis = _axis(size_px)
    x, y = axis[None, :], axis[:, None]
    turn = rng.uniform(0, 2 * np.pi)
    along = np.cos(turn) * x + np.sin(turn) * y
    rules = np.clip(1.5 - np.abs((axis + rng.uniform(0, 0.4)) % 0.4 - 0.2) * 25, 0, 1)
    match name:
        case "specks" | "grain":
            cells = rng.random((1, _GRAIN_CELLS, _GRAIN_CELLS, 1), np.float32)
            mix = _upsampled(cells > 0.93 if name == "specks" else cells, size_px)[0, :, :, 0]
        case "clouds":
            mix = np.sin(3 * along + turn) + np.sin(4 * x - 2 * y + 3 * turn) + np.sin(2 * x + 5 * y + 5 * turn)
            mix = mix / 4 + 0.5
        case "waves":
            mix = 0.5 + 0.5 * np.sin(9 * along + 2 * turn)
        case "ramp":
            mix = 0.5 + 0.6 * along
        case "lines":
            mix = np.broadcast_to(rules[:, None], (size_px, size_px))
        case "grid":
            mix = np.maximum(rules[:, None], rules[None, :])
        case _:  # flat
            mix = np.zeros((size_px, size_px))
    return mix.clip(0, 1).astype(np.float32)


def _axis(size_px: int) -> Floats:
    """Pixel centres between -1 and 1."""
    return ((np.arange(size_px, dtype=np.float32) + 0.5) * 2 / size_px - 1).astype(np.float32)


def _upsampled(cells: npt.NDArray[Any], size_px: int) -> npt.NDArray[Any]:
    """(..., G, G, C) to (..., S, S, C), the nearest cell."""
    if size_px == cells.shape[-2]:
        return cells
    at = np.arange(size_px) * cells.shape[-2] // size_px
    upsampled: npt.NDArray[Any] = cells.take(at, axis=-3).take(at, axis=-2)
    return upsampled


def encode(frames: Frames, *, fps: int = 8, codec: str = "libx264") -> bytes:
    """Encode (T, H, W, 3) uint8 RGB as mp4, yuv420p; height and width must be even."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=fps)
        assert isinstance(stream, av.VideoStream), f"{codec} encodes no video"
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = 4
        stream.codec_context.thread_count = 1  # starting threads costs more than so few pixels
        if codec == "libx264":
            stream.options = {"preset": "ultrafast", "crf": "20"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def clips(domain: str, n: int, seed: int, size_px: int) -> Iterator[tuple[str, str, bytes]]:
    """Make `n` clips of a domain, always the same ones for a seed: (video_id, caption, mp4 bytes)."""
    rng = np.random.default_rng((seed, (*DOMAINS, GENERIC).index(domain)))
    scenes = sample(domain, n, rng)
    for start in range(0, n, _BATCH_CLIPS):
        batch = scenes[start : start + _BATCH_CLIPS]
        for i, frames in enumerate(render(batch, size_px=size_px, rng=rng)):
            yield f"{domain}-{start + i:06d}", batch[i].caption, encode(frames)


def write_stream(
    folder: Path,
    *,
    domains: Sequence[str] = DOMAINS,
    clips_per_domain: int,
    seed: int,
    size_px: int = 96,
    rate_per_s: float | None = None,
    mixing_clips: int = 0,
) -> None:
    """Write clips and grow `manifest.jsonl` beside them, as a camera would: a clip first, then its row.

    Args:
        folder: made where absent; rows are appended where not.
        domains: one after the other; a domain named twice is visited twice, with new clips.
        clips_per_domain: per visit.
        seed: of everything random.
        size_px: height and width, even.
        rate_per_s: clips per second at most; None: as fast as they are made.
        mixing_clips: over about so many clips one domain gives way to the next; 0: at once.
    """
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng((seed, len(WORLD)))
    schedule = np.repeat(np.arange(len(domains)), clips_per_domain)
    # Sorting jittered places mixes neighbours across a boundary and keeps every domain's count.
    schedule = schedule[np.argsort(np.arange(len(schedule)) + rng.uniform(-0.5, 0.5, len(schedule)) * mixing_clips)]
    made = {d: clips(d, clips_per_domain * domains.count(d), seed, size_px) for d in dict.fromkeys(domains)}
    began_s = time.monotonic()
    with (folder / "manifest.jsonl").open("a", encoding="utf-8") as manifest:
        for number, index in enumerate(schedule.tolist()):
            domain = domains[index]
            video_id, caption, media = next(made[domain])
            if rate_per_s:
                time.sleep(max(0.0, began_s + number / rate_per_s - time.monotonic()))
            (folder / "clips" / f"{video_id}.mp4").write_bytes(media)
            row = {
                "video_id": video_id,
                "path": f"clips/{video_id}.mp4",
                "caption": caption,
                "meta": {"domain": domain},
            }
            manifest.write(json.dumps(row) + "\n")
            manifest.flush()


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m streamlearn.connectors.synthetic FOLDER --clips-per-domain 2000`."""
    parser = argparse.ArgumentParser(prog="python -m streamlearn.connectors.synthetic", description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--domains", nargs="+", choices=tuple(WORLD), default=list(DOMAINS))
    parser.add_argument("--clips-per-domain", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size-px", type=int, default=96)
    parser.add_argument("--rate-per-s", type=float)
    parser.add_argument("--mixing-clips", type=int, default=0)
    try:
        write_stream(**vars(parser.parse_args(arguments)))
    except KeyboardInterrupt:  # Ctrl-C ends the demo and this child with it; a traceback would say nothing
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
