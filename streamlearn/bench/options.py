"""The command line's texts as what trials are made of, all of it looked at before the first clip is rendered.

A trial that fails in a worker would fail after hours of others. Every error names the option and what it may be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from streamlearn.bench.methods import learner_settings, method_of
from streamlearn.bench.schedule import BOUNDARIES, IID, order_of
from streamlearn.errors import SettingsError
from streamlearn.settings import DriftSettings, MediaSettings, ModelSettings, SearchSettings
from streamlearn.warmup import device_of

_SECTIONS = ("learner", "model", "drift", "search", "media")
#: Settings of the learner that each trial has of its own, and the option that says them.
_OWN = {"method": "--methods", "learning_rate": "--learning-rates", "seed": "--seeds"}


def read_seeds(text: str) -> list[int]:
    """Of `1,2,3`, each once.

    Raises:
        SettingsError: they are not all whole numbers from 0 on.
    """
    try:
        seeds = [int(part) for part in text.split(",")]
        if min(seeds) < 0:
            raise ValueError(text)
    except ValueError as error:
        raise SettingsError(
            f"--seeds {text}: write whole numbers from 0 on, separated by commas, as in 1,2,3"
        ) from error
    return list(dict.fromkeys(seeds))


def read_rates(text: str) -> list[float]:
    """Of `1e-4,2e-4`, each once.

    Raises:
        SettingsError: they are not all numbers above 0.
    """
    return list(dict.fromkeys(_rate(f"--learning-rates {text}", part) for part in text.split(",")))


def _rate(option: str, text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise SettingsError(f"{option}: a learning rate is a number above 0, as in 2e-4, not {text!r}")
    return rate


def read_boundaries(text: str) -> str:
    """One of `BOUNDARIES`.

    Raises:
        SettingsError: it is none.
    """
    if text not in BOUNDARIES:
        raise SettingsError(f"--boundaries {text}: must be one of {', '.join(BOUNDARIES)}")
    return text


def read_orders(text: str, domains: int) -> list[str]:
    """Of `forward,reverse`, each once however it is called, for a stream of so many domains.

    Raises:
        SettingsError: one is none.
    """
    names: dict[tuple[bool, tuple[int, ...]], str] = {}
    for name in map(str.strip, text.split(",")):
        try:
            names.setdefault((name == IID, order_of(name, domains)), name)
        except SettingsError as error:
            raise SettingsError(f"--orders {text}: {error}") from error
    return list(names.values())


def read_methods(text: str, common: Mapping[str, Any]) -> tuple[list[str], dict[str, float]]:
    """The methods of `NAME,NAME@RATE,...`, and the rates that were named.

    Args:
        text: what was written.
        common: settings of the learner that all methods share.

    Raises:
        SettingsError: there is no such method, it is there twice, or it cannot have these settings.
    """
    names: list[str] = []
    rates: dict[str, float] = {}
    for part in text.split(","):
        name, at, rate = part.strip().partition("@")
        if name in names:
            raise SettingsError(f"--methods {text}: {name} is there twice; a second rate is a run of its own")
        names.append(name)
        if at:
            rates[name] = _rate(f"--methods {part.strip()}: after @ comes a learning rate, as in {name}@2e-4", rate)
        try:
            learner_settings(method_of(name), dict(common), rates.get(name, 1e-4), 0)
        except SettingsError as error:
            raise SettingsError(f"--methods {text}: {error}") from error
        except ValidationError as error:
            raise SettingsError(f"--methods {text}: {_sentences('learner', error)}") from error
    return names, rates


def read_shared(pairs: Sequence[str], *, decoded: bool) -> dict[str, Any]:
    """What `--set` says, by section; those of the learner are looked at with each method.

    Args:
        pairs: `SECTION.NAME=VALUE` each.
        decoded: whether clips are decoded, as those of a stream's folders are, and not rendered.

    Raises:
        SettingsError: a setting is not known, wrong, or would do nothing; or there is no such device here.
    """
    shared: dict[str, Any] = {section: {} for section in _SECTIONS}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        section, dot, leaf = name.strip().partition(".")
        if not (equals and dot and section in shared):
            raise SettingsError(f"--set {pair}: write SECTION.NAME=VALUE, the section being one of {', '.join(shared)}")
        if section == "learner" and leaf in _OWN:
            raise SettingsError(f"--set {pair}: each trial has its own; give it by {_OWN[leaf]}")
        shared[section][leaf] = value
    if shared["media"] and not decoded:
        raise SettingsError("--set media: rendered clips are not decoded; it needs --stream")
    if "threads" in shared["model"]:
        raise SettingsError("--set model.threads: a trial has one thread; --workers says how many run at a time")
    if shared["drift"].get("detector", "mean_shift") != "mean_shift":
        raise SettingsError(
            f"--set drift.detector={shared['drift']['detector']}: the benchmark's detector is mean_shift;"
            " `streamlearn tasks tune` tries others"
        )
    kinds = {"model": ModelSettings, "drift": DriftSettings, "search": SearchSettings, "media": MediaSettings}
    for section, kind in kinds.items():
        try:
            kind(**shared[section])
        except ValidationError as error:
            raise SettingsError(f"--set: {_sentences(section, error)}") from error
    device_of(shared["model"].get("device", "cpu"))
    return shared


def _sentences(section: str, error: ValidationError) -> str:
    """As the daemon says them; a rule between settings begins with the name of one."""
    out = []
    for each in error.errors():
        message = each["msg"].removeprefix("Value error, ")
        where = ".".join(map(str, each["loc"]))
        out.append(f"{section}.{where}: {message}" if where else f"{section}.{message}")
    return "; ".join(out)
