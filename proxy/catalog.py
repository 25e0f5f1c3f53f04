"""What this node knows about repositories, kept over restarts: refs, files of commits, API answers.

diskcache stores it. Entries that were read are also kept in a small cache in memory; one that is not there costs the
event loop about 30 µs of SQLite. A single thread writes to disk, one batch after the other. What a `kill -9` loses is
asked for again.
"""

from __future__ import annotations

import asyncio
import logging
import math
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import diskcache
import msgspec

from mesh.content import Digest
from proxy.database import is_damage, open_database
from proxy.hub.access import Publicness
from proxy.hub.aliases import Aliases
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

    A write or a refusal under one name of a repository also counts for the name that the Hub leads to (see `led`), and
    one under that name for all that lead there.

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
        self._aliases = Aliases(self._get(_ALIASES, dict[str, str]))

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

    def led(self, repo: str, to: str, said_at: float) -> str:
        """Note that the Hub led from a name of a repository to another one, unless that is empty. Returns the last."""
        if to and to != repo:
            self._lead(repo, to, said_at)
        return to or repo

    def called(self, repo: str, own: str, said_at: float) -> None:
        """Note a repository's own name, as it was said under this one; if it is the same, the name leads nowhere."""
        self._lead(repo, own, said_at)

    def _lead(self, repo: str, to: str, said_at: float) -> None:
        if self._aliases.is_known(repo, to):
            return
        were_open = self._open_among(self._aliases.leading_to([repo]))
        void = self._aliases.lead(repo, to)
        self._set(_ALIASES, self._aliases.known)
        self._tell_shut(were_open)
        before = math.nextafter(said_at, 0.0)  # what is said with this answer holds
        self._change(void, lambda known: known.written(before))

    def publicness(self, repo: str) -> Publicness:
        first, *others = self._aliases.names(repo)
        known = self._get(_key("public", first), Publicness) or Publicness()
        for name in others:
            known = known.heeding(self._get(_key("public", name), Publicness) or Publicness())
        return known

    def set_publicness(self, repo: str, publicness: Publicness) -> None:
        self._change([repo], lambda _: publicness)

    def told(self, repo: str, said_at: float, *, is_open: bool) -> None:
        """Note that an anonymous request was answered: see `Publicness.told`."""
        known = self.publicness(repo)
        if (told := known.told(said_at, is_open=is_open)) != known:
            self.set_publicness(repo, told)

    def closed(self, repo: str, said_at: float, *, is_hidden: bool = False) -> None:
        """Note that the Hub said, to any client, that files are gated; `is_hidden`: that the repository is private.

        See `Publicness.closed`.
        """
        self._change(self._aliases.names(repo), lambda known: known.closed(said_at, is_hidden=is_hidden))

    def refused(self, repo: str, said_at: float, *, is_closed: bool = True, is_hidden: bool) -> None:
        """Note that an anonymous request was refused.

        `is_closed`: it was for a file. `is_hidden`: it was answered as if there were no such repository.
        """
        how = {"is_closed": is_closed, "is_hidden": is_hidden}
        self._change(self._aliases.names(repo), lambda known: known.refused(said_at, **how))

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
        now = time.time()
        self._change(self._aliases.names(repo), lambda known: known.written(now))

    def doubt(self, repo: str) -> None:
        """Note that a client may have written to a repository: nothing said of it until now is fresh any more."""
        for name in self._aliases.names(repo):
            self._set(_key("doubt", name), time.time())

    def doubted_at(self, repo: str) -> float:
        """When `doubt` was last called, in seconds since the epoch; 0: never."""
        return max(self._get(_key("doubt", name), float) or 0.0 for name in self._aliases.names(repo))

    def files_of(self, repo: str) -> Iterator[tuple[str, str, FileMetadata]]:
        """(commit, path, metadata) of every known file of a repository."""
        for key in self._keys(_key("file", repo, "")):
            _, _, _, commit, path = key.split("\0", 4)
            if (file := self.file(repo, commit, path)) is not None and file.metadata is not None:
                yield commit, path, file.metadata

    def namesakes(self, repo_type: str, name: str) -> list[str]:
        """The known repositories with this name, of all owners."""
        return [repo for repo in self._repos(repo_type) if repo.count("/") == 2 and repo.endswith(f"/{name}")]

    def known_as(self, repo: str) -> set[str]:
        """This name of a repository, and all others known: old ones, and spellings that differ in upper case only."""
        spellings = {repo, *(each for each in self._repos(repo.partition("/")[0]) if each.lower() == repo.lower())}
        return self._aliases.leading_to(name for spelling in spellings for name in self._aliases.names(spelling))

    # --- inside

    def _repos(self, repo_type: str) -> Iterator[str]:
        return (key.rpartition("\0")[2] for key in self._keys(_key("public", f"{repo_type}/")))

    def _change(self, repos: Iterable[str], change: Callable[[Publicness], Publicness]) -> None:
        """Change what is kept of the publicness under these names."""
        repos = list(repos)
        were_open = self._open_among(self._aliases.leading_to(repos))
        for repo in repos:
            known = self._get(_key("public", repo), Publicness) or Publicness()
            if (changed := change(known)) != known:
                self._set(_key("public", repo), changed)
        self._tell_shut(were_open)

    def _open_among(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if not self.publicness(name).is_shut]

    def _tell_shut(self, were_open: Iterable[str]) -> None:
        for name in were_open:
            if self.publicness(name).is_shut:
                self.on_shut(name)

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
_ALIASES = _key("aliases")
_LASTING = (_key("disproved", ""), _ALIASES)
_NEVER_OLD = 1e11  # seconds since the epoch
