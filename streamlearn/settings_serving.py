"""Settings of evaluation, search, checkpoints, HTTP and logging."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from streamlearn.schemas import MAX_LIMIT
from streamlearn.settings_base import Section


class EvaluateSettings(Section):
    """Held-out clips and what is measured on them."""

    heldout_ratio: float = Field(
        0.05, ge=0, le=0.5, description="Share of clips, by a stable hash of the id, that is never learned from."
    )
    heldout_max_per_task: int = Field(
        200,
        ge=1,
        description="Held-out pairs a task is evaluated with, a fair sample; the others are not learned from either.",
    )
    interval_clips: int = Field(1_000, ge=1, description="Clips between evaluations.")
    budget_ratio: float = Field(
        0.05,
        gt=0,
        le=1,
        description="Time of evaluations while clips arrive, as a share of the learner's; a silent source waits not.",
    )
    pool_clips: int = Field(
        1_000, ge=10, description="Size of the fixed pool of the view pool, in which recall is comparable over time."
    )
    min_pairs: int = Field(5, ge=1, description="A task with fewer held-out pairs has no gauges.")

    @model_validator(mode="after")
    def _measurable(self) -> EvaluateSettings:
        if self.min_pairs > self.heldout_max_per_task:
            raise ValueError(
                f"min_pairs ({self.min_pairs}) may not exceed heldout_max_per_task ({self.heldout_max_per_task}), with"
                " which a task is evaluated: none would ever be measured; lower the one or raise the other"
            )
        return self


class SearchSettings(Section):
    """The read side."""

    mode: Literal["eras", "single"] = Field(
        "eras",
        description="eras: each era is asked with its own text encoder; single: all with today's, by cosine alone.",
    )
    max_limit: int = Field(200, ge=1, le=MAX_LIMIT, description="Largest `limit` of a query.")
    publish_interval_clips: int = Field(
        128, ge=1, description="Clips between published snapshots; those that wait are published sooner."
    )
    show_after_s: float = Field(
        0.5,
        gt=0,
        description="A clip that has waited this long for its batch (twice, where many wait and it is nearly full) is"
        " found from then on, and learned with the batch; sooner where nothing comes behind it. Twice this, or 20 times"
        " what one takes, is the time between published snapshots under load.",
    )
    familiarity_weight: float = Field(
        0.5,
        ge=0,
        description="How much it counts beside the cosine of a clip how often the captions of its era have the words of"
        " the query, beside the era that has them most.",
    )
    hub_weight: float = Field(
        0.75,
        ge=0,
        le=1,
        description="How much counts against the best clips for a text that they are near to all captions of their era."
        " 0: nothing.",
    )
    index_device: str = Field(
        "cpu",
        pattern=r"^(cpu|cuda(:\d+)?)$",
        description="Where the vectors of an era lie that has more than 8,192: cpu, in lists, in this memory; or cuda,"
        " cuda:1 ..., exact, in half precision. cuda was not measured on a card.",
    )
    max_eras: int = Field(
        16,
        ge=2,
        description="Eras at most, each with its encoders; beyond, the two whose merge costs least are merged, one"
        " merge at a time and when both are encoded: where boundaries come quicker, there are more for a while.",
    )
    max_encoders: int = Field(
        4,
        ge=1,
        description="Pairs of encoders kept for ended eras, at most; beyond, the pair that is missed least goes, and"
        " the newest one reads its era through a linear map. A query costs so many text encodings and one more: one"
        " pass with built-in towers or model.trainable = heads, else one after the other.",
    )
    merge_vectors: Literal["keep", "encode"] = Field(
        "keep",
        description="What becomes of the clips of an era that is merged into another. keep: their vectors stay, and the"
        " other era's text encoder asks them; encode: they are encoded anew with its pair, which needs max_encoders"
        " to be at least max_eras.",
    )
    merge_loss: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="Two eras in a row become one where the boundary between them was superfluous: by held-out clips,"
        " at least 10 of each, no more than this share of mean reciprocal rank above chance is lost by it, two standard"
        " errors included. 0: never.",
    )
    snapshot_interval_clips: int = Field(
        256, ge=1, description="Clips between the momentum snapshots from which an era is closed."
    )
    snapshots: int = Field(4, ge=1, description="Momentum snapshots kept for that.")
    reencode_per_clip: float = Field(
        2.0,
        gt=0,
        le=100,
        description="Clips of eras that ended encoded anew after each step, for each clip of a batch. Every clip is,"
        " once: below 1, or a little above where clips are held out, they fall behind a stream that does not pause."
        " Where an era is only renewed, what the refresh leaves of it, and one clip at least.",
    )
    refresh_share: float = Field(
        0.125,
        ge=0,
        le=10,
        description="Work on bringing the oldest vectors of the current era up to date after each step, as a share of"
        " the step's, counted in passes of the video tower; one clip at least. 0: they stay as written on arrival.",
    )

    @model_validator(mode="after")
    def _pairs_to_encode_with(self) -> SearchSettings:
        if self.merge_vectors == "encode" and self.max_encoders < self.max_eras:
            raise ValueError(
                f"merge_vectors = encode needs every era's pair, and max_encoders ({self.max_encoders}) keeps fewer"
                f" than the {self.max_eras} of max_eras: set both to the same, or merge_vectors = keep"
            )
        return self


class CheckpointSettings(Section):
    """Generations."""

    interval_clips: int = Field(1_000, ge=1, description="Clips between checkpoints.")
    keep: int = Field(3, ge=1, description="Generations kept at most; pinned ones are kept besides.")
    keep_age_s: float | None = Field(
        None, gt=0, description="Older generations go, whatever `keep` says; the newest and pinned ones stay."
    )
    keep_bytes: int | None = Field(
        None,
        ge=1,
        description="The oldest go while all take more than this (weights, not the catalog's rows); the newest and"
        " pinned ones stay.",
    )
    on_mismatch: Literal["refuse", "carry"] = Field(
        "refuse",
        description="Where media.frames, size_px or sampling differ from those of the stored vectors: refuse to start,"
        " or carry the vectors over as they are, counted in index_carried_clips.",
    )
    min_free_bytes: int = Field(
        512 * 2**20,
        ge=0,
        description="Learning waits, and searches are answered, while the disk of state_dir has less than this left.",
    )


class ApiSettings(Section):
    """HTTP."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8080, ge=0, le=65535, description="Port; 0: any free one.")
    token_file: Path | None = Field(
        None, description="File with the bearer token that every request but health and metrics must carry."
    )
    admin_token_file: Path | None = Field(
        None,
        description="File with the bearer token that changes need; that of token_file may then only read. Without any"
        " token, changes are accepted only where host is this machine alone.",
    )
    max_body_bytes: int = Field(1 * 2**20, ge=1, description="Largest request.")
    max_concurrent_searches: int = Field(16, ge=1, description="More than these wait not, they get 429.")


class LogSettings(Section):
    """Logging."""

    format: Literal["text", "json"] = Field("text", description="json: one object a line.")
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severity.")
