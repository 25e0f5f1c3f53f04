"""`hubmesh pin` and `hubmesh unpin`: protect a repository from eviction, and take that back."""

from __future__ import annotations

from typing import Any

import click

from proxy.commands.local import find, node_flags
from proxy.commands.uri import REPO, HfUri


@click.command()
@click.argument("repo", type=REPO)
@node_flags
def pin(repo: HfUri, **flags: Any) -> None:
    """Keep what is here of REPO, whatever else needs room."""
    files = find(flags).act("pin", {"repo": repo.repo, "revision": repo.revision})["files"]
    click.echo(f"{repo.id}: {files} files stay")


@click.command()
@click.argument("repo", type=REPO)
@node_flags
def unpin(repo: HfUri, **flags: Any) -> None:
    """Let what is here of REPO make room for others again."""
    files = find(flags).act("unpin", {"repo": repo.repo})["files"]
    click.echo(f"{repo.id}: {files} files may go when room is needed")
