"""`hubmesh ls`: list what this node holds, by repository."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from proxy.admin.view import BlobView, RepositoryView, by_repository
from proxy.commands.local import find, node_flags
from proxy.commands.status import shares, table
from proxy.units import format_size


@click.command()
@click.argument("repo", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of objects.")
@node_flags
def ls(repo: str | None, as_json: bool, **flags: Any) -> None:
    """List the repositories this node holds, or the files of one."""
    blobs = find(flags).status().blobs
    rows: list[Any]
    if repo is None:
        rows = by_repository(blobs)
        lines = table(("REPOSITORY", "FILES", "SIZE", "HERE", ""), map(_line, rows))
    else:
        rows = sorted(
            (blob for blob in blobs if blob.repo in (repo, f"models/{repo}")), key=lambda blob: blob.path or ""
        )
        if not rows:
            raise click.ClickException(f"this node holds nothing of {repo}")
        lines = table(("FILE", "SIZE", "HERE", "FROM", "DIGEST"), map(_file_line, rows))
    click.echo(json.dumps([asdict(row) for row in rows]) if as_json else "\n".join(lines))


def _line(held: RepositoryView) -> tuple[str, ...]:
    name = held.repo.removeprefix("models/") or "(not in the catalog)"
    return name, str(held.files), format_size(held.size), _share(held.have, held.size), "pinned" * held.is_pinned


def _file_line(blob: BlobView) -> tuple[str, ...]:
    where_from = shares(blob.sources) or "?"
    return blob.path or "?", format_size(blob.size), _share(blob.have, blob.size), where_from, blob.digest


def _share(have: int, size: int) -> str:
    if have > size:
        return "part"  # the full size is not known
    # Round down: 100% means complete.
    return f"{100 * have // size}%" if size else "100%"
