"""What every section of the settings has in common."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, get_origin

from pydantic import BaseModel, ConfigDict, model_validator

from streamlearn.errors import without_logins


class Section(BaseModel):
    """A part of the tree; unknown keys are errors, so that a typing slip is not silently a default."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, values: Any) -> Any:
        """Environment variables are text: lists come as `a,b` or JSON, maps as JSON."""
        if not isinstance(values, dict):
            return values
        return {
            name: parse(cls.model_fields[name].annotation, v) if name in cls.model_fields else v
            for name, v in values.items()
        }


def parse(annotation: Any, value: Any) -> Any:
    """Text into a list or a map, where the annotation asks for one; anything else as it is."""
    kind = get_origin(annotation)
    if not isinstance(value, str) or kind not in (list, dict):
        return value
    if kind is dict or value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            return value  # of the wrong type: pydantic says so, and names the field
    return [part.strip() for part in value.split(",") if part.strip()]


_SECRET = re.compile(
    r"pass(word|wd)?|pwd|secret|token|credential|authori[sz]ation|basic[_.-]?auth|user[_.-]?info|jaas"
    r"|(api|access|private)[_.-]?key",
    re.IGNORECASE,
)


def is_secret(name: str) -> bool:
    """Whether a setting or an option of this name is not to be shown."""
    return _SECRET.search(name) is not None


def masked(value: Any) -> Any:
    """A value as it may be shown: nothing whose name or form says that it is a secret."""
    if isinstance(value, Mapping):
        return {name: "***" if is_secret(name) else masked(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [masked(inner) for inner in value]
    return without_logins(value) if isinstance(value, str) else value
