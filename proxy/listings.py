"""Metadata of files as told by trees, so that the Hub need not be asked for each file again.

Kept in memory alone: what is lost is asked for again. A listing proves nothing about who may read, since anybody may
list a gated repository. So the time is kept next to it at which an answer to an anonymous request about this very
commit said that the repository is neither private nor gated. Such an answer about an older commit is not enough: the
repository may have been gated in between.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import msgspec

from proxy.hub.metadata import FileMetadata

_MAX_FILES = 20_000  # files of all commits together, about 9 MB


class _Commit(msgspec.Struct):
    open_at: float = 0.0
    files: dict[str, FileMetadata] = {}


class Listings:
    """Listed files by (repository, commit, path); the commit updated least recently is dropped first."""

    def __init__(self, limit: int = _MAX_FILES) -> None:
        self._limit = limit
        self._size = 0
        self._commits: OrderedDict[tuple[str, str], _Commit] = OrderedDict()

    def add(self, repo: str, commit: str, files: Iterable[tuple[str, FileMetadata]]) -> None:
        """Keep what a tree says about the files at these paths."""
        kept = self._commit(repo, commit)
        before = len(kept.files)
        kept.files.update(files)
        self._grow(len(kept.files) - before)

    def open(self, repo: str, commit: str, said_at: float) -> None:
        """Note that the Hub told an anonymous request at `said_at` that anybody may have the files of this commit."""
        kept = self._commit(repo, commit)
        kept.open_at = max(kept.open_at, said_at)

    def find(self, repo: str, commit: str, path: str) -> tuple[FileMetadata, float] | None:
        """A listed file of a commit that was said to be open, and when (seconds since the epoch); else None."""
        kept = self._commits.get((repo, commit))
        if kept is None or not kept.open_at or path not in kept.files:
            return None
        return kept.files[path], kept.open_at

    def _commit(self, repo: str, commit: str) -> _Commit:
        if (kept := self._commits.get((repo, commit))) is None:
            kept = self._commits[repo, commit] = _Commit()
            self._grow(1)
        self._commits.move_to_end((repo, commit))
        return kept

    def _grow(self, count: int) -> None:
        self._size += count
        while self._size > self._limit:
            _, dropped = self._commits.popitem(last=False)
            self._size -= 1 + len(dropped.files)
