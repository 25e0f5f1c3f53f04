"""The Hub's name space: which request target names what. Pure.

Works on the raw target, still percent-encoded: a revision is one segment that may hold `%2F` (refs%2Fpr%2F1), and so is
the sub-path of a tree. Decoding early would tear both apart.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote, unquote

RepoType = Literal["models", "datasets", "spaces", "kernels"]
ApiKind = Literal["info", "revision", "tree", "paths-info", "refs"]

_TYPES: dict[str, RepoType] = {"models": "models", "datasets": "datasets", "spaces": "spaces", "kernels": "kernels"}
_COMMIT = re.compile(r"[0-9a-f]{40}\Z")
_SEGMENT = re.compile(r"[A-Za-z0-9._-]{1,128}\Z")
_API_VERBS = {"revision", "tree", "paths-info", "refs"}


@dataclass(frozen=True, slots=True)
class Repo:
    """A repository: its type and its id (`owner/name`, or one old-style segment such as `gpt2`)."""

    type: RepoType
    id: str

    def __str__(self) -> str:
        return f"{self.type}/{self.id}"

    @classmethod
    def parse(cls, text: str) -> Repo:
        """Read what `str` writes, and `owner/name` as a model. Raises ValueError."""
        first, _, rest = text.strip("/").partition("/")
        repo = cls(_TYPES[first], rest) if first in _TYPES and rest else cls("models", text.strip("/"))
        parts = repo.id.split("/")
        if len(parts) > 2 or not all(_SEGMENT.match(part) for part in parts):
            raise ValueError(f"{text!r} is not a repository such as owner/name or datasets/owner/name")
        return repo

    @property
    def file_prefix(self) -> str:
        """What its file URLs begin with: `/owner/name`, `/datasets/owner/name` …"""
        return f"/{self.id}" if self.type == "models" else f"/{self.type}/{self.id}"

    @property
    def api_prefix(self) -> str:
        return f"/api/{self.type}/{self.id}"


@dataclass(frozen=True, slots=True)
class FileRoute:
    """A file of a repository at a revision; all decoded. `prefix` is what the client put before the Hub's path."""

    repo: Repo
    revision: str
    path: str
    prefix: str = ""

    @property
    def target(self) -> str:
        """The path to ask the Hub for it."""
        return f"{self.repo.file_prefix}/resolve/{quote(self.revision, safe='')}/{quote(self.path)}"


@dataclass(frozen=True, slots=True)
class ApiRoute:
    """A question about a repository whose answers may be kept.

    `target` is the raw path and query to send on; `query` the raw query alone.
    """

    repo: Repo
    kind: ApiKind
    revision: str | None
    target: str
    query: str
    prefix: str = ""

    def is_cacheable(self, method: str) -> bool:
        return method == "POST" if self.kind == "paths-info" else method in ("GET", "HEAD")

    def at(self, commit: str) -> str:
        """The same question about a commit."""
        path, _, query = self.target.partition("?")
        if self.revision is None:
            path = f"{path.rstrip('/')}/revision/{commit}"
        else:
            head, _, tail = path.partition(f"/{self.kind}/")
            path = f"{head}/{self.kind}/{commit}{tail[len(tail.partition('/')[0]) :]}"
        return f"{path}?{query}" if query else path


@dataclass(frozen=True, slots=True)
class OtherRoute:
    """Anything else; `target` is what to send on, `repo` the repository it is about as far as we can tell."""

    target: str
    repo: Repo | None = None
    prefix: str = ""


Route = FileRoute | ApiRoute | OtherRoute


def is_commit(revision: str) -> bool:
    """Whether a revision names one state for ever."""
    return _COMMIT.match(revision) is not None


def parse(target: str) -> Route:
    """Say what a raw request target (path and query) names.

    A client whose HF_ENDPOINT has a path (`http://host/hf`) sends that first: one leading segment is taken off when
    what follows is the Hub's and the whole is not.
    """
    path, mark, query = target.partition("?")
    path = "/" + path.lstrip("/")
    route = _parse(path, query, mark + query)
    if not isinstance(route, OtherRoute) or route.repo is not None:
        return route
    first, _, rest = path[1:].partition("/")
    inner = _parse(f"/{rest}", query, mark + query)
    if first and first != "api" and (not isinstance(inner, OtherRoute) or rest.startswith(("api/", "oauth/"))):
        return _with_prefix(inner, f"/{first}")
    return route


def _with_prefix(route: Route, prefix: str) -> Route:
    if isinstance(route, FileRoute):
        return FileRoute(route.repo, route.revision, route.path, prefix)
    if isinstance(route, ApiRoute):
        return ApiRoute(route.repo, route.kind, route.revision, route.target, route.query, prefix)
    return OtherRoute(route.target, route.repo, prefix)


def _parse(path: str, query: str, tail: str) -> Route:
    segments = path[1:].split("/")
    if segments[0] == "api":
        return _parse_api(segments, path, query, tail)
    repo_type: RepoType = "models"
    if segments[0] in ("datasets", "spaces", "kernels"):
        repo_type, segments = _TYPES[segments[0]], segments[1:]
    for length in (2, 1):
        repo = _repo(repo_type, segments[:length])
        verb = segments[length] if len(segments) > length else ""
        if repo is not None and verb == "resolve" and len(segments) > length + 2:
            file = "/".join(segments[length + 2 :])
            return FileRoute(repo, unquote(segments[length + 1]), unquote(file))
    names = [segment.removesuffix(".git") for segment in segments[:2]]
    return OtherRoute(path + tail, _repo(repo_type, names) if len(segments) > 2 else None)


def _parse_api(segments: list[str], path: str, query: str, tail: str) -> Route:
    other = OtherRoute(path + tail)
    if len(segments) < 3:
        return other
    if segments[1] == "resolve-cache" and segments[2] in _TYPES:
        for length in (2, 1):
            repo = _repo(_TYPES[segments[2]], segments[3 : 3 + length])
            rest = segments[3 + length :]
            if repo is not None and len(rest) > 1 and is_commit(rest[0]):
                return FileRoute(repo, rest[0], unquote("/".join(rest[1:])))
        return other
    if segments[1] not in _TYPES:
        return other
    repo_type, rest = _TYPES[segments[1]], [segment for segment in segments[2:] if segment]
    length = 1 if len(rest) == 1 or rest[1] in _API_VERBS else 2
    repo = _repo(repo_type, rest[:length])
    if repo is None:
        return other
    verb, arguments = (rest[length], rest[length + 1 :]) if len(rest) > length else ("", [])
    if not verb:
        return ApiRoute(repo, "info", None, path + tail, query)
    if verb == "refs" and not arguments:
        return ApiRoute(repo, "refs", None, path + tail, query)
    if (verb in ("revision", "paths-info") and len(arguments) == 1) or (verb == "tree" and len(arguments) >= 1):
        kind: ApiKind = "tree" if verb == "tree" else "revision" if verb == "revision" else "paths-info"
        return ApiRoute(repo, kind, unquote(arguments[0]), path + tail, query)
    return OtherRoute(path + tail, repo)


def _repo(repo_type: RepoType, segments: list[str]) -> Repo | None:
    if not segments or not all(_SEGMENT.match(segment) for segment in segments):
        return None
    return Repo(repo_type, "/".join(segments))
