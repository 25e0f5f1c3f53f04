"""`hubmesh preheat`: fetch repositories before clients ask for them."""

from __future__ import annotations

import re
from typing import Any

import click

from proxy.commands.local import each, find, node_flags
from proxy.commands.token import token_option, usual
from proxy.commands.uri import REPO, HfUri


@click.command()
@click.argument("repos", metavar="REPO...", type=REPO, nargs=-1, required=True)
@click.option("--nodes", default="1", metavar="all|N", help="Number of nodes that fetch it, including this one.  [1]")
@click.option("--include", multiple=True, metavar="GLOB", help="Only files that match GLOB; repeat for several.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Skip files that match GLOB; repeat for several.")
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
    """Fetch repositories before clients ask for them. REPO is owner/name or, for example, datasets/owner/name@rev.

    Returns when the downloads have started; `hubmesh status` shows the progress.
    """
    if nodes != "all" and not re.fullmatch(r"0*[1-9]\d{0,5}", nodes, re.ASCII):
        raise click.BadParameter(f"--nodes: {nodes[:20]!r} is not 'all' or a number from 1 to 999999")
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
            raise click.ClickException("it has no file that matches: check --include and --exclude")
        click.echo(f"{repo.id}: downloads started; files: {files}. `hubmesh status` shows the progress")
        return 0

    return each(repos, begin)
