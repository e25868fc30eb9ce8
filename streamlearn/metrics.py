"""Every series, its labels and buckets, on an injected registry. Base units, ratios in 0..1, bounded labels.

The rest of the daemon sets these from plain values it already has; nothing here computes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from streamlearn.errors import CODES

STAGES = ("poll", "decode", "wait", "learn", "index", "evaluate", "checkpoint")
SEARCH_STAGES = ("queue", "encode", "index", "total")
OUTCOMES = ("learned", "held_out", "replaced", "deleted", "dead_lettered", "skipped")
QUERY_VECTORS = ("named", "unnamed", "refused")
DELIVERIES = ("sent", "dropped")
KS = (1, 5, 10)

_STAGE_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 600)
_SEARCH_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_SCORE = ("task", "direction", "k", "view")


@dataclass(frozen=True)
class Metrics:
    """One attribute a series; its name is `streamlearn_` and the attribute's."""

    recall_ratio: Gauge
    median_rank: Gauge
    forgetting_ratio: Gauge
    backward_transfer_ratio: Gauge
    forward_transfer_ratio: Gauge
    harmonic_mean_ratio: Gauge
    anytime_minimum_ratio: Gauge
    prequential_recall_ratio: Gauge
    eval_pairs: Gauge
    eval_age_seconds: Gauge
    train_loss: Gauge
    clips_total: Counter
    dead_letters_total: Counter
    source_lag_records: Gauge
    source_connected: Gauge
    source_late_handovers_total: Counter
    lost_records_total: Counter
    events_total: Counter
    events_waiting: Gauge
    drift_score: Gauge
    task_boundaries_total: Counter
    task_info: Gauge
    stage_seconds: Histogram
    search_seconds: Histogram
    query_vectors_total: Counter
    era_bytes: Gauge
    era_search_seconds: Gauge
    index_clips: Gauge
    index_stale_clips: Gauge
    index_carried_clips: Gauge
    index_staleness_ratio: Gauge
    index_oldest_vector_age_steps: Gauge
    checkpoint_last_success_timestamp_seconds: Gauge
    generation: Gauge
    generations_rejected_total: Counter
    learner_ok: Gauge
    build_info: Info

    @classmethod
    def create(cls, registry: CollectorRegistry) -> Metrics:
        """Register every series; a registry takes one set."""

        def name(series: str) -> str:
            return f"streamlearn_{series}"

        def gauge(series: str, text: str, *labels: str) -> Gauge:
            return Gauge(name(series), text, labels, registry=registry)

        def counter(series: str, text: str, *labels: str) -> Counter:
            return Counter(name(series), text, labels, registry=registry)

        def histogram(series: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(name(series), text, labels, registry=registry, buckets=buckets)

        metrics = cls(
            recall_ratio=gauge("recall_ratio", "Held-out queries whose clip is among the first k.", *_SCORE),
            median_rank=gauge("median_rank", "Median rank of the right answer.", "task", "direction", "view"),
            forgetting_ratio=gauge("forgetting_ratio", "(best recall so far - recall now) / best so far.", *_SCORE),
            backward_transfer_ratio=gauge(
                "backward_transfer_ratio",
                "Mean over past tasks of recall now - recall when learned.",
                "direction",
                "k",
                "view",
            ),
            forward_transfer_ratio=gauge(
                "forward_transfer_ratio",
                "Mean over tasks of recall before they began - that of chance.",
                "direction",
                "k",
                "view",
            ),
            harmonic_mean_ratio=gauge(
                "harmonic_mean_ratio", "Harmonic mean of recall now over the tasks.", "direction", "k", "view"
            ),
            anytime_minimum_ratio=gauge(
                "anytime_minimum_ratio",
                "Mean over past tasks of the lowest recall since learned.",
                "direction",
                "k",
                "view",
            ),
            prequential_recall_ratio=gauge(
                "prequential_recall_ratio", "Recall@1 within the last batch, before it was learned from."
            ),
            eval_pairs=gauge("eval_pairs", "Held-out pairs behind a task's ratios.", "task"),
            eval_age_seconds=gauge("eval_age_seconds", "Time since the last evaluation."),
            train_loss=gauge("train_loss", "Symmetric InfoNCE of the last step, in nats."),
            clips_total=counter("clips_total", "Clips by what became of them.", "outcome"),
            dead_letters_total=counter("dead_letters_total", "Rejected records by error code.", "code"),
            source_lag_records=gauge("source_lag_records", "Records not yet delivered.", "topic", "partition"),
            source_connected=gauge("source_connected", "1: the source answers; 0: it is away."),
            source_late_handovers_total=counter(
                "source_late_handovers_total",
                "Rebalances that got no checkpoint in time: what was learned since the last one is learned again.",
            ),
            drift_score=gauge(
                "drift_score", "The detector's statistic; of mean_shift about 1 where nothing drifts.", "detector"
            ),
            lost_records_total=counter(
                "lost_records_total",
                "Records that were gone before they were read; 1 where a log was made anew.",
                "topic",
                "partition",
            ),
            events_total=counter("events_total", "Events for others, by what became of them.", "delivery"),
            events_waiting=gauge("events_waiting", "Events that could not be delivered yet."),
            task_boundaries_total=counter("task_boundaries_total", "Task boundaries by cause.", "cause"),
            task_info=gauge("task_info", "1 for the task being learned, 0 for the others.", "task"),
            stage_seconds=histogram(
                "stage_seconds", "Time of the pipeline's stages, per batch.", _STAGE_BUCKETS, "stage"
            ),
            search_seconds=histogram("search_seconds", "Time of a search, by stage.", _SEARCH_BUCKETS, "stage"),
            query_vectors_total=counter(
                "query_vectors_total",
                "Vectors asked as queries: named: by the model that is served, as they say; unnamed: they do not say by"
                " which, and are taken for its; refused: another model's.",
                "outcome",
            ),
            era_bytes=gauge("era_bytes", "Memory of an era: its vectors and its pair of encoders.", "era"),
            era_search_seconds=gauge(
                "era_search_seconds", "What the last query took in an era's part of the index.", "era"
            ),
            index_clips=gauge("index_clips", "Clips that can be found."),
            index_stale_clips=gauge(
                "index_stale_clips", "Clips of closed eras not yet re-encoded; not those that are renewed."
            ),
            index_carried_clips=gauge(
                "index_carried_clips",
                "Clips whose vectors were made with other media settings, carried over knowingly.",
            ),
            index_staleness_ratio=gauge("index_staleness_ratio", "1 - mean cosine of stored and fresh probe vectors."),
            index_oldest_vector_age_steps=gauge(
                "index_oldest_vector_age_steps", "Steps since the oldest vector of the current era was written."
            ),
            checkpoint_last_success_timestamp_seconds=gauge(
                "checkpoint_last_success_timestamp_seconds", "When the last generation was published, Unix time."
            ),
            generation=gauge("generation", "The published generation."),
            generations_rejected_total=counter(
                "generations_rejected_total", "Generations that did not verify at start."
            ),
            learner_ok=gauge("learner_ok", "1: learning goes on; 0: it stopped on an error, reads go on."),
            build_info=Info(name("build"), "Version and model.", registry=registry),
        )
        # 0 would be a perfect loss and a fresh index: until there is a value there is no number.
        for unknown in (metrics.train_loss, metrics.prequential_recall_ratio, metrics.index_staleness_ratio):
            unknown.set(float("nan"))
        # Closed label sets exist from the start, so that rate() sees the first increment.
        for outcome in OUTCOMES:
            metrics.clips_total.labels(outcome)
        for code in (code for codes in CODES.values() for code in codes):
            metrics.dead_letters_total.labels(code)
        for outcome in QUERY_VECTORS:
            metrics.query_vectors_total.labels(outcome)
        for delivery in DELIVERIES:
            metrics.events_total.labels(delivery)
        for cause in ("start", "drift", "operator"):
            metrics.task_boundaries_total.labels(cause)
        return metrics


def series_names() -> list[str]:
    """Names as Prometheus shows them, without the suffixes of histograms."""
    return [f"streamlearn_{field.name}" for field in fields(Metrics)]
