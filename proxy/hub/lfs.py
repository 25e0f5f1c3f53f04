"""Git LFS, as far as a node must understand it: batch requests for downloads, and their answers. Pure.

https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mesh.content import Digest
from proxy.decoding import decode
from proxy.hub import metadata
from proxy.hub.client import Client, agent_of
from proxy.hub.urls import ANY_PREFIX, OtherRoute, Repo

MEDIA_TYPE = "application/vnd.git-lfs+json"
_PATH = re.compile(rf"/((?:(?:{ANY_PREFIX})/)?[^/?]+(?:/[^/?]+)?)\.git/info/lfs/objects/(batch|[0-9a-f]{{64}})\Z")
_TOKEN = re.compile(r"[!-~]{1,1000}\Z")
_SIZE = re.compile(r"(?:\A|&)size=(\d{1,15})(?:&|\Z)")


@dataclass(frozen=True, slots=True)
class BatchRoute:
    """The batch request: where large files can be downloaded or uploaded."""

    repo: Repo


@dataclass(frozen=True, slots=True)
class ObjectRoute:
    """A large file, at the address on this node that clients are given for it. `size` is as stated by the client."""

    repo: Repo
    digest: Digest
    size: int


@dataclass(frozen=True, slots=True)
class Object:
    """Where this client can get a large file. `size` is in bytes, `expires_at` in seconds since the epoch."""

    digest: Digest
    size: int
    url: str = field(repr=False)
    headers: dict[str, str] = field(repr=False)
    expires_at: float


@dataclass(frozen=True, slots=True)
class Missing:
    """The Hub's reason for not giving an object."""

    status: int
    message: str


def parse(route: OtherRoute) -> BatchRoute | ObjectRoute | None:
    """The LFS route that a request names; None if it is not about LFS objects."""
    path, _, query = route.target.partition("?")
    match = _PATH.match(path)
    if match is None:
        return None
    try:
        repo = Repo.parse(match[1])
    except ValueError:
        return None
    if match[2] == "batch":
        return BatchRoute(repo)
    size = _SIZE.search(query)
    return ObjectRoute(repo, Digest("sha256", match[2]), int(size[1])) if size is not None else None


def client_of(headers: Mapping[str, str]) -> Client | None:
    """The client of a request; git sends its token as the password of Basic authentication.

    None when the request has credentials of a kind that is not known here.
    """
    scheme, _, word = headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "basic":
        client = Client.of(headers)
        return client if client.token or not scheme else None
    try:
        token = base64.b64decode(word, validate=True).decode().partition(":")[2]
    except ValueError:
        return None
    return Client(token, agent_of(headers)) if _TOKEN.match(token) else None


def object_target(repo: Repo, digest: Digest, size: int) -> str:
    """The path and query under which `parse` finds an object."""
    return f"{repo.file_prefix}.git/info/lfs/objects/{digest.hex}?size={size}"


def question(digest: Digest, size: int) -> bytes:
    """The body of a batch request for a single object."""
    wanted = [{"oid": digest.hex, "size": size}]
    return json.dumps({"operation": "download", "transfers": ["basic"], "objects": wanted}).encode()


def over_http(body: bytes) -> bytes | None:
    """A batch request for downloads, limited to the "basic" transfer, which can pass through a node.

    None when the body is anything else.
    """
    asked = _document(body)
    if asked.get("operation") != "download":
        return None
    transfers = asked.get("transfers")
    if isinstance(transfers, list) and any(name != "basic" for name in transfers):
        return json.dumps(asked | {"transfers": ["basic"]}).encode()
    return body


def objects(body: bytes, now: float) -> dict[Digest, Object | Missing]:
    """The objects in a batch answer, with their location or the reason why there is none. Malformed ones are left out.

    `now` is in seconds since the epoch.
    """
    found: dict[Digest, Object | Missing] = {}
    for said in _entries(_document(body)):
        try:
            digest = Digest("sha256", said["oid"])
            size = said.get("size")
            if "error" in said:
                found[digest] = Missing(int(said["error"]["code"]), str(said["error"].get("message", "")))
            elif size == 0 and not metadata.is_empty(digest):
                found[digest] = Missing(502, f"the origin says that {digest.hex} is empty, contrary to its digest")
            elif isinstance(download := said["actions"]["download"], dict) and isinstance(size, int) and size >= 0:
                headers = {str(name): str(value) for name, value in (download.get("header") or {}).items()}
                url, ends = str(download["href"]), metadata.expiry(str(download["href"]), now)
                if isinstance(life := download.get("expires_in"), int) and life > 0:
                    ends = min(ends, now + life)
                found[digest] = Object(digest, size, url, headers, ends)
        except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
            continue
    return found


def through_us(body: bytes, address: Callable[[Object], str], authorization: str) -> bytes:
    """The batch answer with this node's addresses for downloads; there the client sends `authorization` again."""
    document = _document(body)
    if not document or document.get("transfer", "basic") != "basic":
        return body
    found = objects(body, 0.0)
    for said in _entries(document):
        known = found.get(Digest("sha256", said["oid"])) if _is_oid(said.get("oid")) else None
        if isinstance(known, Object):
            action: dict[str, Any] = {"href": address(known)}
            if authorization:
                action["header"] = {"Authorization": authorization}
            said["actions"] = said["actions"] | {"download": action}
            said["authenticated"] = True  # so that git-lfs does not look for credentials itself
    return json.dumps(document).encode()


def _document(body: bytes) -> dict[str, Any]:
    try:
        document: dict[str, Any] = decode(body, dict[str, Any])
    except ValueError:
        return {}
    return document


def _entries(document: dict[str, Any]) -> list[dict[str, Any]]:
    entries = document.get("objects")
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _is_oid(oid: object) -> bool:
    return isinstance(oid, str) and re.fullmatch("[0-9a-f]{64}", oid) is not None
