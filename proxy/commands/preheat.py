"""`hubmesh preheat`: bring repositories in before anybody asks for them."""

from __future__ import annotations

import os
from typing import Any

import click

from proxy.commands.local import find, node_flags
from proxy.commands.uri import REPO, HfUri


@click.command()
@click.argument("repos", metavar="REPO...", type=REPO, nargs=-1, required=True)
@click.option("--nodes", default="1", metavar="all|N", help="How many nodes shall have it, this one first.  [1]")
@click.option("--include", multiple=True, metavar="GLOB", help="Only files that match; repeat for several.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Not the files that match; repeat for several.")
@click.option("--token", help="For gated and private repositories.  [HF_TOKEN, else the one of `hf auth login`]")
@node_flags
def preheat(
    repos: tuple[HfUri, ...],
    nodes: str,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    token: str | None,
    **flags: Any,
) -> None:
    """Bring repositories in before anybody asks for them; REPO is owner/name, or datasets/owner/name@revision.

    Returns at once: `hubmesh status` shows how far it is.
    """
    if nodes != "all" and not (nodes.isascii() and nodes.isdigit() and int(nodes)):
        raise click.BadParameter(f"--nodes: {nodes!r} is neither all nor a number of nodes")
    node = find(flags)
    for repo in repos:
        order = {
            "repo": repo.repo,
            "revision": repo.revision,
            "include": include,
            "exclude": exclude,
            "nodes": None if nodes == "all" else int(nodes),
        }
        files = node.act("preheat", order, token or _token())["files"]
        click.echo(f"{repo.id}: {files} files are on their way; `hubmesh status` shows how far they are")


def _token() -> str | None:
    """The token any other client on this machine would use."""
    if token := os.environ.get("HF_TOKEN"):
        return token
    from huggingface_hub import get_token

    return get_token()
