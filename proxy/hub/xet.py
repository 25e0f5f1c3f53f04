"""The Xet server's description of a file, computed on demand: there is no Xet storage here. Pure.

In Xet a file is a list of *terms*, each a range of *chunks* in a *xorb*. Here all are uniform: a chunk is 128 KiB of
the file, uncompressed; a xorb is 512 chunks; and each chunk is preceded by an 8-byte header with its length. So each
byte of a xorb is either a byte of the blob or a byte of a header that its position determines.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from proxy.hub.urls import ANY_TYPE, OtherRoute, Repo

XetUse = Literal["auto", "always", "never"]

CHUNK = 128 << 10  # bytes of the file in a chunk
XORB = 512 * CHUNK
REPORT = "/v1/telemetry"  # where clients report how a download went
HEADER = 8
_STRIDE = CHUNK + HEADER
# Bytes. Clients refuse plain HTTP for larger files when they know the size before the download.
PLAIN_HTTP_LIMIT = 50 * 10**9
_HASH = re.compile(r"[0-9a-f]{64}\Z")
_TOKEN_ROUTE = re.compile(rf"/api/((?:{ANY_TYPE})/[^/?]+(?:/[^/?]+)?)/xet-read-token/([^/?]+)/?(?:\?|\Z)")
# Also below one leading segment, for clients whose HF_ENDPOINT has a path.
_OURS = re.compile(r"(/[^/?]+)?/-/xet/(?:v1/reconstructions/([^/?]+)|xorbs/([^/?]+)/(\d{1,9})|[^?]*)(?:\?|\Z)")
_MARK = "hubmesh_xet_"
_MAX_PASS = 4096


def is_hash(text: str) -> bool:
    return _HASH.match(text) is not None


def is_spoken(use: XetUse, size: int) -> bool:
    """Whether clients are to fetch a file of `size` bytes over Xet."""
    return use == "always" or (use == "auto" and size > PLAIN_HTTP_LIMIT)


def token_route(route: OtherRoute) -> tuple[Repo, str] | None:
    """The repository and the raw revision of a request for a read token; None for any other request."""
    match = _TOKEN_ROUTE.match(route.target)
    if match is None:
        return None
    try:
        return Repo.parse(match[1]), match[2]
    except ValueError:
        return None


# --- requests to the Xet server


@dataclass(frozen=True, slots=True)
class ReconstructionRoute:
    """The question how a file is put together. `prefix` is what the client put before our path."""

    hash: str
    prefix: str


@dataclass(frozen=True, slots=True)
class XorbRoute:
    """Bytes of a file, at an address from a reconstruction."""

    hash: str
    number: int


@dataclass(frozen=True, slots=True)
class UnknownRoute:
    """A request for a newer version of the API, which clients try first and which is not supported."""


def server_route(route: OtherRoute) -> ReconstructionRoute | XorbRoute | UnknownRoute | None:
    """The request to the Xet server that a target below `/-/xet/` means; None for any other target."""
    match = _OURS.match(route.target)
    if match is None:
        return None
    prefix, whole, part, number = match.groups()
    if whole:
        return ReconstructionRoute(whole.lower(), prefix or "")
    return XorbRoute(part, int(number)) if part else UnknownRoute()


# --- xorbs


@dataclass(frozen=True, slots=True)
class Span:
    """A section of a xorb: bytes of one chunk's header, then the blob's bytes from `start` up to `stop`."""

    header: bytes
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Xorb:
    """The xorb `number` of a blob of `size` bytes. Raises IndexError when there is none."""

    size: int
    number: int

    def __post_init__(self) -> None:
        if not 0 <= self.number * XORB < self.size:
            raise IndexError(f"a file of {self.size} bytes has no xorb {self.number}")

    @property
    def stored_size(self) -> int:
        """Size in bytes, headers included."""
        data = min(self.size - self.number * XORB, XORB)
        return data + HEADER * -(-data // CHUNK)

    def spans(self, start: int, stop: int) -> Iterator[Span]:
        """The stored bytes from `start` up to `stop`, one span for each chunk."""
        while start < stop:
            chunk, offset = divmod(start, _STRIDE)
            first = self.number * XORB + chunk * CHUNK
            length = min(CHUNK, self.size - first)
            end = min(HEADER + length, offset + stop - start)
            yield Span(
                _header(length)[offset:end],
                first + max(0, offset - HEADER),
                first + max(0, end - HEADER),
            )
            start += end - offset


def _header(length: int) -> bytes:
    """The chunk header: version 0, stored length (3 bytes), compression 0, length (3 bytes)."""
    three = length.to_bytes(3, "little")
    return b"\0" + three + b"\0" + three


def reconstruction(name: str, size: int, start: int, stop: int, url: Callable[[int], str]) -> dict[str, Any]:
    """The reconstruction of the blob's bytes from `start` up to `stop`; `url` gives the address of a xorb.

    `name` makes the xorb hashes of different blobs different: clients may cache chunks by the hash of their xorb.
    """
    first, end = start // CHUNK, -(-stop // CHUNK)
    per_xorb = XORB // CHUNK
    terms, fetches = [], {}
    for number in range(start // XORB, -(-stop // XORB)):
        base = number * per_xorb
        begin, after = max(first, base) - base, min(end, base + per_xorb) - base
        data = min(size, (base + after) * CHUNK) - (base + begin) * CHUNK
        chunks, stored = {"start": begin, "end": after}, begin * _STRIDE
        xorb = hashlib.blake2b(f"{name}/{number}".encode(), digest_size=32).hexdigest()
        terms.append({"hash": xorb, "unpacked_length": data, "range": chunks})
        last = stored + data + HEADER * (after - begin) - 1
        where = {"range": chunks, "url": url(number), "url_range": {"start": stored, "end": last}}
        fetches[xorb] = [where]
    return {"offset_into_first_range": start - first * CHUNK, "terms": terms, "fetch_info": fetches}


# --- passes


class Pass(msgspec.Struct, frozen=True, array_like=True):
    """The right of a client to read, until a time; times are seconds since the epoch.

    `holder` is the key of the token that the pass was given to, empty if none. `file` is the one Xet hash that an
    address is good for; an access token has none and is good for the whole repository. `since` is when the access token
    was given, for both kinds.
    """

    holder: str
    repo: str
    since: int
    until: int
    file: str = ""


def write_pass(key: bytes, granted: Pass) -> str:
    """The pass as signed text, which cannot be made without the key."""
    body = msgspec.msgpack.encode(granted)
    return _MARK + base64.urlsafe_b64encode(_signature(key, body) + body).decode().rstrip("=")


def read_pass(key: bytes, text: str, now: float) -> Pass | None:
    """The pass in a text of `write_pass`; None when the signature is wrong or the pass has expired."""
    if not is_pass(text) or len(text) > _MAX_PASS:
        return None
    encoded = text.removeprefix(_MARK)
    try:
        raw = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
        signature, body = raw[:32], raw[32:]
        if not hmac.compare_digest(signature, _signature(key, body)):
            return None
        granted = msgspec.msgpack.decode(body, type=Pass)
    except ValueError:
        return None
    return granted if now < granted.until else None


def is_pass(text: str) -> bool:
    """Whether a text has the form of a pass of some node, valid or not: then it must not be sent to the Hub."""
    return text.startswith(_MARK)


def _signature(key: bytes, body: bytes) -> bytes:
    return hashlib.blake2b(body, key=key, digest_size=32).digest()
