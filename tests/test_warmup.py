"""The warm start: what ships ranks clips it has never seen, what does not fit is refused with a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from streamlearn.connectors.synthetic import GENERIC, render, sample
from streamlearn.encoders import Towers
from streamlearn.errors import SettingsError
from streamlearn.evaluate import ranks, recall_at
from streamlearn.settings import ModelSettings
from streamlearn.warmup import BUILTIN, build_towers, device_of, warm_up


@torch.inference_mode()
def recall_at_5(towers: Towers, size_px: int) -> float:
    """Among 200 generic clips that no warm-up has drawn."""
    rng = np.random.default_rng(20_777)
    scenes = sample(GENERIC, 200, rng)
    films = torch.from_numpy(render(scenes, size_px=size_px, rng=rng))
    similarity = towers.eval().encode_text([scene.caption for scene in scenes]) @ towers.encode_video(films).T
    return recall_at(ranks(similarity.numpy(), np.arange(200)), 5)


def test_the_shipped_checkpoint_is_of_the_default_towers_and_says_what_it_is() -> None:
    with safe_open(BUILTIN, "pt") as file:
        facts = file.metadata()
    assert facts["fingerprint"] == Towers().fingerprint
    assert float(facts["recall_at_5"]) > 0.8
    assert int(facts["pairs_seen"]) > 100_000
    assert BUILTIN.stat().st_size < 8 * 2**20


def test_the_shipped_checkpoint_ranks_unseen_clips_and_random_weights_do_not() -> None:
    assert recall_at_5(build_towers(ModelSettings(), seed=0), 32) > 0.8
    assert recall_at_5(build_towers(ModelSettings(warm_start="none"), seed=0), 32) < 0.15


def test_a_warm_start_of_ones_own_is_loaded_in_full_precision(tmp_path: Path) -> None:
    towers = Towers(dim=16, seed=7)
    path = tmp_path / "own.safetensors"
    save_file({n: t.half() for n, t in towers.state_dict().items()}, path, {"fingerprint": towers.fingerprint})
    loaded = build_towers(ModelSettings(dim=16, warm_start=str(path)), seed=0)
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, towers.state_dict()[name].half().float())


def test_another_size_of_towers_starts_from_the_seed_where_the_builtin_one_does_not_fit() -> None:
    started, fresh = build_towers(ModelSettings(dim=16), seed=3).state_dict(), Towers(dim=16, seed=3).state_dict()
    assert all(torch.equal(started[name], fresh[name]) for name in fresh)


def write(path: Path, what: str) -> None:
    good = {"fingerprint": Towers(dim=16).fingerprint}
    tensors = Towers(dim=16).state_dict()
    if what == "truncated":
        save_file(tensors, path, good)
        path.write_bytes(path.read_bytes()[:-100])
    elif what == "text":
        path.write_text("not a checkpoint")
    elif what == "empty":
        path.write_bytes(b"")
    elif what == "folder":
        path.mkdir()
    elif what == "without fingerprint":
        save_file(tensors, path)
    elif what == "of other towers":
        save_file(Towers(dim=32).state_dict(), path, {"fingerprint": Towers(dim=32).fingerprint})
    elif what == "without a tensor":
        save_file({n: t for n, t in tensors.items() if n != "text.head.bias"}, path, good)
    elif what == "with a wrong shape":
        save_file({n: t[:1].clone() if n == "text.head.bias" else t for n, t in tensors.items()}, path, good)


@pytest.mark.parametrize(
    "what",
    [
        "missing", "truncated", "text", "empty", "folder", "without fingerprint", "of other towers",
        "without a tensor", "with a wrong shape",
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_by_the_name_of_the_setting(tmp_path: Path, what: str) -> None:
    path = tmp_path / "warm.safetensors"
    write(path, what)
    with pytest.raises(SettingsError, match=r"model\.warm_start = ") as caught:
        build_towers(ModelSettings(dim=16, warm_start=str(path)), seed=0)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["cuda:99", "tpu!", "cpu:x"])
def test_a_device_that_is_not_there_is_refused_by_the_name_of_the_setting(name: str) -> None:
    with pytest.raises(SettingsError, match=r"model\.device = .*use cpu"):
        device_of(name)
    with pytest.raises(SettingsError, match=r"search\.index_device = .*use cpu"):
        device_of(name, "search.index_device")


@pytest.mark.slow
def test_a_warm_up_writes_a_file_that_loads_and_reports_every_step(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    path = tmp_path / "small.safetensors"
    recall = warm_up(
        path, scenes=64, epochs=2, batch_size=32, seed=1, progress=lambda step, total, loss: steps.append((step, total))
    )
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    with safe_open(path, "pt") as file:
        facts = file.metadata()
    assert facts["pairs_seen"] == "128"
    assert json.loads(facts["recall_at_5"]) == pytest.approx(recall, abs=1e-3)
    loaded = build_towers(ModelSettings(warm_start=str(path)), seed=0)
    written = load_file(path)
    assert all(torch.equal(tensor, written[name].float()) for name, tensor in loaded.state_dict().items())
    assert not torch.equal(loaded.state_dict()["text.head.bias"], Towers(seed=1).state_dict()["text.head.bias"])
