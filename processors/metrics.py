"""Metrics of a daemon for Prometheus. Needs the extra `metrics` (prometheus-client).

What can be scraped is what the runners' notices say, so a scrape costs no look at the log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from processors.notices import OUTCOMES, Notice

if TYPE_CHECKING:
    from prometheus_client.core import Metric

__all__ = ["INSTALL_ADVICE", "MetricsMissing", "metrics_page"]

INSTALL_ADVICE: Final = 'metrics need prometheus-client: pip install "foldlog[metrics]"'


class MetricsMissing(Exception):
    """prometheus-client is not installed; the message says what to do."""


def metrics_page(notices: Callable[[], Sequence[Notice]]) -> Callable[[], tuple[bytes, str]]:
    """Return what makes the page of metrics, and its content type, each time it is called.

    Raises:
        MetricsMissing: the extra is not installed.
    """
    try:
        from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
        from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
        from prometheus_client.registry import Collector
    except ImportError:
        raise MetricsMissing(INSTALL_ADVICE) from None

    class Runners(Collector):
        def collect(self) -> Iterator[Metric]:
            return _families(notices())

    registry = CollectorRegistry()
    registry.register(Runners())
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return lambda: (generate_latest(registry), CONTENT_TYPE_LATEST)


def _families(notices: Sequence[Notice]) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    updates = CounterMetricFamily(
        "foldlog_updates", "Updates by what became of them.", labels=("app", "outcome")
    )
    conflicts = CounterMetricFamily(
        "foldlog_conflicts", "Answers that met a newer state, and so ran again.", labels=("app",)
    )
    gauges = {
        name: GaugeMetricFamily(f"foldlog_{name}", text, labels=("app",))
        for name, text in (
            ("shards_owned", "Shards that this process holds."),
            ("updates_running", "Updates that run now."),
            ("requests_pending", "Requests that wait in the shards that this process holds."),
            ("requests_pending_oldest_time_seconds", "When the oldest of them came, in Unix time."),
        )
    }
    lag = GaugeMetricFamily(
        "foldlog_trigger_lag_events",
        "Events of the watched app that a trigger has not dealt with.",
        labels=("app", "trigger", "watched"),
    )
    for notice in notices:
        app, counts = (notice.app,), notice.counts or {}
        for outcome in OUTCOMES:
            updates.add_metric((notice.app, outcome), counts.get(outcome, 0))
        conflicts.add_metric(app, counts.get("conflicts", 0))
        gauges["shards_owned"].add_metric(app, len(notice.shards))
        gauges["updates_running"].add_metric(app, notice.running_count)
        gauges["requests_pending"].add_metric(app, notice.waiting)
        if notice.oldest_ms is not None:
            gauges["requests_pending_oldest_time_seconds"].add_metric(app, notice.oldest_ms / 1_000)
        for relay in notice.relays:
            if relay.trigger_id is not None:
                lag.add_metric((notice.app, relay.trigger_id, relay.watched), relay.lag_events)
    yield updates
    yield conflicts
    yield from gauges.values()
    yield lag
