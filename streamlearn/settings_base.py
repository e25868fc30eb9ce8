"""What every section of the settings has in common."""

from __future__ import annotations

import json
from typing import Any, get_origin

from pydantic import BaseModel, ConfigDict, model_validator


class Section(BaseModel):
    """A part of the tree; unknown keys are errors, so that a typing slip is not silently a default."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)

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
