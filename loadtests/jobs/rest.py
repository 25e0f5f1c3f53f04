"""What a node needs at rest, after much work and with many blobs; and how long its event loop is blocked."""

from __future__ import annotations

import json
import os
import secrets
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loadtests.client import Load
from loadtests.jobs.bench import GIB, Bench, run
from loadtests.measure import Bar, Sample, Table
from loadtests.rivals import memory
from tests.node import NodeProcess

_SERVED, _BLOBS = 10 * GIB, 10_000
_MANY = "acme/blobs"


def tables(bench: Bench) -> Iterator[Table]:
    yield _memory(bench)
    yield _stalls(bench)


def _memory(bench: Bench) -> Table:
    """MB of resident memory (all of it at rest, the anonymous part after work), and seconds from start to ready.

    Multicast DNS is on, as by default; here it runs on loopback, like the mesh port, and a key of its own keeps out
    other nodes that are announced there.
    """
    key = bench.scratch("key")
    key.write_text(secrets.token_hex(32))
    default = ("--mdns", "--mesh-key-file", str(key))
    files = {f"{number}.txt": f"number {number}\n".encode() for number in range(_BLOBS)}
    bench.hub.folder.commit(_MANY, files)
    samples: dict[str, list[Sample]] = {}
    with bench.node(*default) as node:
        samples["at rest, resident MB"] = [Sample(memory(node.pid)["VmRSS"] / 1e6)]
        run(Load([bench.url(node.url)], requests=-(-_SERVED // bench.size)))
        samples["10 GB served, anonymous MB"] = [Sample(memory(node.pid)["RssAnon"] / 1e6)]
        urls = [f"{node.url}/{_MANY}/resolve/main/{name}" for name in files]
        run(Load(urls, connections=16, requests=len(urls)))
        samples["10 GB served and 10,000 blobs held, anonymous MB"] = [Sample(memory(node.pid)["RssAnon"] / 1e6)]
        node.stop()
        # With mDNS a node waits for others before it is ready. Nobody answers here, so that time is not work.
        for name, flags in (("without mDNS", ()), ("with mDNS and no other node", default)):
            with NodeProcess(node.data_dir, bench.hub.url, "--log-level", "warning", *flags) as again:
                ready = [Sample(_restart(again)) for _ in range(bench.rounds)]
                samples[f"start to ready with 10,000 blobs, {name}, s"] = ready
                if len(again.status()["blobs"]) < 1:
                    raise RuntimeError("the node forgot its blobs")
                resident = Sample(memory(again.pid)["VmRSS"] / 1e6)
        samples["started with 10,000 blobs, resident MB"] = [resident]
    table = Table("memory", "Memory and start", "value", samples)
    limits = (60.0, 120.0, 120.0, 1.5)
    table.bars = [
        Bar(what, table.median(what), limit, at_most=True) for what, limit in zip(samples, limits, strict=False)
    ]
    return table


def _restart(node: NodeProcess) -> float:
    """Restart a node and return the seconds until it is ready."""
    node.stop()
    began = time.monotonic()
    node.start()
    return time.monotonic() - began


def _stalls(bench: Bench) -> Table:
    """The longest delays of the event loop's ticker, in ms, while 10 GB are transferred."""
    seen = bench.scratch("loop").with_suffix(".json")
    samples: dict[str, list[Sample]] = {}
    with bench.node(module="loadtests.watched", LOOP_WATCH=str(seen)) as node:
        _ask(node, seen)
        run(Load([bench.url(node.url)]))
        samples["cold, one stream"] = _told(node, seen)
        run(Load([bench.url(node.url)], connections=8, requests=-(-_SERVED // bench.size)))
        samples["warm, eight streams, 10 GB"] = _told(node, seen)
        run(Load([bench.url(node.url)], connections=16, seconds=5.0, range_size=64 << 10, size=bench.size))
        samples["warm, ranges of 64 KiB"] = _told(node, seen)
    table = Table(
        "stalls", "Event loop: longest delay (ms), and the loop's CPU time in it (column first byte ms)", "ms", samples
    )
    table.bars = [Bar(f"{name}: ms", max(s.value for s in kept), 20.0, at_most=True) for name, kept in samples.items()]
    return table


def _told(node: NodeProcess, seen: Path) -> list[Sample]:
    said = _ask(node, seen)
    return [Sample(late, first_byte=busy / 1000) for late, busy in zip(said["late"][:5], said["busy"], strict=False)]


def _ask(node: NodeProcess, seen: Path) -> dict[str, Any]:
    seen.unlink(missing_ok=True)
    os.kill(node.pid, signal.SIGUSR1)
    until = time.monotonic() + 10
    while not seen.exists():
        if time.monotonic() > until:
            raise RuntimeError("the node does not tell of its loop")
        time.sleep(0.01)
    document: dict[str, Any] = json.loads(seen.read_text())
    return document
