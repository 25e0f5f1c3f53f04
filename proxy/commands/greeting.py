"""Test whether a seed accepts a node with these settings, by one message as the node would send it."""

from __future__ import annotations

import asyncio
import logging

import aiohttp

from mesh.ask import ask
from mesh.auth import Auth, NotAuthentic
from mesh.errors import MeshError, Refused
from mesh.gossip import TARGET
from mesh.membership import MAX_INCARNATION, Address, Claim, State
from mesh.protocol import MAX_MESSAGE, Foreign, Message, decode, encode
from proxy.version import VERSION

_TIMEOUT = 5.0  # seconds
# The status of a seed's answer to a message that it cannot read or that belongs to another mesh. One with another key,
# or with certificates on one side only, refuses the message before it reads it.
_NOT_UNDERSTOOD = 400
_SAME = "run the same hubmesh on all nodes"


def trouble(seed: Address, auth: Auth) -> tuple[str, str] | None:
    """Return what is wrong and what to do about it; None if the seed accepts this node."""
    log = logging.getLogger("mesh")
    level = log.level
    log.setLevel(logging.CRITICAL)  # the result reports it
    try:
        asyncio.run(_greet(seed, auth))
    except NotAuthentic as error:
        return (
            f"{seed} and this node do not trust each other: {error}",
            "use the same key or certificates on all nodes, and correct their clocks",
        )
    except MeshError as error:
        if isinstance(error, Refused) and error.status == _NOT_UNDERSTOOD:
            return f"{seed} speaks another version of the mesh protocol, or is no mesh port: {error}", _SAME
        return f"{seed} is not the mesh port of a node: {error}", "give the port of its --mesh-listen, usually 8091"
    except Foreign as error:
        return f"{seed} is in another mesh: {error}", _SAME
    except ValueError as error:
        return f"{seed} sent an answer that cannot be read: {error}", _SAME
    except TimeoutError:
        return (
            f"{seed} does not answer within {_TIMEOUT:.0f} s",
            "read its log; check firewalls and the network between it and this machine",
        )
    except OSError as error:
        cure = f"start the seed, open port {seed.port} to this machine, or correct --seed"
        if auth.tls is None and isinstance(error, ConnectionResetError):
            cure = "if the seed uses certificates, set --mesh-tls-cert-file on this node too; or correct --seed"
        return f"{seed} does not answer: {error}", cure
    finally:
        log.setLevel(level)
    return None


async def _greet(address: Address, auth: Auth) -> None:
    """Send a gossip message, and read the answer. Raises as `ask` and `decode` do, or TimeoutError."""
    # The message is valid, but the seed does not believe in such an incarnation (mesh/gossip.py). So it answers as it
    # would answer a node, and remembers nothing: this command is no member, and has no port to be called at.
    me = Claim(auth.node_id, MAX_INCARNATION - 1, State.LEFT, "", 1, "peer", VERSION)
    body = encode(Message(auth.mesh_id, me, b""))
    async with asyncio.timeout(_TIMEOUT), aiohttp.ClientSession() as session:
        decode(await ask(session, auth, address, TARGET, body, limit=MAX_MESSAGE), auth.mesh_id)
