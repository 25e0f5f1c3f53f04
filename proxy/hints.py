"""Hints: how one node names a public file at the Hub to another, which is to fetch it."""

from __future__ import annotations

from urllib.parse import quote

import msgspec

from mesh.wire import Decoder
from proxy.hub.urls import FileRoute, Repo, is_commit, is_file


class Hint(msgspec.Struct, frozen=True):
    """What a seed needs to fetch a public file itself: no token, no signed address."""

    repo: str
    commit: str
    path: str


_hints: Decoder[Hint] = Decoder(Hint)


def encode(route: FileRoute) -> bytes:
    """The hint that names a file at a commit."""
    return msgspec.msgpack.encode(Hint(str(route.repo), route.revision, route.path))


def decode(hint: bytes) -> FileRoute | None:
    """The file that a hint from another node names, to be asked for anonymously; None for a bad hint."""
    try:
        said = _hints.decode(hint)
        repo = Repo.parse(said.repo)
    except ValueError:
        return None
    if not is_commit(said.commit) or len(said.path) > 4096 or not is_file(said.commit, quote(said.path)):
        return None
    return FileRoute(repo, said.commit, said.path)
