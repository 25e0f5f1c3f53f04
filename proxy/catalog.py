"""What this node knows about repositories, kept over restarts: refs, files of commits, API answers.

diskcache stores it. Entries that were read are also kept in a small cache in memory; one that is not there costs the
event loop about 30 µs of SQLite. A single thread writes to disk, one batch after the other. What a `kill -9` loses is
asked for again.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import diskcache
import msgspec

from mesh.content import Digest
from proxy.database import is_damage, open_database
from proxy.hub.access import Publicness
from proxy.hub.metadata import FileMetadata

log = logging.getLogger(__name__)

_MEMORY = 16 << 20  # bytes, roughly: entries as they are on disk, plus Python's overhead for each
_ENTRY_OVERHEAD = 500
_FORMAT = "2"  # of the keys and values below

T = TypeVar("T")


class Ref(msgspec.Struct, frozen=True):
    """The commit that a named revision meant at `said_at`; an empty commit if the revision did not exist.

    `said_at` is in seconds since the epoch; 0 when the meaning is in doubt.
    """

    commit: str
    said_at: float


class ApiAnswer(msgspec.Struct, frozen=True):
    """An answer of the Hub's API as it came, without headers that concern only the connection.

    `commit` is the commit that an info answer names; `said_at` is in seconds since the epoch.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    said_at: float
    commit: str = ""


class File(msgspec.Struct, frozen=True):
    """A file of a commit, or the fact that there is none (`metadata` None).

    `open_at` is when the Hub last said so to an anonymous request. `is_listed`: known from a tree only, hence without
    Content-Type and Content-Disposition.
    """

    metadata: FileMetadata | None
    open_at: float = 0.0
    is_listed: bool = False


class BlobName(msgspec.Struct, frozen=True):
    """A name by which a blob is known."""

    repo: str
    path: str


class Disproof(msgspec.Struct, frozen=True):
    """When bytes of a blob last turned out to be wrong after they may have been sent; clients may hold some of them.

    In seconds since the epoch; 0: never. `of_ranges`: the last time that this concerned readers of ranges, too.
    """

    at: float = 0.0
    of_ranges: float = 0.0


class XetName(msgspec.Struct, frozen=True):
    """A file that a Xet hash was said to name."""

    commit: str
    path: str


class Catalog:
    """Typed entries by key. Belongs to the event loop's thread.

    After a write to a repository through this node, what was said of it before is void (see `changed`): older refs and
    API answers are no longer found, and an answer that was under way during the write is not kept.

    `on_shut` is called with a repository that was open and now is not.

    Raises StoreUnusable when it cannot be opened, as when the disk is full or another program has locked it.
    """

    def __init__(self, root: Path) -> None:
        self._disk = open_database(root)
        self._memory: OrderedDict[str, tuple[Any, int]] = OrderedDict()
        self._memory_size = 0
        self._pending: dict[str, bytes] = {}
        self._batch: dict[str, bytes] = {}  # being written to disk
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="catalog")
        self._writing: asyncio.Future[None] | None = None
        self._is_broken = False
        self.on_shut: Callable[[str], None] = lambda repo: None

    async def close(self) -> None:
        """Wait until everything is on disk."""
        while self._writing is not None:
            await self._writing
            await asyncio.sleep(0)  # callbacks of a finished write may run after we are woken
        await asyncio.get_running_loop().run_in_executor(self._writer, self._disk.close)
        self._writer.shutdown()
        self._disk.close()  # this thread's connection

    # --- what is kept

    def ref(self, repo: str, revision: str) -> Ref | None:
        ref = self._get(_key("ref", repo, revision), Ref)
        if ref is None or not ref.commit or ref.said_at <= self.publicness(repo).changed_at:
            return None
        return ref if ref.said_at > self.doubted_at(repo) else Ref(ref.commit, 0.0)

    def set_ref(self, repo: str, revision: str, ref: Ref) -> None:
        known = self._get(_key("ref", repo, revision), Ref)
        if known is None or known.said_at <= ref.said_at:
            self._set(_key("ref", repo, revision), ref)

    def forget_ref(self, repo: str, revision: str, said_at: float) -> None:
        """Note that the Hub no longer knows this name. An older meaning is not found any more, whoever tells of it."""
        if self._get(_key("ref", repo, revision), Ref) is not None:
            self.set_ref(repo, revision, Ref("", said_at))

    def file(self, repo: str, commit: str, path: str) -> File | None:
        return self._get(_key("file", repo, commit, path), File)

    def set_file(self, repo: str, commit: str, path: str, file: File, *, is_name: bool = True) -> None:
        """Keep a file; `is_name`: from now on its blob goes by this name, whatever name it had."""
        self._set(_key("file", repo, commit, path), file)
        if file.metadata is not None and (digest := file.metadata.digest) is not None:
            if is_name:
                self._set(_key("blob", str(digest)), BlobName(repo, path))
            if file.metadata.xet_hash:
                self.set_xet_name(repo, file.metadata.xet_hash, XetName(commit, path))

    def xet_name(self, repo: str, xet_hash: str) -> XetName | None:
        """A file of a repository, by its Xet hash."""
        return self._get(_key("xet", repo, xet_hash), XetName)

    def set_xet_name(self, repo: str, xet_hash: str, name: XetName) -> None:
        key = _key("xet", repo, xet_hash)
        if key not in self._memory or self._memory[key][0] is None:  # any one name is enough
            self._set(key, name)

    def publicness(self, repo: str) -> Publicness:
        return self._get(_key("public", repo), Publicness) or Publicness()

    def set_publicness(self, repo: str, publicness: Publicness) -> None:
        was_shut = self.publicness(repo).is_shut
        self._set(_key("public", repo), publicness)
        if publicness.is_shut and not was_shut:
            self.on_shut(repo)

    def told(self, repo: str, said_at: float, *, is_open: bool) -> None:
        """Note that an anonymous request was answered: see `Publicness.told`."""
        known = self.publicness(repo)
        if (told := known.told(said_at, is_open=is_open)) != known:
            self.set_publicness(repo, told)

    def closed(self, repo: str, said_at: float, *, is_hidden: bool = False) -> None:
        """Note that the Hub said, to any client, that files are gated; `is_hidden`: that the repository is private.

        A repository that is closed already keeps its earlier time. So what the Hub has given to anonymous requests
        since then, such as the card of a gated repository, stays open.
        """
        known = self.publicness(repo)
        closed_at, hidden_at, opened_at = known.closed_at, known.hidden_at, max(known.opened_at, known.changed_at)
        if max(closed_at, hidden_at) <= opened_at:
            closed_at = max(closed_at, said_at)
        if is_hidden and hidden_at <= max(opened_at, known.shown_at):
            hidden_at = max(hidden_at, said_at)
        if (closed_at, hidden_at) != (known.closed_at, known.hidden_at):
            self.set_publicness(repo, msgspec.structs.replace(known, closed_at=closed_at, hidden_at=hidden_at))

    def refused(self, repo: str, said_at: float, *, is_closed: bool = True, is_hidden: bool) -> None:
        """Note that an anonymous request was refused.

        `is_closed`: it was for a file. `is_hidden`: it was answered as if there were no such repository.
        """
        known = self.publicness(repo)
        closed_at = max(known.closed_at, said_at) if is_closed else known.closed_at
        hidden_at = max(known.hidden_at, said_at) if is_hidden else known.hidden_at
        self.set_publicness(repo, msgspec.structs.replace(known, closed_at=closed_at, hidden_at=hidden_at))

    def answer(self, repo: str, scope: str, question: str) -> ApiAnswer | None:
        """A kept API answer. `scope` is who may see it: EVERYBODY, or a token's key."""
        answer = self._get(_key("api", repo, scope, question), ApiAnswer)
        return answer if answer is not None and answer.said_at > self.publicness(repo).changed_at else None

    def set_answer(self, repo: str, scope: str, question: str, answer: ApiAnswer) -> None:
        self._set(_key("api", repo, scope, question), answer)

    def blob_name(self, digest: Digest) -> BlobName | None:
        """The repository and path that this blob was last known by."""
        return self._get(_key("blob", str(digest)), BlobName)

    def sources(self, digest: Digest) -> dict[str, int]:
        """The bytes of a blob that each source sent; empty when that is not known, or no longer."""
        return self._read(_key("sources", str(digest)), dict[str, int])[0] or {}

    def set_sources(self, digest: Digest, sources: dict[str, int]) -> None:
        """Keep that on disk alone: it is read rarely, and would displace more useful entries from memory."""
        self._write_soon(_key("sources", str(digest)), msgspec.msgpack.encode(sources))

    def disproof(self, digest: Digest) -> Disproof:
        """When bytes of a blob last turned out to be wrong. Kept over restarts, as clients keep what they were sent."""
        return self._get(_key("disproved", str(digest)), Disproof) or Disproof()

    def disprove(self, digest: Digest, is_trusted: bool) -> None:
        now = time.time()
        self._set(_key("disproved", str(digest)), Disproof(now, now if is_trusted else self.disproof(digest).of_ranges))

    def earlier_pins(self) -> dict[str, list[str]]:
        """Digests by repository, as earlier versions kept pins here (now in `proxy.pins`)."""
        return self._get(_key("pins"), dict[str, list[str]]) or {}

    def changed(self, repo: str) -> None:
        """Note a write to a repository: everything said of it until now may be outdated."""
        self.set_publicness(repo, msgspec.structs.replace(self.publicness(repo), changed_at=time.time()))

    def doubt(self, repo: str) -> None:
        """Note that a client may have written to a repository: nothing said of it until now is fresh any more."""
        self._set(_key("doubt", repo), time.time())

    def doubted_at(self, repo: str) -> float:
        """When `doubt` was last called, in seconds since the epoch; 0: never."""
        return self._get(_key("doubt", repo), float) or 0.0

    def files_of(self, repo: str) -> Iterator[tuple[str, str, FileMetadata]]:
        """(commit, path, metadata) of every known file of a repository."""
        for key in self._keys(_key("file", repo, "")):
            _, _, _, commit, path = key.split("\0", 4)
            if (file := self.file(repo, commit, path)) is not None and file.metadata is not None:
                yield commit, path, file.metadata

    def namesakes(self, repo_type: str, name: str) -> list[str]:
        """The known repositories with this name, of all owners."""
        repos = (key.rpartition("\0")[2] for key in self._keys(_key("public", f"{repo_type}/")))
        return [repo for repo in repos if repo.count("/") == 2 and repo.endswith(f"/{name}")]

    # --- inside

    def _keys(self, start: str) -> list[str]:
        """All keys that begin with `start`, sorted."""
        keys = {key for key in (*self._pending, *self._batch) if key.startswith(start)}
        between = start, start[:-1] + chr(ord(start[-1]) + 1)
        try:
            keys.update(key for (key,) in self._disk._sql("SELECT key FROM Cache WHERE key > ? AND key < ?", between))
        except (sqlite3.Error, diskcache.Timeout) as error:
            self._complain("read", error)
        return sorted(keys)

    def _get(self, key: str, kind: type[T]) -> T | None:
        if key in self._memory:
            self._memory.move_to_end(key)
            known: T | None = self._memory[key][0]
            return known
        value, size = self._read(key, kind)
        if size is not None:
            self._remember(key, value, size)
        return value

    def _read(self, key: str, kind: type[T]) -> tuple[T | None, int | None]:
        """The written value, past the cache in memory, and its size in bytes; (None, None) on an error."""
        raw = self._pending.get(key, self._batch.get(key))
        try:
            if raw is None and not self._is_broken:
                raw = self._disk.get(key)
            value = None if raw is None else msgspec.msgpack.decode(raw, type=kind)
        except Exception as error:  # diskcache raises anything for a damaged row
            self._complain("read", error, is_all=isinstance(error, sqlite3.Error) and is_damage(error))
            return None, None
        return value, len(raw or b"")

    def _set(self, key: str, value: object) -> None:
        raw = msgspec.msgpack.encode(value)
        self._remember(key, value, len(raw))
        self._write_soon(key, raw)

    def _write_soon(self, key: str, raw: bytes) -> None:
        self._pending[key] = raw
        if self._writing is None:
            self._flush()

    def _flush(self) -> None:
        """Write what is pending to disk, in one transaction; what is set meanwhile goes with the next one."""
        self._batch, self._pending = self._pending, {}
        if self._batch and not self._is_broken:
            self._writing = asyncio.get_running_loop().run_in_executor(self._writer, self._write, self._batch)
            self._writing.add_done_callback(lambda _: self._flush())
        else:
            self._batch, self._writing = {}, None

    def _write(self, batch: dict[str, bytes]) -> None:
        try:
            with self._disk.transact():  # with retry=True it would retry without end, whatever the reason
                for key, raw in batch.items():
                    self._disk.set(key, raw)
                    if key.startswith(_LASTING):
                        self._disk._sql("UPDATE Cache SET store_time = ? WHERE key = ?", (_NEVER_OLD, key))
        except Exception as error:
            self._complain("written", error, is_all=is_damage(error))

    def _complain(self, done: str, error: Exception, *, is_all: bool = False) -> None:
        """Log an error; `is_all`: it concerns the whole catalog, not one entry or one attempt."""
        if is_all:
            if not self._is_broken:
                log.error("the catalog cannot be %s (%s): kept in memory only until the next start", done, error)
            self._is_broken = True
        else:
            log.warning("the catalog cannot be %s: %s", done, error)

    def _remember(self, key: str, value: object, size: int) -> None:
        if key in self._memory:
            self._memory_size -= self._memory.pop(key)[1]
        size += len(key) + _ENTRY_OVERHEAD
        self._memory[key] = value, size
        self._memory_size += size
        while self._memory_size > _MEMORY:
            self._memory_size -= self._memory.popitem(last=False)[1][1]


def _key(*parts: str) -> str:
    return "\0".join((_FORMAT, *parts))


# Entries that cannot be asked for again; they are few and small. Their store time lies in the future, so that diskcache
# evicts them last.
_LASTING = _key("disproved", "")
_NEVER_OLD = 1e11  # seconds since the epoch
