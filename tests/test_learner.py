"""BMU-MoCo through its public interface: it learns, it is deterministic, it resumes bit-equal, boundaries restart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from streamlearn.encoders import Towers
from streamlearn.errors import StateError
from streamlearn.learner import Learner
from streamlearn.records import StepStats
from streamlearn.settings import LearnerSettings

METHODS = ["bmu", "moco", "inbatch"]
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 220), "white": (240, 240, 240)}


def batch(seed: int, n: int = 8) -> tuple[np.ndarray, list[list[str]], list[str]]:
    """Clips of one colour that darken or lighten, with captions that say so."""
    rng = np.random.default_rng(seed)
    frames = np.empty((n, 8, 32, 32, 3), np.uint8)
    captions = []
    for i in range(n):
        name = list(COLOURS)[rng.integers(len(COLOURS))]
        fade = np.linspace(1, 0.3, 8) if (dark := rng.random() < 0.5) else np.linspace(0.3, 1, 8)
        frames[i] = (np.asarray(COLOURS[name]) * fade[:, None, None, None]).clip(0, 255)
        captions.append([f"a {name} screen that gets {'darker' if dark else 'lighter'}"])
    return frames, captions, [f"v{seed}-{i}" for i in range(n)]


def make(method: str = "bmu", **changes: object) -> Learner:
    settings = LearnerSettings(method=method, batch_size=8, queue_size=20, learning_rate=1e-3, **changes)  # type: ignore[arg-type]
    return Learner(Towers(seed=3), settings)


def run(learner: Learner, seeds: range) -> list[StepStats]:
    return [learner.step(*batch(seed)) for seed in seeds]


def weights(learner: Learner) -> dict[str, torch.Tensor]:
    parts = learner.state_dict()
    return {f"{part}/{name}": tensor.clone() for part in parts for name, tensor in parts[part].items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_to_match_captions(method: str) -> None:
    learner = make(method)
    losses = [stats.loss for stats in run(learner, range(60))]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:5])
    frames, captions, _ = batch(999, 32)
    similarity = learner.encode_text([c[0] for c in captions]) @ learner.encode_video(frames).T
    same = np.array([[a == b for b in captions] for a in captions])
    assert np.take_along_axis(same, similarity.argmax(1)[:, None], 1).mean() > 0.5  # 8 kinds: chance is 0.125


@pytest.mark.parametrize("method", METHODS)
def test_same_stream_and_seed_give_bit_equal_weights(method: str) -> None:
    a, b = make(method), make(method)
    run(a, range(5))
    run(b, range(5))
    assert equal(weights(a), weights(b))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cut", [0, 1, 3])
def test_resuming_anywhere_gives_bit_equal_weights(method: str, cut: int) -> None:
    straight, stopped, resumed = make(method), make(method), make(method)
    run(straight, range(3))
    straight.start_task()
    run(straight, range(3, 6))
    run(stopped, range(cut))
    resumed.load_state_dict(stopped.state_dict())
    run(resumed, range(cut, 3))
    resumed.start_task()
    run(resumed, range(3, 6))
    assert equal(weights(straight), weights(resumed))


def test_keys_are_unit_vectors_of_the_momentum_pair_before_the_step() -> None:
    learner = make()
    run(learner, range(2))
    frames, captions, ids = batch(7)
    before = learner.encode_video(frames), learner.encode_text([c[0] for c in captions])
    stats = learner.step(frames, captions, ids)
    np.testing.assert_allclose(stats.keys_video, before[0], atol=1e-6)
    np.testing.assert_allclose(stats.keys_text, before[1], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(stats.keys_video, axis=1), 1, atol=1e-5)
    assert not np.allclose(learner.encode_video(frames), before[0])


def test_a_task_restarts_the_local_pair_and_not_the_global_one() -> None:
    learner = make()
    run(learner, range(3))
    global_before = learner.state_dict()["global"]["text.head.weight"].clone()
    learner.start_task()
    state = learner.state_dict()
    assert torch.equal(state["local"]["text.head.weight"], state["online"]["text.head.weight"])
    assert torch.equal(state["global"]["text.head.weight"], global_before)
    assert int(state["queue"]["enqueued"]) == 0


def test_queue_survives_a_boundary_when_settings_say_keep() -> None:
    learner = make(queue_at_boundary="keep")
    run(learner, range(3))
    learner.start_task()
    assert int(learner.state_dict()["queue"]["enqueued"]) == 24


def test_without_reverse_update_bmu_is_moco() -> None:
    bmu, moco = make(local_pull=1.0, global_pair=False, queue_at_boundary="keep"), make("moco")
    run(bmu, range(4))
    run(moco, range(4))
    assert equal(weights(bmu), weights(moco))


def test_reverse_update_slows_the_encoders() -> None:
    start = weights(make())["online/text.head.weight"]
    moved = {}
    for method in ("bmu", "moco"):
        learner = make(method, local_momentum="40 clips", local_pull="40 clips", global_pair=False)
        run(learner, range(20))
        moved[method] = float((weights(learner)["online/text.head.weight"] - start).norm())
    assert moved["bmu"] < 0.85 * moved["moco"]


def test_ragged_and_single_clip_batches_are_learned() -> None:
    learner = make()
    for n in (8, 3, 1, 5):
        assert np.isfinite(learner.step(*batch(n, n)).loss)
    assert learner.clips == 17


def test_a_batch_with_infinite_gradient_changes_no_weight(caplog: pytest.LogCaptureFixture) -> None:
    learner = make()
    with torch.no_grad():
        learner.online.text.head.weight[0, 0] = float("nan")  # type: ignore[union-attr, index]
    before = weights(learner)
    learner.step(*batch(0))
    after = weights(learner)
    kept = [name for name in after if name.startswith(("online", "local"))]
    assert all(torch.equal(after[name].nan_to_num(), before[name].nan_to_num()) for name in kept)
    assert "not finite" in caplog.text


def test_weights_of_other_towers_are_refused_by_name_of_the_settings() -> None:
    other = Learner(Towers(dim=64), LearnerSettings())
    with pytest.raises(StateError, match=r"model\.dim"):
        make().load_state_dict(other.state_dict())


def test_a_global_pair_switched_on_later_starts_from_the_encoders() -> None:
    without = make(global_pair=False)
    run(without, range(2))
    learner = make()
    learner.load_state_dict(without.state_dict())
    state = learner.state_dict()
    assert torch.equal(state["global"]["text.head.weight"], state["online"]["text.head.weight"])


@pytest.mark.parametrize(("size", "count"), [(16, 8), (64, 8), (48, 3), (32, 12)])
def test_clips_of_any_size_and_length_are_encoded(size: int, count: int) -> None:
    frames = np.zeros((2, count, size, size, 3), np.uint8)
    assert make().encode_video(frames).shape == (2, 128)


def test_fingerprint_tells_architectures_apart_and_not_weights() -> None:
    assert Towers(seed=1).fingerprint == Towers(seed=2).fingerprint
    assert Towers(dim=64).fingerprint != Towers(dim=128).fingerprint


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_on_cuda_under_bf16_with_fp32_copies(method: str) -> None:
    settings = LearnerSettings(method=method, batch_size=8, queue_size=20, learning_rate=1e-3)
    learner = Learner(Towers(seed=3), settings, "cuda")
    losses = [stats.loss for stats in run(learner, range(60))]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:5])
    assert all(tensor.dtype == torch.float32 for tensor in learner.state_dict()["local"].values())


def test_recall_in_the_batch_is_that_of_before_the_step_and_none_for_encoders_that_see_no_difference() -> None:
    learner = make()
    frames, captions, ids = batch(1)
    video, text = learner.encode_video(frames), learner.encode_text([c[0] for c in captions])
    scores = text @ video.T
    same = [(scores[i] >= scores[i, i]).sum() == 1 for i in range(8)]
    same += [(scores[:, i] >= scores[i, i]).sum() == 1 for i in range(8)]
    assert learner.step(frames, captions, ids).recall == pytest.approx(np.mean(same))
    alike = np.repeat(frames[:1], 8, axis=0)
    assert learner.step(alike, [captions[0]] * 8, ids).recall == 0  # all score the same: chance, not 1
