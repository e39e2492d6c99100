"""Metrics of the request path, scraped from Ray's node agents. Labels are closed sets: never ids, never texts."""

from __future__ import annotations

from typing import Any

from serve.runner import Outcome

STAGE_BOUNDS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class ServeMetrics:
    """All counters, histograms and gauges of an ingress replica; implements `StageRecorder`."""

    def __init__(self) -> None:
        from ray.util import metrics

        self._stage = metrics.Histogram(
            "raycommend_stage_seconds",
            description="Time of one stage, by outcome.",
            boundaries=list(STAGE_BOUNDS_S),
            tag_keys=("stage", "outcome"),
        )
        self._answer = metrics.Histogram(
            "raycommend_answer_seconds",
            description="Time to the list, by route and degradation level.",
            boundaries=list(STAGE_BOUNDS_S),
            tag_keys=("route", "level"),
        )
        self._degraded = metrics.Counter(
            "raycommend_degraded_total", description="Degraded answers by reason.", tag_keys=("reason",)
        )
        self._refused = metrics.Counter(
            "raycommend_refused_total", description="Requests answered with an error.", tag_keys=("status",)
        )
        self._events = metrics.Counter("raycommend_events_total", description="Events by status.", tag_keys=("status",))
        self._reasons = metrics.Counter(
            "raycommend_reasons_total", description="Reasons by source.", tag_keys=("source",)
        )
        self._cached = metrics.Counter(
            "raycommend_reason_cache_total",
            description="Reasons looked up before any model is asked, by where they were found.",
            tag_keys=("outcome",),
        )
        self._dropped = metrics.Counter(
            "raycommend_records_dropped_total", description="Served records lost to a full queue."
        )
        self._lag = metrics.Gauge("raycommend_loop_lag_seconds", description="How late the event loop runs timers.")
        self._unknown = metrics.Gauge(
            "raycommend_unknown_items",
            description="Items with live events that the current release does not have.",
            tag_keys=("tenant",),
        )
        self._in_flight = metrics.Gauge("raycommend_in_flight", description="Requests an ingress replica works on.")

    def stage(self, name: str, outcome: Outcome, milliseconds: float) -> None:
        """See `StageRecorder.stage`."""
        self._observe(self._stage, milliseconds / 1000.0, stage=name, outcome=outcome)

    def answer(self, route: str, level: str, milliseconds: float) -> None:
        """Observe one answered request."""
        self._observe(self._answer, milliseconds / 1000.0, route=route, level=level)

    def degraded(self, reason: str) -> None:
        """Count one reason of a degraded answer."""
        self._degraded.inc(1.0, tags={"reason": reason})

    def refused(self, status: int) -> None:
        """Count one error answer."""
        self._refused.inc(1.0, tags={"status": str(status)})

    def event(self, status: str, count: int) -> None:
        """Count events by what became of them."""
        self._events.inc(float(count), tags={"status": status})

    def reason(self, source: str) -> None:
        """Count one reason by who wrote it."""
        self._reasons.inc(1.0, tags={"source": source})

    def reason_cache(self, outcome: str, count: int) -> None:
        """Count reasons looked up; see `TieredReasons.counts` for the outcomes. Hits over all are the hit rate."""
        self._cached.inc(float(count), tags={"outcome": outcome})

    def record_dropped(self) -> None:
        """Count a served record that did not fit the queue."""
        self._dropped.inc(1.0)

    def loop_lag(self, seconds: float) -> None:
        """Set the event-loop lag."""
        self._lag.set(seconds)

    def in_flight(self, count: int) -> None:
        """Set the number of requests in flight."""
        self._in_flight.set(float(count))

    def unknown_items(self, tenant: str, count: int) -> None:
        """Set how many items with live events wait for a release that has them."""
        self._unknown.set(float(count), tags={"tenant": tenant})

    @staticmethod
    def _observe(histogram: Any, seconds: float, **tags: str) -> None:
        # Ray refuses 0, and a stage that was skipped took none.
        histogram.observe(max(seconds, 1e-9), tags=tags)


class RankMetrics:
    """Counters of a ranker replica."""

    def __init__(self) -> None:
        from ray.util import metrics

        self._dropped = metrics.Counter(
            "raycommend_rank_dropped_total",
            description="Requests given up before they were ranked: their time was up, or their caller had left.",
            tag_keys=("reason",),
        )

    def dropped(self, reason: str) -> None:
        """Count a request that was not computed."""
        self._dropped.inc(1.0, tags={"reason": reason})
