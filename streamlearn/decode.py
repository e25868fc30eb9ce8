"""Video bytes to a fixed number of small square frames.

Knows nothing about messages, URIs or processes. It is tolerant: a damaged packet is skipped and its neighbour shown
instead; only media that gives no frame at all is refused. The bytes are hostile until proven otherwise: they
are read from memory, by the listed containers alone, and can open nothing else.

Cost: packets are demuxed once and kept (about the size of the media); then only the groups of pictures that hold a
wanted frame are decoded. Skipping packets instead of seeking works in every container, MPEG-TS and broken
indexes included. At most one full-size frame lives beside the decoder's own.
"""

from __future__ import annotations

import bisect
import io
import itertools
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import Interpolation, VideoReformatter

from streamlearn.errors import DecodeError
from streamlearn.records import Frames

Sampling = Literal["exact", "keyframe"]
Backend = Literal["pyav", "decord"]

# Demuxers that name further files (concat, hls, dash, image sequences) must never be on this list.
_FORMATS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,ivf,obu,ogg,flv,asf,gif,apng"
_OPEN_OPTIONS = {"format_whitelist": _FORMATS, "protocol_whitelist": "none"}
_NOT_SHOWN = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
_MAX_PACKETS = 250_000  # two hours at 30 frames a second; a bound on memory, for media made of tiny packets


def decode(
    data: bytes,
    *,
    frames: int,
    size_px: int,
    sampling: Sampling,
    max_pixels: int,
    start_s: float | None = None,
    end_s: float | None = None,
    backend: Backend = "pyav",
) -> Frames:
    """Sample frames evenly over a video or a segment of it.

    Args:
        data: the whole media file.
        frames: how many to return; shorter clips repeat some.
        size_px: height and width: the short side is scaled to it, the long side cropped at its centre. Rotation is
            applied, the pixels' aspect ratio is not.
        sampling: "exact" takes the frames shown at the centres of `frames` equal parts, "keyframe" the nearest
            keyframes, which need nothing else decoded.
        max_pixels: largest frame before scaling.
        start_s: start of the segment, seconds from the first frame.
        end_s: end of the segment; the end of the video where that comes first.
        backend: "decord" reads fewer formats and can crash the process on damaged input.

    Returns:
        uint8 (frames, size_px, size_px, 3), RGB.

    Raises:
        DecodeError: no frame can be had; the code and the sentence say why.
    """
    pictures = _decord_pictures if backend == "decord" else _pyav_pictures
    segment = _Segment(frames, start_s or 0.0, end_s)
    try:
        sampled = list(pictures(data, segment, sampling, _Thumbnailer(size_px, max_pixels)))
    except MemoryError as error:
        raise DecodeError("decode_failed", "the video needs more memory than there is") from error
    if not sampled:
        raise DecodeError("no_frames", "no frame of the video can be decoded; it is damaged or holds none")
    # Frames that were lost to damage at the end are shown by the last one that was not.
    return np.stack(sampled + sampled[-1:] * (frames - len(sampled)))


@dataclass(frozen=True, slots=True)
class _Segment:
    """Which part of the video to sample, and how often."""

    frames: int
    start_s: float
    end_s: float | None

    def frame_indices(self, times_s: Sequence[float], duration_s: float) -> list[int]:
        """Indices into `times_s` (ascending) of the frames shown at the centres of equal parts of the segment."""
        if self.start_s >= duration_s:
            raise DecodeError(
                "segment_out_of_range", f"start_s is {self.start_s:g}, but the video has only {duration_s:g} seconds"
            )
        stop_s = duration_s if self.end_s is None else min(self.end_s, duration_s)
        part_s = (stop_s - self.start_s) / self.frames
        centres = (self.start_s + (k + 0.5) * part_s for k in range(self.frames))
        return [max(0, bisect.bisect_right(times_s, centre) - 1) for centre in centres]


class _Thumbnailer:
    """Full-size frames to small squares; keeps libswscale's tables from frame to frame."""

    def __init__(self, size_px: int, max_pixels: int) -> None:
        self.size_px = size_px
        self.max_pixels = max_pixels
        self._reformatter = VideoReformatter()

    def check(self, width: int, height: int) -> None:
        if width * height > self.max_pixels:
            raise DecodeError(
                "frame_too_large",
                f"the video is {width}x{height}; frames of {self.max_pixels} pixels are allowed, see media.max_pixels",
            )

    def __call__(self, frame: av.VideoFrame) -> Frames:
        """(size_px, size_px, 3) uint8 RGB."""
        self.check(frame.width, frame.height)
        size, short = self.size_px, min(frame.width, frame.height)
        width = max(size, round(frame.width * size / short))
        height = max(size, round(frame.height * size / short))
        self.check(width, height)  # a hair-thin video grows when its short side is scaled up
        scaled = self._reformatter.reformat(
            frame,
            width=width,
            height=height,
            format="rgb24",
            interpolation=Interpolation.AREA if size < short else Interpolation.BILINEAR,
            threads=1,
        )
        top, left = (height - size) // 2, (width - size) // 2
        pixels: Frames = scaled.to_ndarray().astype(np.uint8, copy=False)
        square = pixels[top : top + size, left : left + size]
        # A copy: the view would keep the whole scaled frame alive.
        return np.rot90(square, k=round(frame.rotation / 90)).copy()


# --- PyAV ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Packets:
    """A video stream's packets in decoding order, and when their frames are shown.

    Attributes:
        times_s: when each packet's frame is shown, seconds from the first frame.
        shown_s: the same, ascending, without the frames that an edit list hides.
        first_pts, tick_s: a frame's time is (its pts - first_pts) * tick_s.
        counted: the timestamps are missing or contradict each other, so a frame's "pts" is its ordinal number, and
            no packet may be skipped.
    """

    packets: list[av.Packet[av.VideoStream]]
    times_s: list[float]
    shown_s: list[float]
    duration_s: float
    first_pts: int
    tick_s: float
    counted: bool


def _open(data: bytes) -> av.container.InputContainer:
    try:
        return av.open(io.BytesIO(data), mode="r", options=_OPEN_OPTIONS, metadata_errors="replace")
    except (av.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise DecodeError("not_a_video", f"the media is no video in a container that is read: {reason}") from error


def _video_stream(container: av.container.InputContainer, thumbnail: _Thumbnailer) -> av.VideoStream:
    stream = next((s for s in container.streams.video if not s.disposition & _NOT_SHOWN), None)
    if stream is None:
        raise DecodeError("no_video_stream", "the media holds no video stream, only sound or a cover picture")
    if stream.codec_context is None:
        raise DecodeError("decode_failed", "the video is in a format that cannot be decoded here")
    thumbnail.check(stream.codec_context.width, stream.codec_context.height)
    return stream


def _pyav_pictures(data: bytes, segment: _Segment, sampling: Sampling, thumbnail: _Thumbnailer) -> Iterator[Frames]:
    with _open(data) as container:
        stream = _video_stream(container, thumbnail)
        codec = stream.codec_context
        codec.thread_count = 1
        # Before a damaged or lying stream grows in the middle; doubled, since coded sizes are padded.
        codec.options = {"max_pixels": str(2 * thumbnail.max_pixels)}
        index = _demux(container, stream)
        wanted_s = [index.shown_s[i] for i in segment.frame_indices(index.shown_s, index.duration_s)]
        yield from (_exact if sampling == "exact" else _keyframes)(codec, index, wanted_s, thumbnail)


def _demux(container: av.container.InputContainer, stream: av.VideoStream) -> _Packets:
    packets: list[av.Packet[av.VideoStream]] = []
    try:
        for packet in container.demux(stream):
            if packet.size:
                packets.append(packet)
            if len(packets) > _MAX_PACKETS:
                raise DecodeError("decode_failed", f"the video has more than {_MAX_PACKETS} frames; cut it into clips")
    except av.FFmpegError:
        pass  # truncated: what was read so far is what there is
    if not packets:
        raise DecodeError("no_frames", "the video stream holds no frames; it is cut off or empty")
    frame_s = 1 / float(stream.average_rate or stream.guessed_rate or 25)
    pts = [p.pts for p in packets if p.pts is not None]
    dts = [p.dts for p in packets if p.dts is not None]
    backwards = any(later < earlier for earlier, later in itertools.pairwise(dts))
    # AVI stores no presentation times: the demuxer makes them up, wrongly where B-frames are reordered.
    if backwards or len(pts) < len(packets) or container.format.name == "avi":
        times_s = [i * frame_s for i in range(len(packets))]
        return _Packets(packets, times_s, times_s, len(packets) * frame_s, 0, frame_s, counted=True)
    visible = [i for i, p in enumerate(packets) if not p.is_discard] or list(range(len(packets)))
    first_pts = min(pts[i] for i in visible)
    tick_s = float(stream.time_base or 1)
    times_s = [(value - first_pts) * tick_s for value in pts]
    last = max(visible, key=times_s.__getitem__)
    duration_s = times_s[last] + (float(packets[last].duration or 0) * tick_s or frame_s)
    shown_s = sorted(times_s[i] for i in visible)
    return _Packets(packets, times_s, shown_s, duration_s, first_pts, tick_s, counted=False)


def _exact(
    codec: av.VideoCodecContext, index: _Packets, wanted_s: Sequence[float], thumbnail: _Thumbnailer
) -> Iterator[Frames]:
    """Yield the first decodable frame at or after each wanted time, or else the last one before it."""
    keyframes = [] if index.counted else _sorted_keyframes(index)
    position = 0  # of the next packet to decode; one past the last when the decoder was drained
    decoded: deque[av.VideoFrame] = deque()
    count = 0
    current: av.VideoFrame | None = None
    current_s = -math.inf
    picture: Frames | None = None
    for wanted in wanted_s:
        before = bisect.bisect_right(keyframes, (wanted, len(index.packets))) - 1
        if before >= 0 and keyframes[before][1] > position:
            # No frame from here to that keyframe is wanted.
            codec.flush_buffers()
            decoded.clear()
            position = keyframes[before][1]
        while current_s < wanted and (decoded or position <= len(index.packets)):
            if not decoded:
                packet = index.packets[position] if position < len(index.packets) else None
                decoded.extend(_decode_packet(codec, packet))
                position += 1
                continue
            current, picture = decoded.popleft(), None
            pts = count if index.counted else current.pts
            count += 1
            if pts is not None:
                current_s = (pts - index.first_pts) * index.tick_s
        if picture is None and current is not None:
            picture = thumbnail(current)
        if picture is not None:
            yield picture


def _keyframes(
    codec: av.VideoCodecContext, index: _Packets, wanted_s: Sequence[float], thumbnail: _Thumbnailer
) -> Iterator[Frames]:
    """Yield the keyframe nearest to each wanted time."""
    keyframes = _sorted_keyframes(index)
    nearest, picture = -1, None
    for wanted in wanted_s:
        after = bisect.bisect_left(keyframes, (wanted, 0))
        _, best = min(keyframes[max(0, after - 1) : after + 1], key=lambda keyframe: abs(keyframe[0] - wanted))
        if best != nearest:
            # Drained at once: nothing else is fed that could push a delayed frame out.
            images = [*_decode_packet(codec, index.packets[best]), *_decode_packet(codec, None)]
            codec.flush_buffers()
            nearest, picture = best, thumbnail(images[0]) if images else picture
        if picture is not None:
            yield picture


def _sorted_keyframes(index: _Packets) -> list[tuple[float, int]]:
    """(time shown, position) of the keyframes; a stream that marks none is decoded from its start."""
    marked = [(index.times_s[i], i) for i, p in enumerate(index.packets) if p.is_keyframe and not p.is_corrupt]
    return sorted(marked) or [(index.times_s[0], 0)]


def _decode_packet(codec: av.VideoCodecContext, packet: av.Packet[av.VideoStream] | None) -> list[av.VideoFrame]:
    try:
        return codec.decode(packet)
    except av.FFmpegError:
        return []  # damaged: its neighbours are shown instead


# --- decord -------------------------------------------------------------------------------------------------------


def _decord_pictures(data: bytes, segment: _Segment, sampling: Sampling, thumbnail: _Thumbnailer) -> Iterator[Frames]:
    import decord

    # decord takes no whitelists, and follows a concat script to local files: what it is given was let in by PyAV.
    with _open(data) as container:
        _video_stream(container, thumbnail)
    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(io.BytesIO(data), ctx=decord.cpu(0), num_threads=1)
        times_s = reader.get_frame_timestamp(range(len(reader)))  # (n, 2): shown from, until
        times_s -= times_s[0, 0]
        wanted = segment.frame_indices(times_s[:, 0].tolist(), float(times_s[-1, 1]))
        if sampling == "keyframe":
            keyframes = np.asarray(reader.get_key_indices())
            wanted = [int(keyframes[np.abs(keyframes - i).argmin()]) for i in wanted]
        for i in wanted:
            yield thumbnail(av.VideoFrame.from_ndarray(reader[i].asnumpy(), format="rgb24"))
    except (decord.DECORDError, decord.DECORDLimitReachedError, IndexError, RuntimeError) as error:
        lines = str(error).split("Stack trace")[0].strip().splitlines() or ["no reason given"]
        raise DecodeError("decode_failed", f"decord cannot read the video: {lines[-1][-200:]}") from error
