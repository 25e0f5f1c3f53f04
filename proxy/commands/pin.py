"""`hubmesh pin` and `hubmesh unpin`: protect a repository from eviction, and undo that."""

from __future__ import annotations

from typing import Any

import click

from proxy.commands.local import find, node_flags
from proxy.commands.uri import REPO, HfUri


@click.command()
@click.argument("repo", type=REPO)
@node_flags
def pin(repo: HfUri, **flags: Any) -> None:
    """Protect the files of REPO that this node holds from eviction."""
    files = find(flags).act("pin", {"repo": repo.repo, "revision": repo.revision})["files"]
    click.echo(f"{repo.id}: pinned; files protected from eviction: {files}")


@click.command()
@click.argument("repo", type=REPO)
@node_flags
def unpin(repo: HfUri, **flags: Any) -> None:
    """Allow the files of REPO to be evicted again."""
    files = find(flags).act("unpin", {"repo": repo.repo})["files"]
    click.echo(f"{repo.id}: unpinned; files no longer protected: {files}")
