"""What a Xet server says of a file, made up on the spot: there is no Xet storage here. Pure.

To Xet a file is a row of *terms*, each a range of *chunks* in a *xorb*. Ours are all alike: a chunk is 128 KiB of the
file as it is, a xorb 512 chunks, and before each chunk stand 8 bytes that give its length and say that it is not
compressed. So a byte of a xorb is a byte of the blob, or of a header that can be told from its place.
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

from proxy.hub.urls import OtherRoute, Repo

XetUse = Literal["auto", "always", "never"]

CHUNK = 128 << 10  # bytes of a file
XORB = 512 * CHUNK
REPORT = "/v1/telemetry"  # where clients tell the server's host how a download went
HEADER = 8
_STRIDE = CHUNK + HEADER
# Clients refuse plain HTTP above this many bytes when they are told the size before the download.
PLAIN_HTTP_LIMIT = 50 * 10**9
_HASH = re.compile(r"[0-9a-f]{64}\Z")
_TOKEN_ROUTE = re.compile(
    r"/api/((?:models|datasets|spaces|kernels)/[^/?]+(?:/[^/?]+)?)/xet-read-token/([^/?]+)/?(?:\?|\Z)"
)
# Also below one segment, for clients whose HF_ENDPOINT has a path.
_OURS = re.compile(r"(/[^/?]+)?/-/xet/(?:v1/reconstructions/([^/?]+)|xorbs/([^/?]+)/(\d{1,9})|[^?]*)(?:\?|\Z)")
_MARK = "hubmesh_xet_"
_MAX_PASS = 4096


def is_hash(text: str) -> bool:
    return _HASH.match(text) is not None


def is_spoken(use: XetUse, size: int) -> bool:
    """Whether clients are to take a file of so many bytes over Xet."""
    return use == "always" or (use == "auto" and size > PLAIN_HTTP_LIMIT)


def token_route(route: OtherRoute) -> tuple[Repo, str] | None:
    """The repository and the raw revision that a token to read is asked for; None for other requests."""
    match = _TOKEN_ROUTE.match(route.target)
    if match is None:
        return None
    try:
        return Repo.parse(match[1]), match[2]
    except ValueError:
        return None


# --- what we are asked as a Xet server


@dataclass(frozen=True, slots=True)
class ReconstructionRoute:
    """How a file is put together. `prefix` is what the client put before our path."""

    hash: str
    prefix: str


@dataclass(frozen=True, slots=True)
class XorbRoute:
    """Bytes of a file, at an address that a reconstruction gave."""

    hash: str
    number: int


@dataclass(frozen=True, slots=True)
class UnknownRoute:
    """Newer ways to ask, which clients try first."""


def server_route(route: OtherRoute) -> ReconstructionRoute | XorbRoute | UnknownRoute | None:
    """What a request below `/-/xet/` asks; None for all others."""
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
    """A stretch of a xorb: what is in it of a chunk's header, then the blob's bytes from `start` up to `stop`."""

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
        """In bytes, with headers."""
        data = min(self.size - self.number * XORB, XORB)
        return data + HEADER * -(-data // CHUNK)

    def spans(self, start: int, stop: int) -> Iterator[Span]:
        """What the stored bytes from `start` up to `stop` are, chunk by chunk."""
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
    """Version 0, stored length, compression 0, length."""
    three = length.to_bytes(3, "little")
    return b"\0" + three + b"\0" + three


def reconstruction(name: str, size: int, start: int, stop: int, url: Callable[[int], str]) -> dict[str, Any]:
    """How to put the bytes from `start` up to `stop` of a blob together; `url` gives the address of a xorb.

    `name` tells blobs apart: clients may keep chunks by the hash of their xorb.
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
    """What a client was let in for, until a time (seconds since the epoch).

    `holder` is the key of the token it came with, or empty; `file` the one Xet hash it is good for: an access token
    has none and is good for what the repository has. `since` is when the access token was given, for both.
    """

    holder: str
    repo: str
    since: int
    until: int
    file: str = ""


def write_pass(key: bytes, granted: Pass) -> str:
    """As text that nobody can make without the key."""
    body = msgspec.msgpack.encode(granted)
    return _MARK + base64.urlsafe_b64encode(_signature(key, body) + body).decode().rstrip("=")


def read_pass(key: bytes, text: str, now: float) -> Pass | None:
    """What `write_pass` wrote; None when it was not us, or its time is over."""
    if not is_pass(text) or len(text) > _MAX_PASS:
        return None
    encoded = text.removeprefix(_MARK)
    try:
        raw = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
        signature, body = raw[:32], raw[32:]
        if not hmac.compare_digest(signature, _signature(key, body)):
            return None
        granted = msgspec.msgpack.decode(body, type=Pass)
    except (ValueError, msgspec.DecodeError):
        return None
    return granted if now < granted.until else None


def is_pass(text: str) -> bool:
    """Whether this was made by a node, be it right or wrong: then it is nothing for the Hub."""
    return text.startswith(_MARK)


def _signature(key: bytes, body: bytes) -> bytes:
    return hashlib.blake2b(body, key=key, digest_size=32).digest()
