"""The bidirectional update against its equations."""

from __future__ import annotations

import pytest
import torch

from streamlearn.errors import SettingsError
from streamlearn.momentum import coefficient, follow, pull, speed
from streamlearn.settings import load

SIZES = [(1,), (3,), (7, 5), (16, 3, 3), (1, 1)]


def tensors(seed: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*size, generator=generator).to(dtype) for size in SIZES]


def test_update_equals_its_equations_in_float64() -> None:
    theta, local, global_ = tensors(0), tensors(1), tensors(2)
    m, mh, mg, mgh = 0.95, 0.97, 0.99, 0.998
    expected = []
    for t, lo, g in zip(*([x.double() for x in part] for part in (theta, local, global_)), strict=True):
        lo = m * lo + (1 - m) * t
        g = mg * g + (1 - mg) * t
        t = mh * t + (1 - mh) * lo
        t = mgh * t + (1 - mgh) * g
        expected.append((t, lo, g))
    follow(local, theta, m)
    follow(global_, theta, mg)
    pull(theta, local, mh)
    pull(theta, global_, mgh)
    for got, want in zip(zip(theta, local, global_, strict=True), expected, strict=True):
        for a, b in zip(got, want, strict=True):
            assert torch.allclose(a.double(), b, atol=1e-6)


def test_pull_of_one_leaves_the_encoders_alone() -> None:
    theta = tensors(0)
    pull(theta, tensors(1), 1.0)
    assert all(torch.equal(a, b) for a, b in zip(theta, tensors(0), strict=True))


def test_two_half_batches_move_a_copy_as_far_as_one_whole() -> None:
    whole, half = coefficient("640 clips", 32, 32), coefficient("640 clips", 16, 32)
    assert half * half == pytest.approx(whole)
    assert coefficient(0.95, 16, 32) ** 2 == pytest.approx(0.95)


def test_long_run_speed_is_what_a_simulation_shows() -> None:
    theta, local = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    m, mh, steps = 0.99, 0.995, 5000
    for _ in range(steps):
        theta += 1.0
        follow([local], [theta], m)
        pull([theta], [local], mh)
    assert float(theta) / steps == pytest.approx(speed([(m, mh)]), rel=0.02)  # 2/3


def test_settings_that_stall_learning_are_refused_with_the_reason() -> None:
    with pytest.raises(SettingsError, match=r"global_pull.*stall.*longer horizon"):
        load(overrides={"learner.global_momentum": "6400 clips", "learner.global_pull": "640 clips"})


@pytest.mark.parametrize("value", ["fast", 0, 1.5, "-3 clips"])
def test_a_momentum_that_is_none_is_refused(value: object) -> None:
    with pytest.raises(SettingsError, match=r"learner\.local_momentum.*horizon"):
        load(overrides={"learner.local_momentum": value})
