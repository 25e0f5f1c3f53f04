"""How real nodes get to know each other, and what they learn of one that goes."""

from __future__ import annotations

import contextlib
import random
import select
import signal
import socket
import socketserver
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from loadtests.network import Site
from tests.http import ask
from tests.hub.process import HubProcess
from tests.netns import network
from tests.node import NodeProcess, meet, until

REPO, FILE = "acme/tiny", "model.safetensors"
TARGET = f"/{REPO}/resolve/main/{FILE}"
CONTENT = random.Random(8).randbytes((3 << 20) + 77)


def test_where_no_address_is_told_nodes_find_each_other_and_share_one_copy(tmp_path: Path) -> None:
    with ExitStack() as stack:
        net = stack.enter_context(network(3, prefix="10.215.0"))
        away, *places = (Site(host.ip, host.namespace) for host in net.hosts)
        hub = HubProcess(tmp_path / "hub", host=away.host, prefix=away.prefix)
        hub.folder.commit(REPO, {FILE: CONTENT})
        stack.enter_context(hub)
        nodes = [
            stack.enter_context(
                NodeProcess(
                    tmp_path / place.namespace,
                    hub.url,
                    mesh_host="0.0.0.0",
                    prefix=place.prefix,
                    call=place.call,
                    mdns=True,
                )
            )
            for place in places
        ]
        meet(nodes)
        for node, place in zip(nodes, places, strict=True):
            assert place.call(partial(ask, node.url + TARGET)).body == CONTENT
        assert away.call(hub.stats)["total_bytes"] == len(CONTENT)
        first, second = nodes

        def sources() -> list[dict[str, int]]:
            return [blob["sources"] for node in nodes for blob in node.status()["blobs"]]

        told = [{"origin": len(CONTENT)}, {first.status()["node_id"]: len(CONTENT)}]
        until(lambda: sources() == told, "it is not told who sent what")
        assert second.stop() == 0
        second.start()
        assert sources() == told
        assert [node.stop() for node in nodes] == [0, 0]
        assert not any("Traceback" in node.log() for node in nodes)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_of_one_that_stops_the_others_hear_that_it_left(hub: HubProcess, tmp_path: Path, number: int) -> None:
    """A node that merely disappeared stays among the peers for an hour, as gone: it may come back."""
    with ExitStack() as stack:
        stays = stack.enter_context(NodeProcess(tmp_path / "stays", hub.url))
        leaves, dies = (
            stack.enter_context(NodeProcess(tmp_path / name, hub.url, "--seed", stays.mesh))
            for name in ("leaves", "dies")
        )
        meet([stays, leaves, dies])
        names = {node: node.status()["node_id"] for node in (leaves, dies)}
        assert leaves.stop(number) == 0
        until(lambda: stays.metric("hubmesh_peers") == 1, "nobody misses it")
        assert {peer["node_id"] for peer in stays.status()["peers"]} == {names[dies]}
        dies.kill()
        until(lambda: stays.metric("hubmesh_peers") == 0, "nobody misses it")
        assert {peer["node_id"] for peer in stays.status()["peers"]} == {names[dies]}


@pytest.mark.skipif(sys.platform != "linux", reason="the ignored signals are read from /proc")
def test_one_under_nohup_outlives_its_terminal(hub: HubProcess, tmp_path: Path) -> None:
    with NodeProcess(tmp_path / "node", hub.url, prefix=("nohup",)) as node:
        status = Path(f"/proc/{node.pid}/status").read_text()
        ignored = next(line for line in status.splitlines() if line.startswith("SigIgn:"))
        assert int(ignored.split()[1], 16) & 1 << (signal.SIGHUP - 1)


class Relay(socketserver.ThreadingTCPServer):
    """An address that leads to a node, as a router's does: to the one named by `to`. `passed` counts its bytes."""

    to: tuple[str, int]

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), socketserver.BaseRequestHandler)
        self.passed: list[int] = []

    def finish_request(self, request: socket.socket | tuple[bytes, socket.socket], _: object) -> None:
        assert isinstance(request, socket.socket)
        with contextlib.suppress(OSError), socket.create_connection(self.to) as onward:
            ends = {request: onward, onward: request}
            while True:
                for ready in select.select(list(ends), [], [])[0]:
                    if not (part := ready.recv(1 << 16)):
                        return
                    self.passed.append(len(part))
                    ends[ready].sendall(part)


@contextmanager
def relaying() -> Iterator[Relay]:
    with Relay() as relay:
        thread = threading.Thread(target=relay.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield relay
        finally:
            relay.shutdown()
            thread.join()


def test_a_node_is_called_at_the_address_that_it_tells(hub: HubProcess, tmp_path: Path) -> None:
    hub.folder.commit(REPO, {FILE: CONTENT})
    with relaying() as relay, NodeProcess(tmp_path / "other", hub.url) as other:
        told = f"127.0.0.1:{relay.server_address[1]}"
        with NodeProcess(tmp_path / "inside", hub.url, "--seed", other.mesh, "--advertise", told) as inside:
            host, _, port = inside.mesh.rpartition(":")
            relay.to = (host, int(port))
            meet([other, inside])
            assert [peer["address"] for peer in other.status()["peers"]] == [told]
            for node in (inside, other):
                assert ask(node.url + TARGET).body == CONTENT
            assert hub.stats()["total_bytes"] == len(CONTENT)
            assert sum(relay.passed) > len(CONTENT)
