from __future__ import annotations

import subprocess
import sys

import pytest

from streamlearn import allocator

CHURN = """
import psutil
from streamlearn import allocator
allocator.tune()
blocks = [(bytearray(b"x" * 60_000), bytearray(b"x" * 3000)) for _ in range(2_000)]  # 120 MB
small = [b for _, b in blocks]
del blocks
before = psutil.Process().memory_info().rss
allocator.trim()
print((before - psutil.Process().memory_info().rss) >> 20)
"""


@pytest.mark.skipif(allocator._glibc() is None, reason="not glibc")
def test_memory_between_small_blocks_that_stay_is_returned() -> None:
    done = subprocess.run([sys.executable, "-c", CHURN], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 60


def test_other_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    allocator.tune()
    allocator.trim()
