"""`hubmesh rm`: drop a repository from this node."""

from __future__ import annotations

from typing import Any

import click

from proxy.commands.local import each, find, node_flags
from proxy.commands.uri import REPO, HfUri
from proxy.units import format_size


@click.command()
@click.argument("repos", metavar="REPO...", type=REPO, nargs=-1, required=True)
@node_flags
def rm(repos: tuple[HfUri, ...], **flags: Any) -> int:
    """Drop repositories from this node.

    Files that a pinned repository has too stay. So do those that somebody reads now, or that are arriving, with their
    pin; the exit code is 1 then.
    """
    node = find(flags)

    def remove(repo: HfUri) -> int:
        done = node.act("rm", {"repo": repo.repo})
        said = f"{repo.id}: {format_size(done['bytes'])} freed"
        if pinned := done["pinned"]:
            said += f"; {pinned} files stay, for a pinned repository has them too"
        if in_use := done["in_use"]:
            said += f"; {in_use} files stay, for they are being read or fetched: try again later"
        click.echo(said)
        return int(bool(in_use))

    return each(repos, remove)
