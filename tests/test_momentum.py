"""The bidirectional update against its equations, in every implementation."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from streamlearn.errors import SettingsError
from streamlearn.momentum import Bidirectional, How, coefficient, follow, pull, speed
from streamlearn.settings import load

#: Less than, exactly and more than a block of any implementation (4096, 65,536); one element, and none.
SIZES = [(1,), (3,), (7, 5), (16, 3, 3), (0, 4), (4095,), (4096,), (4097,), (65_535,), (2, 32_768), (65_537,)]
CUDA = torch.cuda.is_available()


@pytest.fixture(autouse=True)
def _kernels_are_interpreted_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    if not CUDA:
        monkeypatch.setenv("TRITON_INTERPRET", "1")


def tensors(
    seed: int, dtype: torch.dtype = torch.float32, sizes: Sequence[tuple[int, ...]] = tuple(SIZES)
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*size, generator=generator).to(dtype) for size in sizes]


def supported(how: str) -> str:
    if how == "triton" and importlib.util.find_spec("triton") is None:
        pytest.skip("triton comes with CUDA builds of torch and with some others")
    return "cuda" if how == "triton" and CUDA else "cpu"


@pytest.mark.parametrize("pull_first", [False, True])
def test_reference_equals_the_equations_in_float64(pull_first: bool) -> None:
    theta, local, global_ = (tensors(seed, torch.float64) for seed in range(3))
    m, mh, mg, mgh = 0.95, 0.97, 0.99, 0.998
    expected = []
    for t, lo, g in zip(theta, local, global_, strict=True):
        if pull_first:
            t = mgh * (mh * t + (1 - mh) * lo) + (1 - mgh) * g
        lo = m * lo + (1 - m) * t
        g = mg * g + (1 - mg) * t
        if not pull_first:
            t = mgh * (mh * t + (1 - mh) * lo) + (1 - mgh) * g
        expected.append((t, lo, g))
    Bidirectional(theta, [local, global_], "reference")([(m, mh), (mg, mgh)], pull_first=pull_first)
    for got, want in zip(zip(theta, local, global_, strict=True), expected, strict=True):
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, atol=1e-14, rtol=0)


@pytest.mark.parametrize(
    ("how", "weights"),
    [
        ("foreach", torch.float32), ("blocked", torch.float32), ("triton", torch.float32),
        ("foreach", torch.bfloat16), ("triton", torch.bfloat16),
    ],
)  # fmt: skip
@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("pull_first", [False, True])
def test_every_implementation_equals_the_reference(
    how: How, weights: torch.dtype, copies: int, pull_first: bool
) -> None:
    device = supported(how)
    parts = [tensors(0, weights), *(tensors(seed) for seed in range(1, 1 + copies))]
    wide = [[t.double() for t in part] for part in parts]
    parts = [[t.to(device) for t in part] for part in parts]
    coefficients = [(0.95, 0.97), (0.99, 0.998)][:copies]
    update, reference = Bidirectional(parts[0], parts[1:], how), Bidirectional(wide[0], wide[1:], "reference")
    update(coefficients, pull_first=pull_first)
    reference(coefficients, pull_first=pull_first)
    for got, want in zip(parts[1:], wide[1:], strict=True):
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a.cpu().double(), b, atol=1e-6, rtol=0)
    for a, b in zip(parts[0], wide[0], strict=True):
        # Rounded once. To the nearest, that is within 2 ** -9; triton's interpreter cuts off instead.
        rtol = 1e-6 if weights == torch.float32 else 2**-7 if how == "triton" and not CUDA else 2**-8
        torch.testing.assert_close(a.cpu().double(), b, atol=1e-6, rtol=rtol)


@pytest.mark.parametrize("how", ["foreach", "triton"])
def test_fp32_copies_of_bf16_weights_keep_moves_that_bf16_would_lose(how: How) -> None:
    device = supported(how)
    theta, copy = [torch.full((5,), 1.01, dtype=torch.bfloat16, device=device)], [torch.ones(5, device=device)]
    update = Bidirectional(theta, [copy], how)
    for _ in range(50):
        update([(0.9999, 1.0)])
    assert 0.004 < float(copy[0][0] - 1) / float(theta[0][0] - 1) < 0.006  # 1 - 0.9999 ** 50


def test_pieces_in_the_cache_are_bit_equal_to_whole_tensors() -> None:
    blocked, whole = [[tensors(seed) for seed in range(3)] for _ in range(2)]
    for parts, how in ((blocked, "blocked"), (whole, "foreach")):
        Bidirectional(parts[0], parts[1:], how)([(0.95, 0.97), (0.99, 0.998)])  # type: ignore[arg-type]
    for one, other in zip(blocked, whole, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_best_way_is_taken_and_one_that_cannot_be_is_refused() -> None:
    theta, copy = tensors(0), tensors(1)
    assert Bidirectional(theta, [copy]).how == "blocked"
    assert Bidirectional([t.bfloat16() for t in theta], [copy]).how == "foreach"
    turned = [torch.randn(4, 3).T]
    assert Bidirectional(turned, [turned]).how == "foreach"
    with pytest.raises(ValueError, match="contiguous"):
        Bidirectional(turned, [turned], "blocked")
    with pytest.raises(ValueError, match="fp32"):
        Bidirectional(theta, [[t.double() for t in copy]], "triton")


@pytest.mark.parametrize("wrong", ["half", "copies", "shapes"])
def test_what_the_kernel_would_take_for_something_else_is_refused(wrong: str) -> None:
    theta, copies = tensors(0), [tensors(seed) for seed in range(1, 4 if wrong == "copies" else 3)]
    if wrong == "half":
        theta = [t.half() for t in theta]
    if wrong == "shapes":
        copies[1] = copies[1][::-1]
    with pytest.raises(ValueError, match="triton needs encoders in fp32 or bf16, and one or two copies"):
        Bidirectional(theta, copies, "triton")


_COMPILE = """
import re, sys
import torch, triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from streamlearn import momentum_triton as kernel
from streamlearn.momentum import compiles

print(compiles(torch.zeros(1)))
kinds = dict.fromkeys(("addresses", "sizes", "blocks"), "*i64") | {"tensors": "i32"}
kinds |= dict.fromkeys(("m0", "h0", "m1", "h1"), "fp32")
constants = {"THETA": tl.bfloat16, "COPIES": 2, "PULL_FIRST": False, "ALIGNED": True, "BLOCK": kernel._BLOCK}
source = ASTSource(kernel._update, kinds | dict.fromkeys(constants, "constexpr"), constexprs=constants)
made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": kernel._WARPS})
print(*(len(re.findall(rf"{what}.global\\S*v4.b32", made.asm["ptx"])) for what in ("ld", "st")))
"""


def test_the_kernel_compiles_to_moves_of_16_bytes_and_is_not_taken_where_it_cannot_be_had(tmp_path: Path) -> None:
    supported("triton")
    environment = {name: text for name, text in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", _COMPILE], capture_output=True, text=True, check=True,
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
    )  # fmt: skip
    # 16 elements a thread: 2 times 8 in bf16, and of each copy 4 times 4. No kernel is for a tensor on the CPU.
    assert done.stdout.split() == ["False", "10", "10"]
    assert "the momentum update goes without its Triton kernel" in done.stderr


def test_parameters_of_a_model_are_moved_where_they_lie() -> None:
    online, copy = torch.nn.Linear(300, 300), torch.nn.Linear(300, 300).requires_grad_(False)
    start = copy.weight.clone()
    update = Bidirectional(list(online.parameters()), [list(copy.parameters())])
    copy.load_state_dict(online.state_dict())  # into the same memory, as a restart does
    with torch.no_grad():
        online.weight += 1
    before = copy.weight.clone()
    update([(0.5, 1.0)])
    assert not torch.equal(start, before)
    torch.testing.assert_close(copy.weight, before + 0.5)


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
        load(overrides={"learner.global_pair": True, "learner.global_pull": "640 clips"})


@pytest.mark.parametrize("value", ["fast", 0, 1.5, "-3 clips"])
def test_a_momentum_that_is_none_is_refused(value: object) -> None:
    with pytest.raises(SettingsError, match=r"learner\.local_momentum.*horizon"):
        load(overrides={"learner.local_momentum": value})
