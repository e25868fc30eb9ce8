"""Keeps eras within bounds: so many of them, and so many pairs of encoders. Decides, and notes it on the eras."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence

from streamlearn.era import Era
from streamlearn.era_clips import EraClips
from streamlearn.era_maps import MappedEncoder, choose, fitted
from streamlearn.era_merge import Merger
from streamlearn.settings import SearchSettings

log = logging.getLogger(__name__)


class EraBounds:
    """See the module; only the pipeline thread calls it.

    Args:
        clips: what eras are judged by.
        settings: the bounds.
    """

    def __init__(self, clips: EraClips, settings: SearchSettings) -> None:
        self._clips, self._settings = clips, settings
        self._merger = Merger(settings.familiarity_weight, settings.merge_vectors)

    def forget(self, number: int) -> None:
        """An era is gone, or its clips are others."""
        self._merger.forget(number)

    def keep(self, eras: Sequence[Era]) -> None:
        """Drop pairs that are too many, and have two eras merged where there are too many or where two agree.

        Args:
            eras: all of them, the current one last.
        """
        self._map(eras[:-1])
        if not any(era.into is not None for era in eras):  # one at a time
            self._merge(eras[:-1])

    def _map(self, sealed: Sequence[Era]) -> None:
        most, by_number = self._settings.max_encoders, {era.number: era for era in sealed}
        while sum(era.mapped is None for era in sealed) > most:
            # Without a caption of its own nothing says how another encoder is to be turned.
            free = [e.number for e in sealed if not e.pending and e.into is None and len(e.caption_rows)]
            said = {era.number: self._clips.said(era) for era in sealed}
            choice = choose(sealed, said, free, most, self._settings.familiarity_weight)
            if choice is None:
                return
            reader = by_number[choice.mapped.reader].encoder
            assert reader is not None
            for number, of_texts in choice.maps.items():
                era = by_number[number]
                of_clips = fitted(*self._clips.seen(era, reader))
                era.encoder, era.mapped = MappedEncoder(reader, of_texts, of_clips), choice.mapped
            log.info("era %d has no pair of its own any more: %s", choice.era, choice.mapped)

    def _merge(self, sealed: Sequence[Era]) -> None:
        settings, over = self._settings, len(sealed) + 1 > self._settings.max_eras
        if len(sealed) < 2 or not (over or settings.merge_loss is not None):
            return
        judges = {era.number: self._clips.judges(era) for era in sealed}
        if over:
            merge = self._merger.cheapest(sealed, judges)
        else:
            assert settings.merge_loss is not None
            merge = self._merger.superfluous(sealed, judges, settings.merge_loss)
        if merge is not None:
            absorb, keep = (next(e for e in sealed if e.number == n) for n in (merge.absorb, merge.keep))
            absorb.into, absorb.merge = keep, merge
            if settings.merge_vectors == "encode":
                absorb.pending, absorb.reencoded = deque(absorb.partition.view().rows.tolist()), {}
            log.info("era %d of %s goes into era %d: %s", absorb.number, absorb.task, keep.number, merge)
