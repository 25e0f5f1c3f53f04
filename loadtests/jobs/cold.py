"""Cold reads: from the origin through one node, and from one node to the next."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from loadtests.client import Load
from loadtests.jobs.bench import Bench, curl, measure
from loadtests.measure import Bar, Sample, Table, interleave
from loadtests.rivals import Rival, cpu_seconds, free_port, nginx, squid
from tests.node import NodeProcess, until

_LIMIT = 250_000_000  # bytes per second: 2 Gbit/s


def tables(bench: Bench) -> Iterator[Table]:
    yield _limited(bench)
    yield _unlimited(bench)
    yield _peer_to_peer(bench)


def _limited(bench: Bench) -> Table:
    """Seconds, with the origin's CDN limited to 2 Gbit/s in all. The node is warmed up with another file."""
    bench.hub.turn(bandwidth=_LIMIT)

    def through() -> Sample:
        with bench.node() as node:
            curl(bench.url(node.url, "small.bin"), node.pid)
            sample = curl(bench.url(node.url), node.pid)
        _tidy(bench)
        return sample

    try:
        targets: dict[str, Callable[[], Sample]] = {
            "curl straight": lambda: curl(bench.url(bench.hub.url), bench.hub.pid),
            "hubmesh": through,
        }
        table = Table("cold-limited", "Cold, origin limited to 2 Gbit/s", "seconds", interleave(bench.rounds, targets))
    finally:
        bench.hub.turn(bandwidth=0)
    late = table.median("hubmesh", lambda s: s.first_byte) - table.median("curl straight", lambda s: s.first_byte)
    table.bars = [
        Bar("time ÷ curl straight", table.ratio("hubmesh"), 1.05, at_most=True),
        Bar("first byte later, ms", late * 1000, 20.0, at_most=True),
    ]
    return table


def _unlimited(bench: Bench) -> Table:
    """GB/s; hubmesh proves and stores, nginx and squid only store."""
    path = bench.signed().removeprefix(bench.hub.cdn_url)

    def through() -> Sample:
        with bench.node() as node:
            sample = measure(Load([bench.url(node.url)]), node.pid)
        _tidy(bench)
        return sample

    def rival(make: Callable[[], Rival | None]) -> Sample:
        made = make()
        assert made is not None
        with made:
            sample = measure(Load([made.url + path]), made.pid)
        _tidy(bench)
        return sample

    makers: dict[str, Callable[[], Rival | None]] = {
        "nginx proxy_cache": lambda: nginx(bench.scratch("nginx"), bench.hub.cdn_url, bench.files),
        "squid": lambda: squid(bench.scratch("squid"), bench.hub.cdn_url),
    }
    targets: dict[str, Callable[[], Sample]] = {
        name: (lambda make=make: rival(make)) for name, make in makers.items() if make() is not None
    }
    targets["hubmesh"] = through
    table = Table("cold", "Cold, origin unlimited", "GB/s", interleave(bench.rounds, targets))
    if "nginx proxy_cache" in targets:
        table.bars = [Bar("hubmesh ÷ nginx proxy_cache", table.ratio("hubmesh"), 2.5)]
    return table


def _tidy(bench: Bench) -> None:
    """Drop and flush what one target wrote: it must not fill memory or be flushed while the next one is measured."""
    for name in ("nginx", "squid"):
        for folder in bench.folder.glob(f"{name}-*"):
            shutil.rmtree(folder / "cache", ignore_errors=True)
    os.sync()


def _peer_to_peer(bench: Bench) -> Table:
    """GB/s from a node that has the file, through a second node that proves and stores it, to a client."""
    with bench.node("--role", "seed") as holder:
        measure(Load([bench.url(holder.url)]), holder.pid)

        def through() -> Sample:
            with _joined(bench, holder) as node:
                before = cpu_seconds(holder.pid)
                sample = measure(Load([bench.url(node.url)]), node.pid)
                sample.server_cpu += cpu_seconds(holder.pid) - before
                if node.metric("hubmesh_origin_received_bytes_total"):
                    raise RuntimeError("bytes came from the origin, and not from the peer")
                return sample

        targets: dict[str, Callable[[], Sample]] = {}
        source = bench.keep(nginx(bench.scratch("nginx"), bench.hub.cdn_url, bench.files))
        if source:
            port = free_port()
            command = [sys.executable, "-m", "loadtests.relay", str(port), f"{source.url}/files/large.bin"]
            relay = bench.keep(Rival("relay", port, [*command, str(bench.size), str(bench.folder)]))
            assert relay is not None

            def relayed() -> Sample:
                before = cpu_seconds(source.pid)
                sample = measure(Load([relay.url + "/"]), relay.pid)
                sample.server_cpu += cpu_seconds(source.pid) - before
                return sample

            targets["relay of threads"] = relayed
        targets["hubmesh"] = through
        table = Table("peer", "From a peer, cold", "GB/s", interleave(bench.rounds, targets))
    if source:
        table.bars = [Bar("hubmesh ÷ the relay", table.ratio("hubmesh"), 0.9)]
    return table


@contextmanager
def _joined(bench: Bench, seed: NodeProcess) -> Iterator[NodeProcess]:
    with bench.node("--seed", seed.mesh) as node:
        until(lambda: node.metric("hubmesh_peers") >= 1, "the nodes do not find each other")
        yield node
