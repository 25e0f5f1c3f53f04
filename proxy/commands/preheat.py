"""`hubmesh preheat`: bring repositories in before anybody asks for them."""

from __future__ import annotations

import re
from typing import Any

import click

from proxy.commands.local import each, find, node_flags
from proxy.commands.token import token_option, usual
from proxy.commands.uri import REPO, HfUri


@click.command()
@click.argument("repos", metavar="REPO...", type=REPO, nargs=-1, required=True)
@click.option("--nodes", default="1", metavar="all|N", help="How many nodes shall have it, this one first.  [1]")
@click.option("--include", multiple=True, metavar="GLOB", help="Only files that match; repeat for several.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Not the files that match; repeat for several.")
@token_option
@node_flags
def preheat(
    repos: tuple[HfUri, ...],
    nodes: str,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    token: str | None,
    **flags: Any,
) -> int:
    """Bring repositories in before anybody asks for them; REPO is owner/name, or datasets/owner/name@revision.

    Returns at once: `hubmesh status` shows how far it is.
    """
    if nodes != "all" and not re.fullmatch(r"0*[1-9]\d{0,5}", nodes, re.ASCII):
        raise click.BadParameter(f"--nodes: {nodes[:20]!r} is neither all nor a number of nodes up to 999999")
    node = find(flags)

    def begin(repo: HfUri) -> int:
        order = {
            "repo": repo.repo,
            "revision": repo.revision,
            "include": include,
            "exclude": exclude,
            "nodes": None if nodes == "all" else int(nodes),
        }
        files = node.act("preheat", order, token or usual())["files"]
        if not files:
            raise click.ClickException("no file of it matches")
        click.echo(f"{repo.id}: {files} files are on their way; `hubmesh status` shows how far they are")
        return 0

    return each(repos, begin)
