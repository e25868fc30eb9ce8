"""Settings of the model, the learner and the detector of boundaries."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Literal, get_args

from pydantic import Field, field_validator, model_validator

from streamlearn.settings_base import Section


class ModelSettings(Section):
    """The two towers."""

    video: str = Field(
        "tiny", description="tiny, or a Hugging Face image or video model (ViT, CLIP, VideoMAE ...) by name or folder."
    )
    text: str = Field(
        "tiny", description="tiny, or a Hugging Face BERT-like, CLIP or SigLIP text model by name or folder."
    )
    dim: int = Field(128, ge=8, le=4096, description="Length of an embedding.")
    pooling: Literal["mean", "temporal"] = Field(
        "mean",
        description="How the frames of an image model become one clip: their mean, or a transformer block over them"
        " that starts as the mean. Video models and tiny pool by themselves; temporal is refused with tiny.",
    )
    trainable: Literal["all", "heads", "lora"] = Field(
        "all",
        description="What is learned: everything; heads: only what comes after the pretrained trunks; lora: heads and"
        " adapters inside the trunks (needs the extra streamlearn[lora]). A tiny tower beside a pretrained one is"
        " learned whole; two of them have no trunk, and take all alone.",
    )
    lora_rank: int = Field(8, ge=1, le=1024, description="Of the adapters.")
    warm_start: str = Field(
        "builtin",
        description="builtin (tiny towers only), none, or a .safetensors file written by `streamlearn warmup`.",
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    threads: int = Field(0, ge=0, description="CPU threads of the learner; 0: the cores that media.workers leave.")

    @model_validator(mode="after")
    def _of_pretrained_towers(self) -> ModelSettings:
        if self.pooling == "temporal" and self.video == "tiny":
            raise ValueError(
                "pooling = temporal does nothing with model.video = tiny, which pools by itself: leave it out"
            )
        if self.trainable != "all" and self.video == self.text == "tiny":
            raise ValueError(
                f"trainable = {self.trainable} needs a pretrained tower, whose trunk it fixes; model.video and"
                " model.text are tiny: leave it out"
            )
        return self


Momentum = float | str

_SLOWEST = 0.1  # of plain training's speed; research found 0.08 to lose to everything


def momentum_horizon(value: Momentum, batch_size: int) -> float:
    """Clips after which a momentum copy has closed 1 - 1/e of a gap; infinite for a frozen one.

    `value` is a horizon such as "640 clips", or the coefficient m of one batch of `batch_size`.
    """
    if isinstance(value, str):
        return float(value.removesuffix("clips").strip())
    return math.inf if value >= 1.0 else batch_size / -math.log(value)


def speed(pairs: Sequence[tuple[float, float]]) -> float:
    """Long-run speed of the encoders relative to plain training, for pairs of (m, mh).

    >>> speed([(0.95, 0.95)]), speed([]), speed([(1.0, 0.9)])
    (0.5, 1.0, 0.0)
    """
    return 1 / (1 + sum(math.inf if m == 1 else (1 - mh) / (1 - m) for m, mh in pairs if mh < 1))


class LearnerSettings(Section):
    """BMU-MoCo and its rivals. Horizons are in clips, so that they survive a change of batch size."""

    method: Literal["bmu", "moco", "inbatch", "lwf", "ctp"] = Field(
        "bmu",
        description="bmu: bidirectional momentum update; moco: the same without the way back; inbatch: no queue;"
        " lwf: moco, and distillation from the task before; ctp: compatible momentum and topology preservation.",
    )
    serve: Literal["local", "global", "online"] = Field(
        "local",
        description="Which copy writes the index and encodes queries: the local momentum pair, the global one, or the"
        " encoders themselves. Any but local costs bmu and its rivals one more forward pass a step.",
    )
    learning_rate: float = Field(3e-4, gt=0, description="AdamW's.")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's.")
    batch_size: int = Field(32, ge=1, description="Clips per step.")
    temperature: float = Field(0.07, gt=0, description="Of InfoNCE.")
    queue_size: int = Field(
        128,
        ge=1,
        description="Keys per modality, replayed clips' among them. Keep it near 4 batches: older keys poison the"
        " contrast.",
    )
    queue_at_boundary: Literal["keep", "clear", "age_limit"] = Field(
        "clear",
        description="What happens to the queues when a task starts; age_limit: keys that came with the last"
        " queue_max_age_clips stay, replayed ones too. At any time no key is older than queue_size clips.",
    )
    queue_max_age_clips: int = Field(
        32,
        ge=1,
        description="With queue_at_boundary = age_limit. Counts new clips; from queue_size on, all keys stay.",
    )
    local_momentum: Momentum = Field(
        "640 clips", description="How slowly the local momentum encoders follow: m, or a horizon such as '640 clips'."
    )
    local_pull: Momentum = Field(
        "640 clips",
        description="How slowly the encoders are pulled back to the local ones (the paper's reverse momentum).",
    )
    global_pair: bool = Field(
        False,
        description="Keep a second momentum pair that is never restarted, as the paper does; bmu. It gained nothing"
        " that was measured (docs/log.md), and costs memory.",
    )
    global_momentum: Momentum = Field("6400 clips", description="As local_momentum, for the global pair.")
    global_pull: Momentum = Field(
        "32000 clips",
        description="As local_pull; may not pull harder than the global pair follows, or learning stalls.",
    )
    global_loss_weight: float = Field(
        0.0,
        ge=0,
        description="Of a second loss, against keys and a queue of the global pair's own; costs a forward pass."
        " 0: the global pair acts on weights only.",
    )
    update_order: Literal["follow_first", "pull_first"] = Field(
        "follow_first", description="Which way of bmu's update comes first: copies to encoders, or encoders to copies."
    )
    local_at_boundary: Literal["restart", "keep"] = Field(
        "restart", description="Whether bmu's local pair becomes the encoders again when a task starts."
    )
    pull_after_clips: int = Field(
        0, ge=0, description="No pull on the encoders in the first so many clips of a task; bmu."
    )
    distill_weight: float = Field(1.0, ge=0, description="Of the distillation in lwf and ctp.")
    replay_clips: int = Field(
        0, ge=0, description="Clips of the past that a reservoir holds, to be learned again beside new ones; 0: none."
    )
    replay_ratio: float = Field(
        0.5, gt=0, lt=1, description="Share of replayed clips in a batch; they come on top of batch_size."
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

    @property
    def speed(self) -> float:
        """Long-run speed of the encoders relative to plain training: 1 / (1 + sum of (1 - mh) / (1 - m)).

        A comparison needs a plain learner at `learning_rate * speed` beside it. 1 for methods without a pull.
        """
        pairs = []
        if self.method == "bmu":
            pairs.append((self.local_momentum, self.local_pull))
        if self.method == "bmu" and self.global_pair:
            pairs.append((self.global_momentum, self.global_pull))
        return speed([(self._coefficient(forward), self._coefficient(back)) for forward, back in pairs])

    def _coefficient(self, value: Momentum) -> float:
        return math.exp(-self.batch_size / momentum_horizon(value, self.batch_size))

    @model_validator(mode="after")
    def _not_stalled(self) -> LearnerSettings:
        if self.method != "bmu":
            return self
        follow = momentum_horizon(self.global_momentum, self.batch_size)
        pull = momentum_horizon(self.global_pull, self.batch_size)
        if self.global_pair and pull < follow * (1 - 1e-9):
            raise ValueError(
                f"global_pull ({self.global_pull}) pulls the encoders back harder than global_momentum"
                f" ({self.global_momentum}) lets the global pair follow: learning would stall;"
                " give global_pull the longer horizon"
            )
        if self.speed < _SLOWEST:
            raise ValueError(
                f"local_pull ({self.local_pull}) is so much harder than local_momentum ({self.local_momentum}) lets"
                f" the local pair follow that the encoders would learn at {self.speed:.2f} of their plain speed:"
                " learning would stall; give local_pull a longer horizon"
            )
        return self

    @model_validator(mode="after")
    def _with_a_global_pair(self) -> LearnerSettings:
        if self.method == "bmu" and self.global_pair:
            return self
        if self.global_pair:
            raise ValueError(
                f"global_pair = true does nothing with method = {self.method}: bmu alone keeps one; leave it out"
            )
        for name, wanted in (("serve", self.serve == "global"), ("global_loss_weight", self.global_loss_weight > 0)):
            if wanted:
                raise ValueError(
                    f"{name} = {getattr(self, name)} needs the global pair, which only method = bmu with"
                    " global_pair = true keeps"
                )
        return self


SignalName = Literal["shift", "video_shift", "text_shift", "loss", "recall_error", "grad_norm"]
_VOTER = rf"mean_shift|(page_hinkley|adwin|kswin):({'|'.join(get_args(SignalName))})"


class DriftSettings(Section):
    """The detector of task boundaries: a normalised mean shift of the batch embeddings, or another one."""

    detector: Literal["mean_shift", "page_hinkley", "adwin", "kswin", "vote", "none"] = Field(
        "mean_shift",
        description="page_hinkley, adwin, kswin: river's, on one signal (needs the extra streamlearn[river]); vote:"
        " several that agree; none: boundaries only by the operator. docs/evaluation.md says when which.",
    )
    signal: SignalName = Field(
        "shift",
        description="What river's detectors watch: the mean shift of all keys or of one side's, the learner's loss,"
        " 1 - prequential recall, or the gradient's norm.",
    )
    vote: list[str] = Field(
        ["mean_shift", "page_hinkley:video_shift", "page_hinkley:text_shift"],
        description="The voters: mean_shift, or detector:signal.",
    )
    vote_quorum: int = Field(2, ge=1, description="So many of them must agree.")
    vote_window_batches: int = Field(8, ge=1, description="Within so many batches.")
    page_hinkley_threshold: float = Field(
        8.0, gt=0, description="What page_hinkley cumulates, in standard deviations of its signal; lower finds more."
    )
    adwin_delta: float = Field(0.2, gt=0, lt=1, description="Of adwin; higher finds more.")
    kswin_alpha: float = Field(0.005, gt=0, lt=1, description="P-value of kswin's test; higher finds more.")
    clips_per_false_boundary: float = Field(
        100_000, ge=1000, description="About one false boundary in so many clips: the threshold follows from it."
    )
    threshold: float = Field(
        0.0, ge=0, description="Of the statistic, whose mean is 1 where nothing drifts; 0: calibrated on the stream."
    )
    window_batches: int = Field(2, ge=1, description="Batches that are compared with those before them.")
    reference_batches: int = Field(16, ge=4, description="So many before them, at most.")
    slow_window_batches: int = Field(
        8, ge=0, description="The same for a change that comes slowly; 0: look for none. Only with frozen_judge."
    )
    slow_reference_batches: int = Field(48, ge=8, description="So many before those, at most.")
    warmup_batches: int = Field(
        8,
        ge=2,
        description="Batches of a task before the detector can find its end; the frozen judge can find it sooner.",
    )
    cooldown_batches: int = Field(
        24, ge=0, description="Batches after a boundary in which what grows slowly is taken for the rest of it."
    )
    frozen_judge: bool = Field(
        True,
        description="A frozen copy of the encoders at the start looks at some stored clips before and after a suspected"
        " boundary, and refuses it where only the encoder has moved, or the clips of a batch are of one video. In a"
        " task's first 24 batches it also looks by itself. Costs memory for one more pair.",
    )
    revisits: bool = Field(
        True,
        description="A task that returns is continued under its name, in an era of its own until that ends. False"
        " without frozen_judge, whatever is written.",
    )
    log: bool = Field(
        True,
        description="Keep what the detector saw in state_dir/drift.jsonl, 16 MiB at most, for `tasks tune`.",
    )

    @field_validator("vote")
    @classmethod
    def _voters(cls, value: list[str]) -> list[str]:
        wrong = [vote for vote in value if not re.fullmatch(_VOTER, vote)]
        if wrong or len(set(value)) < len(value):
            raise ValueError(f"{wrong or value}: write different ones, mean_shift or such as page_hinkley:loss")
        return value

    @model_validator(mode="after")
    def _fitting(self) -> DriftSettings:
        if self.detector == "vote" and self.vote_quorum > len(self.vote):
            raise ValueError(f"vote_quorum = {self.vote_quorum} may not exceed the {len(self.vote)} of vote")
        if not self.frozen_judge:
            self.revisits = False  # and so it is shown: whether anybody asked for it is not to be known here
        for name in ("reference_batches", *(["slow_reference_batches"] if self.slow_window_batches else [])):
            if self.warmup_batches > (held := getattr(self, name)):
                raise ValueError(
                    f"warmup_batches = {self.warmup_batches} may not exceed {name} = {held}, which would never hold"
                    " them: lower it"
                )
        if 0 < self.threshold <= 1:
            raise ValueError(
                f"threshold = {self.threshold:g} must be above 1, the statistic's mean without drift, or 0: calibrated"
            )
        return self
