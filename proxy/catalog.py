"""What this node knows of repositories, kept over restarts: refs, files of commits, API answers.

diskcache holds it. Reads go through a small memory of their own, and writes to disk happen in one thread after the
other, so that the event loop never waits for SQLite. What a `kill -9` loses is asked for again.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import sqlite3
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import diskcache
import msgspec

from mesh.content import Digest
from proxy.hub.metadata import FileMetadata

log = logging.getLogger(__name__)

_MEMORY = 20_000  # entries
_SIZE_LIMIT = 1 << 30  # bytes on disk; diskcache then drops what was not used for longest
_FORMAT = "1"  # of the keys and values below

T = TypeVar("T")


class Ref(msgspec.Struct, frozen=True):
    """The commit that a named revision meant at a time (seconds since the epoch)."""

    commit: str
    said_at: float


class Publicness(msgspec.Struct, frozen=True):
    """Whether the Hub gave something of a repository to an anonymous request, and when."""

    is_public: bool
    said_at: float


class ApiAnswer(msgspec.Struct, frozen=True):
    """An answer of the Hub's API as it came, but for what concerns the connection."""

    status: int
    headers: dict[str, str]
    body: bytes
    said_at: float


class File(msgspec.Struct, frozen=True):
    """A file of a commit, or that there is none."""

    metadata: FileMetadata | None


class BlobName(msgspec.Struct, frozen=True):
    """One name by which a blob is known."""

    repo: str
    path: str


class Catalog:
    """Typed entries by key. Belongs to the event loop's thread.

    A repository's `generation` is part of the keys of everything about it that can change: a write through this node
    raises it, and what was known under the old one is gone at once.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._disk = _open(root)
        self._memory: OrderedDict[str, Any] = OrderedDict()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="catalog")

    async def close(self) -> None:
        """Wait until everything is on disk."""
        await asyncio.get_running_loop().run_in_executor(self._writer, self._disk.close)
        self._writer.shutdown()

    # --- what is kept

    def ref(self, repo: str, revision: str) -> Ref | None:
        return self._get(self._mutable(repo, "ref", revision), Ref)

    def set_ref(self, repo: str, revision: str, ref: Ref) -> None:
        self._set(self._mutable(repo, "ref", revision), ref)

    def file(self, repo: str, commit: str, path: str) -> File | None:
        return self._get(_key("file", repo, commit, path), File)

    def set_file(self, repo: str, commit: str, path: str, file: File) -> None:
        self._set(_key("file", repo, commit, path), file)
        if file.metadata is not None and (digest := file.metadata.digest) is not None:
            self._set(_key("blob", str(digest)), BlobName(repo, path))

    def publicness(self, repo: str) -> Publicness | None:
        return self._get(self._mutable(repo, "public"), Publicness)

    def set_publicness(self, repo: str, publicness: Publicness) -> None:
        self._set(self._mutable(repo, "public"), publicness)

    def answer(self, repo: str, scope: str, question: str) -> ApiAnswer | None:
        """An API answer; `scope` is who may see it: everybody, or one token's holder."""
        return self._get(self._mutable(repo, "api", scope, question), ApiAnswer)

    def set_answer(self, repo: str, scope: str, question: str, answer: ApiAnswer) -> None:
        self._set(self._mutable(repo, "api", scope, question), answer)

    def blob_name(self, digest: Digest) -> BlobName | None:
        """A repository and path that this blob was last known by."""
        return self._get(_key("blob", str(digest)), BlobName)

    def pins(self) -> dict[str, list[str]]:
        """Digests that were pinned, by repository."""
        return self._get(_key("pins"), dict) or {}

    def set_pins(self, pins: dict[str, list[str]]) -> None:
        self._set(_key("pins"), pins)

    def changed(self, repo: str) -> None:
        """Somebody wrote to a repository: forget what may have changed with that."""
        self._set(_key("generation", repo), self._generation(repo) + 1)

    def files_of(self, repo: str) -> Iterator[tuple[str, str, FileMetadata]]:
        """(commit, path, metadata) of every known file of a repository. Reads the whole index: for rare use."""
        start = _key("file", repo, "")
        for key in list(self._disk.iterkeys()):
            if isinstance(key, str) and key.startswith(start):
                _, _, _, commit, path = key.split("\0", 4)
                file = self.file(repo, commit, path)
                if file is not None and file.metadata is not None:
                    yield commit, path, file.metadata

    # --- inside

    def _generation(self, repo: str) -> int:
        return self._get(_key("generation", repo), int) or 0

    def _mutable(self, repo: str, *parts: str) -> str:
        return _key(parts[0], repo, str(self._generation(repo)), *parts[1:])

    def _get(self, key: str, kind: type[T]) -> T | None:
        if key in self._memory:
            self._memory.move_to_end(key)
            value: T | None = self._memory[key]
        else:
            try:
                raw = self._disk.get(key)
                value = None if raw is None else msgspec.msgpack.decode(raw, type=kind)
            except (sqlite3.Error, diskcache.Timeout, OSError, msgspec.DecodeError) as error:
                log.warning("the catalog cannot be read: %s", error)
                value = None
            self._remember(key, value)
        return value

    def _set(self, key: str, value: object) -> None:
        self._remember(key, value)
        self._writer.submit(self._write, key, msgspec.msgpack.encode(value))

    def _write(self, key: str, raw: bytes) -> None:
        try:
            self._disk.set(key, raw)
        except (sqlite3.Error, diskcache.Timeout, OSError) as error:
            log.warning("the catalog cannot be written: %s", error)

    def _remember(self, key: str, value: object) -> None:
        self._memory[key] = value
        self._memory.move_to_end(key)
        while len(self._memory) > _MEMORY:
            self._memory.popitem(last=False)


def _key(*parts: str) -> str:
    return "\0".join((_FORMAT, *parts))


def _open(root: Path) -> Any:
    """The database in a folder; one that cannot be opened is put aside and begun anew: all of it can be asked again."""
    settings = {
        "size_limit": _SIZE_LIMIT,
        "eviction_policy": "least-recently-stored",
        "sqlite_synchronous": 1,  # survives a kill; a power cut may cost the last seconds
        "timeout": 5,
    }
    try:
        cache = diskcache.Cache(str(root), **settings)
        _check(cache)
    except (sqlite3.DatabaseError, ValueError, KeyError) as error:
        aside = root.with_name(root.name + ".damaged")
        log.error("the catalog in %s is damaged (%s): it is begun anew, the old one is kept in %s", root, error, aside)
        shutil.rmtree(aside, ignore_errors=True)
        root.rename(aside)
        cache = diskcache.Cache(str(root), **settings)
    return cache


def _check(cache: Any) -> None:
    """Raise DatabaseError when SQLite finds its own file damaged."""
    [(verdict,)] = cache._sql("PRAGMA quick_check(1)").fetchall()
    if verdict != "ok":
        raise sqlite3.DatabaseError(verdict)
