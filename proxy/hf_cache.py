"""`--hf-cache`: serving the files of a Hugging Face cache on this machine without another download.

The cache is only read. The name of a file in it proves nothing, and its place says nothing about who may read it. So
its bytes are hashed before they are used, and an anonymous request asks the Hub whether the file is public.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mesh.adopt import take
from mesh.blobs import Blobs
from mesh.content import Digest
from mesh.errors import MeshError
from mesh.store import Store
from proxy.hub.errors import OriginUnavailable
from proxy.hub.urls import TYPES, FileRoute, Repo, is_commit
from proxy.resolve import Resolver
from proxy.units import format_size

log = logging.getLogger(__name__)

_LOOK_AGAIN = 10.0  # seconds between two scans
_SETTLED = 2.0  # seconds without a write, after which a file counts as finished

_Version = tuple[Path, Path, int]  # of a file: its name, the place of its bytes, its time of modification


@dataclass(frozen=True, slots=True)
class Cached:
    """A file of the cache according to its name and place; `changed` tells its versions apart."""

    name: Path
    file: Path  # the place of its bytes: elsewhere in the cache if the name is a link
    digest: Digest
    size: int
    changed: int
    route: FileRoute | None  # where the Hub has it, if a snapshot says so

    @property
    def version(self) -> _Version:
        return self.name, self.file, self.changed


class HfCache:
    """Scans a cache periodically and adopts new files. `run` does all of it."""

    def __init__(self, root: Path, data_dir: Path, *, store: Store, blobs: Blobs, resolver: Resolver) -> None:
        self._root = root
        self._staging = data_dir / "adopting"
        self._device = data_dir.stat().st_dev
        self._store = store
        self._blobs = blobs
        self._resolver = resolver
        self._seen: set[_Version] = set()
        self._refused: set[_Version] = set()
        self._unasked: dict[_Version, tuple[FileRoute, Cached]] = {}  # not known yet whether these are public
        self._is_dark = False
        self._is_over = threading.Event()

    async def run(self) -> None:
        try:
            await self._run()
        finally:
            self._is_over.set()  # else the thread would go on reading a large file for minutes

    async def _run(self) -> None:
        # Files left there by a process that died are our own copies or extra links to files of the cache.
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._store.disk, partial(shutil.rmtree, self._staging, ignore_errors=True))
        while True:
            await self._blobs.settle_doubts()
            try:
                found = await loop.run_in_executor(self._store.disk, lambda: list(scan(self._root)))
                for known in (self._seen, self._refused):  # else they would keep each version of each file for ever
                    known.intersection_update(cached.version for cached in found)
            except OSError as error:  # a file was deleted during the scan
                log.info("cannot look through %s, again in %.0f s: %s", self._root, _LOOK_AGAIN, error)
                found = []
            answers = await self._share()
            for cached in found:
                if cached.version not in self._seen:
                    try:
                        if await self._adopt(cached):
                            self._seen.add(cached.version)
                            answers = answers and await self._share()
                    except (OSError, MeshError) as error:
                        self._complain(cached, f"cannot take over {cached.name} yet: {error}")
            await asyncio.sleep(_LOOK_AGAIN)

    def _complain(self, cached: Cached, trouble: str) -> None:
        """Log each problem once, although it is tried again at each scan."""
        if cached.version not in self._refused:
            self._refused.add(cached.version)
            log.warning("%s", trouble)

    async def _share(self) -> bool:
        """Ask which adopted files are public; False when the Hub does not answer and should be left alone for now."""
        for version, (route, cached) in list(self._unasked.items()):
            del self._unasked[version]
            try:
                file = await self._resolver.ask_public(route, cached.digest, cached.size)
            except OriginUnavailable as error:
                self._unasked[version] = route, cached  # last in order: the failure may concern this file alone
                if not self._is_dark:
                    log.info("whether %s is public is asked again: %s", cached.name, error)
                self._is_dark = True
                return False
            self._is_dark = False
            if file is not None:
                self._blobs.mark_public(cached.digest)
        return True

    async def _adopt(self, cached: Cached) -> bool:
        """Adopt a file; True when it need not be looked at again."""
        is_here = cached.digest in self._store
        about = cached.file.stat()
        if not is_here or not (self._store.is_of(cached.digest, about) or about.st_dev != self._device):
            # A file that no client has asked for must not evict others.
            if not is_here and self._store.size + cached.size > self._store.max_size:
                self._complain(cached, f"{format_size(cached.size)} do not fit into --max-size yet: {cached.name}")
                return False
            # A blob that is being fetched cannot be replaced: reading this file at each scan would be in vain.
            if cached.digest in self._blobs.swarms or time.time() - about.st_mtime < _SETTLED:
                return False
            self._staging.mkdir(exist_ok=True)
            staged = self._staging / cached.digest.hex
            try:
                work = partial(take, may_copy=not is_here, is_over=self._is_over.is_set)
                file = (cached.file, staged, cached.digest, cached.size)
                taken = await asyncio.get_running_loop().run_in_executor(self._store.disk, work, *file)
                if taken is None:
                    log.warning("%s is not what its name says; left alone", cached.name)
                    return True
                if not await self._blobs.adopt(cached.digest, cached.size, taken):
                    return False
            finally:
                staged.unlink(missing_ok=True)
            how = "shares" if is_here else "took over"
            log.info("%s %s with %s", how, format_size(cached.size), cached.name)
        if cached.route is not None:  # without a route it stays restricted: only nodes with the mesh key hear of it
            self._unasked[cached.version] = cached.route, cached
        return True


def scan(root: Path) -> Iterator[Cached]:
    """The complete files of a cache: regular files named by a digest. Reads directories and links only."""
    home = Path(os.path.realpath(root))
    for folder in _entries(root):
        kind, _, name = folder.name.partition("--")
        if kind not in TYPES or not name:
            continue
        try:
            repo = Repo.parse(f"{kind}/{name.replace('--', '/')}")
        except ValueError:
            continue
        blobs = Path(folder.path) / "blobs"
        routes = dict(_routes(repo, Path(folder.path) / "snapshots"))
        for entry in _entries(blobs):
            try:
                digest = Digest("sha256" if len(entry.name) == 64 else "git-sha1", entry.name)
                file = _file(entry, home)
                about = file.stat(follow_symlinks=False)
            except (ValueError, OSError):
                continue  # incomplete, a link to nowhere or out of the cache, or deleted meanwhile
            if stat.S_ISREG(about.st_mode) and about.st_size:
                route = routes.get(entry.name)
                yield Cached(Path(entry.path), file, digest, about.st_size, about.st_mtime_ns, route)


def _file(entry: os.DirEntry[str], home: Path) -> Path:
    """The place of a blob's bytes. Raises OSError if there is none, ValueError if it is outside the cache.

    Files that newer clients fetched over Xet are stored once for all repositories; each repository has a link to them.
    """
    if not entry.is_symlink():
        return Path(entry.path)
    file = Path(os.path.realpath(entry.path, strict=True))
    file.relative_to(home)
    return file


def _routes(repo: Repo, snapshots: Path) -> Iterator[tuple[str, FileRoute]]:
    """(blob name, route of a file with it), from the links of all snapshots."""
    for snapshot in _entries(snapshots):
        if is_commit(snapshot.name):
            for folder, _, files in os.walk(snapshot.path):
                for name in files:
                    link = Path(folder, name)
                    if link.is_symlink():
                        path = link.relative_to(snapshot.path).as_posix()
                        yield os.path.basename(link.readlink()), FileRoute(repo, snapshot.name, path)  # noqa: PTH119


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return []
