"""What is told of decisions about eras, from the facts that eras give."""

from __future__ import annotations

from typing import Any

from streamlearn.era_decisions import decisions, sentence

MERGE = {"keep": 1, "absorb": 3, "why": "returns", "loss": -0.01, "judges": 24}


def era(number: int, **facts: Any) -> dict[str, Any]:
    common = {"sealed_step": 5, "reencoded": True, "absorbed": [], "merge": None, "readout": None, "mapped": None}
    return {"number": number, **common, **facts}


def told(eras: list[dict[str, Any]], number: int) -> list[str]:
    return [sentence(one) for one in decisions(eras, number)]


def test_what_becomes_of_an_era_with_its_reasons() -> None:
    eras = [
        era(1, mapped={"reader": 4, "loss": 0.0214, "judges": 64}, readout={"gain": 0.1, "judges": 64}),
        era(2, merge=MERGE | {"absorb": 2, "why": "cap"}),
        era(4, reencoded=False),
        era(5, sealed_step=None),
        era(6),
    ]
    assert told(eras, 1) == ["era 1 read by 4 (loss +0.021, 64 judges)"]
    assert decisions(eras, 1)[0]["readout"] == {"gain": 0.1, "judges": 64}
    assert told(eras, 2) == ["era 2 merging into 1 (cap: loss -0.010, 24 judges)"]
    assert [told(eras, n) for n in (4, 5, 6)] == [["era 4 encoding"], ["era 5 open"], ["era 6 encoded"]]
    assert told(eras, 7) == []


def test_an_era_that_is_part_of_another_is_followed_to_where_its_clips_are() -> None:
    eras = [era(1, absorbed=[MERGE, MERGE | {"absorb": 7, "keep": 3}])]
    assert told(eras, 7) == [
        "era 7 merged into 3 (returns: loss -0.010, 24 judges)",
        "era 3 merged into 1 (returns: loss -0.010, 24 judges)",
        "era 1 encoded",
    ]


def test_what_was_thought_of_is_told_before_what_was_done() -> None:
    sealing = {"pair": "encoders", "merits": {"served": 0.75, "encoders": 0.8125}, "judges": 24}
    none = {"other": 1, "loss": None, "at_most": None, "tolerated": None, "gone": None}
    refused = [
        none | {"why": "agree", "loss": 0.01, "at_most": 0.018, "tolerated": 0.012, "judges": 24},
        none | {"why": "returns", "loss": 0.25, "tolerated": 0.0, "judges": 24},
        none | {"other": 5, "why": "renewed", "loss": -0.1, "tolerated": 0.0, "judges": 24, "gone": 7},
    ]
    eras = [
        era(1, absorbed=[MERGE | {"sealing": sealing, "refused": refused[:1]}], sealing=None, refused=[]),
        era(2, sealing={"pair": "served", "merits": {}, "judges": 0}, refused=refused[1:]),
        era(4, refused=[none | {"why": "agree", "judges": 9}]),
    ]
    assert told(eras, 3) == [
        "era 3 sealed with the encoders (served 0.750, encoders 0.812, 24 judges)",
        "era 3 not made one with 1 (agree: loss +0.010, at most 0.018 where 0.012 may be, 24 judges)",
        "era 3 merged into 1 (returns: loss -0.010, 24 judges)",
        "era 1 encoded",
    ]
    assert told(eras, 2) == [
        "era 2 sealed with the served pair (0 judges)",
        "era 2 not made one with 1 (returns: loss +0.250, 24 judges)",
        "era 2 not made one with 5 (renewed: frames of 7 clips gone, loss -0.100, 24 judges)",
        "era 2 encoded",
    ]
    assert told(eras, 4)[0] == "era 4 not made one with 1 (agree: 9 judges are too few)"
