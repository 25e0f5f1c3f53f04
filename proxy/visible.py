"""The address under which clients see this node, possibly through a reverse proxy."""

from __future__ import annotations

from aiohttp import web


def visible_base(request: web.BaseRequest) -> str:
    """Scheme, host and path prefix under which the client sees this node, from its `X-Forwarded-*` fields if any."""
    scheme = request.headers.get("X-Forwarded-Proto", request.scheme).partition(",")[0].strip()
    host = request.headers.get("X-Forwarded-Host", request.host).partition(",")[0].strip()
    return f"{scheme}://{host}{request.headers.get('X-Forwarded-Prefix', '').rstrip('/')}"
