"""The gossip message, and which nodes can form a mesh: those with the same version and the same key. Pure."""

from __future__ import annotations

from typing import Annotated

import msgspec

from mesh.hosts import is_local
from mesh.membership import MAX_CLAIMS, Claim
from mesh.wire import Decoder

# Raised with each change that nodes of earlier versions would misread: a message, how a blob is cut into pieces.
VERSION = 2
MAX_MESSAGE = 512 << 10  # bytes; a thousand members with the longest names need less


class Message(msgspec.Struct, frozen=True, array_like=True):
    """Both question and answer. `digest` stands for all claims that the sender knows; `claims` has all or none."""

    mesh_id: Annotated[str, msgspec.Meta(max_length=64)]
    sender: Claim
    digest: Annotated[bytes, msgspec.Meta(max_length=32)]
    claims: Annotated[tuple[Claim, ...], msgspec.Meta(max_length=MAX_CLAIMS)] = ()


class Foreign(ValueError):
    """The message of a node that cannot be in this mesh."""


_decoder: Decoder[Message] = Decoder(Message)
encode = msgspec.msgpack.Encoder().encode


def decode(data: bytes, mesh_id: str) -> Message:
    """Return a message to the mesh `mesh_id`. Raises ValueError for one that is invalid, Foreign for another mesh's."""
    if len(data) > MAX_MESSAGE:
        raise ValueError(f"a message of {len(data)} bytes")
    message = _decoder.decode(data)  # msgspec.DecodeError is a ValueError
    if message.mesh_id != mesh_id:
        raise Foreign(difference(message.mesh_id, mesh_id))
    message.sender.check()
    return message


def as_heard(claim: Claim, teller: str) -> Claim | None:
    """Resolve a claim that came from the host `teller`; None when its address means nothing on this host.

    A loopback address refers to the teller's own host, and is of use only if that is this host.
    """
    is_near = is_local(teller)
    if claim.host:
        return None if is_local(claim.host) and not is_near else claim
    if is_near:
        return claim
    # A link-local IPv6 address has a scope, which means nothing to others.
    return None if "%" in teller else msgspec.structs.replace(claim, host=teller)


def mesh_name(key_name: str, *, is_tls: bool) -> str:
    """Return the id that tells meshes apart where they meet (mDNS, gossip).

    `key_name` is derived from the mesh key without revealing anything about it; empty without a key.
    """
    return f"{VERSION}/{key_name}{'+tls' if is_tls else ''}"


def difference(theirs: str, ours: str) -> str:
    """Return why a node with the mesh id `theirs` cannot be in the mesh `ours`, and what to do about it."""
    version = theirs.partition("/")[0]
    if version == ours.partition("/")[0]:
        return "another mesh key or none (--mesh-key-file), or certificates on one side only (--mesh-tls-cert-file)"
    spoken = f"version {version}" if version.isdecimal() and version.isascii() else "an earlier version"
    return f"{spoken} of the mesh protocol, where this node speaks version {VERSION}: run the same hubmesh on all nodes"
