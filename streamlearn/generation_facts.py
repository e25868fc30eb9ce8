"""What is said of generations, from their manifests alone: a list, and how two of them differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from streamlearn.checkpoint import Generations
from streamlearn.errors import StateError
from streamlearn.retention import Retention
from streamlearn.settings import CheckpointSettings


def retention(settings: CheckpointSettings) -> Retention:
    """The settings as the checkpoints want them."""
    return Retention(settings.keep, settings.keep_age_s, settings.keep_bytes)


def overview(generations: Generations) -> list[dict[str, Any]]:
    """What is kept, newest first; one that is damaged says so."""
    out = []
    current = generations.current()
    for number in reversed(generations.numbers()):
        try:
            manifest = generations.manifest(number)
            about = generations.describe(number)
        except (StateError, OSError) as error:
            if number in generations.numbers():  # else it was pruned just now
                out.append({"number": number, "damaged": str(error)})
            continue
        state = manifest["state"]
        out.append(
            {
                "number": number,
                "created": manifest["created"],
                "current": number == current,
                "pinned": about.pinned,
                "clips": state["clips"],
                "tasks": len({task["name"] for task in state["tasks"]["tasks"]}),
                "eras": len(state["eras"]),
                "bytes": about.bytes_used,
                "lineage": state["lineage"][:8],
                "rolled_back_to": state["parent"]["generation"] if about.cut != number else None,
            }
        )
    return out


def compared(
    generations: Generations, changes: Callable[[int, int], dict[str, int]], older: int, newer: int
) -> dict[str, Any]:
    """What two generations do not have in common, in their manifests and in what they find.

    Args:
        generations: of a state directory.
        changes: between two cuts of its catalog, `Catalog.changes`.
        older: number of the one.
        newer: and of the other; they may be asked for the other way round.

    Raises:
        StateError: a manifest is damaged, or gone.
    """
    a, b = (generations.manifest(number) for number in (older, newer))
    cuts = [manifest.get("cut", manifest["number"]) for manifest in (a, b)]
    index = changes(min(cuts), max(cuts))
    if cuts[0] > cuts[1]:  # asked the other way round
        index["clips_added"], index["clips_removed"] = index["clips_removed"], index["clips_added"]
    return {**difference(a, b), "index": index}


def difference(older: Mapping[str, Any], newer: Mapping[str, Any]) -> dict[str, Any]:
    """What two manifests do not have in common, older to newer."""
    a, b = older["state"], newer["state"]
    tasks = [{task["name"] for task in state["tasks"]["tasks"]} for state in (a, b)]
    eras = [{era["number"] for era in state["eras"]} for state in (a, b)]
    files = [manifest["sha256"] for manifest in (older, newer)]
    offsets = [{f"{t}/{p}": offset for t, p, offset in manifest["offsets"]} for manifest in (older, newer)]
    recall = [
        {
            f"{task}/{direction}/{view}": course["now"]
            for task, direction, k, view, course in state["book"]["series"]
            if k == 5
        }
        for state in (a, b)
    ]
    return {
        "generations": [older["number"], newer["number"]],
        "same_lineage": a["lineage"] == b["lineage"],
        "clips": {name: b["counts"].get(name, 0) - a["counts"].get(name, 0) for name in b["counts"]},
        "tasks": {"added": sorted(tasks[1] - tasks[0]), "removed": sorted(tasks[0] - tasks[1])},
        "eras": {"added": sorted(eras[1] - eras[0]), "removed": sorted(eras[0] - eras[1])},
        "offsets": {
            name: [offsets[0].get(name), offset]
            for name, offset in offsets[1].items()
            if offset != offsets[0].get(name)
        },
        "recall_at_5": {
            cell: [recall[0].get(cell), value] for cell, value in recall[1].items() if value != recall[0].get(cell)
        },
        "files": sorted(name for name in {*files[0], *files[1]} if files[0].get(name) != files[1].get(name)),
    }
