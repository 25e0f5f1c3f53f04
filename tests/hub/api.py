"""`/api/`: what clients ask about repositories, as JSON."""

from __future__ import annotations

import asyncio
import hashlib
import time
from typing import Any
from urllib.parse import parse_qs, parse_qsl, quote, unquote, urlencode

from aiohttp import web

from tests.hub import answers
from tests.hub.repos import Commit, Entry, Repo
from tests.hub.state import State

_EXPANDED_PAGE = 50


class Api:
    def __init__(self, state: State) -> None:
        self._state = state

    async def about(
        self, request: web.Request, repo_type: str, repo_id: str, verb: str, rest: list[str]
    ) -> web.Response:
        """Answer everything under `/api/{type}/{repo}`; `rest` has the raw segments after the verb."""
        state = self._state
        repo = state.repo(repo_type, repo_id)
        if repo is not None and repo.moved_to:
            target = request.raw_path.replace(repo.id, repo.moved_to, 1)
            return web.Response(status=307, headers={"Location": state.here(target)})
        if verb == "auth-check":
            refusal = answers.refuse(state, request, repo, files=True)
            return refusal or web.Response(text="OK", content_type="text/plain")
        if (refusal := answers.refuse(state, request, repo, files=False)) is not None:
            return refusal
        assert repo is not None
        if verb in ("", "revision"):
            return self._info(request, repo, unquote(rest[0]) if rest else "main")
        if verb == "refs":
            return self._refs(request, repo)
        if verb in ("tree", "paths-info", "commits"):
            revision = unquote(rest[0])
            commit = repo.commit_of(revision)
            if commit is None:
                return answers.error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            if verb == "tree":
                return self._tree(request, repo, commit, "/".join(unquote(part) for part in rest[1:]))
            if verb == "commits":
                return self._commits(request, repo, commit)
            return await self._paths_info(request, repo, commit)
        if verb in ("xet-read-token", "xet-write-token"):
            return self._xet_token(repo)
        if verb == "events":
            return await self._events(request)
        return answers.error(404, "Sorry, we can't find the page you are looking for.")

    async def whoami(self, request: web.Request) -> web.Response:
        user = self._state.user(request)
        if not user:
            return answers.error(
                401, "Invalid credentials in Authorization header" if user == "" else "Invalid user token."
            )
        return answers.document({"type": "user", "id": user, "name": user, "fullname": user, "orgs": [], "auth": {}})

    async def listing(self, request: web.Request, repo_type: str) -> web.Response:
        """`/api/models?author=…`: the repositories that this user may see, in pages."""
        user, query = self._state.user(request), request.query
        found = [
            {"id": repo.id, "modelId": repo.id, "private": repo.private, "tags": [], "likes": 0, "downloads": 0}
            for repo in self._state.repos(repo_type)
            if (not repo.private or user in repo.readers)
            and repo.id.startswith(f"{query['author']}/" if "author" in query else "")
            and query.get("search", "") in repo.id
        ]
        page, link = self._page(request, found, int(query.get("limit", self._state.knobs.page_size)))
        return answers.document(page, **link)

    # --- one repository

    def _info(self, request: web.Request, repo: Repo, revision: str) -> web.Response:
        sha = repo.commit_of(revision)
        if sha is None:
            if not repo.commits:
                return answers.document({"id": repo.id, "private": repo.private, "siblings": [], "sha": None})
            return answers.error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        files = repo.commits[sha].files
        siblings: list[dict[str, Any]] = [{"rfilename": path} for path in sorted(files)]
        if request.query.get("blobs", "").lower() == "true":
            for sibling in siblings:
                entry = files[sibling["rfilename"]]
                sibling |= {"size": entry.size, "blobId": entry.oid}
                if entry.sha256:
                    sibling["lfs"] = {"sha256": entry.sha256, "size": entry.size, "pointerSize": 135}
        return answers.document(
            {
                "_id": hashlib.md5(repo.id.encode()).hexdigest()[:24],
                "id": repo.id,
                "modelId": repo.id,
                "author": repo.id.partition("/")[0],
                "sha": sha,
                "lastModified": "2026-01-01T00:00:00.000Z",
                "createdAt": "2026-01-01T00:00:00.000Z",
                "private": repo.private,
                "gated": "auto" if repo.gated else False,
                "disabled": repo.disabled,
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "siblings": siblings,
            }
        )

    def _refs(self, request: web.Request, repo: Repo) -> web.Response:
        def named(kind: str, prefix: str) -> list[dict[str, str]]:
            return [
                {"name": name.partition("/")[2], "ref": prefix + name, "targetCommit": sha}
                for name, sha in repo.refs.items()
                if name.startswith(f"{kind}/")
            ]

        document = {
            "branches": named("heads", "refs/"),
            "converts": named("convert", "refs/"),
            "tags": named("tags", "refs/"),
        }
        if request.query.get("include_prs"):
            document["pullRequests"] = named("pr", "refs/")
        return answers.document(document)

    def _tree(self, request: web.Request, repo: Repo, commit: str, folder: str) -> web.Response:
        is_recursive = request.query.get("recursive", "").lower() in ("true", "1")
        is_expanded = request.query.get("expand", "").lower() in ("true", "1")
        prefix = f"{folder}/" if folder else ""
        files = repo.commits[commit].files
        inside = {path: entry for path, entry in files.items() if path.startswith(prefix)}
        if folder and not inside:
            return answers.error(404, f"{folder} does not exist on {commit}", "EntryNotFound", x_repo_commit=commit)
        listed: dict[str, dict[str, Any]] = {}
        for path, entry in inside.items():
            parts = path[len(prefix) :].split("/")
            for depth in range(1, len(parts)):
                if depth == 1 or is_recursive:
                    name = prefix + "/".join(parts[:depth])
                    oid = hashlib.sha1(f"{commit}{name}".encode()).hexdigest()
                    listed[name] = {"type": "directory", "oid": oid, "size": 0, "path": name}
            if len(parts) == 1 or is_recursive:
                listed[path] = _listed(repo, path, entry, is_expanded)
        entries = [listed[path] for path in sorted(listed)]
        size = min(self._state.knobs.page_size, _EXPANDED_PAGE if is_expanded else 1000)
        page, link = self._page(request, entries, size)
        return answers.document(page, **link)

    async def _paths_info(self, request: web.Request, repo: Repo, commit: str) -> web.Response:
        if request.content_type == "application/json":  # as the JavaScript library does
            asked = await request.json()
            paths, expand = asked["paths"], asked.get("expand", False)
        elif request.content_type == "application/x-www-form-urlencoded":
            form = parse_qs((await request.read()).decode())  # aiohttp's own form parser stops at a thousand fields
            paths, expand = form.get("paths", []), form.get("expand", [""])[0].lower() == "true"
        else:
            return answers.error(400, "Expected a form or JSON")
        files = repo.commits[commit].files
        found: list[dict[str, Any]] = []
        for value in paths:
            path = str(value).strip("/")
            if path in files:
                found.append(_listed(repo, path, files[path], expand))
            elif any(name.startswith(f"{path}/") for name in files):
                oid = hashlib.sha1(f"{commit}{path}".encode()).hexdigest()
                found.append({"type": "directory", "oid": oid, "size": 0, "path": path})
        return answers.document(found)

    def _commits(self, request: web.Request, repo: Repo, commit: str) -> web.Response:
        found: list[dict[str, Any]] = []
        while commit:
            made: Commit = repo.commits[commit]
            found.append(
                {"id": commit, "title": made.title, "message": "", "authors": [], "date": "2026-01-01T00:00:00.000Z"}
            )
            commit = made.parent
        page, link = self._page(request, found, self._state.knobs.page_size)
        return answers.document(page, x_total_count=str(len(found)), **link)

    def _xet_token(self, repo: Repo) -> web.Response:
        """Return a token for a Xet server that does not exist: a client that goes there fails visibly."""
        cas, until = "http://127.0.0.1:9", str(int(time.time()) + 900)
        return answers.document(
            {"accessToken": "xet_made_up", "exp": int(until), "casUrl": cas},
            x_xet_cas_url=cas,
            x_xet_access_token="xet_made_up",
            x_xet_token_expiration=until,
        )

    async def _events(self, request: web.Request) -> web.Response:
        """Send three server-sent events, one at a time, as the logs of a space arrive."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        await response.prepare(request)
        for number in range(3 if request.method == "GET" else 0):
            await response.write(f"data: {number}\n\n".encode())
            await asyncio.sleep(0.05)
        await response.write_eof()
        return response  # type: ignore[return-value]

    def _page(self, request: web.Request, entries: list[Any], size: int) -> tuple[list[Any], dict[str, str]]:
        """Return one page, and the Link header with the absolute URL of the next."""
        start = int(request.query.get("cursor", "0"))
        page = entries[start : start + size]
        if start + size >= len(entries):
            return page, {}
        path, _, query = request.raw_path.partition("?")
        pairs = [(name, value) for name, value in parse_qsl(query) if name != "cursor"]
        following = f"{self._state.hub_url}{path}?{urlencode([*pairs, ('cursor', start + size)])}"
        return page, {"link": f'<{following}>; rel="next"'}


def _listed(repo: Repo, path: str, entry: Entry, is_expanded: bool) -> dict[str, Any]:
    listed: dict[str, Any] = {"type": "file", "oid": entry.oid, "size": entry.size, "path": path}
    if entry.sha256:
        listed["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": 135}
        if repo.xet and entry.xet:
            listed["xetHash"] = entry.xet
    if is_expanded:
        commit = {"id": next(iter(repo.refs.values())), "title": "Change files", "date": "2026-01-01T00:00:00.000Z"}
        listed["lastCommit"] = commit
        listed["securityFileStatus"] = {"status": "safe", "avScan": None, "pickleImportScan": None}
    return listed


def parquet(hub_url: str, repo_id: str) -> dict[str, Any]:
    return {"default": {"train": [f"{hub_url}/api/datasets/{quote(repo_id)}/parquet/default/train/0.parquet"]}}
