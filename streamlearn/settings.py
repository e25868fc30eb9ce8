"""Every setting, once. Defaults < TOML file < environment (`STREAMLEARN_KAFKA__TOPICS`) < flags.

Units are in the names. A field's description is its documentation: `streamlearn config show --defaults` and
docs/settings.md are made from it. Only `app.py` and the command line read this tree.
"""

from __future__ import annotations

import json
import math
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource
from pydantic_settings.exceptions import SettingsError as SettingsSourceError

from streamlearn.errors import SettingsError

_UNKNOWN = ": there is no such setting; `streamlearn config show --defaults` lists them all"


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
            name: _parse(cls.model_fields[name].annotation, v) if name in cls.model_fields else v
            for name, v in values.items()
        }


def _parse(annotation: Any, value: Any) -> Any:
    kind = get_origin(annotation)
    if not isinstance(value, str) or kind not in (list, dict):
        return value
    if kind is dict or value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            return value  # of the wrong type: pydantic says so, and names the field
    return [part.strip() for part in value.split(",") if part.strip()]


class FolderSettings(Section):
    """The folder source."""

    path: Path = Field(
        Path("clips"), description="Folder with manifest.jsonl, or with video files that have .txt or .json sidecars."
    )
    watch: bool = Field(True, description="Follow new rows and files; false: end with the last one and go on serving.")
    poll_interval_s: float = Field(0.5, gt=0, description="How often a watched folder is looked at.")


class KafkaSettings(Section):
    """The Kafka source."""

    bootstrap_servers: list[str] = Field(
        ["localhost:9092"], min_length=1, description="host:port of brokers to begin with."
    )
    topics: list[str] = Field(["clips"], min_length=1, description="Topics to read.")
    group_id: str = Field("streamlearn", min_length=1, description="Consumer group.")
    group_instance_id: str | None = Field(
        None, description="Static membership: a name that survives a restart of this process."
    )
    auto_offset_reset: Literal["earliest", "latest"] = Field(
        "earliest", description="Where to begin when neither checkpoint nor broker knows."
    )
    dead_letter_topic: str = Field("clips.dlq", min_length=1, description="Where rejected records go.")
    session_timeout_ms: int = Field(
        45_000, ge=1_000, description="A member not heard of for this long leaves the group."
    )
    max_poll_records: int = Field(64, ge=1, description="Records handed over by one poll.")
    request_timeout_ms: int = Field(30_000, ge=1_000, description="Longest wait for a broker's answer.")
    client: dict[str, Any] = Field(
        {}, description="Passed through to the client (kafka-python names): security_protocol, sasl_mechanism ..."
    )
    client_secret_files: dict[str, Path] = Field(
        {}, description="As `client`, each value read from a file: sasl_plain_password ..."
    )


class MediaSettings(Section):
    """Fetching and decoding."""

    allowed_roots: list[Path] = Field(
        [], description="file:// URIs are read only below these folders; empty: none. The folder source adds its own."
    )
    allowed_schemes: list[str] = Field(
        ["file"],
        description="URI schemes that may be fetched: file, https, s3, gs ... (with the fsspec extra installed).",
    )
    allowed_hosts: list[str] = Field([], description="Hosts that http(s) URIs may name; empty: none.")
    max_bytes: int = Field(64 * 2**20, ge=1, description="Largest media, and largest message.")
    max_pixels: int = Field(3840 * 2160 * 2, ge=1, description="Largest frame, in pixels, before scaling.")
    max_caption_chars: int = Field(10_000, ge=1, description="Longest caption.")
    timeout_s: float = Field(30.0, gt=0, description="Longest time for one clip to be fetched and decoded.")
    frames: int = Field(8, ge=1, le=256, description="Frames sampled per clip.")
    size_px: int = Field(
        64,
        ge=16,
        le=1024,
        description="Frames are stored and shown at this height and width; encoders scale down from it.",
    )
    sampling: Literal["exact", "keyframe"] = Field(
        "exact", description="exact: evenly spaced frames; keyframe: 5-30 times faster, the nearest keyframes."
    )
    decoder: Literal["pyav", "decord"] = Field(
        "pyav", description="decord must be installed (extra `decord`); it reads fewer formats."
    )
    workers: int = Field(1, ge=1, description="Decoder processes. A clip that crashes one costs that clip alone.")
    store_max_bytes: int = Field(10 * 2**30, ge=0, description="Size of the frame store; the oldest frames go first.")

    @model_validator(mode="after")
    def _storable(self) -> MediaSettings:
        if self.frames * self.size_px > 65_500:
            raise ValueError("frames x size_px may not exceed 65500, the height of a JPEG that holds a clip's frames")
        return self


class ModelSettings(Section):
    """The two towers."""

    video: str = Field("tiny", description="tiny, or a Hugging Face ViT, CLIP or SigLIP by name or folder.")
    text: str = Field(
        "tiny", description="tiny, or a Hugging Face BERT-like, CLIP or SigLIP text model by name or folder."
    )
    dim: int = Field(128, ge=8, le=4096, description="Length of an embedding.")
    warm_start: str = Field(
        "builtin",
        description="builtin (tiny towers only), none, or a .safetensors file written by `streamlearn warmup`.",
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    threads: int = Field(0, ge=0, description="CPU threads of the learner; 0: as many as there are cores.")


Momentum = float | str


def momentum_horizon(value: Momentum, batch_size: int) -> float:
    """Clips after which a momentum copy has closed 1 - 1/e of a gap; infinite for a frozen one.

    `value` is a horizon such as "640 clips", or the coefficient m of one batch of `batch_size`.
    """
    if isinstance(value, str):
        return float(value.removesuffix("clips").strip())
    return math.inf if value >= 1.0 else batch_size / -math.log(value)


class LearnerSettings(Section):
    """BMU-MoCo and its rivals. Horizons are in clips, so that they survive a change of batch size."""

    method: Literal["bmu", "moco", "inbatch"] = Field(
        "bmu",
        description="bmu: bidirectional momentum update; moco: the same without the way back; inbatch: no queue.",
    )
    learning_rate: float = Field(3e-4, gt=0, description="AdamW's.")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's.")
    batch_size: int = Field(32, ge=1, description="Clips per step.")
    temperature: float = Field(0.07, gt=0, description="Of InfoNCE.")
    queue_size: int = Field(
        128, ge=1, description="Keys per modality. Keep it near 4 batches: older keys poison the contrast."
    )
    queue_at_boundary: Literal["keep", "clear"] = Field(
        "clear", description="What happens to the queues when a task starts."
    )
    local_momentum: Momentum = Field(
        "640 clips", description="How slowly the local momentum encoders follow: m, or a horizon such as '640 clips'."
    )
    local_pull: Momentum = Field(
        "640 clips",
        description="How slowly the encoders are pulled back to the local ones (the paper's reverse momentum).",
    )
    global_pair: bool = Field(True, description="Keep a second momentum pair that is never restarted.")
    global_momentum: Momentum = Field("6400 clips", description="As local_momentum, for the global pair.")
    global_pull: Momentum = Field(
        "32000 clips",
        description="As local_pull; may not pull harder than the global pair follows, or learning stalls.",
    )
    grad_clip: float = Field(10.0, gt=0, description="Largest gradient norm.")
    max_wait_s: float = Field(
        2.0, gt=0, description="A batch that is not full is learned after the source was silent for this long."
    )
    max_batch_age_s: float = Field(
        10.0, gt=0, description="Or after its first clip has waited for this long, as when clips trickle in."
    )
    seed: int = Field(0, ge=0, description="Of everything random.")

    @field_validator("local_momentum", "local_pull", "global_momentum", "global_pull")
    @classmethod
    def _momentum(cls, value: Momentum) -> Momentum:
        try:
            if isinstance(value, str) and value.endswith("clips"):
                ok = 0 < float(value.removesuffix("clips"))
            else:
                value = float(value)  # a flag or a variable is text, and means what the number means in a file
                ok = 0 < value <= 1
        except ValueError:
            ok = False
        if not ok:
            raise ValueError("write a coefficient in (0, 1], or a horizon such as '640 clips'")
        return value

    @model_validator(mode="after")
    def _not_stalled(self) -> LearnerSettings:
        follow = momentum_horizon(self.global_momentum, self.batch_size)
        pull = momentum_horizon(self.global_pull, self.batch_size)
        if self.global_pair and self.method == "bmu" and pull < follow * (1 - 1e-9):
            raise ValueError(
                f"global_pull ({self.global_pull}) pulls the encoders back harder than global_momentum"
                f" ({self.global_momentum}) lets the global pair follow: learning would stall;"
                " give global_pull the longer horizon"
            )
        return self


class DriftSettings(Section):
    """The detector of task boundaries: a normalised mean shift of the batch embeddings."""

    detector: Literal["mean_shift", "none"] = Field("mean_shift", description="none: boundaries only by the operator.")
    threshold: float = Field(5.0, gt=1, description="Of the statistic, whose mean is 1 where nothing drifts.")
    window_batches: int = Field(2, ge=1, description="Batches that are compared with the reference.")
    reference_batches: int = Field(48, ge=8, description="Batches the window is compared with at most.")
    warmup_batches: int = Field(
        8, ge=2, description="Batches before a boundary can be found, at the start and after each."
    )
    cooldown_batches: int = Field(24, ge=0, description="Batches after a boundary in which none is found.")

    @model_validator(mode="after")
    def _fillable(self) -> DriftSettings:
        if self.warmup_batches > self.reference_batches:
            raise ValueError("warmup_batches may not exceed reference_batches, which would never hold them")
        return self


class EvaluateSettings(Section):
    """Held-out clips and what is measured on them."""

    heldout_ratio: float = Field(
        0.05, ge=0, le=0.5, description="Share of clips, by a stable hash of the id, that is never learned from."
    )
    heldout_max_per_task: int = Field(
        200,
        ge=1,
        description="Held-out pairs evaluated per task; further ones are searchable and not learned from.",
    )
    interval_clips: int = Field(1_000, ge=1, description="Clips between evaluations.")
    min_pairs: int = Field(5, ge=1, description="A task with fewer held-out pairs has no gauges.")


class SearchSettings(Section):
    """The read side."""

    mode: Literal["eras", "single"] = Field(
        "eras", description="eras: each era is asked with its own text encoder; single: all with today's."
    )
    max_limit: int = Field(200, ge=1, description="Largest `limit` of a query.")
    publish_interval_clips: int = Field(
        128, ge=1, description="Clips between published snapshots; a silent source publishes at once."
    )
    familiarity_weight: float = Field(
        1.0, ge=0, description="How much the query's nearness to an era's captions counts beside the cosine of a clip."
    )
    snapshot_interval_clips: int = Field(
        256, ge=1, description="Clips between the momentum snapshots from which an era is closed."
    )
    snapshots: int = Field(4, ge=1, description="Momentum snapshots kept for that.")
    reencode_batch_clips: int = Field(64, ge=1, description="Clips of a sealed era re-encoded after each step.")
    refresh_batch_clips: int = Field(
        16, ge=0, description="Oldest vectors of the current era refreshed after each step; 0: as written on arrival."
    )


class CheckpointSettings(Section):
    """Generations."""

    interval_clips: int = Field(1_000, ge=1, description="Clips between checkpoints.")
    keep: int = Field(3, ge=1, description="Generations kept.")


class ApiSettings(Section):
    """HTTP."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8080, ge=0, le=65535, description="Port; 0: any free one.")
    token_file: Path | None = Field(
        None, description="File with the bearer token that every request but health and metrics must carry."
    )
    max_body_bytes: int = Field(1 * 2**20, ge=1, description="Largest request.")
    max_concurrent_searches: int = Field(16, ge=1, description="More than these wait not, they get 429.")


class LogSettings(Section):
    """Logging."""

    format: Literal["text", "json"] = Field("text", description="json: one object a line.")
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severity.")


class Settings(BaseSettings):
    """The whole tree."""

    model_config = SettingsConfigDict(
        enable_decoding=False,
        env_prefix="STREAMLEARN_",
        env_nested_delimiter="__",
        extra="forbid",
        validate_default=True,
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
        return _parse(dict[str, Any], value)


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
        raise SettingsError("\n".join(_sentence(e) for e in error.errors())) from error
    except (SettingsSourceError, tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise SettingsError(f"{config or 'environment'}: {error}") from error


_NO_SETTINGS = ("config", "url")  # which file to read; which daemon to ask


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
    if error["type"] == "extra_forbidden":
        return f"{field}{_UNKNOWN}"
    return f"{field} = {error['input']!r}: {error['msg'].removeprefix('Value error, ')}"


def describe(settings: Settings | None) -> list[tuple[str, str, str]]:
    """Every setting as (dotted name, JSON value, meaning), in order; the defaults where `settings` is None."""
    out = []
    for name, field in Settings.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Section):
            values = section() if settings is None else getattr(settings, name)
            out += [
                (f"{name}.{leaf}", _json(getattr(values, leaf)), inner.description or "")
                for leaf, inner in section.model_fields.items()
            ]
        else:
            value = field.get_default() if settings is None else getattr(settings, name)
            out.append((name, _json(value), field.description or ""))
    return out


def _json(value: Any) -> str:
    return json.dumps(value, default=str)
