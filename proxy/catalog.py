"""What this node knows about repositories, kept over restarts: refs, files of commits, API answers.

What a `kill -9` loses is asked for again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import msgspec

from mesh.content import Digest
from proxy.hub import clock
from proxy.hub.access import Publicness
from proxy.hub.aliases import Aliases
from proxy.hub.metadata import FileMetadata
from proxy.large import work_on
from proxy.records import Records

_MAX_INLINE = 1 << 10  # bytes of an answer's body; a longer one is an entry of its own
_FORMAT = "2"  # of the keys and values below

T = TypeVar("T", bound=msgspec.Struct)


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


class KeptAnswer(msgspec.Struct, frozen=True):
    """An `ApiAnswer` as it is kept: a body is stored once, however many questions it answers.

    `digest` and `size` are the body's SHA-256 and its length in bytes; if there is no digest, `body` is all of it. That
    is so for short ones, and for what earlier versions kept.
    """

    status: int
    headers: dict[str, str]
    said_at: float
    commit: str = ""
    body: bytes = b""
    digest: str = ""
    size: int = 0


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

    In seconds since the epoch; 0: never. `of_ranges`: the last time that readers of ranges may have been sent some.
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
        self._records = Records(root, answers=_ANSWERS, lasting=_LASTING)
        self.on_shut: Callable[[str], None] = lambda repo: None
        self._aliases = Aliases(self._records.get(_ALIASES, dict[str, str]))

    async def close(self) -> None:
        """Wait until everything is on disk."""
        await self._records.close()

    # --- what is kept

    def ref(self, repo: str, revision: str) -> Ref | None:
        ref = self._said(_key("ref", repo, revision), Ref)
        if ref is None or not ref.commit or ref.said_at <= self.publicness(repo).changed_at:
            return None
        return ref if ref.said_at > self.doubted_at(repo) else Ref(ref.commit, 0.0)

    def set_ref(self, repo: str, revision: str, ref: Ref) -> None:
        known = self._said(_key("ref", repo, revision), Ref)
        if known is None or known.said_at <= ref.said_at:
            self._records.set(_key("ref", repo, revision), ref)

    def forget_ref(self, repo: str, revision: str, said_at: float) -> None:
        """Note that the Hub no longer knows this name. An older meaning is not found any more, whoever tells of it."""
        if self._records.get(_key("ref", repo, revision), Ref) is not None:
            self.set_ref(repo, revision, Ref("", said_at))

    def file(self, repo: str, commit: str, path: str) -> File | None:
        return self._said(_key("file", repo, commit, path), File, "open_at")

    def set_file(self, repo: str, commit: str, path: str, file: File, *, is_name: bool = True) -> None:
        """Keep a file; `is_name`: from now on its blob goes by this name, whatever name it had."""
        self._records.set(_key("file", repo, commit, path), file)
        if file.metadata is not None and (digest := file.metadata.digest) is not None:
            if is_name:
                self._records.set(_key("blob", str(digest)), BlobName(repo, path))
            if file.metadata.xet_hash:
                self.set_xet_name(repo, file.metadata.xet_hash, XetName(commit, path))

    def xet_name(self, repo: str, xet_hash: str) -> XetName | None:
        """A file of a repository, by its Xet hash."""
        names = (self._records.get(_key(kind, repo, xet_hash), XetName) for kind in ("xet", "listed"))
        return next(filter(None, names), None)

    def set_xet_name(self, repo: str, xet_hash: str, name: XetName, *, is_listed: bool = False) -> None:
        """Keep a name; `is_listed`: only a listing has told of it, so it is kept no longer than API answers are."""
        key = _key("listed" if is_listed else "xet", repo, xet_hash)
        if not self._records.remembers(key):  # any one name is enough
            self._records.set(key, name)

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
        self._records.set(_ALIASES, self._aliases.known)
        self._tell_shut(were_open)
        before = math.nextafter(said_at, 0.0)  # what is said with this answer holds
        self._change(void, lambda known: known.written(before))

    def publicness(self, repo: str) -> Publicness:
        first, *others = self._aliases.names(repo)
        known = self._publicness(first)
        for name in others:
            known = known.heeding(self._publicness(name))
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

    def answer(self, repo: str, scope: str, question: str) -> KeptAnswer | None:
        """A kept API answer, see `whole`. `scope` is who may see it: EVERYBODY, or a token's key."""
        answer = self._said(_key("api", repo, scope, question), KeptAnswer)
        return answer if answer is not None and answer.said_at > self.publicness(repo).changed_at else None

    async def whole(self, kept: KeptAnswer | None) -> ApiAnswer | None:
        """A kept answer with its body; None when that is not kept any more."""
        if kept is None:
            return None
        body: bytes | None = kept.body
        if kept.digest:
            body = await self._records.get_body(_key("body", kept.digest), kept.size)
            if body is None or len(body) != kept.size:
                return None
        return ApiAnswer(kept.status, kept.headers, body or b"", kept.said_at, kept.commit)

    async def set_answer(self, repo: str, scope: str, answer: ApiAnswer, *questions: str) -> None:
        """Keep an answer to one or more questions."""
        body = answer.body
        digest = await work_on(body, lambda of: sha256(of).hexdigest()) if len(body) > _MAX_INLINE else ""
        if digest:
            self._records.set(_key("body", digest), body)
        inline = b"" if digest else body
        kept = KeptAnswer(answer.status, answer.headers, answer.said_at, answer.commit, inline, digest, len(body))
        for question in questions:
            self._records.set(_key("api", repo, scope, question), kept)

    def blob_name(self, digest: Digest) -> BlobName | None:
        """The repository and path that this blob was last known by."""
        return self._records.get(_key("blob", str(digest)), BlobName)

    def sources(self, digest: Digest) -> dict[str, int]:
        """The bytes of a blob that each source sent; empty when that is not known, or no longer."""
        return self._records.read(_key("sources", str(digest)), dict[str, int]) or {}

    def set_sources(self, digest: Digest, sources: dict[str, int]) -> None:
        """Keep the bytes by source, on disk alone: read rarely, they would displace more useful entries from memory."""
        self._records.set_on_disk(_key("sources", str(digest)), sources)

    def disproof(self, digest: Digest) -> Disproof:
        """When bytes of a blob last turned out to be wrong. Kept over restarts, as clients keep what they were sent."""
        return self._records.get(_key("disproved", str(digest)), Disproof) or Disproof()

    def disprove(self, digest: Digest, of_ranges: bool) -> None:
        now = time.time()
        self._records.set(
            _key("disproved", str(digest)), Disproof(now, now if of_ranges else self.disproof(digest).of_ranges)
        )

    def earlier_pins(self) -> dict[str, list[str]]:
        """Digests by repository, as earlier versions kept pins here (now in `proxy.pins`)."""
        return self._records.get(_key("pins"), dict[str, list[str]]) or {}

    def changed(self, repo: str) -> None:
        """Note a write to a repository: everything said of it until now may be outdated."""
        now = time.time()
        self._change(self._aliases.names(repo), lambda known: known.written(now))

    def doubt(self, repo: str) -> None:
        """Note that a client may have written to a repository: nothing said of it until now is fresh any more."""
        for name in self._aliases.names(repo):
            self._records.set(_key("doubt", name), time.time())

    def doubted_at(self, repo: str) -> float:
        """When `doubt` was last called, in seconds since the epoch; 0: never."""
        now = time.time()
        return max(self._doubted_at(name, now) for name in self._aliases.names(repo))

    def files_of(self, repo: str) -> Iterator[tuple[str, str, FileMetadata]]:
        """(commit, path, metadata) of every known file of a repository."""
        for key in self._records.keys(_key("file", repo, "")):
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

    def _said(self, key: str, kind: type[T], field: str = "said_at") -> T | None:
        """What is kept, with a time that the clock has reached: see `proxy.hub.clock`."""
        known = self._records.get(key, kind)
        if known is None or (at := clock.said(was := getattr(known, field), time.time())) == was:
            return known
        known = msgspec.structs.replace(known, **{field: at})
        self._records.set(key, known)
        return known

    def _publicness(self, repo: str) -> Publicness:
        """What is kept of the publicness under this very name."""
        known = self._records.get(_key("public", repo), Publicness) or Publicness()
        if (dated := known.by(time.time())) is known:
            return known
        self._records.set(_key("public", repo), dated)
        for _ in self.files_of(repo):  # reading them replaces their times, too, before one can seem to follow a refusal
            pass
        if dated.is_shut and not known.is_shut:
            self._tell_shut(self._aliases.leading_to([repo]))
        return dated

    def _doubted_at(self, repo: str, now: float) -> float:
        key = _key("doubt", repo)
        at = self._records.get(key, float) or 0.0
        if (dated := clock.refused(at, now)) != at:
            self._records.set(key, dated)
        return dated

    def _repos(self, repo_type: str) -> Iterator[str]:
        return (key.rpartition("\0")[2] for key in self._records.keys(_key("public", f"{repo_type}/")))

    def _change(self, repos: Iterable[str], change: Callable[[Publicness], Publicness]) -> None:
        """Change what is kept of the publicness under these names."""
        repos = list(repos)
        were_open = self._open_among(self._aliases.leading_to(repos))
        for repo in repos:
            known = self._publicness(repo)
            if (changed := change(known)) != known:
                self._records.set(_key("public", repo), changed)
        self._tell_shut(were_open)

    def _open_among(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if not self.publicness(name).is_shut]

    def _tell_shut(self, were_open: Iterable[str]) -> None:
        for name in were_open:
            if self.publicness(name).is_shut:
                self.on_shut(name)


def _key(*parts: str) -> str:
    return "\0".join((_FORMAT, *parts))


_ALIASES = _key("aliases")
_ANSWERS = tuple(_key(kind, "") for kind in ("api", "body", "listed"))  # what API answers bring
_LASTING = (_key("disproved", ""), _ALIASES)  # entries that cannot be asked for again; they are few and small
