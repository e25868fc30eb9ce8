"""What was decided about an era once its task had ended, and why: for whoever operates, from what a manifest says too.

Decides nothing; `eras`, `era_bounds` and their judges did.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Facts = Mapping[str, Any]

_PAIRS = {"served": "served pair", "encoders": "encoders"}


def decisions(eras: Sequence[Facts], number: int) -> list[dict[str, Any]]:
    """Of one era, in the order of their effect.

    Args:
        eras: what each era that there is says of itself (`Era.facts`).
        number: of the era that is asked about; it may have become part of another.

    Returns:
        For each its `era` and what was done, `decision`: "sealed" with a `pair` and the `merits` of both; "refused",
        to become one `with` another; "merged" `into` another or "merging"; "mapped" `to` the pair of another;
        "encoding" or "encoded" anew with its own; "open". A `why` ("cap", "agree", "returns", "renewed"), a `loss` of
        mean reciprocal rank and how many `judges` found it, where that was measured; a `readout` with its `gain`.
    """
    out: list[dict[str, Any]] = []
    absorbed = {one["absorb"]: one for era in eras for one in era["absorbed"]}
    while (merge := absorbed.get(number)) is not None:
        out += [*_before(number, merge), _merged("merged", merge)]
        number = merge["keep"]
    era = next((one for one in eras if one["number"] == number), None)
    if era is None:
        return out
    out += _before(number, era)
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
    known = [f"{decision['judges']} judges"] if decision.get("judges") is not None else []
    if what == "sealed":
        merits = [f"{pair} {merit:.3f}" for pair, merit in decision["merits"].items()]
        return (
            f"era {era} sealed with the {_PAIRS.get(decision['pair'], decision['pair'])} ({', '.join(merits + known)})"
        )
    if decision.get("loss") is not None:
        known.insert(0, f"loss {decision['loss']:+.3f}")
    if what == "refused":
        if decision["loss"] is None:
            known[0] += " are too few"
        if decision.get("at_most") is not None:
            known[0] += f", at most {decision['at_most']:.3f} where {decision['tolerated']:.3f} may be"
        if decision["gone"]:
            known.insert(0, f"frames of {decision['gone']} clips gone")
        return f"era {era} not made one with {decision['with']} ({decision['why']}: {', '.join(known)})"
    if what in ("merged", "merging"):
        return f"era {era} {what} into {decision['into']} ({decision['why']}: {', '.join(known)})"
    if what == "mapped":
        return f"era {era} read by {decision['to']} ({', '.join(known)})"
    return f"era {era} {what}"


def _before(number: int, facts: Facts) -> list[dict[str, Any]]:
    """What was decided of an era before it became what it is; an older version told nothing of it."""
    out: list[dict[str, Any]] = []
    if sealing := facts.get("sealing"):
        out.append({"era": number, "decision": "sealed", **sealing})
    for refusal in facts.get("refused", ()):
        told = {name: value for name, value in refusal.items() if name != "other"}
        out.append({"era": number, "decision": "refused", "with": refusal["other"], **told})
    return out


def _merged(what: str, merge: Facts) -> dict[str, Any]:
    told = {name: merge[name] for name in ("why", "loss", "judges")}
    return {"era": merge["absorb"], "decision": what, "into": merge["keep"], **told}
