"""The pins, in a file of their own: unlike the content of the catalog, they cannot be asked for again."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from mesh import layout
from mesh.content import Digest
from mesh.errors import StoreUnusable
from proxy.aside import names_aside

log = logging.getLogger(__name__)

_Repos = dict[str, list[str]]  # digests by repository


class Pins:
    """Blobs that are never evicted, each pinned for one or more repositories. Belongs to the event loop's thread.

    `earlier`: the pins to begin with when there is no file, from where earlier versions kept them.

    Raises StoreUnusable for a file that cannot be read; a damaged one is put aside, and the log says so.
    """

    def __init__(self, file: Path, earlier: Mapping[str, list[str]]) -> None:
        self._file = file
        self._changing = asyncio.Lock()
        self._repos: _Repos = {}
        self._by_digest: dict[str, set[str]] = {}
        self._set(self._read(earlier))

    def repos_of(self, digest: Digest) -> set[str]:
        """The repositories that a blob is pinned for. Callers must not change the set."""
        return self._by_digest.get(str(digest), set())

    def has(self, digest: Digest) -> bool:
        """Whether a blob is pinned for any repository."""
        return str(digest) in self._by_digest

    def of(self, repo: str) -> set[str]:
        """The digests pinned for a repository, as text."""
        return set(self._repos.get(repo, ()))

    async def add(self, repo: str, digests: Iterable[str]) -> None:
        """Pin more blobs. Raises StoreUnusable when the pins cannot be written; then nothing has changed."""
        async with self._changing:
            await self._change(self._repos | {repo: sorted({*self.of(repo), *digests})})

    async def keep(self, repo: str, digests: Iterable[str] = ()) -> int:
        """Unpin all blobs of a repository except `digests`; returns how many. Raises StoreUnusable as `add` does."""
        async with self._changing:
            kept = sorted(self.of(repo).intersection(digests))
            if gone := len(self.of(repo)) - len(kept):
                others = {name: pinned for name, pinned in self._repos.items() if name != repo}
                await self._change(others | {repo: kept} if kept else others)
            return gone

    # --- inside

    def _set(self, repos: _Repos) -> None:
        self._repos, self._by_digest = repos, {}
        for repo, digests in repos.items():
            for digest in digests:
                self._by_digest.setdefault(digest, set()).add(repo)

    async def _change(self, repos: _Repos) -> None:
        before = self._repos
        self._set(repos)  # before writing, so that new pins protect their blobs at once
        try:
            await asyncio.to_thread(self._write, repos)
        except OSError as error:
            self._set(before)
            raise StoreUnusable(f"the pins stay as they were: cannot write {self._file}: {error.strerror}") from error

    def _read(self, earlier: Mapping[str, list[str]]) -> _Repos:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=_Repos)
        except FileNotFoundError:
            repos = dict(earlier)
        except ValueError as error:  # also raised for a file that is not text; it must not stop the node from starting
            repos, aside = {}, self._put_aside()
            log.error(
                "the pins in %s are damaged (%s): nothing is pinned now; it is kept in %s", self._file, error, aside
            )
        except OSError as error:
            raise StoreUnusable(f"cannot read the pins in {self._file}: {error.strerror}") from error
        if repos:
            try:
                self._write(repos)
            except OSError as error:
                log.warning("cannot write %s, again at the next start: %s", self._file, error.strerror)
        return repos

    def _put_aside(self) -> Path:
        """Rename a damaged file. The last name is reused: a disk that damages so many files has to be looked at."""
        names = names_aside(self._file)
        aside = next((name for name in names if not name.exists()), names[-1])
        self._file.replace(aside)
        return aside

    def _write(self, repos: _Repos) -> None:
        """Replace the file atomically, even if the power fails. Raises OSError."""
        temporary = self._file.with_suffix(".new")
        temporary.touch(0o600)
        with temporary.open("wb") as written:
            written.write(msgspec.json.format(msgspec.json.encode(repos)))
            written.flush()
            os.fsync(written.fileno())
        temporary.replace(self._file)
        layout.flush_directory(self._file.parent)
