"""The yardstick for peer-to-peer transfer: the least that Python can do and still hash and store every piece.

    python -m loadtests.relay PORT SOURCE-URL SIZE FOLDER

For each GET, two threads fetch pieces of 8 MiB from the source over keep-alive connections, hash and store them, and
the client's thread sends them in order. The relay has no catalog, no mesh, no authorisation and no second reader: the
difference between it and a node is the cost of those.
"""

from __future__ import annotations

import hashlib
import http.client
import itertools
import os
import queue
import socket
import sys
import tempfile
import threading
from concurrent.futures import Future
from pathlib import Path
from urllib.parse import urlsplit

PIECE = 8 << 20
_AHEAD = 4  # pieces that may be fetched ahead of the client
_FETCHERS = 2


def _serve(client: socket.socket, source: str, size: int, folder: Path) -> None:
    asked = b""
    while b"\r\n\r\n" not in asked:
        part = client.recv(64 << 10)
        if not part:  # a probe of the port, without a request
            client.close()
            return
        asked += part
    pieces: list[Future[memoryview]] = [Future() for _ in range(-(-size // PIECE))]
    numbers, room = itertools.count(), queue.SimpleQueue[bytearray]()
    for _ in range(_AHEAD):
        room.put(bytearray(PIECE))
    with tempfile.TemporaryFile(dir=folder) as file:
        fetchers = [
            threading.Thread(target=_fetch, args=(source, size, pieces, numbers, room, file.fileno()))
            for _ in range(_FETCHERS)
        ]
        for thread in fetchers:
            thread.start()
        client.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode())
        for piece in pieces:
            buffer = piece.result()
            client.sendall(buffer)
            room.put(buffer.obj)  # type: ignore[arg-type]
        for thread in fetchers:
            thread.join()
    client.close()


def _fetch(
    source: str,
    size: int,
    pieces: list[Future[memoryview]],
    numbers: itertools.count[int],
    room: queue.SimpleQueue[bytearray],
    file: int,
) -> None:
    parts = urlsplit(source)
    connection = http.client.HTTPConnection(parts.netloc)
    while True:
        memory = room.get()
        if (number := next(numbers)) >= len(pieces):
            room.put(memory)
            return
        start, stop = number * PIECE, min(size, (number + 1) * PIECE)
        connection.request("GET", parts.path, headers={"Range": f"bytes={start}-{stop - 1}"})
        response = connection.getresponse()
        buffer = memoryview(memory)[: stop - start]
        have = 0
        while have < len(buffer):
            have += response.readinto(buffer[have:])
        response.read()
        hashlib.sha256(buffer).digest()
        os.pwrite(file, buffer, start)
        pieces[number].set_result(buffer)


def main() -> None:
    port, source, size, folder = sys.argv[1:]
    with socket.create_server(("127.0.0.1", int(port))) as server:
        while True:
            client, _ = server.accept()
            threading.Thread(target=_serve, args=(client, source, int(size), Path(folder)), daemon=True).start()


if __name__ == "__main__":
    main()
