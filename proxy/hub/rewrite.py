"""Rewriting of the Hub's answers: addresses that bypass this node, and everything that leads clients to Xet. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from proxy.hub import xet
from proxy.hub.urls import OtherRoute, parse
from proxy.hub.xet import XetUse

_XET_FIELD = b'"xetHash"'
_STEP = 1 << 20  # bytes searched at once, in about a millisecond
_XET_HEADERS = ("X-Xet-Hash", "X-Xet-Refresh-Route")
# Hosts of the Hub itself, whichever mirror of it is the origin.
_HUB_HOSTS = ("huggingface.co", "hf.co")
_XET_RELATIONS = {"xet-auth", "xet-reconstruction-info"}
# RFC 8288: <target>; param; param="value", <target> …
_LINK = re.compile(r'<([^>]*)>((?:\s*;\s*[\w*-]+(?:=(?:"(?:[^"\\]|\\.)*"|[^",;\s]*))?)*)\s*(?:,|\Z)')
_RELATION = re.compile(r';\s*rel="?([^";]*)"?', re.IGNORECASE)


def location(value: str, origin: str, prefix: str) -> str:
    """A `Location` within the Hub, as a path on this node; one that leads elsewhere is unchanged.

    Old clients follow relative redirects only. Newer ones would follow an absolute one to the Hub itself, with their
    token.
    """
    relative = _within(value, origin)
    return value if relative is None else prefix + relative


def link(value: str, origin: str, visible: str, *, without_xet: bool) -> str | None:
    """A `Link` field with targets within the Hub moved to `visible` (scheme, host and prefix of this node).

    Clients follow `rel="next"` literally. None when no link is left.
    """
    kept = []
    for target, parameters in _LINK.findall(value):
        relation = _RELATION.search(parameters)
        if without_xet and relation is not None and set(relation[1].lower().split()) & _XET_RELATIONS:
            continue
        relative = _within(target, origin)
        kept.append(f"<{target if relative is None else visible + relative}>{parameters}")
    return ", ".join(kept) or None


def next_page(value: str) -> str | None:
    """The target of `rel="next"` in a `Link` field: the next page of a listing."""
    for target, parameters in _LINK.findall(value):
        relation = _RELATION.search(parameters)
        if relation is not None and "next" in relation[1].lower().split():
            return str(target)
    return None


def xet_repo(value: str) -> str:
    """The repository by its own name, as the `Link` field of a large file has it; empty if it has none."""
    for target, parameters in _LINK.findall(value):
        relation = _RELATION.search(parameters)
        if relation is not None and "xet-auth" in relation[1].lower().split():
            found = xet.token_route(OtherRoute(urlsplit(target).path))
            return str(found[0]) if found is not None else ""
    return ""


def is_xet_header(name: str) -> bool:
    return name.title() in _XET_HEADERS


def mentions_xet(body: bytes) -> bool:
    """Whether an answer may have Xet hashes. Searched in steps: each keeps Python's global lock."""
    return any(body.find(_XET_FIELD, at, at + _STEP + len(_XET_FIELD)) >= 0 for at in range(0, len(body), _STEP))


def strip_xet(document: Any, use: XetUse) -> Any:
    """Remove `xetHash`, in place, from the entries of a tree, paths-info or info answer, except where Xet is used."""
    for entry in entries(document):
        size = entry.get("size")
        if not xet.is_spoken(use, size if isinstance(size, int) else 0):
            entry.pop("xetHash", None)
    return document


def xet_names(document: Any) -> Iterator[tuple[str, str]]:
    """(Xet hash, path) of each entry with a Xet hash in a tree, paths-info or info answer."""
    for entry in entries(document):
        xet_hash, path = entry.get("xetHash"), entry.get("path", entry.get("rfilename"))
        if isinstance(xet_hash, str) and xet.is_hash(xet_hash) and isinstance(path, str):
            yield xet_hash, path


def entries(document: Any) -> Iterator[dict[str, Any]]:
    """The entries that a tree, paths-info or info answer lists."""
    if isinstance(document, dict):
        document = document.get("siblings")
    for entry in document if isinstance(document, list) else ():
        if isinstance(entry, dict):
            yield entry


def keeps_xet(target: str) -> bool:
    """Whether Xet headers must stay in an answer: buckets are Xet-only, and Xet tokens are meant for Xet."""
    route = parse(target)
    path = route.target if isinstance(route, OtherRoute) else ""
    return path.startswith(("/buckets/", "/api/buckets/")) or re.search(r"/xet-(read|write)-token/", path) is not None


def _within(url: str, origin: str) -> str | None:
    """The path and query of a URL within the Hub; None for any other URL."""
    hub, parts = urlsplit(origin), urlsplit(url)
    if not parts.scheme and not parts.netloc and not url.startswith("/"):
        return None
    same = (parts.scheme or hub.scheme, (parts.netloc or hub.netloc).lower()) == (hub.scheme, hub.netloc.lower())
    if not same and ((parts.scheme or hub.scheme) != "https" or parts.netloc.lower() not in _HUB_HOSTS):
        return None
    path = parts.path or "/"
    if same and hub.path and path.startswith(f"{hub.path}/"):
        path = path[len(hub.path) :]
    return f"{path}?{parts.query}" if parts.query else path
