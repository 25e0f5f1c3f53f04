"""The Hub's name space: what a request target names. Pure.

Parsing works on the raw target, still percent-encoded: a revision is one segment that may contain `%2F`
(refs%2Fpr%2F1), and so is the sub-path of a tree. Decoding early would split both.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, get_args
from urllib.parse import quote, unquote

RepoType = Literal["models", "datasets", "spaces", "kernels"]
ApiKind = Literal["info", "revision", "tree", "paths-info", "refs"]

TYPES: dict[str, RepoType] = {name: name for name in get_args(RepoType)}
# As alternatives of a pattern: all types, and those that the paths of files and of git begin with.
ANY_TYPE = "|".join(TYPES)
ANY_PREFIX = "|".join(name for name in TYPES if name != "models")
_COMMIT = re.compile(r"[0-9a-f]{40}\Z")
_SEGMENT = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,128}\Z")
_API_VERBS = {"revision", "tree", "paths-info", "refs"}
# Verbs that may end a path, where a repository's name could be as well; these are unlikely names.
_LAST_VERBS = {"auth-check", "settings"}
# Verbs with an argument.
_VERBS_OF_SOMETHING = {
    *("auth-check", "commit", "commits", "preupload", "xet-read-token", "xet-write-token", "branch", "tag"),
    *("super-squash", "discussions", "parquet"),
}
_ALL_VERBS = _API_VERBS | _LAST_VERBS | _VERBS_OF_SOMETHING | {"like", "lfs-files", "events"}
# First segments that belong to the Hub itself and cannot be the name of an owner.
_RESERVED = {"api", "buckets", "oauth", "docs", "login", "settings", "v2"}
# Names in the place of a space's id that are API routes instead; their answers depend on who asks.
_NOT_SPACES = {"hardware", "templates", "semantic-search", "zero-gpu"}
# Paths that belong to the Hub whatever follows. What comes before such a path is a prefix of the client's.
_OF_HUB = re.compile(
    r"/(?:api|buckets|oauth)(?:/|\Z)|/v2/[^/]+/[^/]+/(?:manifests|blobs)/"
    rf"|/(?:(?:{ANY_PREFIX})/)?[^/]+/[^/]+(?:\.git/|/info/refs\Z|/git-(?:upload|receive)-pack\Z)"
)
# Revisions that people and old software also write unencoded: refs/pr/1, refs/convert/parquet.
_SPECIAL_REF = re.compile(r"refs/(?:pr|convert)/[^/]+")


@dataclass(frozen=True, slots=True)
class Repo:
    """A repository: its type and its id (`owner/name`, or a single segment in old ids such as `gpt2`)."""

    type: RepoType
    id: str

    def __str__(self) -> str:
        return f"{self.type}/{self.id}"

    @classmethod
    def parse(cls, text: str) -> Repo:
        """Parse what `str` writes; `owner/name` without a type is a model. Raises ValueError."""
        first, _, rest = text.strip("/").partition("/")
        repo = cls(TYPES[first], rest) if first in TYPES and rest else cls("models", text.strip("/"))
        if not is_id(repo.id):
            raise ValueError(f"{text!r} is not a repository such as owner/name or datasets/owner/name")
        return repo

    @property
    def file_prefix(self) -> str:
        """The beginning of its file URLs: `/owner/name`, `/datasets/owner/name` …"""
        return f"/{self.id}" if self.type == "models" else f"/{self.type}/{self.id}"

    @property
    def api_prefix(self) -> str:
        return f"/api/{self.type}/{self.id}"


@dataclass(frozen=True, slots=True)
class FileRoute:
    """A file of a repository at a revision, all decoded. `prefix` is what the client put before the Hub's path."""

    repo: Repo
    revision: str
    path: str
    prefix: str = ""

    @property
    def target(self) -> str:
        """The path under which the Hub has this file."""
        return f"{self.repo.file_prefix}/resolve/{quote(self.revision, safe='')}/{quote(self.path)}"


@dataclass(frozen=True, slots=True)
class ApiRoute:
    """A question about a repository whose answers may be kept.

    `target` is the raw path and query to forward; `query` is the raw query alone.
    """

    repo: Repo
    kind: ApiKind
    revision: str | None
    target: str
    query: str
    prefix: str = ""

    def is_cacheable(self, method: str) -> bool:
        return method == "POST" if self.kind == "paths-info" else method in ("GET", "HEAD")

    def at(self, commit: str) -> ApiRoute:
        """The same question at a commit; an info question without a revision becomes one for that revision."""
        if self.kind == "info":
            revision = f"{self.repo.api_prefix}/revision/{commit}"
            target = f"{revision}?{self.query}" if self.query else revision
            return ApiRoute(self.repo, "revision", commit, target, self.query, self.prefix)
        assert self.revision is not None
        head = f"{self.repo.api_prefix}/{self.kind}/"
        _, _, rest = _split_revision(self.target.partition("?")[0][len(head) :])
        path = f"{head}{commit}{rest and '/'}{rest}"
        target = f"{path}?{self.query}" if self.query else path
        return ApiRoute(self.repo, self.kind, commit, target, self.query, self.prefix)


@dataclass(frozen=True, slots=True)
class OtherRoute:
    """Any other target. `target` is what to forward; `repo` is the repository it is about, if that can be told."""

    target: str
    repo: Repo | None = None
    prefix: str = ""


Route = FileRoute | ApiRoute | OtherRoute


def is_id(text: str) -> bool:
    """Whether a text can be the id of a repository."""
    parts = text.split("/")
    return len(parts) <= 2 and all(_SEGMENT.match(part) for part in parts)


def is_commit(revision: str) -> bool:
    """Whether a revision is a commit hash, which always names the same state."""
    return _COMMIT.match(revision) is not None


@lru_cache(1024)
def parse(target: str) -> Route:
    """Parse a raw request target (path and query).

    A client whose HF_ENDPOINT has a path (`http://host/hf`) puts it before the Hub's path. One leading segment is taken
    off when the rest is a path of the Hub and the whole is not.
    """
    path, _, query = target.partition("?")
    path = "/" + path.lstrip("/")
    route = _parse(path, query)
    if not isinstance(route, OtherRoute) or _OF_HUB.match(path):
        return route
    first, _, rest = path[1:].partition("/")
    inner = _parse(f"/{rest}", query)
    if first in TYPES or not _SEGMENT.match(first) or (isinstance(inner, OtherRoute) and not _OF_HUB.match(f"/{rest}")):
        return route
    return replace(inner, prefix=f"/{first}")


def led_to(route: FileRoute | ApiRoute, target: str) -> str:
    """The repository of which a redirect to `target` asks the same question; empty if it asks something else."""
    led, is_same = parse(target), False
    if isinstance(route, FileRoute) and isinstance(led, FileRoute):
        is_same = led.path == route.path
    elif isinstance(route, ApiRoute) and isinstance(led, ApiRoute):
        is_same = led.kind == route.kind
    return str(led.repo) if is_same and not led.prefix else ""


def own_name(repo: Repo, info: Any) -> str:
    """A repository by its own name, as its info states it; empty if the answer is not an info."""
    said = info.get("id") if isinstance(info, dict) else None
    try:
        return str(Repo.parse(f"{repo.type}/{said}")) if isinstance(said, str) else ""
    except ValueError:
        return ""


def _parse(path: str, query: str) -> Route:
    segments = path[1:].split("/")
    if segments[0] == "api":
        return _parse_api(segments, path, query)
    target = f"{path}?{query}" if query else path
    if segments[0] in _RESERVED:
        return OtherRoute(target)
    repo_type: RepoType = "models"
    if segments[0] in TYPES and segments[0] != "models":
        repo_type, segments = TYPES[segments[0]], segments[1:]
    for length in (2, 1):
        repo = _repo(repo_type, segments[:length])
        if repo is not None and segments[length : length + 1] == ["resolve"]:
            revision, _, file = _split_revision("/".join(segments[length + 1 :]))
            if is_file(revision, file):
                return FileRoute(repo, unquote(revision), unquote(file))
    length = 1 if segments and segments[0].endswith(".git") else 2
    names = [segment.removesuffix(".git") for segment in segments[:length]]
    return OtherRoute(target, _repo(repo_type, names) if len(segments) > 2 else None)


def _parse_api(segments: list[str], path: str, query: str) -> Route:
    target = f"{path}?{query}" if query else path
    other = OtherRoute(target)
    if len(segments) < 3:
        return other
    if segments[1] == "resolve-cache" and segments[2] in TYPES:
        for length in (2, 1):
            repo = _repo(TYPES[segments[2]], segments[3 : 3 + length])
            commit, file = segments[3 + length : 4 + length], "/".join(segments[4 + length :])
            if repo is not None and commit and is_commit(commit[0]) and is_file(commit[0], file):
                return FileRoute(repo, commit[0], unquote(file))
        return other
    if segments[1] not in TYPES:
        return other
    repo_type, rest = TYPES[segments[1]], segments[2:]
    while rest and not rest[-1]:
        rest.pop()
    if repo_type == "spaces" and rest and rest[0] in _NOT_SPACES:
        return other
    length = 1 if _has_no_owner(rest) else 2
    repo = _repo(repo_type, rest[:length])
    if repo is None:
        return other
    if len(rest) == length:
        return ApiRoute(repo, "info", None, target, query)
    verb, argument = rest[length], "/".join(rest[length + 1 :])
    if verb == "refs" and not argument:
        return ApiRoute(repo, "refs", None, target, query)
    revision, _, below = _split_revision(argument)
    if verb in ("revision", "tree", "paths-info") and revision and (not below or verb == "tree"):
        kind: ApiKind = "tree" if verb == "tree" else "revision" if verb == "revision" else "paths-info"
        if is_file(revision, below or "-"):
            return ApiRoute(repo, kind, unquote(revision), target, query)
    return OtherRoute(target, repo)


def _has_no_owner(rest: list[str]) -> bool:
    """Whether the segments after the type begin with an old id of one segment: whether the second one is a verb.

    If a verb follows that one, it is the repository's name instead.
    """
    if len(rest) < 2:
        return True
    if rest[1] in _API_VERBS:
        return rest[2:3] not in (["tree"], ["revision"])
    if len(rest) == 2:
        return rest[1] in _LAST_VERBS
    return rest[1] in _VERBS_OF_SOMETHING and rest[2] not in _ALL_VERBS


def _repo(repo_type: RepoType, segments: list[str]) -> Repo | None:
    if not segments or segments[0] in _RESERVED or not all(_SEGMENT.match(segment) for segment in segments):
        return None
    return Repo(repo_type, "/".join(segments))


def _split_revision(rest: str) -> tuple[str, str, str]:
    """A raw revision, the separator, and what follows it."""
    special = _SPECIAL_REF.match(rest)
    if special is None:
        return rest.partition("/")
    return special[0], "/", rest[special.end() + 1 :]


def is_file(revision: str, path: str) -> bool:
    """Whether these raw parts can name a file. A path that leaves its repository (`..`) cannot."""
    parts = f"{unquote(revision)}/{unquote(path)}"
    return (
        bool(revision and path)
        and not path.endswith("/")
        and not any(part in (".", "..") for part in parts.split("/"))
        and all(c.isprintable() or ord(c) > 127 for c in parts)
    )
