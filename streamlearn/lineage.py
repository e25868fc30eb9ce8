"""Which vectors may meet which weights: the chain of lineages of a catalog, and what else must be as it was.

A lineage is one run of learning, from its start or from the generation that a rollback went back to. Steps are counted
within it, so a lineage and a step name weights. Knows no files and no models, only what was written about them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def differences(written: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What of the preprocessing is not as it was: setting, then and now. What was not written down counts as equal."""
    return {name: (written[name], value) for name, value in now.items() if name in written and written[name] != value}


def refusal(changed: Mapping[str, tuple[Any, Any]], state_dir: object) -> str:
    """The sentence on changed preprocessing, with the remedies."""
    facts = ", ".join(f"{name} = {now!r} (was {then!r})" for name, (then, now) in changed.items())
    back = ", ".join(f"{name}={then}" for name, (then, _) in changed.items())
    return (
        f"{facts}: the vectors in {state_dir} were made otherwise. Set it back ({back}), take another state_dir, or let"
        " them stay as they are and be counted: `streamlearn run --on-mismatch carry`"
    )
