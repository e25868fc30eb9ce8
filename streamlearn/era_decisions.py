"""What was decided about an era once its task had ended, and why: for whoever operates, from what a manifest says too.

Decides nothing; `eras`, `era_bounds` and their judges did.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Facts = Mapping[str, Any]


def decisions(eras: Sequence[Facts], number: int) -> list[dict[str, Any]]:
    """Of one era, in the order of their effect.

    Args:
        eras: what each era that there is says of itself (`Era.facts`).
        number: of the era that is asked about; it may have become part of another.

    Returns:
        For each its `era` and what became of it, `decision`: "merged" `into` another or "merging", "mapped" `to` the
        pair of another, "encoding" or "encoded" anew with its own, "open". A `why` ("cap", "agree", "returns",
        "renewed"), a `loss` of mean reciprocal rank and how many `judges` found it, where that was measured; a
        `readout` with its `gain` likewise.
    """
    out: list[dict[str, Any]] = []
    absorbed = {one["absorb"]: one for era in eras for one in era["absorbed"]}
    while (merge := absorbed.get(number)) is not None:
        out.append(_merged("merged", merge))
        number = merge["keep"]
    era = next((one for one in eras if one["number"] == number), None)
    if era is None:
        return out
    if era["merge"]:
        return [*out, _merged("merging", era["merge"])]
    facts: dict[str, Any] = {"era": number}
    if era["sealed_step"] is None:
        facts |= {"decision": "open"}
    elif not era["reencoded"]:
        facts |= {"decision": "encoding"}
    elif mapped := era["mapped"]:
        facts |= {"decision": "mapped", "to": mapped["reader"], "loss": mapped["loss"], "judges": mapped["judges"]}
    else:
        facts |= {"decision": "encoded"}
    return [*out, facts | {"readout": era["readout"] or None}]


def sentence(decision: Facts) -> str:
    """One decision for a line of a table."""
    era, what = decision["era"], decision["decision"]
    known = f"loss {decision['loss']:+.3f}, {decision['judges']} judges" if "loss" in decision else ""
    if what in ("merged", "merging"):
        return f"era {era} {what} into {decision['into']} ({decision['why']}: {known})"
    if what == "mapped":
        return f"era {era} read by {decision['to']} ({known})"
    return f"era {era} {what}"


def _merged(what: str, merge: Facts) -> dict[str, Any]:
    told = {name: merge[name] for name in ("why", "loss", "judges")}
    return {"era": merge["absorb"], "decision": what, "into": merge["keep"], **told}
