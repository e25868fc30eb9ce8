"""Which vectors may meet which weights: the chain of lineages of a catalog, and what else must be as it was.

A lineage is one run of learning, from its start or from the generation that a rollback went back to. Steps are counted
within it, so a lineage and a step name weights. Knows no files and no models, only what was written about them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from streamlearn.errors import StateError

#: Lineages of a catalog's vectors, oldest first, each with the cut at which it left the one before it.
Chain = Sequence[tuple[str, int]]


def joined(chain: Chain, lineage: str, cut: int, parent: str | None) -> list[tuple[str, int]]:
    """The chain once the weights of a generation are the present.

    Args:
        chain: of the catalog; empty in a new one.
        lineage: of the generation.
        cut: of the catalog, that goes with it.
        parent: the lineage that it left at this cut, where it is a rollback's.

    Raises:
        StateError: the vectors in the catalog were made by other weights.
    """
    for name in (lineage, parent):
        at = next((i for i, (known, _) in enumerate(chain) if known == name), None)
        if at is not None and (at + 1 == len(chain) or cut <= chain[at + 1][1]):
            return [*chain[: at + 1], *([] if name == lineage else [(lineage, cut)])]
    if not chain:
        return [(lineage, 0)]
    raise StateError(
        f"catalog.db holds vectors of lineage {chain[-1][0][:8]}, the generation is of {lineage[:8]}: they do not"
        " belong together; restore both from the same backup"
    )


@dataclass(frozen=True)
class Reading:
    """How clips and words are read before they are encoded: what else, beside weights, a vector depends on.

    Attributes:
        media: settings that decide which frames are seen. Vectors made otherwise are a little off, no more.
        model: what the towers' files say of pixels and words. Of another tokenizer, every stored text encoder is
            asked for words that it never learned.
        carry: whether vectors of other media settings may stay.
    """

    media: Mapping[str, Any]
    model: Mapping[str, Any]
    carry: bool = False

    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        return {"media": dict(self.media), "model": dict(self.model)}

    def fingerprint(self, towers: str) -> str:
        """Hash of this and of the towers' fingerprint: of two that differ, vectors were made otherwise."""
        return hashlib.sha256(json.dumps([towers, self.facts()], sort_keys=True).encode()).hexdigest()[:16]

    def carried(self, written: Mapping[str, Any], state_dir: object) -> dict[str, str]:
        """What differs from what was written down and is carried over; what was not written down counts as equal.

        Raises:
            StateError: it may not be carried over; the sentence names the setting and the remedies.
        """
        media, model = (_differences(written.get(part, {}), getattr(self, part)) for part in ("media", "model"))
        facts = ", ".join(f"{name} = {now!r} (was {then!r})" for name, (then, now) in {**model, **media}.items())
        if model:
            raise StateError(
                f"{facts}: {state_dir} was written with other files under the same names; put those back, or take"
                " another state_dir"
            )
        if media and not self.carry:
            back = ", ".join(f"{name}={then}" for name, (then, _) in media.items())
            raise StateError(
                f"{facts}: the vectors in {state_dir} were made otherwise; set it back ({back}), take another"
                " state_dir, or let them stay as they are and be counted: `streamlearn run --on-mismatch carry`"
            )
        return {name: f"{then!r} to {now!r}" for name, (then, now) in media.items()}


def _differences(written: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {name: (written[name], value) for name, value in now.items() if name in written and written[name] != value}
