"""Whether a source is there: said once in the log, and on the metrics; how long to wait before it is tried again."""

from __future__ import annotations

import logging

from streamlearn.errors import SourceError
from streamlearn.metrics import Metrics

log = logging.getLogger(__name__)

_LONGEST_S = 30.0


class Connection:
    """Of one source; another one, of the same stream, begins anew.

    Attributes:
        error: why the source is away.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._delay_s = 1.0
        self.error: str | None = None

    def lost(self, error: SourceError) -> float:
        """The source failed; returns for how long to leave it alone."""
        self._metrics.source_connected.set(0)
        if self.error != str(error):
            log.error("the source is away, and is tried again: %s", error)
            self.error = str(error)
        delay_s, self._delay_s = self._delay_s, min(2 * self._delay_s, _LONGEST_S)
        return delay_s

    def there(self) -> None:
        """The source answers."""
        self._metrics.source_connected.set(1)
        self._delay_s = 1.0
        if self.error is not None:
            log.info("the source is back")
            self.error = None
