"""A list that remembers for which offsets it was asked what to remember."""

from __future__ import annotations

from typing import Any

from streamlearn.records import Offsets
from streamlearn.testing import ListSource


class RememberingSource(ListSource):
    """Its memo is the offsets beside which it is kept.

    Attributes:
        began: what it was handed back, and what it was started with.
    """

    began: tuple[Any, Offsets]
    _memo: Any = None

    def memo(self, offsets: Offsets) -> Any:
        return [[*partition, offset] for partition, offset in offsets.items()]

    def remember(self, memo: Any) -> None:
        self._memo = memo

    def start(self, offsets: Offsets) -> None:
        self.began = self._memo, dict(offsets)
        super().start(offsets)
