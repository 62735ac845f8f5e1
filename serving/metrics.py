"""What the service counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

_SECONDS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
_CANDIDATES = (1, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)


class Metrics:
    """The metrics of one application, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        # Memory, processor time, open files and start of the process, by their standard names.
        ProcessCollector(registry=self.registry)
        add = self.registry
        self.requests = Counter(
            "recsys_requests", "Rank requests by HTTP status.", ["status"], registry=add
        )
        self.seconds = Histogram(
            "recsys_request_seconds",
            "Time from the first byte of a rank request to its answer.",
            buckets=_SECONDS,
            registry=add,
        )
        self.candidates = Histogram(
            "recsys_candidates",
            "Candidates of answered requests.",
            buckets=_CANDIDATES,
            registry=add,
        )
        self.running = Gauge("recsys_running", "Rank requests at work or in line.", registry=add)
        self.unknown_users = Counter(
            "recsys_unknown_users",
            "Answered requests of users that the table lacks.",
            registry=add,
        )
        self.unknown_items = Counter(
            "recsys_unknown_items", "Candidates that the table lacks.", registry=add
        )
        self.model_version = Gauge("recsys_model_version", "The version that serves.", registry=add)
        self.swaps = Counter("recsys_model_swaps", "Versions taken up.", registry=add)
        self.refused = Counter("recsys_model_refused", "Versions refused.", registry=add)
        self.table_reloads = Counter(
            "recsys_table_reloads", "Feature tables taken up while serving.", registry=add
        )
        self.refused_tables = Counter(
            "recsys_tables_refused", "Feature tables refused.", registry=add
        )
        self.poll_failures = Counter(
            "recsys_poll_failures", "Looks at the folders that failed.", registry=add
        )

    def text(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)
