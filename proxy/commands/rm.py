"""`hubmesh rm`: remove repositories from this node."""

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
    """Remove repositories from this node.

    Files that a pinned repository also contains are kept. So are files that are being read or downloaded, and their
    pins; the exit code is then 1.
    """
    node = find(flags)

    def remove(repo: HfUri) -> int:
        done = node.act("rm", {"repo": repo.repo})
        said = f"{repo.id}: {format_size(done['bytes'])} freed"
        if pinned := done["pinned"]:
            said += f"; files kept because a pinned repository contains them: {pinned}"
        if in_use := done["in_use"]:
            said += f"; files kept because they are being read or downloaded: {in_use}. Try again later"
        click.echo(said)
        return int(bool(in_use))

    return each(repos, remove)
