"""Where clients see this node, which may be through a proxy of theirs."""

from __future__ import annotations

from aiohttp import web


def visible_base(request: web.BaseRequest) -> str:
    """Scheme and host under which the client sees this node, through whatever stands between."""
    scheme = request.headers.get("X-Forwarded-Proto", request.scheme).partition(",")[0].strip()
    host = request.headers.get("X-Forwarded-Host", request.host).partition(",")[0].strip()
    return f"{scheme}://{host}{request.headers.get('X-Forwarded-Prefix', '').rstrip('/')}"
