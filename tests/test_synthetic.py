import io
import json
from itertools import pairwise
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import av
import numpy as np
import numpy.typing as npt
import pytest

from streamlearn.connectors import synthetic
from streamlearn.connectors.folder import FolderSource
from streamlearn.connectors.synthetic import DOMAINS, GENERIC, Scene, clips, encode, render, sample, vocabulary
from streamlearn.records import Frames

ALL = (*DOMAINS, GENERIC)
TEMPLATE = "{shape}"


def scene(**attributes: str) -> Scene:
    """A large plain red circle that moves left before a cyan ring on a dark studio floor, but for `attributes`."""
    said = {
        "domain": "studio",
        "size": "large",
        "texture": "plain",
        "colour": "red",
        "shape": "circle",
        "motion": "left",
        "speed": "quickly",
        "still_colour": "cyan",
        "still_shape": "ring",
        "background": "dark",
        "template": TEMPLATE,
    }
    return Scene(**(said | attributes))


def decoded(media: bytes) -> Frames:
    with av.open(io.BytesIO(media)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def psnr_db(a: Frames, b: Frames) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(np.float64) - b) ** 2)))


def redness(frames: Frames) -> npt.NDArray[np.bool_]:
    """Where the red object is: (T, H, W)."""
    return (frames[..., 0] > 120) & (frames[..., 1] < 110) & (frames[..., 2] < 110)


def drawn(of: Scene, size_px: int = 48) -> Frames:
    return render([of], size_px=size_px, rng=np.random.default_rng(5))[0]


@pytest.mark.slow
@pytest.mark.parametrize("domain", DOMAINS)
def test_every_scene_of_a_domain_has_its_own_caption(domain: str) -> None:
    captions = {s.caption for s in sample(domain, 64_800, np.random.default_rng(0))}
    assert len(captions) == 64_800
    with pytest.raises(ValueError, match="has 64800 captions"):
        sample(domain, 64_801, np.random.default_rng(0))


def test_generic_captions_are_distinct_too() -> None:
    captions = [s.caption for s in sample(GENERIC, 20_000, np.random.default_rng(0))]
    assert len(set(captions)) == 20_000


def test_no_caption_belongs_to_two_domains() -> None:
    sets = [{s.caption for s in sample(domain, 5_000, np.random.default_rng(0))} for domain in ALL]
    assert sum(map(len, sets)) == len(set.union(*sets))


@pytest.mark.slow
def test_captions_are_short_and_made_of_the_vocabulary() -> None:
    known = set(vocabulary())
    said: set[str] = set()
    for domain in ALL:
        for s in sample(domain, 5_000, np.random.default_rng(1)):
            assert len(s.caption.split()) <= 20
            said.update(s.caption.split())
    assert said == known
    assert 120 <= len(known) <= 140


def test_every_domain_has_words_of_its_own() -> None:
    words = {d: {w for s in sample(d, 3_000, np.random.default_rng(1)) for w in s.caption.split()} for d in DOMAINS}
    for domain in DOMAINS:
        others = set().union(*(words[other] for other in DOMAINS if other != domain))
        assert len(words[domain] - others) >= 3, domain


def test_unknown_domain_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="choose one of studio, night"):
        sample("moon", 1, np.random.default_rng(0))


def test_same_seed_gives_the_same_scenes_and_pictures() -> None:
    for domain in ALL:
        (a, b), (c, d) = (
            (sample(domain, 20, rng), render(sample(domain, 20, rng), size_px=32, rng=rng))
            for rng in (np.random.default_rng(3), np.random.default_rng(3))
        )
        assert a == c
        np.testing.assert_array_equal(b, d)


@pytest.mark.parametrize(("n", "frames", "size_px"), [(0, 8, 32), (1, 1, 32), (17, 3, 50), (2, 8, 96)])
def test_render_gives_the_shape_asked_for(n: int, frames: int, size_px: int) -> None:
    rng = np.random.default_rng(0)
    pictures = render(sample(GENERIC, n, rng), size_px=size_px, frames=frames, rng=rng)
    assert pictures.shape == (n, frames, size_px, size_px, 3)
    assert pictures.dtype == np.uint8


@pytest.mark.parametrize("domain", ALL)
def test_clip_looks_alike_at_every_size(domain: str) -> None:
    scenes = sample(domain, 8, np.random.default_rng(2))
    small = render(scenes, size_px=32, rng=np.random.default_rng(9))
    large = render(scenes, size_px=64, rng=np.random.default_rng(9))
    shrunk = large.reshape(8, 8, 32, 2, 32, 2, 3).mean(axis=(3, 5)).astype(np.uint8)
    assert psnr_db(small, shrunk) > 22


@pytest.mark.parametrize(("motion", "axis", "sign"), [("left", 1, -1), ("right", 1, 1), ("up", 0, -1), ("down", 0, 1)])
def test_object_moves_as_the_caption_says(motion: str, axis: int, sign: int) -> None:
    ways = []
    for speed in ("slowly", "quickly"):
        seen = redness(drawn(scene(motion=motion, speed=speed)))
        centres = np.array([np.argwhere(frame).mean(axis=0) for frame in seen])
        steps = np.diff(centres[:, axis]) * sign
        assert (steps > 0).all()
        assert np.ptp(centres[:, 1 - axis]) < 1.5
        ways.append(steps.sum())
    assert ways[1] > 1.8 * ways[0]


@pytest.mark.parametrize(("motion", "sign"), [("growing", 1), ("shrinking", -1)])
def test_object_grows_and_shrinks_as_the_caption_says(motion: str, sign: int) -> None:
    areas = redness(drawn(scene(motion=motion))).sum(axis=(1, 2)).astype(int)
    assert (np.diff(areas) * sign > 0).all()


def test_circling_object_comes_back_to_where_it_began() -> None:
    seen = redness(drawn(scene(motion="circling")))
    centres = np.array([np.argwhere(frame).mean(axis=0) for frame in seen])
    assert np.linalg.norm(centres[0] - centres[-1]) < 1.5
    assert np.linalg.norm(centres[0] - centres[4]) > 8


def test_large_is_larger_than_small_and_texture_darkens() -> None:
    areas = {size: redness(drawn(scene(size=size))).sum() for size in ("small", "large")}
    assert areas["large"] > 2 * areas["small"]
    bright = {texture: redness(drawn(scene(texture=texture))).sum() for texture in ("plain", "striped", "checked")}
    assert max(bright["striped"], bright["checked"]) < 0.8 * bright["plain"]


def test_shapes_can_be_told_apart() -> None:
    shapes = ("circle", "square", "triangle", "cross", "star", "ring", "diamond", "bar")
    masks = [redness(drawn(scene(shape=shape, motion="up", speed="slowly")))[0] for shape in shapes]
    for i, a in enumerate(masks):
        assert a.sum() > 50
        for b in masks[:i]:
            assert (a != b).sum() > 0.1 * (a | b).sum()


def test_thermal_shows_green_what_others_call_blue() -> None:
    studio = drawn(scene(colour="blue", background="dark"))
    thermal = drawn(scene(domain="thermal", colour="blue", background="cold"))
    assert ((studio[..., 2] > 200) & (studio[..., 1] < 120)).any(axis=(1, 2)).all()
    assert ((thermal[..., 1] > 200) & (thermal[..., 2] < 120)).any(axis=(1, 2)).all()


@pytest.mark.parametrize("domain", DOMAINS)
def test_encoded_clip_survives_decoding(domain: str) -> None:
    rng = np.random.default_rng(0)
    pictures = render(sample(domain, 8, rng), size_px=96, rng=rng)
    again = np.stack([decoded(encode(frames)) for frames in pictures])
    assert again.shape == pictures.shape
    assert psnr_db(pictures, again) > 28


@pytest.mark.parametrize("codec", ["libx264", "mpeg4", "libvpx-vp9"])
def test_other_codecs_and_rates_can_be_asked_for(codec: str) -> None:
    media = encode(drawn(scene(), 64), fps=12, codec=codec)
    with av.open(io.BytesIO(media)) as container:
        assert container.streams.video[0].average_rate == 12
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"
    assert len(decoded(media)) == 8


def test_clips_are_named_and_the_same_for_a_seed() -> None:
    first, again = list(clips("night", 18, 7, 32)), list(clips("night", 18, 7, 32))
    assert first == again
    assert [video_id for video_id, _, _ in first] == [f"night-{i:06d}" for i in range(18)]
    assert all(caption.startswith("at night one") for _, caption, _ in first)
    assert first[0][2] != next(clips("night", 18, 8, 32))[2]


def rows_of(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def test_stream_goes_through_the_domains_one_after_the_other(tmp_path: Path) -> None:
    synthetic.write_stream(tmp_path, clips_per_domain=3, seed=0, size_px=32)
    rows = rows_of(tmp_path)
    assert [row["video_id"] for row in rows] == [f"{d}-{i:06d}" for d in DOMAINS for i in range(3)]
    assert [row["meta"] for row in rows] == [{"domain": d} for d in DOMAINS for _ in range(3)]
    assert all(len(decoded((tmp_path / str(row["path"])).read_bytes())) == 8 for row in rows)


def test_domain_visited_twice_shows_new_clips(tmp_path: Path) -> None:
    synthetic.write_stream(tmp_path, domains=("reef", "paper", "reef"), clips_per_domain=2, seed=0, size_px=32)
    ids = [row["video_id"] for row in rows_of(tmp_path)]
    assert ids == ["reef-000000", "reef-000001", "paper-000000", "paper-000001", "reef-000002", "reef-000003"]


def test_mixing_makes_the_change_gradual_and_keeps_every_clip(tmp_path: Path) -> None:
    synthetic.write_stream(
        tmp_path, domains=("studio", "night"), clips_per_domain=40, seed=0, size_px=32, mixing_clips=24
    )
    rows = rows_of(tmp_path)
    order = [str(row["video_id"]).split("-")[0] for row in rows]
    assert order.count("studio") == order.count("night") == 40
    assert set(order[:28]) == {"studio"}
    assert set(order[-28:]) == {"night"}
    assert sum(a != b for a, b in pairwise(order)) > 3
    for domain in ("studio", "night"):
        ids = [row["video_id"] for row in rows if str(row["video_id"]).startswith(domain)]
        assert ids == [f"{domain}-{i:06d}" for i in range(40)]


@pytest.mark.slow
def test_clip_is_whole_when_its_row_appears(tmp_path: Path) -> None:
    # A follower decodes each clip at the moment it learns of it, while the stream is being written.
    source = FolderSource(tmp_path, watch=True, poll_interval_s=0.001)
    source.start({})
    writer = Thread(
        target=synthetic.write_stream,
        args=(tmp_path,),
        kwargs={"domains": ("paper", "reef"), "clips_per_domain": 20, "seed": 0, "size_px": 32},
    )
    writer.start()
    seen = 0
    while seen < 40:
        for record in source.poll(60):
            assert record.value is not None
            path = Path(unquote(urlsplit(json.loads(record.value)["uri"]).path))
            assert len(decoded(path.read_bytes())) == 8
            seen += 1
    writer.join()


def test_command_line_writes_a_stream(tmp_path: Path) -> None:
    synthetic.main([str(tmp_path / "new"), "--clips-per-domain", "1", "--size-px", "32", "--rate-per-s", "1000"])
    assert [row["meta"] for row in rows_of(tmp_path / "new")] == [{"domain": domain} for domain in DOMAINS]
