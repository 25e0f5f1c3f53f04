"""The node's metrics in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from prometheus_client import Metric

    from mesh.stats import Stats
    from proxy.admin.view import NodeView

# Bucket edges in seconds. Clients give up after 10 s: the edges separate fast, slow and nearly lost requests.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 8.0, 10.0, 30.0)

# The "_created" twin of every series doubles the size of the page and is of no use here.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """The metrics of one node since its start, in a registry of its own.

    Kinds of origin requests: metadata, api, body (of a file, from the Hub or its CDN), other. Routes of clients:
    resolve, api, lfs, xet, other, admin. Outcomes: hit, miss, stale, pass, error, broken.
    """

    def __init__(self, stats: Stats) -> None:
        self.registry = CollectorRegistry()
        self._origin_requests = Counter(
            "hubmesh_origin_requests_total",
            "Requests to the origin, by kind and HTTP status (0: no answer).",
            ("kind", "status"),
            registry=self.registry,
        )
        self._origin_seconds = Histogram(
            "hubmesh_origin_request_seconds",
            "Time until the origin began to answer.",
            ("kind",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._client_requests = Counter(
            "hubmesh_client_requests_total",
            "Requests of clients, by route, HTTP status and outcome.",
            ("route", "status", "outcome"),
            registry=self.registry,
        )
        self._first_byte_seconds = Histogram(
            "hubmesh_client_first_byte_seconds",
            "Time until clients got the first byte of their answer.",
            ("route", "outcome"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        # Incrementing a counter is cheaper than looking its series up by labels.
        self._origin_series: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        self._client_series: dict[tuple[str, int, str], tuple[Counter, Histogram]] = {}
        self._totals = _Totals(stats)
        self.registry.register(self._totals)

    def watch(self, node: NodeView) -> None:
        """Add the metrics about the node's peers and blobs."""
        self._totals.node = node

    def origin_request(self, kind: str, status: int, seconds: float) -> None:
        """Count one request to the origin; status 0 means no answer. Safe to call from any thread."""
        series = self._origin_series.get((kind, status))
        if series is None:
            series = self._origin_requests.labels(kind, str(status)), self._origin_seconds.labels(kind)
            self._origin_series[kind, status] = series
        series[0].inc()
        series[1].observe(seconds)

    def client_request(self, route: str, status: int, outcome: str, first_byte_seconds: float) -> None:
        """Count one answered request of a client."""
        key = route, status, outcome
        series = self._client_series.get(key)
        if series is None:
            series = (
                self._client_requests.labels(route, str(status), outcome),
                self._first_byte_seconds.labels(route, outcome),
            )
            self._client_series[key] = series
        series[0].inc()
        series[1].observe(first_byte_seconds)

    def figures(self) -> dict[str, float]:
        """The counters and gauges by name; those with labels as ``name{label="value"}``."""
        figures = {}
        for family in self.registry.collect():
            if family.type in ("counter", "gauge"):
                for sample in family.samples:
                    labels = ",".join(f'{name}="{value}"' for name, value in sample.labels.items())
                    figures[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
        return figures

    def render(self) -> bytes:
        """All metrics as Prometheus text."""
        return generate_latest(self.registry)


class _Totals(Collector):
    """Reads counts that others keep anyway, when it is asked, so that the data plane need not know the metrics."""

    def __init__(self, stats: Stats) -> None:
        self._stats = stats
        self.node: NodeView | None = None

    def collect(self) -> Iterator[Metric]:
        stats = self._stats
        for name, text, value in (
            ("origin_received_bytes", "Bytes of files that came from the origin.", stats.origin_received),
            ("peer_received_bytes", "Bytes of files that came from peers.", stats.peer_received),
            ("peer_sent_bytes", "Bytes of files sent to peers.", stats.peer_sent),
            ("client_sent_bytes", "Bytes of files sent to clients.", stats.client_sent),
        ):
            yield CounterMetricFamily(f"hubmesh_{name}", text, value)
        rejected = CounterMetricFamily(
            "hubmesh_pieces_rejected", "Pieces whose bytes were wrong, by source.", labels=("source",)
        )
        for source, count in stats.pieces_rejected.copy().items():
            rejected.add_metric((source,), count)
        yield rejected
        if self.node is not None:
            usage = self.node.usage()
            yield CounterMetricFamily("hubmesh_evicted_bytes", "Bytes evicted to make room.", usage.evicted_bytes)
            yield GaugeMetricFamily("hubmesh_blob_bytes", "Bytes of disk that blobs take.", usage.blob_bytes)
            yield GaugeMetricFamily("hubmesh_blob_bytes_limit", "Bytes of disk that they may take.", usage.max_bytes)
            peers = sum(peer.is_alive for peer in self.node.peers())
            yield GaugeMetricFamily("hubmesh_peers", "Other nodes of the mesh that are alive.", peers)
