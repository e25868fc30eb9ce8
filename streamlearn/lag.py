"""What a source has not delivered yet, what it lost or gave away late, on the metrics; it knows no source's kind."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from streamlearn.metrics import Metrics
from streamlearn.records import Partition
from streamlearn.source import Source

_INTERVAL_S = 2.0


class Lag:
    """Of one source; another one, of the same stream, begins anew."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._metrics.source_lag_records.clear()
        self._shown: set[Partition] = set()
        self._lost: Mapping[Partition, int] = {}
        self._late = 0
        self._reported = -math.inf

    def report_now_and_then(self, source: Source) -> None:
        """`report`, where the last one is a while ago."""
        if (now := time.monotonic()) - self._reported > _INTERVAL_S:
            self._reported = now
            self.report(source)

    def report(self, source: Source) -> None:
        """Ask the source, from its own thread."""
        lags = source.lag()
        for (topic, partition), lag in lags.items():
            self._metrics.source_lag_records.labels(topic, partition).set(lag)
            self._metrics.lost_records_total.labels(topic, partition)  # at 0, so that its first step is seen
        self._shown |= lags.keys()
        if getattr(source, "connected", True):  # while it is away, what was known last is nearest
            for gone in self._shown - lags.keys():  # another member's: it says how far behind that is
                self._metrics.source_lag_records.remove(*gone)
            self._shown &= lags.keys()
        lost: Mapping[Partition, int] = getattr(source, "lost", {})
        for of, records in lost.items():
            self._metrics.lost_records_total.labels(*of).inc(max(0, records - self._lost.get(of, 0)))
        self._lost = dict(lost)
        late = getattr(source, "late_handovers", 0)
        self._metrics.source_late_handovers_total.inc(max(0, late - self._late))
        self._late = late
