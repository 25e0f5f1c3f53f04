"""What must not reach a client as the Hub said it: addresses that lead past this node, and the way to Xet. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from proxy.hub import xet
from proxy.hub.urls import OtherRoute, parse
from proxy.hub.xet import XetUse

_XET_HEADERS = ("X-Xet-Hash", "X-Xet-Refresh-Route")
# The Hub's own addresses, whichever mirror of it we ask.
_HUB_HOSTS = ("huggingface.co", "hf.co")
_XET_RELATIONS = {"xet-auth", "xet-reconstruction-info"}
# RFC 8288: <target>; param; param="value", <target> …
_LINK = re.compile(r'<([^>]*)>((?:\s*;\s*[\w*-]+(?:=(?:"(?:[^"\\]|\\.)*"|[^",;\s]*))?)*)\s*(?:,|\Z)')
_RELATION = re.compile(r';\s*rel="?([^";]*)"?', re.IGNORECASE)


def location(value: str, origin: str, prefix: str) -> str:
    """A `Location` within the Hub, as a path on this node; what leads elsewhere is left alone.

    Old clients follow relative redirects only, and newer ones would take an absolute one to the Hub itself, with their
    token.
    """
    relative = _within(value, origin)
    return value if relative is None else prefix + relative


def link(value: str, origin: str, visible: str, *, without_xet: bool) -> str | None:
    """A `Link` field whose targets within the Hub are at `visible` (scheme, host and prefix of this node) instead.

    Clients follow `rel="next"` as it stands. None when nothing is left of it.
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
    """Where a `Link` field says that a listing goes on."""
    for target, parameters in _LINK.findall(value):
        relation = _RELATION.search(parameters)
        if relation is not None and "next" in relation[1].lower().split():
            return str(target)
    return None


def is_xet_header(name: str) -> bool:
    return name.title() in _XET_HEADERS


def strip_xet(document: Any, use: XetUse) -> Any:
    """Take `xetHash` out of the entries of a tree, paths-info or info answer, in place, but where Xet is spoken."""
    for entry in entries(document):
        size = entry.get("size")
        if not xet.is_spoken(use, size if isinstance(size, int) else 0):
            entry.pop("xetHash", None)
    return document


def xet_names(document: Any) -> Iterator[tuple[str, str]]:
    """(Xet hash, path) of the large files that a tree, paths-info or info answer speaks of."""
    for entry in entries(document):
        xet_hash, path = entry.get("xetHash"), entry.get("path", entry.get("rfilename"))
        if isinstance(xet_hash, str) and xet.is_hash(xet_hash) and isinstance(path, str):
            yield xet_hash, path


def entries(document: Any) -> Iterator[dict[str, Any]]:
    """What a tree, paths-info or info answer lists."""
    if isinstance(document, dict):
        document = document.get("siblings")
    for entry in document if isinstance(document, list) else ():
        if isinstance(entry, dict):
            yield entry


def keeps_xet(target: str) -> bool:
    """Whether an answer must stay as it is: buckets know no other way, and tokens for Xet are meant for Xet."""
    route = parse(target)
    path = route.target if isinstance(route, OtherRoute) else ""
    return path.startswith(("/buckets/", "/api/buckets/")) or re.search(r"/xet-(read|write)-token/", path) is not None


def _within(url: str, origin: str) -> str | None:
    """The path and query of a URL of the Hub; None for any other."""
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
