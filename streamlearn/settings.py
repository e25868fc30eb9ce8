"""Every setting, once. Defaults < TOML file < environment (`STREAMLEARN_KAFKA__TOPICS`) < flags.

Units are in the names. A field's description is its documentation: `streamlearn config show --defaults` and
docs/settings.md are made from it. The sections are in `settings_sources`, `settings_learning` and `settings_serving`;
only `app.py` and the command line read this tree.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_origin

from pydantic import Field, ValidationError, field_serializer, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource
from pydantic_settings.exceptions import SettingsError as SettingsSourceError

from streamlearn.errors import SettingsError
from streamlearn.settings_base import Section, is_secret, masked, parse
from streamlearn.settings_learning import DriftSettings, LearnerSettings, ModelSettings, Momentum, momentum_horizon
from streamlearn.settings_serving import ApiSettings, CheckpointSettings, EvaluateSettings, LogSettings, SearchSettings
from streamlearn.settings_sources import FolderSettings, KafkaSettings, MediaSettings

__all__ = [
    "ApiSettings",
    "CheckpointSettings",
    "DriftSettings",
    "EvaluateSettings",
    "FolderSettings",
    "KafkaSettings",
    "LearnerSettings",
    "LogSettings",
    "MediaSettings",
    "ModelSettings",
    "Momentum",
    "SearchSettings",
    "Section",
    "Settings",
    "describe",
    "load",
    "momentum_horizon",
]

_UNKNOWN = ": there is no such setting; `streamlearn config show --defaults` lists them all"


class Settings(BaseSettings):
    """The whole tree."""

    model_config = SettingsConfigDict(
        enable_decoding=False,
        env_prefix="STREAMLEARN_",
        env_nested_delimiter="__",
        extra="forbid",
        validate_default=True,
        hide_input_in_errors=True,
        nested_model_default_partial_update=True,
    )

    state_dir: Path = Field(Path("state"), description="Where everything that must survive is kept.")
    source: str = Field(
        "streamlearn.connectors.folder:FolderSource",
        description="Import string of the source class; streamlearn.connectors.kafka:KafkaSource ships too.",
    )
    source_options: dict[str, Any] = Field({}, description="For a source of your own: its from_settings reads them.")
    folder: FolderSettings = FolderSettings()
    kafka: KafkaSettings = KafkaSettings()
    media: MediaSettings = MediaSettings()
    model: ModelSettings = ModelSettings()
    learner: LearnerSettings = LearnerSettings()
    drift: DriftSettings = DriftSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    search: SearchSettings = SearchSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    api: ApiSettings = ApiSettings()
    log: LogSettings = LogSettings()

    @field_validator("source_options", mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return parse(dict[str, Any], value)

    @field_serializer("source_options")
    def _masked(self, options: dict[str, Any]) -> Any:
        return masked(options)


def load(config: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read the tree.

    Args:
        config: a TOML file; the environment's `STREAMLEARN_CONFIG` names one where this is None.
        overrides: dotted names to values, from flags; they win over everything.

    Raises:
        SettingsError: names the field, the value and what would be right.
    """
    if config is None and os.environ.get("STREAMLEARN_CONFIG"):
        config = Path(os.environ["STREAMLEARN_CONFIG"])
    if config is not None and not config.is_file():
        raise SettingsError(f"{config}: there is no such settings file")

    class Sources(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, config)

    flags: dict[str, Any] = {}
    for name, value in (overrides or {}).items():
        *sections, leaf = name.split(".")
        node = flags
        for section in sections:
            node = node.setdefault(section, {})
            if not isinstance(node, dict):
                raise SettingsError(f"{name}: {section} was given a value of its own; give one or the other")
        node[leaf] = value
    _refuse_unknown_sections()
    try:
        return Sources(**flags)
    except ValidationError as error:
        # Not `from error`: it knows all settings, and a traceback would print them.
        raise SettingsError("\n".join(_sentence(e) for e in error.errors())) from None
    except (SettingsSourceError, tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise SettingsError(f"{config or 'environment'}: {error}") from error


_NO_SETTINGS = ("config", "url", "token")  # which file to read; which daemon to ask, and with what right


def _refuse_unknown_sections() -> None:
    """pydantic-settings refuses STREAMLEARN_LEARNER__X and passes over STREAMLEARN_LERNER__X and STREAMLEARN_X."""
    for name in os.environ:
        section = name.upper().partition("__")[0]
        own = section.removeprefix("STREAMLEARN_").lower()
        known = own in Settings.model_fields or own in _NO_SETTINGS or own.startswith(("test_", "require_"))
        if own != section.lower() and not known:
            raise SettingsError(f"{name}{_UNKNOWN}")


def _sentence(error: ErrorDetails) -> str:
    field = ".".join(str(part) for part in error["loc"]) or "settings"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        return f"{field}{_UNKNOWN}"
    if error["loc"] and _is_section(str(error["loc"][-1])) and error["type"] == "value_error":
        return f"{field}.{message}"  # a rule between its settings, which begins with the name of one
    if _is_section(field):  # itself, not one of its settings
        return (
            f"{field}: is a section, and was given a value of its own; write {field}.NAME"
            f" (environment: STREAMLEARN_{field.upper()}__NAME)"
        )
    return f"{field}{_shown(error)}: {message}"


def _shown(error: ErrorDetails) -> str:
    """The value, where nothing in it can be a secret: of sections and maps that is not known."""
    section: Any = Settings
    for leaf in map(str, error["loc"]):
        field = section.model_fields.get(leaf)
        if field is None or get_origin(field.annotation) is dict or is_secret(leaf):
            return ""
        if not _is_section(leaf):
            return f" = {masked(error['input'])!r}"
        section = field.annotation
    return ""


def _is_section(name: str) -> bool:
    section = Settings.model_fields[name].annotation if name in Settings.model_fields else None
    return isinstance(section, type) and issubclass(section, Section)


def describe(settings: Settings | None) -> list[tuple[str, str, str]]:
    """Every setting as (dotted name, JSON value, meaning), in order; the defaults where `settings` is None."""
    out = []
    for name, field in Settings.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Section):
            values = (section() if settings is None else getattr(settings, name)).model_dump()  # secrets are masked
            out += [
                (f"{name}.{leaf}", _json(values[leaf]), inner.description or "")
                for leaf, inner in section.model_fields.items()
            ]
        else:
            value = field.get_default() if settings is None else settings.model_dump(include={name})[name]
            out.append((name, _json(value), field.description or ""))
    return out


def _json(value: Any) -> str:
    return json.dumps(value, default=str)
