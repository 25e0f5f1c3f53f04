"""Explicitly named seeds: each is tried until it answers, without limit, and joined again after it was away.

A seed may be down when this node starts, and its DNS name may later resolve to other addresses.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable

from mesh.discovery.dns import resolve
from mesh.errors import MeshError
from mesh.gossip import Gossip
from mesh.membership import Address
from mesh.tasks import Tasks

log = logging.getLogger(__name__)

_FIRST_PAUSE = 0.25  # seconds before a failed attempt is repeated; doubled each time
_MAX_PAUSE = 5.0  # the most that this pause grows to
_LOOK_AGAIN = 15.0  # seconds until a name is resolved again, or a second address of a live seed is tried again

Resolve = Callable[[Address], Awaitable[list[Address]]]


class Seeds:
    """Joins the mesh at all addresses of all named seeds, and keeps those members marked as `Member.named_seed`."""

    def __init__(
        self,
        named: Iterable[Address],
        gossip: Gossip,
        tasks: Tasks,
        *,
        resolve: Resolve = resolve,
        look_again: float = _LOOK_AGAIN,
    ) -> None:
        self._named = list(named)
        self._gossip = gossip
        self._tasks = tasks
        self._resolve = resolve
        self._look_again = look_again

    def start(self) -> None:
        for seed in self._named:
            self._tasks.start(self._follow(seed), name=f"seed {seed}")

    async def _follow(self, seed: Address) -> None:
        """Keep joined to every address that the seed's name resolves to now."""
        kept: dict[Address, asyncio.Task[None]] = {}
        pause, is_lost = _FIRST_PAUSE, False
        while True:
            try:
                found = set(await self._resolve(seed))
            except OSError as error:  # the addresses found before stay in use
                if not is_lost:
                    log.warning("seed %s cannot be resolved, trying again: %s", seed, _words(error))
                is_lost = True
                await asyncio.sleep(pause)
                pause = min(_MAX_PAUSE, pause * 2)
                continue
            pause, is_lost = _FIRST_PAUSE, False
            for address in found - kept.keys():
                kept[address] = self._tasks.start(self._keep(address), name=f"seed {address}")
            for address in kept.keys() - found:
                kept.pop(address).cancel()
                self._gossip.unname_seed(address)
            await asyncio.sleep(self._look_again * random.uniform(0.8, 1.2))

    async def _keep(self, address: Address) -> None:
        """Join the node at one address, and join again whenever no live member is known there."""
        pause, lost = _FIRST_PAUSE, None  # `lost` is the type of the last logged error; only a new type is logged
        own = self._gossip.members.me.node_id
        who, again_at = "", 0.0
        while True:
            # A node can have several addresses, but is a member under one of them at a time.
            known = who if time.monotonic() < again_at else ""
            if not any(
                m.named_seed and (m.address == address or m.node_id == known) for m in self._gossip.members.alive()
            ):
                try:
                    who = await self._gossip.join(address, named_seed=True)
                    again_at = time.monotonic() + _LOOK_AGAIN
                    if who == own:
                        return  # seeds may share one list, which then names this node too
                except (OSError, MeshError, ValueError) as error:
                    if type(error) is not lost:
                        log.warning("seed %s does not answer, trying again: %s", address, _words(error))
                    lost = type(error)
                    await asyncio.sleep(pause * random.uniform(0.8, 1.2))
                    pause = min(_MAX_PAUSE, pause * 2)
                    continue
                if lost is not None:
                    log.info("seed %s answers", address)
                pause, lost = _FIRST_PAUSE, None
            await asyncio.sleep(1.0)


def _words(error: Exception) -> str:
    return str(error) or "no answer in time"
