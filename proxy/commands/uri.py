"""Names of repositories and files on the command line: ``hf://datasets/owner/name@revision/path``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import click

from proxy.hub.urls import TYPES, is_id

if TYPE_CHECKING:
    from typing import Self

# The Hub's own refs contain a literal "/"; in other revisions, "/" is written as %2F.
_REVISION = re.compile(r"refs/(?:convert|pr)/[^/]+|[^/]+")


@dataclass(frozen=True, slots=True)
class HfUri:
    """A repository, or with `path` a file or folder in it. `type` is models, datasets, spaces or kernels."""

    type: str
    id: str
    revision: str | None = None
    path: str = ""

    @property
    def repo(self) -> str:
        """``models/owner/name``, as on the node's own pages."""
        return f"{self.type}/{self.id}"

    @property
    def repo_type(self) -> str:
        """The type as huggingface_hub names it: model, dataset, space or kernel."""
        return self.type.removesuffix("s")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a name, with or without ``hf://``. Raises ValueError for anything else."""
        rest = text.removeprefix("hf://").strip("/")
        first, _, after = rest.partition("/")
        repo_type, rest = (first, after) if first in TYPES else ("models", rest)
        # An "@" ends the name. Without a revision, the name is the first two parts.
        name, at, after = rest.partition("@")
        if at and name.count("/") <= 1:
            match = _REVISION.match(after)
            revision = unquote(match[0]) if match else ""
            path = after[match.end() :] if match else ""
        else:
            parts = rest.split("/", 2)
            name, revision, path = "/".join(parts[:2]), None, "".join(parts[2:])
        path = path.strip("/")
        if not is_id(name) or revision == "" or ".." in path.split("/"):
            raise ValueError(
                f"{text!r} is not a repository or a file in one: "
                "expected hf://[datasets/|spaces/]owner/name[@revision][/path]"
            )
        return cls(repo_type, name, revision, path)


class _Repo(click.ParamType[HfUri]):
    """The type of a repository argument on the command line."""

    name = "repo"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> HfUri:
        try:
            uri = HfUri.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if uri.path:
            self.fail(f"{value!r} contains a path: name the repository only", param, ctx)
        return uri


REPO = _Repo()
