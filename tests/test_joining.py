"""How real nodes come to know each other, and what they hear of one that goes."""

from __future__ import annotations

import random
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from loadtests.network import Site
from tests.http import ask
from tests.hub.process import HubProcess
from tests.netns import Unsupported, network
from tests.node import NodeProcess, meet

REPO, FILE = "acme/tiny", "model.safetensors"
TARGET = f"/{REPO}/resolve/main/{FILE}"
CONTENT = random.Random(8).randbytes((3 << 20) + 77)


def test_where_no_address_is_told_nodes_find_each_other_and_share_one_copy(tmp_path: Path) -> None:
    with ExitStack() as stack:
        try:
            net = stack.enter_context(network(3, prefix="10.215.0"))
        except Unsupported as reason:
            pytest.skip(str(reason))
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
        assert [node.stop() for node in nodes] == [0, 0]
        assert not any("Traceback" in node.log() for node in nodes)
