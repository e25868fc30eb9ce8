"""BMU-MoCo through its public interface: it learns, it is deterministic, it resumes bit-equal, boundaries restart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from streamlearn.encoders import Towers
from streamlearn.errors import StateError
from streamlearn.learner import Learner, id_hash
from streamlearn.records import StepStats
from streamlearn.reservoir import ClipStore, MemoryClips, Replayed
from streamlearn.settings import LearnerSettings

METHODS = ["bmu", "moco", "inbatch", "lwf", "ctp"]
#: Every method, every choice that changes what a step does, and replay on top of some.
VARIANTS: dict[str, dict[str, object]] = {name: {"method": name} for name in METHODS} | {
    "with the global pair": {"global_pair": True},
    "pull first": {"global_pair": True, "update_order": "pull_first"},
    "queue kept": {"queue_at_boundary": "keep"},
    "queue limited": {"queue_at_boundary": "age_limit", "queue_max_age_clips": 5},
    "local goes on": {"local_at_boundary": "keep"},
    "global loss": {"global_pair": True, "global_loss_weight": 0.5},
    "late pull": {"pull_after_clips": 20},
    "served global": {"global_pair": True, "serve": "global"},
    "served online": {"serve": "online"},
    "bmu with replay": {"replay_clips": 12},
    "inbatch with replay": {"method": "inbatch", "replay_clips": 12, "replay_ratio": 0.25},
    "ctp with replay": {"method": "ctp", "replay_clips": 3},
}
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


def make(method: str = "bmu", clips: ClipStore | None = None, **changes: object) -> Learner:
    settings = LearnerSettings(method=method, batch_size=8, queue_size=20, learning_rate=1e-3, **changes)  # type: ignore[arg-type]
    return Learner(Towers(seed=3), settings, clips=clips)


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


@pytest.mark.parametrize("variant", VARIANTS)
def test_same_stream_and_seed_give_bit_equal_weights(variant: str) -> None:
    a, b = make(**VARIANTS[variant]), make(**VARIANTS[variant])  # type: ignore[arg-type]
    run(a, range(5))
    run(b, range(5))
    assert equal(weights(a), weights(b))


@pytest.mark.parametrize("variant", VARIANTS)
def test_resuming_anywhere_gives_bit_equal_weights(variant: str) -> None:
    """Three tasks of two batches, one of them ragged: once in one go, once with a restart before every event."""
    store = MemoryClips()  # as the frame store, it outlives the learner

    def make_one(clips: MemoryClips) -> Learner:
        return make(clips=clips, **VARIANTS[variant])  # type: ignore[arg-type]

    straight, restarted = make_one(MemoryClips()), make_one(store)
    for at in range(8):
        state = restarted.state_dict()
        restarted = make_one(store)
        restarted.load_state_dict({part: {name: t.clone() for name, t in state[part].items()} for part in state})
        for learner in (straight, restarted):
            if at % 3 == 2:
                learner.start_task()
            else:
                learner.step(*batch(at, 3 if at == 1 else 8))
        assert equal(weights(straight), weights(restarted)), at


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
    learner = make(global_pair=True)
    run(learner, range(3))
    global_before = learner.state_dict()["global"]["text.head.weight"].clone()
    learner.start_task()
    state = learner.state_dict()
    assert torch.equal(state["local"]["text.head.weight"], state["online"]["text.head.weight"])
    assert torch.equal(state["global"]["text.head.weight"], global_before)
    assert int(state["queue"]["enqueued"]) == 0


@pytest.mark.parametrize("serve", ["local", "global", "online"])
def test_what_is_served_writes_the_keys_and_encodes_queries(serve: str) -> None:
    learner = make(serve=serve, global_pair=True)
    run(learner, range(3))
    frames, captions, ids = batch(7)
    pair = learner.copies[serve]
    with torch.no_grad():
        expected = pair.encode_text([c[0] for c in captions]).numpy()
    np.testing.assert_array_equal(learner.encode_text([c[0] for c in captions]), expected)
    stats = learner.step(frames, captions, ids)
    np.testing.assert_allclose(stats.keys_text, expected, atol=1e-6)


def test_serving_another_copy_changes_no_weight() -> None:
    local, online = make(), make(serve="online")
    run(local, range(4))
    run(online, range(4))
    assert equal(weights(local), weights(online))


@pytest.mark.parametrize(("policy", "left"), [("keep", 20), ("clear", 0), ("age_limit", 5)])
def test_a_boundary_treats_the_queue_as_settings_say(policy: str, left: int) -> None:
    learner = make(queue_at_boundary=policy, queue_max_age_clips=5, global_pair=True, global_loss_weight=1.0)
    run(learner, range(3))
    newest = learner.method.queues["queue"].ids[[23 % 20]]
    learner.start_task()
    for queue in learner.method.queues.values():
        assert len(queue) == left
        assert not left or newest in queue.ids


def test_the_local_pair_goes_on_over_a_boundary_when_settings_say_so() -> None:
    learner = make(local_at_boundary="keep")
    run(learner, range(3))
    before = weights(learner)
    learner.start_task()
    after = weights(learner)
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("local"))
    assert not torch.equal(after["local/text.head.weight"], after["online/text.head.weight"])


def test_no_pull_in_the_first_clips_of_each_task() -> None:
    late, moco = make(pull_after_clips=17), make("moco", queue_at_boundary="clear")
    for learner in (late, moco):
        run(learner, range(3))  # 8 and 16 clips are below 17; the third batch begins below it, too
    assert torch.equal(weights(late)["online/text.head.weight"], weights(moco)["online/text.head.weight"])
    run(late, range(3, 4))
    run(moco, range(3, 4))
    assert not torch.equal(weights(late)["online/text.head.weight"], weights(moco)["online/text.head.weight"])
    late.start_task()
    before = late.local.text.head.weight.clone()  # type: ignore[union-attr]
    learned = weights(late)["online/text.head.weight"]
    assert torch.equal(before, learned)
    assert late.method.task_clips == 0


def test_the_global_pairs_own_loss_pulls_towards_its_keys() -> None:
    without, with_it = make(global_pair=True), make(global_pair=True, global_loss_weight=1.0)
    first = [run(learner, range(1))[0].loss for learner in (without, with_it)]
    assert first[1] == pytest.approx(2 * first[0], rel=1e-5)  # at first both copies are the encoders
    run(without, range(1, 4))
    run(with_it, range(1, 4))
    assert not torch.equal(weights(without)["online/text.head.weight"], weights(with_it)["online/text.head.weight"])
    assert len(with_it.method.queues["queue_global"]) == 20


@pytest.mark.parametrize("method", ["lwf", "ctp"])
def test_a_reference_is_frozen_at_each_boundary_and_holds_the_encoders_back(method: str) -> None:
    moved = {}
    for weight in (0.0, 30.0):
        learner = make(method, distill_weight=weight)
        run(learner, range(10))
        assert "reference" not in learner.state_dict()
        learner.start_task()
        reference = weights(learner)
        run(learner, range(10, 20))
        after = weights(learner)
        assert all(torch.equal(after[n], reference[n]) for n in after if n.startswith("reference"))
        assert torch.equal(after["reference/text.head.weight"], reference["online/text.head.weight"])
        frames, captions, _ = batch(3)
        pairs = [learner.copies[name] for name in ("online", "reference")]
        with torch.no_grad():
            a, b = (p.encode_text([c[0] for c in captions]) @ p.encode_video(torch.from_numpy(frames)).T for p in pairs)
        moved[weight] = float((a - b).abs().mean())
    assert moved[30.0] < 0.7 * moved[0.0]


def test_lwf_is_moco_until_the_first_boundary() -> None:
    lwf, moco = make("lwf"), make("moco")
    run(lwf, range(4))
    run(moco, range(4))
    assert equal(weights(lwf), weights(moco))


def test_ctps_copy_settles_half_way_between_encoders_and_reference() -> None:
    learner = make("ctp", local_momentum=0.9)
    run(learner, range(3))
    learner.start_task()
    assert torch.equal(weights(learner)["local/text.head.weight"], weights(learner)["reference/text.head.weight"])
    run(learner, range(3, 6))
    before = weights(learner)
    learner.method.follow(8)
    online, reference = before["online/text.head.weight"], before["reference/text.head.weight"]
    expected = 0.9 * before["local/text.head.weight"] + 0.05 * online + 0.05 * reference
    torch.testing.assert_close(weights(learner)["local/text.head.weight"], expected, atol=1e-6, rtol=0)
    for _ in range(200):
        learner.method.follow(8)
    torch.testing.assert_close(
        weights(learner)["local/text.head.weight"], (online + reference) / 2, atol=1e-6, rtol=0
    )  # fmt: skip


@pytest.mark.slow
def test_replay_brings_back_what_was_forgotten() -> None:
    """Then the captions say "not", and red is blue: with replay the first ones are still told apart."""
    kept = {}
    for clips in (0, 64):
        learner = make("inbatch", replay_clips=clips, local_momentum="16 clips")
        run(learner, range(40))
        for step in range(60):
            frames, captions, _ = batch(1000 + step)
            learner.step(
                frames[..., ::-1].copy(), [[f"not {c[0]}"] for c in captions], [f"b{step}-{i}" for i in range(8)]
            )
        frames, captions, _ = batch(999, 32)
        similarity = learner.encode_text([c[0] for c in captions]) @ learner.encode_video(frames).T
        same = np.array([[a == b for b in captions] for a in captions])
        kept[clips] = np.take_along_axis(same, similarity.argmax(1)[:, None], 1).mean()
    assert kept[64] > 0.9
    assert kept[0] < 0.7


def test_replayed_clips_are_a_share_of_the_batch_and_have_no_keys() -> None:
    asked = []

    class Counted(MemoryClips):
        def get(self, video_id: str) -> Replayed | None:
            asked.append(video_id)
            return super().get(video_id)

    learner = make(replay_clips=100, replay_ratio=0.2, clips=Counted())
    for step in range(6):
        stats = learner.step(*batch(step))
        assert stats.keys_video.shape == (8, 128)
    assert learner.clips == 48
    assert len(asked) == 4 * 2  # a fifth of ten; nothing can be drawn in the first two steps
    assert int(learner.state_dict()["queue"]["enqueued"]) == 48 + len(asked)


def test_age_limit_keeps_the_newest_clips_beside_replayed_ones() -> None:
    learner = make(replay_clips=8, queue_at_boundary="age_limit", queue_max_age_clips=8)
    run(learner, range(4))
    learner.start_task()
    queue = learner.method.queues["queue"]
    assert len(queue) == 16
    assert {id_hash(f"v3-{i}") for i in range(8)} < set(queue.ids[:16].tolist())


def test_queue_survives_a_boundary_when_settings_say_keep() -> None:
    learner = make(queue_at_boundary="keep")
    run(learner, range(3))
    learner.start_task()
    assert int(learner.state_dict()["queue"]["enqueued"]) == 24


def test_without_reverse_update_bmu_is_moco() -> None:
    bmu, moco = make(local_pull=1.0, queue_at_boundary="keep"), make("moco")
    run(bmu, range(4))
    run(moco, range(4))
    assert equal(weights(bmu), weights(moco))


def test_reverse_update_slows_the_encoders() -> None:
    start = weights(make())["online/text.head.weight"]
    moved = {}
    for method in ("bmu", "moco"):
        learner = make(method, local_momentum="40 clips", local_pull="40 clips")
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


def test_a_step_that_fails_leaves_encoders_that_do_not_drop_out(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = make(serve="local")

    def out_of_memory(_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(learner.online, "encode", out_of_memory)
    with pytest.raises(MemoryError):
        learner.step(*batch(0))
    assert not learner.online.training


def test_weights_of_other_towers_are_refused_by_name_of_the_settings() -> None:
    other = Learner(Towers(dim=64), LearnerSettings())
    with pytest.raises(StateError, match=r"model\.dim"):
        make().load_state_dict(other.state_dict())


def test_a_global_pair_switched_on_later_starts_from_the_encoders() -> None:
    without = make()
    run(without, range(2))
    learner = make(global_pair=True)
    learner.load_state_dict(without.state_dict())
    state = learner.state_dict()
    assert torch.equal(state["global"]["text.head.weight"], state["online"]["text.head.weight"])


@pytest.mark.parametrize("variant", ["ctp", "global loss", "bmu with replay"])
def test_a_learner_that_goes_back_is_one_that_starts_from_there(variant: str) -> None:
    """As a rollback under a running daemon, also to before a task had a reference or a setting had its part."""
    begun = make(VARIANTS[variant].get("method", "bmu"))  # type: ignore[arg-type]
    run(begun, range(1))
    state = begun.state_dict()
    for part in ("queue", "queue_global", "replay"):
        state.pop(part, None)
    back, anew = make(**VARIANTS[variant]), make(**VARIANTS[variant])  # type: ignore[arg-type]
    run(back, range(10, 12))
    back.start_task()
    run(back, range(12, 14))
    for learner in (back, anew):
        learner.load_state_dict({part: {name: t.clone() for name, t in state[part].items()} for part in state})
        run(learner, range(20, 22))
    assert equal(weights(back), weights(anew))


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


@pytest.mark.parametrize(
    ("settings", "passes"),
    [
        ({}, 4),  # there, back, and the local copy
        ({"serve": "global", "global_pair": True}, 5),
        ({"global_pair": True, "global_loss_weight": 0.5}, 5),
        ({"method": "inbatch", "serve": "online"}, 4),  # whose keys are told before the step
        ({"replay_clips": 8, "replay_ratio": 0.75}, 16),
    ],
)
def test_a_share_of_a_steps_work_is_so_many_clips(settings: dict[str, Any], passes: int) -> None:
    learner = Learner(Towers(dim=16), LearnerSettings(batch_size=8, **settings))
    assert [learner.clips_within(share) for share in (0, 1e-9, 0.125, 1)] == [0, 1, passes, 8 * passes]
