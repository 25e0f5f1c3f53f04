"""A swarm of real nodes in trouble: a node dies, the origin is gone, the network is split."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from loadtests.network import Site
from mesh.placement import ranked
from tests.http import Answer, ask
from tests.hub.process import HubProcess
from tests.netns import Host, network
from tests.node import NodeProcess, meet, until

MIB = 1 << 20
REPO, FILE = "acme/tiny", "model.safetensors"
CONTENT = random.Random(5).randbytes(10 * MIB + 77)
DIGEST = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
FROM_ORIGIN = "hubmesh_origin_received_bytes_total"


@pytest.fixture
def nodes(hub: HubProcess, tmp_path: Path) -> Iterator[list[NodeProcess]]:
    """Four nodes without a seed, which send slowly; the first is the tracker of CONTENT."""
    hub.folder.commit(REPO, {FILE: CONTENT})
    with ExitStack() as stack:
        contacts: list[str] = []
        started = []
        for number in range(4):
            node = NodeProcess(tmp_path / f"node-{number}", hub.url, "--max-upload", "2MB/s", *contacts)
            started.append(stack.enter_context(node))
            contacts = ["--seed", started[0].mesh]
        meet(started)
        hub.reset()
        by_id = {str(node.status()["node_id"]): node for node in started}
        yield [by_id[name] for name in ranked(DIGEST, by_id)]


def begin(pool: ThreadPoolExecutor, nodes: list[NodeProcess]) -> list[Future[Answer]]:
    return [pool.submit(ask, f"{node.url}/{REPO}/resolve/main/{FILE}") for node in nodes]


def ask_again(url: str) -> Answer:
    """Retry as clients do: a 429 means later."""
    answers = (ask(url) for _ in range(5))
    return next(answer for answer in answers if answer.status != 429)


def test_files_that_share_a_seeds_slow_line_come_once(hub: HubProcess, tmp_path: Path) -> None:
    """At 2 MiB/s each file has a whole piece in time only if they come by turns. A peer goes to the Hub otherwise."""
    files = {f"{number}.bin": random.Random(number).randbytes(2 * MIB + number) for number in range(8)}
    hub.folder.commit(REPO, files)
    hub.turn(bandwidth=2 * MIB)
    with (
        NodeProcess(tmp_path / "seed", hub.url, "--role", "seed") as seed,
        NodeProcess(tmp_path / "peer", hub.url, "--seed", seed.mesh) as peer,
        ThreadPoolExecutor(8) as pool,
    ):
        meet([seed, peer])
        answers = list(pool.map(ask, (f"{peer.url}/{REPO}/resolve/main/{name}" for name in files)))
    assert [answer.body == content for answer, content in zip(answers, files.values(), strict=True)] == [True] * 8
    assert int(hub.stats()["total_bytes"]) < 1.05 * sum(map(len, files.values()))


@pytest.mark.parametrize("victim", [0, 3], ids=["tracker", "holder"])
def test_who_dies_on_the_way_costs_what_it_alone_had(hub: HubProcess, nodes: list[NodeProcess], victim: int) -> None:
    hub.turn(bandwidth=4 * MIB)
    others = [node for node in nodes if node is not nodes[victim]]
    with ThreadPoolExecutor(4) as pool:
        answers = begin(pool, nodes)
        until(lambda: int(hub.stats()["total_bytes"]) >= 5 * MIB, "nothing comes from the Hub")
        nodes[victim].kill()
        del answers[victim]
        assert all(answer.result().body == CONTENT for answer in answers)
    # The living nodes fetched nothing twice: only what the dead one had fetched was fetched again.
    assert sum(node.metric(FROM_ORIGIN) for node in others) <= len(CONTENT)


@pytest.mark.parametrize("leaver", [0, 3], ids=["tracker", "holder"])
def test_who_is_stopped_on_the_way_costs_nothing(hub: HubProcess, nodes: list[NodeProcess], leaver: int) -> None:
    hub.turn(bandwidth=4 * MIB)
    with ThreadPoolExecutor(5) as pool:
        answers = begin(pool, nodes)
        until(lambda: int(hub.stats()["total_bytes"]) >= 3 * MIB, "nothing comes from the Hub")
        stopping = pool.submit(nodes[leaver].stop)
        assert all(answer.result().body == CONTENT for answer in answers)  # its own clients have time, too
        stopping.result()
    assert int(hub.stats()["total_bytes"]) <= len(CONTENT) + MIB


def test_one_copy_between_all_is_enough_when_the_origin_goes(hub: HubProcess, nodes: list[NodeProcess]) -> None:
    with ThreadPoolExecutor(4) as pool:
        answers = begin(pool, nodes)
        until(lambda: sum(node.metric(FROM_ORIGIN) for node in nodes) >= len(CONTENT), "the Hub sends too little")
        hub.turn(dark="close")
        assert not all(answer.done() for answer in answers), "it went too late to matter"
        assert all(answer.result().body == CONTENT for answer in answers)
    assert hub.stats()["total_bytes"] == len(CONTENT)


@pytest.mark.slow
def test_two_halves_cost_a_copy_each_and_are_one_swarm_when_healed(tmp_path: Path) -> None:
    with ExitStack() as stack:
        net = stack.enter_context(network(8, prefix="10.214.0"))
        first, second = net.hosts[:4], net.hosts[4:]
        # Both halves can reach the Hub: it has a server in each.
        fronts = [
            HubProcess(tmp_path / "hub", host=half[0].ip, prefix=tuple(half[0].command())) for half in (first, second)
        ]
        fronts[0].folder.commit(REPO, {FILE: CONTENT})
        nodes: list[NodeProcess] = []
        for half, front in zip((first, second), fronts, strict=True):
            stack.enter_context(front)
            for host in half[1:]:
                contacts = ("--seed", nodes[0].mesh) if nodes else ()
                nodes.append(stack.enter_context(_node(tmp_path / host.namespace, front, host, *contacts)))
        meet(nodes)
        places = [Site(host.ip, host.namespace) for host in (*first[1:], *second[1:])]

        def total() -> list[int]:
            asked = zip(fronts, (first, second), strict=True)
            return [int(Site(half[0].ip, half[0].namespace).call(front.stats)["total_bytes"]) for front, half in asked]

        net.split(second)
        with ThreadPoolExecutor(6) as pool:
            answers = [
                pool.submit(place.call, partial(ask_again, f"{node.url}/{REPO}/resolve/main/{FILE}"))
                for node, place in zip(nodes, places, strict=True)
            ]
            until(lambda: min(total()) >= len(CONTENT) // 2, "a half gets nothing from the Hub")
            net.heal()
            assert all(answer.result().body == CONTENT for answer in answers)
        meet(nodes)
        # One copy for each half, and the piece that rescues a reader while it is not settled which node is the tracker.
        assert sum(total()) <= 2 * len(CONTENT) + MIB


def _node(folder: Path, front: HubProcess, host: Host, *flags: str) -> NodeProcess:
    flags = (*flags, "--max-upload", "1MB/s")
    place = Site(host.ip, host.namespace)
    return NodeProcess(folder, front.url, *flags, mesh_host=host.ip, prefix=place.prefix, call=place.call)
