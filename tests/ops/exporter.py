"""The daemon's real series with plausible values, for checks that need an exporter and not a daemon."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Metric, start_http_server

from streamlearn.errors import CODES
from streamlearn.metrics import DELIVERIES, KS, OUTCOMES, QUERY_VECTORS, SEARCH_STAGES, STAGES, Metrics


def filled_registry() -> CollectorRegistry:
    """A registry in which every series of `Metrics` has a value."""
    registry = CollectorRegistry()
    _set(Metrics.create(registry))
    return registry


class _Ticking:
    """A collector that counts on with each scrape, so that rates and quantiles have something to show."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._metrics = Metrics.create(self._registry)

    def collect(self) -> Iterator[Metric]:
        _set(self._metrics)
        yield from self._registry.collect()


@contextmanager
def serve() -> Iterator[str]:
    """Serve the series on loopback and yield host:port."""
    registry = CollectorRegistry()
    registry.register(_Ticking())
    server, thread = start_http_server(0, "127.0.0.1", registry=registry)
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _set(metrics: Metrics) -> None:
    metrics.prequential_recall_ratio.set(0.4)
    for view in ("served", "single", "learner", "pool"):
        if view != "pool":
            metrics.median_rank.labels("t1", "t2v", view).set(7)
        for k in map(str, KS):
            metrics.recall_ratio.labels("t1", "t2v", k, view).set(0.6)
            metrics.forgetting_ratio.labels("t1", "t2v", k, view).set(0.1)
            metrics.backward_transfer_ratio.labels("t2v", k, view).set(-0.05)
            metrics.harmonic_mean_ratio.labels("t2v", k, view).set(0.55)
            metrics.anytime_minimum_ratio.labels("t2v", k, view).set(0.45)
            if view == "learner":
                metrics.forward_transfer_ratio.labels("t2v", k, view).set(0.2)
    metrics.eval_pairs.labels("t1").set(120)
    metrics.eval_age_seconds.set(12)
    metrics.train_loss.set(3.2)
    for outcome in OUTCOMES:
        metrics.clips_total.labels(outcome).inc(10)
    for codes in CODES.values():
        for code in codes:
            metrics.dead_letters_total.labels(code).inc()
    metrics.source_lag_records.labels("clips", "0").set(40)
    metrics.source_connected.set(1)
    metrics.lost_records_total.labels("clips", "0").inc(0)
    for delivery in DELIVERIES:
        metrics.events_total.labels(delivery).inc()
    metrics.events_waiting.set(0)
    metrics.drift_score.labels("mean_shift").set(1.1)
    metrics.task_boundaries_total.labels("drift").inc()
    metrics.task_info.labels("t1").set(1)
    for stage in STAGES:
        metrics.stage_seconds.labels(stage).observe(0.02)
    for stage in SEARCH_STAGES:
        metrics.search_seconds.labels(stage).observe(0.004)
    for outcome in QUERY_VECTORS:
        metrics.query_vectors_total.labels(outcome).inc()
    metrics.era_bytes.labels("1").set(12e6)
    metrics.era_search_seconds.labels("1").set(0.002)
    metrics.index_clips.set(1000)
    metrics.index_stale_clips.set(20)
    metrics.index_carried_clips.set(0)
    metrics.index_staleness_ratio.set(0.05)
    metrics.index_oldest_vector_age_steps.set(30)
    metrics.checkpoint_last_success_timestamp_seconds.set_to_current_time()
    metrics.generation.set(4)
    metrics.generations_rejected_total.inc(0)
    metrics.learner_ok.set(1)
    metrics.build_info.info({"version": "0.1.0", "model": "tiny"})
