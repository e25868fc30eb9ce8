"""What a benchmark stream is made of: decoded clips with captions, in a cache folder that all trials map into memory.

A corpus is either rendered (the synthetic world, by seed) or decoded once from folders of real clips by the daemon's
own decoder. Knows nothing of the order in which clips arrive.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamlearn.connectors.synthetic import DOMAINS, render, sample
from streamlearn.errors import RejectedClip, SourceError
from streamlearn.heldout import is_heldout
from streamlearn.loader import LoadOptions, load
from streamlearn.records import Clip, Frames, Position, Record
from streamlearn.settings import MediaSettings

log = logging.getLogger(__name__)

Ints = npt.NDArray[np.int64]
#: Called with clips done and clips in all.
Progress = Callable[[int, int], None]

#: What a clip is for: learned from; asked which pair seals an era; asked for the report.
LEARN, JUDGE, TEST = 0, 1, 2
_FORMAT = 1  # of the folder
_RENDERED_AT_ONCE = 256
_JUDGE_RATIO = 0.05  # of the clips learned from, where a manifest names no validation part
_PARTS = {"test": TEST, "heldout": TEST, "val": JUDGE, "validation": JUDGE}


@dataclass(frozen=True)
class Corpus:
    """Clips of several domains.

    Attributes:
        frames: (n, T, H, W, 3) uint8, mapped from a file.
        captions: of each clip at least one.
        ids: of each clip.
        domain: (n,), index into `domains`.
        part: (n,), `LEARN`, `JUDGE` or `TEST`.
    """

    frames: Frames
    captions: tuple[tuple[str, ...], ...]
    ids: tuple[str, ...]
    domain: Ints
    part: Ints
    domains: tuple[str, ...]

    def rows(self, part: int, domain: int | None = None) -> Ints:
        """The rows of a part, of one domain or of all."""
        mine = self.part == part
        return np.flatnonzero(mine if domain is None else mine & (self.domain == domain))


def open_corpus(folder: Path) -> Corpus:
    """Map a corpus that `render_corpus` or `decode_corpus` wrote.

    Raises:
        SourceError: there is none.
    """
    try:
        facts = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        frames = np.load(folder / "frames.npy", mmap_mode="r")
    except (OSError, ValueError) as error:
        raise SourceError(f"{folder} holds no corpus; remove it, and it is made again: {error}") from error
    return Corpus(
        frames,
        tuple(map(tuple, facts["captions"])),
        tuple(facts["ids"]),
        np.asarray(facts["domain"], np.int64),
        np.asarray(facts["part"], np.int64),
        tuple(facts["domains"]),
    )


def render_corpus(
    cache: Path,
    *,
    seed: int,
    clips: int,
    test: int,
    judges: int,
    progress: Progress,
    domains: Sequence[str] = DOMAINS,
    size_px: int = 32,
) -> Path:
    """Render domains of the synthetic world straight to frames, unless the cache has them.

    Args:
        cache: folder of corpora.
        seed: of scenes and rendering; captions differ within a domain and between its parts.
        clips: per domain, to learn from.
        test: per domain, asked for the report.
        judges: per domain, asked which pair seals an era.
        progress: told how far it is.
        domains: in the order of their numbers.
        size_px: height and width of the frames; the tiny towers see 32.

    Returns:
        The corpus' folder.
    """
    some = "" if tuple(domains) == DOMAINS else "-" + "-".join(domains)
    name = f"synthetic-{_FORMAT}-{seed}-{clips}-{test}-{judges}-{size_px}{some}"
    per_domain = clips + test + judges
    parts = np.repeat([LEARN, TEST, JUDGE], [clips, test, judges])
    total = per_domain * len(domains)

    def write(aside: Path) -> dict[str, Any]:
        frames = np.lib.format.open_memmap(aside / "frames.npy", "w+", np.uint8, (total, 8, size_px, size_px, 3))
        captions: list[list[str]] = []
        for number, domain in enumerate(domains):
            rng = np.random.default_rng((seed, DOMAINS.index(domain), _FORMAT))
            scenes = sample(domain, per_domain, rng)
            captions += [[scene.caption] for scene in scenes]
            for start in range(0, per_domain, _RENDERED_AT_ONCE):
                batch = scenes[start : start + _RENDERED_AT_ONCE]
                at = number * per_domain + start
                frames[at : at + len(batch)] = render(batch, size_px=size_px, rng=rng)
                progress(at + len(batch), total)
        frames.flush()
        return {
            "domains": tuple(domains),
            "captions": captions,
            "ids": [f"{domain}-{i:06d}" for domain in domains for i in range(per_domain)],
            "domain": np.repeat(np.arange(len(domains)), per_domain).tolist(),
            "part": np.tile(parts, len(domains)).tolist(),
        }

    return _cached(cache / name, write)


def decode_corpus(
    cache: Path, *, folders: Sequence[Path], split: str, media: MediaSettings, learn_px: int, progress: Progress
) -> Path:
    """Decode folders of clips, a domain each, unless the cache has them.

    Each folder has a manifest.jsonl; a row names `path`, `caption` or `captions`, and in the field `split` "test" or
    "heldout", "val", or anything else for a clip that is learned from. Where no row says "val", a twentieth of the
    clips learned from, by a stable hash of their ids, takes that part. Clips that cannot be decoded are left out.
    Frames are kept at `learn_px`, what the encoder reads.

    Raises:
        SourceError: a manifest cannot be read, or gives no clip to learn from or to ask for; or domains would not be
            told apart.
    """
    names = _domains(folders)
    texts = [_manifest(folder) for folder in folders]
    sampled = (
        media.frames,
        media.size_px,
        learn_px,
        media.sampling,
        media.decoder,
        split,
        [str(f.resolve()) for f in folders],
    )
    name = "folders-" + hashlib.sha256(json.dumps([_FORMAT, sampled, texts]).encode()).hexdigest()[:16]
    total = sum(len(_lines(text)) for text in texts)

    def write(aside: Path) -> dict[str, Any]:
        clips, domain, part = [], [], []
        for number, (folder, text) in enumerate(zip(folders, texts, strict=True)):
            decoded = [
                (clip, row_part) for clip, row_part in _decoded(folder, text, split, _options(folder, media, learn_px))
            ]
            parts = _with_judges([p for _, p in decoded], [clip.video_id for clip, _ in decoded])
            for wanted, meaning in ((LEARN, "learn from"), (TEST, "ask for")):
                if wanted not in parts:
                    raise SourceError(f"{folder}/manifest.jsonl: its field {split!r} gives no clip to {meaning}")
            clips += [clip for clip, _ in decoded]
            domain += [number] * len(decoded)
            part += parts
            progress(len(clips), total)
        np.save(aside / "frames.npy", np.stack([clip.frames for clip in clips]))
        return {
            "domains": names,
            "captions": [clip.captions for clip in clips],
            "ids": [clip.video_id for clip in clips],
            "domain": domain,
            "part": part,
        }

    return _cached(cache / name, write)


def _cached(folder: Path, write: Callable[[Path], dict[str, Any]]) -> Path:
    """Written aside and renamed, so that a folder that is there is whole."""
    if not folder.exists():
        aside = folder.with_name(f".writing-{folder.name}")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        (aside / "corpus.json").write_text(json.dumps(write(aside)), encoding="utf-8")
        aside.rename(folder)
    return folder


def _domains(folders: Sequence[Path]) -> list[str]:
    """Names by which all that is measured is kept."""
    names = [folder.absolute().name for folder in folders]
    for number, name in enumerate(names):
        if name in (*names[:number], "pooled"):
            raise SourceError(
                f"--stream {folders[number]}: a domain is called as its folder, and {name!r} is taken; name another"
                " folder, or a link to it"
            )
    return names


def _lines(text: str) -> list[tuple[int, str]]:
    """With their numbers, as the daemon reads them: blank ones do not count, and nothing but a line feed ends one."""
    return [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _manifest(folder: Path) -> str:
    try:
        return (folder / "manifest.jsonl").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{folder}/manifest.jsonl cannot be read: {error}") from error


def _options(folder: Path, media: MediaSettings, learn_px: int) -> LoadOptions:
    return LoadOptions(
        allowed_roots=(folder.resolve(),),
        allowed_schemes=("file",),
        allowed_hosts=(),
        max_bytes=media.max_bytes,
        max_pixels=media.max_pixels,
        max_caption_chars=media.max_caption_chars,
        timeout_s=media.timeout_s,
        frames=media.frames,
        size_px=media.size_px,
        learn_px=learn_px,
        sampling=media.sampling,
        decoder=media.decoder,
    )


def _decoded(folder: Path, text: str, split: str, options: LoadOptions) -> Iterator[tuple[Clip, int]]:
    name = folder.absolute().name
    for number, line in _lines(text):
        try:
            row = dict(json.loads(line))
            message = {
                "video_id": f"{name}/{row.get('video_id', row.get('id', number - 1))}",
                "uri": (folder / row["path"]).resolve().as_uri(),
                "captions": row["captions"] if "captions" in row else [row["caption"]],
            }
            part = _PARTS.get(row[split], LEARN)
        except (ValueError, KeyError, TypeError) as error:
            raise SourceError(
                f"{folder}/manifest.jsonl, line {number}: must name path, caption and {split}: {error!r}"
            ) from error
        try:
            clip = load(Record(None, json.dumps(message).encode(), Position(name, "0", number - 1)), options)
        except RejectedClip as error:
            log.warning("%s, line %d is left out: %s", name, number, error)
            continue
        assert isinstance(clip, Clip)
        yield clip, part


def _with_judges(parts: list[int], ids: list[str]) -> list[int]:
    if JUDGE in parts:
        return parts
    return [JUDGE if p == LEARN and is_heldout(i, _JUDGE_RATIO) else p for p, i in zip(parts, ids, strict=True)]
