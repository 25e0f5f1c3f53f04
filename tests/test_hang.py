"""A node that hangs without dying: its machine accepts connections, but never answers."""

from __future__ import annotations

import hashlib
import http.client
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from mesh.placement import ranked
from tests.hub.process import HubProcess
from tests.node import NodeProcess
from tests.test_site import BIG, Start, site, url

__all__ = ["site"]

MIB = 1 << 20
CLIENT_SECONDS = 10.0  # without a byte, after which Hugging Face clients give up


def stream(node: NodeProcess) -> tuple[str, float]:
    """Read the file as clients do; return its digest, and the longest wait for a byte in seconds."""
    host, _, path = url(node).removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host, timeout=60)
    digest, longest, before = hashlib.sha256(), 0.0, time.monotonic()
    connection.request("GET", f"/{path}")
    response = connection.getresponse()
    while data := response.read1(1 << 16):
        now = time.monotonic()
        longest, before = max(longest, now - before), now
        digest.update(data)
    connection.close()
    return digest.hexdigest(), longest


@contextmanager
def stopped(process: NodeProcess | HubProcess) -> Iterator[None]:
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


@pytest.mark.parametrize("seeds", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_readers_are_rescued_from_a_tracker_that_hangs(hub: HubProcess, site: Start, seeds: int) -> None:
    nodes = site(4, seeds=seeds)
    blob = hashlib.sha256(BIG).hexdigest()
    by_id = {node.status()["node_id"]: node for node in nodes}
    tracker = nodes[0] if seeds else by_id[ranked(f"sha256:{blob}", list(by_id))[0]]
    others = [node for node in nodes if node is not tracker]
    hub.turn(bandwidth=MIB)
    with ThreadPoolExecutor(4) as pool:
        reading = [pool.submit(stream, node) for node in others]
        until = time.monotonic() + 20
        while hub.stats()["total_bytes"] < 3 * MIB and time.monotonic() < until:
            time.sleep(0.02)
        with stopped(tracker):
            ended = [reader.result() for reader in reading]
    assert {digest for digest, _ in ended} == {blob}
    assert max(longest for _, longest in ended) < CLIENT_SECONDS
    assert hub.stats()["total_bytes"] <= 3 * len(BIG)
    while any(node.metric("hubmesh_peers") < 3 for node in nodes):  # the node is a peer again
        time.sleep(0.05)
    assert stream(tracker)[0] == blob


@pytest.mark.slow
def test_a_client_stays_while_the_origin_says_nothing_for_longer_than_it_waits(hub: HubProcess, site: Start) -> None:
    (node,) = site(1)
    hub.turn(bandwidth=MIB)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(stream, node)
        until = time.monotonic() + 20
        while hub.stats()["total_bytes"] < 3 * MIB and time.monotonic() < until:
            time.sleep(0.02)
        with stopped(hub):
            time.sleep(CLIENT_SECONDS + 2)  # a fixed wait: nothing must arrive during it
        digest, longest = reading.result()
    assert digest == hashlib.sha256(BIG).hexdigest()
    assert longest < 6
    assert hub.stats()["total_bytes"] <= len(BIG) + 4 * MIB  # bytes in flight when it stopped
