"""Files that outlive a loss of power, with the sums that tell when they rot."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def save(tensors: Mapping[str, Tensor], path: Path) -> str:
    """Write tensors and fsync; returns the file's SHA-256."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return sync_and_sum(path)


def sum_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_and_sum(path: Path) -> str:
    """Fsync a file; returns its SHA-256."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return sum_of(path)


def sync_folder(path: Path) -> None:
    """Fsync a folder: what was made, renamed and removed in it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
