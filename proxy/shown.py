"""Answers of the Hub's API in the form in which clients get them."""

from __future__ import annotations

import time

from aiohttp import web

from mesh.whole import WholeResponse
from proxy import caching
from proxy.answers import as_stored, may_keep
from proxy.catalog import ApiAnswer
from proxy.hub import rewrite
from proxy.hub.urls import ApiRoute
from proxy.visible import visible_base


def respond(
    request: web.BaseRequest, route: ApiRoute, answer: ApiAnswer, outcome: str, token: str | None, hub: str, body: bytes
) -> WholeResponse:
    """The response with `body`, which was made from the answer's; `hub` is the URL of the Hub."""
    headers = {name: value for name, value in answer.headers.items() if name != "Link"}
    if link := answer.headers.get("Link"):
        visible = visible_base(request) + route.prefix
        if rewritten := rewrite.link(link, hub, visible, without_xet=True):
            headers["Link"] = rewritten
    headers["Cache-Status"] = caching.STATUS[outcome]
    if outcome == "miss" and not may_keep(answer, token):
        headers["Cache-Status"] = "hubmesh; fwd=uri-miss"
    if outcome != "miss":
        headers["Age"] = str(int(max(0.0, time.time() - answer.said_at)))
    if "ETag" in headers:  # weak, since the body may have been changed here
        headers["ETag"] = "W/" + headers["ETag"].removeprefix("W/")
        wanted = request.headers.get("If-None-Match")
        if wanted is not None and caching.is_not_modified(as_stored(answer), {"If-None-Match": wanted}):
            headers.pop("Content-Type", None)
            return WholeResponse(304, headers)
    return WholeResponse(answer.status, headers, body)
