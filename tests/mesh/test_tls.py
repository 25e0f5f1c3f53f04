"""A mesh with certificates: which nodes are let in, which are not, and what the log says about them."""

from __future__ import annotations

import asyncio
import logging
import ssl
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from mesh.ask import ask
from mesh.auth import Auth
from mesh.errors import MeshError
from mesh.tls import Tls, load_tls
from tests.mesh.certificates import Authority, Certificate
from tests.mesh.nodes import Node, mesh_node
from tests.mesh.origin import Origin
from tests.mesh.test_mesh import KEY, MIB, content, introduce
from tests.mesh.test_swarm import read

LONG_AGO = {"begins": "20200101000000Z", "ends": "20210101000000Z"}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def mine(authority: Authority) -> Certificate:
    return authority.sign("node")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """A certificate of another authority."""
    return Authority(tmp_path_factory.mktemp("other"), "other").sign("node")


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


def load(certificate: Certificate) -> Tls:
    return load_tls(certificate.cert, certificate.key, certificate.ca)


# --- files


def test_files_that_do_not_belong_together_are_named(
    authority: Authority, mine: Certificate, other: Certificate, tmp_path: Path
) -> None:
    sealed = tmp_path / "sealed.key"
    sealing = ["openssl", "ec", "-in", mine.key, "-aes128", "-passout", "pass:abcd", "-out", sealed]
    subprocess.run(sealing, check=True, capture_output=True)
    one_way = authority.sign("one-way", usage="serverAuth")
    for files, words in (
        ((mine.cert, other.key, mine.ca), f"{other.key} is not the private key of"),
        ((mine.cert, mine.key, other.ca), f"no good with {other.ca}: unable to get local issuer"),
        ((mine.cert, mine.key, mine.key), f"{mine.key} does not hold the certificate of an authority"),
        ((mine.key, mine.key, mine.ca), "do not hold a certificate and its key"),
        ((mine.cert, sealed, mine.ca), "protected by a password"),
        ((one_way.cert, one_way.key, one_way.ca), "unsuitable certificate purpose"),
    ):
        with pytest.raises(ValueError, match=words):
            load_tls(*files)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_tls(mine.cert, mine.key, Path("/nowhere"))


def test_a_certificate_for_both_purposes_will_do_and_one_that_has_expired_is_told(authority: Authority) -> None:
    good = load(authority.sign("both", usage="serverAuth,clientAuth"))
    assert good.trouble(time.time()) == ""
    assert "not valid yet" in good.trouble(good.begins_at - 1)
    assert "has expired" in load(authority.sign("old", **LONG_AGO)).trouble(time.time())


# --- a mesh


@pytest.mark.parametrize("key", [None, KEY], ids=["certificates", "and a key"])
async def test_a_file_comes_in_once_and_moves_over_tls(
    stack: AsyncExitStack, tmp_path: Path, mine: Certificate, key: bytes | None
) -> None:
    origin = await stack.enter_async_context(Origin(content(24 * MIB + 5)).running())
    tls = load(mine)
    nodes = [await stack.enter_async_context(mesh_node(tmp_path / str(i), tls=tls, key=key)) for i in range(3)]
    await introduce(nodes)
    bodies = await asyncio.gather(*(read(node.blobs, origin) for node in nodes))
    assert all(body == origin.content for body in bodies)
    assert origin.sent == len(origin.content)
    # On a busy machine a piece may be requested from a second peer, too.
    assert sum(node.house.stats.peer_received for node in nodes) >= 2 * len(origin.content)
    assert nodes[0].mesh.exchange.is_keyed


async def test_pieces_are_not_read_off_the_wire(stack: AsyncExitStack, tmp_path: Path, mine: Certificate) -> None:
    """An observer between two nodes sees none of the bytes that they move, in large and in small answers."""
    origin = await stack.enter_async_context(Origin(b"plain to see" * (MIB // 4)).running())
    one = await stack.enter_async_context(mesh_node(tmp_path / "one", tls=load(mine)))
    assert await read(one.blobs, origin) == origin.content
    seen = bytearray()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, onward = await asyncio.open_connection(*one.address)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(1 << 16):
                seen.extend(data)
                sink.write(data)
                await sink.drain()
            sink.close()

        await asyncio.gather(pump(reader, onward), pump(there, writer), return_exceptions=True)

    listener = await asyncio.start_server(pass_on, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    url = f"https://127.0.0.1:{port}/mesh/blobs/{origin.digest}"
    async with aiohttp.ClientSession() as session:
        for size in (100, len(origin.content)):
            headers = {"Range": f"bytes=0-{size - 1}"}
            async with session.get(url, headers=headers, ssl=load(mine).client) as response:
                assert await response.read() == origin.content[:size]
    listener.close()
    assert len(seen) > len(origin.content)
    assert b"plain to see" not in seen


async def call(node: Node, tls: Tls | None, *, key: bytes | None = None) -> str:
    """Send a node a request; return the answer's text, or that of the error."""
    async with aiohttp.ClientSession() as session:
        try:
            return (await ask(session, Auth("x", key, tls=tls), node.address, "/mesh/nothing", b"", limit=99)).decode()
        except (OSError, MeshError) as error:
            return str(error)


async def test_strangers_are_refused_and_the_log_says_once_why(
    stack: AsyncExitStack,
    tmp_path: Path,
    authority: Authority,
    mine: Certificate,
    other: Certificate,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    node = await stack.enter_async_context(mesh_node(tmp_path / "node", tls=load(mine)))
    expired = load(authority.sign("old", **LONG_AGO))
    careless = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks no certificate and shows none
    careless.check_hostname, careless.verify_mode = False, ssl.CERT_NONE
    foreign = load(other)
    foreign.client.verify_mode = ssl.CERT_NONE
    assert "HTTP 404" in await call(node, load(mine))
    for tls, words in (
        (replace(load(mine), client=careless), "not one of this mesh (--mesh-tls-ca-file): it has none"),
        (foreign, "another authority signed it"),
        (expired, "certificate has expired"),
        (None, "it does not speak TLS, but this mesh has certificates"),
    ):
        caplog.clear()
        node.mesh.auth._logged.clear()
        for _ in range(3):
            assert "HTTP" not in await call(node, tls)
        said = [r.getMessage() for r in caplog.records if "refused a connection of 127.0.0.1" in r.getMessage()]
        assert len(said) == 1, words
        assert words in said[0]
    # The caller's own error says so, too: the other node is of another mesh, or its own certificate has expired.
    assert "not one of this mesh" in await call(node, load(other))
    assert await call(node, expired) == "it does not accept our certificate (--mesh-tls-cert-file): it has expired"
    # Over TLS the key is required as well.
    keyed = await stack.enter_async_context(mesh_node(tmp_path / "keyed", tls=load(mine), key=KEY))
    assert "HTTP 404" in await call(keyed, load(mine), key=KEY)
    assert "it has a mesh key, but this node has none" in await call(keyed, load(mine))


async def test_nodes_of_two_meshes_do_not_meet(
    stack: AsyncExitStack, tmp_path: Path, mine: Certificate, other: Certificate
) -> None:
    origin = await stack.enter_async_context(Origin(content(3 * MIB)).running())
    inside = [await stack.enter_async_context(mesh_node(tmp_path / str(i), tls=load(mine))) for i in range(2)]
    await introduce(inside)
    for name, options in (("plain", {}), ("keyed", {"key": KEY}), ("other", {"tls": load(other)})):
        stranger = await stack.enter_async_context(mesh_node(tmp_path / name, **options))  # type: ignore[arg-type]
        for one, there in ((stranger, inside[0]), (inside[0], stranger)):
            with pytest.raises((OSError, MeshError, ValueError)):
                await one.mesh.gossip.join(there.address)
        assert not stranger.mesh.members.alive()
        assert await read(stranger.blobs, origin) == origin.content
        assert stranger.house.stats.peer_received == 0
    assert all(len(node.mesh.members.alive()) == 1 for node in inside)


# --- the door


async def test_when_there_is_no_room_the_oldest_connection_of_the_greediest_goes(
    stack: AsyncExitStack, tmp_path: Path
) -> None:
    node = await stack.enter_async_context(mesh_node(tmp_path / "node", connections=8))
    idle = [await asyncio.open_connection(*node.address) for _ in range(20)]
    assert "HTTP 404" in await call(node, None)
    ended = [asyncio.get_running_loop().create_task(reader.read()) for reader, _ in idle[:13]]
    await asyncio.wait_for(asyncio.gather(*ended, return_exceptions=True), 10)
    assert node.runner.server is not None
    assert len(node.runner.server.connections) <= 8
    assert not idle[-1][0].at_eof()
    for _, writer in idle:
        writer.close()
