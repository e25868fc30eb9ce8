"""What avalanche's own metrics say of the matrix in `tests/test_score_book.py`.

    pip install --no-deps --target FOLDER avalanche-lib==0.6.0
    python benchmarks/avalanche.py FOLDER

avalanche-lib needs torchvision, wandb, tensorboard and more (docs/decisions.md). Its three standalone metrics compute
with none of them, so what they import and do not use is replaced by nothing here.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from unittest.mock import MagicMock

_UNUSED = ("torchmetrics", "torchvision", "wandb", "tensorboard", "gputil", "GPUtil", "qpsolvers", "dill", "sklearn")
_UNUSED_PARTS = tuple(f"avalanche.{part}" for part in ("benchmarks", "training", "models", "logging"))

MATRIX = [[0.8, 0.1, 0.0], [0.6, 0.9, 0.2], [0.5, 0.6, 0.7]]  # row: after task t; column: task i
UNTRAINED = [0.1, 0.05, 0.08]


class Nothing(MetaPathFinder, Loader):
    """Stands for modules that are imported and not used."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        unused = name.partition(".")[0] in _UNUSED or name.startswith((*_UNUSED_PARTS, "torch.utils.tensorboard"))
        return ModuleSpec(name, self, is_package=True) if unused else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = MagicMock(name=spec.name)
        module.__path__, module.__spec__, module.__name__ = [], spec, spec.name
        return module

    def exec_module(self, module: ModuleType) -> None:
        pass


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    sys.meta_path.insert(0, Nothing())
    metrics = importlib.import_module("avalanche.evaluation.metrics")
    forgetting, backward, forward = metrics.Forgetting(), metrics.BWT(), metrics.ForwardTransfer()
    for t, row in enumerate(MATRIX):
        for i, value in enumerate(row[: t + 1]):
            forgetting.update(i, value, initial=i == t)
            backward.update(i, value, initial=i == t)
    for i in (1, 2):
        forward.update(i, UNTRAINED[i], initial=True)
        forward.update(i, MATRIX[i - 1][i])
    for name, metric in (("Forgetting", forgetting), ("BWT", backward), ("ForwardTransfer", forward)):
        print(name, {task: round(value, 6) for task, value in metric.result().items()})


if __name__ == "__main__":
    main()
