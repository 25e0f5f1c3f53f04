"""`/resolve/`: large files redirect to signed storage, small ones to a cache on the Hub itself."""

from __future__ import annotations

from urllib.parse import quote, unquote

from aiohttp import web

from tests.hub import answers
from tests.hub.repos import Entry, Repo
from tests.hub.state import State


class Resolve:
    def __init__(self, state: State) -> None:
        self._state = state

    async def file(
        self, request: web.Request, repo_type: str, repo_id: str, revision: str, path: str
    ) -> web.StreamResponse:
        """Answer HEAD and GET for a file at a revision; all arguments are decoded."""
        state = self._state
        repo = state.repo(repo_type, repo_id)
        if repo is not None and repo.moved_to and "/" not in repo.id:  # an old id: answered directly for files
            repo = state.repo(repo_type, repo.moved_to)
        if repo is not None and repo.moved_to:
            raw = request.raw_path.replace(quote(repo.id), quote(repo.moved_to), 1)
            return web.Response(
                status=307, headers={"Location": state.here(raw)}, text=f"Temporary Redirect. Redirecting to {raw}"
            )
        if (refusal := answers.refuse(state, request, repo, files=True)) is not None:
            return refusal
        assert repo is not None
        commit = repo.commit_of(revision)
        if commit is None:
            return answers.error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        entry = repo.commits[commit].files.get(path)
        if entry is None:
            return web.Response(
                status=404,
                headers={
                    "X-Error-Code": "EntryNotFound",
                    "X-Error-Message": "Entry not found",
                    "X-Repo-Commit": commit,
                },
                text="Entry not found",
            )
        if entry.sha256:
            return self._large(repo, entry, commit, path)
        target = f"/api/resolve-cache/{repo.type}/{repo.id}/{commit}/{quote(path)}"
        etag = quote(f'"{entry.oid}"')
        location = f"{target}?{quote(request.path, safe='')}=&etag={etag}"
        return web.Response(
            status=307,
            headers={"Location": location, "X-Repo-Commit": commit, "Accept-Ranges": "bytes"},
            text=f"Temporary Redirect. Redirecting to {location}",
        )

    async def cached(self, request: web.Request) -> web.StreamResponse:
        """`/api/resolve-cache/{type}/{repo}/{commit}/{path}`: small files, without a redirect."""
        state = self._state
        raw = request.raw_path.partition("?")[0].removeprefix(f"/api/resolve-cache/{request.match_info['type']}/")
        parts = [unquote(part) for part in raw.split("/")]  # match_info is decoded, and names may contain %
        repo, rest = _split(state, request.match_info["type"], parts)
        if (refusal := answers.refuse(state, request, repo, files=True)) is not None:
            return refusal
        assert repo is not None
        commit, path = rest[0], "/".join(rest[1:])
        entry = repo.commits[commit].files.get(path) if commit in repo.commits else None
        if entry is None:
            return answers.error(404, "Entry not found", "EntryNotFound", x_repo_commit=commit)
        body = state.object_path(repo, entry).read_bytes()
        headers = {
            "ETag": f'"{entry.oid}"',
            "X-Repo-Commit": commit,
            "Accept-Ranges": "bytes",
            "Content-Disposition": f"inline; filename*=UTF-8''{quote(path.rpartition('/')[2])};",
            "Cache-Control": "public, max-age=31536000",
        }
        status, start, stop = 200, 0, len(body)
        wanted = request.http_range
        if wanted.start is not None and request.method == "GET":
            start, stop, _ = wanted.indices(len(body))
            if start >= stop:
                return web.Response(status=416, headers={"Content-Range": f"bytes */{len(body)}"})
            status, headers["Content-Range"] = 206, f"bytes {start}-{stop - 1}/{len(body)}"
        if request.method == "GET":
            state.bytes[path] += stop - start
        return web.Response(status=status, headers=headers, body=body[start:stop], content_type="text/plain")

    def _large(self, repo: Repo, entry: Entry, commit: str, path: str) -> web.Response:
        state = self._state
        location = state.sign(repo, entry, path)
        headers = {
            "Location": location,
            "X-Repo-Commit": commit,
            "X-Linked-Size": str(entry.size),
            "X-Linked-Etag": f'"{entry.sha256}"',
            "Accept-Ranges": "bytes",
        }
        if repo.xet and entry.xet:
            token = f"{state.hub_url}/api/{repo.type}/{repo.id}/xet-read-token/{commit}"
            headers["X-Xet-Hash"] = entry.xet
            headers["Link"] = (
                f'<{token}>; rel="xet-auth", '
                f'<https://cas-server.xethub.hf.co/v1/reconstructions/{entry.xet}>; rel="xet-reconstruction-info"'
            )
        return web.Response(status=302, headers=headers, text=f"Found. Redirecting to {location}")


def _split(state: State, repo_type: str, parts: list[str]) -> tuple[Repo | None, list[str]]:
    """Return the repository with an id of one or two segments, and the segments after it."""
    for length in (2, 1):
        repo = state.repo(repo_type, "/".join(parts[:length]))
        if repo is not None:
            return repo, parts[length:]
    return None, parts[2:]
