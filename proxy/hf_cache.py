"""`--hf-cache`: what a Hugging Face cache on this machine holds is served to the mesh, without another download.

The cache is only read. A file in it proves nothing by its name, and nothing by its place about who may read it: its
bytes are hashed before they count, and the Hub is asked, as anybody could, whether the file is public.
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
from pathlib import Path

from mesh.adopt import take
from mesh.blobs import Blobs
from mesh.content import Digest
from mesh.errors import MeshError
from mesh.store import Store
from proxy.hub.errors import OriginUnavailable
from proxy.hub.urls import FileRoute, Repo, is_commit
from proxy.resolve import Resolver
from proxy.units import format_size

log = logging.getLogger(__name__)

_LOOK_AGAIN = 10.0  # seconds
_SETTLED = 2.0  # seconds without a write: its owner has done with it
_TYPES = ("models", "datasets", "spaces", "kernels")

_Version = tuple[Path, Path, int]  # of a file: its name, where its bytes are, and when they changed


@dataclass(frozen=True, slots=True)
class Cached:
    """A file of the cache as its name and place have it; `changed` tells versions of it apart."""

    name: Path
    file: Path  # where its bytes are: elsewhere in the cache if its name is a link
    digest: Digest
    size: int
    changed: int
    route: FileRoute | None  # where the Hub has it, if a snapshot says so


class HfCache:
    """Looks through a cache now and then, and adopts what is new in it. `run` is its life."""

    def __init__(self, root: Path, data_dir: Path, *, store: Store, blobs: Blobs, resolver: Resolver) -> None:
        self._root = root
        self._staging = data_dir / "adopting"
        self._device = data_dir.stat().st_dev
        self._store = store
        self._blobs = blobs
        self._resolver = resolver
        self._seen: set[_Version] = set()
        self._refused: set[_Version] = set()
        self._unasked: dict[_Version, tuple[FileRoute, Cached]] = {}  # it is not known yet whether anybody may have it
        self._is_dark = False
        self._is_over = threading.Event()

    async def run(self) -> None:
        try:
            await self._run()
        finally:
            self._is_over.set()  # or a thread would go on with a large file for minutes

    async def _run(self) -> None:
        # What is left there by a process that died is ours, or a second name of a file that has its own.
        await asyncio.to_thread(shutil.rmtree, self._staging, ignore_errors=True)
        while True:
            await self._blobs.settle_doubts()
            try:
                found = await asyncio.to_thread(lambda: list(scan(self._root)))
            except OSError as error:  # somebody deletes from it just now
                log.info("cannot look through %s, again in %.0f s: %s", self._root, _LOOK_AGAIN, error)
                found = []
            answers = await self._share()
            for cached in found:
                version = (cached.name, cached.file, cached.changed)
                if version not in self._seen:
                    try:
                        if await self._adopt(cached, version):
                            self._seen.add(version)
                            answers = answers and await self._share()
                    except (OSError, MeshError) as error:
                        self._complain(version, f"cannot take over {cached.name} yet: {error}")
            await asyncio.sleep(_LOOK_AGAIN)

    def _complain(self, version: _Version, trouble: str) -> None:
        """Once of each: it is tried again, look after look."""
        if version not in self._refused:
            self._refused.add(version)
            log.warning("%s", trouble)

    async def _share(self) -> bool:
        """Ask whether anybody may have what is here; False when the Hub does not answer, and is not to be asked now."""
        for version, (route, cached) in list(self._unasked.items()):
            del self._unasked[version]
            try:
                file = await self._resolver.ask_public(route, cached.digest, cached.size)
            except OriginUnavailable as error:
                self._unasked[version] = route, cached  # as the last one: it may be about this file alone
                if not self._is_dark:
                    log.info("whether %s is public is asked again: %s", cached.name, error)
                self._is_dark = True
                return False
            self._is_dark = False
            if file is not None:
                self._blobs.mark_public(cached.digest)
        return True

    async def _adopt(self, cached: Cached, version: _Version) -> bool:
        """Whether this file needs no further look."""
        is_here = cached.digest in self._store
        about = cached.file.stat()
        if not is_here or not (self._store.is_of(cached.digest, about) or about.st_dev != self._device):
            # What is wanted by nobody yet drives nothing out.
            if not is_here and self._store.size + cached.size > self._store.max_size:
                self._complain(version, f"{format_size(cached.size)} do not fit into --max-size yet: {cached.name}")
                return False
            # What is arriving will not be replaced: to read all of this file for it, look after look, would be in vain.
            if cached.digest in self._blobs.swarms or time.time() - about.st_mtime < _SETTLED:
                return False
            self._staging.mkdir(exist_ok=True)
            staged = self._staging / cached.digest.hex
            try:
                taken = await asyncio.to_thread(
                    take,
                    cached.file,
                    staged,
                    cached.digest,
                    cached.size,
                    may_copy=not is_here,
                    is_over=self._is_over.is_set,
                )
                if taken is None:
                    log.warning("%s is not what its name says; left alone", cached.name)
                    return True
                if not await self._blobs.adopt(cached.digest, cached.size, taken):
                    return False
            finally:
                staged.unlink(missing_ok=True)
            how = "shares" if is_here else "took over"
            log.info("%s %s with %s", how, format_size(cached.size), cached.name)
        if cached.route is not None:  # of what nobody else may have, only those with the key hear
            self._unasked[version] = cached.route, cached
        return True


def scan(root: Path) -> Iterator[Cached]:
    """The complete files of a cache: regular files that are named by a hash. Only directories and links are read."""
    home = Path(os.path.realpath(root))
    for folder in _entries(root):
        kind, _, name = folder.name.partition("--")
        if kind not in _TYPES or not name:
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
                continue  # partial (….incomplete), a link that leads nowhere or out of the cache, or gone since
            if stat.S_ISREG(about.st_mode) and about.st_size:
                route = routes.get(entry.name)
                yield Cached(Path(entry.path), file, digest, about.st_size, about.st_mtime_ns, route)


def _file(entry: os.DirEntry[str], home: Path) -> Path:
    """Where a blob's bytes are. Raises OSError if nowhere, ValueError if not in the cache.

    What newer clients fetched over Xet is there once for all repositories, and each of these has a link to it.
    """
    if not entry.is_symlink():
        return Path(entry.path)
    file = Path(os.path.realpath(entry.path, strict=True))
    file.relative_to(home)
    return file


def _routes(repo: Repo, snapshots: Path) -> Iterator[tuple[str, FileRoute]]:
    """(name of a blob, where it stands in a commit), from the links of all snapshots."""
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
