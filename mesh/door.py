"""The listener of the mesh port: accepts connections, over TLS where the mesh has certificates, up to a limit.

Connections are accepted here rather than by aiohttp's server, which would not report why a handshake failed.
"""

from __future__ import annotations

import asyncio
import resource
import socket
import ssl
from collections import Counter

from aiohttp import web

from mesh.auth import Auth, NotAuthentic
from mesh.descriptors import notice_lack
from mesh.tasks import Tasks

_HANDSHAKE_SECONDS = 5.0  # seconds a TLS handshake may take
_MAX_HANDSHAKES = 256  # concurrent handshakes
_MAX_CONNECTIONS = 4096
_SHARE = 0.5  # part of the process's limit on open files that connections may use
_PAUSE = 0.1  # seconds before accepting again after an error, such as too many open files
_AT_ONCE = 128  # connections accepted in one turn of the event loop, so that its other work is not held up


class Door:
    """Accepts connections for an aiohttp server. Belongs to the event loop's thread.

    `limit` is the most connections at a time; by default half the limit on open files, but at most 4096.
    """

    def __init__(self, server: web.Server, auth: Auth, tasks: Tasks, *, limit: int | None = None) -> None:
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        share = _MAX_CONNECTIONS if files == resource.RLIM_INFINITY else int(files * _SHARE)
        self._limit = limit or min(_MAX_CONNECTIONS, share)
        self._server = server
        self._auth = auth
        self._tasks = tasks
        self._entering = Tasks()
        self._has_room = asyncio.Event()  # set while another handshake may start
        self._has_room.set()
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None

    def open(self, listener: socket.socket) -> None:
        """Begin to accept connections from `listener`."""
        listener.setblocking(False)
        self._listener = listener
        self._accepting = self._tasks.start(self._accept(listener), name="door")

    async def close(self) -> None:
        """Stop accepting, and break off handshakes. Established connections stay open."""
        if self._accepting is not None and self._listener is not None:
            self._accepting.cancel()
            await asyncio.wait([self._accepting])  # the loop must forget the descriptor before its number is reused
            self._listener.close()
        await self._entering.close()

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            # At the limit new connections wait in the kernel's queue: a peer that was refused would take us for dead.
            await self._has_room.wait()
            await _readable(listener)
            try:
                # Each wait costs a turn of the loop, which is long on a busy node: accept all that are there.
                for _ in range(_AT_ONCE):
                    if not self._has_room.is_set():
                        break
                    self._receive(*listener.accept())
            except BlockingIOError:
                continue
            except OSError as error:  # the peer hung up at once, or too many files are open
                notice_lack(error)
                await asyncio.sleep(_PAUSE)

    def _receive(self, connection: socket.socket, address: tuple[str, ...]) -> None:
        connection.setblocking(False)
        entering = self._entering.start(self._let_in(connection, str(address[0])), name="handshake")

        def entered(entering: asyncio.Task[None]) -> None:
            self._has_room.set()
            if entering.cancelled():  # perhaps before its first step, when nothing else closes the connection
                connection.close()

        entering.add_done_callback(entered)
        if len(self._entering) >= _MAX_HANDSHAKES:
            self._has_room.clear()

    async def _let_in(self, connection: socket.socket, host: str) -> None:
        tls = None if self._auth.tls is None else self._auth.tls.server
        patience = None if tls is None else _HANDSHAKE_SECONDS
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            loop = asyncio.get_running_loop()
            await loop.connect_accepted_socket(self._server, connection, ssl=tls, ssl_handshake_timeout=patience)
            self._make_room()
        except ssl.SSLError as error:
            self._auth.complain(host, NotAuthentic.of_tls(error), "refused a connection of")
        except OSError:  # the peer went away, or sent nothing
            connection.close()

    def _make_room(self) -> None:
        """Above the limit, drop the oldest connection of the host that has the most: an honest node connects again."""
        handlers = self._server.connections
        if len(handlers) <= self._limit:
            return
        # The server still lists a connection that was aborted in this turn of the loop, in which many can come.
        live = [t for handler in handlers if (t := handler.transport) is not None and not t.is_closing()]
        if len(live) > self._limit:
            hosts = [_host(transport) for transport in live]
            greediest = Counter(hosts).most_common(1)[0][0]
            live[hosts.index(greediest)].abort()


async def _readable(listener: socket.socket) -> None:
    """Wait until a connection can be accepted.

    Unlike `loop.sock_accept`, this holds no connection that would be lost when the wait is cancelled.
    """
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(listener, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(listener)


def _host(transport: asyncio.BaseTransport) -> str:
    name = transport.get_extra_info("peername")
    return str(name[0]) if name else ""
