"""The methods that are compared, each as settings of the one learner, and the learning rate that matches speeds.

A method is written NAME, NAME+replayN, or either followed by
:SETTING=VALUE&SETTING=VALUE, as in bmu:global_momentum=3200 clips&global_pull=9600 clips.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from streamlearn.errors import SettingsError
from streamlearn.settings import LearnerSettings


@dataclass(frozen=True)
class Method:
    """How one method differs from the learner's defaults.

    Attributes:
        name: as it is written in reports.
        settings: of the learner.
        meaning: for the report's legend.
        slowed_as: the learning rate is multiplied by the long-run speed of a learner with these settings.
        restarts: at each boundary all weights start again from the warm start: a model a task, the control.
        rate_of: the method whose learning rate a control takes.
    """

    name: str
    settings: dict[str, Any]
    meaning: str
    slowed_as: dict[str, Any] = field(default_factory=dict)
    restarts: bool = False
    rate_of: str = ""


_LOCAL = {"method": "bmu", "global_pair": False}
_KNOWN = (
    Method("inbatch", {"method": "inbatch"}, "InfoNCE within the batch; its local copy is a plain average (EMA)"),
    Method("moco", {"method": "moco"}, "Base-MoCo: momentum keys and a queue, no way back"),
    Method(
        "moco-matched",
        {"method": "moco"},
        "Base-MoCo at BMU local's long-run speed",
        slowed_as=_LOCAL,
        rate_of="bmu-local",
    ),
    Method("bmu-local", _LOCAL, "bidirectional momentum, the local pair alone"),
    Method("bmu", {"method": "bmu", "global_pair": True}, "bidirectional momentum, local and global pair"),
    Method("lwf", {"method": "lwf"}, "Base-MoCo and distillation from the pair of the last boundary"),
    Method("ctp", {"method": "ctp"}, "compatible momentum"),
    Method(
        "restart",
        {"method": "moco"},
        "weights restarted from the warm start at each boundary",
        restarts=True,
        rate_of="moco",
    ),
)
METHODS = {method.name: method for method in _KNOWN}


def method_of(text: str) -> Method:
    """The method that a text names.

    Raises:
        SettingsError: there is none of that name, or it is not followed by settings.
    """
    head, colon, tail = text.partition(":")
    name, plus, replay = head.partition("+")
    if name not in METHODS:
        raise SettingsError(f"method {text!r}: must begin with one of {', '.join(METHODS)}")
    known = METHODS[name]
    changes: dict[str, Any] = {}
    if plus:
        number = replay.removeprefix("replay")
        if not replay.startswith("replay") or not number.isdecimal():
            raise SettingsError(f"method {text!r}: after + comes replay and a number of clips, as in {name}+replay500")
        changes["replay_clips"] = int(number)
    for pair in tail.split("&") if colon else ():
        setting, equals, value = pair.partition("=")
        if not equals:
            raise SettingsError(f"method {text!r}: after the colon come SETTING=VALUE pairs, separated by &")
        name = setting.strip()
        if name in ("learning_rate", "seed"):
            raise SettingsError(f"method {text!r}: each trial has its own {name}; a rate comes last, as in @2e-4")
        changes[name] = value.strip()
    return Method(text, known.settings | changes, known.meaning, known.slowed_as, known.restarts, known.rate_of)


def learner_settings(method: Method, common: dict[str, Any], learning_rate: float, seed: int) -> LearnerSettings:
    """The learner's settings of one trial.

    Args:
        method: from `method_of`.
        common: settings that all methods share.
        learning_rate: nominal; slowed down where the method is a control.
        seed: of everything random.

    Raises:
        ValueError: a setting is not valid; pydantic says which.
    """
    if method.slowed_as:
        learning_rate *= LearnerSettings(**common | method.slowed_as).speed
    return LearnerSettings(**common | method.settings | {"learning_rate": learning_rate, "seed": seed})
