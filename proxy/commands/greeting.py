"""Test whether a seed accepts a node with these settings, by one message as the node would send it."""

from __future__ import annotations

import asyncio
import logging
from typing import NoReturn

import aiohttp

from mesh.ask import ask
from mesh.auth import Auth, NotAuthentic
from mesh.errors import MeshError, Unavailable
from mesh.gossip import TARGET
from mesh.membership import Address
from proxy.units import HostPort

_TIMEOUT = 5.0  # seconds
# The answer of a seed to an empty message from a node that it accepts.
_WELCOME = "answers HTTP 400"


def trouble(seed: HostPort, auth: Auth) -> tuple[str, str] | None:
    """Return what is wrong and what to do about it; None if the seed accepts this node."""
    log = logging.getLogger("mesh")
    level = log.level
    log.setLevel(logging.CRITICAL)  # the result reports it
    try:
        asyncio.run(_greet(Address(seed.host, seed.port), auth))
    except NotAuthentic as error:
        return (
            f"{seed} and this node do not trust each other: {error}",
            "use the same key or certificates on all nodes, and correct their clocks",
        )
    except MeshError as error:
        if str(error).endswith(_WELCOME):
            return None
        return f"{seed} is not the mesh port of a node: {error}", "give the port of its --mesh-listen, usually 8091"
    except TimeoutError:
        return (
            f"{seed} does not answer within {_TIMEOUT:.0f} s",
            "read its log; check firewalls and the network between it and this machine",
        )
    except OSError as error:
        cure = f"start the seed, open port {seed.port} to this machine, or correct --seed"
        if auth.tls is None and "disconnected" in str(error).lower():
            cure = "if the seed uses certificates, set --mesh-tls-cert-file on this node too; or correct --seed"
        return f"{seed} does not answer: {error}", cure
    finally:
        log.setLevel(level)


async def _greet(address: Address, auth: Auth) -> NoReturn:
    """Send an empty message. Always raises: as `ask` does, TimeoutError, or Unavailable if the message is accepted."""
    async with asyncio.timeout(_TIMEOUT), aiohttp.ClientSession() as session:
        await ask(session, auth, address, TARGET, b"", limit=1 << 16)
    raise Unavailable(f"{address} accepts an empty message")
