"""`python -m tests.hub --root DIR`: the stand-in Hub as a process. Prints one line of JSON when it is ready."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import re
import signal
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import unquote

from aiohttp import web

from tests.hub import answers
from tests.hub.api import Api, parquet
from tests.hub.cdn import Cdn
from tests.hub.git import Git
from tests.hub.registry import Registry
from tests.hub.resolve import Resolve
from tests.hub.state import State
from tests.hub.upload import Upload

_TYPES = ("models", "datasets", "spaces", "kernels")
_VERBS = {
    *("revision", "tree", "paths-info", "refs", "commits", "auth-check", "xet-read-token", "xet-write-token"),
    *("preupload", "commit", "branch", "tag", "events", "parquet", "settings", "super-squash"),
}
_READS = ("GET", "HEAD")


class Hub:
    """Routes the requests of both ports."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._resolve, self._api = Resolve(state), Api(state)
        self._upload, self._cdn, self._git = Upload(state), Cdn(state), Git(state)
        self._registry = Registry(state)

    def hub_app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 30, middlewares=[self._misbehave])
        app.on_response_prepare.append(self._add_common)
        app.router.add_get("/_/stats", self._stats)
        app.router.add_post("/_/knobs", self._turn)
        app.router.add_post("/_/reset", self._reset)
        app.router.add_route("*", "/api/resolve-cache/{type}/{rest:.*}", self._resolve.cached)
        app.router.add_post("/api/repos/{verb:create|delete|move}", self._upload.repos)
        app.router.add_delete("/api/repos/{verb:delete}", self._upload.repos)
        app.router.add_get("/api/whoami-v2", self._api.whoami)
        app.router.add_route("*", "/{target:.*}", self._route)
        return app

    def cdn_app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 30, middlewares=[self._misbehave])
        app.router.add_route("*", "/repos/{type}/{rest:.*}", self._cdn.object)
        app.router.add_put("/upload/{digest}", self._upload.put)
        return app

    async def _route(self, request: web.Request) -> web.StreamResponse:
        """Routes that aiohttp's router cannot tell apart; the decision needs the raw path."""
        if "X-Echo" in request.headers:
            return await answers.echo(request)
        segments = request.raw_path.partition("?")[0].strip("/").split("/")
        if segments[0] == "api" and len(segments) > 1 and segments[1] in _TYPES:
            return await self._route_api(request, segments[1], segments[2:])
        if segments[0] == "api" and len(segments) > 1 and segments[1] == "validate-yaml":
            return answers.document({"errors": [], "warnings": []})
        if segments[0] == "v2" and len(segments) == 5 and segments[3] == "manifests":
            return await self._registry.manifest(request, "/".join(segments[1:3]), segments[4])
        if segments[0] == "buckets" and "resolve" in segments:
            return web.Response(headers={"X-Xet-Hash": "b" * 64, "Link": '<http://127.0.0.1:9/t>; rel="xet-auth"'})
        repo_type = "models"
        if segments[0] in _TYPES:
            repo_type, segments = segments[0], segments[1:]
        for length in (2, 1):
            if len(segments) > length + 2 and segments[length] == "resolve" and request.method in _READS:
                repo_id, path = "/".join(segments[:length]), unquote("/".join(segments[length + 2 :]))
                return await self._resolve.file(request, repo_type, repo_id, unquote(segments[length + 1]), path)
        rest = "/".join(segments)
        if match := re.match(r"(.+)\.git/info/lfs/objects/(batch|verify)$", rest):
            if match[2] == "verify":
                return await self._upload.verify(request)
            return await self._upload.batch(request, repo_type, match[1])
        if match := re.match(r"(.+?)(?:\.git)?/(info/refs|git-upload-pack|git-receive-pack)$", rest):
            return await self._git.handle(request, repo_type, match[1], match[2])
        return answers.error(404, "Sorry, we can't find the page you are looking for.")

    async def _route_api(self, request: web.Request, repo_type: str, rest: list[str]) -> web.StreamResponse:
        if not rest or rest == [""]:
            return await self._api.listing(request, repo_type)
        length = 1 if len(rest) == 1 or rest[1] in _VERBS else 2
        repo_id, verb, tail = "/".join(rest[:length]), rest[length] if len(rest) > length else "", rest[length + 1 :]
        if verb == "parquet":
            return answers.document(parquet(self._state.hub_url, repo_id))
        if request.method in _READS or verb == "paths-info":
            return await self._api.about(request, repo_type, repo_id, verb, tail)
        return await self._upload.about(request, repo_type, repo_id, verb, tail)

    # --- misbehaving, counting, control

    @web.middleware
    async def _misbehave(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if request.path.startswith("/_/"):
            return await handler(request)
        state, kind = self._state, _kind(request)
        state.count(request, kind)
        knobs = state.knobs
        if knobs.dark == "hang":
            await asyncio.sleep(3600)
        if knobs.dark == "close":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if latency := knobs.latency.get(kind, 0.0):
            await asyncio.sleep(latency)
        if knobs.fail.get(kind):
            status = knobs.fail[kind].pop(0)
            wait = str(knobs.retry_after)
            limits = {"RateLimit": f'"resolvers";r=0;t={wait}', "Retry-After": wait} if status == 429 else {}
            return web.Response(status=status, headers=limits, text="no")
        if asked := request.headers.get("Access-Control-Request-Method"):
            fields = request.headers.get("Access-Control-Request-Headers", "")
            allowed = {"Access-Control-Allow-Methods": asked, "Access-Control-Allow-Headers": fields}
            return web.Response(status=204, headers=allowed)
        answer = await handler(request)
        if kind == "api" and request.method in _READS and answer.status == 200 and isinstance(answer, web.Response):
            if isinstance(answer.body, bytes) and "X-Echo" not in request.headers:
                answer.headers.setdefault("ETag", f'W/"{hashlib.sha1(answer.body).hexdigest()}"')
                if answer.headers["ETag"] == request.headers.get("If-None-Match"):
                    state.not_modified += 1
                    return web.Response(status=304, headers={"ETag": answer.headers["ETag"]})
            if knobs.cache_control:
                answer.headers["Cache-Control"] = knobs.cache_control
        return answer

    async def _add_common(self, request: web.Request, response: web.StreamResponse) -> None:
        # To a page of another site it names that page, to other clients itself; so it does not say the same to all.
        response.headers["Access-Control-Allow-Origin"] = request.headers.get("Origin", self._state.hub_url)
        for name, value in answers.common(_kind(request)).items():
            response.headers.setdefault(name, value)
        if self._state.knobs.as_https and "WWW-Authenticate" in response.headers:
            response.headers.setdefault("X-Error-Code", "RepoNotFound")

    async def _stats(self, _: web.Request) -> web.Response:
        return web.json_response(self._state.report())

    async def _turn(self, request: web.Request) -> web.Response:
        self._state.turn(await request.json())
        return web.Response()

    async def _reset(self, _: web.Request) -> web.Response:
        self._state.reset()
        return web.Response()


def _kind(request: web.Request) -> str:
    path = request.path
    if path.startswith("/repos/"):
        return "cdn"
    if "/resolve/" in path or path.startswith("/api/resolve-cache/"):
        return "resolve"
    if path.startswith("/upload/"):
        return "upload"
    return "api" if path.startswith("/api/") else "other"


async def _serve(root: Path, host: str, port: int, cdn_port: int, tls: list[Path], cdn_tls: list[Path]) -> None:
    state = State(root)
    hub = Hub(state)
    runners, urls = [], []
    for app, wanted, files in ((hub.hub_app(), port, tls), (hub.cdn_app(), cdn_port, cdn_tls)):
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, keepalive_timeout=75)
        await runner.setup()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH) if files else None
        if context is not None:
            context.load_cert_chain(*files)
        await web.TCPSite(runner, host, wanted, backlog=1024, ssl_context=context).start()
        runners.append(runner)
        urls.append(f"{'https' if files else 'http'}://{host}:{runner.addresses[0][1]}")
    state.hub_url, state.cdn_url = urls
    print(json.dumps({"hub": state.hub_url, "cdn": state.cdn_url, "pid": os.getpid()}), flush=True)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    for runner in runners:
        await runner.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.hub", description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--cdn-port", type=int, default=0)
    for flag in ("--tls", "--cdn-tls"):
        parser.add_argument(flag, type=Path, nargs=2, default=[], metavar=("CERT", "KEY"))
    arguments = parser.parse_args()
    asyncio.run(_serve(**vars(arguments)))


if __name__ == "__main__":
    main()
