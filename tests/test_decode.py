"""Videos of known frames come back as those frames; what is no video comes back as a code."""

from __future__ import annotations

import importlib.util
import io
import struct
from typing import Any

import av
import numpy as np
import pytest

from streamlearn.decode import decode
from streamlearn.errors import DecodeError
from streamlearn.records import Frames
from tests.media import gray_level, sound, video

needs_decord = pytest.mark.skipif(
    importlib.util.find_spec("decord") is None, reason="decord is not installed: pip install streamlearn[decord]"
)
PAINTED = 22  # `gray_level` repeats after so many frames


def decoded(data: bytes, **changes: Any) -> Frames:
    arguments: dict[str, Any] = {"frames": 4, "size_px": 32, "sampling": "exact", "max_pixels": 4096 * 2304}
    return decode(data, **arguments | changes)


def rejection(data: bytes, **changes: Any) -> DecodeError:
    with pytest.raises(DecodeError) as caught:
        decoded(data, **changes)
    assert len(str(caught.value)) < 300
    return caught.value


def numbers(frames: Frames) -> list[int]:
    """Which frames of a test video these are, from the gray of their lower right quarter."""
    half = frames.shape[1] // 2
    gray = frames[:, half + 2 :, half + 2 :].mean(axis=(1, 2, 3))
    levels = np.array([gray_level(i) for i in range(PAINTED)])
    return np.abs(gray[:, None] - levels).argmin(axis=1).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("codec", "container"),
    [
        ("libx264", "mp4"),
        ("libx264", "matroska"),
        ("libx264", "mpegts"),
        ("libx264", "h264"),
        ("libx264", "avi"),
        ("libx264", "flv"),
        ("libvpx-vp9", "webm"),
        ("libvpx", "webm"),
        ("mpeg4", "avi"),
        ("mpeg4", "mp4"),
        ("mjpeg", "avi"),
        ("gif", "gif"),
    ],
)
def test_every_format_gives_the_frames_at_the_centres_of_equal_parts(codec: str, container: str) -> None:
    frames = decoded(video(codec, container))
    assert (frames.shape, frames.dtype) == ((4, 32, 32, 3), np.uint8)
    assert numbers(frames) == [2, 7, 12, 17]
    red = frames[:, 2:12, 2:12].mean(axis=(0, 1, 2))
    assert red[0] > 180
    assert red[1:].max() < 80


@pytest.mark.parametrize("gop", [1, 3, 100])
@pytest.mark.parametrize("b_frames", ["0", "4"])
def test_exact_sampling_does_not_depend_on_the_groups_of_pictures(gop: int, b_frames: str) -> None:
    data = video(gop=gop, options={"bf": b_frames, "x264-params": "scenecut=0:open-gop=1"})
    assert numbers(decoded(data, frames=10)) == list(range(1, 20, 2))


def test_keyframe_sampling_takes_the_nearest_keyframes() -> None:
    data = video(gop=6, options={"x264-params": "scenecut=0:keyint=6:min-keyint=6"})
    # Keyframes 0, 6, 12, 18; wanted 2, 7, 12, 17.
    assert numbers(decoded(data, sampling="keyframe")) == [0, 6, 12, 18]


def test_keyframe_sampling_of_a_single_group_repeats_its_keyframe() -> None:
    assert numbers(decoded(video(), sampling="keyframe")) == [0, 0, 0, 0]


def test_short_clip_repeats_its_frames_evenly() -> None:
    assert numbers(decoded(video(frames=3), frames=6)) == [0, 0, 1, 1, 2, 2]


def test_one_frame_video_is_that_frame() -> None:
    assert numbers(decoded(video(frames=1))) == [0, 0, 0, 0]


def test_segment_is_sampled_alone() -> None:
    data = video(gop=5)
    assert numbers(decoded(data, start_s=0.95, end_s=1.35)) == [10, 11, 12, 13]
    assert numbers(decoded(data, start_s=1.75, end_s=60.0, frames=2)) == [18, 19]


def test_segment_past_the_end_is_refused() -> None:
    error = rejection(video(), start_s=2.5)
    assert error.code == "segment_out_of_range"
    assert "2 seconds" in str(error)


def test_long_side_is_cropped_at_its_centre() -> None:
    frames = decoded(video(width=192, height=96))
    # The middle square of a frame whose left half is red on top: red still ends at the middle.
    assert frames[0, 8, 14, 0] > 180
    assert frames[0, 8, 18, 0] < 80


@pytest.mark.parametrize(
    ("rotation", "corner"), [(0, (0, 0)), (90, (1, 0)), (180, (1, 1)), (270, (0, 1)), (-90, (0, 1))]
)
def test_rotation_is_applied(rotation: int, corner: tuple[int, int]) -> None:
    frame = decoded(video(rotation=rotation))[0].astype(int)
    redness = (frame[..., 0] - frame[..., 1]).reshape(2, 16, 2, 16).mean(axis=(1, 3))
    # Counterclockwise, as the container's display matrix says: top left goes down, then right, then up.
    assert np.unravel_index(redness.argmax(), (2, 2)) == corner


def test_4k_is_accepted() -> None:
    data = video(width=3840, height=2160, frames=2, options={"preset": "ultrafast"})
    assert numbers(decoded(data, frames=2)) == [0, 1]


def test_frame_beyond_the_limit_is_refused_before_decoding() -> None:
    error = rejection(video(), max_pixels=96 * 95)
    assert error.code == "frame_too_large"
    assert "96x96" in str(error)


def test_hair_thin_video_is_refused_where_scaling_would_blow_it_up() -> None:
    data = video(width=1024, height=16, frames=1)
    assert decoded(data, size_px=16, max_pixels=20_000).shape == (4, 16, 16, 3)
    assert rejection(data, size_px=64, max_pixels=20_000).code == "frame_too_large"


@pytest.mark.parametrize("sampling", ["exact", "keyframe"])
def test_truncated_video_gives_the_frames_that_are_left(sampling: Any) -> None:
    data = video(gop=2, container_options={"movflags": "frag_keyframe+empty_moov"})
    cut = data[: len(data) * 3 // 5]
    got = numbers(decoded(cut, sampling=sampling))
    assert got[0] <= 2
    assert got == sorted(got)


def test_mp4_cut_before_its_index_is_refused() -> None:
    data = video()
    assert rejection(data[: len(data) // 2]).code in ("not_a_video", "no_frames")


def test_damaged_packet_costs_its_group_alone() -> None:
    data = bytearray(video("mpeg4", gop=5, options={"bf": "0"}))
    with av.open(io.BytesIO(bytes(data))) as container:
        places = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    position, size = places[10]
    assert position is not None
    data[position : position + size] = b"\xff" * size
    got = numbers(decoded(bytes(data), frames=20))
    assert [*got[:10], *got[15:]] == [*range(10), *range(15, 20)]
    assert got[10] in (9, 11)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"#!/bin/sh\necho not a video\n" * 100,
        b"ffconcat version 1.0\nfile '/etc/hostname'\n",
        b"#EXTM3U\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:10.0,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n",
        b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>',
        bytes(range(256)) * 400,
    ],
    ids=["empty", "text", "concat", "hls", "dash", "noise"],
)
@pytest.mark.parametrize("backend", ["pyav", pytest.param("decord", marks=needs_decord)])
def test_what_is_no_video_is_refused(data: bytes, backend: Any) -> None:
    assert rejection(data, backend=backend).code == "not_a_video"


def test_script_that_names_a_real_video_is_refused(tmp_path: Any) -> None:
    (tmp_path / "real.mp4").write_bytes(video())
    for backend in ["pyav", *(["decord"] if importlib.util.find_spec("decord") else [])]:
        script = f"ffconcat version 1.0\nfile '{tmp_path}/real.mp4'\n".encode()
        assert rejection(script, backend=backend).code == "not_a_video"


def test_sound_alone_is_refused() -> None:
    assert rejection(sound()).code == "no_video_stream"


@pytest.mark.slow
def test_video_of_endlessly_many_packets_is_refused() -> None:
    header = b"DKIF" + struct.pack("<HH4sHHIIII", 0, 32, b"VP80", 96, 96, 10, 1, 0, 0)
    whole = video("libvpx", "ivf", frames=1)
    data = header + whole[32:] + (struct.pack("<IQ", 1, 1) + b"\x01") * 250_000
    error = rejection(data)
    assert error.code == "decode_failed"
    assert "cut it into clips" in str(error)


def test_mutated_videos_give_frames_or_a_code() -> None:
    whole = {c: video(*c, frames=12, gop=4) for c in (("libx264", "mp4"), ("libvpx", "webm"), ("gif", "gif"))}
    random = np.random.default_rng(7)
    decoded_count = 0
    for _ in range(60):
        for data in whole.values():
            bad = np.frombuffer(data, np.uint8).copy()
            where = random.integers(0, len(bad), random.integers(1, 30))
            bad[where] = random.integers(0, 256, len(where))
            try:
                frames = decoded(bad[: random.integers(1, len(bad) + 1)].tobytes())
            except DecodeError:
                continue
            assert frames.shape == (4, 32, 32, 3)
            decoded_count += 1
    assert decoded_count > 20


@needs_decord
@pytest.mark.parametrize("sampling", ["exact", "keyframe"])
def test_decord_agrees_with_pyav(sampling: Any) -> None:
    data = video(gop=4, rotation=90)
    ours, theirs = (decoded(data, sampling=sampling, backend=b).astype(int) for b in ("pyav", "decord"))
    assert np.abs(ours - theirs).mean() < 4
