"""The bidirectional update: each implementation against the plain loop, and against what memory allows.

    .venv/bin/python -m benchmarks.momentum                       # the tiny towers, CPU
    .venv/bin/python -m benchmarks.momentum --shapes vit_bert     # ViT-B/16 and BERT-base, 195 M parameters
    .venv/bin/python -m benchmarks.momentum --shapes vit_bert --device cuda [--weights bfloat16]

All run in turn within one process, `--repeats` times; the median of each is reported. The plain loop is the equations,
parameter by parameter; `in place` is the same loop with `mul_` and `add_`. The floor is the bytes of one pass (each
tensor read and written once) by the bandwidth of a copy measured in the same run. With `--weights bfloat16` the
encoders are halves, and their copies are not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from streamlearn.encoders import Towers
from streamlearn.momentum import Bidirectional, How

COEFFICIENTS = [(0.95, 0.95), (0.995, 0.999)]


def shapes(name: str) -> list[tuple[int, ...]]:
    """Of every parameter."""
    if name == "tiny":
        return [tuple(p.shape) for p in Towers().parameters()]
    width, block = 768, [(2304, 768), (2304,), (768, 768), (768,), (3072, 768), (3072,), (768, 3072), *[(768,)] * 5]
    vit = [(width, 3, 16, 16), (197, width), *block * 12, (width,), (width,)]
    bert = [(30_522, width), (512, width), (2, width), *block * 12, (width,), (width,)]
    return [*vit, *bert]


def in_place(online: Sequence[Tensor], copies: Sequence[Sequence[Tensor]]) -> None:
    with torch.no_grad():
        for i, theta in enumerate(online):
            for copy, (m, _) in zip(copies, COEFFICIENTS, strict=True):
                copy[i].mul_(m).add_(theta, alpha=1 - m)
            for copy, (_, mh) in zip(copies, COEFFICIENTS, strict=True):
                theta.mul_(mh).add_(copy[i], alpha=1 - mh)


def timed(call: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", choices=["tiny", "vit_bert"], default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--weights", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = torch.device(given.device)
    parts = [[torch.randn(shape, device=device) for shape in shapes(given.shapes)] for _ in range(3)]
    online, copies = [part.to(getattr(torch, given.weights)) for part in parts[0]], parts[1:]
    ways: list[How] = ["reference", "foreach", "triton" if device.type == "cuda" else "blocked"]
    updates = {how: Bidirectional(online, copies, how) for how in ways}
    calls: dict[str, Callable[[], object]] = {
        "plain loop" if how == "reference" else how: lambda update=update: update(COEFFICIENTS)  # type: ignore[misc]
        for how, update in updates.items()
    }
    if given.weights == "float32":
        calls["in place"] = lambda: in_place(online, copies)
    flat, other = (torch.randn(sum(t.numel() for t in online), device=device) for _ in range(2))
    calls["copy"] = lambda: flat.copy_(other)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(given.repeats + 3):
        for name, call in calls.items():
            seconds[name].append(timed(call, device))
    median = {name: statistics.median(values[3:]) for name, values in seconds.items()}
    bandwidth = 2 * 4 * flat.numel() / median["copy"]  # bytes a second, read and written
    floor_s = 2 * (online[0].element_size() + 2 * 4) * flat.numel() / bandwidth
    facts = {
        "shapes": given.shapes, "parameters": flat.numel(), "tensors": len(online), "device": str(device),
        "weights": given.weights, "card": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": given.threads, "copy_gb_per_s": round(bandwidth / 1e9, 2), "floor_ms": round(1e3 * floor_s, 3),
        "ms": {name: round(1e3 * value, 3) for name, value in median.items()},
        "fastest_ms": {name: round(1e3 * min(values), 3) for name, values in seconds.items()},
        "plain_loop_over": {name: round(median["plain loop"] / value, 2) for name, value in median.items()},
        "over_floor": {name: round(value / floor_s, 2) for name, value in median.items()},
    }  # fmt: skip
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
