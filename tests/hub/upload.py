"""Writes: repositories, commits, and large files through LFS."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any
from urllib.parse import unquote

from aiohttp import web

from tests.hub import answers
from tests.hub.repos import Commit, Entry, Repo, write_object
from tests.hub.state import State


class Upload:
    def __init__(self, state: State) -> None:
        self._state = state

    async def repos(self, request: web.Request) -> web.Response:
        """`/api/repos/{create,delete,move}`."""
        state, user = self._state, self._state.user(request)
        if not user:
            return answers.error(401, "Invalid username or password.")
        order = json.loads(await request.read())
        repo_type = f"{order.get('type') or 'model'}s"
        verb = request.match_info["verb"]
        if verb == "move":
            return self._move(order, repo_type)
        repo_id = f"{order.get('organization') or user}/{order['name'].rpartition('/')[2]}"
        folder = state.folder.folder(repo_type, repo_id)
        if verb == "delete":
            if state.repo(repo_type, repo_id) is None:
                return answers.error(404, "Repository not found", "RepoNotFound")
            (folder / "repo.json").unlink()
            return web.Response(text="OK")
        if state.repo(repo_type, repo_id) is not None:
            said = {"error": "You already created this model repo", "url": f"{state.hub_url}/{repo_id}"}
            return web.json_response(said, status=409)
        state.folder.create(repo_id, repo_type, private=_is_private(order), readers=[user])
        state.folder.commit(
            repo_id, {".gitattributes": b"*.bin filter=lfs\n"}, repo_type=repo_type, title="initial commit"
        )
        prefix = "" if repo_type == "models" else f"{repo_type}/"
        return answers.document({"url": f"{state.hub_url}/{prefix}{repo_id}", "name": repo_id, "id": repo_id})

    def _move(self, order: dict[str, Any], repo_type: str) -> web.Response:
        state = self._state
        repo = state.repo(repo_type, order["fromRepo"])
        if repo is None:
            return answers.error(404, "Repository not found", "RepoNotFound")
        old, new = state.folder.folder(repo_type, repo.id), state.folder.folder(repo_type, order["toRepo"])
        new.parent.mkdir(parents=True, exist_ok=True)
        old.rename(new)
        moved = Repo.load(new / "repo.json")
        moved.id = order["toRepo"]
        moved.save(new)
        Repo(repo_type, order["fromRepo"], moved_to=order["toRepo"]).save(old)
        return web.Response(text="OK")

    async def about(
        self, request: web.Request, repo_type: str, repo_id: str, verb: str, rest: list[str]
    ) -> web.Response:
        """Writes under `/api/{type}/{repo}`."""
        state = self._state
        repo = state.repo(repo_type, repo_id)
        if (refusal := answers.refuse(state, request, repo, files=False)) is not None:
            return refusal
        if not state.user(request):
            return answers.error(401, "Invalid username or password.")
        assert repo is not None
        if verb == "preupload":
            asked = json.loads(await request.read())["files"]
            return answers.document(
                {
                    "files": [
                        {"path": f["path"], "uploadMode": _mode(f), "shouldIgnore": False, "oid": None} for f in asked
                    ]
                }
            )
        if verb == "commit":
            return await self._commit(request, repo, unquote(rest[0]))
        if verb in ("branch", "tag"):
            return await self._ref(request, repo, verb, unquote("/".join(rest)))
        if verb == "settings":
            return await self._settings(request, repo)
        if verb == "super-squash":
            return await self._squash(request, repo, unquote(rest[0]))
        return answers.error(404, "Sorry, we can't find the page you are looking for.")

    async def _commit(self, request: web.Request, repo: Repo, revision: str) -> web.Response:
        state, folder = self._state, self._state.folder.folder(repo.type, repo.id)
        ref = f"heads/{revision}"
        if ref not in repo.refs and repo.commit_of(revision) is None:
            return answers.error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        files: dict[str, bytes | None] = {}
        large: dict[str, Entry] = {}
        title = ""
        for line in (await request.read()).splitlines():
            order = json.loads(line)
            value = order["value"]
            if order["key"] == "header":
                title = value["summary"]
            elif order["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif order["key"] == "lfsFile":
                large[value["path"]] = Entry("", value["size"], value["oid"], "", value["oid"])
            elif order["key"] == "deletedFile":
                files[value["path"]] = None
            elif order["key"] == "deletedFolder":
                inside = repo.commits[repo.refs[ref]].files
                files |= {path: None for path in inside if path.startswith(value["path"].rstrip("/") + "/")}
        for path, entry in large.items():
            if not (folder / "objects" / entry.sha256).exists():
                return answers.error(400, f"{path} was not uploaded")
            files[path] = (folder / "objects" / entry.sha256).read_bytes()
        for path, content in files.items():
            if content is not None:
                state.folder.commit(
                    repo.id, {path: content}, repo_type=repo.type, ref=ref, lfs=path in large, title=title
                )
        gone = {path: None for path, content in files.items() if content is None}
        if gone:
            state.folder.commit(repo.id, gone, repo_type=repo.type, ref=ref, title=title)
        sha = state.folder.load(repo.type, repo.id).refs[ref]
        return answers.document(
            {
                "success": True,
                "commitOid": sha,
                "commitUrl": f"{state.hub_url}/{repo.id}/commit/{sha}",
                "hookOutput": "",
            }
        )

    async def _ref(self, request: web.Request, repo: Repo, verb: str, name: str) -> web.Response:
        folder = self._state.folder.folder(repo.type, repo.id)
        kind = "heads" if verb == "branch" else "tags"
        if request.method == "DELETE":
            if repo.refs.pop(f"{kind}/{name}", None) is None:
                return answers.error(404, f"Invalid rev id: {name}", "RevisionNotFound")
            repo.save(folder)
            return web.Response(status=204)
        order = json.loads(await request.read() or b"{}")
        name, start = (order["tag"], name) if verb == "tag" else (name, order.get("startingPoint", "main"))
        commit = repo.commit_of(start)
        if commit is None:
            return answers.error(404, f"Invalid rev id: {start}", "RevisionNotFound")
        if f"{kind}/{name}" in repo.refs:
            return answers.error(409, f"Reference already exists: {name}")
        repo.refs[f"{kind}/{name}"] = commit
        repo.save(folder)
        return web.Response(status=201, text="Created")

    async def _settings(self, request: web.Request, repo: Repo) -> web.Response:
        order = json.loads(await request.read())
        if "visibility" in order:
            repo.private = order["visibility"] != "public"
        if "gated" in order:
            repo.gated = bool(order["gated"])
        repo.save(self._state.folder.folder(repo.type, repo.id))
        return answers.document({"private": repo.private, "gated": repo.gated})

    async def _squash(self, request: web.Request, repo: Repo, branch: str) -> web.Response:
        """Replace all commits of a branch by one."""
        order = json.loads(await request.read() or b"{}")
        last = repo.refs[f"heads/{branch}"]
        sha = hashlib.sha1(f"squash {last}".encode()).hexdigest()
        repo.commits[sha] = Commit(order.get("message", "Super-squash branch"), "", repo.commits[last].files)
        repo.refs[f"heads/{branch}"] = sha
        repo.save(self._state.folder.folder(repo.type, repo.id))
        return answers.document({"commitId": sha})

    # --- LFS

    async def batch(self, request: web.Request, repo_type: str, repo_id: str) -> web.Response:
        """`…/info/lfs/objects/batch`, for uploads and downloads."""
        state = self._state
        repo = state.repo(repo_type, repo_id)
        order = json.loads(await request.read())
        is_upload = order["operation"] == "upload"
        if (refusal := answers.refuse(state, request, repo, files=not is_upload)) is not None:
            if refusal.status == 401:
                refusal.headers["WWW-Authenticate"] = 'Basic realm="Authentication required", charset="UTF-8"'
            return refusal
        assert repo is not None
        large = {entry.sha256: entry for commit in repo.commits.values() for entry in commit.files.values()}
        objects = []
        for wanted in order["objects"]:
            found: dict[str, Any] = {"oid": wanted["oid"], "size": wanted["size"], "authenticated": True}
            if is_upload:
                state.uploads[wanted["oid"]] = str(state.folder.folder(repo.type, repo.id))
                verify = {"href": f"{state.hub_url}/{repo.id}.git/info/lfs/objects/verify", "header": {}}
                found["actions"] = {"upload": {"href": f"{state.cdn_url}/upload/{wanted['oid']}"}, "verify": verify}
            elif (entry := large.get(wanted["oid"])) is not None:
                found["size"] = entry.size
                life = int(state.knobs.url_life)
                found["actions"] = {"download": {"href": state.sign(repo, entry, "file"), "expires_in": life}}
            else:
                found["error"] = {"code": 404, "message": "Object does not exist"}
            objects.append(found)
        body = json.dumps({"transfer": "basic", "objects": objects}).encode()
        return web.Response(body=body, content_type="application/vnd.git-lfs+json")

    async def verify(self, request: web.Request) -> web.Response:
        await request.read()
        return answers.document({"message": "ok"})

    async def put(self, request: web.Request) -> web.Response:
        """Store the bytes of a large file; this route is on the CDN's port."""
        digest = request.match_info["digest"]
        folder = self._state.uploads.get(digest)
        if folder is None or "Authorization" in request.headers:
            return web.Response(status=403)
        body = await request.read()
        if hashlib.sha256(body).hexdigest() != digest:
            return web.Response(status=400, text="BadDigest")
        write_object(self._state.root / folder, digest, body)
        return web.Response(headers={"ETag": f'"{digest[:32]}"'})


def _is_private(order: dict[str, Any]) -> bool:
    return bool(order.get("private")) or order.get("visibility") == "private"


def _mode(file: dict[str, Any]) -> str:
    is_large = file["size"] > 10 << 20 or file["path"].endswith((".bin", ".safetensors"))
    return "lfs" if is_large else "regular"
