"""The metrics page shows what the data plane counted, under the promised names."""

import json
import time
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from mesh.stats import OTHERS, Stats
from proxy.admin.metrics import Metrics
from tests.http import ask
from tests.hub.process import HubProcess
from tests.node import NodeProcess

MIB = 1 << 20


def figures(metrics: Metrics) -> dict[tuple[str, ...], float]:
    page = metrics.render().decode()
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def test_counters_of_the_data_plane_are_read_when_the_page_is():
    stats = Stats()
    metrics = Metrics(stats)
    assert figures(metrics)["hubmesh_origin_received_bytes_total",] == 0
    stats.add("origin_received", 5)
    stats.add("peer_sent", 7)
    stats.add("peer_received", 8)
    stats.add("client_sent", 9)
    stats.reject("node-b", 2)
    now = figures(metrics)
    assert now["hubmesh_origin_received_bytes_total",] == 5
    assert now["hubmesh_peer_sent_bytes_total",] == 7
    assert now["hubmesh_peer_received_bytes_total",] == 8
    assert now["hubmesh_client_sent_bytes_total",] == 9
    assert now["hubmesh_pieces_rejected_total", "node-b"] == 2


def test_who_calls_itself_something_else_each_time_does_not_fill_the_page():
    stats = Stats()
    for number in range(5000):
        stats.reject(f"liar-{number}")
    stats.reject("liar-0")
    now = figures(Metrics(stats))
    assert now["hubmesh_pieces_rejected_total", "liar-0"] == 2
    assert now["hubmesh_pieces_rejected_total", OTHERS] == 4000
    assert len(stats.pieces_rejected) == 1001


def test_requests_are_counted_by_their_labels_and_timed():
    metrics = Metrics(Stats())
    metrics.origin_request("metadata", 302, 0.2)
    metrics.origin_request("metadata", 302, 20.0)
    metrics.origin_request("body", 0, 4.0)
    metrics.client_request("resolve", 200, "hit", 0.004)
    now = figures(metrics)
    assert now["hubmesh_origin_requests_total", "metadata", "302"] == 2
    assert now["hubmesh_origin_requests_total", "body", "0"] == 1
    # Label values are in the order of the label names: outcome, route, status.
    assert now["hubmesh_client_requests_total", "hit", "resolve", "200"] == 1
    assert now["hubmesh_origin_request_seconds_bucket", "metadata", "0.25"] == 1
    assert now["hubmesh_origin_request_seconds_count", "metadata"] == 2
    assert now["hubmesh_client_first_byte_seconds_bucket", "0.005", "hit", "resolve"] == 1
    assert not [name for name in now if name[0].endswith("_created")]


def test_two_nodes_in_one_process_do_not_share_figures():
    one, other = Metrics(Stats()), Metrics(Stats())
    one.origin_request("api", 200, 0.1)
    assert ("hubmesh_origin_requests_total", "api", "200") not in figures(other)


def test_a_cdn_that_fails_is_seen(hub: HubProcess, tmp_path: Path) -> None:
    hub.folder.commit("acme/tiny", {"w.safetensors": b"x" * 3_000_000})
    hub.turn(fail={"cdn": [500]})
    with NodeProcess(tmp_path / "node", hub.url) as node:
        assert ask(f"{node.url}/acme/tiny/resolve/main/w.safetensors").status == 200
        now = node.status()["metrics"]
        assert now['hubmesh_origin_requests_total{kind="body",status="500"}'] == 1
        assert now['hubmesh_origin_requests_total{kind="body",status="206"}'] == hub.stats()["by_kind"]["cdn"] - 1


def first_byte(node: NodeProcess, *labels: str) -> float:
    """Return the seconds until the first byte of answers with these labels, once they have been recorded."""
    while True:  # recorded once everything has been sent
        for family in text_string_to_metric_families(node.get("/-/metrics").decode()):
            for sample in family.samples:
                if (sample.name, *sample.labels.values()) == ("hubmesh_client_first_byte_seconds_sum", *labels):
                    return sample.value


def test_how_long_a_body_takes_is_no_measure_of_its_first_byte(hub: HubProcess, tmp_path: Path) -> None:
    hub.folder.commit("acme/tiny", {"a.bin": b"aaaa" * MIB, "b.bin": b"bbbb" * MIB})
    commit = hub.folder.load("models", "acme/tiny").refs["heads/main"]
    with NodeProcess(tmp_path / "node", hub.url, "--xet", "always") as node:
        head = ask(f"{node.url}/acme/tiny/resolve/main/b.bin", "HEAD")
        said = ask(f"{node.url}/api/models/acme/tiny/xet-read-token/{commit}")
        cas, access = said["X-Xet-Cas-Url"], said["X-Xet-Access-Token"] or ""
        made = json.loads(ask(f"{cas}/v1/reconstructions/{head['X-Xet-Hash']}", token=access).body)
        [[xorb]] = made["fetch_info"].values()
        hub.turn(bandwidth=4 * MIB)
        for route, url, body_seconds in (
            ("resolve", f"{node.url}/acme/tiny/resolve/main/a.bin", 1.0),
            ("xet", xorb["url"], 1.0),
            ("other", f"{node.url}/api/models/acme/tiny/events", 0.15),
        ):
            began = time.monotonic()
            assert ask(url).status == 200
            took = time.monotonic() - began
            assert first_byte(node, "pass" if route == "other" else "miss", route) < took - body_seconds / 2, route
