"""The blobs that this node holds, by repository, for its pages and commands; also pins, removal and preheating."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from mesh.blobs import Blobs
from mesh.content import Digest
from mesh.errors import StoreUnusable
from mesh.mesh import Mesh
from mesh.messages import ORIGIN
from mesh.stats import Stats
from mesh.store import Store
from mesh.swarm import Swarm
from mesh.turns import Turns
from proxy.admin.view import BlobView, DownloadView, PeerView, Preheat, Removed, UsageView
from proxy.catalog import BlobName, Catalog
from proxy.pins import Pins
from proxy.preheat import Preheater
from proxy.version import VERSION


class Inventory:
    """A node as its own pages see it (`proxy.admin.view.NodeView`)."""

    version = VERSION

    def __init__(
        self,
        *,
        node_id: str,
        role: str,
        settings: Sequence[str],
        stats: Stats,
        catalog: Catalog,
        pins: Pins,
        store: Store,
        blobs: Blobs,
        mesh: Mesh,
        preheater: Preheater,
    ) -> None:
        self.node_id, self.role, self.settings, self.stats = node_id, role, settings, stats
        self._catalog, self._pins, self._store = catalog, pins, store
        self._blobs, self._mesh, self._preheater = blobs, mesh, preheater
        catalog.on_shut = self._unshare

    # --- what there is

    def ready(self) -> tuple[bool, str]:
        if not self._mesh.gossip.ready.is_set():
            return False, "looking for other nodes"
        return True, ""

    def usage(self) -> UsageView:
        return UsageView(self._store.size, self._store.max_size, self._store.evicted_bytes)

    def peers(self) -> Sequence[PeerView]:
        members, now = self._mesh.members, time.monotonic()
        return [
            PeerView(
                m.node_id,
                str(m.address),
                m.role,
                is_alive=is_alive,
                seen_seconds_ago=max(0.0, now - (members.seen_at(m.node_id) or now)),
            )
            for some, is_alive in ((members.alive(), True), (members.gone(), False))
            for m in some
        ]

    async def blobs(self, *, with_sources: bool = False) -> Sequence[BlobView]:
        views, turns = [], Turns()
        for digest, size, used_at in list(self._store.blobs()):
            await turns.give()
            name, is_pinned = self._name(digest), self._pins.has(digest)
            sources = self._catalog.sources(digest) if with_sources else {}
            views.append(
                BlobView(str(digest), size, size, name.repo or None, name.path or None, is_pinned, used_at, sources)
            )
        for digest, size, have in list(self._store.partials()):
            await turns.give()
            name, is_pinned = self._name(digest), self._pins.has(digest)
            views.append(BlobView(str(digest), size, have, name.repo or None, name.path or None, is_pinned))
        return views

    def downloads(self) -> Sequence[DownloadView]:
        return [self._download(swarm) for swarm in self._blobs.swarms.values()]

    # --- what can be done

    async def pin(self, repo: str, revision: str | None) -> int:
        here = set(map(str, await self._of(repo, revision) & self._here()))
        if not here:
            raise LookupError(f"this node holds nothing of {repo}")
        await self._pins.add(repo, here)
        return len(here)

    async def unpin(self, repo: str) -> int:
        if not (freed := await self._pins.keep(repo)):
            raise LookupError(f"{repo} is not pinned")
        return freed

    async def remove(self, repo: str) -> Removed:
        if not (here := await self._of(repo) & self._here()):
            raise LookupError(f"this node holds nothing of {repo}")
        freed, elsewhere, refused = 0, set(), None
        for digest in here:
            if self._pins.repos_of(digest) - {repo}:
                elsewhere.add(digest)
                continue
            try:
                freed += await self._store.remove(digest)
            except StoreUnusable as error:  # the others can still be removed
                refused = error
        left = (here & self._here()) - elsewhere
        try:
            await self._pins.keep(repo, map(str, left))
        except StoreUnusable as error:
            refused = refused or error
        if refused is not None:
            raise StoreUnusable(f"{refused}; {freed} bytes were freed") from refused
        return Removed(freed, in_use=len(left), pinned=len(elsewhere))

    async def preheat(self, order: Preheat) -> int:
        return await self._preheater.order(order)

    # --- inside

    def _unshare(self, repo: str) -> None:
        """Stop sharing the blobs of a repository that is not public any more with strangers in an open mesh.

        Blobs that another repository has as well are shared again once the Hub gives them to an anonymous request.
        """
        for digest in self._known(repo):  # without awaiting, so that none is given away meanwhile
            self._store.mark_public(digest, is_public=False)

    def _here(self) -> set[Digest]:
        """The digests of all blobs here, complete or partial."""
        return {digest for digest, _, _ in self._store.blobs()} | {digest for digest, _, _ in self._store.partials()}

    def _known(self, repo: str, revision: str | None = None) -> Iterator[Digest]:
        """The digests that the catalog lists for a repository, in all revisions if None; some more than once."""
        commit = None if revision is None else self._commit(repo, revision)
        for at, _, file in self._catalog.files_of(repo):
            if file.digest is not None and commit in (None, at):
                yield file.digest

    async def _of(self, repo: str, revision: str | None = None) -> set[Digest]:
        """The digests of a repository at a revision.

        If None: in all its revisions, and also of the blobs here that are listed under its name, which takes longer.
        """
        digests, turns = set(), Turns()
        for digest in self._known(repo, revision):
            await turns.give()
            digests.add(digest)
        if revision is None:
            for digest in self._here():
                await turns.give()
                if self._name(digest).repo == repo:
                    digests.add(digest)
        return digests

    def _commit(self, repo: str, revision: str) -> str:
        ref = self._catalog.ref(repo, revision)
        return ref.commit if ref is not None else revision

    def _name(self, digest: Digest) -> BlobName:
        return self._catalog.blob_name(digest) or BlobName("", "")

    def _download(self, swarm: Swarm) -> DownloadView:
        name = self._name(swarm.digest)
        partial = swarm.fill.partial
        return DownloadView(
            str(swarm.digest),
            swarm.size,
            partial.journaled_bytes,
            name.repo or None,
            name.path or None,
            swarm.began_at,
            len(swarm.fill.readers),
            "".join(_letters(swarm)),
            dict(swarm.fetcher.received),
        )


def _letters(swarm: Swarm) -> Iterator[str]:
    partial = swarm.fill.partial
    active = {piece for piece, _ in swarm.fetcher.active()}
    for piece in range(partial.pieces.count):
        if piece in partial.have:
            source = swarm.fetcher.source_of(piece)
            yield "o" if source == ORIGIN else "p" if source else "#"
        else:
            yield "-" if piece in active else "."
