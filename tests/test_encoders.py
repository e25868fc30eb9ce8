"""The towers through their public interface: built-in ones, and Hugging Face folders, good and bad."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from streamlearn.checkpoint import Generation, Generations
from streamlearn.encoders import Towers
from streamlearn.errors import SettingsError
from streamlearn.frames import scale
from streamlearn.learner import Learner
from streamlearn.retention import Retention
from streamlearn.settings import LearnerSettings
from streamlearn.testing import ListSource
from tests.models import save_model, save_processor
from tests.test_daemon import Stream, daemon, ids, settled

PAIRS = [("vit", "bert"), ("clip", "clip"), ("siglip", "siglip"), ("vit", "tiny"), ("tiny", "bert")]
TEXTS = ["a red screen that gets darker", "a", "blue screen"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for kind in ("vit", "bert", "clip", "siglip"):
        save_model(folder / kind, kind)
    return folder


@pytest.fixture(scope="module")
def towers(models: Path) -> Callable[..., Towers]:
    def make(video: str = "tiny", text: str = "tiny", seed: int = 0) -> Towers:
        video, text = (name if name == "tiny" else str(models / name) for name in (video, text))
        return Towers(video, text, 24, seed)

    return make


def films(n: int, *, frames: int = 4, size_px: int = 20, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (n, frames, size_px, size_px, 3), np.uint8))


# --- any pair


@pytest.mark.parametrize(("video", "text"), [("tiny", "tiny"), *PAIRS])
@torch.no_grad()
def test_every_pair_gives_unit_vectors_that_do_not_depend_on_the_rest_of_the_batch(
    towers: Callable[..., Towers], video: str, text: str
) -> None:
    pair = towers(video, text).eval()
    clips = films(3)
    vectors, texts = pair.encode_video(clips), pair.encode_text(TEXTS)
    assert vectors.shape == texts.shape == (3, 24)
    for rows in (vectors, texts):
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(pair.encode_video(clips[1:2]), vectors[1:2], atol=1e-5, rtol=0)
    torch.testing.assert_close(pair.encode_text(TEXTS[1:2]), texts[1:2], atol=1e-5, rtol=0)
    assert not torch.allclose(texts[0], texts[2])


@pytest.mark.parametrize(("video", "text"), [("tiny", "tiny"), *PAIRS])
def test_same_seed_gives_the_same_weights_and_leaves_the_global_generator_alone(
    towers: Callable[..., Towers], video: str, text: str
) -> None:
    before = torch.random.get_rng_state()
    a, b, other = towers(video, text), towers(video, text), towers(video, text, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    assert any(not torch.equal(a.state_dict()[name], other.state_dict()[name]) for name in a.state_dict())
    assert a.fingerprint == other.fingerprint


@pytest.mark.parametrize(("video", "text"), [("tiny", "tiny"), ("vit", "bert"), ("clip", "clip"), ("siglip", "siglip")])
@pytest.mark.parametrize("said", ["", " ", "\u3042\u3044 \U0001f600", "red " * 2500, "r" * 10_000])
@torch.no_grad()
def test_any_text_is_encoded(towers: Callable[..., Towers], video: str, text: str, said: str) -> None:
    pair = towers(video, text).eval()
    row = pair.encode_text([said, "a red screen"])
    assert torch.isfinite(row).all()
    torch.testing.assert_close(row.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize("video", ["tiny", "vit", "clip", "siglip"])
@pytest.mark.parametrize(("frames", "size_px"), [(1, 16), (3, 48), (12, 32), (8, 17)])
@torch.no_grad()
def test_any_number_and_size_of_frames_is_encoded(
    towers: Callable[..., Towers], video: str, frames: int, size_px: int
) -> None:
    assert towers(video).eval().encode_video(films(2, frames=frames, size_px=size_px)).shape == (2, 24)


# --- the built-in pair


@torch.no_grad()
def test_words_are_hashed_so_that_new_ones_count_and_their_order_too() -> None:
    pair = Towers(dim=24).eval()
    known, new, swapped, case = pair.encode_text(
        ["a red ball hits a zyxxy", "a red ball hits a quuxo", "a zyxxy hits a red ball", "A RED Ball hits a Zyxxy"]
    )
    assert torch.equal(known, case)
    assert not torch.allclose(known, new, atol=1e-4)
    assert not torch.allclose(known, swapped, atol=1e-4)


@torch.no_grad()
def test_the_tiny_video_tower_sees_the_order_of_frames() -> None:
    pair = Towers(dim=24).eval()
    clips = films(1, frames=8, size_px=32)
    assert not torch.allclose(pair.encode_video(clips), pair.encode_video(clips.flip(1)), atol=1e-4)


@torch.no_grad()
def test_word_hashing_is_stable_across_processes() -> None:
    # Python's own hash would differ; the index outlives processes.
    assert Towers(dim=24).text.tokenize(["red", "rot"])["ids"].tolist() == [[4825], [4406]]  # type: ignore[operator]


# --- Hugging Face folders


def learned(learner: Learner, first: int, last: int) -> Learner:
    for seed in range(first, last):
        learner.step(
            films(4, seed=seed).numpy(), [[text] for text in (*TEXTS, "white")], [f"{seed}-{i}" for i in range(4)]
        )
    return learner


@pytest.mark.parametrize(("video", "text"), PAIRS)
def test_a_pretrained_pair_learns_checkpoints_and_resumes_bit_equal(
    towers: Callable[..., Towers], tmp_path: Path, video: str, text: str
) -> None:
    def make() -> Learner:
        return Learner(towers(video, text), LearnerSettings(batch_size=4, queue_size=6, learning_rate=1e-3))

    straight = learned(make(), 0, 4)
    stopped = learned(make(), 0, 2)
    Generations(tmp_path, Retention(3)).write(Generation(1, {}, {}, stopped.state_dict()))
    torch.manual_seed(99)  # whatever else the new process has drawn
    resumed = make()
    resumed.load_state_dict(Generations(tmp_path, Retention(3)).read(1).tensors)
    learned(resumed, 2, 4)
    expected, got, start = straight.state_dict(), resumed.state_dict(), make().state_dict()
    assert {"online", "local", "global", "queue", "optimizer"} <= expected.keys()
    for part in expected:
        assert expected[part].keys() == got[part].keys()
        assert all(torch.equal(expected[part][name], got[part][name]) for name in expected[part]), part
    for part in ("online", "local", "global"):
        moved = [name for name in start[part] if not torch.equal(start[part][name], expected[part][name])]
        assert any(name.startswith("video") for name in moved)
        assert any(name.startswith("text") for name in moved)


def test_a_model_saved_in_half_precision_is_learned_in_full(tmp_path: Path) -> None:
    save_model(tmp_path / "half", "clip", dtype=torch.bfloat16)
    pair = Towers(str(tmp_path / "half"), str(tmp_path / "half"), 24)
    assert {tensor.dtype for tensor in pair.state_dict().values()} == {torch.float32}
    assert torch.isfinite(pair.encode_video(films(2))).all()


@torch.no_grad()
def test_preprocessor_config_decides_how_frames_are_normalised(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "vit", "vit")
    clips = films(2, size_px=16)
    plain = Towers(str(folder), dim=24).eval().encode_video(clips)
    save_processor(folder, [0.5] * 3, [0.5] * 3)
    assert torch.equal(Towers(str(folder), dim=24).eval().encode_video(clips), plain)
    save_processor(folder, [0.4, 0.5, 0.6], [0.2, 0.3, 0.25])
    assert not torch.allclose(Towers(str(folder), dim=24).eval().encode_video(clips), plain, atol=1e-3)


@torch.no_grad()
def test_threads_may_ask_copies_of_one_text_tower_at_once(towers: Callable[..., Towers]) -> None:
    pair = towers("vit", "bert").eval()
    copies = [pair.frozen_copy() for _ in range(4)]
    texts = [" ".join(TEXTS[: 1 + i % 3] * (1 + i % 5)) for i in range(200)]
    expected = [pair.encode_text([text]) for text in texts]

    def ask(i: int) -> torch.Tensor:
        with torch.no_grad():
            return copies[i % 4].encode_text([texts[i]])

    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(ask, range(200)))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(expected, got, strict=True))


def refused(video: str = "tiny", text: str = "tiny") -> str:
    with pytest.raises(SettingsError) as caught:
        Towers(video, text, 24)
    return str(caught.value)


@pytest.mark.parametrize(("part", "kind"), [("video", "vit"), ("text", "bert")])
class TestRefused:
    def test_a_folder_that_is_not_there_or_empty(self, tmp_path: Path, part: str, kind: str) -> None:
        assert f"model.{part} = " in refused(**{part: str(tmp_path / "nowhere")})
        assert f"model.{part} = " in refused(**{part: str(tmp_path)})

    def test_a_name_that_is_no_model_without_a_long_wait(self, part: str, kind: str) -> None:
        start = time.monotonic()
        assert f"model.{part} = 'no-such/model' cannot be loaded" in refused(**{part: "no-such/model"})
        assert time.monotonic() - start < 5

    def test_weights_in_pickle(self, models: Path, tmp_path: Path, part: str, kind: str) -> None:
        folder = shutil.copytree(models / kind, tmp_path / "pickled")
        (folder / "model.safetensors").unlink()
        torch.save({"weights": torch.zeros(1)}, folder / "pytorch_model.bin")
        assert f"model.{part} = " in refused(**{part: str(folder)})

    def test_damaged_weights(self, models: Path, tmp_path: Path, part: str, kind: str) -> None:
        folder = shutil.copytree(models / kind, tmp_path / "damaged")
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:300])
        assert f"model.{part} = " in refused(**{part: str(folder)})

    def test_a_damaged_config(self, models: Path, tmp_path: Path, part: str, kind: str) -> None:
        folder = shutil.copytree(models / kind, tmp_path / "damaged")
        (folder / "config.json").write_text("{")
        assert f"model.{part} = " in refused(**{part: str(folder)})

    def test_remote_code_which_is_not_run(self, models: Path, tmp_path: Path, part: str, kind: str) -> None:
        folder = shutil.copytree(models / kind, tmp_path / "remote")
        config = json.loads((folder / "config.json").read_text())
        config |= {"model_type": "novel", "auto_map": {"AutoConfig": "novel.Config", "AutoModel": "novel.Model"}}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "novel.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
        assert f"model.{part} = " in refused(**{part: str(folder)})
        assert not (tmp_path / "ran").exists()


def test_the_other_kind_of_model_is_refused_by_the_name_of_the_setting(models: Path) -> None:
    assert "model.video = " in refused(video=str(models / "bert"))
    assert "model.text = " in refused(text=str(models / "vit"))


def test_a_text_model_without_tokenizer_is_refused(models: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(models / "bert", tmp_path / "mute")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert "model.text = " in refused(text=str(folder))


def test_a_tokenizers_remote_code_is_not_run(models: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(models / "bert", tmp_path / "remote")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Novel", "auto_map": {"AutoTokenizer": ["novel.Novel", "novel.Novel"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "novel.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    Towers("tiny", str(folder), 24)  # tokenizer.json says all that is needed
    (folder / "tokenizer.json").unlink()
    assert "model.text = " in refused(text=str(folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_the_whole_daemon_runs_on_pretrained_folders_and_resumes(models: Path, tmp_path: Path) -> None:
    stream = Stream()
    records = stream.clips("studio", 24) + stream.clips("night", 16, task="night")
    changes = {"model__video": str(models / "clip"), "model__text": str(models / "bert"), "model__dim": 24}
    with daemon(tmp_path, ListSource(records[:32]), **changes) as first:
        settled(first)
        step = first.state.learner.steps
        assert len(ids(first, "a red star", 100)) == 32
    with daemon(tmp_path, ListSource(records), **changes) as second:
        status = settled(second)
        assert second.state.learner.steps > step
        assert sorted(ids(second, "a red star", 100)) == sorted(stream.captions)
        assert [task["name"] for task in second.service.tasks()] == ["t1", "night"]
    assert status["detail"] is None


def test_prepared_frames_are_those_that_the_decoders_make_and_encode_as_the_whole_ones() -> None:
    towers = Towers(dim=16)
    frames = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (2, 11, 64, 64, 3), dtype=np.uint8))
    prepared = towers.prepare(frames)
    assert prepared.shape == (2, 8, 32, 32, 3)
    assert torch.equal(towers.encode_video(prepared), towers.encode_video(frames))
    assert torch.equal(towers.prepare(prepared), prepared)


@pytest.mark.parametrize(("size_px", "off"), [(64, 0), (96, 1), (80, 1), (33, 1)])
def test_decoders_scale_frames_as_the_encoder_does(size_px: int, off: int) -> None:
    frames = np.random.default_rng(3).integers(0, 256, (2, 8, size_px, size_px, 3), dtype=np.uint8)
    towers = Towers(dim=16)
    by_decoder = np.stack([scale(clip, towers.size_px) for clip in frames])
    assert np.abs(by_decoder.astype(int) - towers.prepare(torch.from_numpy(frames)).numpy()).max() <= off


def test_small_frames_are_prepared_as_they_are() -> None:
    frames = torch.zeros((1, 8, 20, 20, 3), dtype=torch.uint8)
    assert Towers(dim=16).prepare(frames).shape == frames.shape
