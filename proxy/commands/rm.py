"""`hubmesh rm`: drop a repository from this node."""

from __future__ import annotations

from typing import Any

import click

from proxy.commands.local import find, node_flags
from proxy.commands.uri import REPO, HfUri
from proxy.units import format_size


@click.command()
@click.argument("repos", metavar="REPO...", type=REPO, nargs=-1, required=True)
@node_flags
def rm(repos: tuple[HfUri, ...], **flags: Any) -> None:
    """Drop repositories from this node. Files that another repository has too, or that somebody reads now, stay."""
    node = find(flags)
    for repo in repos:
        freed = node.act("rm", {"repo": repo.repo})["bytes"]
        click.echo(f"{repo.id}: {format_size(freed)} freed")
