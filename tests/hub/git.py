"""Repositories as git remotes: `git http-backend` over a bare repository that is made on the first request."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from pathlib import Path

from aiohttp import web

from tests.hub import answers
from tests.hub.repos import LFS_SUFFIXES, Commit, Entry, Repo, pointer
from tests.hub.state import State

_IDENTITY = "acme <acme@users.noreply.huggingface.co> 1700000000 +0000"


class Git:
    def __init__(self, state: State) -> None:
        self._state = state
        self._making = asyncio.Lock()

    async def handle(self, request: web.Request, repo_type: str, repo_id: str, service: str) -> web.StreamResponse:
        """Smart HTTP, with the token as the password of Basic authentication."""
        repo = self._state.repo(repo_type, repo_id)
        if repo is not None and repo.moved_to:
            return web.Response(status=307, headers={"Location": request.raw_path.replace(repo_id, repo.moved_to, 1)})
        if (refusal := answers.refuse(self._state, request, repo, files=True)) is not None:
            if refusal.status == 401:
                refusal.headers["WWW-Authenticate"] = 'Basic realm="Authentication required", charset="UTF-8"'
            return refusal
        assert repo is not None
        if "git-receive-pack" in (service, request.query.get("service")) and self._state.user(request) is None:
            refusal = answers.error(401, "Invalid username or password.")
            refusal.headers["WWW-Authenticate"] = 'Basic realm="Authentication required", charset="UTF-8"'
            return refusal
        async with self._making:
            bare = await asyncio.to_thread(self._bare, repo)
        return await _backend(request, bare, service)

    def _bare(self, repo: Repo) -> Path:
        """Return the bare repository for the current repo.json."""
        folder = self._state.folder.folder(repo.type, repo.id)
        bare = folder / f"git-{(folder / 'repo.json').stat().st_mtime_ns}"
        if not bare.exists():
            new = folder / "git-new"
            shutil.rmtree(new, ignore_errors=True)
            subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(new)], check=True)
            said = self._history(repo)
            subprocess.run(["git", "-C", str(new), "fast-import", "--quiet"], input=said, check=True)
            subprocess.run(["git", "-C", str(new), "config", "http.receivepack", "true"], check=True)
            new.rename(bare)
        return bare

    def _history(self, repo: Repo) -> bytes:
        """Return all commits and refs in the format of `git fast-import`, parents before their children."""
        marks: dict[str, int] = {}
        said = bytearray()
        for sha, commit in repo.commits.items():
            marks[sha] = len(marks) + 1
            title = commit.title.encode()
            said += f"commit refs/made/{marks[sha]}\nmark :{marks[sha]}\ncommitter {_IDENTITY}\n".encode()
            said += b"data %d\n%s\n" % (len(title), title)
            if commit.parent in marks:
                said += f"from :{marks[commit.parent]}\n".encode()
            said += b"deleteall\n"
            for path, content in self._files(repo, commit).items():
                said += f"M 100644 inline {path}\ndata {len(content)}\n".encode() + content + b"\n"
        for name, sha in repo.refs.items():
            said += f"reset refs/{name}\nfrom :{marks[sha]}\n".encode()
        for mark in marks.values():
            said += f"reset refs/made/{mark}\nfrom {'0' * 40}\n".encode()
        return bytes(said)

    def _files(self, repo: Repo, commit: Commit) -> dict[str, bytes]:
        files = {path: self._content(repo, entry) for path, entry in commit.files.items()}
        large = [f"*{suffix}" for suffix in LFS_SUFFIXES]
        large += [path for path, entry in commit.files.items() if entry.sha256 and not path.endswith(LFS_SUFFIXES)]
        lines = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in large)
        return {".gitattributes": lines.encode()} | files

    def _content(self, repo: Repo, entry: Entry) -> bytes:
        return pointer(entry.sha256, entry.size) if entry.sha256 else self._state.object_path(repo, entry).read_bytes()


async def _backend(request: web.Request, bare: Path, service: str) -> web.StreamResponse:
    """Run one request as CGI. The body is already decoded, so neither its encoding nor its length is passed on."""
    process = await asyncio.create_subprocess_exec(
        *("git", "http-backend"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(bare.parent),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": f"/{bare.name}/{service}",
            "REQUEST_METHOD": request.method,
            "QUERY_STRING": request.query_string,
            "CONTENT_TYPE": request.headers.get("Content-Type", ""),
            "GIT_PROTOCOL": request.headers.get("Git-Protocol", ""),
        },
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(await request.read())
    process.stdin.close()
    response = web.StreamResponse()
    while line := (await process.stdout.readline()).decode().strip():
        name, _, value = line.partition(": ")
        if name == "Status":
            response.set_status(int(value.split()[0]))
        else:
            response.headers[name] = value
    await response.prepare(request)
    while part := await process.stdout.read(1 << 16):
        await response.write(part)
    await process.wait()
    return response
