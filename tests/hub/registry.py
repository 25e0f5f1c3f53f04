"""`/v2/{repo}/manifests/{tag}`: the GGUF file that a tag stands for, as older llama.cpp and Ollama ask for it."""

from __future__ import annotations

import re
from typing import Any

from aiohttp import web

from tests.hub import answers
from tests.hub.repos import Entry
from tests.hub.state import State

_PREFERRED = ("Q4_K_M", "Q4_0", "")
_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


class Registry:
    def __init__(self, state: State) -> None:
        self._state = state

    async def manifest(self, request: web.Request, repo_id: str, tag: str) -> web.Response:
        repo = self._state.repo("models", repo_id)
        if (refusal := answers.refuse(self._state, request, repo, files=True)) is not None:
            return refusal
        assert repo is not None
        files = {path: entry for path, entry in repo.commits[repo.refs["heads/main"]].files.items() if entry.sha256}
        models = [path for path in sorted(files) if path.endswith(".gguf") and "mmproj" not in path]
        wanted = _PREFERRED if tag == "latest" else (tag,)
        found = next((path for name in wanted for path in models if name.lower() in path.lower()), None)
        if found is None:
            return answers.error(400, f"The specified tag is not available in the repository: {tag}")
        layers = [{"digest": f"sha256:{files[found].sha256}", "mediaType": "application/vnd.ollama.image.model"}]
        said: dict[str, Any] = {"schemaVersion": 2, "mediaType": _MANIFEST, "layers": layers}
        if re.search(r"\bllama-cpp\b", request.headers.get("User-Agent", "")):
            said["ggufFile"] = _file(found, files[found])
            if mmproj := next((path for path in sorted(files) if "mmproj" in path), None):
                said["mmprojFile"] = _file(mmproj, files[mmproj])
        return answers.document(said)


def _file(path: str, entry: Entry) -> dict[str, Any]:
    lfs = {"sha256": entry.sha256, "size": entry.size, "pointerSize": 134}
    return {"rfilename": path, "blobId": f"sha256:{entry.sha256}", "size": entry.size, "lfs": lfs}
