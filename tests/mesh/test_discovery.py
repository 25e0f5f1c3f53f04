"""Finding nodes: seeds that start late, names with several addresses, and multicast between real namespaces."""

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Interface
from pathlib import Path

import pytest

from mesh.discovery.dns import resolve
from mesh.discovery.mdns import _nearest
from mesh.discovery.seeds import Seeds
from mesh.membership import Address
from tests.mesh.members import Node, until
from tests.netns import network

ROOT = Path(__file__).parents[2]
LIMIT = 60.0  # seconds


async def test_a_seed_that_is_down_at_the_start_is_joined_when_it_comes_and_again_when_it_returns(caplog):
    seed, peer = await Node("seed").start(), await Node("peer").start()
    try:
        await seed.stop()
        Seeds([seed.address], peer.gossip, peer.tasks).start()
        await until(lambda: "trying again" in caplog.text)
        assert peer.known == set()
        await seed.start()
        await until(lambda: peer.known == {"seed"} and peer.members.get("seed").named_seed)
        await until(lambda: seed.known == {"peer"} and not seed.members.get("peer").named_seed)
        await seed.stop()
        await until(lambda: peer.known == set())
        await seed.start()
        await until(lambda: peer.known == {"seed"} and peer.members.get("seed").named_seed)
        assert caplog.text.count("does not answer") <= 2
    finally:
        await peer.stop()
        await seed.stop()


async def test_another_trouble_with_a_seed_is_said_too_and_the_same_is_not_said_again(caplog):
    peer = await Node("peer").start()
    troubles = [ConnectionRefusedError("nobody listens")] * 3 + [ConnectionError("it hung up")] * 3
    asked = []

    async def ask(*_):
        asked.append(troubles[min(len(asked), len(troubles) - 1)])
        raise asked[-1]

    peer.gossip._ask = ask
    try:
        Seeds([Address("127.0.0.1", 1)], peer.gossip, peer.tasks).start()
        await until(lambda: len(asked) >= len(troubles))
        said = [record.getMessage() for record in caplog.records if "does not answer" in record.getMessage()]
        assert [text.rpartition(": ")[2] for text in said] == ["nobody listens", "it hung up"]
    finally:
        await peer.stop()


async def test_a_name_with_several_addresses_is_several_seeds_and_one_that_it_drops_is_none():
    nodes = [await Node(name).start() for name in ("a", "b", "me")]
    a, b, me = nodes
    answers = [OSError("no such name"), [a.address, b.address, me.address]]

    async def look_up(_):
        found = answers[0] if len(answers) == 1 else answers.pop(0)
        if isinstance(found, OSError):
            raise found
        return found

    try:
        Seeds([Address("seeds.lan", 1)], me.gossip, me.tasks, resolve=look_up, look_again=0.1).start()
        await until(lambda: me.known == {"a", "b"} and all(m.named_seed for m in me.members.alive()))
        answers[0] = [b.address]
        await until(lambda: [m.named_seed for m in me.members.alive()] == [False, True])
        assert me.known == {"a", "b"}
    finally:
        for node in nodes:
            await node.stop()


async def test_two_addresses_of_one_seed_are_one_seed_and_no_news():
    seed, peer = await Node("seed").start(), await Node("peer").start()
    both, joins, join = [seed.address, Address("localhost", seed.address.port)], [], peer.gossip.join

    async def counted(address, **named):
        joins.append(address)
        return await join(address, **named)

    async def look_up(_):
        return both

    peer.gossip.join = counted
    try:
        Seeds([Address("seeds.lan", 1)], peer.gossip, peer.tasks, resolve=look_up, look_again=0.1).start()
        await until(lambda: peer.known == {"seed"} and set(joins) == set(both))
        await asyncio.sleep(3.0)  # during which it was renamed once a second
        assert len(joins) == 2
    finally:
        await peer.stop()
        await seed.stop()


async def test_names_are_resolved_and_what_cannot_be_is_an_error():
    assert await resolve(Address("::1", 7)) == [Address("::1", 7)]
    assert Address("127.0.0.1", 7) in await resolve(Address("localhost", 7))
    for name in ("does-not-exist.invalid", "a" * 300, "a..b"):
        with pytest.raises(OSError):
            await resolve(Address(name, 7))


def test_addresses_on_our_networks_are_tried_first_and_our_own_last():
    own = [IPv4Interface("127.0.0.1/8"), IPv4Interface("172.17.0.1/16"), IPv4Interface("192.168.1.5/24")]
    told = ["10.9.9.9", "127.0.0.1", "172.17.0.1", "192.168.1.9"]
    assert _nearest(told, own) == ["192.168.1.9", "10.9.9.9", "172.17.0.1"]
    assert _nearest(["127.0.0.1"], own[:1]) == ["127.0.0.1"]


class Process:
    """A node in a namespace. `known` has the members that it printed last."""

    def __init__(self, host, name, *, port=8091, key="", seeds=(), mdns=True):
        arguments = {"name": name, "port": port, "key": key, "seeds": list(seeds), "mdns": mdns}
        command = host.command(sys.executable, "-m", "tests.mesh.members", json.dumps(arguments))
        self.name = name
        self.known = None
        self.log = []
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._threads = [threading.Thread(target=read) for read in (self._hear, self._note)]
        for thread in self._threads:
            thread.start()

    def _hear(self):
        for line in self.process.stdout:
            self.known = json.loads(line)

    def _note(self):
        self.log.extend(self.process.stderr)

    def knows(self, *others):
        names = {name if isinstance(name, str) else name.name for name in others} - {self.name}
        return self.known is not None and self.known.keys() == names

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        status = self.process.wait(10)
        for thread in self._threads:
            thread.join()
        self.process.stdout.close()
        self.process.stderr.close()
        return status


@contextmanager
def net(count):
    with ExitStack() as stack:
        made = stack.enter_context(network(count))
        started = []

        def start(host, name, **arguments):
            started.append(Process(host, name, **arguments))
            return started[-1]

        try:
            yield made, start
        finally:
            for process in started:
                if process.process.poll() is None:
                    process.end(signal.SIGKILL)


def wait(condition, *processes):
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, {p.name: (p.known, p.log[-5:]) for p in processes}
        assert all(p.process.poll() is None for p in processes), [p.log for p in processes]
        time.sleep(0.05)


def test_mdns_finds_all_nodes_of_a_network_and_several_on_one_host():
    with net(4) as (made, start):
        one, other, third, fourth = made.hosts
        nodes = [start(one, "a"), start(one, "a2", port=8092), start(other, "b"), start(third, "c")]
        stranger = start(fourth, "x", key="k" * 32)
        wait(lambda: all(node.knows(*nodes) for node in nodes), *nodes)
        assert nodes[2].known["a2"][0] == f"{one.ip}:8092"
        wait(lambda: any("another mesh" in line for line in stranger.log), stranger)
        wait(lambda: stranger.known == {}, stranger)

        assert nodes[3].end() == 0
        assert not any("Traceback" in line for line in nodes[3].log)
        wait(lambda: all(node.knows(*nodes[:3]) for node in nodes[:3]), *nodes[:3])
        # Killed without a goodbye, and back on another port.
        nodes[0].end(signal.SIGKILL)
        rest = nodes[1:3]
        wait(lambda: all(node.knows(*rest) for node in rest), *rest)
        late = start(one, "a", port=8093)
        wait(lambda: all(node.knows(late, *rest) for node in (late, *rest)), late, *rest)


def test_a_seed_alone_introduces_all_and_a_parted_network_comes_together_again():
    with net(4) as (made, start):
        nodes = [start(made.hosts[0], "n0", mdns=False)]
        nodes += [start(host, f"n{host.index}", mdns=False, seeds=[made.hosts[0].ip]) for host in made.hosts[1:]]
        wait(lambda: all(node.knows(*nodes) for node in nodes), *nodes)
        wait(lambda: nodes[3].known["n0"] == [f"{made.hosts[0].ip}:8091", "ALIVE", True], *nodes)
        assert nodes[3].known["n2"] == [f"{made.hosts[2].ip}:8091", "ALIVE", False]
        made.split(made.hosts[2:])
        for half in (nodes[:2], nodes[2:]):
            wait(lambda half=half: all(node.knows(*half) for node in half), *half)
        made.heal()
        wait(lambda: all(node.knows(*nodes) for node in nodes), *nodes)


def test_without_a_network_nodes_run_on_and_find_those_on_their_own_host():
    with net(1) as (made, start):
        (host,) = made.hosts
        made_silent = ["ip", "-n", host.namespace, "link"]
        subprocess.run([*made_silent, "delete", "eth0"], check=True)
        subprocess.run([*made_silent, "set", "lo", "multicast", "on"], check=True)
        nodes = [start(host, "a"), start(host, "b", port=8092)]
        wait(lambda: all(node.knows(*nodes) for node in nodes), *nodes)
        for node in nodes:
            assert node.end() == 0
        subprocess.run([*made_silent, "set", "lo", "down"], check=True)
        subprocess.run(["ip", "-n", host.namespace, "addr", "flush", "dev", "lo"], check=True)
        alone = start(host, "c")
        wait(lambda: any("no mDNS" in line for line in alone.log), alone)
        assert alone.end() == 0
        assert not any("Traceback" in line for line in alone.log)


def test_links_are_as_slow_as_asked():
    with net(2) as (made, _):
        sender, receiver = made.hosts
        made.limit(receiver, down=4e6)
        receive = "import socket; s=socket.create_server(('', 1)); print(flush=True); c=s.accept()[0]; c.send(b'x')\n"
        receive += "while c.recv(1 << 16): pass"
        send = f"import socket; s=socket.create_connection(('{receiver.ip}', 1)); s.recv(1); s.sendall(bytes(4 << 20))"
        sink = subprocess.Popen(receiver.command(sys.executable, "-c", receive), stdout=subprocess.PIPE)
        try:
            sink.stdout.readline()
            began = time.monotonic()
            subprocess.run(sender.command(sys.executable, "-c", send), check=True, timeout=30)
            sink.wait(30)
            assert time.monotonic() - began > 0.8
        finally:
            sink.kill()
            sink.communicate()
