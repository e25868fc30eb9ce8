"""What is decided of eras: their weights and readouts, how many there may be, and how many pairs. Notes it on them."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from streamlearn.encoders import Towers
from streamlearn.era import Era
from streamlearn.era_clips import EraClips
from streamlearn.era_judges import Judges, Sealing, knows
from streamlearn.era_maps import Mapped, MappedEncoder, choose, fitted, stand_in, text_map
from streamlearn.era_merge import Merge, Merger, Refusal
from streamlearn.era_readout import judged, through_readout
from streamlearn.era_view import QueryEncoder
from streamlearn.records import Frames, Vectors
from streamlearn.settings import SearchSettings
from streamlearn.snapshots import Weights

log = logging.getLogger(__name__)

_MOST_GONE = 0.1  # of an era's clips, for it to be renewed


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

    def better(self, era: Era, snapshot: Weights, served: Towers) -> Mapping[str, Tensor]:
        """Which of a snapshot's weights an era is sealed with.

        Returns:
            The momentum pair's, or the encoders' where held-out clips say that it still lags behind them.
        """
        texts, films = self._clips.asked(era)
        if films is None:
            era.sealing = Sealing("served", {}, 0)
            return snapshot.local
        towers, merits = served.frozen_copy(), dict[str, float]()
        for name, state in (("served", snapshot.local), ("encoders", snapshot.online)):
            towers.load_state_dict(state)
            merits[name] = knows(QueryEncoder(towers), texts, films)
        behind = merits["served"] < merits["encoders"]
        era.sealing = Sealing("encoders" if behind else "served", merits, len(texts))
        log.info("era %d of %s: %s", era.number, era.task, era.sealing)
        return snapshot.online if behind else snapshot.local

    def join(self, era: Era, eras: Sequence[Era]) -> None:
        """Have an era that was just sealed and earlier ones become one: where its task returned, or never began.

        Args:
            era: the one.
            eras: all of them, the current one last.
        """
        self._returns(era, eras)
        if era.into is None and self._settings.merge_loss:
            self._agrees(era, eras)

    def _returns(self, era: Era, eras: Sequence[Era]) -> None:
        """Have eras of one task become one, where the pair of one knows the clips of the other at least as well.

        They are then encoded by that pair and lie beside each other, as they score alike. The era that was just sealed
        goes back into an earlier one; else earlier ones are renewed: they go into it.
        """
        earlier = [e for e in eras if e.number < era.number and era.task in e.tasks]
        earlier = [e for e in earlier if not e.closing]
        texts, films = self._clips.asked(era) if earlier else ([], None)
        if films is None or self._take_back(era, earlier, texts, films):
            return  # a visit too short to be asked about renews nothing
        needed = {e.mapped.reader for e in eras if e.mapped is not None} | _needed(eras)
        for old in earlier:
            # Not one that only took its own in: the later pair is not asked to know other tasks.
            if old.number not in needed and old.task == era.task:
                self._renew(old, era)

    def _agrees(self, era: Era, eras: Sequence[Era]) -> None:
        """Have an era and the one before it become one, where the boundary between them was superfluous.

        It is asked once, before there are maps of the era's pair. The earlier one may read for others, which the pair
        that stays does then.
        """
        before = next((e for e in eras if e.holds(era.number - 1)), None)
        if before is not None and before.into is not None:
            before = before.into  # which stays
        if before is None or before is era:
            return
        sealed, needed = [e for e in eras[:-1] if e.into is None], _needed(eras)
        both = ((before, era), (era, before))
        orders = [(keep, absorb) for keep, absorb in both if keep.mapped is None and absorb.number not in needed]
        if not orders:
            return
        borrow = [e for e in sealed if e.mapped is not None and e.mapped.reader == before.number]
        said = {e.number: self._clips.said(e) for e in (sealed if borrow else ())}
        assert era.encoder is not None
        reader = era.encoder.reader
        maps = {e.number: text_map(e, said[e.number], stand_in(said.values()), reader) for e in borrow}
        read = {number: MappedEncoder(reader, of_texts) for number, of_texts in maps.items()}
        most_loss = self._settings.merge_loss
        merge = self._merger.superfluous(sealed, self._judges(sealed), orders, most_loss, read=read)
        if isinstance(merge, Refusal):
            era.refuse(before, merge)
            return
        if merge.absorb == before.number:
            for other in borrow:
                assert other.mapped is not None
                self._read_by(reader, other, maps[other.number], replace(other.mapped, reader=era.number), sealed)
        self._begin(merge, sealed)

    def _take_back(self, era: Era, earlier: Sequence[Era], texts: Sequence[str], films: Frames) -> bool:
        encoders = {e.number: e.encoder.reader for e in (*earlier, era) if e.encoder is not None and e.mapped is None}
        if len(encoders) < 2:
            return False
        merit = {number: knows(encoder, texts, films) for number, encoder in encoders.items()}
        best = max((e for e in earlier if e.number in merit), key=lambda e: merit[e.number])
        loss = merit[era.number] - merit[best.number]
        if loss > 0:
            era.refuse(best, Refusal("returns", len(texts), loss, tolerated=0.0))
        else:
            era.into, era.merge = best, Merge(best.number, era.number, "returns", loss, len(texts))
            log.info("era %d of %s goes back into era %d: %s", era.number, era.task, best.number, era.merge)
        return loss <= 0

    def _renew(self, old: Era, era: Era) -> None:
        assert era.encoder is not None
        texts, films, now = self._clips.as_read(old)
        if films is None:
            return
        loss = now - knows(era.encoder, texts, films)
        if loss > 0:
            old.refuse(era, Refusal("renewed", len(texts), loss, tolerated=0.0))
        else:
            old.into, old.merge = era, Merge(era.number, old.number, "renewed", loss, len(texts))
            old.pending, old.reencoded = deque(old.partition.view().rows.tolist()), {}
            log.info("era %d of %s is renewed in era %d: %s", old.number, old.task, era.number, old.merge)

    def give_up(self, era: Era) -> bool:
        """Have an era that was to be renewed stay as it is, where the frames of too many clips went while it waited.

        How the later pair would see those can only be guessed, and the era's own reads them well.
        """
        if not era.renewing:
            return False
        rows = era.partition.view().rows
        gone = len(rows) - int(np.isin(rows, list(era.reencoded)).sum())
        if gone <= _MOST_GONE * len(rows):
            return False
        assert era.merge is not None
        assert era.into is not None
        era.refuse(era.into, Refusal("renewed", era.merge.judges, era.merge.loss, tolerated=0.0, gone=gone))
        era.into, era.merge, era.reencoded = None, None, {}
        return True

    def read_out(self, eras: Sequence[Era]) -> None:
        """Read all eras whose vectors are final through their readouts, unless held-out clips are then found worse.

        Those that have no pair any more stay as they were when it went.

        Args:
            eras: all of them, the current one last.
        """
        sealed = [era for era in eras[:-1] if era.into is None]
        final = [era for era in sealed if era.encoder is not None and era.mapped is None and not era.pending]
        plain, read_out = dict[int, QueryEncoder](), dict[int, QueryEncoder]()
        for era in final:
            assert era.encoder is not None
            captions, clips = self._clips.pairs(era)
            plain[era.number] = era.encoder.reader
            if len(captions):  # all may be deleted
                read_out[era.number] = through_readout(era.encoder.reader, captions, clips)
        said = {era.number: self._clips.said(era) for era in sealed}
        readout = judged(sealed, said, plain, plain | read_out, self._settings.familiarity_weight) if plain else None
        log.info("eras %s through readouts: %s", sorted(read_out), readout)
        readings = plain | read_out if readout is not None and readout.helps else plain
        for era in sealed:
            era.readout = readout
        for era in final:
            era.encoder = readings[era.number]

    def keep(self, eras: Sequence[Era]) -> None:
        """Drop pairs that are too many, and have two eras merged where there are too many.

        Args:
            eras: all of them, the current one last.
        """
        sealed, needed = [era for era in eras[:-1] if era.into is None], _needed(eras)
        self._map(sealed, needed)
        going = [era for era in eras if era.into is not None]
        # One at a time. But renewals may take long, and the bound holds meanwhile, of the eras that they leave alone.
        if all(era.renewing for era in going) and len(sealed) + 1 > self._settings.max_eras:
            free = [era for era in sealed if era.number not in needed]
            self._begin(self._merger.cheapest(free, self._judges(free)), free)

    def _map(self, sealed: Sequence[Era], needed: Collection[int]) -> None:
        most, by_number = self._settings.max_encoders, {era.number: era for era in sealed}
        while sum(era.mapped is None for era in sealed) > most:
            free = [era.number for era in sealed if not era.pending and era.number not in needed]
            said = {era.number: self._clips.said(era) for era in sealed}
            choice = choose(sealed, said, free, most, self._settings.familiarity_weight)
            if choice is None:
                return
            encoder = by_number[choice.mapped.reader].encoder
            assert encoder is not None
            for number, of_texts in choice.maps.items():
                self._read_by(encoder.reader, by_number[number], of_texts, choice.mapped, sealed)
            log.info("era %d has no pair of its own any more: %s", choice.era, choice.mapped)

    def _read_by(
        self, reader: QueryEncoder, era: Era, of_texts: Vectors, mapped: Mapped, sealed: Sequence[Era]
    ) -> None:
        of_clips = fitted(*self._clips.seen(era, reader, sealed))
        era.captions = era.known
        era.encoder, era.mapped = MappedEncoder(reader, of_texts, of_clips), mapped

    def _judges(self, sealed: Sequence[Era]) -> dict[int, Judges]:
        return {era.number: self._clips.judges(era) for era in sealed}

    def _begin(self, merge: Merge | None, sealed: Sequence[Era]) -> None:
        if merge is not None:
            absorb, keep = (next(e for e in sealed if e.number == n) for n in (merge.absorb, merge.keep))
            absorb.into, absorb.merge = keep, merge
            if self._settings.merge_vectors == "encode":
                absorb.pending, absorb.reencoded = deque(absorb.partition.view().rows.tolist()), {}
            log.info("era %d of %s goes into era %d: %s", absorb.number, absorb.task, keep.number, merge)


def _needed(eras: Sequence[Era]) -> set[int]:
    """Eras whose pairs must stay while others go: those that these go into, and those that read for them."""
    going = [era for era in eras if era.into is not None]
    readers = {era.mapped.reader for era in going if era.mapped is not None}
    return readers | {era.into.number for era in going if era.into is not None}
