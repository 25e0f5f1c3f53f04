"""What the Hub's answers say about a file: in the headers of a HEAD, in a tree, in a signed URL. Pure."""

from __future__ import annotations

import calendar
import hashlib
import re
from collections.abc import Mapping
from functools import lru_cache
from time import strptime
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import msgspec

from mesh.content import Digest

_SHA256, _SHA1 = re.compile(r"[0-9a-f]{64}\Z"), re.compile(r"[0-9a-f]{40}\Z")
_NUMBER = re.compile(r"[0-9]{1,15}\Z")
_NOT_PLAIN = re.compile(r"[^ -~]")
_AMZ_DATE = re.compile(r"[0-9]{8}T[0-9]{6}Z\Z")
# Seconds for which an address is used that does not say when it expires. Well below the hour of the Hub's addresses.
_UNKNOWN_LIFE = 600.0
# Digests of the empty file. A size of 0 is checked against these alone, since no byte will come to prove it.
_EMPTY = {
    Digest("git-sha1", "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"),
    Digest("sha256", hashlib.sha256().hexdigest()),
}


class FileMetadata(msgspec.Struct, frozen=True):
    """A file of one commit. `etag` is bare: no quotes, no `W/`. `size` is in bytes."""

    etag: str
    size: int
    content_type: str = ""
    content_disposition: str = ""
    xet_hash: str = ""

    @property
    def digest(self) -> Digest | None:
        """The blob's digest; None when the ETag is not a digest, as with some mirrors: then nothing can be proven."""
        return _digest(self.etag)

    @property
    def is_empty(self) -> bool:
        """Whether the file is empty and its digest proves it."""
        return not self.size and is_empty(self.digest)

    @property
    def is_provable(self) -> bool:
        """Whether bytes can be proven to be this file."""
        return self.digest is not None and not self.contradicts_itself

    @property
    def contradicts_itself(self) -> bool:
        """Whether the size is 0 but the digest is that of a file with bytes."""
        return not self.size and self.digest is not None and not is_empty(self.digest)


def is_empty(digest: Digest | None) -> bool:
    """Whether this is the digest of the empty file."""
    return digest in _EMPTY


@lru_cache(1024)  # called several times per request
def _digest(etag: str) -> Digest | None:
    if len(etag) not in (40, 64):
        return None
    try:
        return Digest("sha256" if len(etag) == 64 else "git-sha1", etag)
    except ValueError:
        return None


def bare_etag(field: str) -> str:
    return field.strip().removeprefix("W/").strip('"')


def linked(headers: Mapping[str, str]) -> FileMetadata | None:
    """A large file, from the Hub's redirect to its storage; None when the answer is no such redirect.

    The Content-Type of the redirect describes its own text, not the file, and is dropped.
    """
    etag, size = headers.get("X-Linked-Etag", ""), headers.get("X-Linked-Size", "")
    found = _metadata(headers, etag, size)
    return None if found is None else msgspec.structs.replace(found, content_type="")


def direct(headers: Mapping[str, str]) -> FileMetadata | None:
    """A file, from an answer that is about the file itself; None when the answer does not identify it."""
    if headers.get("Content-Encoding", "identity") != "identity":
        return None  # Content-Length would be that of the compressed bytes
    etag = headers.get("X-Linked-Etag") or headers.get("ETag", "")
    size = headers.get("X-Linked-Size") or headers.get("Content-Length", "")
    if not size and is_empty(_digest(bare_etag(etag))):
        size = "0"  # a HEAD answer may omit Content-Length, and servers do so for 0
    return _metadata(headers, etag, size)


def named(target: str) -> str:
    """The bare ETag in the address that the Hub redirects to for a small file; empty for any other address."""
    path, _, query = target.partition("?")
    return bare_etag(parse_qs(query).get("etag", [""])[-1]) if path.startswith("/api/resolve-cache/") else ""


def listed(entry: Mapping[str, Any]) -> tuple[str, FileMetadata] | None:
    """The path and metadata of a file in a tree or paths-info answer; None for a folder or a malformed entry.

    A listing does not tell the Content-Type or Content-Disposition of the file.
    """
    path, digest, size, lfs, xet_hash = (entry.get(name) for name in ("path", "oid", "size", "lfs", "xetHash"))
    if entry.get("type") != "file" or (xet_hash and not lfs):
        return None
    if lfs:
        digest, size = (lfs.get("oid"), lfs.get("size")) if isinstance(lfs, dict) else (None, None)
    if not isinstance(path, str) or not isinstance(digest, str) or not isinstance(size, int):
        return None
    if size < 0 or not (_SHA256 if lfs else _SHA1).match(digest):
        return None
    found = FileMetadata(digest, size, xet_hash=xet_hash if isinstance(xet_hash, str) else "")
    return None if found.contradicts_itself else (path, found)


def _metadata(headers: Mapping[str, str], etag: str, size: str) -> FileMetadata | None:
    length = number(size)
    if not etag or length is None:
        return None
    return FileMetadata(
        bare_etag(readable(etag)),
        length,
        readable(headers.get("Content-Type", "")),
        readable(headers.get("Content-Disposition", "")),
        readable(headers.get("X-Xet-Hash", "")),
    )


def disposition(path: str) -> str:
    """The Content-Disposition with which the Hub's storage sends the file at `path`.

    Clients that save a file under this name would otherwise use the URL, with its query.
    """
    name = path.rpartition("/")[2]
    plain = _NOT_PLAIN.sub("_", name).replace("\\", "\\\\").replace('"', '\\"')
    return f"inline; filename*=UTF-8''{quote(name, safe='', errors='replace')}; filename=\"{plain}\""


def number(field: str) -> int | None:
    """The number in a header field or query: decimal digits, at most 15 of them; None for anything else."""
    return int(field) if _NUMBER.match(field) else None


def readable(field: str) -> str:
    """A header field as text. Bytes that are not UTF-8 come as lone surrogates, which can be neither stored nor sent.

    They are decoded as latin-1, which HTTP once prescribed: file names from servers that do not encode them.
    """
    try:
        field.encode()
    except UnicodeEncodeError:
        return field.encode(errors="surrogateescape").decode("latin-1")
    return field


def expiry(url: str, now: float) -> float:
    """When a signed URL that was just issued expires, in seconds since the epoch, from its query.

    A time that is already past by our clock is treated like a missing one: then the clock is wrong, not the URL.
    """
    ends = _said_expiry(url)
    return ends if ends is not None and ends > now else now + _UNKNOWN_LIFE


def _said_expiry(url: str) -> float | None:
    query = parse_qs(urlsplit(url).query)

    def first(name: str) -> str:
        return query.get(name, [""])[0]

    if (ends := number(first("Expires"))) is not None:
        return float(ends)
    life, date = number(first("X-Amz-Expires")), first("X-Amz-Date")
    if life is None or not _AMZ_DATE.match(date):
        return None
    try:
        return float(calendar.timegm(strptime(date, "%Y%m%dT%H%M%SZ")) + life)
    except ValueError:  # such as the 99th of a month
        return None
